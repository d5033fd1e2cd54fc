// SPDX-License-Identifier: Apache-2.0

package guestsock

import (
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
)

// part disconnects from the client. What it has left behind goes.
func (s *Server) part() {
	none := unix.RawSockaddr{Family: unix.AF_UNSPEC}
	_, _, _ = syscall.RawSyscall(unix.SYS_CONNECT, uintptr(s.fd), uintptr(unsafe.Pointer(&none)), unsafe.Sizeof(none))
}
