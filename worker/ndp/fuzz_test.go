// SPDX-License-Identifier: Apache-2.0

package ndp

import (
	"bytes"
	"encoding/binary"
	"slices"
	"strings"
	"testing"

	"github.com/gopacket/gopacket"
	"github.com/gopacket/gopacket/layers"

	"aldente/fuzz"
	"aldente/ipc"
	"aldente/worker/flow"
	"aldente/worker/packet"
)

// takeGuest makes a guest of some configuration.
func takeGuest(s *fuzz.Source) *flow.Guest {
	g := guest()
	off := s.Byte()
	for i, flag := range []uint64{ipc.FlagIPv6, ipc.FlagNDP, ipc.FlagRA, ipc.FlagDHCPv6} {
		if off>>i&1 != 0 {
			g.Flags &^= flag
		}
	}
	if off&0x10 != 0 {
		g.Flags |= ipc.FlagAddr6Fixed
	}
	none := s.Byte()
	for i, a := range []*[16]byte{&g.Addr6, &g.OurLL6, &g.Our6, &g.DNSForward6} {
		if none>>i&1 != 0 {
			*a = [16]byte{}
		}
	}
	if none&0x10 != 0 {
		g.Addr6 = guestLL
	}
	return g
}

// takeSearch fills in the rest of what is advertised; names are as they come.
func takeSearch(s *fuzz.Source, g *flow.Guest) {
	g.MTU = s.Uint16()
	g.NDNS6 = s.Byte() % (ipc.MaxDNS + 1)
	g.NSearch = s.Byte() % (ipc.MaxSearch + 1)
	for i := range int(g.NSearch) {
		setName(&g.Search[i], string(s.Block()))
	}
	g.Withdrawn.NDNS6 = s.Byte() % uint8(len(g.Withdrawn.DNS6)+1)
}

// FuzzNDP feeds any frame, of which fuzz.Repair has put right what the first
// byte says. Whether it is answered is what a plain reading of RFC 4861, on
// gopacket's reading of the frame, says; the answer is an advertisement to
// whoever asked, for what was asked, and nothing is allocated.
func FuzzNDP(f *testing.F) {
	for _, frame := range append(fuzz.Captured("neighbours", "dhc", "ping"),
		solicit(f, guestLL, ourLL, 255, slla()), solicit(f, packet.Addr{}, ourLL, 255), solicit(f, packet.Addr{}, remote, 255),
		solicit(f, guestLL, guestIP, 255), solicit(f, guestIP, remote, 255), solicit(f, guestLL, guestLL, 255),
		solicit(f, guestLL, addr("ff02::1"), 255), solicit(f, packet.Addr{}, guestLL, 255), solicit(f, guestLL, addr("::1"), 255),
		solicit(f, addr("ff02::1"), remote, 255), solicit(f, guestLL, ourLL, 254), cut(solicit(f, guestLL, ourLL, 255), 70),
		routerSolicit(f, guestLL, 255, slla()), routerSolicit(f, packet.Addr{}, 255), routerSolicit(f, packet.Addr{}, 255, slla()),
		set(routerSolicit(f, guestLL, 255, slla()), 63, 0), fragment(solicit(f, guestLL, ourLL, 255, slla()))) {
		fuzz.Add(f, append([]byte{0, 0, 0, 0}, frame...))
		fuzz.Add(f, append([]byte{0, 0, 0, 2}, frame...))
	}
	for off := range byte(5) {
		fuzz.Add(f, append([]byte{0, fuzz.CountAllocations, 1 << off, 0}, solicit(f, packet.Addr{}, remote, 255)...))
		fuzz.Add(f, append([]byte{0, fuzz.CountAllocations, 1 << off, 0}, routerSolicit(f, guestLL, 255)...))
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		s := &fuzz.Source{B: b}
		repair, mode := s.Byte(), s.Byte()
		g := takeGuest(s)
		frame := s.Rest()
		if mode&2 != 0 && len(frame) > 62 {
			frame = bytes.Clone(frame)
			at := 62
			if frame[54] == 135 {
				at = min(78, len(frame))
			}
			fuzz.FixTLV(frame[at:], fuzz.TLV{Head: 2, LenAt: 1, Whole: true, Unit: 8})
		}
		frame = fuzz.Repair(frame, repair)
		var p packet.Packet
		if p.Decode(frame) != nil {
			return
		}
		before := *g
		out := bytes.Repeat([]byte{0xee}, MaxFrame+8)
		n := Handle(g, &p, out[:MaxFrame])
		want := expected(&before, &p)
		if n == 0 && want != 0 || n != 0 && out[body] != want {
			t.Fatalf("answer of %d bytes %x, expected type %d\n%x", n, out[:n], want, frame)
		}
		before.Seen6, before.SeenLL6, before.Used = g.Seen6, g.SeenLL6, g.Used
		if *g != before {
			t.Fatal("more than the guest's addresses was changed")
		}
		if fuzz.CountsAllocations(mode) {
			if fuzz.Allocates(func() { Handle(g, &p, out[:MaxFrame]) }) {
				t.Fatal("allocates")
			}
		}
		if n != 0 {
			checkAnswer(t, g, &p, out[:n])
		}
	})
}

