// SPDX-License-Identifier: Apache-2.0

package packet

import (
	"bytes"
	"encoding/binary"
	"net/netip"
	"slices"
	"testing"

	"github.com/gopacket/gopacket"
	"github.com/gopacket/gopacket/layers"

	"aldente/fuzz"
)

// FuzzFrame reads any frame, of which fuzz.Repair has put right what the first
// byte says. What Decode makes of it is what a plain reading of the RFCs does
// (reference_test.go) and what gopacket does; the same frame with padding, or
// read into a structure in use, is the same packet; nothing is written, nothing
// allocated.
func FuzzFrame(f *testing.F) {
	for _, frame := range frameSeeds() {
		fuzz.Add(f, append([]byte{0, fuzz.CountAllocations}, frame...))
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		if len(b) < 2 || len(b) > 1<<16 {
			return
		}
		frame := fuzz.Repair(b[2:], b[0])
		original := bytes.Clone(frame)
		p := dirty()
		err := p.Decode(frame)
		if !bytes.Equal(frame, original) {
			t.Fatal("the frame was written to")
		}
		want, wantErr := referenceDecode(frame)
		if err != wantErr {
			t.Fatalf("%v, the reference says %v\n%x", err, wantErr, frame)
		}
		p.Frame = nil
		if !equal(&p, &want) {
			t.Fatalf("%+v, the reference says %+v\n%x", p, want, frame)
		}
		if err == nil {
			p.Frame = frame
			checkPacket(t, &p)
			compareNetwork(t, &p)
		}
		if fuzz.CountsAllocations(b[1]) {
			noAllocation(t, func() { p.Decode(frame); p.ChecksumOK(nil) })
		}
		checkSplit(t, frame, int(b[0])<<4|int(b[1]>>4))
		if n := TCPHeaders(frame); n > 0 {
			checkSplit(t, frame, n+int(b[0])*int(b[1])%(len(frame)-n+1))
		}
	})
}

// frameSeeds are captured frames and what real clients do not send.
func frameSeeds() [][]byte {
	data := pattern(32)
	udp := append([]byte{0, 53, 0, 53, 0, 40, 0, 0}, data...)
	return append(fuzz.Captured(),
		ipv4(8, data, nil), ipv4(40, data, nil),
		ipv4(0, data, set16(6, 0x2000)), ipv4(0, data, set16(6, 0x1fff)),
		extFrame([]ext{{ProtoHopByHop, padN(8)}, {ProtoRouting, routing(2, 0)}, {ProtoDestOpts, padN(16)}}, ProtoUDP, udp),
		extFrame([]ext{{ProtoRouting, routing(0, 1)}}, ProtoUDP, udp),
		extFrame([]ext{fragExt(0, false, 7)}, ProtoUDP, udp),
		extFrame([]ext{{ProtoDestOpts, padN(8)}, fragExt(8, true, 7)}, ProtoUDP, udp),
		extFrame([]ext{fragExt(0, true, 7), {ProtoDestOpts, padN(8)}}, ProtoTCP, udp),
		extFrame([]ext{fragExt(0, false, 7), fragExt(0, false, 7)}, ProtoUDP, udp),
		extFrame([]ext{{ProtoDestOpts, options(0xc2, 4, 0, 1, 0, 0)}}, ProtoUDP, udp),
		extFrame([]ext{{ProtoDestOpts, options(0x80, 0)}}, ProtoNone, nil),
		extFrame([]ext{{ProtoDestOpts, padN(8)}, {ProtoHopByHop, padN(8)}}, ProtoUDP, udp),
		extFrame([]ext{{ProtoDestOpts, padN(8)}}, 4, ipv4(0, udp, nil)[EthernetLen:]), // a tunnel
		extFrame(slices.Repeat([]ext{{ProtoDestOpts, padN(8)}}, 9), ProtoUDP, udp),
		append(make([]byte, 12), 0x81, 0, 0, 1, 8, 0), make([]byte, 13), append(make([]byte, 12), 8, 0, 0x45),
		ipv4(0, data, set16(10, 1)), ipv4(0, data, set16(0, 0x4400)), ipv4(0, data, set16(0, 0x5500)), ipv4(0, data, set16(2, 4000)),
		ipv4(0, data[:8], set16(6, 0x1fff)), ipv4(0, data, set16(2, 19)), append(extFrame(nil, ProtoUDP, nil)[:38], mapped()[16:]...),
		ipv4(0, data, set16(6, 0x2001)), ipv4(0, nil, set16(6, 0x2000)), ipv4(0, data[:31], set16(6, 0x2000)), ipv4(0, data[:28], set16(6, 0x2000)),
		extFrame([]ext{{ProtoDestOpts, options(1, 200)}}, ProtoUDP, udp), extFrame([]ext{{ProtoDestOpts, []byte{0, 9, 1, 4, 0, 0, 0, 0}}}, ProtoUDP, udp),
		extFrame([]ext{{ProtoDestOpts, options(1, 0, 0, 0, 0, 1)}}, ProtoUDP, udp), extFrame([]ext{fragExt(0, true, 7)}, ProtoTCP, udp[:16]),
		extFrame([]ext{fragExt(8, true, 7)}, ProtoUDP, nil), append(make([]byte, 12), 0x86, 0xdd, 0x60), change(extFrame(nil, ProtoUDP, udp), 14, 0x50),
		change(extFrame(nil, ProtoUDP, udp), 18, 9), change(extFrame(nil, ProtoUDP, udp), 58, 9), change(extFrame(nil, ProtoUDP, udp[:7]), 20, ProtoTCP),
		change(ipv4(0, udp, nil), 40, 0), change(ipv4(0, udp, nil), 38, 9), extFrame(nil, ProtoUDP, udp[:7]), extFrame(nil, ProtoICMPv6, udp[:7]),
		append(extFrame(nil, ProtoUDP, nil)[:22], make([]byte, 32)...), append(extFrame(nil, ProtoUDP, nil)[:22], mapped()...),
		append(append(make([]byte, 12), 8, 6), pattern(20)...), append(append(make([]byte, 12), 8, 6), pattern(30)...),
	)
}

