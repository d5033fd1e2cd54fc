// SPDX-License-Identifier: Apache-2.0

package kernel

import (
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Sizes of a pipe in bytes: what is asked for, what a new one has, and what is
// left to users above their limit, pipe(7) "/proc files".
const (
	pipeSize    = 1 << 20
	pipeDefault = 64 << 10
	pipeLeast   = 4 << 10
)

// Pipe is pipe2(2), and F_SETPIPE_SZ. Its capacity counts pages, of which a piece of a
// socket's data takes at least one, however small it is.
func (s *Sockets) Pipe() (r, w int32, size int, err syscall.Errno) {
	_, e := raw(unix.SYS_PIPE2, uintptr(unsafe.Pointer(&s.pipe)), unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
	if e != 0 {
		return -1, -1, 0, e
	}
	size, e = raw(unix.SYS_FCNTL, uintptr(s.pipe[1]), unix.F_SETPIPE_SZ, pipeSize)
	switch e {
	case 0:
	case syscall.EPERM:
		// Above pipe-user-pages-soft a new pipe may have two pages only.
		size = pipeLeast
	default:
		size = pipeDefault
	}
	return s.pipe[0], s.pipe[1], size, 0
}

// Splice is splice(2).
func (s *Sockets) Splice(from, to int32, n int) (int, syscall.Errno) {
	return raw6(unix.SYS_SPLICE, uintptr(from), 0, uintptr(to), 0, uintptr(n), unix.SPLICE_F_MOVE|unix.SPLICE_F_NONBLOCK)
}

// LowWater sets SO_RCVLOWAT.
func (s *Sockets) LowWater(fd int32, n int) syscall.Errno {
	s.value = int32(n)
	_, e := raw6(unix.SYS_SETSOCKOPT, uintptr(fd), unix.SOL_SOCKET, unix.SO_RCVLOWAT, uintptr(unsafe.Pointer(&s.value)), 4, 0)
	return e
}
