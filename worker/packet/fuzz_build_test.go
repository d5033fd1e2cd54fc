// SPDX-License-Identifier: Apache-2.0

package packet

import (
	"bytes"
	"encoding/binary"
	"slices"
	"testing"

	"github.com/gopacket/gopacket"
	"github.com/gopacket/gopacket/ip4defrag"
	"github.com/gopacket/gopacket/layers"

	"aldente/fuzz"
)

// takeEnds makes what a builder is told of the layers below.
func takeEnds(s *fuzz.Source) Ends {
	e := Ends{TTL: s.Byte(), TrafficClass: s.Byte(), FlowLabel: s.Uint32(), ID: s.Uint16()}
	s.Fill(e.SrcMAC[:])
	s.Fill(e.DstMAC[:])
	if k := s.Byte(); k&1 != 0 {
		var a [8]byte
		s.Fill(a[:])
		e.Src, e.Dst = AddrFrom4([4]byte(a[:4])), AddrFrom4([4]byte(a[4:]))
		e.DF = k&2 != 0
		return e
	}
	s.Fill(e.Src[:])
	s.Fill(e.Dst[:])
	e.Src[0] |= 0x20 // none is an IPv4 address
	e.Dst[0] |= 0x20
	return e
}

// built is what a builder was asked for, and made.
type built struct {
	frame   []byte
	proto   uint8
	typ     uint8 // ICMP
	a, b    uint16
	payload []byte
}

// build has one builder write a frame, and verifies that it writes no more than
// it says.
func build(t *testing.T, s *fuzz.Source, e *Ends, kind uint8) (m built) {
	t.Helper()
	m.a, m.b = s.Uint16(), s.Uint16()
	typ, code, info := s.Byte(), s.Byte(), s.Uint32()
	m.payload = s.Take(4000)
	buf := bytes.Repeat([]byte{0xee}, 4200)
	n := 0
	v4 := e.Src.Is4()
	switch kind % 4 {
	case 0:
		m.proto = ProtoUDP
		var o Offload
		n = PutUDP(buf, e, m.a, m.b, len(m.payload), &o)
		n += copy(buf[n:], m.payload)
		CompleteChecksum(buf[:n], &o)
	case 1:
		m.proto = ProtoUDP
		n = PutUDPFull(buf, e, m.a, m.b, m.payload)
		if typ&2 != 0 && len(m.payload) >= 2 {
			// Again, with a payload whose checksum is zero.
			sum, word := buf[n-len(m.payload)-2:][:2], slices.Clone(m.payload)
			s := uint32(binary.BigEndian.Uint16(sum)) + uint32(binary.BigEndian.Uint16(word))
			binary.BigEndian.PutUint16(word, uint16(s+s>>16))
			m.payload = word
			n = PutUDPFull(buf, e, m.a, m.b, m.payload)
		}
	case 2:
		n = PutEcho(buf, e, typ&1 != 0, m.a, m.b, m.payload)
		m.proto, m.typ = ProtoICMPv6, ICMPv6EchoReply-typ&1
		if v4 {
			m.proto, m.typ = ProtoICMP, ICMPEchoReply+typ&1*ICMPEchoRequest
		}
	case 3:
		n = PutICMPError(buf, e, typ, code, info, m.payload)
		m.typ, m.a, m.b = typ, uint16(info>>16), uint16(info)
		m.proto, m.payload = ProtoICMPv6, m.payload[:min(len(m.payload), 1232)]
		if v4 {
			m.proto, m.payload = ProtoICMP, m.payload[:min(len(m.payload), 548)]
		}
	}
	m.frame = buf[:n]
	if !bytes.Equal(buf[n:], bytes.Repeat([]byte{0xee}, len(buf)-n)) {
		t.Fatalf("wrote behind the %d bytes of the frame", n)
	}
	return m
}

