// SPDX-License-Identifier: Apache-2.0

package netns

import (
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"

	"aldente/broker/fork"
)

var (
	tmpfsName  = cstring("tmpfs")
	resolvPath = cstring(resolvConf)
	resolvTemp = cstring("/proc/resolv.conf")
)

// mountResolv puts a resolv.conf of its own over the one that the command would
// see. The file needs a file system that is ours: for the moment, one over
// /proc, which every system has as a directory and which we are going to mount
// anyway.
//
//go:nosplit
//go:norace
func mountResolv(s *commandSpec) syscall.Errno {
	errno := fork.Call(unix.SYS_MOUNT, uintptr(unsafe.Pointer(&tmpfsName[0])), uintptr(unsafe.Pointer(&procPath[0])),
		uintptr(unsafe.Pointer(&tmpfsName[0])), unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC, 0)
	if errno != 0 {
		return errno
	}
	errno = writeResolv(s)
	if errno == 0 {
		errno = fork.Call(unix.SYS_MOUNT, uintptr(unsafe.Pointer(&resolvTemp[0])), uintptr(unsafe.Pointer(&resolvPath[0])), 0, unix.MS_BIND, 0)
	}
	fork.Call(unix.SYS_UMOUNT2, uintptr(unsafe.Pointer(&procPath[0])), unix.MNT_DETACH, 0, 0, 0)
	return errno
}

//go:nosplit
//go:norace
func writeResolv(s *commandSpec) syscall.Errno {
	fd, _, errno := syscall.RawSyscall6(unix.SYS_OPENAT, fork.AtFDCWD, uintptr(unsafe.Pointer(&resolvTemp[0])),
		unix.O_WRONLY|unix.O_CREAT|unix.O_CLOEXEC, 0o644, 0, 0)
	if errno != 0 {
		return errno
	}
	// The caller's umask counts for files that the command makes, not for this.
	fork.Call(unix.SYS_FCHMOD, fd, 0o644, 0, 0, 0)
	errno = fork.Call(unix.SYS_WRITE, fd, uintptr(unsafe.Pointer(&s.resolv[0])), uintptr(len(s.resolv)), 0, 0)
	fork.Call(unix.SYS_CLOSE, fd, 0, 0, 0, 0)
	return errno
}
