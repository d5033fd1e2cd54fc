// SPDX-License-Identifier: Apache-2.0

package flow

import (
	"testing"

	"aldente/ipc"
	"aldente/worker/packet"
)

// TestLearn has a guest's packets teach where it is: usable addresses of its
// own, and none where the configuration has fixed them.
func TestLearn(t *testing.T) {
	v4 := func(a, b, c, d byte) packet.Addr { return packet.AddrFrom4([4]byte{a, b, c, d}) }
	assigned4, assigned6 := v4(192, 0, 2, 2), packet.Addr{0: 0xfd, 15: 2}
	mac, own := packet.MAC{2, 0, 0, 0, 0, 1}, packet.MAC{2, 0, 0, 0, 0, 2}
	for _, tt := range []struct {
		name  string
		flags uint64
		mac   packet.MAC
		src   packet.Addr
		want  Guest
	}{
		{"IPv4", 0, own, v4(192, 0, 2, 77), Guest{MAC: own, Seen4: v4(192, 0, 2, 77), Seen6: assigned6}},
		{"IPv4 fixed", ipc.FlagAddr4Fixed, own, v4(192, 0, 2, 77), Guest{MAC: own, Seen4: assigned4, Seen6: assigned6}},
		{"IPv4 unspecified", 0, own, v4(0, 0, 0, 0), Guest{MAC: own, Seen4: assigned4, Seen6: assigned6}},
		{"IPv4 loopback", 0, own, v4(127, 0, 0, 1), Guest{MAC: own, Seen4: assigned4, Seen6: assigned6}},
		{"IPv4 multicast", 0, own, v4(224, 0, 0, 1), Guest{MAC: own, Seen4: assigned4, Seen6: assigned6}},
		{"IPv4 broadcast", 0, own, v4(255, 255, 255, 255), Guest{MAC: own, Seen4: assigned4, Seen6: assigned6}},
		{"IPv6", 0, own, packet.Addr{0: 0x20, 15: 7}, Guest{MAC: own, Seen4: assigned4, Seen6: packet.Addr{0: 0x20, 15: 7}}},
		{"IPv6 fixed", ipc.FlagAddr6Fixed, own, packet.Addr{0: 0x20, 15: 7}, Guest{MAC: own, Seen4: assigned4, Seen6: assigned6}},
		{"IPv6 link-local", ipc.FlagAddr6Fixed, own, packet.Addr{0: 0xfe, 1: 0x80, 15: 7},
			Guest{MAC: own, Seen4: assigned4, Seen6: assigned6, SeenLL6: packet.Addr{0: 0xfe, 1: 0x80, 15: 7}}},
		{"IPv6 unspecified", 0, own, packet.Addr{}, Guest{MAC: own, Seen4: assigned4, Seen6: assigned6}},
		{"IPv6 loopback", 0, own, packet.Addr{15: 1}, Guest{MAC: own, Seen4: assigned4, Seen6: assigned6}},
		{"IPv6 multicast", 0, own, packet.Addr{0: 0xff, 1: 2, 15: 1}, Guest{MAC: own, Seen4: assigned4, Seen6: assigned6}},
		{"group as hardware address", 0, packet.MAC{1, 0, 0x5e, 0, 0, 1}, v4(192, 0, 2, 77), Guest{MAC: mac, Seen4: v4(192, 0, 2, 77), Seen6: assigned6}},
		{"no hardware address", 0, packet.MAC{}, v4(192, 0, 2, 77), Guest{MAC: mac, Seen4: v4(192, 0, 2, 77), Seen6: assigned6}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			g := Guest{Config: ipc.Config{Flags: tt.flags}, MAC: mac, Seen4: assigned4, Seen6: assigned6}
			p := packet.Packet{IPVersion: 6, SrcMAC: tt.mac, Src: tt.src}
			if tt.src.Is4() {
				p.IPVersion = 4
			}
			g.Learn(&p)
			tt.want.Flags = tt.flags
			tt.want.Used = g.Used // TestUses
			tt.want.heard4, tt.want.heard6 = p.IPVersion == 4, p.IPVersion == 6
			if g != tt.want {
				t.Errorf("%+v, want %+v", g, tt.want)
			}
		})
	}
}

// TestUses: what the guest gives itself is its own, besides what it was told of, and
// nothing that comes from there would be taken by it.
func TestUses(t *testing.T) {
	v4 := func(d byte) packet.Addr { return packet.AddrFrom4([4]byte{192, 0, 2, d}) }
	v6 := func(d byte) packet.Addr { return packet.Addr{0: 0x20, 1: 1, 15: d} }
	for _, fixed := range []uint64{0, ipc.FlagAddr4Fixed | ipc.FlagAddr6Fixed} {
		g := &Guest{Config: ipc.Config{Flags: fixed, Our4: v4(1), Our6: v6(1), OurLL6: packet.Addr{0: 0xfe, 1: 0x80, 15: 1}}}
		g.Addr4, g.Addr6, g.Seen4, g.Seen6 = v4(2), v6(2), v4(2), v6(2)
		g.Config.Own[0], g.Config.Own[1], g.NOwn = v4(3), v6(3), 2
		g.Config.Own[2] = v4(99) // beyond those that are set
		for k := range byte(3) {
			g.Learn(&packet.Packet{IPVersion: 4, Src: v4(4 + k)})
			g.Learn(&packet.Packet{IPVersion: 6, Src: v6(4 + k)})
		}
		g.Learn(&packet.Packet{IPVersion: 6, Src: v4(98)}) // is no address of IPv6
		for k := byte(2); k <= 6; k++ {
			if a := v4(k); g.InboundSource(a) != g.Our4 {
				t.Errorf("fixed %#x: %v comes as %v", fixed, a, g.InboundSource(a))
			}
			if a := v6(k); g.InboundSource(a) != g.OurLL6 {
				t.Errorf("fixed %#x: %v comes as %v", fixed, a, g.InboundSource(a))
			}
		}
		for _, a := range []packet.Addr{v4(9), v6(9), v4(98), v4(99)} {
			if g.InboundSource(a) != a {
				t.Errorf("fixed %#x: %v comes as %v", fixed, a, g.InboundSource(a))
			}
		}
		if want := v4(6); fixed == 0 && g.Seen4 != want || fixed != 0 && g.Seen4 != v4(2) {
			t.Errorf("fixed %#x: it is reached at %v", fixed, g.Seen4)
		}
		for k := range byte(100) { // the oldest gives way
			g.Learn(&packet.Packet{IPVersion: 4, Src: v4(100 + k)})
		}
		if a := v4(199); !g.IsOwn(&a) {
			t.Error("the last address is not its own")
		}
		if a := v4(4); g.IsOwn(&a) {
			t.Error("addresses are never forgotten")
		}
	}
}
