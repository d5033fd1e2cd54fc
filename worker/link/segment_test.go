// SPDX-License-Identifier: Apache-2.0

package link

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"math/rand/v2"
	"testing"

	"github.com/gopacket/gopacket"
	"github.com/gopacket/gopacket/layers"
	"pgregory.net/rapid"

	"aldente/worker/packet"
)

// super is a super-frame as the translators build it.
type super struct {
	o       packet.Offload
	headers []byte
	payload []byte
}

var (
	testSrc4 = packet.AddrFrom4([4]byte{192, 0, 2, 1})
	testDst4 = packet.AddrFrom4([4]byte{192, 0, 2, 2})
	testSrc6 = packet.Addr{0: 0x20, 1: 1, 2: 0xd, 3: 0xb8, 15: 1}
	testDst6 = packet.Addr{0: 0x20, 1: 1, 2: 0xd, 3: 0xb8, 15: 2}
)

func testEnds(v6 bool) *packet.Ends {
	e := &packet.Ends{
		SrcMAC: packet.MAC{0x9a, 0x55, 0x9a, 0x55, 0x9a, 0x55}, DstMAC: packet.MAC{2, 0, 0, 0, 0, 1},
		Src: testSrc4, Dst: testDst4, TTL: 64, TrafficClass: 3, ID: 0xfffe, DF: true,
	}
	if v6 {
		e.Src, e.Dst, e.FlowLabel = testSrc6, testDst6, 0xabcde
	}
	return e
}

func random(n int) []byte {
	b := make([]byte, n)
	r := rand.New(rand.NewPCG(1, uint64(n)))
	for i := range b {
		b[i] = byte(r.Uint32())
	}
	return b
}

func tcpSuper(v6 bool, flags uint8, sack int, payload []byte, size int) *super {
	s := &super{headers: make([]byte, packet.MaxHeaders), payload: payload}
	e := testEnds(v6)
	f := packet.TCPFields{
		SrcPort: 40000, DstPort: 50000, Seq: 0xffffff00, Ack: 0x12345678, Flags: flags, Window: 0xfedc,
		WScale: -1, SACK: make([]packet.SACKBlock, sack),
	}
	for i := range f.SACK {
		f.SACK[i] = packet.SACKBlock{Left: 0xdeadbeef, Right: uint32(i)}
	}
	n := packet.PutTCP(s.headers, e, &f, len(payload), &s.o)
	packet.SetGSO(&s.o, e, packet.ProtoTCP, size)
	s.headers = s.headers[:n]
	return s
}

func udpSuper(v6 bool, payload []byte, size int) *super {
	s := &super{headers: make([]byte, packet.MaxHeaders), payload: payload}
	e := testEnds(v6)
	n := packet.PutUDP(s.headers, e, 40000, 50000, len(payload), &s.o)
	packet.SetGSO(&s.o, e, packet.ProtoUDP, size)
	s.headers = s.headers[:n]
	return s
}

// cutAll runs the cutter as the links do.
func cutAll(t testing.TB, s *super, mtu int) [][]byte {
	t.Helper()
	var c cutter
	if !c.start(&s.o, s.headers, s.payload, mtu) {
		t.Fatalf("refused: %+v", s.o)
	}
	want, bound := c.segments(), c.wireSize(0)
	var frames [][]byte
	total := 0
	for c.more() {
		head := make([]byte, packet.MaxHeaders)
		p := c.next(head)
		frames = append(frames, append(head[:c.hlen:c.hlen], p...))
		total += max(c.hlen+len(p), minWire)
	}
	if len(frames) != want || total > bound {
		t.Fatalf("%d segments of %d bytes, expected %d of at most %d", len(frames), total, want, bound)
	}
	return frames
}