// FuzzBuild has each builder write a frame. It is one that a guest can take, is
// read back as it was meant, by gopacket too, and takes no allocation. Sums are
// those of RFC 1071, however the bytes are divided.
func FuzzBuild(f *testing.F) {
	for kind := range uint8(4) {
		for _, v4 := range []byte{0, 3} {
			ends := slices.Concat([]byte{64, 2, 0, 1, 2, 3, 0, 7}, pattern(12), []byte{v4}, pattern(32))
			fuzz.Add(f, slices.Concat([]byte{kind}, ends, pattern(80)))
			fuzz.Add(f, slices.Concat([]byte{kind, 0}, ends[1:], pattern(7)))
			fuzz.Add(f, slices.Concat([]byte{kind}, ends, []byte{1, 2, 3, 4, 3, 0, 0, 0, 0, 0}, pattern(20)))
			fuzz.Add(f, slices.Concat([]byte{kind | fuzz.CountAllocations}, ends, pattern(1500)))
		}
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		s := &fuzz.Source{B: b}
		kind := s.Byte()
		e := takeEnds(s)
		rest := *s
		m := build(t, s, &e, kind)
		checkBuilt(t, &e, &m)
		checkSum(t, rest.B)
		if fuzz.CountsAllocations(kind) {
			buf := make([]byte, 4200)
			noAllocation(t, func() {
				PutUDPFull(buf, &e, 1, 2, m.payload)
				PutEcho(buf, &e, true, 1, 2, m.payload)
				PutICMPError(buf, &e, 1, 2, 3, m.payload)
			})
		}
	})
}

func checkBuilt(t *testing.T, e *Ends, m *built) {
	t.Helper()
	if err := fuzz.CheckFrame(m.frame); err != nil {
		t.Fatalf("%v\n%x", err, m.frame)
	}
	var p Packet
	if err := p.Decode(m.frame); err != nil {
		t.Fatalf("%v\n%x", err, m.frame)
	}
	ttl, id := e.TTL, uint32(0)
	if ttl == 0 {
		ttl = 64
	}
	if e.Src.Is4() {
		id = uint32(e.ID)
	}
	if p.Proto != m.proto || p.TTL != ttl || p.TrafficClass != e.TrafficClass || p.Src != e.Src || p.Dst != e.Dst ||
		p.SrcMAC != e.SrcMAC || p.DstMAC != e.DstMAC || p.FragID != id || p.Fragment || !p.ChecksumOK(nil) {
		t.Fatalf("%+v read as %+v", e, p)
	}
	var u UDP
	var i Echo
	if m.proto == ProtoUDP {
		if err := u.Decode(p.Payload()); err != nil || u.SrcPort != m.a || u.DstPort != m.b || !bytes.Equal(u.Payload, m.payload) {
			t.Fatalf("%v, %+v for %+v", err, u, m)
		}
		if err := u.DecodeGSO(p.Payload()); err != nil || !bytes.Equal(u.Payload, m.payload) {
			t.Fatalf("as a super-frame: %v, %+v", err, u)
		}
	} else if err := i.Decode(p.Payload()); err != nil || i.Type != m.typ || i.ID != m.a || i.Seq != m.b || !bytes.Equal(i.Payload, m.payload) {
		t.Fatalf("%v, %+v for %+v", err, i, m)
	}
	if !refuses(&p) {
		t.Fatal("a header cut short was read")
	}
	var o Offload
	want := map[uint8]uint8{ProtoUDP: GSOUDPL4, ProtoTCP: GSOTCPv6}
	if e.Src.Is4() {
		want[ProtoTCP] = GSOTCPv4
	}
	for proto, typ := range want {
		if SetGSO(&o, e, proto, int(m.a)); o.GSOType != typ || o.GSOSize != m.a {
			t.Fatalf("%+v for protocol %d", o, proto)
		}
	}
	g := gopacket.NewPacket(m.frame, layers.LayerTypeEthernet, gopacket.NoCopy)
	if l, ok := g.TransportLayer().(*layers.UDP); m.proto == ProtoUDP && (!ok || uint16(l.SrcPort) != m.a || !bytes.Equal(l.Payload, m.payload)) {
		t.Fatalf("gopacket: %v", g)
	}
	if v4, ok := g.NetworkLayer().(*layers.IPv4); ok && (v4.Flags&layers.IPv4DontFragment != 0) != e.DF {
		t.Fatalf("don't fragment: %v", v4.Flags)
	}
	if v6, ok := g.NetworkLayer().(*layers.IPv6); ok && v6.FlowLabel != e.FlowLabel&0xfffff {
		t.Fatalf("flow label %x of %x", v6.FlowLabel, e.FlowLabel)
	}
}

