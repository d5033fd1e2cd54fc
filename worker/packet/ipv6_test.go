// SPDX-License-Identifier: Apache-2.0

package packet

import (
	"bytes"
	"testing"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"
)

// options is an options header with the given options, which must fill it to
// a multiple of eight bytes.
func options(opts ...byte) []byte {
	b := append([]byte{0, 0}, opts...)
	b[1] = uint8(len(b)/8 - 1)
	return b
}

// routing is a routing header of the type, with segments left.
func routing(typ, left uint8) []byte { return []byte{0, 0, typ, left, 0, 0, 0, 0} }

func TestDecodeIPv6(t *testing.T) {
	udp := append([]byte{0x9c, 0x40, 0x1e, 0x61, 0, 16, 0, 0}, pattern(8)...)
	hbh, dst := ext{ProtoHopByHop, padN(8)}, ext{ProtoDestOpts, padN(8)}
	for _, c := range []struct {
		name  string
		exts  []ext
		proto uint8
		upper []byte
		want  Packet // L4 and, of fragments, theirs
	}{
		{"plain", nil, ProtoUDP, udp, Packet{L4: 54}},
		{"destination options", []ext{dst}, ProtoUDP, udp, Packet{L4: 62}},
		{"hop-by-hop", []ext{hbh}, ProtoUDP, udp, Packet{L4: 62}},
		{"long destination options", []ext{{ProtoDestOpts, padN(504)}}, ProtoUDP, udp, Packet{L4: 54 + 504}},
		{"all in order", []ext{hbh, dst, {ProtoRouting, routing(2, 0)}, fragExt(0, false, 7), dst}, ProtoUDP, udp,
			Packet{L4: 54 + 40, FragID: 7, FragUnfragLen: 64, FragNext: 54 + 16}},
		{"eight headers", []ext{hbh, dst, dst, dst, dst, dst, dst, dst}, ProtoUDP, udp, Packet{L4: 54 + 64}},
		{"routing done", []ext{{ProtoRouting, routing(4, 0)}}, ProtoUDP, udp, Packet{L4: 62}},
		{"router alert", []ext{{ProtoHopByHop, options(5, 2, 0, 0, 1, 0)}}, ProtoICMPv6, udp, Packet{L4: 62}},
		{"unknown option that is skipped", []ext{{ProtoDestOpts, options(0x1e, 4, 1, 2, 3, 4)}}, ProtoUDP, udp, Packet{L4: 62}},
		{"jumbo option", []ext{{ProtoHopByHop, options(0xc2, 4, 0, 1, 0, 0)}}, ProtoUDP, udp, Packet{L4: 62}},
		{"Pad1 only", []ext{{ProtoDestOpts, options(0, 0, 0, 0, 0, 0)}}, ProtoUDP, udp, Packet{L4: 62}},
		{"no next header", nil, ProtoNone, nil, Packet{L4: 54}},
		{"no next header behind options", []ext{dst}, ProtoNone, nil, Packet{L4: 62}},
		{"ESP is an upper layer", []ext{dst}, 50, udp, Packet{L4: 62}},
		{"authentication header is an upper layer", nil, 51, udp, Packet{L4: 54}},
		{"atomic fragment", []ext{fragExt(0, false, 0xa1b2c3d4)}, ProtoUDP, udp,
			Packet{L4: 62, FragID: 0xa1b2c3d4, FragUnfragLen: 40, FragNext: 20}},
		{"first fragment", []ext{fragExt(0, true, 0xa1b2c3d4)}, ProtoUDP, udp,
			Packet{L4: 62, Fragment: true, MoreFragments: true, FragID: 0xa1b2c3d4, FragUnfragLen: 40, FragNext: 20}},
		{"middle fragment", []ext{hbh, fragExt(1448, true, 1)}, ProtoUDP, udp,
			Packet{L4: 70, Fragment: true, MoreFragments: true, FragOffset: 1448, FragID: 1, FragUnfragLen: 48, FragNext: 54}},
		{"last fragment", []ext{hbh, dst, fragExt(1448, false, 1)}, ProtoUDP, udp[:3],
			Packet{L4: 78, Fragment: true, FragOffset: 1448, FragID: 1, FragUnfragLen: 56, FragNext: 62}},
		{"last fragment at the limit", []ext{fragExt(65528, false, 1)}, ProtoUDP, udp[:7],
			Packet{L4: 62, Fragment: true, FragOffset: 65528, FragID: 1, FragUnfragLen: 40, FragNext: 20}},
	} {
		t.Run(c.name, func(t *testing.T) {
			frame := extFrame(c.exts, c.proto, c.upper)
			w := c.want
			w.End = len(frame)
			frame = append(frame, 0xee, 0xee) // padding
			p := dirty()
			if err := p.Decode(frame); err != nil {
				t.Fatal(err)
			}
			w.Frame, w.SrcMAC, w.DstMAC = frame, ends6.SrcMAC, ends6.DstMAC
			w.EtherType, w.IPVersion, w.TTL, w.Proto = EtherTypeIPv6, 6, 255, c.proto
			w.Src, w.Dst, w.L3 = ends6.Src, ends6.Dst, EthernetLen
			if w.DF = !w.Fragment; w.DF {
				w.ProtoAt = EthernetLen + 6 // or in the last of the headers
				if n := len(c.exts); n > 0 {
					w.ProtoAt = c.want.L4 - len(c.exts[n-1].body)
				}
			}
			if d := cmp.Diff(w, p); d != "" {
				t.Errorf("(-want +got)\n%s", d)
			}
			if !bytes.Equal(p.Payload(), c.upper) {
				t.Errorf("payload %x, want %x", p.Payload(), c.upper)
			}
		})
	}
}