// reencode decodes a frame with gopacket and lets it compute all checksums and
// lengths anew.
func reencode(t testing.TB, frame []byte) (again []byte, ip4 *layers.IPv4, tcp *layers.TCP, payload []byte) {
	t.Helper()
	p := gopacket.NewPacket(frame, layers.LayerTypeEthernet, gopacket.Default)
	if e := p.ErrorLayer(); e != nil {
		t.Fatal(e.Error())
	}
	var out []gopacket.SerializableLayer
	for _, l := range p.Layers() {
		switch l := l.(type) {
		case *layers.IPv4:
			ip4 = l
		case *layers.TCP:
			tcp = l
			tcp.SetNetworkLayerForChecksum(p.NetworkLayer())
		case *layers.UDP:
			l.SetNetworkLayerForChecksum(p.NetworkLayer())
		}
		if b, ok := l.(*gopacket.Payload); ok {
			payload = *b
		}
		out = append(out, l.(gopacket.SerializableLayer))
	}
	buf := gopacket.NewSerializeBuffer()
	opts := gopacket.SerializeOptions{FixLengths: true, ComputeChecksums: true}
	if err := gopacket.SerializeLayers(buf, opts, out...); err != nil {
		t.Fatal(err)
	}
	again = buf.Bytes()
	if len(frame) < minWire {
		again = again[:len(frame)] // gopacket pads, the cutter does not
	}
	return again, ip4, tcp, payload
}

// sumReference is RFC 1071 in its plainest form.
func sumReference(b []byte) uint16 {
	var s uint32
	for i := range b {
		if i%2 == 0 {
			s += uint32(b[i]) << 8
		} else {
			s += uint32(b[i])
		}
		s = s&0xffff + s>>16
	}
	return uint16(s)
}

// checksumValid verifies both checksums of a frame without extension headers.
func checksumValid(frame []byte) bool {
	ip := frame[packet.EthernetLen:]
	var pseudo, l4 []byte
	if ip[0]>>4 == 4 {
		if sumReference(ip[:20]) != 0xffff || int(binary.BigEndian.Uint16(ip[2:])) != len(ip) {
			return false
		}
		pseudo, l4 = append(pseudo, ip[12:20]...), ip[20:]
		pseudo = append(pseudo, 0, ip[9])
	} else {
		if int(binary.BigEndian.Uint16(ip[4:])) != len(ip)-40 {
			return false
		}
		pseudo, l4 = append(pseudo, ip[8:40]...), ip[40:]
		pseudo = append(pseudo, 0, ip[6])
	}
	pseudo = binary.BigEndian.AppendUint16(pseudo, uint16(len(l4)))
	return sumReference(append(pseudo, l4...)) == 0xffff
}

func TestCutAgainstGopacket(t *testing.T) {
	data := random(maxPayload)
	flags := uint8(packet.ACK | packet.FIN | packet.PSH | packet.CWR | packet.ECE)
	for _, v6 := range []bool{false, true} {
		for _, size := range []int{7, 48, 536, 1399, 1448, 1460, 8948, 65480} {
			for _, n := range []int{1, size - 1, size, size + 1, 2*size - 1, 2 * size, 20001, 65400, 65536, maxPayload} {
				if n < 1 || n > 65400 && size < 536 {
					continue
				}
				for _, kind := range []string{"tcp", "sack", "udp"} {
					if kind == "udp" && min(n, size) > 65400 {
						continue // longer than an IPv6 packet
					}
					t.Run(fmt.Sprintf("v6=%v/%s/%d/%d", v6, kind, size, n), func(t *testing.T) {
						s := udpSuper(v6, data[:n], size)
						switch kind {
						case "tcp":
							s = tcpSuper(v6, flags, 0, data[:n], size)
						case "sack":
							s = tcpSuper(v6, flags, 3, data[:n], size)
						}
						checkCut(t, s, cutAll(t, s, 65520))
					})
				}
			}
		}
	}
}

func checkCut(t *testing.T, s *super, frames [][]byte) {
	t.Helper()
	var got []byte
	for i, f := range frames {
		again, ip4, tcp, payload := reencode(t, f)
		if !bytes.Equal(again, f) {
			t.Fatalf("segment %d of %d:\n%x\nexpected\n%x", i, len(frames), f[:min(len(f), 80)], again[:min(len(again), 80)])
		}
		if ip4 != nil && ip4.Id != 0xfffe+uint16(i) {
			t.Fatalf("segment %d: identification %#x", i, ip4.Id)
		}
		if tcp != nil {
			if tcp.Seq != 0xffffff00+uint32(len(got)) {
				t.Fatalf("segment %d: sequence number %#x", i, tcp.Seq)
			}
			first, last := i == 0, i == len(frames)-1
			if tcp.CWR != first || tcp.FIN != last || tcp.PSH != last || !tcp.ACK || !tcp.ECE {
				t.Fatalf("segment %d of %d: flags %+v", i, len(frames), tcp)
			}
		}
		got = append(got, payload...)
	}
	if !bytes.Equal(got, s.payload) {
		t.Fatal("payloads together are not the input")
	}
}

