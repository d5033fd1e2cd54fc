// SPDX-License-Identifier: Apache-2.0

package dhcpv6

import (
	"bytes"
	"net"
	"net/netip"
	"testing"

	"github.com/gopacket/gopacket"
	"github.com/gopacket/gopacket/layers"
	dhcp "github.com/insomniacslk/dhcp/dhcpv6"
	"github.com/insomniacslk/dhcp/iana"

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
	onLinkIP = addr("2001:db8:0:1::77")
	otherIP  = addr("2001:db8:0:2::5")
	servers  = addr("ff02::1:2")

	clientID = &dhcp.DUIDLL{HWType: iana.HWTypeEthernet, LinkLayerAddr: guestMAC[:]}
	serverID = &dhcp.DUIDLLT{HWType: iana.HWTypeEthernet, Time: 0x12345678, LinkLayerAddr: ourMAC[:]}
	otherID  = &dhcp.DUIDLLT{HWType: iana.HWTypeEthernet, Time: 0x12345679, LinkLayerAddr: ourMAC[:]}
)

func addr(s string) packet.Addr { return netip.MustParseAddr(s).As16() }

func setName(n *ipc.Name, s string) { n.Len = uint8(copy(n.Bytes[:], s)) }

func guest() *flow.Guest {
	g := &flow.Guest{}
	g.Flags = ipc.FlagIPv6 | ipc.FlagDHCPv6
	g.OurMAC = ourMAC
	g.DUIDTime = 0x12345678
	g.Addr6, g.Our6, g.OurLL6 = guestIP, addr("2001:db8:0:1::1"), ourLL
	g.MTU = 65520
	g.NDNS6 = 2
	g.DNS6[0], g.DNS6[1] = addr("2001:db8::53"), addr("2001:db8::54")
	g.NSearch = 2
	setName(&g.Search[0], "example.com")
	setName(&g.Search[1], "a.example.com.")
	setName(&g.FQDN, "guest.corp.example")
	return g
}

// query is a client's message, made with the oracle's encoder.
func query(t testing.TB, kind dhcp.MessageType, opts ...dhcp.Option) *dhcp.Message {
	t.Helper()
	m, err := dhcp.NewMessage()
	if err != nil {
		t.Fatal(err)
	}
	m.MessageType = kind
	for _, o := range opts {
		m.AddOption(o)
	}
	return m
}

func client() dhcp.Option { return dhcp.OptClientID(clientID) }
func server() dhcp.Option { return dhcp.OptServerID(serverID) }

// na is an identity association with some addresses.
func na(id byte, addrs ...packet.Addr) dhcp.Option {
	ia := &dhcp.OptIANA{IaId: [4]byte{0, 0, 0, id}}
	for _, a := range addrs {
		ia.Options.Add(&dhcp.OptIAAddress{IPv6Addr: net.IP(a[:])})
	}
	return ia
}

func ta(id byte, addrs ...packet.Addr) dhcp.Option {
	ia := &dhcp.OptIATA{IaId: [4]byte{0, 0, 0, id}}
	for _, a := range addrs {
		ia.Options.Add(&dhcp.OptIAAddress{IPv6Addr: net.IP(a[:])})
	}
	return ia
}

func pd(id byte) dhcp.Option { return &dhcp.OptIAPD{IaId: [4]byte{0, 0, 0, id}} }

func generic(code dhcp.OptionCode, v ...byte) dhcp.Option {
	return &dhcp.OptionGeneric{OptionCode: code, OptionData: v}
}

// frame wraps a message as clients send it.
func frame(src, dst packet.Addr, message []byte) []byte {
	b := make([]byte, packet.MaxHeaders+len(message))
	e := packet.Ends{SrcMAC: guestMAC, DstMAC: packet.MAC{0x33, 0x33, 0, 1, 0, 2}, Src: src, Dst: dst, TTL: 1}
	return b[:packet.PutUDPFull(b, &e, 546, 547, message)]
}

// exchange sends a message and returns the frame that answers it.
func exchange(t testing.TB, g *flow.Guest, message []byte) []byte {
	t.Helper()
	return deliver(t, g, frame(guestLL, servers, message))
}

func deliver(t testing.TB, g *flow.Guest, frame []byte) []byte {
	t.Helper()
	var p packet.Packet
	var u packet.UDP
	if p.Decode(frame) != nil || p.Proto != packet.ProtoUDP || p.Fragment || u.Decode(p.Payload()) != nil {
		return nil
	}
	out := bytes.Repeat([]byte{0xee}, MaxFrame)
	return out[:Handle(g, &p, &u, out)]
}

// read decodes a reply with the oracles and verifies what every one must be.
func read(t testing.TB, b []byte) *dhcp.Message {
	t.Helper()
	if len(b) == 0 {
		t.Fatal("no answer")
	}
	p := gopacket.NewPacket(b, layers.LayerTypeEthernet, gopacket.Default)
	ip := p.Layer(layers.LayerTypeIPv6).(*layers.IPv6)
	udp := p.Layer(layers.LayerTypeUDP).(*layers.UDP)
	if err := udp.SetNetworkLayerForChecksum(ip); err != nil {
		t.Fatal(err)
	}
	if err, bad := p.VerifyChecksums(); err != nil || len(bad) != 0 {
		t.Errorf("checksums: %v %v", err, bad)
	}
	eth := p.Layer(layers.LayerTypeEthernet).(*layers.Ethernet)
	if udp.SrcPort != 547 || udp.DstPort != 546 || ip.SrcIP.String() != "fe80::1" || int(ip.Length)+54 != len(b) ||
		!bytes.Equal(eth.DstMAC, guestMAC[:]) || !bytes.Equal(ip.DstIP, guestLL[:]) {
		t.Errorf("%v %v to %v %v, %d bytes", ip.SrcIP, udp.SrcPort, ip.DstIP, udp.DstPort, len(b))
	}
	m, err := dhcp.MessageFromBytes(udp.Payload)
	if err != nil {
		t.Fatalf("%v in %x", err, udp.Payload)
	}
	if !bytes.Equal(m.ToBytes(), udp.Payload) {
		t.Errorf("the oracle writes %x for %x", m.ToBytes(), udp.Payload)
	}
	if id := m.Options.ServerID(); id == nil || !id.Equal(serverID) {
		t.Errorf("server %v", id)
	}
	return m
}
