// SPDX-License-Identifier: Apache-2.0

package sockets

import (
	"fmt"
	"net/netip"
	"os"

	"golang.org/x/sys/unix"

	"aldente/ipc"
)

// opening is a socket on its way: the first failure is kept, later steps are
// skipped, and the descriptor is closed at the end if there was one.
type opening struct {
	fd  int
	err error
}

func newSocket(a netip.Addr, typ, proto int) *opening {
	domain := unix.AF_INET6
	if a.Is4() {
		domain = unix.AF_INET
	}
	fd, err := unix.Socket(domain, typ|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, proto)
	if err != nil {
		return &opening{-1, os.NewSyscallError("socket", err)}
	}
	return &opening{fd: fd}
}

// must sets an option that the socket cannot do without, try one that it can.
func (o *opening) must(level, name, value int) {
	if o.err == nil {
		o.err = os.NewSyscallError("setsockopt", unix.SetsockoptInt(o.fd, level, name, value))
	}
}

func (o *opening) try(level, name, value int) {
	if o.err == nil {
		unix.SetsockoptInt(o.fd, level, name, value)
	}
}

// streamOptions sets what all connected TCP sockets have. Urgent data are bytes
// as others are: out of line, the kernel would take them out of the stream, and
// what was counted before would be counted wrongly (RFC 6093 section 4).
func (o *opening) streamOptions() {
	o.must(unix.SOL_SOCKET, unix.SO_OOBINLINE, 1)
	o.try(unix.IPPROTO_TCP, unix.TCP_NODELAY, 1) // the guest's own Nagle has done its work
}

func (o *opening) device(name string) {
	if o.err == nil && name != "" {
		if err := unix.BindToDevice(o.fd, name); err != nil {
			o.err = fmt.Errorf("SO_BINDTODEVICE %s: %w", name, err)
		}
	}
}

func (o *opening) bind(to netip.AddrPort, scope uint32) {
	if o.err == nil {
		o.err = os.NewSyscallError("bind", unix.Bind(o.fd, sockaddr(to, scope)))
	}
}

func (o *opening) connect(to netip.AddrPort, scope uint32) {
	if o.err == nil {
		o.err = os.NewSyscallError("connect", unix.Connect(o.fd, sockaddr(to, scope)))
	}
}

