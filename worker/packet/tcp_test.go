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

func TestTCPOptions(t *testing.T) {
	block := []byte{0, 0, 0, 1, 0, 0, 0, 2}
	sack := func(n int) []byte {
		return append([]byte{optionSACK, uint8(2 + 8*n)}, bytes.Repeat(block, n)...)
	}
	none := TCP{WScale: -1}
	for _, c := range []struct {
		name    string
		flags   uint8
		options []byte
		want    TCP
	}{
		{"none", SYN, nil, none},
		{"all of a SYN", SYN, []byte{2, 4, 0x05, 0xb4, 1, 3, 3, 7, 4, 2}, TCP{MSS: 1460, WScale: 7, SACKPermitted: true}},
		{"of Linux, with timestamps", SYN | ACK, []byte{2, 4, 0xff, 0xd7, 4, 2, 8, 10, 0, 0, 0, 1, 0, 0, 0, 0, 1, 3, 3, 10},
			TCP{MSS: 65495, WScale: 10, SACKPermitted: true}},
		{"window scale 0", SYN, []byte{3, 3, 0}, TCP{WScale: 0}},
		{"window scale 14", SYN, []byte{3, 3, 14}, TCP{WScale: 14}},
		{"window scale 15 is 14", SYN, []byte{3, 3, 15}, TCP{WScale: 14}},
		{"window scale 255 is 14", SYN, []byte{3, 3, 255}, TCP{WScale: 14}},
		{"unknown option skipped", SYN, []byte{253, 5, 1, 2, 3, 2, 4, 1, 0}, TCP{MSS: 256, WScale: -1}},
		{"unknown empty option skipped", SYN, []byte{253, 2, 2, 4, 1, 0}, TCP{MSS: 256, WScale: -1}},
		{"behind the end", SYN, []byte{0, 0, 0, 0, 2, 4, 1, 0}, none},
		{"only no-operation", SYN, []byte{1, 1, 1, 1}, none},
		{"length 0 stops", SYN, []byte{2, 4, 1, 0, 253, 0, 4, 2}, TCP{MSS: 256, WScale: -1}},
		{"length 1 stops", SYN, []byte{253, 1, 2, 4, 1, 0}, none},
		{"length past the header stops", SYN, []byte{4, 2, 253, 7, 2, 4, 1, 0}, TCP{WScale: -1, SACKPermitted: true}},
		{"kind without length", SYN, []byte{4, 2, 1, 2}, TCP{WScale: -1, SACKPermitted: true}},
		{"MSS of the wrong length", SYN, []byte{2, 3, 1, 3, 3, 5}, TCP{WScale: 5}},
		{"window scale of the wrong length", SYN, []byte{3, 4, 1, 1, 4, 2}, TCP{WScale: -1, SACKPermitted: true}},
		{"SACK permitted of the wrong length", SYN, []byte{4, 3, 1}, none},
		{"SACK of one", ACK, append([]byte{1, 1}, sack(1)...), TCP{WScale: -1, NumSACK: 1}},
		{"SACK of three", ACK, append([]byte{1, 1}, sack(3)...), TCP{WScale: -1, NumSACK: 3}},
		{"SACK of four", ACK, append([]byte{1, 1}, sack(4)...), TCP{WScale: -1, NumSACK: 4}},
		{"SACK of none", ACK, []byte{5, 2, 1, 1}, none},
		{"SACK of half a block", ACK, []byte{5, 6, 0, 0, 0, 1, 1, 1}, none},
		{"SACK of a block and a half", ACK, []byte{5, 14, 0, 0, 0, 1, 0, 0, 0, 2, 0, 0, 0, 3}, none},
		{"SACK cut", ACK, []byte{5, 10, 0, 0, 0, 1, 0, 0}, none},
		{"SACK in a SYN", SYN, append([]byte{1, 1}, sack(1)...), none},
		{"SYN's options without SYN", ACK, []byte{2, 4, 0x05, 0xb4, 1, 3, 3, 7, 4, 2}, none},
	} {
		t.Run(c.name, func(t *testing.T) {
			l4 := append(segment(c.flags, c.options), "data"...)
			var got TCP
			got.Decode(segment(SYN, []byte{2, 4, 9, 9, 1, 3, 3, 9, 4, 2})) // leaves traces
			if err := got.Decode(l4); err != nil {
				t.Fatal(err)
			}
			c.want.Flags, c.want.Payload = c.flags, []byte("data")
			for i := range c.want.NumSACK {
				c.want.SACK[i] = SACKBlock{1, 2}
			}
			if d := cmp.Diff(c.want, got); d != "" {
				t.Errorf("(-want +got)\n%s", d)
			}
		})
	}
}

