// SPDX-License-Identifier: Apache-2.0

//go:build captive

package captive

import "golang.org/x/sys/unix"

var files = attempts{
	"openat":        call(unix.SYS_OPENAT, atCwd, cstr("/"), unix.O_RDONLY),
	"openat-proc":   call(unix.SYS_OPENAT, atCwd, cstr("/proc/1/mem"), unix.O_RDWR),
	"openat2":       call(unix.SYS_OPENAT2, atCwd, cstr("/"), addr(&[24]byte{}), 24),
	"memfd_create":  call(unix.SYS_MEMFD_CREATE, cstr("x"), 0),
	"mkdirat":       call(unix.SYS_MKDIRAT, atCwd, cstr("/x"), 0o700),
	"name-handle":   call(unix.SYS_OPEN_BY_HANDLE_AT, 3, addr(&[24]byte{8, 0, 0, 0, 1}), 0),
	"execveat-self": call(unix.SYS_EXECVEAT, 2, cstr(""), 0, 0, unix.AT_EMPTY_PATH),
	"execve":        call(unix.SYS_EXECVE, cstr("/bin/sh"), 0, 0),
	"chroot":        call(unix.SYS_CHROOT, cstr("/")),
	"pivot_root":    call(unix.SYS_PIVOT_ROOT, cstr("/"), cstr("/")),
	"mount":         call(unix.SYS_MOUNT, cstr("none"), cstr("/"), cstr("tmpfs"), 0, 0),
	"mount-proc":    call(unix.SYS_MOUNT, cstr("none"), cstr("/"), cstr("proc"), 0, 0),
	"umount2":       call(unix.SYS_UMOUNT2, cstr("/"), unix.MNT_DETACH),
	"fsopen":        call(unix.SYS_FSOPEN, cstr("tmpfs"), 0),
	"fcntl-dup":     call(unix.SYS_FCNTL, 3, unix.F_DUPFD, 10),
	"ioctl-tap": withHeld(func(h Held) []uintptr {
		return []uintptr{unix.SYS_IOCTL, uintptr(h.Link), unix.TUNGETIFF, addr(&[64]byte{})}
	}),
	"openat-write":   call(unix.SYS_OPENAT, atCwd, cstr("/tmp/captive"), unix.O_WRONLY|unix.O_CREAT, 0o600),
	"openat-etc":     call(unix.SYS_OPENAT, atCwd, cstr("/etc/passwd"), unix.O_RDONLY),
	"openat-self":    call(unix.SYS_OPENAT, atCwd, cstr("/proc/self/mem"), unix.O_RDONLY),
	"openat-environ": call(unix.SYS_OPENAT, atCwd, cstr("/proc/self/environ"), unix.O_RDONLY),
	"openat-tun":     call(unix.SYS_OPENAT, atCwd, cstr("/dev/net/tun"), unix.O_RDWR),
	"openat-path":    call(unix.SYS_OPENAT, atCwd, cstr("/"), unix.O_PATH),
	"unlinkat":       call(unix.SYS_UNLINKAT, atCwd, cstr("/tmp/captive"), 0),
	"renameat2":      call(unix.SYS_RENAMEAT2, atCwd, cstr("/tmp/a"), atCwd, cstr("/tmp/b"), 0),
	"linkat":         call(unix.SYS_LINKAT, atCwd, cstr("/tmp/a"), atCwd, cstr("/tmp/b"), 0),
	"symlinkat":      call(unix.SYS_SYMLINKAT, cstr("/tmp/a"), atCwd, cstr("/tmp/b")),
	"mknodat":        call(unix.SYS_MKNODAT, atCwd, cstr("/tmp/a"), unix.S_IFCHR|0o600, 1<<8|1),
	"fchmodat":       call(unix.SYS_FCHMODAT, atCwd, cstr("/tmp/a"), 0o777),
	"fchownat":       call(unix.SYS_FCHOWNAT, atCwd, cstr("/tmp/a"), 0, 0, 0),
	"utimensat":      call(unix.SYS_UTIMENSAT, atCwd, cstr("/tmp/a"), 0, 0),
	"truncate":       call(unix.SYS_TRUNCATE, cstr("/tmp/a"), 0),
	"chdir":          call(unix.SYS_CHDIR, cstr("/")),
	"execveat-path":  call(unix.SYS_EXECVEAT, atCwd, cstr("/bin/sh"), 0, 0, 0),
	"open_tree":      call(unix.SYS_OPEN_TREE, atCwd, cstr("/"), 1),
	"move_mount":     call(unix.SYS_MOVE_MOUNT, 3, cstr(""), atCwd, cstr("/"), 4),
	"mount_setattr":  call(unix.SYS_MOUNT_SETATTR, atCwd, cstr("/"), 0, addr(&[32]byte{}), 32),
	"inotify":        call(unix.SYS_INOTIFY_INIT1, 0),
	"fanotify":       call(unix.SYS_FANOTIFY_INIT, 0, 0),
	"flock":          withHeld(func(h Held) []uintptr { return []uintptr{unix.SYS_FLOCK, uintptr(h.Capture), unix.LOCK_EX} }),
	"ftruncate":      withHeld(func(h Held) []uintptr { return []uintptr{unix.SYS_FTRUNCATE, uintptr(h.Capture), 0} }),
	"lseek-capture":  withHeld(func(h Held) []uintptr { return []uintptr{unix.SYS_LSEEK, uintptr(h.Capture), 0, 0} }),
	"pread-capture": withHeld(func(h Held) []uintptr {
		return []uintptr{unix.SYS_PREAD64, uintptr(h.Capture), addr(&[8]byte{}), 8, 0}
	}),
	"read-capture": withHeld(func(h Held) []uintptr {
		return []uintptr{unix.SYS_READ, uintptr(h.Capture), addr(&[8]byte{}), 8}
	}),
	"read-live": withHeld(func(h Held) []uintptr {
		return []uintptr{unix.SYS_READ, uintptr(h.Live), addr(&[8]byte{}), 8}
	}),
	"splice-live": withHeld(func(h Held) []uintptr {
		return []uintptr{unix.SYS_SPLICE, uintptr(h.Live), 0, uintptr(h.Flow), 0, 1, unix.SPLICE_F_NONBLOCK}
	}),
	"fcntl-live": withHeld(func(h Held) []uintptr {
		return []uintptr{unix.SYS_FCNTL, uintptr(h.Live), unix.F_SETFL, 0}
	}),
	"tee-live": withHeld(func(h Held) []uintptr {
		return []uintptr{unix.SYS_TEE, uintptr(h.Live), uintptr(h.Live), 1, 0}
	}),
	"vmsplice-live": withHeld(func(h Held) []uintptr {
		return []uintptr{unix.SYS_VMSPLICE, uintptr(h.Live), addr(&unix.Iovec{}), 1, 0}
	}),
	"fcntl-pipe": withHeld(func(h Held) []uintptr {
		return []uintptr{unix.SYS_FCNTL, uintptr(h.Log), unix.F_SETPIPE_SZ, 1 << 19}
	}),
	"pipe2-direct": call(unix.SYS_PIPE2, addr(&[2]int32{}), unix.O_DIRECT|unix.O_CLOEXEC),
	"splice-gift": withHeld(func(h Held) []uintptr {
		return []uintptr{unix.SYS_SPLICE, uintptr(h.Log), 0, uintptr(h.Flow), 0, 1, unix.SPLICE_F_GIFT}
	}),
	"ioctl-flow": withHeld(func(h Held) []uintptr {
		return []uintptr{unix.SYS_IOCTL, uintptr(h.Flow), unix.SIOCGIFNAME, addr(&[64]byte{})}
	}),
	"fcntl-append": withHeld(func(h Held) []uintptr {
		return []uintptr{unix.SYS_FCNTL, uintptr(h.Capture), unix.F_SETFL, unix.O_APPEND | unix.O_NONBLOCK}
	}),
	"preadv2": withHeld(func(h Held) []uintptr {
		return []uintptr{unix.SYS_PREADV2, uintptr(h.Log), addr(&unix.Iovec{}), 1, 0, 0, 0}
	}),
	"fcntl-owner": withHeld(func(h Held) []uintptr {
		return []uintptr{unix.SYS_FCNTL, uintptr(h.Flow), unix.F_SETOWN, 1}
	}),
}