func (o *opening) done() (int, error) {
	if o.err != nil && o.fd >= 0 {
		unix.Close(o.fd)
		return -1, o.err
	}
	return o.fd, o.err
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

func any(a netip.Addr) netip.Addr {
	if a.Is4() {
		return netip.IPv4Unspecified()
	}
	return netip.IPv6Unspecified()
}

// openTCP starts a connection and does not wait for it: the worker sees it
// end, though it could not have begun it.
func openTCP(m *path, to netip.AddrPort, answer *ipc.Opened) (int, error) {
	o := newSocket(to.Addr(), unix.SOCK_STREAM, unix.IPPROTO_TCP)
	o.streamOptions()
	o.try(unix.SOL_SOCKET, unix.SO_PEEK_OFF, 0)
	o.device(m.Interface)
	if m.Source.IsValid() {
		o.try(unix.IPPROTO_IP, unix.IP_BIND_ADDRESS_NO_PORT, 1)
		o.bind(netip.AddrPortFrom(m.Source, 0), m.Scope)
	}
	o.connect(to, m.Scope)
	if unwrap(o.err) == unix.EINPROGRESS {
		o.err = nil
		answer.Flags |= ipc.OpenedInProgress
	}
	return o.done()
}

// openUDP binds to the guest's port where that can be had, so that protocols
// which know their peers by it work, and connects.
func (f *Factory) openUDP(m *path, from, to netip.AddrPort, answer *ipc.Opened) (int, error) {
	fd, local, err := f.flowSocket(m, from, to, true)
	if err == nil {
		answer.LocalPort = local
	}
	return fd, err
}

// sharing is how a UDP socket comes by its port, and whether it hears anybody
// before it is connected.
type sharing int

const (
	aloneUntilBound      sharing = iota // nobody else has the port; hears nobody
	sharedUntilConnected                // others of ours have it; hears nobody
	sharedAndOpen                       // a listener of ours has it: what comes is for that, and its reader passes it on
)

// boundUDP makes a socket between two addresses. Between bind and connect it
// would take datagrams from anybody; a filter keeps it closed until then, unless
// they are for somebody.
func boundUDP(m *path, from, to netip.AddrPort, how sharing) (int, error) {
	o := newSocket(to.Addr(), unix.SOCK_DGRAM, unix.IPPROTO_UDP)
	if how != sharedAndOpen {
		o.deafen()
	}
	if how != aloneUntilBound {
		o.must(unix.SOL_SOCKET, unix.SO_REUSEPORT, 1)
	}
	o.datagramOptions(to.Addr().Is4())
	if how == sharedAndOpen && from.Addr().IsUnspecified() {
		o.destinations(to.Addr().Is4(), !to.Addr().Is4())
	}
	if m.Freebind {
		o.try(unix.IPPROTO_IP, unix.IP_FREEBIND, 1)
	}
	o.device(m.Interface)
	o.bind(from, m.Scope)
	if how == aloneUntilBound {
		o.try(unix.SOL_SOCKET, unix.SO_REUSEPORT, 1)
	}
	o.connect(to, m.Scope)
	if how != sharedAndOpen {
		o.hear()
	}
	return o.done()
}

// destinations has a UDP socket tell where each datagram was sent to.
func (o *opening) destinations(v4, v6 bool) {
	if v4 {
		o.try(unix.IPPROTO_IP, unix.IP_PKTINFO, 1)
	}
	if v6 {
		o.try(unix.IPPROTO_IPV6, unix.IPV6_RECVPKTINFO, 1)
	}
}

// deafen attaches a socket filter that accepts nothing; hear takes it away.
func (o *opening) deafen() {
	if o.err != nil {
		return
	}
	drop := unix.SockFilter{Code: unix.BPF_RET | unix.BPF_K, K: 0}
	prog := unix.SockFprog{Len: 1, Filter: &drop}
	o.err = os.NewSyscallError("SO_ATTACH_FILTER", unix.SetsockoptSockFprog(o.fd, unix.SOL_SOCKET, unix.SO_ATTACH_FILTER, &prog))
}

func (o *opening) hear() { o.must(unix.SOL_SOCKET, unix.SO_DETACH_FILTER, 0) }

// openEcho opens a ping socket, icmp(7). The identifier is kept where it is
// free.
func openEcho(m *path, from, to netip.AddrPort, answer *ipc.Opened) (int, error) {
	proto := unix.IPPROTO_ICMPV6
	if to.Addr().Is4() {
		proto = unix.IPPROTO_ICMP
	}
	o := newSocket(to.Addr(), unix.SOCK_DGRAM, proto)
	if to.Addr().Is4() {
		o.try(unix.IPPROTO_IP, unix.IP_RECVERR, 1)
	} else {
		o.try(unix.IPPROTO_IPV6, unix.IPV6_RECVERR, 1)
	}
	o.device(m.Interface)
	o.bind(from, m.Scope)
	if unwrap(o.err) == unix.EADDRINUSE {
		o.err = nil
		o.bind(netip.AddrPortFrom(from.Addr(), 0), m.Scope)
	}
	o.connect(netip.AddrPortFrom(to.Addr(), 0), m.Scope)
	if o.err == nil {
		answer.LocalPort = localPort(o.fd)
	}
	return o.done()
}

// EchoAllowed tells whether this process may open ping sockets, that is,
// whether net.ipv4.ping_group_range holds one of its groups.
func EchoAllowed() bool {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, unix.IPPROTO_ICMP)
	if err == nil {
		unix.Close(fd)
	}
	return err != unix.EACCES
}

// PeekOffWorks tells whether SO_PEEK_OFF works on TCP sockets of the family,
// AF_INET or AF_INET6: since Linux 6.9 and 6.11.
func PeekOffWorks(domain int) bool {
	fd, err := unix.Socket(domain, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return false
	}
	defer unix.Close(fd)
	return unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_PEEK_OFF, 0) == nil
}

func localPort(fd int) uint16 {
	sa, err := unix.Getsockname(fd)
	if err != nil {
		return 0
	}
	switch a := sa.(type) {
	case *unix.SockaddrInet4:
		return uint16(a.Port)
	case *unix.SockaddrInet6:
		return uint16(a.Port)
	}
	return 0
}

func unwrap(err error) unix.Errno {
	if err == nil {
		return 0
	}
	return unix.Errno(errno(err))
}
