// SPDX-License-Identifier: Apache-2.0

package igmp

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"aldente/ipc"
	"aldente/worker/flow"
	"aldente/worker/packet"
)

var (
	guestMAC = packet.MAC{2, 0, 0, 0, 0, 2}
	ourMAC   = packet.MAC{2, 0, 0, 0, 0, 1}
	guest4   = packet.AddrFrom4([4]byte{10, 0, 0, 2})
	guest6   = packet.Addr{0: 0xfe, 1: 0x80, 15: 2}
)

// report4 is a packet with a message of IGMP, whose checksum is set.
func report4(msg []byte) []byte {
	msg = bytes.Clone(msg)
	if len(msg) >= 4 {
		msg[2], msg[3] = 0, 0
		binary.BigEndian.PutUint16(msg[2:], packet.Checksum(msg))
	}
	b := make([]byte, 2048)
	n := packet.PutIP(b, &packet.Ends{SrcMAC: guestMAC, Src: guest4, Dst: packet.AddrFrom4([4]byte{224, 0, 0, 22}), TTL: 1}, packet.ProtoIGMP, len(msg))
	return b[:n+copy(b[n:], msg)]
}

// report6 is the same of MLD, behind a router alert.
func report6(msg []byte) []byte {
	b := make([]byte, 2048)
	e := packet.Ends{SrcMAC: guestMAC, Src: guest6, Dst: packet.Addr{0: 0xff, 1: 2, 15: 0x16}, TTL: 1}
	n := packet.PutIP(b, &e, packet.ProtoHopByHop, 8+len(msg))
	n += copy(b[n:], []byte{packet.ProtoICMPv6, 0, 5, 2, 0, 0, 1, 0})
	return b[:n+copy(b[n:], msg)]
}

func four(s string) []byte { a := netip.MustParseAddr(s).As4(); return a[:] }
func six(s string) []byte  { a := netip.MustParseAddr(s).As16(); return a[:] }

// record is one of a report's.
func record(typ byte, group []byte, sources int, more ...byte) []byte {
	b := append([]byte{typ, byte(len(more) / 4), byte(sources >> 8), byte(sources)}, group...)
	b = append(b, bytes.Repeat(group, sources)...)
	return append(b, more...)
}

func report(typ byte, records ...[]byte) []byte {
	b := []byte{typ, 0, 0, 0, 0, 0, byte(len(records) >> 8), byte(len(records))}
	return append(b, bytes.Join(records, nil)...)
}

// told is what a packet says, in words: groups with "-" are not wanted.
func told(t *testing.T, frame []byte) (string, bool) {
	t.Helper()
	var p packet.Packet
	if err := p.Decode(frame); err != nil {
		t.Fatal(err)
	}
	var all []string
	ok := Read(&p, func(group packet.Addr, wanted bool) {
		s := netip.AddrFrom16(group).Unmap().String()
		if !wanted {
			s = "-" + s
		}
		all = append(all, s)
	})
	return strings.Join(all, " "), ok
}

func TestRead(t *testing.T) {
	mdns, other := four("224.0.0.251"), four("239.1.2.3")
	mdns6, other6 := six("ff02::fb"), six("ff05::1:3")
	for _, tt := range []struct {
		name  string
		frame []byte
		want  string
	}{
		{"version 1", report4(append([]byte{0x12, 0, 0, 0}, mdns...)), "224.0.0.251"},
		{"version 2", report4(append([]byte{0x16, 0, 0, 0}, mdns...)), "224.0.0.251"},
		{"leaving", report4(append([]byte{0x17, 0, 0, 0}, mdns...)), "-224.0.0.251"},
		{"version 3", report4(report(0x22, record(4, mdns, 0))), "224.0.0.251"},
		{"the state", report4(report(0x22, record(2, mdns, 0), record(1, other, 0))), "224.0.0.251 -239.1.2.3"},
		{"leaving, version 3", report4(report(0x22, record(3, mdns, 0))), "-224.0.0.251"},
		{"from some senders", report4(report(0x22, record(3, mdns, 2), record(1, other, 1), record(5, mdns, 1))), "224.0.0.251 239.1.2.3 224.0.0.251"},
		{"not from some", report4(report(0x22, record(2, mdns, 2), record(6, other, 2), record(5, other, 0))), "224.0.0.251"},
		{"more in a record", report4(report(0x22, record(4, mdns, 1, 1, 2, 3, 4), record(4, other, 0))), "224.0.0.251 239.1.2.3"},
		{"no record", report4(report(0x22)), ""},
		{"MLD version 1", report6(append([]byte{131, 0, 0, 0, 0, 0, 0, 0}, mdns6...)), "ff02::fb"},
		{"MLD done", report6(append([]byte{132, 0, 0, 0, 0, 0, 0, 0}, mdns6...)), "-ff02::fb"},
		{"MLD version 2", report6(report(143, record(4, mdns6, 0), record(3, other6, 0))), "ff02::fb -ff05::1:3"},
		{"MLD from some", report6(report(143, record(1, mdns6, 3), record(2, other6, 1, 0, 0, 0, 0))), "ff02::fb ff05::1:3"},
	} {
		if got, ok := told(t, tt.frame); got != tt.want || !ok {
			t.Errorf("%s: %q, %t, want %q", tt.name, got, ok, tt.want)
		}
	}
}

