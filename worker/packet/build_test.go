// SPDX-License-Identifier: Apache-2.0

package packet

import (
	"bytes"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/gopacket/gopacket"
	"github.com/gopacket/gopacket/layers"
	"pgregory.net/rapid"
)

func drawEnds(t *rapid.T) Ends {
	v4 := rapid.Bool().Draw(t, "v4")
	e := Ends{
		SrcMAC: MAC(rapid.SliceOfN(rapid.Byte(), 6, 6).Draw(t, "smac")),
		DstMAC: MAC(rapid.SliceOfN(rapid.Byte(), 6, 6).Draw(t, "dmac")),
		Src:    drawAddr(t, v4, "src"),
		Dst:    drawAddr(t, v4, "dst"),
		TTL:    rapid.Byte().Draw(t, "ttl"), TrafficClass: rapid.Byte().Draw(t, "class"),
		FlowLabel: rapid.Uint32().Draw(t, "label"), ID: rapid.Uint16().Draw(t, "id"), DF: rapid.Bool().Draw(t, "df"),
	}
	return e
}

// checkLower asserts the Ethernet and IP layers that gopacket reads are those
// of e, and that the IP length is that of the frame.
func checkLower(t *testing.T, p gopacket.Packet, e *Ends, proto uint8, size int) {
	t.Helper()
	eth := layer[*layers.Ethernet](t, p, layers.LayerTypeEthernet)
	if !bytes.Equal(eth.SrcMAC, e.SrcMAC[:]) || !bytes.Equal(eth.DstMAC, e.DstMAC[:]) {
		t.Fatalf("Ethernet %v", eth)
	}
	ttl := e.TTL
	if ttl == 0 {
		ttl = DefaultTTL
	}
	if !e.Src.Is4() {
		ip := layer[*layers.IPv6](t, p, layers.LayerTypeIPv6)
		if ip.Version != 6 || ip.HopLimit != ttl || ip.TrafficClass != e.TrafficClass || ip.FlowLabel != e.FlowLabel&0xfffff ||
			uint8(ip.NextHeader) != proto || !bytes.Equal(ip.SrcIP, e.Src[:]) || !bytes.Equal(ip.DstIP, e.Dst[:]) ||
			int(ip.Length) != size-54 {
			t.Fatalf("IPv6 %+v of %+v, %d bytes", ip, e, size)
		}
		return
	}
	ip := layer[*layers.IPv4](t, p, layers.LayerTypeIPv4)
	if ip.Version != 4 || ip.IHL != 5 || ip.TTL != ttl || ip.TOS != e.TrafficClass || ip.Id != e.ID ||
		uint8(ip.Protocol) != proto || !bytes.Equal(ip.SrcIP, e.Src[12:]) || !bytes.Equal(ip.DstIP, e.Dst[12:]) ||
		int(ip.Length) != size-14 || (ip.Flags == layers.IPv4DontFragment) != e.DF || ip.Flags&^layers.IPv4DontFragment != 0 || ip.FragOffset != 0 {
		t.Fatalf("IPv4 %+v of %+v, %d bytes", ip, e, size)
	}
	if got := refFold(ip.Contents, 0); got != 0xffff {
		t.Fatalf("IPv4 header sums to %#04x", got)
	}
}

// checkSums has gopacket verify every checksum of the frame.
func checkSums(t *testing.T, p gopacket.Packet) {
	t.Helper()
	for _, l := range p.Layers() {
		if l, ok := l.(interface {
			SetNetworkLayerForChecksum(gopacket.NetworkLayer) error
		}); ok {
			if err := l.SetNetworkLayerForChecksum(p.NetworkLayer()); err != nil {
				t.Fatal(err)
			}
		}
	}
	err, bad := p.VerifyChecksums()
	if err != nil || len(bad) != 0 {
		t.Fatalf("checksums: %v %+v", err, bad)
	}
}

