// SPDX-License-Identifier: Apache-2.0

package sockets

import (
	"net/netip"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
)

// connectState is the TCP state of a socket, BPF_TCP_*; zero if it has none. The
// first byte of TCP_INFO is asked for in a way of which the scheduler does not
// hear: this is done for each connection.
func connectState(fd int) int {
	var state [8]byte
	n := uint32(len(state))
	_, _, e := syscall.RawSyscall6(unix.SYS_GETSOCKOPT, uintptr(fd), unix.IPPROTO_TCP, unix.TCP_INFO,
		uintptr(unsafe.Pointer(&state)), uintptr(unsafe.Pointer(&n)), 0)
	if e != 0 {
		return 0
	}
	return int(state[0])
}

// reachesItself tells whether a socket that is connected, or being connected, to an
// address is at that address too, as it is where the address is local. What cannot be
// known is taken for true.
func reachesItself(fd int, to netip.Addr) bool {
	var sa unix.RawSockaddrInet6
	n := uint32(unsafe.Sizeof(sa))
	_, _, e := syscall.RawSyscall(unix.SYS_GETSOCKNAME, uintptr(fd), uintptr(unsafe.Pointer(&sa)), uintptr(unsafe.Pointer(&n)))
	switch {
	case e != 0:
		return true
	case sa.Family == unix.AF_INET:
		return to.Is4() && to.As4() == (*unix.RawSockaddrInet4)(unsafe.Pointer(&sa)).Addr
	}
	return to.As16() == sa.Addr
}

// disconnect ends a connection that nobody has taken over, whoever has copies of the
// socket: connect(2) with AF_UNSPEC. A peer that has answered gets RST, which a
// shutdown would not send; copies fail with ECONNRESET.
func disconnect(fd int) {
	none := unix.RawSockaddr{Family: unix.AF_UNSPEC}
	_, _, _ = syscall.RawSyscall(unix.SYS_CONNECT, uintptr(fd), uintptr(unsafe.Pointer(&none)), unsafe.Sizeof(none))
}

// answered tells whether anything at all has come from a socket's peer: its
// consent or its reset. Neither a connect that was given up nor an error that a
// router or ourselves have made counts a segment.
func answered(fd int) bool {
	var info unix.TCPInfo
	n := uint32(unsafe.Sizeof(info))
	_, _, e := syscall.RawSyscall6(unix.SYS_GETSOCKOPT, uintptr(fd), unix.IPPROTO_TCP, unix.TCP_INFO,
		uintptr(unsafe.Pointer(&info)), uintptr(unsafe.Pointer(&n)), 0)
	return e == 0 && info.Segs_in > 0
}

// readyNow is epoll_wait(2) that does not wait, by the call that the runtime needs
// anyway. Whatever it fails for, there is nothing.
func readyNow(ep int, events []unix.EpollEvent) int {
	n, _, e := syscall.RawSyscall6(unix.SYS_EPOLL_PWAIT, uintptr(ep), uintptr(unsafe.Pointer(unsafe.SliceData(events))),
		uintptr(len(events)), 0, 0, 0)
	if e != 0 {
		return 0
	}
	return int(n)
}
