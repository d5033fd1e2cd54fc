// SPDX-License-Identifier: Apache-2.0

//go:build captive && !race

package main

import (
	"crypto/rand"
	"errors"
	"runtime"
	"runtime/debug"
	"unsafe"

	"golang.org/x/sys/unix"
)

// attempts are what a captured worker might try. Each makes its call as
// captured code would: raw, past the checks of libraries.
var attempts = map[string]func(held) error{
	// Harmless, and must work.
	"nothing":    func(held) error { return nil },
	"collect":    collect,
	"threads":    threads,
	"deep-stack": deepStack,
	"random":     random,
	"panic":      func(held) error { panic("captive panics") },
	"nil-deref":  func(held) error { return *(*error)(nilPointer()) },
	"exit-3":     func(held) error { unix.Exit(3); return nil },
	"say-escape": func(held) error {
		_, err := unix.Write(2, []byte("<4>\x1b[2Jcleared\n"))
		return err
	},

	// Files.
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
	"ioctl-tap": withHeld(func(h held) []uintptr {
		return []uintptr{unix.SYS_IOCTL, uintptr(h.link), unix.TUNGETIFF, addr(&[64]byte{})}
	}),

	// Sockets.
	"socket-tcp":     call(unix.SYS_SOCKET, unix.AF_INET, unix.SOCK_STREAM, 0),
	"socket-udp":     call(unix.SYS_SOCKET, unix.AF_INET6, unix.SOCK_DGRAM, 0),
	"socket-mptcp":   call(unix.SYS_SOCKET, unix.AF_INET, unix.SOCK_STREAM, unix.IPPROTO_MPTCP),
	"socket-unix":    call(unix.SYS_SOCKET, unix.AF_UNIX, unix.SOCK_STREAM, 0),
	"socket-netlink": call(unix.SYS_SOCKET, unix.AF_NETLINK, unix.SOCK_RAW, 0),
	"socket-raw":     call(unix.SYS_SOCKET, unix.AF_INET, unix.SOCK_RAW, unix.IPPROTO_ICMP),
	"socket-vsock":   call(unix.SYS_SOCKET, unix.AF_VSOCK, unix.SOCK_STREAM, 0),
	"socketpair":     call(unix.SYS_SOCKETPAIR, unix.AF_UNIX, unix.SOCK_STREAM, 0, addr(&[2]int32{})),
	"connect":        withHeld(func(h held) []uintptr { return []uintptr{unix.SYS_CONNECT, uintptr(h.flow), addr(loopback()), 16} }),
	"bind":           withHeld(func(h held) []uintptr { return []uintptr{unix.SYS_BIND, uintptr(h.flow), addr(loopback()), 16} }),
	"listen":         withHeld(func(h held) []uintptr { return []uintptr{unix.SYS_LISTEN, uintptr(h.flow), 1} }),
	"sendto-aimed": withHeld(func(h held) []uintptr {
		return []uintptr{unix.SYS_SENDTO, uintptr(h.flow), addr(&[4]byte{}), 4, 0, addr(loopback()), 16}
	}),
	"sendto-null": withHeld(func(h held) []uintptr {
		return []uintptr{unix.SYS_SENDTO, uintptr(h.flow), addr(&[4]byte{}), 4, 0, 0, 0}
	}),
	"sendmsg-aimed": withHeld(func(h held) []uintptr {
		return []uintptr{unix.SYS_SENDMSG, uintptr(h.flow), addr(aimed()), 0}
	}),
	"sendmmsg": withHeld(func(h held) []uintptr { return []uintptr{unix.SYS_SENDMMSG, uintptr(h.flow), addr(aimed()), 1, 0} }),
	"sockopt-bindtodevice": withHeld(func(h held) []uintptr {
		return []uintptr{unix.SYS_SETSOCKOPT, uintptr(h.flow), unix.SOL_SOCKET, unix.SO_BINDTODEVICE, cstr("lo"), 2}
	}),
	"sockopt-mark": withHeld(func(h held) []uintptr {
		return []uintptr{unix.SYS_SETSOCKOPT, uintptr(h.flow), unix.SOL_SOCKET, unix.SO_MARK, addr(&[4]byte{1}), 4}
	}),
	"sockopt-filter": withHeld(func(h held) []uintptr {
		return []uintptr{unix.SYS_SETSOCKOPT, uintptr(h.flow), unix.SOL_SOCKET, unix.SO_ATTACH_FILTER, addr(&[16]byte{}), 16}
	}),
	"sockopt-wrong-level": withHeld(func(h held) []uintptr {
		return []uintptr{unix.SYS_SETSOCKOPT, uintptr(h.flow), unix.IPPROTO_IPV6, unix.IP_TTL, addr(&[4]byte{1}), 4}
	}),
	"sockopt-pktinfo": withHeld(func(h held) []uintptr {
		return []uintptr{unix.SYS_SETSOCKOPT, uintptr(h.flow), unix.IPPROTO_IP, unix.IP_PKTINFO, addr(&[4]byte{1}), 4}
	}),
	"getsockopt-other": withHeld(func(h held) []uintptr {
		return []uintptr{unix.SYS_GETSOCKOPT, uintptr(h.flow), unix.SOL_SOCKET, unix.SO_PEERCRED, addr(&[16]byte{}), addr(&[1]uint32{16})}
	}),
	"accept-plain": withHeld(func(h held) []uintptr { return []uintptr{unix.SYS_ACCEPT, uintptr(h.listener), 0, 0} }),
	"accept4-blocking": withHeld(func(h held) []uintptr {
		return []uintptr{unix.SYS_ACCEPT4, uintptr(h.listener), 0, 0, 0}
	}),

	// Memory.
	"mmap-exec":      call(unix.SYS_MMAP, 0, 4096, unix.PROT_READ|unix.PROT_EXEC, unix.MAP_PRIVATE|unix.MAP_ANONYMOUS, mask, 0),
	"mmap-rwx":       call(unix.SYS_MMAP, 0, 4096, unix.PROT_READ|unix.PROT_WRITE|unix.PROT_EXEC, unix.MAP_PRIVATE|unix.MAP_ANONYMOUS, mask, 0),
	"mmap-shared":    call(unix.SYS_MMAP, 0, 4096, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED|unix.MAP_ANONYMOUS, mask, 0),
	"mmap-file":      call(unix.SYS_MMAP, 0, 4096, unix.PROT_READ, unix.MAP_PRIVATE, 3, 0),
	"mmap-high-bits": call(unix.SYS_MMAP, 0, 4096, unix.PROT_READ|1<<32, unix.MAP_PRIVATE|unix.MAP_ANONYMOUS, mask, 0),
	"mprotect-exec":  mprotectExec,
	"mremap":         call(unix.SYS_MREMAP, 0, 4096, 8192, unix.MREMAP_MAYMOVE, 0),
	"madvise-remove": call(unix.SYS_MADVISE, 0, 4096, unix.MADV_REMOVE),
	"madvise-inject": call(unix.SYS_MADVISE, 0, 4096, unix.MADV_HWPOISON),
	"userfaultfd":    call(unix.SYS_USERFAULTFD, 0),
	"pkey_mprotect":  call(unix.SYS_PKEY_MPROTECT, 0, 4096, unix.PROT_EXEC, mask),

	// Other processes.
	"kill-parent":      call(unix.SYS_KILL, 0, uintptr(unix.SIGTERM)),
	"kill-all":         call(unix.SYS_KILL, mask, uintptr(unix.SIGTERM)),
	"tgkill-other":     call(unix.SYS_TGKILL, 2, 2, uintptr(unix.SIGTERM)),
	"tkill":            call(unix.SYS_TKILL, 1, uintptr(unix.SIGTERM)),
	"pidfd_open":       call(unix.SYS_PIDFD_OPEN, 1, 0),
	"pidfd_getfd":      call(unix.SYS_PIDFD_GETFD, 3, 0, 0),
	"ptrace":           call(unix.SYS_PTRACE, unix.PTRACE_SEIZE, 1, 0, 0),
	"ptrace-traceme":   call(unix.SYS_PTRACE, unix.PTRACE_TRACEME, 0, 0, 0),
	"process_vm_readv": call(unix.SYS_PROCESS_VM_READV, 1, 0, 0, 0, 0, 0),
	"kcmp":             call(unix.SYS_KCMP, 1, 1, 0, 0, 0),
	"clone-process":    call(unix.SYS_CLONE, uintptr(unix.SIGCHLD), 0, 0, 0, 0),
	"clone-newuser":    call(unix.SYS_CLONE, uintptr(unix.SIGCHLD)|unix.CLONE_NEWUSER, 0, 0, 0, 0),
	"clone3":           call(unix.SYS_CLONE3, addr(&[11]uint64{}), 88),
	"unshare-user":     call(unix.SYS_UNSHARE, unix.CLONE_NEWUSER),
	"unshare-net":      call(unix.SYS_UNSHARE, unix.CLONE_NEWNET),
	"setns":            call(unix.SYS_SETNS, 3, 0),

	// The kernel.
	"bpf":             call(unix.SYS_BPF, 0, addr(&[120]byte{}), 120),
	"perf_event_open": call(unix.SYS_PERF_EVENT_OPEN, addr(&[120]byte{}), 0, mask, mask, 0),
	"io_uring_setup":  call(unix.SYS_IO_URING_SETUP, 8, addr(&[120]byte{})),
	"keyctl":          call(unix.SYS_KEYCTL, 0, mask-2, 1),
	"add_key":         call(unix.SYS_ADD_KEY, cstr("user"), cstr("x"), cstr("y"), 1, mask-2),
	"prctl-seccomp":   call(unix.SYS_PRCTL, unix.PR_SET_SECCOMP, 0, 0, 0, 0),
	"prctl-dumpable":  call(unix.SYS_PRCTL, unix.PR_SET_DUMPABLE, 1, 0, 0, 0),
	"prctl-ambient":   call(unix.SYS_PRCTL, unix.PR_CAP_AMBIENT, unix.PR_CAP_AMBIENT_RAISE, unix.CAP_NET_RAW, 0, 0),
	"seccomp":         call(unix.SYS_SECCOMP, unix.SECCOMP_GET_ACTION_AVAIL, 0, addr(&[1]uint32{})),
	"capset":          call(unix.SYS_CAPSET, addr(&[2]uint32{unix.LINUX_CAPABILITY_VERSION_3}), addr(&[6]uint32{1 << unix.CAP_SYS_ADMIN, 1 << unix.CAP_SYS_ADMIN})),
	"setuid":          call(unix.SYS_SETUID, 0),
	"sethostname":     call(unix.SYS_SETHOSTNAME, cstr("x"), 1),
	"reboot":          call(unix.SYS_REBOOT, 0, 0, 0, 0),
	"init_module":     call(unix.SYS_INIT_MODULE, 0, 0, 0),
	"landlock":        call(unix.SYS_LANDLOCK_CREATE_RULESET, 0, 0, 1),
	"prlimit":         call(unix.SYS_PRLIMIT64, 0, unix.RLIMIT_CORE, addr(&[2]uint64{1, 1}), 0),
	"syslog":          call(unix.SYS_SYSLOG, 3, 0, 0),
	"shmget":          call(unix.SYS_SHMGET, 0, 4096, 0o600),
	"rt_sigaction":    call(unix.SYS_RT_SIGACTION, uintptr(unix.SIGUSR1), 0, 0, 8),
	"epoll_create1":   call(unix.SYS_EPOLL_CREATE1, 0),
	"nosys":           call(1000, 0),
	"tgkill-self":     func(held) error { return raw(unix.SYS_TGKILL, uintptr(unix.Getpid()), uintptr(unix.Gettid()), 0) },

	// Behind the filter: several steps.
	"tcp-connect-out": tcpConnectOut,
	"udp-send-out":    udpSendOut,
	"read-caps":       readCaps,
}