func TestPutTCP(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		e := drawEnds(rt)
		f := TCPFields{
			SrcPort: rapid.Uint16().Draw(rt, "sport"), DstPort: rapid.Uint16().Draw(rt, "dport"),
			Seq: rapid.Uint32().Draw(rt, "seq"), Ack: rapid.Uint32().Draw(rt, "ack"),
			Flags: rapid.Byte().Draw(rt, "flags"), Window: rapid.Uint16().Draw(rt, "window"),
			MSS: rapid.Uint16().Draw(rt, "mss"), WScale: int8(rapid.IntRange(-1, 14).Draw(rt, "scale")),
			SACKPermitted: rapid.Bool().Draw(rt, "sackok"),
		}
		for range rapid.IntRange(0, 5).Draw(rt, "sacks") {
			f.SACK = append(f.SACK, SACKBlock{rapid.Uint32().Draw(rt, "left"), rapid.Uint32().Draw(rt, "right")})
		}
		data := rapid.SliceOfN(rapid.Byte(), 0, 200).Draw(rt, "data")

		// What the buffer held must not show through.
		b := bytes.Repeat([]byte{0xdd}, MaxHeaders)
		o := Offload{0xff, 0xff, 0xffff, 0xffff, 0xffff, 0xffff}
		n := PutTCP(b, &e, &f, len(data), &o)
		l4 := 54
		if e.Src.Is4() {
			l4 = 34
		}
		if w := (Offload{Flags: OffloadNeedsChecksum, HdrLen: uint16(n), CsumStart: uint16(l4), CsumOffset: 16}); o != w {
			rt.Fatalf("offload %+v, want %+v", o, w)
		}
		frame := append(b[:n:n], data...)
		CompleteChecksum(frame, &o)
		if o.Flags != 0 {
			rt.Fatal("checksum still asked for")
		}
		p := dissect(t, frame)
		checkLower(t, p, &e, ProtoTCP, len(frame))
		checkSums(t, p)
		g := layer[*layers.TCP](t, p, layers.LayerTypeTCP)
		if !bytes.Equal(g.Payload, data) {
			rt.Fatalf("payload %x", g.Payload)
		}
		checkTCPBack(rt, frame, &f, data)
	})
}

// checkTCPBack decodes the frame and expects the fields it was built from.
func checkTCPBack(t *rapid.T, frame []byte, f *TCPFields, data []byte) {
	var p Packet
	var got TCP
	if err := p.Decode(frame); err != nil {
		t.Fatal(err)
	}
	if err := got.Decode(p.Payload()); err != nil {
		t.Fatal(err)
	}
	if !p.ChecksumOK(nil) {
		t.Fatal("own checksum refused")
	}
	want := TCP{SrcPort: f.SrcPort, DstPort: f.DstPort, Seq: f.Seq, Ack: f.Ack, Flags: f.Flags, Window: f.Window, WScale: -1, Payload: data}
	if f.Flags&SYN != 0 {
		want.MSS, want.WScale, want.SACKPermitted = f.MSS, f.WScale, f.SACKPermitted
	} else {
		want.NumSACK = copy(want.SACK[:], f.SACK)
	}
	if len(data) == 0 {
		want.Payload, got.Payload = nil, nil
	}
	if d := cmp.Diff(want, got); d != "" {
		t.Fatalf("(-want +got)\n%s", d)
	}
}

func TestPutUDP(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		e := drawEnds(rt)
		sport, dport := rapid.Uint16().Draw(rt, "sport"), rapid.Uint16().Draw(rt, "dport")
		data := rapid.SliceOfN(rapid.Byte(), 0, 200).Draw(rt, "data")

		b := bytes.Repeat([]byte{0xdd}, MaxHeaders)
		o := Offload{0xff, 0xff, 0xffff, 0xffff, 0xffff, 0xffff}
		n := PutUDP(b, &e, sport, dport, len(data), &o)
		if w := (Offload{Flags: OffloadNeedsChecksum, HdrLen: uint16(n), CsumStart: uint16(n - 8), CsumOffset: 6}); o != w {
			rt.Fatalf("offload %+v, want %+v", o, w)
		}
		frame := append(b[:n:n], data...)
		CompleteChecksum(frame, &o)

		full := bytes.Repeat([]byte{0xdd}, 300)
		full = full[:PutUDPFull(full, &e, sport, dport, data)]
		if !bytes.Equal(frame, full) {
			rt.Fatalf("in two steps %x\nin one %x", frame, full)
		}
		p := dissect(t, frame)
		checkLower(t, p, &e, ProtoUDP, len(frame))
		checkSums(t, p)
		g := layer[*layers.UDP](t, p, layers.LayerTypeUDP)
		if uint16(g.SrcPort) != sport || uint16(g.DstPort) != dport || int(g.Length) != 8+len(data) ||
			!bytes.Equal(g.Payload, data) || g.Checksum == 0 {
			rt.Fatalf("UDP %+v", g)
		}
	})
}