// edited changes the bytes of a frame's IPv4 header, whose checksum is set.
func edited(frame []byte, at int, v byte) []byte {
	b := bytes.Clone(frame)
	b[14+at] = v
	b[24], b[25] = 0, 0
	binary.BigEndian.PutUint16(b[24:], packet.Checksum(b[14:34]))
	return b
}

func TestReadRefuses(t *testing.T) {
	mdns := four("224.0.0.251")
	good := report4(report(0x22, record(4, mdns, 0)))
	damaged := bytes.Clone(good)
	damaged[len(damaged)-1]++
	far := bytes.Clone(report6(report(143, record(4, six("ff02::fb"), 0))))
	stranger := bytes.Clone(far)
	far[14+7], stranger[14+8] = 2, 0x20
	for _, tt := range []struct {
		name  string
		frame []byte
		want  string
	}{
		{"checksum", damaged, ""},
		{"from behind a router", edited(good, 8, 64), ""},
		{"from behind a router, IPv6", far, ""},
		{"not from its link", stranger, ""},
		{"a question", report4([]byte{0x11, 10, 0, 0, 0, 0, 0, 0}), ""},
		{"too short", report4([]byte{0x16, 0, 0, 0}), ""},
		{"no group", report4(append([]byte{0x16, 0, 0, 0}, four("10.0.0.1")...)), ""},
		{"no group in a record", report4(report(0x22, record(4, four("10.0.0.1"), 0))), ""},
		{"fewer records than it says", report4(append([]byte{0x22, 0, 0, 0, 0, 0, 0, 2}, record(4, mdns, 0)...)), "224.0.0.251"},
		{"fewer senders than it says", report4(report(0x22, record(4, mdns, 0), []byte{4, 0, 0, 9, 224, 0, 0, 251})), "224.0.0.251"},
		{"less of the rest than it says", report4(report(0x22, []byte{4, 9, 0, 0, 224, 0, 0, 251})), ""},
		{"MLD, too short", report6(append([]byte{131, 0, 0, 0, 0, 0, 0, 0}, six("ff02::fb")[:15]...)), ""},
		{"MLD of IGMP's types", report6(report(0x22, record(4, six("ff02::fb"), 0))), ""},
	} {
		if got, ok := told(t, tt.frame); got != tt.want || ok {
			t.Errorf("%s: %q, %t", tt.name, got, ok)
		}
	}
}

// TestQueries: what we ask is what the decoder takes, complete and addressed to all.
func TestQueries(t *testing.T) {
	g := &flow.Guest{Config: ipc.Config{OurMAC: ourMAC, Our4: packet.AddrFrom4([4]byte{10, 0, 0, 1}), OurLL6: packet.Addr{0: 0xfe, 1: 0x80, 15: 1}}}
	b := bytes.Repeat([]byte{0xee}, 512)
	var p packet.Packet
	if err := p.Decode(b[:Query4(g, b)]); err != nil {
		t.Fatal(err)
	}
	q := p.Payload()
	if p.Src != packet.Addr(g.Our4) || p.Dst != packet.AddrFrom4([4]byte{224, 0, 0, 1}) || p.DstMAC != packet.GroupMAC(&p.Dst) || p.TTL != 1 ||
		p.Proto != packet.ProtoIGMP || !slices.Equal(p.IPHeader()[20:], []byte{0x94, 4, 0, 0}) ||
		packet.Checksum(q) != 0 || fmt.Sprintf("%x", q[:2])+fmt.Sprintf("%x", q[4:]) != "110a"+"00000000027d0000" {
		t.Errorf("%+v %x", p, q)
	}
	if err := p.Decode(b[:Query6(g, b)]); err != nil {
		t.Fatal(err)
	}
	q = p.Payload()
	if p.Src != packet.Addr(g.OurLL6) || p.DstMAC != packet.GroupMAC(&p.Dst) || p.TTL != 1 || p.Proto != packet.ProtoICMPv6 ||
		p.IPHeader()[42] != 5 || !p.ChecksumOK(&packet.Offload{}) || len(q) != 28 || q[0] != 130 || binary.BigEndian.Uint16(q[4:]) != 1000 || q[24] != 2 || q[25] != 125 {
		t.Errorf("%+v %x", p, q)
	}
	g.OurLL6 = [16]byte{}
	if n := Query6(g, b); n != 0 {
		t.Errorf("%d bytes from no address", n)
	}
}

func TestReadAllocs(t *testing.T) {
	var p packet.Packet
	frame := report4(report(0x22, record(4, four("224.0.0.251"), 0)))
	n := 0
	tell := func(packet.Addr, bool) { n++ }
	if err := p.Decode(frame); err != nil {
		t.Fatal(err)
	}
	if a := testing.AllocsPerRun(100, func() { Read(&p, tell) }); a != 0 {
		t.Errorf("%v allocations", a)
	}
}
