// SPDX-License-Identifier: Apache-2.0

package packet

import (
	"encoding/binary"
	"testing"

	"github.com/gopacket/gopacket"
	"github.com/gopacket/gopacket/layers"
)

var (
	ends4 = Ends{
		SrcMAC: MAC{0x9a, 0x55, 0x9a, 0x55, 0x9a, 0x55},
		DstMAC: MAC{0x02, 0, 0, 0, 0, 0x01},
		Src:    AddrFrom4([4]byte{198, 51, 100, 7}),
		Dst:    AddrFrom4([4]byte{10, 0, 2, 15}),
		TTL:    255,
	}
	ends6 = Ends{
		SrcMAC: MAC{0x9a, 0x55, 0x9a, 0x55, 0x9a, 0x55},
		DstMAC: MAC{0x02, 0, 0, 0, 0, 0x01},
		Src:    Addr{0: 0x20, 1: 0x01, 2: 0x0d, 3: 0xb8, 15: 7},
		Dst:    Addr{0: 0xfd, 15: 0x15},
		TTL:    255,
	}
)

// pattern is n bytes that no shift or swap of maps onto itself.
func pattern(n int) []byte {
	b := make([]byte, n)
	for i := range b {
		b[i] = byte(i*7 + i>>8 + 1)
	}
	return b
}

// tcpFrame is a whole segment with n bytes of payload and its checksum.
func tcpFrame(e *Ends, n int) []byte {
	b := make([]byte, MaxHeaders+n)
	var o Offload
	f := TCPFields{SrcPort: 443, DstPort: 50000, Seq: 1e9, Ack: 3e9, Flags: ACK | PSH, Window: 4096, WScale: -1}
	h := PutTCP(b, e, &f, n, &o)
	copy(b[h:], pattern(n))
	b = b[:h+n]
	CompleteChecksum(b, &o)
	return b
}

// segment is a TCP header with options, which are padded to four bytes.
func segment(flags uint8, options []byte) []byte {
	for len(options)%4 != 0 {
		options = append(options, optionEnd)
	}
	b := append(make([]byte, tcpLen), options...)
	b[12] = uint8(len(b) / 4 << 4)
	b[13] = flags
	return b
}

// ext is an extension header; the first byte of body is overwritten with the
// next header's number.
type ext struct {
	proto uint8
	body  []byte
}

// padN is an options header of n bytes, at least 8, that holds only PadN.
func padN(n int) []byte {
	b := make([]byte, n)
	b[1] = uint8(n/8 - 1)
	for i := 2; i < n; {
		size := min(n-i, 255)
		if n-i-size == 1 {
			size--
		}
		if size == 1 {
			i++ // Pad1
			continue
		}
		b[i], b[i+1] = 1, uint8(size-2)
		i += size
	}
	return b
}

// fragExt is a fragment header.
func fragExt(offset int, more bool, id uint32) ext {
	b := make([]byte, fragmentLen)
	f := uint16(offset)
	if more {
		f |= 1
	}
	binary.BigEndian.PutUint16(b[2:], f)
	binary.BigEndian.PutUint32(b[4:], id)
	return ext{ProtoFragment, b}
}

// extFrame is an IPv6 packet with extension headers before upper.
func extFrame(exts []ext, proto uint8, upper []byte) []byte {
	var chain []byte
	for i, x := range exts {
		next := proto
		if i+1 < len(exts) {
			next = exts[i+1].proto
		}
		h := append([]byte(nil), x.body...)
		h[0] = next
		chain = append(chain, h...)
	}
	first := proto
	if len(exts) > 0 {
		first = exts[0].proto
	}
	b := make([]byte, EthernetLen+ipv6Len)
	PutIP(b, &ends6, first, len(chain)+len(upper))
	return append(append(b, chain...), upper...)
}

// serialize has gopacket build a frame, with lengths and checksums.
func serialize(t testing.TB, ls ...gopacket.SerializableLayer) []byte {
	t.Helper()
	for i, l := range ls {
		if s, ok := l.(interface {
			SetNetworkLayerForChecksum(gopacket.NetworkLayer) error
		}); ok {
			for _, n := range ls[:i] {
				if n, ok := n.(gopacket.NetworkLayer); ok {
					if err := s.SetNetworkLayerForChecksum(n); err != nil {
						t.Fatal(err)
					}
				}
			}
		}
	}
	buf := gopacket.NewSerializeBuffer()
	opts := gopacket.SerializeOptions{FixLengths: true, ComputeChecksums: true}
	if err := gopacket.SerializeLayers(buf, opts, ls...); err != nil {
		t.Fatal(err)
	}
	return buf.Bytes()
}

// dissect has gopacket read a frame, and fails on anything it cannot read up to
// the transport layer. It guesses at what is above by port number.
func dissect(t testing.TB, frame []byte) gopacket.Packet {
	t.Helper()
	p := gopacket.NewPacket(frame, layers.LayerTypeEthernet, gopacket.Default)
	if e := p.ErrorLayer(); e != nil && p.TransportLayer() == nil {
		t.Fatalf("gopacket: %v\n%x", e.Error(), frame)
	}
	return p
}

// layer returns the layer of type T that gopacket found.
func layer[T gopacket.Layer](t testing.TB, p gopacket.Packet, lt gopacket.LayerType) T {
	t.Helper()
	l, ok := p.Layer(lt).(T)
	if !ok {
		t.Fatalf("no %v in %v", lt, p)
	}
	return l
}
