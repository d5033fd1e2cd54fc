// SPDX-License-Identifier: Apache-2.0

package packet

import (
	"bytes"
	"encoding/binary"
	"math/bits"
	"math/rand/v2"
	"testing"

	"pgregory.net/rapid"
)

// refFold is RFC 1071 in the plainest form: 16-bit big-endian words, an odd
// byte padded with zero, carries added back.
func refFold(b []byte, initial uint16) uint16 {
	s := uint32(initial)
	for i := 0; i < len(b); i += 2 {
		w := uint32(b[i]) << 8
		if i+1 < len(b) {
			w |= uint32(b[i+1])
		}
		s += w
		s = s&0xffff + s>>16
	}
	return uint16(s)
}

func TestSumReference(t *testing.T) {
	const most = 2048
	rnd := rand.New(rand.NewPCG(1, 2))
	random := make([]byte, most+8)
	for i := range random {
		random[i] = byte(rnd.Uint32())
	}
	buffers := map[string][]byte{
		"random": random,
		"ones":   bytes.Repeat([]byte{0xff}, most+8),
		"zeros":  make([]byte, most+8),
		// Words that just carry, and those that just do not.
		"carry": bytes.Repeat([]byte{0x80, 0, 0, 0, 0, 0, 0, 0, 0x80, 0, 0, 0, 0, 0, 0, 1}, most/16+1),
		"edge":  bytes.Repeat([]byte{0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 1, 0, 0, 0, 0, 0, 0, 0}, most/16+1),
	}
	for name, buf := range buffers {
		eachWidth(t, name, func(t *testing.T) {
			for align := range 8 {
				for n := 0; n+align <= most; n++ {
					b := buf[align : align+n]
					want := refFold(b, 0)
					if got := Fold(Sum(b, 0)); got != want {
						t.Fatalf("alignment %d, %d bytes: %#04x, want %#04x", align, n, got, want)
					}
					if got := Checksum(b); got != ^want {
						t.Fatalf("alignment %d, %d bytes: checksum %#04x, want %#04x", align, n, got, ^want)
					}
				}
			}
		})
	}
}

// eachWidth runs a test with vector instructions, if there are any, and without.
func eachWidth(t *testing.T, name string, f func(*testing.T)) {
	t.Run(name, f)
	if wide {
		wide = false
		defer func() { wide = true }()
		t.Run(name+", words", f)
	}
}

func TestSumLong(t *testing.T) { eachWidth(t, "long", testSumLong) }

func testSumLong(t *testing.T) {
	for _, fill := range []byte{0x00, 0x01, 0xa5, 0xff} {
		for _, n := range []int{65534, 65535, 1 << 20} {
			b := bytes.Repeat([]byte{fill}, n)
			if got, want := Fold(Sum(b, 0)), refFold(b, 0); got != want {
				t.Errorf("%d bytes of %#02x: %#04x, want %#04x", n, fill, got, want)
			}
		}
	}
}

// Every byte must be at its own place: a single one set, in turn.
func TestSumEachByte(t *testing.T) { eachWidth(t, "bytes", testSumEachByte) }

func testSumEachByte(t *testing.T) {
	for _, n := range []int{1, 7, 8, 15, 63, 127, 128, 129, 255, 300} {
		b := make([]byte, n)
		for i := range b {
			b[i] = 0xab
			want := uint16(0xab)
			if i%2 == 0 {
				want = 0xab00
			}
			if got := Fold(Sum(b, 0)); got != want {
				t.Fatalf("byte %d of %d: %#04x, want %#04x", i, n, got, want)
			}
			b[i] = 0
		}
	}
}

func TestSumProperties(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		b := rapid.SliceOfN(rapid.Byte(), 0, 700).Draw(t, "b")
		initial := rapid.Uint64().Draw(t, "initial")
		cut := rapid.IntRange(0, len(b)/2).Draw(t, "cut") * 2

		whole := Fold(Sum(b, initial))
		if parts := Fold(Sum(b[cut:], Sum(b[:cut], initial))); parts != whole {
			t.Fatalf("cut at %d: %#04x, whole %#04x", cut, parts, whole)
		}
		if want := refFold(b, Fold(initial)); whole != want {
			t.Fatalf("%#04x, want %#04x", whole, want)
		}
	})
}

