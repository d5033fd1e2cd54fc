// SPDX-License-Identifier: Apache-2.0

package flow

import (
	"testing"

	"aldente/ipc"
	"aldente/worker/packet"
)

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