// Every length of payload at a small size, and every size for one length.
func TestCutEverySize(t *testing.T) {
	data := random(4096)
	for n := 1; n <= 3000; n++ {
		for _, v6 := range []bool{false, true} {
			for _, s := range []*super{
				tcpSuper(v6, packet.ACK, 0, data[:n], 1448), udpSuper(v6, data[:n], 1448),
				tcpSuper(v6, packet.ACK, 0, data[:1500], n), udpSuper(v6, data[:1500], n),
			} {
				rest := s.payload
				for i, f := range cutAll(t, s, 65520) {
					size := min(int(s.o.GSOSize), len(rest))
					if !checksumValid(f) || !bytes.Equal(f[len(s.headers):], rest[:size]) {
						t.Fatalf("v6=%v, %d bytes cut at %d: segment %d is wrong", v6, len(s.payload), s.o.GSOSize, i)
					}
					rest = rest[size:]
				}
				if len(rest) != 0 {
					t.Fatalf("%d bytes not sent", len(rest))
				}
			}
		}
	}
}

func TestCutToMTU(t *testing.T) {
	s := tcpSuper(false, packet.ACK, 0, random(10000), 9000)
	for _, f := range cutAll(t, s, 1500)[:6] {
		if len(f) != 1514 {
			t.Errorf("frame of %d bytes, expected 1514", len(f))
		}
	}
	if f := cutAll(t, udpSuper(false, random(10000), 9000), 1500)[0]; len(f) != 9042 {
		t.Errorf("datagram of %d bytes: those keep their size", len(f))
	}
	if f := cutAll(t, tcpSuper(false, packet.ACK, 0, random(65535), 65535), 65535)[0]; len(f) != MaxFrame {
		t.Errorf("frame of %d bytes, expected %d", len(f), MaxFrame)
	}
}

func TestCutHeadersAndPayloadInOne(t *testing.T) {
	s := tcpSuper(true, packet.ACK, 0, random(5000), 1000)
	want := cutAll(t, s, 65520)
	one := &super{o: s.o, headers: append(s.headers, s.payload...)}
	got := cutAll(t, one, 65520)
	for i := range want {
		if !bytes.Equal(got[i], want[i]) {
			t.Fatalf("segment %d differs", i)
		}
	}
}

func TestCutRefuses(t *testing.T) {
	tests := map[string]func(s *super){
		"no checksum":     func(s *super) { s.o.Flags = 0 },
		"size zero":       func(s *super) { s.o.GSOSize = 0 },
		"no payload":      func(s *super) { s.payload = nil },
		"much payload":    func(s *super) { s.payload = make([]byte, maxPayload+1) },
		"no headers":      func(s *super) { s.headers = nil },
		"short headers":   func(s *super) { s.headers = s.headers[:40] },
		"long headers":    func(s *super) { s.headers = append(s.headers, 0) },
		"wrong family":    func(s *super) { s.o.GSOType = packet.GSOTCPv6 },
		"wrong protocol":  func(s *super) { s.o.GSOType = packet.GSOUDPL4 },
		"unknown type":    func(s *super) { s.o.GSOType = 3 },
		"checksum offset": func(s *super) { s.o.CsumOffset = 6 },
		"checksum start":  func(s *super) { s.o.CsumStart = 33 },
		"start outside":   func(s *super) { s.o.CsumStart = 65535 },
		"not IP":          func(s *super) { s.headers[12] = 9 },
		"header length 0": func(s *super) { s.headers[14] = 0x40 },
		"data offset 0":   func(s *super) { s.headers[14+20+12] = 0 },
	}
	for name, spoil := range tests {
		t.Run(name, func(t *testing.T) {
			s := tcpSuper(false, packet.ACK, 0, make([]byte, 3000), 1000)
			spoil(s)
			var c cutter
			if c.start(&s.o, s.headers, s.payload, 1500) || c.more() {
				t.Error("accepted")
			}
		})
	}
	var c cutter
	s := tcpSuper(false, packet.ACK, 0, make([]byte, 3000), 1000)
	if c.start(&s.o, s.headers, s.payload, 40) {
		t.Error("MTU without room for payload accepted")
	}
	s = udpSuper(false, make([]byte, 65535), 65535)
	if c.start(&s.o, s.headers, s.payload, 65520) {
		t.Error("datagram longer than a frame accepted")
	}
}