// mask is -1 as the kernel sees it in a register.
const mask = ^uintptr(0)

const atCwd = ^uintptr(-unix.AT_FDCWD - 1)

func call(nr uintptr, args ...uintptr) func(held) error {
	return func(held) error { return raw(nr, args...) }
}

func withHeld(args func(held) []uintptr) func(held) error {
	return func(h held) error {
		a := args(h)
		return raw(a[0], a[1:]...)
	}
}

func raw(nr uintptr, args ...uintptr) error {
	var a [6]uintptr
	copy(a[:], args)
	if _, _, errno := unix.RawSyscall6(nr, a[0], a[1], a[2], a[3], a[4], a[5]); errno != 0 {
		return errno
	}
	return nil
}

// kept holds what raw calls point to, as unsafe pointers do not.
var kept []any

func addr[T any](p *T) uintptr {
	kept = append(kept, p)
	return uintptr(unsafe.Pointer(p))
}

func cstr(s string) uintptr {
	b := append([]byte(s), 0)
	kept = append(kept, b)
	return uintptr(unsafe.Pointer(&b[0]))
}

// loopback is struct sockaddr_in of 127.0.0.1:9.
func loopback() *[16]byte {
	return &[16]byte{unix.AF_INET, 0, 0, 9, 127, 0, 0, 1}
}

