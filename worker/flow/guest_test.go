// SPDX-License-Identifier: Apache-2.0

package flow

import (
	"testing"

	"aldente/ipc"
	"aldente/worker/packet"
)

// What an ARP frame of the guest says of its address.
func TestLearnFromARP(t *testing.T) {
	guest, our := [4]byte{10, 1, 2, 3}, [4]byte{192, 0, 2, 1}
	before, mac := packet.AddrFrom4([4]byte{192, 0, 2, 2}), packet.MAC{2, 0, 0, 0, 0, 1}
	for _, tt := range []struct {
		name     string
		op       uint16
		src, dst [4]byte
		fixed    bool
		learned  bool
	}{
		{"announcement", packet.ARPRequest, guest, guest, false, true},
		{"request", packet.ARPRequest, guest, our, false, true},
		{"reply", packet.ARPReply, guest, our, false, true},
		{"probe", packet.ARPRequest, [4]byte{}, guest, false, false},
		{"our address", packet.ARPRequest, our, guest, false, false},
		{"loopback", packet.ARPRequest, [4]byte{127, 0, 0, 1}, our, false, false},
		{"multicast", packet.ARPRequest, [4]byte{224, 0, 0, 1}, our, false, false},
		{"broadcast", packet.ARPRequest, [4]byte{255, 255, 255, 255}, our, false, false},
		{"fixed", packet.ARPRequest, guest, our, true, false},
	} {
		t.Run(tt.name, func(t *testing.T) {
			g := &Guest{Seen4: before}
			g.Flags, g.Our4 = ipc.FlagIPv4, packet.AddrFrom4(our)
			if tt.fixed {
				g.Flags |= ipc.FlagAddr4Fixed
			}
			want := before
			if tt.learned {
				want = packet.AddrFrom4(tt.src)
			}
			frame := make([]byte, 60)
			packet.PutARP(frame, tt.op, mac, packet.Broadcast, mac, tt.src, packet.MAC{}, tt.dst)
			var p packet.Packet
			if err := p.Decode(frame); err != nil {
				t.Fatal(err)
			}
			g.Learn(&p)
			if g.Seen4 != want || g.MAC != mac {
				t.Errorf("address %v of %v", g.Seen4, g.MAC)
			}
			if p.Decode(frame[:30]) == nil { // cut short
				g.Learn(&p)
				if g.Seen4 != want {
					t.Errorf("address %v after a frame cut short", g.Seen4)
				}
			}
		})
	}
}

func TestInboundTarget(t *testing.T) {
	v4, global, ll := packet.AddrFrom4([4]byte{192, 0, 2, 2}), packet.Addr{0: 0x20, 1: 1, 15: 2}, packet.Addr{0: 0xfe, 1: 0x80, 15: 2}
	remote4, remote6, router := packet.AddrFrom4([4]byte{192, 0, 2, 9}), packet.Addr{0: 0x20, 1: 1, 15: 9}, packet.Addr{0: 0xfe, 1: 0x80, 15: 1}
	for _, tt := range []struct {
		name           string
		seen6, seenLL6 packet.Addr
		src, want      packet.Addr
	}{
		{"IPv4", global, ll, remote4, v4},
		{"IPv6", global, ll, remote6, global},
		{"link-local", global, ll, router, ll},
		{"link-local not known", global, packet.Addr{}, router, global},
		{"no other than link-local", packet.Addr{}, ll, remote6, ll},
		{"loopback, no other than link-local", packet.Addr{}, ll, packet.Addr{15: 1}, ll},
		{"none known", packet.Addr{}, packet.Addr{}, remote6, packet.Addr{}},
	} {
		g := Guest{Seen4: v4, Seen6: tt.seen6, SeenLL6: tt.seenLL6}
		if got := g.InboundTarget(&tt.src); got != tt.want {
			t.Errorf("%s: %v, want %v", tt.name, got, tt.want)
		}
	}
}

// TestReconfigure: an address that the guest was seen to use stays what connections go to,
// until it uses another; one that it never used, or that it has been given, does not.
func TestReconfigure(t *testing.T) {
	a := func(last byte) packet.Addr { return packet.AddrFrom4([4]byte{192, 0, 2, last}) }
	for _, tt := range []struct {
		name       string
		seen       packet.Addr
		heard      bool
		configured bool
		want       packet.Addr
	}{
		{"silent", a(2), false, false, a(7)},
		{"heard", a(2), true, false, a(2)},
		{"heard, and given the new one", a(2), true, true, a(7)},
		{"uses another, and given the new one", a(9), true, true, a(9)},
	} {
		g := &Guest{Seen4: tt.seen, heard4: tt.heard}
		g.Addr4 = a(2)
		next := ipc.Config{Addr4: a(7), Our4: a(1)}
		if tt.configured {
			next.Flags = ipc.FlagConfigured
		}
		if g.Reconfigure(&next); g.Seen4 != tt.want || g.Config != next {
			t.Errorf("%s: %v, want %v", tt.name, g.Seen4, tt.want)
		}
	}
}

// TestReconfigureUsed: what the guest has given itself is its own also when it is given
// another address.
func TestReconfigureUsed(t *testing.T) {
	g := &Guest{}
	g.Addr4 = packet.AddrFrom4([4]byte{192, 0, 2, 2})
	second, other := packet.AddrFrom4([4]byte{192, 0, 2, 77}), packet.AddrFrom4([4]byte{192, 0, 2, 78})
	main := packet.Addr(g.Addr4)
	g.Uses(&second)
	g.Uses(&main) // it is not the last one that was seen
	g.Reconfigure(&ipc.Config{Addr4: packet.AddrFrom4([4]byte{10, 0, 0, 2}), Our4: packet.AddrFrom4([4]byte{10, 0, 0, 1})})
	if !g.IsOwn(&second) || g.IsOwn(&other) {
		t.Errorf("own: %t, and what it never had: %t", g.IsOwn(&second), g.IsOwn(&other))
	}
}
