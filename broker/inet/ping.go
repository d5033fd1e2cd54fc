// SPDX-License-Identifier: Apache-2.0

package inet

import (
	"net/netip"

	"golang.org/x/sys/unix"

	"aldente/ipc"
)

// Ping says which ping socket, icmp(7), is to be made.
type Ping struct {
	Path
	From netip.AddrPort // the port is the identifier, which is kept where it is free
	To   netip.Addr     // the peer
}

// Dial makes the socket.
func (p *Ping) Dial() Result {
	v4, proto := p.To.Is4(), uint8(ipc.ProtoICMPv6)
	if v4 {
		proto = ipc.ProtoICMP
	}
	s := bare(proto, v4)
	if v4 {
		s.try(unix.IPPROTO_IP, unix.IP_RECVERR, 1)
	} else {
		s.try(unix.IPPROTO_IPV6, unix.IPV6_RECVERR, 1)
	}
	s.by(&p.Path)
	s.bind(p.From, p.Scope)
	if s.forgive(unix.EADDRINUSE) {
		s.bind(netip.AddrPortFrom(p.From.Addr(), 0), p.Scope)
	}
	s.connect(netip.AddrPortFrom(p.To, 0), p.Scope)
	return s.result()
}
