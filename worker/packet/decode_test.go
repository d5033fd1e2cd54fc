// SPDX-License-Identifier: Apache-2.0

package packet

import (
	"bytes"
	"encoding/binary"
	"net/netip"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/gopacket/gopacket"
	"github.com/gopacket/gopacket/layers"
	"pgregory.net/rapid"
)

// dirty is a Packet in which nothing is as Decode leaves it.
func dirty() Packet {
	var p Packet
	p.Decode(extFrame([]ext{{ProtoDestOpts, padN(8)}, fragExt(16, true, 0x01020304)}, ProtoUDP, make([]byte, 16)))
	p.TrafficClass, p.TTL = 0x55, 0x66
	return p
}

// ipv4 is an IPv4 packet in a frame, which edit may spoil before the header
// checksum is set.
func ipv4(options int, payload []byte, edit func(ip []byte)) []byte {
	b := make([]byte, EthernetLen+ipv4Len)
	PutIP(b, &ends4, ProtoUDP, options+len(payload))
	b = append(append(b, bytes.Repeat([]byte{1}, options)...), payload...)
	ip := b[EthernetLen:]
	ip[0] += uint8(options / 4)
	if edit != nil {
		edit(ip)
	}
	if hlen := int(ip[0]&15) * 4; hlen <= len(ip) && hlen >= ipv4Len {
		ip[10], ip[11] = 0, 0
		binary.BigEndian.PutUint16(ip[10:], Checksum(ip[:hlen]))
	}
	return b
}

func set16(off int, v uint16) func([]byte) {
	return func(ip []byte) { binary.BigEndian.PutUint16(ip[off:], v) }
}

func TestDecodeIPv4(t *testing.T) {
	data := pattern(24)
	for _, c := range []struct {
		name  string
		frame []byte
		want  Packet // what differs from a plain packet
	}{
		{"plain", ipv4(0, data, nil), Packet{L4: 34, End: 58}},
		{"options", ipv4(12, data, nil), Packet{L4: 46, End: 70}},
		{"most options", ipv4(40, data, nil), Packet{L4: 74, End: 98}},
		{"padded", append(ipv4(0, data, nil), 1, 2, 3), Packet{L4: 34, End: 58}},
		{"no payload", ipv4(0, nil, nil), Packet{L4: 34, End: 34}},
		{"do not fragment", ipv4(0, data, set16(6, 0x4000)), Packet{L4: 34, End: 58, DF: true}},
		{"do not fragment a fragment", ipv4(0, data, set16(6, 0x4000|0x2000)),
			Packet{L4: 34, End: 58, Fragment: true, MoreFragments: true}},
		{"first fragment", ipv4(0, data, set16(6, 0x2000)),
			Packet{L4: 34, End: 58, Fragment: true, MoreFragments: true}},
		{"middle fragment", ipv4(0, data, set16(6, 0x2000|3)),
			Packet{L4: 34, End: 58, Fragment: true, MoreFragments: true, FragOffset: 24}},
		{"last fragment", ipv4(0, data[:5], set16(6, 100)),
			Packet{L4: 34, End: 39, Fragment: true, FragOffset: 800}},
		{"fragment that ends at the limit", ipv4(0, data[:3], set16(6, 8189)),
			Packet{L4: 34, End: 37, Fragment: true, FragOffset: 65512}},
		{"identification", ipv4(0, data, set16(4, 0xbeef)), Packet{L4: 34, End: 58, FragID: 0xbeef}},
	} {
		t.Run(c.name, func(t *testing.T) {
			p := dirty()
			if err := p.Decode(c.frame); err != nil {
				t.Fatal(err)
			}
			w := c.want
			w.Frame, w.SrcMAC, w.DstMAC = c.frame, ends4.SrcMAC, ends4.DstMAC
			w.EtherType, w.IPVersion, w.TTL, w.Proto = EtherTypeIPv4, 4, 255, ProtoUDP
			w.Src, w.Dst, w.L3 = ends4.Src, ends4.Dst, EthernetLen
			if d := cmp.Diff(w, p); d != "" {
				t.Errorf("(-want +got)\n%s", d)
			}
			if !bytes.Equal(p.Payload(), c.frame[w.L4:w.End]) || !bytes.Equal(p.IPHeader(), c.frame[14:w.L4]) {
				t.Error("views are not the bytes between the offsets")
			}
		})
	}
}