// A first fragment that begins with an extension header is left whole, so that
// its parts fit together.
func TestDecodeFragmentedChain(t *testing.T) {
	inner := append(bytes.Clone(padN(8)), pattern(8)...)
	inner[0] = ProtoUDP
	frame := extFrame([]ext{fragExt(0, true, 1)}, ProtoDestOpts, inner)
	var p Packet
	if err := p.Decode(frame); err != nil {
		t.Fatal(err)
	}
	if p.Proto != ProtoDestOpts || !bytes.Equal(p.Payload(), inner) || !p.Fragment {
		t.Errorf("protocol %d, payload %x", p.Proto, p.Payload())
	}
}

func TestDecodeIPv6Refuses(t *testing.T) {
	data := pattern(24)
	hbh, dst := ext{ProtoHopByHop, padN(8)}, ext{ProtoDestOpts, padN(8)}
	cut := func(n int, exts ...ext) []byte { // payload length says that only n bytes follow
		b := extFrame(exts, ProtoUDP, data)
		b[EthernetLen+5] = byte(n)
		return b
	}
	for _, c := range []struct {
		name  string
		frame []byte
		want  error
	}{
		{"hop-by-hop after options", extFrame([]ext{dst, hbh}, ProtoUDP, data), ErrExtension},
		{"hop-by-hop twice", extFrame([]ext{hbh, hbh}, ProtoUDP, data), ErrExtension},
		{"nine headers", extFrame([]ext{hbh, dst, dst, dst, dst, dst, dst, dst, dst}, ProtoUDP, data), ErrExtension},
		{"too long in one", extFrame([]ext{{ProtoDestOpts, padN(520)}}, ProtoUDP, data), ErrExtension},
		{"too long together", extFrame([]ext{{ProtoDestOpts, padN(256)}, {ProtoDestOpts, padN(264)}}, ProtoUDP, data), ErrExtension},
		{"fragment header twice", extFrame([]ext{fragExt(0, true, 1), fragExt(0, true, 2)}, ProtoUDP, data), ErrExtension},
		{"atomic fragment, then fragment", extFrame([]ext{fragExt(0, false, 1), fragExt(8, false, 2)}, ProtoUDP, data), ErrExtension},
		{"header missing", cut(0, dst), ErrTruncated},
		{"header cut", cut(7, dst), ErrTruncated},
		{"body cut", cut(15, ext{ProtoDestOpts, padN(16)}), ErrTruncated},
		{"second header cut", cut(15, dst, dst), ErrTruncated},
		{"fragment header cut", cut(7, fragExt(0, true, 1)), ErrTruncated},
		{"jumbogram", func() []byte {
			b := cut(0, ext{ProtoHopByHop, options(0xc2, 4, 0, 1, 0, 0)})
			return b
		}(), ErrTruncated},
		{"option without length", extFrame([]ext{{ProtoDestOpts, options(1, 3, 0, 0, 0, 1)}}, ProtoUDP, data), ErrTruncated},
		{"option past the header", extFrame([]ext{{ProtoDestOpts, options(1, 5, 0, 0, 0, 0)}}, ProtoUDP, data), ErrTruncated},
		{"option that discards", extFrame([]ext{{ProtoDestOpts, options(0x5e, 4, 1, 2, 3, 4)}}, ProtoUDP, data), ErrOption},
		{"option that reports", extFrame([]ext{{ProtoHopByHop, options(0x9e, 4, 1, 2, 3, 4)}}, ProtoUDP, data), ErrOption},
		{"home address option", extFrame([]ext{{ProtoDestOpts, options(append([]byte{1, 2, 0, 0, 0xc9, 16}, make([]byte, 16)...)...)}}, ProtoUDP, data), ErrOption},
		{"routing type 0", extFrame([]ext{{ProtoRouting, routing(0, 1)}}, ProtoUDP, data), ErrRouting},
		{"routing type 4 with a segment left", extFrame([]ext{{ProtoRouting, routing(4, 1)}}, ProtoUDP, data), ErrRouting},
		{"empty fragment", extFrame([]ext{fragExt(8, false, 1)}, ProtoUDP, nil), ErrFragment},
		{"middle fragment not of eights", extFrame([]ext{fragExt(8, true, 1)}, ProtoUDP, data[:23]), ErrFragment},
		{"fragment past the end", extFrame([]ext{fragExt(65528, false, 1)}, ProtoUDP, data[:8]), ErrFragment},
		{"fragment past the end with options", extFrame([]ext{hbh, fragExt(65520, false, 1)}, ProtoUDP, data[:8]), ErrFragment},
		{"first fragment without all of TCP", extFrame([]ext{fragExt(0, true, 1)}, ProtoTCP, data[:16]), ErrFragment},
		{"first fragment with only options", extFrame([]ext{fragExt(0, true, 1), dst}, ProtoUDP, nil), ErrFragment},
		{"first fragment with cut options", extFrame([]ext{fragExt(0, true, 1), {ProtoDestOpts, padN(16)[:8]}}, ProtoUDP, nil), ErrTruncated},
	} {
		t.Run(c.name, func(t *testing.T) { refused(t, c.frame, c.want) })
	}
}