// refuses tells whether no decoder takes less than its header, nor a UDP length
// that is none.
func refuses(p *Packet) bool {
	var u UDP
	var i Echo
	short := p.Payload()[:7]
	bad := append(slices.Clone(p.Payload()[:8]), 0)
	for _, n := range []byte{7, 10} {
		if bad[4], bad[5] = 0, n; u.Decode(bad) == nil {
			return false
		}
	}
	return u.Decode(short) == ErrTruncated && u.DecodeGSO(short) == ErrTruncated && i.Decode(short) == ErrTruncated &&
		!p.SrcMAC.IsGroup() == (p.SrcMAC[0]&1 == 0) && p.SrcMAC.IsZero() == (p.SrcMAC == MAC{})
}

// checkSum divides the bytes at an even offset, and has the rest of the checksum
// filled in at offsets that the bytes say themselves.
func checkSum(t *testing.T, b []byte) {
	t.Helper()
	want := fuzz.Sum(b)
	if got := Fold(Sum(b, 0)); got != want {
		t.Fatalf("sum %#04x, want %#04x", got, want)
	}
	s := fuzz.Source{B: b}
	at := int(s.Uint16()) % (len(b) + 1) &^ 1
	if got := Fold(Sum(b[at:], Sum(b[:at], 0))); got != want {
		t.Fatalf("divided at %d: %#04x, want %#04x", at, got, want)
	}
	o := Offload{Flags: OffloadNeedsChecksum | OffloadDataValid, CsumStart: s.Uint16() % 64, CsumOffset: uint16(s.Byte() % 32)}
	frame := slices.Clone(b)
	field := int(o.CsumStart) + int(o.CsumOffset)
	CompleteChecksum(frame, &o)
	if o.Flags != OffloadDataValid {
		t.Fatalf("flags %d", o.Flags)
	}
	if field+2 > len(b) {
		if !bytes.Equal(frame, b) {
			t.Fatal("written to outside the frame")
		}
		return
	}
	sum := ^fuzz.Sum(b[o.CsumStart:])
	if sum == 0 && o.CsumOffset == 6 {
		sum = 0xffff
	}
	if binary.BigEndian.Uint16(frame[field:]) != sum {
		t.Fatalf("%x at %d, want %x", frame[field:field+2], field, sum)
	}
	binary.BigEndian.PutUint16(frame[field:], binary.BigEndian.Uint16(b[field:]))
	if !bytes.Equal(frame, b) {
		t.Fatal("more than the field was written to")
	}
}