// A datagram whose checksum comes out as zero is sent with 0xffff.
func TestUDPZeroChecksum(t *testing.T) {
	for _, e := range []*Ends{&ends4, &ends6} {
		data := []byte{0, 0}
		b := make([]byte, 200)
		n := PutUDPFull(b, e, 1, 2, data)
		copy(data, b[n-4:n-2]) // the checksum as payload makes the sum 0xffff
		n = PutUDPFull(b, e, 1, 2, data)
		if b[n-4] != 0xff || b[n-3] != 0xff {
			t.Errorf("PutUDPFull: %x", b[n-10:n])
		}
		var o Offload
		PutUDP(b, e, 1, 2, 2, &o)
		CompleteChecksum(b[:n], &o)
		if b[n-4] != 0xff || b[n-3] != 0xff {
			t.Errorf("CompleteChecksum: %x", b[n-10:n])
		}
	}
}

func TestCompleteChecksumBounds(t *testing.T) {
	for _, c := range []struct {
		o     Offload
		write bool
	}{
		{Offload{Flags: OffloadNeedsChecksum, CsumStart: 10, CsumOffset: 8}, true},
		{Offload{Flags: OffloadNeedsChecksum, CsumStart: 10, CsumOffset: 9}, false},
		{Offload{Flags: OffloadNeedsChecksum, CsumStart: 19, CsumOffset: 0}, false},
		{Offload{Flags: OffloadNeedsChecksum, CsumStart: 21, CsumOffset: 0}, false},
		{Offload{Flags: OffloadNeedsChecksum, CsumStart: 65535, CsumOffset: 65535}, false},
		{Offload{Flags: OffloadDataValid, CsumStart: 10, CsumOffset: 8}, false},
	} {
		frame := pattern(20)
		o := c.o
		CompleteChecksum(frame, &o)
		if got := !bytes.Equal(frame, pattern(20)); got != c.write {
			t.Errorf("%+v: written %v, want %v", c.o, got, c.write)
		}
		if want := c.o.Flags &^ OffloadNeedsChecksum; o.Flags != want {
			t.Errorf("%+v: flags %d, want %d", c.o, o.Flags, want)
		}
	}
}

func TestSetGSO(t *testing.T) {
	for _, c := range []struct {
		e     *Ends
		proto uint8
		want  uint8
	}{
		{&ends4, ProtoTCP, GSOTCPv4}, {&ends6, ProtoTCP, GSOTCPv6}, {&ends4, ProtoUDP, GSOUDPL4}, {&ends6, ProtoUDP, GSOUDPL4},
	} {
		o := Offload{Flags: OffloadNeedsChecksum, HdrLen: 54, CsumStart: 34, CsumOffset: 16}
		SetGSO(&o, c.e, c.proto, 1448)
		w := Offload{Flags: OffloadNeedsChecksum, GSOType: c.want, GSOSize: 1448, HdrLen: 54, CsumStart: 34, CsumOffset: 16}
		if o != w {
			t.Errorf("%+v, want %+v", o, w)
		}
	}
}

// The largest super-frame has the length fields of what it is before it is cut.
func TestSuperFrame(t *testing.T) {
	for _, e := range []*Ends{&ends4, &ends6} {
		n := maxIPLen - ipv4Len - tcpLen
		frame := tcpFrame(e, n)
		var p Packet
		var tcp TCP
		if err := p.Decode(frame); err != nil {
			t.Fatal(err)
		}
		if err := tcp.Decode(p.Payload()); err != nil {
			t.Fatal(err)
		}
		if !bytes.Equal(tcp.Payload, pattern(n)) || !p.ChecksumOK(nil) {
			t.Error("super-frame differs, or its checksum is wrong")
		}
	}
}

