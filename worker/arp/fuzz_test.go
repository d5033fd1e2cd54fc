// SPDX-License-Identifier: Apache-2.0

package arp

import (
	"bytes"
	"testing"

	"github.com/gopacket/gopacket"
	"github.com/gopacket/gopacket/layers"

	"aldente/fuzz"
	"aldente/ipc"
	"aldente/worker/flow"
	"aldente/worker/packet"
)

// fuzzGuest is a guest of whom the byte says what is configured.
func fuzzGuest(b byte) *flow.Guest {
	g := guest()
	for i, a := range []*[16]byte{&g.Addr4, &g.Our4, &g.DNSForward4, &g.MapGuestAddr4, &g.MapHostLoopback4} {
		if b>>i&1 != 0 {
			*a = [16]byte{}
		}
	}
	if b&0x40 != 0 {
		g.Seen4 = packet.Addr{}
	}
	if b&0x80 != 0 {
		g.Flags &^= ipc.FlagIPv4
	}
	return g
}

// FuzzARP feeds any frame. Whether it is answered is what a plain reading of
// Handle's promise, on gopacket's reading of the frame, says; the answer is to
// whoever asked, for what was asked, and nothing else is written or allocated.
func FuzzARP(f *testing.F) {
	for _, frame := range fuzz.Captured() {
		if len(frame) > 13 && frame[12] == 8 && frame[13] == 6 {
			fuzz.Add(f, append([]byte{0x20, 0}, frame...))
		}
	}
	for _, g := range []byte{0, 1, 2, 0x20, 0x80} {
		fuzz.Add(f, append([]byte{g, fuzz.CountAllocations}, request(f, 1, packet.Broadcast, guestMAC, guestIP, ourIP)...))
		fuzz.Add(f, append([]byte{g, 0}, request(f, 1, packet.Broadcast, guestMAC, [4]byte{}, guestIP)...))
		fuzz.Add(f, append([]byte{g, 0}, request(f, 1, packet.Broadcast, guestMAC, [4]byte{}, [4]byte{169, 254, 1, 3})...))
		fuzz.Add(f, append([]byte{g, 0}, request(f, 1, ourMAC, guestMAC, guestIP, [4]byte{10, 9, 8, 7})...))
		fuzz.Add(f, append([]byte{g, 0}, request(f, 2, ourMAC, guestMAC, guestIP, ourIP)...))
		fuzz.Add(f, append([]byte{g, 0}, request(f, 1, packet.MAC{2}, guestMAC, guestIP, ourIP)...))
		fuzz.Add(f, append([]byte{g, 0}, request(f, 1, packet.Broadcast, packet.Broadcast, guestIP, ourIP)...))
		fuzz.Add(f, append([]byte{g, 0}, request(f, 1, packet.Broadcast, guestMAC, guestIP, [4]byte{224, 0, 0, 1})...))
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		if len(b) < 2 {
			return
		}
		g, frame := fuzzGuest(b[0]), b[2:]
		checkOwn(t, g)
		var p packet.Packet
		if p.Decode(frame) != nil {
			return
		}
		before := *g
		out := bytes.Repeat([]byte{0xee}, FrameSize+8)
		n := Handle(g, &p, out[:FrameSize])
		if want := answered(g, frame); want != (n != 0) {
			t.Fatalf("answer of %d bytes, expected one: %v\n%x", n, want, frame)
		}
		if *g != before {
			t.Fatal("the guest's record was changed")
		}
		if fuzz.CountsAllocations(b[1]) {
			if fuzz.Allocates(func() { Handle(g, &p, out[:FrameSize]) }) {
				t.Fatal("allocates")
			}
		}
		if n == 0 {
			return
		}
		eth, arp := parse(t, out[:n])
		var asked packet.ARP
		if asked.Decode(p.Payload()) != nil {
			t.Fatal("answered what is no ARP")
		}
		if arp.Operation != 2 || !bytes.Equal(arp.SourceHwAddress, ourMAC[:]) || !bytes.Equal(arp.SourceProtAddress, asked.TPA[:]) ||
			!bytes.Equal(arp.DstHwAddress, asked.SHA[:]) || !bytes.Equal(arp.DstProtAddress, asked.SPA[:]) ||
			!bytes.Equal(eth.DstMAC, asked.SHA[:]) || !bytes.Equal(eth.SrcMAC, ourMAC[:]) || out[FrameSize] != 0xee {
			t.Fatalf("%x answers %x", out, frame)
		}
	})
}

// answered is Handle's promise.
func answered(g *flow.Guest, frame []byte) bool {
	a, ok := gopacket.NewPacket(frame, layers.LayerTypeEthernet, gopacket.Default).Layer(layers.LayerTypeARP).(*layers.ARP)
	if !ok || g.Flags&ipc.FlagIPv4 == 0 || a.AddrType != 1 || a.Protocol != 0x800 || a.HwAddressSize != 6 || a.ProtAddressSize != 4 {
		return false
	}
	forUs := frame[0]&1 != 0 || bytes.Equal(frame[:6], ourMAC[:])
	sha, spa, tpa := a.SourceHwAddress, [4]byte(a.SourceProtAddress), [4]byte(a.DstProtAddress)
	if a.Operation != 1 || !forUs || sha[0]&1 != 0 || bytes.Equal(sha, make([]byte, 6)) || spa == tpa {
		return false
	}
	as := func(a [16]byte) bool { return packet.AddrFrom4(tpa) == a }
	switch {
	case tpa == [4]byte{}, tpa[0] == 127, tpa[0]>>4 == 14, tpa == [4]byte{255, 255, 255, 255}, as(g.Addr4):
		return false
	case as(g.Our4), as(g.MapHostLoopback4), as(g.MapGuestAddr4), as(g.DNSForward4):
		return true
	}
	return spa != [4]byte{} && !as(g.Seen4)
}

// checkOwn verifies the frames that are sent unasked.
func checkOwn(t *testing.T, g *flow.Guest) {
	t.Helper()
	on := g.Flags&ipc.FlagIPv4 != 0
	out := make([]byte, FrameSize)
	for _, own := range []struct {
		n      int
		target [16]byte
	}{{Request(g, out), g.Addr4}, {Announce(g, out), g.Our4}} {
		if (own.n != 0) != (on && own.target != [16]byte{}) {
			t.Fatalf("frame of %d bytes for %x", own.n, own.target)
		}
	}
	if Announce(g, out) != 0 {
		eth, arp := parse(t, out)
		if !bytes.Equal(arp.DstProtAddress, arp.SourceProtAddress) || !bytes.Equal(eth.DstMAC, packet.Broadcast[:]) {
			t.Fatalf("%x", out)
		}
	}
}
