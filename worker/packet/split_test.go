// SPDX-License-Identifier: Apache-2.0

package packet

import (
	"bytes"
	"encoding/binary"
	"math/rand/v2"
	"testing"
)

// checkSplit decodes a frame of which the first n bytes are in one piece, and the
// rest in others: what is not refused reads as if it were whole.
func checkSplit(t *testing.T, frame []byte, n int) {
	t.Helper()
	if n < EthernetLen || n > len(frame) {
		return
	}
	var whole, split Packet
	wholeErr := whole.Decode(frame)
	var more [][]byte
	for b, k := frame[n:], 1; len(b) > 0; k = k*3 + 1 {
		m := min(k, len(b))
		more = append(more, b[:m:m], nil)
		b = b[m:]
	}
	err := split.DecodeSplit(frame[:n:n], more)
	if h := TCPHeaders(frame); h > 0 && h <= n && err != wholeErr {
		t.Fatalf("split at %d: %v, whole %v\n%x", n, err, wholeErr, frame)
	}
	if err != nil || split.IPVersion == 0 || split.Proto != ProtoTCP && split.Beyond > 0 {
		return
	}
	end := split.End + split.Beyond
	if wholeErr != nil || end != whole.End || whole.L4 != split.L4 || whole.Proto != split.Proto || whole.Src != split.Src || whole.Dst != split.Dst {
		t.Fatalf("split at %d: %+v, whole %v, %+v\n%x", n, split, wholeErr, whole, frame)
	}
	if split.Proto != ProtoTCP {
		return
	}
	var a, b TCP
	aErr, bErr := whole.TCP(&a), split.TCP(&b)
	if n >= split.L4+tcpLen && whole.ChecksumOK(nil) != split.ChecksumOK(nil) {
		t.Fatalf("split at %d, checksum of the whole %v\n%x", n, whole.ChecksumOK(nil), frame)
	}
	// Whole headers may still end behind the packet, in padding.
	if h := TCPHeaders(frame); bErr != aErr && h > 0 && h <= n {
		t.Fatalf("split at %d: %v, whole %v\n%x", n, bErr, aErr, frame)
	}
	if bErr != nil {
		return
	}
	got := bytes.Clone(b.Payload)
	for left := b.Beyond; len(b.More) > 0; b.More = b.More[1:] {
		m := min(left, len(b.More[0]))
		got = append(got, b.More[0][:m]...)
		left -= m
	}
	if aErr != nil || b.Len() != a.Len() || !bytes.Equal(got, a.Payload) || a.Seq != b.Seq || a.NumSACK != b.NumSACK {
		t.Fatalf("split at %d: %+v, whole %v, %+v", n, b, aErr, a)
	}
}

// TestSplit cuts segments of both families at every byte, with padding and without,
// and with a checksum that is wrong by a bit.
func TestSplit(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 2))
	for _, e := range []*Ends{&ends4, &ends6} {
		for _, n := range []int{0, 1, 2, 63, 400, 1449} {
			frame := tcpFrame(e, n)
			for _, frame := range [][]byte{frame, append(bytes.Clone(frame), 1, 2, 3), change(frame, len(frame)-1, frame[len(frame)-1]^1)} {
				for k := range frame {
					checkSplit(t, frame, k+1)
				}
			}
		}
	}
	for range 2000 { // long ones, cut anywhere
		frame := tcpFrame(&ends6, r.IntN(40000))
		checkSplit(t, frame, 74+r.IntN(len(frame)-73))
	}
}

// TestSplitHeadersInPadding: IP says that the packet ends before the TCP header
// does. Split or whole, that is a segment cut short.
func TestSplitHeadersInPadding(t *testing.T) {
	for _, e := range []*Ends{&ends4, &ends6} {
		frame := tcpFrame(e, 100)
		n := TCPHeaders(frame)
		ip := frame[EthernetLen:]
		if ip[0]>>4 == 4 {
			binary.BigEndian.PutUint16(ip[2:], ipv4Len+tcpLen-1)
			binary.BigEndian.PutUint16(ip[10:], 0)
			binary.BigEndian.PutUint16(ip[10:], Checksum(ip[:ipv4Len]))
		} else {
			binary.BigEndian.PutUint16(ip[4:], tcpLen-1)
		}
		for k := n; k <= len(frame); k++ {
			checkSplit(t, frame, k)
		}
		var p Packet
		var s TCP
		if err := p.DecodeSplit(frame[:n:n], [][]byte{frame[n:]}); err != nil {
			t.Fatal(err)
		}
		if err := p.TCP(&s); err != ErrTruncated {
			t.Errorf("%v for a header that ends in padding", err)
		}
	}
}

// TestSplitRefused: nothing is decoded of what is not in the first piece.
func TestSplitRefused(t *testing.T) {
	tcp4, tcp6 := tcpFrame(&ends4, 100), tcpFrame(&ends6, 100)
	fragment := bytes.Clone(tcp4)
	fragment[EthernetLen+6] = 0x20
	copy(fragment[EthernetLen+10:], []byte{0, 0})
	sum := Checksum(fragment[EthernetLen : EthernetLen+ipv4Len])
	fragment[EthernetLen+10], fragment[EthernetLen+11] = byte(sum>>8), byte(sum)
	ext := extFrame([]ext{{ProtoDestOpts, padN(40)}}, ProtoTCP, make([]byte, 100))
	for name, tt := range map[string]struct {
		frame []byte
		n     int
	}{
		"IPv4 header": {tcp4, EthernetLen + 19}, "IPv6 header": {tcp6, EthernetLen + 39},
		"fragment": {fragment, 60}, "extension header": {ext, EthernetLen + ipv6Len + 7},
	} {
		var p Packet
		if err := p.DecodeSplit(tt.frame[:tt.n:tt.n], [][]byte{tt.frame[tt.n:]}); err == nil {
			t.Errorf("%s: %+v", name, p)
		}
		if tt.n < len(tt.frame) && TCPHeaders(tt.frame[:tt.n]) != 0 {
			t.Errorf("%s: all headers are said to be there", name)
		}
	}
	var p Packet
	if err := p.DecodeSplit(tcp4[:40:40], [][]byte{tcp4[40:]}); err != nil {
		t.Fatal(err)
	}
	var s TCP
	if err := p.TCP(&s); err == nil || p.ChecksumOK(nil) {
		t.Error("a TCP header that is not all there")
	}
	if p.Decode(tcp4) != nil || p.Beyond != 0 || p.TCP(&s) != nil || s.Len() != 100 {
		t.Errorf("what was split leaves something behind: %+v", p)
	}
}

func TestSplitAllocs(t *testing.T) {
	frame := tcpFrame(&ends6, 9000)
	more := [][]byte{frame[200:4000], frame[4000:4001], frame[4001:]}
	var p Packet
	var s TCP
	if n := testing.AllocsPerRun(100, func() {
		if p.DecodeSplit(frame[:200:200], more) != nil || !p.ChecksumOK(nil) || p.TCP(&s) != nil || s.Len() != 9000 || TCPHeaders(frame) == 0 {
			t.Fatal("not decoded")
		}
	}); n != 0 {
		t.Errorf("%v allocations", n)
	}
}
