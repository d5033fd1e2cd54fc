// SPDX-License-Identifier: Apache-2.0

package flow

import (
	"testing"

	"aldente/ipc"
	"aldente/worker/packet"
)

// TestInboundTo: what a rule sends on beyond the guest comes from an address that
// routers forward.
func TestInboundTo(t *testing.T) {
	ll, global, far := packet.Addr{0: 0xfe, 1: 0x80, 15: 1}, packet.Addr{0: 0xfc, 15: 1}, packet.Addr{0: 0x20, 15: 9}
	lo4, our4 := packet.AddrFrom4([4]byte{127, 0, 0, 1}), packet.AddrFrom4([4]byte{192, 0, 2, 1})
	beyond, guestLL, beyond4 := packet.Addr{0: 0xfd, 15: 2}, packet.Addr{0: 0xfe, 1: 0x80, 15: 2}, packet.AddrFrom4([4]byte{10, 89, 0, 2})
	for _, tt := range []struct {
		name               string
		our, mapped        packet.Addr
		target, peer, want packet.Addr
	}{
		{name: "loopback", our: global, target: beyond, peer: packet.Addr{15: 1}, want: global},
		{name: "loopback, mapped", our: global, mapped: packet.Addr{0: 0x20, 15: 7}, target: beyond, peer: packet.Addr{15: 1}, want: packet.Addr{0: 0x20, 15: 7}},
		{name: "the guest's address on the host", our: global, target: beyond, peer: packet.Addr{0: 0x20, 15: 2}, want: global},
		{name: "another host", our: global, target: beyond, peer: far, want: far},
		{name: "on the link", our: global, target: guestLL, peer: packet.Addr{15: 1}, want: ll},
		{name: "no other address of ours", our: ll, target: beyond, peer: packet.Addr{15: 1}, want: ll},
		{name: "IPv4", our: global, target: beyond4, peer: lo4, want: our4},
	} {
		g := Guest{Config: ipc.Config{Our4: our4, Our6: tt.our, OurLL6: ll, MapHostLoopback6: tt.mapped, Addr6: packet.Addr{0: 0x20, 15: 2}}}
		if got := g.InboundTo(tt.target, tt.peer); got != tt.want {
			t.Errorf("%s: from %v", tt.name, got)
		}
	}
}

// TestInboundFamily: a client of the host's loopback reaches a guest by the family
// that it has, others by their own or not at all.
func TestInboundFamily(t *testing.T) {
	v4 := func(b ...byte) packet.Addr { return packet.AddrFrom4([4]byte(b)) }
	guest4, guest6, our4, our6 := v4(192, 0, 2, 2), packet.Addr{0: 0x20, 15: 2}, v4(192, 0, 2, 1), packet.Addr{0: 0xfe, 1: 0x80, 15: 1}
	lo4, lo6, far6 := v4(127, 0, 0, 1), packet.Addr{15: 1}, packet.Addr{0: 0x20, 15: 9}
	hears := func(g *Guest, version ...uint8) {
		for _, v := range version {
			p := packet.Packet{IPVersion: v, SrcMAC: packet.MAC{2, 0, 0, 0, 0, 1}}
			g.Learn(&p)
		}
	}
	for _, tt := range []struct {
		name            string
		no4, no6        bool // no address is known
		heard           []uint8
		peer            packet.Addr
		source, address packet.Addr
	}{
		{name: "IPv4", heard: []uint8{4}, peer: lo4, source: our4, address: guest4},
		{name: "IPv6", heard: []uint8{4, 6}, peer: lo6, source: our6, address: guest6},
		{name: "nothing heard yet", peer: lo6, source: our6, address: guest6},
		{name: "only IPv4 heard", heard: []uint8{4}, peer: lo6, source: our4, address: guest4},
		{name: "only ARP heard", heard: []uint8{0}, peer: lo6, source: our4, address: guest4},
		{name: "only IPv6 heard", heard: []uint8{6}, peer: lo4, source: our4, address: guest4},
		{name: "no address of IPv6", no6: true, heard: []uint8{4, 6}, peer: lo6, source: our4, address: guest4},
		{name: "no address of IPv4", no4: true, heard: []uint8{6}, peer: lo4, source: our6, address: guest6},
		{name: "none", no4: true, no6: true, peer: lo4, source: our4},
		{name: "another host", heard: []uint8{4}, peer: far6, source: far6, address: guest6},
		{name: "another host, no address", no6: true, heard: []uint8{4}, peer: far6, source: far6},
	} {
		g := Guest{Config: ipc.Config{Our4: our4, Our6: our6}, Seen4: guest4, Seen6: guest6}
		if tt.no4 {
			g.Seen4 = packet.Addr{}
		}
		if tt.no6 {
			g.Seen6 = packet.Addr{}
		}
		hears(&g, tt.heard...)
		if source, address := g.Inbound(tt.peer); source != tt.source || address != tt.address {
			t.Errorf("%s: from %v to %v", tt.name, source, address)
		}
	}
}