func TestDecodeRefuses(t *testing.T) {
	data := pattern(24)
	v6 := func(exts ...ext) []byte { return extFrame(exts, ProtoUDP, data) }
	badSum := ipv4(0, data, nil)
	badSum[EthernetLen+10] ^= 1
	badOptionSum := ipv4(12, data, nil)
	badOptionSum[EthernetLen+25] ^= 1
	as := func(etherType uint16, frame []byte) []byte {
		binary.BigEndian.PutUint16(frame[12:], etherType)
		return frame
	}
	mapped := func(off int) []byte {
		b := v6()
		a := AddrFrom4([4]byte{127, 0, 0, 1})
		copy(b[off:], a[:])
		return b
	}
	for _, c := range []struct {
		name  string
		frame []byte
		want  error
	}{
		{"nothing", nil, ErrTruncated},
		{"Ethernet header cut", make([]byte, 13), ErrTruncated},
		{"IPv4 without header", ipv4(0, nil, nil)[:14], ErrTruncated},
		{"IPv4 header cut", ipv4(0, nil, nil)[:33], ErrTruncated},
		{"IPv4 options cut", ipv4(8, nil, nil)[:40], ErrTruncated},
		{"IPv4 payload cut", ipv4(0, data, nil)[:57], ErrTruncated},
		{"IPv4 total length of the next byte", ipv4(0, data, set16(2, 45)), ErrTruncated},
		{"IPv4 total length 65535", ipv4(0, data, set16(2, 65535)), ErrTruncated},
		{"IPv4 total length 0", ipv4(0, data, set16(2, 0)), ErrHeaderLength},
		{"IPv4 total length below header", ipv4(8, data, set16(2, 27)), ErrHeaderLength},
		{"IPv4 header length 4", ipv4(0, data, func(ip []byte) { ip[0] = 0x44 }), ErrHeaderLength},
		{"IPv4 header length 0", ipv4(0, data, func(ip []byte) { ip[0] = 0x40 }), ErrHeaderLength},
		{"IPv4 header longer than the frame", ipv4(0, data[:8], func(ip []byte) { ip[0] = 0x4f }), ErrHeaderLength},
		{"IPv4 header checksum", badSum, ErrHeaderChecksum},
		{"IPv4 header checksum of options", badOptionSum, ErrHeaderChecksum},
		{"version 6 as IPv4", as(EtherTypeIPv4, v6()), ErrVersion},
		{"version 4 as IPv6", as(EtherTypeIPv6, ipv4(0, data, nil)), ErrVersion},
		{"version 0 as IPv4", ipv4(0, data, func(ip []byte) { ip[0] = 5 }), ErrVersion},
		{"IPv4 empty fragment", ipv4(0, nil, set16(6, 0x2000)), ErrFragment},
		{"IPv4 middle fragment not of eights", ipv4(0, data[:23], set16(6, 0x2000)), ErrFragment},
		{"IPv4 fragment past the end", ipv4(0, data[:4], set16(6, 8189)), ErrFragment},
		{"IPv4 last offset", ipv4(0, data, set16(6, 0x1fff)), ErrFragment},

		{"IPv6 header cut", v6()[:53], ErrTruncated},
		{"IPv6 payload cut", v6()[:77], ErrTruncated},
		{"IPv6 source is mapped IPv4", mapped(EthernetLen + 8), ErrMapped},
		{"IPv6 destination is mapped IPv4", mapped(EthernetLen + 24), ErrMapped},
	} {
		t.Run(c.name, func(t *testing.T) { refused(t, c.frame, c.want) })
	}
}

// refused asserts the error, and that only the Ethernet header is left of a
// decoded packet that is.
func refused(t *testing.T, frame []byte, want error) {
	t.Helper()
	p := dirty()
	if err := p.Decode(frame); err != want {
		t.Fatalf("error %v, want %v", err, want)
	}
	var w Packet
	if len(frame) >= EthernetLen {
		w = Packet{Frame: frame, DstMAC: MAC(frame[0:6]), SrcMAC: MAC(frame[6:12]),
			EtherType: binary.BigEndian.Uint16(frame[12:]), L3: 14, L4: 14, End: 14}
	}
	if d := cmp.Diff(w, p); d != "" {
		t.Errorf("after the error (-want +got)\n%s", d)
	}
	if len(p.Payload()) != 0 || len(p.IPHeader()) != 0 {
		t.Error("views are not empty after an error")
	}
}