// expected is the type of the answer that RFC 4861, and Handle's promise, want;
// 0 for none.
func expected(g *flow.Guest, p *packet.Packet) uint8 {
	if p.IPVersion != 6 || p.Proto != 58 || g.Flags&ipc.FlagIPv6 == 0 || p.FragNext != 0 || p.TTL != 255 {
		return 0
	}
	m := p.Payload()
	src := p.Src
	if fuzz.CheckFrame(p.Frame[:p.End]) != nil || m[1] != 0 || src.IsMulticast() || src.IsLoopback() {
		return 0
	}
	at := map[uint8]int{133: 8, 135: 24}[m[0]]
	if at == 0 || len(m) < at {
		return 0
	}
	macGiven := false
	for o := m[at:]; len(o) > 0; o = o[int(o[1])*8:] {
		if len(o) < 2 || o[1] == 0 || len(o) < int(o[1])*8 {
			return 0
		}
		macGiven = macGiven || o[0] == 1
	}
	if m[0] == 133 {
		if g.Flags&ipc.FlagRA == 0 || g.OurLL6 == [16]byte{} || macGiven && src.IsZero() {
			return 0
		}
		return 134
	}
	target := packet.Addr(m[8:24])
	ours := slices.Contains([]packet.Addr{g.Our6, g.OurLL6, g.DNSForward6}, target)
	guests := slices.Contains([]packet.Addr{g.Addr6, g.Seen6, g.SeenLL6}, target)
	if g.Flags&ipc.FlagNDP == 0 || src.IsZero() || target.IsMulticast() || target.IsLoopback() || target.IsZero() || target.Is4() ||
		target == packet.Addr(g.Addr6) || guests && !ours {
		return 0
	}
	return 136
}

// checkAnswer verifies the parts that all answers have, and each kind's own.
func checkAnswer(t *testing.T, g *flow.Guest, p *packet.Packet, frame []byte) {
	t.Helper()
	if err := fuzz.CheckFrame(frame); err != nil {
		t.Fatalf("%v\n%x", err, frame)
	}
	eth, ip, parsed := parse(t, frame)
	if !bytes.Equal(eth.SrcMAC, g.OurMAC[:]) {
		t.Fatalf("from %v", eth.SrcMAC)
	}
	if frame[body] == 134 {
		all := p.Src.IsZero()
		if ip.DstIP.IsMulticast() != all || !all && !bytes.Equal(eth.DstMAC, p.SrcMAC[:]) {
			t.Fatalf("to %v %v", eth.DstMAC, ip.DstIP)
		}
		checkAdvert(t, g, frame)
		return
	}
	na, ok := parsed.Layer(layers.LayerTypeICMPv6NeighborAdvertisement).(*layers.ICMPv6NeighborAdvertisement)
	target := p.Payload()[8:24]
	if !ok || !na.TargetAddress.Equal(target) || !bytes.Equal(ip.DstIP, p.Src[:]) || !bytes.Equal(eth.DstMAC, p.SrcMAC[:]) ||
		len(na.Options) != 1 || na.Options[0].Type != layers.ICMPv6OptTargetAddress || !bytes.Equal(na.Options[0].Data, g.OurMAC[:]) {
		t.Fatalf("%x", frame)
	}
}

// FuzzAdvertise advertises any configuration. The message is what gopacket
// reads, and holds the domains that RFC 1035 allows, as many as fit.
func FuzzAdvertise(f *testing.F) {
	names := func(all ...string) []byte {
		b := []byte{5, 0xdc, 3, byte(len(all))}
		for _, n := range all {
			b = append(append(b, byte(len(n))), n...)
		}
		return b
	}
	long := strings.Repeat(strings.Repeat("a", 49)+".", 5)
	for _, b := range [][]byte{
		names(), names("abc.de"), names("example.org.", "a", "corp.example.org"), names("a..b", ".", "x", "y.", ".z"),
		names(long, long, long, long, long, long), names(strings.Repeat("a", 64), strings.Repeat("b", 63)), {5, 0, 1, 1},
		append([]byte{5, 0}, names(long, long, long, long, long[:140], "abc.de")[2:]...), append([]byte{0, 0}, names("abc.de", long)[2:]...), append([]byte{4, 255}, names("abc.de")[2:]...),
	} {
		fuzz.Add(f, append([]byte{0, 0}, b...))
		fuzz.Add(f, append([]byte{8, 1}, b...))
	}
	fuzz.Add(f, append([]byte{0, 0}, append(names("abc.de"), 6)...))
	for off := range byte(5) {
		fuzz.Add(f, append([]byte{1 << off, 0}, names("abc.de")...))
		fuzz.Add(f, append([]byte{0, 1 << off}, names("abc.de")...))
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		s := &fuzz.Source{B: b}
		g := takeGuest(s)
		takeSearch(s, g)
		out := bytes.Repeat([]byte{0xee}, MaxFrame)
		on := g.Flags&(ipc.FlagIPv6|ipc.FlagRA) == ipc.FlagIPv6|ipc.FlagRA && g.OurLL6 != [16]byte{}
		n := Advertise(g, out)
		if on != (n != 0) || on != (Next(g, uint64(s.Uint32())) != 0) {
			t.Fatalf("advertises %v, wrote %d bytes", on, n)
		}
		if n != 0 {
			checkAdvert(t, g, out[:n])
		}
		n = Solicit(g, out)
		if want := g.Flags&(ipc.FlagIPv6|ipc.FlagNDP) == ipc.FlagIPv6|ipc.FlagNDP && g.OurLL6 != [16]byte{} && g.Addr6 != [16]byte{}; want != (n != 0) {
			t.Fatalf("solicits %v, wrote %d bytes", want, n)
		}
		if n != 0 && (fuzz.CheckFrame(out[:n]) != nil || !bytes.Equal(out[body+8:body+24], g.Addr6[:])) {
			t.Fatalf("%v in %x", fuzz.CheckFrame(out[:n]), out[:n])
		}
	})
}

