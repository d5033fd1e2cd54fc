// SPDX-License-Identifier: Apache-2.0

package arp

import (
	"bytes"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/gopacket/gopacket"
	"github.com/gopacket/gopacket/layers"

	"aldente/ipc"
	"aldente/worker/flow"
	"aldente/worker/packet"
)

var (
	ourMAC   = packet.MAC{0x9a, 0x55, 0x9a, 0x55, 0x9a, 0x55}
	guestMAC = packet.MAC{0x52, 0x54, 0, 0x12, 0x34, 0x56}
	guestIP  = [4]byte{192, 0, 2, 2}
	ourIP    = [4]byte{192, 0, 2, 1}
)

func guest() *flow.Guest {
	g := &flow.Guest{MAC: guestMAC}
	g.Flags = ipc.FlagIPv4
	g.OurMAC = ourMAC
	g.Addr4 = packet.AddrFrom4(guestIP)
	g.Our4 = packet.AddrFrom4(ourIP)
	g.DNSForward4 = packet.AddrFrom4([4]byte{169, 254, 1, 1})
	g.MapGuestAddr4 = packet.AddrFrom4([4]byte{169, 254, 1, 2})
	g.MapHostLoopback4 = packet.AddrFrom4([4]byte{169, 254, 1, 3})
	g.Seen4 = packet.AddrFrom4([4]byte{10, 9, 8, 7})
	return g
}

// request makes a frame with the oracle's encoder.
func request(t testing.TB, op uint16, dst packet.MAC, sha packet.MAC, spa, tpa [4]byte) []byte {
	t.Helper()
	buf := gopacket.NewSerializeBuffer()
	err := gopacket.SerializeLayers(buf, gopacket.SerializeOptions{FixLengths: true},
		&layers.Ethernet{SrcMAC: sha[:], DstMAC: dst[:], EthernetType: layers.EthernetTypeARP},
		&layers.ARP{
			AddrType: layers.LinkTypeEthernet, Protocol: layers.EthernetTypeIPv4, HwAddressSize: 6, ProtAddressSize: 4,
			Operation: op, SourceHwAddress: sha[:], SourceProtAddress: spa[:],
			DstHwAddress: make([]byte, 6), DstProtAddress: tpa[:],
		})
	if err != nil {
		t.Fatal(err)
	}
	return buf.Bytes()
}

// parse reads a frame of ours with the oracle's decoder.
func parse(t *testing.T, frame []byte) (*layers.Ethernet, *layers.ARP) {
	t.Helper()
	p := gopacket.NewPacket(frame, layers.LayerTypeEthernet, gopacket.Default)
	if p.ErrorLayer() != nil {
		t.Fatal(p.ErrorLayer().Error())
	}
	arp, ok := p.Layer(layers.LayerTypeARP).(*layers.ARP)
	if !ok {
		t.Fatalf("no ARP in %x", frame)
	}
	if len(frame) != FrameSize {
		t.Errorf("frame of %d bytes", len(frame))
	}
	return p.Layer(layers.LayerTypeEthernet).(*layers.Ethernet), arp
}

func handle(t testing.TB, g *flow.Guest, frame []byte) []byte {
	t.Helper()
	var p packet.Packet
	if err := p.Decode(frame); err != nil {
		t.Fatal(err)
	}
	out := bytes.Repeat([]byte{0xee}, FrameSize)
	return out[:Handle(g, &p, out)]
}

func TestHandle(t *testing.T) {
	zero := [4]byte{}
	remote := [4]byte{198, 51, 100, 7}
	for _, tc := range []struct {
		name     string
		op       uint16
		dst, sha packet.MAC
		spa, tpa [4]byte
		want     bool
	}{
		{"gateway", 1, packet.Broadcast, guestMAC, guestIP, ourIP, true},
		{"gateway, unicast", 1, ourMAC, guestMAC, guestIP, ourIP, true},
		{"remote host", 1, packet.Broadcast, guestMAC, guestIP, remote, true},
		{"from another address", 1, packet.Broadcast, guestMAC, [4]byte{10, 0, 0, 1}, remote, true},
		{"to somebody else's MAC", 1, packet.MAC{2, 1}, guestMAC, guestIP, ourIP, false},
		{"reply", 2, packet.Broadcast, guestMAC, guestIP, ourIP, false},
		{"announcement", 1, packet.Broadcast, guestMAC, remote, remote, false},
		{"assigned address", 1, packet.Broadcast, guestMAC, ourIP, guestIP, false},
		{"probe for assigned address", 1, packet.Broadcast, guestMAC, zero, guestIP, false},
		{"probe for address seen", 1, packet.Broadcast, guestMAC, zero, [4]byte{10, 9, 8, 7}, false},
		{"address seen", 1, packet.Broadcast, guestMAC, guestIP, [4]byte{10, 9, 8, 7}, false},
		{"probe for a free address", 1, packet.Broadcast, guestMAC, zero, remote, false},
		{"probe for the gateway", 1, packet.Broadcast, guestMAC, zero, ourIP, true},
		{"probe for the resolver", 1, packet.Broadcast, guestMAC, zero, [4]byte{169, 254, 1, 1}, true},
		{"probe for the host's other address", 1, packet.Broadcast, guestMAC, zero, [4]byte{169, 254, 1, 2}, true},
		{"probe for the host's loopback", 1, packet.Broadcast, guestMAC, zero, [4]byte{169, 254, 1, 3}, true},
		{"0.0.0.0", 1, packet.Broadcast, guestMAC, guestIP, zero, false},
		{"loopback", 1, packet.Broadcast, guestMAC, guestIP, [4]byte{127, 0, 0, 1}, false},
		{"multicast", 1, packet.Broadcast, guestMAC, guestIP, [4]byte{224, 0, 0, 1}, false},
		{"broadcast", 1, packet.Broadcast, guestMAC, guestIP, [4]byte{255, 255, 255, 255}, false},
		{"from a group address", 1, packet.Broadcast, packet.MAC{1, 0, 0x5e, 0, 0, 1}, guestIP, ourIP, false},
		{"from no MAC address", 1, packet.Broadcast, packet.MAC{}, guestIP, ourIP, false},
	} {
		t.Run(tc.name, func(t *testing.T) {
			reply := handle(t, guest(), request(t, tc.op, tc.dst, tc.sha, tc.spa, tc.tpa))
			if !tc.want {
				if len(reply) != 0 {
					t.Fatalf("answered: %x", reply)
				}
				return
			}
			eth, arp := parse(t, reply)
			got := [][]byte{eth.SrcMAC, eth.DstMAC, arp.SourceHwAddress, arp.SourceProtAddress, arp.DstHwAddress, arp.DstProtAddress}
			want := [][]byte{ourMAC[:], tc.sha[:], ourMAC[:], tc.tpa[:], tc.sha[:], tc.spa[:]}
			if diff := cmp.Diff(want, got); diff != "" || arp.Operation != 2 {
				t.Errorf("operation %d, fields (-want +got):\n%s", arp.Operation, diff)
			}
		})
	}
}