// aimed is a struct mmsghdr with an address and one byte of payload.
func aimed() *unix.Msghdr {
	to := loopback()
	iov := &unix.Iovec{Base: &[]byte{1}[0], Len: 1}
	m := &struct {
		hdr unix.Msghdr
		len uint64
	}{hdr: unix.Msghdr{Name: &to[0], Namelen: 16, Iov: iov, Iovlen: 1}}
	kept = append(kept, to, iov, m)
	return &m.hdr
}

func nilPointer() unsafe.Pointer { return nil }

// collect makes garbage, collects it and gives the pages back, which is what
// the memory limit does when something leaks.
func collect(held) error {
	var keep [][]byte
	for i := range 2000 {
		keep = append(keep, make([]byte, 16<<10))
		if i%100 == 0 {
			keep = nil
		}
	}
	runtime.GC()
	debug.FreeOSMemory()
	debug.SetGCPercent(10)
	for range 2000 {
		keep = append(keep[:0], make([]byte, 64<<10))
	}
	debug.SetGCPercent(-1)
	return nil
}

func random(held) error {
	var b [64]byte
	_, err := rand.Read(b[:])
	if err == nil && b == ([64]byte{}) {
		return errors.New("zeros")
	}
	return err
}

// threads has the runtime make some.
func threads(held) error {
	done := make(chan error)
	for range 4 {
		go func() {
			runtime.LockOSThread()
			var b [1]byte
			_, err := unix.Read(-1, b[:])
			if err == unix.EBADF {
				err = nil
			}
			done <- err // and the thread ends with the goroutine
		}()
	}
	var err error
	for range 4 {
		err = errors.Join(err, <-done)
	}
	return err
}