// FuzzFragment cuts a packet of ours, or any frame. Each fragment fits the MTU
// and is a frame that a guest can take; put together, by a reading of our own
// and by gopacket, they are the packet.
func FuzzFragment(f *testing.F) {
	for kind := range uint8(4) {
		for _, v4 := range []byte{0, 3} {
			ends := slices.Concat([]byte{0, 0, 0, 9, 64, 2, 0, 1, 2, 3, 0, 7}, pattern(12), []byte{v4}, pattern(32))
			fuzz.Add(f, slices.Concat([]byte{kind, 0x05, 0}, ends, pattern(3000)))
			fuzz.Add(f, slices.Concat([]byte{kind | 0x40, 0, 60}, ends, pattern(300)))
		}
	}
	for _, frame := range fuzz.Captured("ping", "curl") {
		fuzz.Add(f, append([]byte{0x80, 0, 100, 0, 0, 0, 1}, frame...))
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		s := &fuzz.Source{B: b}
		kind := s.Byte()
		mtu, id := int(s.Uint16())%3000, s.Uint32()
		frame := fuzz.Repair(s.B[:min(len(s.B), 5000)], fuzz.AllRepair)
		if kind&0x80 == 0 {
			e := takeEnds(s)
			frame = build(t, s, &e, kind).frame
		}
		original := bytes.Clone(frame)
		var f Fragmenter
		var parts [][]byte
		emit := func(h, p []byte) { parts = append(parts, append(bytes.Clone(h), p...)) }
		f.Fragment(frame, mtu, id, emit)
		if !bytes.Equal(frame, original) {
			t.Fatal("the frame was written to")
		}
		checkFragments(t, frame, mtu, id, parts)
		n := 0
		if kind&0x40 != 0 {
			noAllocation(t, func() { f.Fragment(frame, mtu, id, func(h, p []byte) { n += len(h) + len(p) }) })
		}
	})
}

func checkFragments(t *testing.T, frame []byte, mtu int, id uint32, parts [][]byte) {
	t.Helper()
	var whole Packet
	err := whole.Decode(frame)
	refused := err != nil || whole.IPVersion == 0 || whole.Fragment
	options := whole.L4-whole.L3 != 20 && whole.IPVersion == 4 || whole.L4-whole.L3 != 40 && whole.IPVersion == 6
	small := whole.IPVersion == 4 && mtu < 28 || whole.IPVersion == 6 && mtu < 56
	fits := !refused && whole.End-whole.L3 <= mtu
	switch {
	case refused || !fits && (options || small):
		if len(parts) != 0 {
			t.Fatalf("%d fragments of what cannot be cut (%v), MTU %d", len(parts), err, mtu)
		}
		return
	case fits:
		if len(parts) != 1 || !bytes.Equal(parts[0], frame[:whole.End]) {
			t.Fatalf("%d parts of what fits", len(parts))
		}
		return
	case whole.Proto == ProtoTCP && mtu < 128:
		return // the first fragment may not hold its header: never accepted, RFC 1858
	case len(parts) < 2:
		t.Fatalf("%d fragments for MTU %d of %d bytes", len(parts), mtu, whole.End-whole.L3)
	}
	var data []byte
	defrag := ip4defrag.NewIPv4Defragmenter()
	var again *layers.IPv4
	for i, part := range parts {
		if err := fuzz.CheckFrame(part); err != nil {
			t.Fatalf("fragment %d: %v\n%x", i, err, part)
		}
		var p Packet
		if err := p.Decode(part); err != nil || !p.Fragment || p.FragOffset != len(data) || p.MoreFragments != (i+1 < len(parts)) ||
			len(part)-EthernetLen > mtu || p.Src != whole.Src || p.Dst != whole.Dst || p.TTL != whole.TTL ||
			p.Proto != whole.Proto || p.TrafficClass != whole.TrafficClass {
			t.Fatalf("fragment %d: %v, %+v", i, err, p)
		}
		if want := id; whole.IPVersion == 4 && p.FragID != want&0xffff || whole.IPVersion == 6 && p.FragID != want {
			t.Fatalf("identification %#x, want %#x", p.FragID, want)
		}
		data = append(data, p.Payload()...)
		if whole.IPVersion == 4 {
			g := gopacket.NewPacket(part, layers.LayerTypeEthernet, gopacket.Default)
			again, _ = defrag.DefragIPv4(g.NetworkLayer().(*layers.IPv4))
		}
	}
	if !bytes.Equal(data, whole.Payload()) {
		t.Fatalf("together %x, want %x", data, whole.Payload())
	}
	// gopacket's refuses fragments of less than 8 bytes, the last one too.
	if whole.IPVersion == 4 && len(parts[len(parts)-1]) >= EthernetLen+20+8 && (again == nil || !bytes.Equal(again.Payload, data)) {
		t.Fatalf("gopacket puts %+v together", again)
	}
}
