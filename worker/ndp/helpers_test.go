// SPDX-License-Identifier: Apache-2.0

package ndp

import (
	"bytes"
	"net/netip"
	"testing"

	"github.com/gopacket/gopacket"
	"github.com/gopacket/gopacket/layers"

	"aldente/ipc"
	"aldente/worker/flow"
	"aldente/worker/packet"
)

var (
	ourMAC   = packet.MAC{0x9a, 0x55, 0x9a, 0x55, 0x9a, 0x55}
	guestMAC = packet.MAC{0x52, 0x54, 0, 0x12, 0x34, 0x56}
	guestIP  = addr("2001:db8:0:1::5")
	guestLL  = addr("fe80::5054:ff:fe12:3456")
	ourLL    = addr("fe80::1")
	remote   = addr("2001:db8:0:1::99")
)

func addr(s string) packet.Addr { return netip.MustParseAddr(s).As16() }

func setName(n *ipc.Name, s string) { n.Len = uint8(copy(n.Bytes[:], s)) }

func guest() *flow.Guest {
	g := &flow.Guest{MAC: guestMAC, SeenLL6: guestLL, Seen6: addr("2001:db8:0:1:5054:ff:fe12:3456")}
	g.Flags = ipc.FlagIPv6 | ipc.FlagNDP | ipc.FlagRA | ipc.FlagDHCPv6
	g.OurMAC = ourMAC
	g.Addr6 = guestIP
	g.Prefix6 = 64
	g.Our6 = addr("2001:db8:0:1::1")
	g.OurLL6 = ourLL
	g.MTU = 65520
	g.DNSForward6 = addr("fd00::53")
	g.NDNS6 = 2
	g.DNS6[0], g.DNS6[1] = addr("2001:db8::53"), addr("2001:db8::54")
	g.NSearch = 1
	setName(&g.Search[0], "example.com")
	return g
}

func withoutLL() *flow.Guest {
	g := guest()
	g.OurLL6 = [16]byte{}
	return g
}

// message makes a frame with the oracle's encoder, checksum included.
func message(t testing.TB, src, dst packet.Addr, hops uint8, typ layers.ICMPv6TypeCode, m gopacket.SerializableLayer) []byte {
	t.Helper()
	ip := &layers.IPv6{Version: 6, NextHeader: layers.IPProtocolICMPv6, HopLimit: hops, SrcIP: src[:], DstIP: dst[:]}
	icmp := &layers.ICMPv6{TypeCode: typ}
	if err := icmp.SetNetworkLayerForChecksum(ip); err != nil {
		t.Fatal(err)
	}
	buf := gopacket.NewSerializeBuffer()
	err := gopacket.SerializeLayers(buf, gopacket.SerializeOptions{FixLengths: true, ComputeChecksums: true},
		&layers.Ethernet{SrcMAC: guestMAC[:], DstMAC: []byte{0x33, 0x33, 0, 0, 0, 2}, EthernetType: layers.EthernetTypeIPv6},
		ip, icmp, m)
	if err != nil {
		t.Fatal(err)
	}
	return buf.Bytes()
}

// solicit is a neighbour solicitation.
func solicit(t testing.TB, src, target packet.Addr, hops uint8, opts ...layers.ICMPv6Option) []byte {
	dst := packet.Addr{0: 0xff, 1: 2, 11: 1, 12: 0xff, 13: target[13], 14: target[14], 15: target[15]}
	return message(t, src, dst, hops, layers.CreateICMPv6TypeCode(135, 0),
		&layers.ICMPv6NeighborSolicitation{TargetAddress: target[:], Options: opts})
}

// routerSolicit is a router solicitation.
func routerSolicit(t testing.TB, src packet.Addr, hops uint8, opts ...layers.ICMPv6Option) []byte {
	return message(t, src, addr("ff02::2"), hops, layers.CreateICMPv6TypeCode(133, 0),
		&layers.ICMPv6RouterSolicitation{Options: opts})
}

func slla() layers.ICMPv6Option {
	return layers.ICMPv6Option{Type: layers.ICMPv6OptSourceAddress, Data: guestMAC[:]}
}

func handle(t testing.TB, g *flow.Guest, frame []byte) []byte {
	t.Helper()
	var p packet.Packet
	if p.Decode(frame) != nil {
		return nil
	}
	out := bytes.Repeat([]byte{0xee}, MaxFrame)
	return out[:Handle(g, &p, out)]
}

// parse reads a frame of ours with the oracle's decoder, and verifies what
// the oracle does not: checksum, hop limit, lengths.
func parse(t *testing.T, frame []byte) (*layers.Ethernet, *layers.IPv6, gopacket.Packet) {
	t.Helper()
	p := gopacket.NewPacket(frame, layers.LayerTypeEthernet, gopacket.Default)
	if p.ErrorLayer() != nil {
		t.Fatal(p.ErrorLayer().Error())
	}
	ip := p.Layer(layers.LayerTypeIPv6).(*layers.IPv6)
	if int(ip.Length)+54 != len(frame) || ip.HopLimit != 255 {
		t.Errorf("length %d in a frame of %d, hop limit %d", ip.Length, len(frame), ip.HopLimit)
	}
	if s := sum(ip, frame[54:]); s != 0xffff {
		t.Errorf("checksum wrong: sum %#04x", s)
	}
	return p.Layer(layers.LayerTypeEthernet).(*layers.Ethernet), ip, p
}

// sum is RFC 1071 as plainly as it can be written.
func sum(ip *layers.IPv6, b []byte) uint32 {
	data := append(append(append([]byte{}, ip.SrcIP...), ip.DstIP...), 0, 0, uint8(len(b)>>8), uint8(len(b)), 0, 0, 0, 58)
	data = append(data, b...)
	var s uint32
	for i := 0; i+1 < len(data); i += 2 {
		s += uint32(data[i])<<8 | uint32(data[i+1])
	}
	for s > 0xffff {
		s = s>>16 + s&0xffff
	}
	return s
}
