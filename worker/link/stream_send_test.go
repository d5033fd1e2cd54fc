// SPDX-License-Identifier: Apache-2.0

package link

import (
	"bytes"
	"encoding/binary"
	"errors"
	"testing"

	"golang.org/x/sys/unix"
	"pgregory.net/rapid"

	"aldente/worker/packet"
)

// unframe splits what the peer has read into frames; the rest is returned.
func unframe(t fataler, wire []byte) (frames [][]byte, rest []byte) {
	t.Helper()
	for len(wire) >= prefixLen {
		n := int(binary.BigEndian.Uint32(wire))
		if n < minWire || n > MaxFrame {
			t.Fatalf("frame of %d bytes sent", n)
		}
		if len(wire) < prefixLen+n {
			break
		}
		frames = append(frames, wire[prefixLen:prefixLen+n])
		wire = wire[prefixLen+n:]
	}
	return frames, wire
}

// peerRead reads at most n bytes, or what there is.
func peerRead(t fataler, peer, n int) []byte {
	t.Helper()
	b := make([]byte, n)
	got := 0
	for got < n {
		k, err := unix.Read(peer, b[got:])
		if err == unix.EAGAIN || k == 0 {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		got += k
	}
	return b[:got]
}

func padded(f []byte) []byte { return append(bytes.Clone(f), make([]byte, max(0, minWire-len(f)))...) }

func TestSendFrames(t *testing.T) {
	s, peer, done := pair(t, 1500, 0)
	defer done()
	var want [][]byte
	for _, n := range []int{14, 15, 59, 60, 61, 1514, copyMax, copyMax + 1, 65535} {
		for _, split := range []int{14, min(n, 54), min(n, packet.MaxHeaders), n} {
			f := random(n)
			if !s.Send(nil, f[:split], f[split:]) {
				t.Fatalf("frame of %d bytes dropped", n)
			}
			want = append(want, padded(f))
			if err := s.Flush(); err != nil {
				t.Fatal(err)
			}
			if s.WantWrite() {
				t.Fatal("blocked")
			}
			got, rest := unframe(t, peerRead(t, peer, 1<<20))
			if len(got) != 1 || len(rest) != 0 || !bytes.Equal(got[0], padded(f)) {
				t.Fatalf("frame of %d bytes split at %d arrived differently", n, split)
			}
		}
	}
	for _, n := range []int{0, 13, 65536, 70000} {
		if s.Send(nil, make([]byte, n), nil) || s.Send(nil, nil, make([]byte, n)) {
			t.Errorf("frame of %d bytes sent", n)
		}
	}
	if c := s.Counters(); c.Sent != uint64(len(want)) || c.Refused != 8 || c.Dropped != 0 {
		t.Errorf("%+v", *c)
	}
}

// Super-frames by each of the ways they may go: copied, as vectors, in more
// than one call, behind gathered frames.
func TestSendSuper(t *testing.T) {
	small := random(70)
	for _, mtu := range []int{576, 1500, 9000, 65520} {
		for _, size := range []int{1, 100, copySegment, copySegment + 1, 500, 1448, 65480} {
			for _, n := range []int{1, 1448, 4 * 1448, 8000, 30000, 65480, 4 * 65480, maxPayload} {
				if n/size > 3000 {
					continue
				}
				s, peer, done := pair(t, mtu, 4<<20)
				super := tcpSuper(n%3 == 0, packet.ACK|packet.PSH, 0, random(n), size)
				s.Send(nil, small[:20], small[20:])
				if !s.Send(&super.o, super.headers, super.payload) {
					t.Fatal("dropped")
				}
				s.Send(nil, small, nil)
				if err := s.Flush(); err != nil {
					t.Fatal(err)
				}
				if s.WantWrite() {
					t.Fatal("blocked")
				}
				got, rest := unframe(t, peerRead(t, peer, 4<<20))
				if len(rest) != 0 {
					t.Fatal("half a frame")
				}
				want := append([][]byte{small}, cutAll(t, super, mtu)...)
				want = append(want, small)
				if len(got) != len(want) || s.Counters().Sent != uint64(len(want)) {
					t.Fatalf("mtu %d, size %d: %d frames, expected %d", mtu, size, len(got), len(want))
				}
				for i := range want {
					if !bytes.Equal(got[i], padded(want[i])) {
						t.Fatalf("mtu %d, size %d, %d bytes: frame %d of %d differs", mtu, size, n, i, len(want))
					}
				}
				done()
			}
		}
	}
}

// A last segment so short that it is padded, where longer headers were before.
func TestSendPadsLastSegment(t *testing.T) {
	s, peer, done := pair(t, 65520, 0)
	defer done()
	for _, sack := range []int{3, 0} {
		super := tcpSuper(false, packet.ACK, sack, random(9001), 3000)
		s.Send(&super.o, super.headers, super.payload)
		s.Flush()
		got, _ := unframe(t, peerRead(t, peer, 1<<20))
		want := cutAll(t, super, 65520)
		if len(got) != 4 || !bytes.Equal(got[3], padded(want[3])) {
			t.Fatalf("%d segments, last one\n%x\nexpected\n%x", len(got), got[len(got)-1], padded(want[3]))
		}
	}
}

func TestSendChecksum(t *testing.T) {
	s, peer, done := pair(t, 65520, 0)
	defer done()
	for _, n := range []int{1, 100, 9000, 60000} { // gathered, and as vectors
		for _, split := range []bool{true, false} {
			super := udpSuper(true, random(n), 1)
			super.o.GSOType = packet.GSONone
			if !split {
				super.headers, super.payload = append(super.headers, super.payload...), nil
			}
			s.Send(&super.o, super.headers, super.payload)
			s.Flush()
			got, _ := unframe(t, peerRead(t, peer, 1<<20))
			if len(got) != 1 || !checksumValid(got[0][:62+n]) {
				t.Errorf("%d bytes, split %v: bad checksum", n, split)
			}
			super.o.CsumStart = 65000
			if s.Send(&super.o, super.headers, super.payload) || s.Flush() != nil || len(peerRead(t, peer, 1)) != 0 {
				t.Error("checksum field outside the frame accepted")
			}
		}
	}
}

// A peer that never reads: the queue stays within its bound, what does not fit
// is dropped whole, and when the peer reads at last, all that was taken comes.
func TestPeerNeverReads(t *testing.T) {
	s, peer, done := pair(t, 1500, 0)
	defer done()
	super := tcpSuper(false, packet.ACK, 0, random(60000), 1448)
	small := random(60)
	refused := 0
	for range 2000 {
		if !s.Send(&super.o, super.headers, super.payload) {
			refused++
		}
		if !s.Send(nil, small, nil) {
			refused++
		}
		if s.Flush() != nil {
			t.Fatal("closed")
		}
		if len(s.queue) != queueSize || s.tail > queueSize {
			t.Fatal("queue grew")
		}
	}
	if s.CanSend() || !s.WantWrite() || refused < 1000 {
		t.Fatalf("not blocked, %d refused", refused)
	}
	var wire []byte
	for range 10000 {
		wire = append(wire, peerRead(t, peer, 50000)...)
		if empty := s.Writable(); empty == s.WantWrite() {
			t.Fatal("Writable and WantWrite disagree")
		}
		if s.CanSend() {
			break
		}
	}
	wire = append(wire, peerRead(t, peer, 1<<20)...)
	frames, rest := unframe(t, wire)
	c := s.Counters()
	if len(rest) != 0 || uint64(len(frames)) != c.Sent {
		t.Fatalf("%d frames and %d bytes arrived, %+v", len(frames), len(rest), *c)
	}
	if c.Sent+c.Dropped != 2000*(42+1) {
		t.Errorf("%+v do not add up", *c)
	}
	if !s.Send(&super.o, super.headers, super.payload) || s.Flush() != nil {
		t.Error("does not go on")
	}
}

func TestSendPeerGone(t *testing.T) {
	for _, n := range []int{60, 60000} {
		s, peer, done := pair(t, 65520, 0)
		unix.Close(peer)
		f := random(n)
		s.Send(nil, f[:54], f[54:])
		if err := s.Flush(); !errors.Is(err, ErrClosed) {
			t.Errorf("%d bytes: %v", n, err)
		}
		if s.Send(nil, f[:54], nil) || s.CanSend() || s.WantWrite() || s.Writable() {
			t.Error("the link goes on without a peer")
		}
		if _, err := s.Receive(NewBatch()); !errors.Is(err, ErrClosed) {
			t.Error(err)
		}
		done()
	}
}

// Whatever is sent while the peer reads as it likes: what Send took arrives,
// in order and unharmed; what it dropped does not, not even in part.
func TestSendProperty(t *testing.T) {
	data := random(maxPayload)
	rapid.Check(t, func(t *rapid.T) {
		s, peer, done := pair(t, 1500, rapid.SampledFrom([]int{4608, 20000, 212992, 1 << 20}).Draw(t, "buffer"))
		defer done()
		var want [][]byte
		var wire []byte
		for i := range rapid.IntRange(1, 60).Draw(t, "steps") {
			switch rapid.IntRange(0, 5).Draw(t, "step") {
			case 0, 1:
				f := bytes.Clone(data[:rapid.SampledFrom([]int{14, 60, 1514, 8000, 9000, 65535}).Draw(t, "size")])
				binary.BigEndian.PutUint32(f, uint32(i))
				if s.Send(nil, f[:14], f[14:]) {
					want = append(want, padded(f))
				}
			case 2, 3:
				n := rapid.IntRange(1, maxPayload).Draw(t, "payload")
				super := tcpSuper(i%2 == 0, packet.ACK, 0, data[:n],
					rapid.SampledFrom([]int{48, 536, 1448, 60000}).Draw(t, "mss"))
				if s.Send(&super.o, super.headers, super.payload) {
					var c cutter
					c.start(&super.o, super.headers, super.payload, 1500)
					for c.more() {
						head := make([]byte, packet.MaxHeaders)
						want = append(want, padded(append(head[:c.hlen:c.hlen], c.next(head)...)))
					}
				}
			case 4:
				wire = append(wire, peerRead(t, peer, rapid.IntRange(1, 300000).Draw(t, "read"))...)
				if s.WantWrite() {
					s.Writable()
				}
			case 5:
				if s.Flush() != nil {
					t.Fatal("closed")
				}
			}
		}
		for s.Flush(); ; s.Writable() {
			b := peerRead(t, peer, 1<<20)
			wire = append(wire, b...)
			if len(b) == 0 && !s.WantWrite() {
				break
			}
		}
		got, rest := unframe(t, wire)
		if len(rest) != 0 || len(got) != len(want) {
			t.Fatalf("%d frames and %d bytes, expected %d", len(got), len(rest), len(want))
		}
		for i := range want {
			if !bytes.Equal(got[i], want[i]) {
				t.Fatalf("frame %d of %d differs", i, len(want))
			}
		}
	})
}

func TestStreamAllocates(t *testing.T) {
	s, peer, done := pair(t, 1500, 0)
	defer done()
	super := tcpSuper(false, packet.ACK, 0, random(60000), 1448)
	short := tcpSuper(false, packet.ACK, 0, random(500), 1448)
	wire := framed(random(60), random(1514), random(65535))
	b, buf := NewBatch(), make([]byte, 1<<20)
	var link Link = s
	if n := testing.AllocsPerRun(200, func() {
		link.Send(&super.o, super.headers, super.payload)
		link.Send(&short.o, short.headers, short.payload)
		link.Send(nil, short.headers, nil)
		link.Flush()
		link.Send(&super.o, super.headers, super.payload)
		for range 3 {
			unix.Read(peer, buf)
			link.Writable()
		}
		unix.Write(peer, wire)
		for more := true; more; {
			more, _ = link.Receive(b)
		}
	}); n != 0 {
		t.Errorf("%v allocations", n)
	}
	if link.Counters().Received == 0 {
		t.Error("nothing received")
	}
}