// change is a frame with one byte set.
func change(frame []byte, at int, to byte) []byte {
	frame[at] = to
	return frame
}

// mapped are two IPv4 addresses as an IPv6 header must not hold them.
func mapped() []byte {
	a := AddrFrom4([4]byte{127, 0, 0, 1})
	return append(a[:], a[:]...)
}

// equal compares all but the frame.
func equal(a, b *Packet) bool {
	x, y := *a, *b
	x.Frame, y.Frame = nil, nil
	return x.SrcMAC == y.SrcMAC && x.DstMAC == y.DstMAC && x.EtherType == y.EtherType && x.IPVersion == y.IPVersion &&
		x.TrafficClass == y.TrafficClass && x.TTL == y.TTL && x.Proto == y.Proto && x.Src == y.Src && x.Dst == y.Dst &&
		x.L3 == y.L3 && x.L4 == y.L4 && x.End == y.End && x.Fragment == y.Fragment && x.MoreFragments == y.MoreFragments &&
		x.FragOffset == y.FragOffset && x.FragID == y.FragID && x.FragUnfragLen == y.FragUnfragLen && x.FragNext == y.FragNext
}

// noAllocation runs a function that must not allocate.
func noAllocation(t *testing.T, f func()) {
	t.Helper()
	if fuzz.Allocates(f) {
		t.Fatal("allocates")
	}
}

// checkPacket verifies what Packet promises, and that padding makes no
// difference to an IP packet.
func checkPacket(t *testing.T, p *Packet) {
	t.Helper()
	if p.L3 != EthernetLen || p.L3 > p.L4 || p.L4 > p.End || p.End > len(p.Frame) {
		t.Fatalf("offsets %d %d %d of %d", p.L3, p.L4, p.End, len(p.Frame))
	}
	if len(p.Payload())+len(p.IPHeader()) != p.End-p.L3 {
		t.Fatal("header and payload are not the packet")
	}
	if p.Fragment && (p.MoreFragments && len(p.Payload())%8 != 0 || p.FragOffset%8 != 0 || len(p.Payload()) == 0) {
		t.Fatalf("fragment %+v", p)
	}
	if got, want := p.ChecksumOK(nil), referenceSumOK(p); got != want {
		t.Fatalf("checksum is right: %v, the reference says %v\n%x", got, want, p.Frame)
	}
	if o := (Offload{Flags: OffloadDataValid}); !p.ChecksumOK(&o) {
		t.Fatal("the link's word does not count")
	}
	if p.EtherType == EtherTypeARP {
		var a ARP
		b := p.Payload()
		want := len(b) >= 28 && bytes.HasPrefix(b, []byte{0, 1, 8, 0, 6, 4})
		if err := a.Decode(b); (err == nil) != want {
			t.Fatalf("%v for %x", err, b)
		}
	}
	if p.IPVersion == 0 {
		return
	}
	checkAddr(t, &p.Src)
	checkAddr(t, &p.Dst)
	longer := dirty()
	if err := longer.Decode(append(bytes.Clone(p.Frame), 1, 2, 3)); err != nil || !equal(p, &longer) {
		t.Fatalf("padded: %v, %+v\nnot padded: %+v", err, longer, p)
	}
}

