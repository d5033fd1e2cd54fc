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
			tt.want.heard4, tt.want.heard6 = p.IPVersion == 4, p.IPVersion == 6
			if g != tt.want {
				t.Errorf("%+v, want %+v", g, tt.want)
			}
		})
	}
}
