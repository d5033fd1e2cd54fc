// SPDX-License-Identifier: Apache-2.0

package sockets

import (
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
)

// soonTime is how long a request is waited for, in nanoseconds, in a way that the
// Go scheduler does not hear of. When requests come one after the other, telling
// it costs more than serving them: its monitor takes the processor away from
// whoever is in a system call for more than 20 µs, and wakes another thread.
const soonTime = 250_000

// awaitSoon waits for the next message, but not for long.
func awaitSoon(conn int) {
	p := unix.PollFd{Fd: int32(conn), Events: unix.POLLIN}
	t := unix.Timespec{Nsec: soonTime}
	syscall.RawSyscall6(unix.SYS_PPOLL, uintptr(unsafe.Pointer(&p)), 1, uintptr(unsafe.Pointer(&t)), 0, 0, 0)
}