// checkAddr asks net/netip.
func checkAddr(t *testing.T, a *Addr) {
	t.Helper()
	n := netip.AddrFrom16(*a)
	if u := n.Unmap(); a.Is4() != n.Is4In6() || a.IsZero() != (n == netip.IPv6Unspecified()) || a.IsUnspecified() != u.IsUnspecified() ||
		a.IsLoopback() != u.IsLoopback() || a.IsMulticast() != u.IsMulticast() || a.IsLinkLocal() != u.IsLinkLocalUnicast() ||
		a.IsBroadcast() != (u == netip.AddrFrom4([4]byte{255, 255, 255, 255})) || a.Is4() && (AddrFrom4(a.As4()) != *a || u.As4() != a.As4()) {
		t.Fatalf("%v", n)
	}
}

// compareNetwork asks gopacket.
func compareNetwork(t *testing.T, p *Packet) {
	t.Helper()
	if p.IPVersion == 0 && p.EtherType != EtherTypeARP {
		return // gopacket makes an empty layer of some types that it does not know
	}
	g := gopacket.NewPacket(p.Frame, layers.LayerTypeEthernet, gopacket.NoCopy)
	switch l := g.NetworkLayer().(type) {
	case *layers.IPv4:
		if l.SrcIP == nil {
			return // it gave up at the options
		}
		same := p.IPVersion == 4 && bytes.Equal(l.SrcIP.To4(), p.Src[12:]) && bytes.Equal(l.DstIP.To4(), p.Dst[12:]) &&
			l.TTL == p.TTL && l.TOS == p.TrafficClass && uint8(l.Protocol) == p.Proto && uint32(l.Id) == p.FragID &&
			int(l.FragOffset)*8 == p.FragOffset && (l.Flags&layers.IPv4MoreFragments != 0) == p.MoreFragments &&
			int(l.IHL)*4 == p.L4-p.L3 && bytes.Equal(l.Payload, p.Payload())
		if !same {
			t.Fatalf("gopacket: %+v\n%+v", l, p)
		}
	case *layers.IPv6:
		if p.IPVersion != 6 || !bytes.Equal(l.SrcIP, p.Src[:]) || !bytes.Equal(l.DstIP, p.Dst[:]) ||
			l.HopLimit != p.TTL || l.TrafficClass != p.TrafficClass {
			t.Fatalf("gopacket: %+v\n%+v", l, p)
		}
		if carries(g, layers.LayerTypeUDP) && !p.Fragment && p.Proto != ProtoUDP {
			t.Fatalf("gopacket sees UDP in %+v", p)
		}
	}
	if a, ok := g.Layer(layers.LayerTypeARP).(*layers.ARP); ok && p.EtherType == EtherTypeARP {
		compareARP(t, p, a)
	}
}

// carries tells whether gopacket finds the layer right behind the first IPv6
// header and its extensions. It looks into tunnels as well; we do not.
func carries(g gopacket.Packet, what gopacket.LayerType) bool {
	behind := false
	for _, l := range g.Layers() {
		switch l.LayerType() {
		case layers.LayerTypeIPv6:
			if behind {
				return false
			}
			behind = true
		case layers.LayerTypeIPv6HopByHop, layers.LayerTypeIPv6Routing, layers.LayerTypeIPv6Destination, layers.LayerTypeIPv6Fragment:
		default:
			if behind {
				return l.LayerType() == what
			}
		}
	}
	return false
}

