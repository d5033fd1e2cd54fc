// SPDX-License-Identifier: Apache-2.0

package inet

import (
	"net/netip"
	"os"

	"golang.org/x/sys/unix"

	"aldente/ipc"
	"aldente/ipc/sock"
)

// Group says what is to be sent to a group, or to everybody on a network, or what is to
// be heard of it. Its sockets are bound to the group's address: nothing that is sent to
// the host itself ever comes by them. So they share the port with whoever has it, a
// service of the host's for the same group as a rule.
type Group struct {
	Path
	At     netip.AddrPort // the group, and its port
	From   uint16         // of a sender: the port that it sends from
	Filter Filter         // of a receiver: what it hears
	// NotHost says of a sender that members on this host do not hear it.
	NotHost bool
}

// Dial makes the socket of a sender. It hears nothing.
func (g *Group) Dial() Result {
	s := g.shared()
	s.dropInput()
	if a := g.At.Addr(); !a.IsMulticast() {
		s.must(unix.SOL_SOCKET, unix.SO_BROADCAST, 1)
	} else if a.Is4() && g.Scope != 0 {
		s.setMreqn(unix.IP_MULTICAST_IF, &unix.IPMreqn{Ifindex: int32(g.Scope)})
	} else if g.Scope != 0 {
		s.must(unix.IPPROTO_IPV6, unix.IPV6_MULTICAST_IF, int(g.Scope))
	}
	if g.NotHost && g.At.Addr().Is4() {
		s.must(unix.IPPROTO_IP, unix.IP_MULTICAST_LOOP, 0)
	} else if g.NotHost {
		s.must(unix.IPPROTO_IPV6, unix.IPV6_MULTICAST_LOOP, 0)
	}
	s.by(&g.Path)
	s.bind(netip.AddrPortFrom(g.At.Addr(), g.From), g.Scope)
	s.connect(g.At, g.Scope)
	return s.result()
}

// Join makes the socket of a receiver. The interface leaves the group when the last
// holder closes it.
func (g *Group) Join() Result {
	s := g.shared()
	s.filter(g.Filter)
	s.by(&g.Path)
	s.bind(g.At, g.Scope)
	// Without this, it would hear what others of the host have joined the group for.
	if a := g.At.Addr(); a.Is4() {
		s.must(unix.IPPROTO_IP, unix.IP_MULTICAST_ALL, 0)
		s.setMreqn(unix.IP_ADD_MEMBERSHIP, &unix.IPMreqn{Multiaddr: a.As4(), Ifindex: int32(g.Scope)})
	} else {
		s.try(unix.IPPROTO_IPV6, unix.IPV6_MULTICAST_ALL, 0) // since Linux 4.20
		if s.err == nil {
			s.err = os.NewSyscallError("IPV6_JOIN_GROUP", sock.SetsockoptIPv6Mreq(s.fd, unix.IPPROTO_IPV6, unix.IPV6_JOIN_GROUP,
				&unix.IPv6Mreq{Multiaddr: a.As16(), Interface: g.Scope}))
		}
	}
	return s.result()
}

// shared makes a socket that others may have the port beside.
func (g *Group) shared() socket {
	v4 := g.At.Addr().Is4()
	s := bare(ipc.ProtoUDP, v4)
	s.must(unix.SOL_SOCKET, unix.SO_REUSEADDR, 1)
	s.must(unix.SOL_SOCKET, unix.SO_REUSEPORT, 1)
	if !v4 {
		s.must(unix.IPPROTO_IPV6, unix.IPV6_V6ONLY, 1)
	}
	return s
}

func (s *socket) setMreqn(name int, m *unix.IPMreqn) {
	if s.err == nil {
		s.err = os.NewSyscallError("setsockopt", sock.SetsockoptIPMreqn(s.fd, unix.IPPROTO_IP, name, m))
	}
}