func TestFold(t *testing.T) {
	edges := []uint64{0, 1, 0xffff, 0x10000, 0x1fffe, 0xffffffff, 0x1_0000_0000, 1<<64 - 1, 1<<64 - 2, 1 << 63}
	for _, s := range edges {
		var b [8]byte
		binary.BigEndian.PutUint64(b[:], s)
		if got, want := Fold(s), refFold(b[:], 0); got != want {
			t.Errorf("Fold(%#x) = %#04x, want %#04x", s, got, want)
		}
	}
	rapid.Check(t, func(t *rapid.T) {
		s := rapid.Uint64().Draw(t, "s")
		got, want := Fold(s), uint16(s%65535)
		if want == 0 && s != 0 {
			want = 0xffff
		}
		if got != want {
			t.Fatalf("Fold(%#x) = %#04x, want %#04x", s, got, want)
		}
	})
}

func TestPseudoSum(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		proto := rapid.Byte().Draw(t, "proto")
		length := rapid.IntRange(0, 1<<20).Draw(t, "length")
		v4 := rapid.Bool().Draw(t, "v4")
		src := drawAddr(t, v4, "src")
		dst := drawAddr(t, v4, "dst")

		// The pseudo-headers as their RFCs draw them. IPv4 has 16 bits for
		// the length; a longer one cannot be in a packet.
		var h []byte
		if v4 {
			length &= 0xffff
			h = append(append(h, src[12:]...), dst[12:]...)
			h = append(h, 0, proto)
			h = binary.BigEndian.AppendUint16(h, uint16(length))
		} else {
			h = append(append(h, src[:]...), dst[:]...)
			h = binary.BigEndian.AppendUint32(h, uint32(length))
			h = append(h, 0, 0, 0, proto)
		}
		got, want := Fold(PseudoSum(&src, &dst, proto, length)), refFold(h, 0)
		if got%0xffff != want%0xffff {
			t.Fatalf("%#04x, want %#04x", got, want)
		}
	})
}

func TestAddEndAround(t *testing.T) {
	const most = 1<<64 - 1
	for _, c := range []struct{ a, b, want uint64 }{
		{0, 0, 0}, {1, 2, 3}, {most, 1, 1}, {most, most, most}, {most - 1, 1, most}, {1 << 63, 1 << 63, 1},
	} {
		if got := add(c.a, c.b); got != c.want {
			t.Errorf("%#x + %#x = %#x, want %#x", c.a, c.b, got, c.want)
		}
	}
	rapid.Check(t, func(t *rapid.T) {
		a, b := rapid.Uint64().Draw(t, "a"), rapid.Uint64().Draw(t, "b")
		lo, hi := bits.Add64(a, b, 0)
		_, want := bits.Div64(hi, lo, most)
		if got := add(a, b); got%most != want {
			t.Fatalf("%#x + %#x = %#x, want %#x", a, b, got, want)
		}
	})
}

func drawAddr(t *rapid.T, v4 bool, name string) Addr {
	if v4 {
		return AddrFrom4([4]byte(rapid.SliceOfN(rapid.Byte(), 4, 4).Draw(t, name)))
	}
	a := Addr(rapid.SliceOfN(rapid.Byte(), 16, 16).Draw(t, name))
	a[0] |= 0x20 // never mapped
	return a
}