func compareARP(t *testing.T, p *Packet, a *layers.ARP) {
	t.Helper()
	var got ARP
	ours := a.AddrType == layers.LinkTypeEthernet && a.Protocol == layers.EthernetTypeIPv4 && a.HwAddressSize == 6 && a.ProtAddressSize == 4
	if err := got.Decode(p.Payload()); (err == nil) != ours {
		t.Fatalf("%v for %+v", err, a)
	} else if err != nil {
		return
	}
	if got.Op != a.Operation || !bytes.Equal(got.SHA[:], a.SourceHwAddress) || !bytes.Equal(got.SPA[:], a.SourceProtAddress) ||
		!bytes.Equal(got.THA[:], a.DstHwAddress) || !bytes.Equal(got.TPA[:], a.DstProtAddress) {
		t.Fatalf("%+v, gopacket %+v", got, a)
	}
	out := bytes.Repeat([]byte{0xee}, 64)
	n := PutARP(out, got.Op, p.SrcMAC, p.DstMAC, got.SHA, got.SPA, got.THA, got.TPA)
	if !bytes.Equal(out[:42], p.Frame[:42]) || n != 60 || !bytes.Equal(out[42:60], make([]byte, 18)) || out[60] != 0xee {
		t.Fatalf("%x for %x", out, p.Frame)
	}
}

// FuzzTCP reads any segment as gopacket does, and writes what it read: that
// reads the same, and is a frame that a guest can take.
func FuzzTCP(f *testing.F) {
	for _, frame := range fuzz.Captured() {
		if s := fuzz.Segment(frame, ProtoTCP); s != nil {
			fuzz.Add(f, append([]byte{fuzz.CountAllocations}, s...))
		}
	}
	for _, s := range [][]byte{
		segment(SYN, []byte{2, 4, 5, 0xb4, 4, 2, 8, 10, 0, 0, 0, 1, 0, 0, 0, 0, 1, 3, 3, 14}),
		segment(SYN|ACK, []byte{3, 3, 15, 2, 3, 1, 4, 2, 4, 3, 0, 0}),
		segment(ACK, append([]byte{1, 1, 5, 34}, pattern(32)...)),
		segment(ACK, append([]byte{1, 1, 5, 10}, pattern(8)...)),
		segment(ACK, []byte{5, 2, 8, 1, 0, 0}), segment(ACK, []byte{2, 0}), segment(ACK, []byte{254}),
		segment(ACK, nil)[:19], change(segment(ACK, nil), 12, 0x40), change(segment(ACK, nil), 12, 0x60),
	} {
		fuzz.Add(f, append([]byte{fuzz.CountAllocations | 1}, s...))
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		if len(b) < 1 || len(b) > 1<<15 {
			return
		}
		raw := b[1:]
		if b[0]&2 != 0 && len(raw) >= 20 {
			raw = bytes.Clone(raw)
			raw[12] = uint8(5+min((len(raw)-20)/4, 10)) << 4
			if b[0]&4 != 0 {
				fuzz.FixTLV(raw[20:raw[12]>>4*4], fuzz.TLV{Head: 2, LenAt: 1, Whole: true, Single: func(k byte) bool { return k < 2 }})
			}
		}
		s := TCP{MSS: 1, WScale: 99, SACKPermitted: true, NumSACK: 4}
		err := s.Decode(raw)
		if fuzz.CountsAllocations(b[0]) {
			noAllocation(t, func() { s.Decode(raw) })
		}
		if err != nil {
			if len(raw) >= 20 && raw[12]>>4 >= 5 && int(raw[12]>>4)*4 <= len(raw) {
				t.Fatalf("%v for %x", err, raw)
			}
			return
		}
		compareTCP(t, &s, raw)
		rewriteTCP(t, &s, b[0]&1 != 0)
	})
}