// checkAdvert compares an advertisement with the configuration.
func checkAdvert(t *testing.T, g *flow.Guest, frame []byte) {
	t.Helper()
	if err := fuzz.CheckFrame(frame); err != nil {
		t.Fatalf("%v\n%x", err, frame)
	}
	limit := min(max(g.LinkMTU(), 1280), 1500) + packet.EthernetLen
	if len(frame) > limit {
		t.Fatalf("frame of %d bytes, at most %d", len(frame), limit)
	}
	p := gopacket.NewPacket(frame, layers.LayerTypeEthernet, gopacket.Default)
	ra, ok := p.Layer(layers.LayerTypeICMPv6RouterAdvertisement).(*layers.ICMPv6RouterAdvertisement)
	if !ok || p.ErrorLayer() != nil {
		t.Fatalf("gopacket: %v", p)
	}
	var got []uint8
	for _, o := range ra.Options {
		got = append(got, uint8(o.Type))
	}
	a := packet.Addr(g.Addr6)
	global := !a.IsZero() && !a.IsLinkLocal()
	var want []uint8
	for _, o := range []struct {
		typ uint8
		on  bool
	}{{3, global}, {1, true}, {5, g.MTU >= 1280}, {25, g.NDNS6 > 0}, {25, g.Withdrawn.NDNS6 > 0}} {
		if o.on {
			want = append(want, o.typ)
		}
	}
	search := fits(g, limit-len(withoutSearch(frame)))
	if len(search) > 0 {
		want = append(want, 31)
	}
	if !slices.Equal(got, want) || ra.RouterLifetime != 65535 || (ra.Flags&0xc0 != 0) != (g.Flags&ipc.FlagDHCPv6 != 0) {
		t.Fatalf("options %d, want %d; %+v", got, want, ra)
	}
	if names := decodeNames(t, searchOf(t, frame)); !slices.Equal(names, search) {
		t.Fatalf("search list %q, want %q", names, search)
	}
}

// withoutSearch is the frame up to the search list, the last option.
func withoutSearch(frame []byte) []byte {
	n := body + 16
	for n < len(frame) && frame[n] != 31 {
		n += int(frame[n+1]) * 8
	}
	return frame[:n]
}

// fits returns the names that RFC 1035 section 2.3.4 allows and that fit an
// option of whole units in the room given, without the final dot.
func fits(g *flow.Guest, room int) (names []string) {
	used := 8
	for i := range int(g.NSearch) {
		n := strings.TrimSuffix(g.Search[i].String(), ".")
		ok := n != "" && len(n) <= 253
		for label := range strings.SplitSeq(n, ".") {
			ok = ok && label != "" && len(label) <= 63
		}
		if ok && used+len(n)+2 <= room&^7 {
			used += len(n) + 2
			names = append(names, n)
		}
	}
	return names
}

// decodeNames reads names until the padding.
func decodeNames(t *testing.T, b []byte) (names []string) {
	t.Helper()
	for len(b) > 0 && b[0] != 0 {
		var labels []string
		for b[0] != 0 {
			n := int(b[0])
			if n > 63 || n+2 > len(b) {
				t.Fatalf("label of %d bytes in %x", n, b)
			}
			labels = append(labels, string(b[1:1+n]))
			b = b[1+n:]
		}
		b = b[1:]
		names = append(names, strings.Join(labels, "."))
	}
	if len(b) > 7 || !bytes.Equal(b, make([]byte, len(b))) {
		t.Fatalf("padding %x", b)
	}
	return names
}

// A length that the option has is one that counts units of eight bytes.
func TestSearchListLength(t *testing.T) {
	g := guest()
	setName(&g.Search[0], "abc.de")
	out := make([]byte, MaxFrame)
	frame := out[:Advertise(g, out)]
	at := len(withoutSearch(frame))
	if frame[at+1] != 2 || binary.BigEndian.Uint32(frame[at+4:]) != 0xffffffff {
		t.Errorf("%x", frame[at:])
	}
}