func TestChecksumOK(t *testing.T) {
	udp4 := make([]byte, 200)
	udp4 = udp4[:PutUDPFull(udp4, &ends4, 53, 4000, pattern(33))]
	udp6 := make([]byte, 200)
	udp6 = udp6[:PutUDPFull(udp6, &ends6, 53, 4000, pattern(33))]
	icmp4 := make([]byte, 200)
	icmp4 = icmp4[:PutEcho(icmp4, &ends4, true, 7, 8, pattern(33))]
	icmp6 := make([]byte, 200)
	icmp6 = icmp6[:PutEcho(icmp6, &ends6, true, 7, 8, pattern(33))]

	for name, frame := range map[string][]byte{
		"tcp4": tcpFrame(&ends4, 33), "tcp6": tcpFrame(&ends6, 33),
		"udp4": udp4, "udp6": udp6, "icmp4": icmp4, "icmp6": icmp6,
	} {
		t.Run(name, func(t *testing.T) {
			var p Packet
			if err := p.Decode(frame); err != nil {
				t.Fatal(err)
			}
			if !p.ChecksumOK(&Offload{}) || !p.ChecksumOK(nil) {
				t.Fatal("right checksum refused")
			}
			for i := p.L4; i < p.End; i++ {
				frame[i] ^= 0x40
				if p.ChecksumOK(&Offload{}) {
					t.Errorf("byte %d changed unnoticed", i-p.L4)
				}
				if !p.ChecksumOK(&Offload{Flags: OffloadNeedsChecksum}) || !p.ChecksumOK(&Offload{Flags: OffloadDataValid}) {
					t.Errorf("checksum looked at though the link vouches for it")
				}
				frame[i] ^= 0x40
			}
			// The addresses take part, but for ICMP over IPv4.
			p.Src[15] ^= 1
			if got, want := p.ChecksumOK(nil), name == "icmp4"; got != want {
				t.Errorf("with another source: %v, want %v", got, want)
			}
		})
	}
}

func TestChecksumOKSpecial(t *testing.T) {
	frame := func(e *Ends, proto uint8, l4 []byte) []byte {
		b := make([]byte, 60)
		return append(b[:PutIP(b, e, proto, len(l4))], l4...)
	}
	noSum := []byte{0, 53, 0, 54, 0, 9, 0, 0, 'x'}
	// The sum over this datagram and its pseudo-header does not cover the
	// byte behind Length.
	tail := make([]byte, 100)
	n := PutUDPFull(tail, &ends4, 1, 2, []byte("ab"))
	tail = frame(&ends4, ProtoUDP, append(tail[34:n:n], 0x99))

	for _, c := range []struct {
		name  string
		frame []byte
		want  bool
	}{
		{"UDP over IPv4 without checksum", frame(&ends4, ProtoUDP, noSum), true},
		{"UDP over IPv6 without checksum", frame(&ends6, ProtoUDP, noSum), false},
		{"UDP with bytes behind its length", tail, true},
		{"UDP with a short length", frame(&ends4, ProtoUDP, []byte{0, 53, 0, 54, 0, 7, 0, 0}), false},
		{"UDP with a long length", frame(&ends4, ProtoUDP, []byte{0, 53, 0, 54, 0, 10, 0, 0, 'x'}), false},
		{"UDP header cut", frame(&ends4, ProtoUDP, make([]byte, 7)), false},
		{"TCP header cut", frame(&ends4, ProtoTCP, make([]byte, 19)), false},
		{"ICMP header cut", frame(&ends4, ProtoICMP, []byte{8, 0, 0xf7, 0xff}), false},
		{"ICMPv6 header cut", frame(&ends6, ProtoICMPv6, make([]byte, 7)), false},
		{"ICMP over IPv6 is another protocol", frame(&ends6, ProtoICMP, make([]byte, 9)), true},
		{"ICMPv6 over IPv4 is another protocol", frame(&ends4, ProtoICMPv6, make([]byte, 9)), true},
		{"SCTP", frame(&ends4, 132, make([]byte, 9)), true},
		{"no payload at all", frame(&ends6, ProtoNone, nil), true},
		{"fragment", extFrame([]ext{fragExt(8, false, 1)}, ProtoTCP, []byte("anything")), true},
		{"not IP", make([]byte, 60), true},
	} {
		t.Run(c.name, func(t *testing.T) {
			var p Packet
			if err := p.Decode(c.frame); err != nil {
				t.Fatal(err)
			}
			if got := p.ChecksumOK(nil); got != c.want {
				t.Errorf("%v, want %v", got, c.want)
			}
		})
	}
}
