// SPDX-License-Identifier: Apache-2.0

package packet

import (
	"bytes"
	"testing"

	"github.com/gopacket/gopacket/layers"
	"pgregory.net/rapid"
)

// collect joins what Fragment emits into frames.
func collect(frame []byte, mtu int, id uint32) [][]byte {
	var f Fragmenter
	var out [][]byte
	f.Fragment(frame, mtu, id, func(headers, payload []byte) {
		out = append(out, append(bytes.Clone(headers), payload...))
	})
	return out
}

func TestFragment(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		e := drawEnds(rt)
		n := rapid.IntRange(0, 6000).Draw(rt, "payload")
		mtu := rapid.IntRange(68, 2000).Draw(rt, "mtu")
		id := rapid.Uint32().Draw(rt, "id")
		frame := make([]byte, 62+n)
		frame = frame[:PutUDPFull(frame, &e, 1, 2, pattern(n))]
		before := bytes.Clone(frame)

		parts := collect(frame, mtu, id)
		if !bytes.Equal(frame, before) {
			rt.Fatal("the frame was changed")
		}
		if len(frame)-EthernetLen <= mtu {
			if len(parts) != 1 || !bytes.Equal(parts[0], frame) {
				rt.Fatalf("a packet that fits gave %d parts", len(parts))
			}
			return
		}
		var whole Packet
		if err := whole.Decode(frame); err != nil {
			rt.Fatal(err)
		}
		var data []byte
		for i, part := range parts {
			if len(part)-EthernetLen > mtu {
				rt.Fatalf("part %d has %d bytes, MTU %d", i, len(part)-EthernetLen, mtu)
			}
			p := dirty()
			if err := p.Decode(part); err != nil {
				rt.Fatal(err)
			}
			last := i == len(parts)-1
			if !p.Fragment || p.FragOffset != len(data) || p.MoreFragments == last || p.Proto != ProtoUDP ||
				p.Src != e.Src || p.Dst != e.Dst || p.SrcMAC != e.SrcMAC || p.DstMAC != e.DstMAC ||
				p.TTL != whole.TTL || p.TrafficClass != e.TrafficClass || len(part) != p.End {
				rt.Fatalf("part %d at %d: %+v", i, len(data), p)
			}
			if want := id; p.FragID != want && (p.IPVersion == 6 || p.FragID != want&0xffff) {
				rt.Fatalf("identification %#x, want %#x", p.FragID, want)
			}
			if !last && len(part)-EthernetLen <= mtu-8 {
				rt.Fatalf("part %d has %d bytes, MTU %d has room for more", i, len(part)-EthernetLen, mtu)
			}
			checkFragment(t, part, last)
			data = append(data, p.Payload()...)
		}
		if !bytes.Equal(data, whole.Payload()) {
			rt.Fatalf("parts join to %d bytes, want %d", len(data), len(whole.Payload()))
		}
	})
}

// checkFragment compares with what gopacket reads.
func checkFragment(t *testing.T, part []byte, last bool) {
	t.Helper()
	var p Packet
	p.Decode(part)
	g := dissect(t, part)
	if p.IPVersion == 4 {
		ip := layer[*layers.IPv4](t, g, layers.LayerTypeIPv4)
		if int(ip.FragOffset)*8 != p.FragOffset || (ip.Flags == 0) != last || uint32(ip.Id) != p.FragID ||
			int(ip.Length) != len(part)-14 || refFold(ip.Contents, 0) != 0xffff {
			t.Fatalf("IPv4 %+v", ip)
		}
		return
	}
	ip := layer[*layers.IPv6](t, g, layers.LayerTypeIPv6)
	fr := layer[*layers.IPv6Fragment](t, g, layers.LayerTypeIPv6Fragment)
	if int(fr.FragmentOffset)*8 != p.FragOffset || fr.MoreFragments == last || fr.Identification != p.FragID ||
		fr.NextHeader != layers.IPProtocolUDP || int(ip.Length) != len(part)-54 {
		t.Fatalf("IPv6 %+v %+v", ip, fr)
	}
}

// The fields that reassembly of IPv6 needs are enough for it.
func TestReassembleIPv6(t *testing.T) {
	data := make([]byte, 3000)
	n := PutUDPFull(data, &ends6, 1, 2, pattern(2000))
	udp := data[54:n]
	// The same datagram in two parts behind options, by hand.
	head := extFrame([]ext{{ProtoHopByHop, padN(16)}, fragExt(0, true, 5)}, ProtoUDP, udp[:1000])
	tail := extFrame([]ext{{ProtoHopByHop, padN(16)}, fragExt(1000, false, 5)}, ProtoUDP, udp[1000:])

	var a, b Packet
	if err := a.Decode(head); err != nil {
		t.Fatal(err)
	}
	if err := b.Decode(tail); err != nil {
		t.Fatal(err)
	}
	joined := append(bytes.Clone(head[:a.L3+a.FragUnfragLen]), a.Payload()...)
	joined = append(joined, b.Payload()...)
	joined[a.FragNext] = a.Proto
	size := len(joined) - EthernetLen - ipv6Len
	joined[EthernetLen+4], joined[EthernetLen+5] = byte(size>>8), byte(size)

	var p Packet
	var u UDP
	if err := p.Decode(joined); err != nil {
		t.Fatal(err)
	}
	if err := u.Decode(p.Payload()); err != nil {
		t.Fatal(err)
	}
	if p.Fragment || p.Proto != ProtoUDP || !p.ChecksumOK(nil) || !bytes.Equal(u.Payload, pattern(2000)) {
		t.Errorf("reassembled %+v", p)
	}
}

func TestFragmentRefuses(t *testing.T) {
	big := make([]byte, 3000)
	big4 := bytes.Clone(big[:PutUDPFull(big, &ends4, 1, 2, pattern(2000))])
	big6 := bytes.Clone(big[:PutUDPFull(big, &ends6, 1, 2, pattern(2000))])
	for _, c := range []struct {
		name  string
		frame []byte
		mtu   int
	}{
		{"no room in IPv4", big4, 27},
		{"no room in IPv6", big6, 55},
		{"MTU 0", big4, 0},
		{"MTU below 0", big6, -1},
		{"cut frame", big4[:100], 68},
		{"not IP", make([]byte, 200), 68},
		{"IPv4 options", ipv4(8, pattern(2000), nil), 576},
		{"already a fragment", ipv4(0, pattern(2000), set16(6, 0x2000)), 576},
		{"extension headers", extFrame([]ext{{ProtoDestOpts, padN(8)}}, ProtoUDP, pattern(2000)), 1280},
	} {
		if parts := collect(c.frame, c.mtu, 1); len(parts) != 0 {
			t.Errorf("%s: %d parts", c.name, len(parts))
		}
	}
	if parts := collect(big4, 28, 1); len(parts) != 251 {
		t.Errorf("smallest MTU: %d parts", len(parts))
	}
}