func TestTCPRefuses(t *testing.T) {
	offset := func(words uint8, n int) []byte {
		b := make([]byte, n)
		b[12] = words << 4
		return b
	}
	for _, c := range []struct {
		name string
		l4   []byte
		want error
	}{
		{"nothing", nil, ErrTruncated},
		{"header cut", offset(5, 20)[:19], ErrTruncated},
		{"offset 0", offset(0, 40), ErrHeaderLength},
		{"offset 4", offset(4, 40), ErrHeaderLength},
		{"options cut", offset(6, 23), ErrTruncated},
		{"offset 15 in a short segment", offset(15, 59), ErrTruncated},
		{"shortest", offset(5, 20), nil},
		{"most options", offset(15, 60), nil},
	} {
		var tcp TCP
		if err := tcp.Decode(c.l4); err != c.want {
			t.Errorf("%s: %v, want %v", c.name, err, c.want)
		}
	}
}

// TestTCPOracle has gopacket build what Decode reads.
func TestTCPOracle(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		flags := rapid.Byte().Draw(rt, "flags")
		g := &layers.TCP{
			SrcPort: layers.TCPPort(rapid.Uint16().Draw(rt, "sport")), DstPort: layers.TCPPort(rapid.Uint16().Draw(rt, "dport")),
			Seq: rapid.Uint32().Draw(rt, "seq"), Ack: rapid.Uint32().Draw(rt, "ack"),
			Window: rapid.Uint16().Draw(rt, "window"), Urgent: rapid.Uint16().Draw(rt, "urgent"),
			FIN: flags&FIN != 0, SYN: flags&SYN != 0, RST: flags&RST != 0, PSH: flags&PSH != 0,
			ACK: flags&ACK != 0, URG: flags&URG != 0, ECE: flags&ECE != 0, CWR: flags&CWR != 0,
		}
		data := rapid.SliceOfN(rapid.Byte(), 0, 64).Draw(rt, "data")
		want := TCP{SrcPort: uint16(g.SrcPort), DstPort: uint16(g.DstPort), Seq: g.Seq, Ack: g.Ack,
			Flags: flags, Window: g.Window, Urgent: g.Urgent, Payload: data, WScale: -1}
		if mss := rapid.Uint16().Draw(rt, "mss"); mss != 0 {
			g.Options = append(g.Options, layers.TCPOption{OptionType: layers.TCPOptionKindMSS, OptionLength: 4,
				OptionData: []byte{byte(mss >> 8), byte(mss)}})
			if g.SYN {
				want.MSS = mss
			}
		}
		if scale := rapid.IntRange(-1, 14).Draw(rt, "scale"); scale >= 0 {
			g.Options = append(g.Options, layers.TCPOption{OptionType: layers.TCPOptionKindWindowScale, OptionLength: 3,
				OptionData: []byte{byte(scale)}})
			if g.SYN {
				want.WScale = int8(scale)
			}
		}
		eth := &layers.Ethernet{SrcMAC: ends4.SrcMAC[:], DstMAC: ends4.DstMAC[:], EthernetType: layers.EthernetTypeIPv4}
		ip := &layers.IPv4{Version: 4, TTL: 9, Protocol: layers.IPProtocolTCP, SrcIP: ends4.Src[12:], DstIP: ends4.Dst[12:]}
		frame := serialize(t, eth, ip, g, gopacket.Payload(data))
		var p Packet
		var got TCP
		if err := p.Decode(frame); err != nil {
			rt.Fatal(err)
		}
		if err := got.Decode(p.Payload()); err != nil {
			rt.Fatal(err)
		}
		if len(got.Payload) == 0 {
			got.Payload, want.Payload = nil, nil
		}
		if d := cmp.Diff(want, got); d != "" {
			rt.Fatalf("(-want +got)\n%s", d)
		}
		if !p.ChecksumOK(nil) {
			rt.Fatal("gopacket's checksum refused")
		}
	})
}
