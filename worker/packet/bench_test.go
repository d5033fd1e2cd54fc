// SPDX-License-Identifier: Apache-2.0

package packet

import (
	"fmt"
	"testing"
)

func BenchmarkSum(b *testing.B) {
	for _, n := range []int{20, 40, 64, 576, 1500, 9000, 65535} {
		b.Run(fmt.Sprint(n), func(b *testing.B) {
			buf := make([]byte, n)
			b.SetBytes(int64(n))
			for b.Loop() {
				Sum(buf, 0)
			}
		})
	}
}

func BenchmarkDecode(b *testing.B) {
	frames := map[string][]byte{
		"TCPv4": tcpFrame(&ends4, 1448),
		"TCPv6": tcpFrame(&ends6, 1448),
		"ext6":  extFrame([]ext{{ProtoHopByHop, padN(8)}, {ProtoDestOpts, padN(8)}}, ProtoUDP, make([]byte, 64)),
	}
	for name, frame := range frames {
		b.Run(name, func(b *testing.B) {
			var p Packet
			for b.Loop() {
				if err := p.Decode(frame); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

func BenchmarkTCPDecode(b *testing.B) {
	segments := map[string][]byte{
		"plain": tcpFrame(&ends4, 1448)[34:],
		"syn":   segment(SYN, []byte{2, 4, 5, 0xb4, 4, 2, 8, 10, 0, 0, 0, 1, 0, 0, 0, 2, 1, 3, 3, 7}),
		"sack":  segment(ACK, append([]byte{1, 1, 5, 26}, make([]byte, 24)...)),
	}
	for name, l4 := range segments {
		b.Run(name, func(b *testing.B) {
			var t TCP
			for b.Loop() {
				if err := t.Decode(l4); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

func BenchmarkPutTCP(b *testing.B) {
	for name, e := range map[string]*Ends{"v4": &ends4, "v6": &ends6} {
		b.Run(name, func(b *testing.B) {
			var buf [MaxHeaders]byte
			var o Offload
			f := TCPFields{SrcPort: 443, DstPort: 50000, Seq: 1, Ack: 2, Flags: ACK | PSH, Window: 65535, WScale: -1}
			for b.Loop() {
				f.Seq++
				PutTCP(buf[:], e, &f, 1448, &o)
			}
		})
	}
}
