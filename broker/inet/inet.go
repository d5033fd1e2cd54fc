// SPDX-License-Identifier: Apache-2.0

// Package inet makes sockets, by one recipe for each kind: TCP that connects, TCP
// that listens, a UDP flow, a UDP listener, ping. The broker follows it on the host
// and the agent in the guest's namespace, each as far as its part goes.
//
// A recipe says which options are set and in which order, without which of them
// there is no socket, and which errors of bind(2) and connect(2) are none. It does
// not say where a socket may lead: whoever calls has decided that.
package inet

import (
	"errors"
	"fmt"
	"net/netip"
	"os"

	"golang.org/x/sys/unix"

	"aldente/ipc"
	"aldente/ipc/sock"
)

// Path is how a socket reaches its peers. The zero value leaves it to the kernel.
type Path struct {
	Device   string // bound to this interface
	Scope    uint32 // index of the interface that link-local addresses are on
	Freebind bool   // may have addresses that are nobody's here
}

// Result is what has become of a socket that was to be made and connected.
type Result struct {
	FD         int   // non-blocking and close-on-exec; -1: there is none
	Err        error // why there is none; wraps a unix.Errno
	InProgress bool  // TCP: the connect has not ended
}

// socket is one on its way: the first failure is kept, later steps are skipped, and
// the descriptor is closed at the end if there was one.
type socket struct {
	fd         int
	err        error
	inProgress bool
}

// bare makes a socket of one of ipc's protocols without any option. TCP is named:
// where MPTCP is the system's default, protocol zero would not be TCP.
func bare(proto uint8, v4 bool) socket {
	domain, typ := unix.AF_INET6, unix.SOCK_DGRAM
	if v4 {
		domain = unix.AF_INET
	}
	if proto == ipc.ProtoTCP {
		typ = unix.SOCK_STREAM
	}
	fd, err := sock.Socket(domain, typ|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, int(proto))
	if err != nil {
		return socket{fd: -1, err: os.NewSyscallError("socket", err)}
	}
	return socket{fd: fd}
}

// InterfaceName is the name that the kernel says of an interface which is named as: it may
// have others besides (ip link property add altname). Empty: there is none of that name.
func InterfaceName(as string) string {
	s := bare(ipc.ProtoUDP, true)
	if s.err != nil { // without IPv4
		s = bare(ipc.ProtoUDP, false)
	}
	if s.err != nil {
		return ""
	}
	defer unix.Close(s.fd)
	if sock.BindToDevice(s.fd, as) != nil {
		return ""
	}
	name, _ := sock.GetsockoptString(s.fd, unix.SOL_SOCKET, unix.SO_BINDTODEVICE)
	return name
}

// Bare makes a socket that somebody else goes on with, who may not make one where
// it is: see ConnectTCP and Flow.
func Bare(proto uint8, v4 bool) (int, error) {
	s := bare(proto, v4)
	return s.fd, s.err
}

// must sets an option that the socket cannot do without, try one that it can.
func (s *socket) must(level, name, value int) {
	if s.err == nil {
		s.err = os.NewSyscallError("setsockopt", sock.SetsockoptInt(s.fd, level, name, value))
	}
}

func (s *socket) try(level, name, value int) {
	if s.err == nil {
		_ = sock.SetsockoptInt(s.fd, level, name, value)
	}
}

// by applies a path.
func (s *socket) by(p *Path) {
	if s.err == nil && p.Device != "" {
		if err := sock.BindToDevice(s.fd, p.Device); err != nil {
			s.err = fmt.Errorf("SO_BINDTODEVICE %s: %w", p.Device, err)
		}
	}
}

func (s *socket) freebind(p *Path) {
	if p.Freebind {
		s.try(unix.IPPROTO_IP, unix.IP_FREEBIND, 1)
	}
}

func (s *socket) bind(to netip.AddrPort, scope uint32) {
	if s.err == nil {
		s.err = os.NewSyscallError("bind", sock.Bind(s.fd, sockaddr(to, scope)))
	}
}

func (s *socket) connect(to netip.AddrPort, scope uint32) {
	if s.err == nil {
		s.err = os.NewSyscallError("connect", sock.Connect(s.fd, sockaddr(to, scope)))
	}
}

// begin is connect for TCP. That it goes on is no error and is not made one first: it
// does for nearly each.
func (s *socket) begin(to netip.AddrPort, scope uint32) {
	if s.err != nil {
		return
	}
	err := sock.Connect(s.fd, sockaddr(to, scope))
	if s.inProgress = err == unix.EINPROGRESS; !s.inProgress {
		s.err = os.NewSyscallError("connect", err)
	}
}

// forgive makes some errors none, and tells whether there was one of them.
func (s *socket) forgive(these ...unix.Errno) bool {
	for _, e := range these {
		if s.err != nil && errors.Is(s.err, e) {
			s.err = nil
			return true
		}
	}
	return false
}

func (s *socket) result() Result {
	if s.err != nil && s.fd >= 0 {
		unix.Close(s.fd)
		s.fd = -1
	}
	return Result{FD: s.fd, Err: s.err, InProgress: s.inProgress && s.err == nil}
}

func sockaddr(a netip.AddrPort, scope uint32) unix.Sockaddr {
	if a.Addr().Is4() {
		return &unix.SockaddrInet4{Port: int(a.Port()), Addr: a.Addr().As4()}
	}
	sa := &unix.SockaddrInet6{Port: int(a.Port()), Addr: a.Addr().As16()}
	if a.Addr().IsLinkLocalUnicast() || a.Addr().IsLinkLocalMulticast() {
		sa.ZoneId = scope
	}
	return sa
}

// Any is the unspecified address of an address's family.
func Any(a netip.Addr) netip.Addr {
	if a.Is4() {
		return netip.IPv4Unspecified()
	}
	return netip.IPv6Unspecified()
}

// LocalPort is the port that a socket has, or a ping socket's identifier; zero if it
// has none.
func LocalPort(fd int) uint16 {
	sa, err := sock.Getsockname(fd)
	if err != nil {
		return 0
	}
	return portOf(sa)
}

func portOf(sa unix.Sockaddr) uint16 {
	switch a := sa.(type) {
	case *unix.SockaddrInet4:
		return uint16(a.Port)
	case *unix.SockaddrInet6:
		return uint16(a.Port)
	}
	return 0
}

func boolInt(b bool) int {
	if b {
		return 1
	}
	return 0
}
