// SPDX-License-Identifier: Apache-2.0

package flow

import (
	"syscall"

	"aldente/worker/packet"
)

// A client of the host's own speaks to "localhost", which is [::1] or 127.0.0.1 as it
// comes, and the guest may have the other family only. Of neither loopback address
// the guest hears, so that one stands for the other where it has to.

// OtherLoopback is the loopback address of the family other than IPv4, or with v4
// false, IPv6.
func OtherLoopback(v4 bool) packet.Addr {
	if v4 {
		return packet.Addr{15: 1}
	}
	return packet.AddrFrom4([4]byte{127, 0, 0, 1})
}

// LacksFamily tells whether a socket could not be made or connected because there is
// nothing of its address's family, or not that address.
func LacksFamily(e syscall.Errno) bool {
	return e == syscall.EAFNOSUPPORT || e == syscall.EADDRNOTAVAIL || e == syscall.ENETUNREACH
}

// Inbound is how the guest sees the peer of a connection or datagram that came to the
// host, and the guest's address for it. A zero target means that there is none.
func (g *Guest) Inbound(peer packet.Addr) (remote, target packet.Addr) {
	remote = g.InboundSource(peer)
	target = g.InboundTarget(&remote)
	if !peer.IsLoopback() || !target.IsZero() && (peer.Is4() || !g.silent6()) {
		return remote, target
	}
	r := g.InboundSource(OtherLoopback(peer.Is4()))
	if t := g.InboundTarget(&r); !t.IsZero() && !r.IsZero() && r.Is4() != peer.Is4() {
		return r, t
	}
	return remote, target
}

// InboundTo is how a target that a rule names sees the peer. It may be beyond the guest,
// in a container on a bridge, say, and nothing whose source is a link-local address is
// forwarded there (RFC 4291 section 2.5.6).
func (g *Guest) InboundTo(target, peer packet.Addr) packet.Addr {
	remote := g.InboundSource(peer)
	if !target.IsLinkLocal() && remote == packet.Addr(g.OurLL6) && g.Our6 != [16]byte{} {
		return g.Our6
	}
	return remote
}

// silent6 tells whether a guest that is up has sent no packet of IPv6. One that has
// IPv6 sends some by itself as its interface comes up (RFC 4862, RFC 9777).
func (g *Guest) silent6() bool { return g.heard4 && !g.heard6 }