func TestPutEcho(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		e := drawEnds(rt)
		request := rapid.Bool().Draw(rt, "request")
		id, seq := rapid.Uint16().Draw(rt, "id"), rapid.Uint16().Draw(rt, "seq")
		data := rapid.SliceOfN(rapid.Byte(), 0, 100).Draw(rt, "data")
		b := bytes.Repeat([]byte{0xdd}, 300)
		b = b[:PutEcho(b, &e, request, id, seq, data)]

		p := dissect(t, b)
		checkSums(t, p)
		var typ uint8
		var want [2]uint8
		if e.Src.Is4() {
			checkLower(t, p, &e, ProtoICMP, len(b))
			g := layer[*layers.ICMPv4](t, p, layers.LayerTypeICMPv4)
			typ, want = g.TypeCode.Type(), [2]uint8{0, 8}
			if g.Id != id || g.Seq != seq || g.TypeCode.Code() != 0 {
				rt.Fatalf("ICMP %+v", g)
			}
		} else {
			checkLower(t, p, &e, ProtoICMPv6, len(b))
			g := layer[*layers.ICMPv6](t, p, layers.LayerTypeICMPv6)
			typ, want = g.TypeCode.Type(), [2]uint8{129, 128}
		}
		if i := map[bool]int{false: 0, true: 1}[request]; typ != want[i] {
			rt.Fatalf("type %d, want %d", typ, want[i])
		}
		var own Packet
		var echo Echo
		if err := own.Decode(b); err != nil {
			rt.Fatal(err)
		}
		if err := echo.Decode(own.Payload()); err != nil {
			rt.Fatal(err)
		}
		if echo.Type != typ || echo.Code != 0 || echo.ID != id || echo.Seq != seq || !bytes.Equal(echo.Payload, data) || !own.ChecksumOK(nil) {
			rt.Fatalf("echo %+v", echo)
		}
	})
}

func TestPutICMPError(t *testing.T) {
	for _, c := range []struct {
		name         string
		e            *Ends
		quoted, kept int
	}{
		{"IPv4 short", &ends4, 28, 28},
		{"IPv4 empty", &ends4, 0, 0},
		{"IPv4 most", &ends4, 548, 548},
		{"IPv4 cut", &ends4, 549, 548},
		{"IPv4 large", &ends4, 9000, 548},
		{"IPv6 short", &ends6, 48, 48},
		{"IPv6 most", &ends6, 1232, 1232},
		{"IPv6 cut", &ends6, 1233, 1232},
	} {
		t.Run(c.name, func(t *testing.T) {
			quoted := pattern(c.quoted)
			b := bytes.Repeat([]byte{0xdd}, 1400)
			b = b[:PutICMPError(b, c.e, 3, 4, 0xfedcba98, quoted)]
			var p Packet
			if err := p.Decode(b); err != nil {
				t.Fatal(err)
			}
			if !p.ChecksumOK(nil) {
				t.Error("checksum")
			}
			proto, most := uint8(ProtoICMP), 576
			if !c.e.Src.Is4() {
				proto, most = ProtoICMPv6, 1280
			}
			g := dissect(t, b)
			checkLower(t, g, c.e, proto, len(b))
			if len(b)-EthernetLen > most {
				t.Errorf("%d bytes", len(b)-EthernetLen)
			}
			m := p.Payload()
			if m[0] != 3 || m[1] != 4 || !bytes.Equal(m[4:8], []byte{0xfe, 0xdc, 0xba, 0x98}) || !bytes.Equal(m[8:], quoted[:c.kept]) {
				t.Errorf("message %x", m[:min(len(m), 40)])
			}
		})
	}
}

func TestPutARP(t *testing.T) {
	b := bytes.Repeat([]byte{0xdd}, 100)
	want := ARP{ARPReply, MAC{1, 2, 3, 4, 5, 6}, [4]byte{10, 0, 2, 2}, MAC{7, 8, 9, 10, 11, 12}, [4]byte{10, 0, 2, 15}}
	n := PutARP(b, want.Op, ends4.SrcMAC, ends4.DstMAC, want.SHA, want.SPA, want.THA, want.TPA)
	if n != 60 || b[60] != 0xdd || !bytes.Equal(b[42:60], make([]byte, 18)) {
		t.Errorf("%d bytes: %x", n, b)
	}
	var p Packet
	var a ARP
	if err := p.Decode(b[:n]); err != nil {
		t.Fatal(err)
	}
	if err := a.Decode(p.Payload()); err != nil || a != want {
		t.Errorf("%+v, %v", a, err)
	}
	g := dissect(t, b[:n])
	eth := layer[*layers.Ethernet](t, g, layers.LayerTypeEthernet)
	arp := layer[*layers.ARP](t, g, layers.LayerTypeARP)
	if !bytes.Equal(eth.SrcMAC, ends4.SrcMAC[:]) || !bytes.Equal(eth.DstMAC, ends4.DstMAC[:]) ||
		arp.Operation != 2 || !bytes.Equal(arp.SourceHwAddress, want.SHA[:]) || !bytes.Equal(arp.SourceProtAddress, want.SPA[:]) ||
		!bytes.Equal(arp.DstHwAddress, want.THA[:]) || !bytes.Equal(arp.DstProtAddress, want.TPA[:]) {
		t.Errorf("gopacket reads %+v", arp)
	}
}