func TestDecodeOther(t *testing.T) {
	for _, etherType := range []uint16{EtherTypeARP, 0x8100, 0x88a8, 0x0026, 0xffff} {
		frame := append(make([]byte, 12), byte(etherType>>8), byte(etherType), 1, 2, 3)
		p := dirty()
		if err := p.Decode(frame); err != nil {
			t.Fatal(err)
		}
		w := Packet{Frame: frame, EtherType: etherType, L3: 14, L4: 14, End: 17}
		if d := cmp.Diff(w, p); d != "" {
			t.Errorf("%#04x (-want +got)\n%s", etherType, d)
		}
	}
}

// TestDecodeOracle has gopacket build what Decode reads.
func TestDecodeOracle(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		v4 := rapid.Bool().Draw(rt, "v4")
		src, dst := drawAddr(rt, v4, "src"), drawAddr(rt, v4, "dst")
		tc, ttl := rapid.Byte().Draw(rt, "class"), rapid.Byte().Draw(rt, "ttl")
		data := rapid.SliceOfN(rapid.Byte(), 0, 100).Draw(rt, "data")
		padding := rapid.SliceOfN(rapid.Byte(), 0, 20).Draw(rt, "padding")
		sport, dport := rapid.Uint16().Draw(rt, "sport"), rapid.Uint16().Draw(rt, "dport")

		eth := &layers.Ethernet{SrcMAC: ends4.SrcMAC[:], DstMAC: ends4.DstMAC[:], EthernetType: layers.EthernetTypeIPv6}
		var ip gopacket.SerializableLayer = &layers.IPv6{Version: 6, TrafficClass: tc, HopLimit: ttl,
			NextHeader: layers.IPProtocolUDP, SrcIP: src[:], DstIP: dst[:]}
		if v4 {
			eth.EthernetType = layers.EthernetTypeIPv4
			ip = &layers.IPv4{Version: 4, TOS: tc, TTL: ttl, Protocol: layers.IPProtocolUDP, SrcIP: src[12:], DstIP: dst[12:]}
		}
		udp := &layers.UDP{SrcPort: layers.UDPPort(sport), DstPort: layers.UDPPort(dport)}
		frame := append(serialize(t, eth, ip, udp, gopacket.Payload(data)), padding...)

		var p Packet
		if err := p.Decode(frame); err != nil {
			rt.Fatal(err)
		}
		l3 := 40
		if v4 {
			l3 = 20
		}
		w := Packet{Frame: frame, SrcMAC: ends4.SrcMAC, DstMAC: ends4.DstMAC, EtherType: uint16(eth.EthernetType),
			IPVersion: 6, TrafficClass: tc, TTL: ttl, Proto: ProtoUDP, Src: src, Dst: dst,
			L3: 14, L4: 14 + l3, End: 14 + l3 + 8 + len(data)}
		if w.DF, w.ProtoAt = true, 14+6; v4 {
			w.IPVersion, w.DF, w.ProtoAt = 4, false, 0
		}
		if d := cmp.Diff(w, p); d != "" {
			rt.Fatalf("(-want +got)\n%s", d)
		}
		var u UDP
		if err := u.Decode(p.Payload()); err != nil {
			rt.Fatal(err)
		}
		if u.SrcPort != sport || u.DstPort != dport || !bytes.Equal(u.Payload, data) || u.Checksum != udp.Checksum {
			rt.Fatalf("datagram %+v", u)
		}
		if !p.ChecksumOK(nil) {
			rt.Fatal("gopacket's checksum refused")
		}
	})
}