// compareTCP asks gopacket, which gives up where the options cannot be read.
func compareTCP(t *testing.T, s *TCP, raw []byte) {
	t.Helper()
	if s.WScale < -1 || s.WScale > 14 || s.NumSACK > 4 || s.Flags&SYN != 0 && s.NumSACK != 0 || s.Flags&SYN == 0 && (s.MSS != 0 || s.WScale != -1 || s.SACKPermitted) {
		t.Fatalf("%+v of %x", s, raw)
	}
	var g layers.TCP
	if multipath(raw[20:len(raw)-len(s.Payload)]) || g.DecodeFromBytes(raw, gopacket.NilDecodeFeedback) != nil {
		return
	}
	want := TCP{
		SrcPort: uint16(g.SrcPort), DstPort: uint16(g.DstPort), Seq: g.Seq, Ack: g.Ack, Flags: raw[13],
		Window: g.Window, Urgent: g.Urgent, WScale: -1,
	}
	for _, o := range g.Options {
		d := o.OptionData
		switch syn := want.Flags&SYN != 0; {
		case o.OptionType == layers.TCPOptionKindMSS && syn && len(d) == 2:
			want.MSS = binary.BigEndian.Uint16(d)
		case o.OptionType == layers.TCPOptionKindWindowScale && syn && len(d) == 1:
			want.WScale = int8(min(d[0], 14))
		case o.OptionType == layers.TCPOptionKindSACKPermitted && syn && len(d) == 0:
			want.SACKPermitted = true
		case o.OptionType == layers.TCPOptionKindSACK && !syn && len(d)%8 == 0:
			for want.NumSACK = 0; len(d) > 0; d = d[8:] {
				want.SACK[want.NumSACK] = SACKBlock{binary.BigEndian.Uint32(d), binary.BigEndian.Uint32(d[4:])}
				want.NumSACK++
			}
		}
	}
	got := *s
	clear(got.SACK[got.NumSACK:])
	clear(want.SACK[want.NumSACK:])
	got.Payload = nil
	if !bytes.Equal(s.Payload, g.Payload) || !sameTCP(&got, &want) {
		t.Fatalf("%+v, gopacket %+v\n%x", got, want, raw)
	}
}

// multipath tells whether there is an option of Multipath TCP, behind which
// gopacket loses its way if it is short.
func multipath(options []byte) bool {
	for len(options) > 1 && options[0] != 0 && options[0] != 30 {
		n := 1
		if options[0] != 1 {
			n = max(int(options[1]), 2)
		}
		options = options[min(n, len(options)):]
	}
	return len(options) > 1 && options[0] == 30
}

// sameTCP compares all but payloads.
func sameTCP(a, b *TCP) bool {
	return a.SrcPort == b.SrcPort && a.DstPort == b.DstPort && a.Seq == b.Seq && a.Ack == b.Ack && a.Flags == b.Flags &&
		a.Window == b.Window && a.Urgent == b.Urgent && a.MSS == b.MSS && a.WScale == b.WScale &&
		a.SACKPermitted == b.SACKPermitted && a.NumSACK == b.NumSACK && a.SACK == b.SACK
}

func rewriteTCP(t *testing.T, s *TCP, v6 bool) {
	t.Helper()
	e := &ends4
	if v6 {
		e = &ends6
	}
	s.Urgent = 0 // is not written
	f := TCPFields{SrcPort: s.SrcPort, DstPort: s.DstPort, Seq: s.Seq, Ack: s.Ack, Flags: s.Flags, Window: s.Window,
		MSS: s.MSS, WScale: s.WScale, SACKPermitted: s.SACKPermitted, SACK: s.SACK[:s.NumSACK]}
	var o Offload
	buf := bytes.Repeat([]byte{0xee}, MaxHeaders+len(s.Payload))
	n := PutTCP(buf, e, &f, len(s.Payload), &o)
	if !bytes.Equal(buf[n:], bytes.Repeat([]byte{0xee}, len(buf)-n)) || int(o.HdrLen) != n {
		t.Fatalf("%d bytes of headers, %+v, behind them %x", n, o, buf[n:])
	}
	frame := append(buf[:n:n], s.Payload...)
	CompleteChecksum(frame, &o)
	if err := fuzz.CheckFrame(frame); err != nil || o.Flags != 0 {
		t.Fatalf("%v, %+v\n%x", err, o, frame)
	}
	var p Packet
	var again TCP
	if err := p.Decode(frame); err != nil {
		t.Fatal(err)
	}
	if err := again.Decode(p.Payload()); err != nil {
		t.Fatal(err)
	}
	clear(s.SACK[s.NumSACK:])
	clear(again.SACK[again.NumSACK:])
	if !sameTCP(s, &again) || !bytes.Equal(s.Payload, again.Payload) || !p.ChecksumOK(nil) {
		t.Fatalf("%+v written, %+v read", s, again)
	}
}