func deepStack(held) error {
	var grow func(n int) int
	grow = func(n int) int {
		var pad [256]byte
		if n == 0 {
			return int(pad[0])
		}
		return grow(n-1) + int(pad[n%256])
	}
	if grow(20000) != 0 {
		return errors.New("stack")
	}
	return nil
}

func mprotectExec(held) error {
	p, _, errno := unix.RawSyscall6(unix.SYS_MMAP, 0, 4096, unix.PROT_READ|unix.PROT_WRITE,
		unix.MAP_PRIVATE|unix.MAP_ANONYMOUS, mask, 0)
	if errno != 0 {
		return errors.New("mmap failed: " + errno.Error())
	}
	return raw(unix.SYS_MPROTECT, p, 4096, unix.PROT_READ|unix.PROT_EXEC)
}

// tcpConnectOut is what Landlock has to stop if the filter did not.
func tcpConnectOut(held) error {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM, 0)
	if err != nil {
		return err
	}
	return unix.Connect(fd, &unix.SockaddrInet4{Port: 9, Addr: [4]byte{127, 0, 0, 1}})
}

// udpSendOut is what the empty network namespace has to stop.
func udpSendOut(held) error {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM, 0)
	if err != nil {
		return err
	}
	return unix.Sendto(fd, []byte("x"), 0, &unix.SockaddrInet4{Port: 9, Addr: [4]byte{127, 0, 0, 1}})
}

func readCaps(held) error {
	hdr := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var data [2]unix.CapUserData
	if err := unix.Capget(&hdr, &data[0]); err != nil {
		return err
	}
	if data != ([2]unix.CapUserData{}) {
		return errors.New("has capabilities")
	}
	return nil
}
