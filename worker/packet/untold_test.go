// SPDX-License-Identifier: Apache-2.0

package packet

import (
	"bytes"
	"encoding/binary"
	"testing"
)

// untold are frames whose checksum is still to be filled in, without a word about it
// beside them, and what is to be said of them.
func untold() map[string]Offload {
	frames := map[string]Offload{}
	for _, e := range []*Ends{&ends4, &ends6} {
		for _, n := range []int{0, 1, 1000, 20000, 65400} {
			b := make([]byte, 66000)
			var o Offload
			hlen := PutTCP(b, e, &TCPFields{SrcPort: 1, DstPort: 2, Seq: 3, Ack: 4, Flags: ACK, Window: 5}, n, &o)
			frames[string(append(b[:hlen], pattern(n)...))] = o
			hlen = PutUDP(b, e, 53, 4000, n, &o)
			frames[string(append(b[:hlen], pattern(n)...))] = o
		}
	}
	return frames
}

// TestUntold: a checksum that is the pseudo-header's sum is still to be filled in where
// the link cannot say so, and wrong where it could; any other wrong one stays wrong.
func TestUntold(t *testing.T) {
	none := &Offload{Flags: OffloadUntold}
	for text, want := range untold() {
		frame := []byte(text)
		var p Packet
		if err := p.Decode(frame); err != nil {
			t.Fatal(err)
		}
		if !p.ChecksumOK(none) {
			t.Errorf("%d bytes of %d: not taken", len(frame), p.Proto)
		}
		if p.ChecksumOK(nil) || p.ChecksumOK(&Offload{}) {
			t.Errorf("%d bytes of %d: taken where the link could have said it", len(frame), p.Proto)
		}
		want.HdrLen = 0 // nobody asks
		told := *none
		if p.Tell(&told); told != want {
			t.Errorf("%d bytes of %d: told %+v, want %+v", len(frame), p.Proto, told, want)
		}
		again := told
		if p.Tell(&again); again != told {
			t.Errorf("told again: %+v, then %+v", told, again)
		}
		whole := bytes.Clone(frame)
		CompleteChecksum(whole, &told)
		_ = p.Decode(whole)
		if told = *none; !p.ChecksumOK(nil) || !p.ChecksumOK(none) {
			t.Errorf("%d bytes of %d: completed, and wrong", len(frame), p.Proto)
		}
		if p.Tell(&told); told != (Offload{}) {
			t.Errorf("complete: told %+v", told)
		}
		whole[p.L4+int(want.CsumOffset)] ^= 4
		told = *none
		if p.Tell(&told); p.ChecksumOK(none) || told != (Offload{}) {
			t.Errorf("%d bytes of %d: neither complete nor to be filled in, and taken; told %+v", len(frame), p.Proto, told)
		}
	}
}

// TestUntoldElsewhere: no protocol but TCP and UDP leaves its checksum to hardware.
func TestUntoldElsewhere(t *testing.T) {
	icmp6 := make([]byte, 200)
	icmp6 = icmp6[:PutEcho(icmp6, &ends6, true, 7, 8, pattern(33))]
	var p Packet
	_ = p.Decode(icmp6)
	binary.BigEndian.PutUint16(icmp6[p.L4+2:], Fold(PseudoSum(&p.Src, &p.Dst, p.Proto, p.End-p.L4)))
	udp := make([]byte, 200)
	udp = udp[:PutUDPFull(udp, &ends6, 53, 4000, pattern(33))]
	udp[60], udp[61] = 0, 0 // the checksum: none, which IPv6 does not have
	short := make([]byte, 200)
	short = short[:PutUDPFull(short, &ends4, 53, 4000, pattern(33))]
	short[39] = 7 // the length
	fragment := extFrame([]ext{fragExt(8, false, 1)}, ProtoTCP, make([]byte, 24))
	_ = p.Decode(fragment)
	binary.BigEndian.PutUint16(fragment[p.L4+tcpChecksumOffset:], Fold(PseudoSum(&p.Src, &p.Dst, ProtoTCP, 24)))
	for name, frame := range map[string][]byte{
		"ICMPv6": icmp6, "UDP without": udp, "UDP of no length": short,
		"TCP, cut": append(bytes.Clone(tcpFrame(&ends4, 0)[:20]), make([]byte, 40)...),
		"fragment": fragment,
		"not IP":   make([]byte, 60),
	} {
		o := Offload{Flags: OffloadUntold}
		if p.Decode(frame) != nil {
			continue
		}
		want := p.ChecksumOK(nil)
		if p.ChecksumOK(&o) != want {
			t.Errorf("%s: with OffloadUntold %v", name, !want)
		}
		if p.Tell(&o); o != (Offload{}) {
			t.Errorf("%s: told %+v", name, o)
		}
	}
}