// TestDecodeHostile feeds frames with random damage: whatever comes out must
// be consistent, and every view inside the frame.
func TestDecodeHostile(t *testing.T) {
	seeds := [][]byte{
		tcpFrame(&ends4, 20), tcpFrame(&ends6, 20), ipv4(12, pattern(24), nil), ipv4(0, pattern(24), set16(6, 0x2003)),
		extFrame([]ext{{ProtoHopByHop, padN(16)}, {ProtoRouting, make([]byte, 8)}, {ProtoDestOpts, padN(24)}}, ProtoTCP, pattern(24)),
		extFrame([]ext{{ProtoHopByHop, padN(8)}, fragExt(0, true, 9), {ProtoDestOpts, padN(8)}}, ProtoUDP, pattern(16)),
	}
	rapid.Check(t, func(t *rapid.T) {
		frame := bytes.Clone(rapid.SampledFrom(seeds).Draw(t, "seed"))
		for range rapid.IntRange(0, 6).Draw(t, "changes") {
			frame[rapid.IntRange(12, len(frame)-1).Draw(t, "at")] = rapid.Byte().Draw(t, "byte")
		}
		frame = frame[:rapid.IntRange(0, len(frame)).Draw(t, "length")]
		if len(frame) >= 34 && rapid.Bool().Draw(t, "fix the checksum") {
			frame[24], frame[25] = 0, 0
			hlen := min(int(frame[14]&15)*4, len(frame)-14)
			binary.BigEndian.PutUint16(frame[24:], Checksum(frame[14:14+hlen]))
		}
		p := dirty()
		err := p.Decode(frame)
		if len(frame) < EthernetLen {
			return
		}
		if p.L3 != EthernetLen || p.L4 < p.L3 || p.End < p.L4 || p.End > len(frame) {
			t.Fatalf("offsets %d %d %d in %d bytes, error %v", p.L3, p.L4, p.End, len(frame), err)
		}
		if p.Fragment && (err != nil || p.End == p.L4 || p.FragOffset+p.End-p.L4 > 65535) {
			t.Fatalf("fragment %+v, error %v", p, err)
		}
		p.ChecksumOK(nil)
		var tcp TCP
		if tcp.Decode(p.Payload()) == nil && (tcp.NumSACK > len(tcp.SACK) || tcp.WScale > 14 || tcp.WScale < -1) {
			t.Fatalf("options %+v", tcp)
		}
		var u UDP
		if u.Decode(p.Payload()) == nil && len(u.Payload) != int(u.Length)-8 {
			t.Fatalf("datagram %+v", u)
		}
		var e Echo
		e.Decode(p.Payload())
		var a ARP
		a.Decode(p.Payload())
	})
}

// TestAddr compares the predicates to net/netip's.
func TestAddr(t *testing.T) {
	check := func(t interface{ Errorf(string, ...any) }, a Addr) {
		n := netip.AddrFrom16(a)
		u := n.Unmap()
		for _, c := range []struct {
			name      string
			got, want bool
		}{
			{"Is4", a.Is4(), n.Is4In6()},
			{"IsZero", a.IsZero(), n == netip.IPv6Unspecified()},
			{"IsUnspecified", a.IsUnspecified(), u.IsUnspecified()},
			{"IsLoopback", a.IsLoopback(), u.IsLoopback()},
			{"IsMulticast", a.IsMulticast(), u.IsMulticast()},
			{"IsLinkLocal", a.IsLinkLocal(), u.IsLinkLocalUnicast()},
			{"IsBroadcast", a.IsBroadcast(), u == netip.AddrFrom4([4]byte{255, 255, 255, 255})},
		} {
			if c.got != c.want {
				t.Errorf("%v: %s is %v, want %v", n, c.name, c.got, c.want)
			}
		}
		if u.Is4() && (a.As4() != u.As4() || AddrFrom4(a.As4()) != a) {
			t.Errorf("%v: As4 %v", n, a.As4())
		}
	}
	for _, s := range []string{
		"::", "::1", "::2", "1::", "::ffff:0:0", "::ffff:127.0.0.1", "::fffe:127.0.0.1", "1::ffff:127.0.0.1", "::1:ffff:7f00:1",
		"::ffff:224.0.0.1", "::ffff:223.255.255.255", "::ffff:239.1.2.3", "::ffff:240.0.0.1", "::ffff:255.255.255.255",
		"::ffff:169.254.1.1", "::ffff:169.253.1.1", "fe80::1", "febf::1", "fec0::1", "fe7f::1", "ff02::1", "fd00::1", "feff::1",
	} {
		check(t, netip.MustParseAddr(s).As16())
	}
	rapid.Check(t, func(t *rapid.T) { check(t, drawAddr(t, rapid.Bool().Draw(t, "v4"), "a")) })
	if !(MAC{}).IsZero() || Broadcast.IsZero() || !Broadcast.IsGroup() || ends4.DstMAC.IsGroup() || !(MAC{0x33, 0x33}).IsGroup() {
		t.Error("predicates of MAC")
	}
}