// A datagram whose checksum is zero must be sent with 0xffff.
func TestUDPChecksumZero(t *testing.T) {
	payload := make([]byte, 20)
	s := udpSuper(true, payload, 10)
	first := cutAll(t, s, 1500)[0]
	copy(payload, first[60:62]) // adding the complement makes the sum 0xffff
	copy(payload[10:], first[60:62])
	for _, f := range cutAll(t, s, 1500) {
		if got := binary.BigEndian.Uint16(f[60:]); got != 0xffff || !checksumValid(f) {
			t.Errorf("checksum %#x", got)
		}
	}
}

// complete must equal what packet.CompleteChecksum does to the whole frame,
// wherever the frame is split.
func TestCompleteSplit(t *testing.T) {
	for _, n := range []int{1, 2, 3, 64, 101} {
		s := udpSuper(n%2 == 0, random(n), 1)
		s.o.GSOType = packet.GSONone
		whole := append(s.headers[:len(s.headers):len(s.headers)], s.payload...)
		for cut := len(s.headers); cut <= len(whole); cut++ {
			got := bytes.Clone(whole)
			if !complete(got[:cut], got[cut:], &s.o) {
				t.Fatal("refused")
			}
			want, o := bytes.Clone(whole), s.o
			packet.CompleteChecksum(want, &o)
			if !bytes.Equal(got, want) || !checksumValid(got) {
				t.Fatalf("payload %d, split at %d: %x, expected %x", n, cut, got[:62], want[:62])
			}
		}
	}
	o := packet.Offload{Flags: packet.OffloadNeedsChecksum, CsumStart: 34, CsumOffset: 6}
	if complete(make([]byte, 41), nil, &o) {
		t.Error("field outside the headers accepted")
	}
}

func TestCutProperty(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		n := rapid.IntRange(1, maxPayload).Draw(t, "payload")
		size := rapid.IntRange(1, 65535).Draw(t, "size")
		if n/size > 2000 {
			n = 2000 * size
		}
		mtu := rapid.IntRange(576, 65535).Draw(t, "mtu")
		v6 := rapid.Bool().Draw(t, "v6")
		s := tcpSuper(v6, uint8(rapid.IntRange(0, 255).Draw(t, "flags"))&^packet.SYN,
			rapid.IntRange(0, 3).Draw(t, "sack"), random(n), size)
		if rapid.Bool().Draw(t, "udp") {
			s = udpSuper(v6, random(n), min(size, 60000))
		}
		var got []byte
		var c cutter
		if !c.start(&s.o, s.headers, s.payload, mtu) {
			t.Fatal("refused")
		}
		for c.more() {
			head := make([]byte, packet.MaxHeaders)
			f := append(head[:c.hlen:c.hlen], c.next(head)...)
			if !checksumValid(f) || c.tcp && len(f) > mtu+packet.EthernetLen {
				t.Fatalf("bad segment of %d bytes", len(f))
			}
			got = append(got, f[c.hlen:]...)
		}
		if !bytes.Equal(got, s.payload) {
			t.Fatal("payloads together are not the input")
		}
	})
}

func TestCutAllocates(t *testing.T) {
	s := tcpSuper(false, packet.ACK, 0, random(65000), 1448)
	var c cutter
	head := make([]byte, packet.MaxHeaders)
	if n := testing.AllocsPerRun(100, func() {
		c.start(&s.o, s.headers, s.payload, 1500)
		for c.more() {
			c.next(head)
		}
	}); n != 0 {
		t.Errorf("%v allocations", n)
	}
}
