// SPDX-License-Identifier: Apache-2.0

package sockets

import (
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
)

// soonTime is how long a request is waited for, in nanoseconds, in a way that
// the Go scheduler does not hear of. When requests come one after the other,
// telling it costs more than serving them. Its monitor takes the processor away
// from a thread that is in a system call for more than 20 µs, and wakes another.
const soonTime = 250_000

// awaitSoon waits for the next message, or for something to happen in ep where
// that is not negative, but not for long. It tells what has come.
func awaitSoon(conn, ep int) (message, ended bool) {
	p := [2]unix.PollFd{{Fd: int32(conn), Events: unix.POLLIN}, {Fd: int32(ep), Events: unix.POLLIN}}
	t := unix.Timespec{Nsec: soonTime}
	syscall.RawSyscall6(unix.SYS_PPOLL, uintptr(unsafe.Pointer(&p)), 2, uintptr(unsafe.Pointer(&t)), 0, 0, 0)
	return p[0].Revents != 0, p[1].Revents != 0
}