func TestHandleOff(t *testing.T) {
	g := guest()
	g.Flags &^= ipc.FlagIPv4
	frame := request(t, 1, packet.Broadcast, guestMAC, guestIP, ourIP)
	if r := handle(t, g, frame); len(r) != 0 {
		t.Errorf("answered without IPv4: %x", r)
	}
	var p packet.Packet
	if err := p.Decode(frame); err != nil {
		t.Fatal(err)
	}
	if n := Handle(guest(), &p, make([]byte, FrameSize-1)); n != 0 {
		t.Errorf("wrote %d bytes to a buffer that is too small", n)
	}
}

// Whatever a request is cut to or changed to, it gets an answer only if it is
// a request for IPv4 over Ethernet still.
func TestMalformed(t *testing.T) {
	whole := request(t, 1, packet.Broadcast, guestMAC, guestIP, ourIP)
	for n := packet.EthernetLen; n < packet.EthernetLen+28; n++ {
		if r := handle(t, guest(), whole[:n:n]); len(r) != 0 {
			t.Errorf("answered %d bytes", n)
		}
	}
	for i := 12; i < 20; i++ { // types and lengths
		bad := bytes.Clone(whole)
		bad[i] ^= 0x40
		if r := handle(t, guest(), bad); len(r) != 0 {
			t.Errorf("answered with byte %d changed", i)
		}
	}
}

func TestRequestAndAnnounce(t *testing.T) {
	zero := make([]byte, 6)
	for _, tc := range []struct {
		name     string
		make     func(*flow.Guest, []byte) int
		change   func(*flow.Guest)
		spa, tpa []byte
	}{
		{"request", Request, nil, ourIP[:], guestIP[:]},
		{"request without own address", Request, func(g *flow.Guest) { g.Our4 = [16]byte{} }, zero[:4], guestIP[:]},
		{"request without address", Request, func(g *flow.Guest) { g.Addr4 = [16]byte{} }, nil, nil},
		{"request without IPv4", Request, func(g *flow.Guest) { g.Flags = 0 }, nil, nil},
		{"announce", Announce, nil, ourIP[:], ourIP[:]},
		{"announce without own address", Announce, func(g *flow.Guest) { g.Our4 = [16]byte{} }, nil, nil},
		{"announce without IPv4", Announce, func(g *flow.Guest) { g.Flags = 0 }, nil, nil},
	} {
		t.Run(tc.name, func(t *testing.T) {
			g := guest()
			if tc.change != nil {
				tc.change(g)
			}
			out := bytes.Repeat([]byte{0xee}, FrameSize)
			n := tc.make(g, out)
			if tc.spa == nil {
				if n != 0 {
					t.Fatalf("wrote %d bytes", n)
				}
				return
			}
			eth, arp := parse(t, out[:n])
			got := [][]byte{eth.SrcMAC, eth.DstMAC, arp.SourceHwAddress, arp.SourceProtAddress, arp.DstHwAddress, arp.DstProtAddress}
			want := [][]byte{ourMAC[:], packet.Broadcast[:], ourMAC[:], tc.spa, zero, tc.tpa}
			if diff := cmp.Diff(want, got); diff != "" || arp.Operation != 1 {
				t.Errorf("operation %d, fields (-want +got):\n%s", arp.Operation, diff)
			}
			if tc.make(g, out[:FrameSize-1]) != 0 {
				t.Error("wrote to a buffer that is too small")
			}
		})
	}
}

func TestAllocs(t *testing.T) {
	g := guest()
	out := make([]byte, FrameSize)
	frame := request(t, 1, packet.Broadcast, guestMAC, guestIP, ourIP)
	var p packet.Packet
	n := testing.AllocsPerRun(100, func() {
		if p.Decode(frame) != nil || Handle(g, &p, out) == 0 || Request(g, out) == 0 || Announce(g, out) == 0 {
			t.Fatal("no frame")
		}
	})
	if n != 0 {
		t.Errorf("%v allocations", n)
	}
}
