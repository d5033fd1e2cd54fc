// SPDX-License-Identifier: Apache-2.0

// Package kernel makes the worker's system calls, but for those of links: on
// sockets that flows have, on the epoll, on the channel to the broker. It decides
// nothing. A call returns what the kernel did: a count, and zero or the error
// number. EINTR is retried inside.
//
// No call blocks, but where it says so; so they are raw, and the Go scheduler does
// not hear of them. Beside what the caller gives, they point to memory that is
// allocated once, in Sockets, Poller and Records.
package kernel

import (
	"fmt"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
)

// raw and raw6 may not split the stack: an address of something on it stays good
// from its conversion to the call.
//
//go:nosplit
func raw(trap, a, b, c uintptr) (int, syscall.Errno) {
	for {
		n, _, e := syscall.RawSyscall(trap, a, b, c)
		if e != syscall.EINTR {
			return int(n), e
		}
	}
}

//go:nosplit
func raw6(trap, a, b, c, d, f, g uintptr) (int, syscall.Errno) {
	for {
		n, _, e := syscall.RawSyscall6(trap, a, b, c, d, f, g)
		if e != syscall.EINTR {
			return int(n), e
		}
	}
}

func base(b []byte) uintptr { return uintptr(unsafe.Pointer(unsafe.SliceData(b))) }

// Write is write(2) to a descriptor that is no flow's.
func Write(fd int32, b []byte) (int, syscall.Errno) {
	return raw(unix.SYS_WRITE, uintptr(fd), base(b), uintptr(len(b)))
}

// Print is write(2) to a log, whose reader may be slow: it may block, and the
// scheduler knows of it. What fails is nobody's concern.
func Print(fd int, b []byte) { unix.Write(fd, b) }

// Close is close(2).
func Close(fd int32) { raw(unix.SYS_CLOSE, uintptr(fd), 0, 0) }

// SetNonblock sets O_NONBLOCK of a descriptor that was passed to us.
func SetNonblock(fd int) error { return unix.SetNonblock(fd, true) }

// Reserve returns size bytes of address space, which take up memory as they are
// touched.
func Reserve(size int) ([]byte, error) {
	b, err := unix.Mmap(-1, 0, size, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANONYMOUS|unix.MAP_NORESERVE)
	if err != nil {
		return nil, fmt.Errorf("address space for buffers: %w", err)
	}
	return b, nil
}
