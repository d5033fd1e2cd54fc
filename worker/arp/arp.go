// SPDX-License-Identifier: Apache-2.0

// Package arp answers the guest's address resolution requests (RFC 826) and
// makes the few requests of our own. It keeps no state.
package arp

import (
	"aldente/ipc"
	"aldente/worker/flow"
	"aldente/worker/packet"
)

// FrameSize is the length of every frame this package makes, in bytes: the
// least that Ethernet carries. A buffer that is shorter gets no frame.
const FrameSize = 60

// Handle answers the ARP frame in p. It writes the reply to out and returns
// its length, or 0 if there is nothing to say.
//
// Every neighbour of the guest is behind us, so any address is claimed but
// these: the one assigned to the guest, the one it uses, and what is no unicast
// address. A probe (RFC 5227 section 2.1.1: sender address zero) asks whether an
// address is free for the guest to take. It is answered only for addresses that
// are ours; otherwise no guest could choose one for itself.
func Handle(g *flow.Guest, p *packet.Packet, out []byte) int {
	if len(out) < FrameSize || !g.Has(ipc.FlagIPv4) || p.EtherType != packet.EtherTypeARP {
		return 0
	}
	if !p.DstMAC.IsGroup() && p.DstMAC != packet.MAC(g.OurMAC) {
		return 0 // between two others on the guest's own bridge
	}
	var a packet.ARP
	if a.Decode(p.Payload()) != nil || a.Op != packet.ARPRequest {
		return 0
	}
	if a.SHA.IsZero() || a.SHA.IsGroup() || a.SPA == a.TPA || !answers(g, &a) {
		return 0
	}
	return packet.PutARP(out, packet.ARPReply, g.OurMAC, a.SHA, g.OurMAC, a.TPA, a.SHA, a.SPA)
}

// answers tells whether we claim the address that a asks for.
func answers(g *flow.Guest, a *packet.ARP) bool {
	target := packet.AddrFrom4(a.TPA)
	switch {
	case target.IsUnspecified() || target.IsLoopback() || target.IsMulticast() || target.IsBroadcast():
		return false
	case target == packet.Addr(g.Addr4):
		return false
	case ours(g, target):
		return true
	}
	return a.SPA != [4]byte{} && target != g.Seen4
}

// ours tells whether the address stands for us and not for some remote host.
func ours(g *flow.Guest, a packet.Addr) bool {
	return a == packet.Addr(g.Our4) || a == packet.Addr(g.MapHostLoopback4) ||
		a == packet.Addr(g.MapGuestAddr4) || a == packet.Addr(g.DNSForward4)
}

// Request writes a broadcast request for the guest's assigned IPv4 address,
// so that its MAC address is known before it speaks. It returns the frame's
// length, or 0 if no address was assigned. Without an address of our own the
// request is a probe, which is answered like any other.
func Request(g *flow.Guest, out []byte) int {
	target := packet.Addr(g.Addr4)
	if len(out) < FrameSize || !g.Has(ipc.FlagIPv4) || target.IsUnspecified() {
		return 0
	}
	our := packet.Addr(g.Our4)
	return packet.PutARP(out, packet.ARPRequest, g.OurMAC, packet.Broadcast, g.OurMAC, our.As4(), packet.MAC{}, target.As4())
}

// Announce writes an announcement of our own address (RFC 5227 section 2.3),
// which corrects what the guest may remember of an earlier instance. It
// returns the frame's length, or 0 if we have no IPv4 address.
func Announce(g *flow.Guest, out []byte) int {
	our := packet.Addr(g.Our4)
	if len(out) < FrameSize || !g.Has(ipc.FlagIPv4) || our.IsUnspecified() {
		return 0
	}
	return packet.PutARP(out, packet.ARPRequest, g.OurMAC, packet.Broadcast, g.OurMAC, our.As4(), packet.MAC{}, our.As4())
}