// TestExtensionsProperty builds legal chains and expects the upper layer where
// it was put; then cuts the packet anywhere inside the chain, which must be
// noticed.
func TestExtensionsProperty(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		var exts []ext
		size := 0
		for i := range rapid.IntRange(0, maxExtensions).Draw(t, "headers") {
			kinds := []uint8{ProtoDestOpts, ProtoRouting}
			if i == 0 {
				kinds = append(kinds, ProtoHopByHop)
			}
			x := ext{rapid.SampledFrom(kinds).Draw(t, "kind"), nil}
			n := rapid.IntRange(1, 8).Draw(t, "eights") * 8
			if x.proto == ProtoRouting {
				x.body = rapid.SliceOfN(rapid.Byte(), n, n).Draw(t, "routing")
				x.body[1], x.body[3] = uint8(n/8-1), 0
			} else {
				x.body = padN(n)
			}
			exts = append(exts, x)
			size += n
		}
		upper := rapid.SliceOfN(rapid.Byte(), 0, 40).Draw(t, "upper")
		frame := extFrame(exts, ProtoTCP, upper)
		var p Packet
		if err := p.Decode(frame); err != nil {
			t.Fatal(err)
		}
		if p.Proto != ProtoTCP || p.L4 != 54+size || !bytes.Equal(p.Payload(), upper) {
			t.Fatalf("protocol %d at %d, want TCP at %d", p.Proto, p.L4, 54+size)
		}
		if size > 0 {
			short := rapid.IntRange(0, size-1).Draw(t, "payload length")
			frame[EthernetLen+4], frame[EthernetLen+5] = byte(short>>8), byte(short)
			if err := p.Decode(frame); err != ErrTruncated {
				t.Fatalf("cut at %d of %d: %v", short, size, err)
			}
		}
	})
}
