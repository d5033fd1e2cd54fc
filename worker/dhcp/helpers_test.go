// SPDX-License-Identifier: Apache-2.0

package dhcp

import (
	"bytes"
	"net"
	"testing"

	"github.com/gopacket/gopacket"
	"github.com/gopacket/gopacket/layers"
	"github.com/insomniacslk/dhcp/dhcpv4"

	"aldente/ipc"
	"aldente/worker/flow"
	"aldente/worker/packet"
)

var (
	ourMAC   = packet.MAC{0x9a, 0x55, 0x9a, 0x55, 0x9a, 0x55}
	guestMAC = net.HardwareAddr{0x52, 0x54, 0, 0x12, 0x34, 0x56}
	ourIP    = net.IP{192, 0, 2, 1}
	guestIP  = net.IP{192, 0, 2, 2}
	otherIP  = net.IP{198, 51, 100, 9}
)

func mapped(ip net.IP) packet.Addr { return packet.AddrFrom4([4]byte(ip.To4())) }

func setName(n *ipc.Name, s string) { n.Len = uint8(copy(n.Bytes[:], s)) }

func setSearch(g *flow.Guest, names ...string) {
	g.NSearch = uint8(len(names))
	for i, s := range names {
		setName(&g.Search[i], s)
	}
}

func guest() *flow.Guest {
	g := &flow.Guest{}
	g.Flags = ipc.FlagIPv4 | ipc.FlagDHCP
	g.OurMAC = ourMAC
	g.Addr4, g.Our4 = mapped(guestIP), mapped(ourIP)
	g.Prefix4 = 24
	g.MTU = 65520
	g.NDNS4 = 2
	g.DNS4[0], g.DNS4[1] = mapped(net.IP{192, 0, 2, 53}), mapped(net.IP{192, 0, 2, 54})
	setName(&g.Hostname, "guest")
	setName(&g.FQDN, "guest.corp.example")
	setSearch(g, "example.com", "a.example.com")
	return g
}

// query is a client's message, made with the oracle's encoder.
func query(t testing.TB, kind dhcpv4.MessageType, mods ...dhcpv4.Modifier) *dhcpv4.DHCPv4 {
	t.Helper()
	m, err := dhcpv4.New(append([]dhcpv4.Modifier{dhcpv4.WithHwAddr(guestMAC)}, mods...)...)
	if err != nil {
		t.Fatal(err)
	}
	if kind != 0 {
		m.UpdateOption(dhcpv4.OptMessageType(kind))
	}
	return m
}

// frame wraps a message as clients send it.
func frame(t testing.TB, src, dst net.IP, message []byte) []byte {
	t.Helper()
	b := make([]byte, packet.MaxHeaders+len(message))
	e := packet.Ends{SrcMAC: packet.MAC(guestMAC), DstMAC: packet.Broadcast, Src: mapped(src), Dst: mapped(dst)}
	return b[:packet.PutUDPFull(b, &e, 68, 67, message)]
}

// exchange sends a message and returns the frame that answers it.
func exchange(t testing.TB, g *flow.Guest, message []byte) []byte {
	t.Helper()
	return deliver(t, g, frame(t, net.IPv4zero, net.IPv4bcast, message))
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

// answer is a reply with what carried it.
type answer struct {
	*dhcpv4.DHCPv4
	eth     *layers.Ethernet
	ip      *layers.IPv4
	payload []byte
}

// read decodes a reply with the oracles and verifies what every one must be.
func read(t testing.TB, b []byte) answer {
	t.Helper()
	if len(b) == 0 {
		t.Fatal("no answer")
	}
	p := gopacket.NewPacket(b, layers.LayerTypeEthernet, gopacket.Default)
	ip := p.Layer(layers.LayerTypeIPv4).(*layers.IPv4)
	udp := p.Layer(layers.LayerTypeUDP).(*layers.UDP)
	if err := udp.SetNetworkLayerForChecksum(ip); err != nil {
		t.Fatal(err)
	}
	if err, bad := p.VerifyChecksums(); err != nil || len(bad) != 0 {
		t.Errorf("checksums: %v %v", err, bad)
	}
	if udp.SrcPort != 67 || udp.DstPort != 68 || !ip.SrcIP.Equal(ourIP) || int(ip.Length)+14 != len(b) {
		t.Errorf("from %v:%v to port %v, length %d in %d", ip.SrcIP, udp.SrcPort, udp.DstPort, ip.Length, len(b))
	}
	m, err := dhcpv4.FromBytes(udp.Payload)
	if err != nil {
		t.Fatalf("%v in %x", err, udp.Payload)
	}
	if m.OpCode != dhcpv4.OpcodeBootReply || len(udp.Payload) < 300 || !bytes.Equal(m.ClientHWAddr, guestMAC) || m.HopCount != 0 {
		t.Errorf("%d bytes: %v", len(udp.Payload), m.Summary())
	}
	return answer{m, p.Layer(layers.LayerTypeEthernet).(*layers.Ethernet), ip, udp.Payload}
}

// codes lists the options in the order they have in the message.
func codes(message []byte) []uint8 {
	var list []uint8
	for b := message[240:]; len(b) > 0 && b[0] != 255; {
		if b[0] == 0 {
			b = b[1:]
			continue
		}
		list = append(list, b[0])
		b = b[2+int(b[1]):]
	}
	return list
}

func raw(code uint8, v ...byte) dhcpv4.Modifier {
	return dhcpv4.WithOption(dhcpv4.OptGeneric(dhcpv4.GenericOptionCode(code), v))
}
