// SPDX-License-Identifier: Apache-2.0

package link

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"testing"

	"golang.org/x/sys/unix"
	"pgregory.net/rapid"

	"aldente/worker/packet"
)

type fataler interface {
	Helper()
	Fatal(...any)
	Fatalf(string, ...any)
}

// pair returns a stream link and the other end of its socket. A buffer size of
// zero leaves the kernel's default.
func pair(t fataler, mtu, buffer int) (s *stream, peer int, closeAll func()) {
	t.Helper()
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	for _, fd := range fds {
		if buffer != 0 {
			if err := unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_SNDBUF, buffer); err != nil {
				t.Fatal(err)
			}
		}
	}
	s = NewStream(int32(fds[0]), mtu).(*stream)
	return s, fds[1], func() { s.Close(); unix.Close(fds[1]) }
}

func framed(frames ...[]byte) []byte {
	var b []byte
	for _, f := range frames {
		b = append(binary.BigEndian.AppendUint32(b, uint32(len(f))), f...)
	}
	return b
}

// peerWrite writes b in pieces while receive takes what arrives.
func peerWrite(t fataler, peer int, b []byte, receive func()) {
	t.Helper()
	for len(b) > 0 {
		n, err := unix.Write(peer, b)
		if err != nil && err != unix.EAGAIN {
			t.Fatal(err)
		}
		b = b[max(n, 0):]
		receive()
	}
}

// receiver collects copies of all frames.
type receiver struct {
	s      *stream
	b      *Batch
	frames [][]byte
	err    error
}

func newReceiver(s *stream) *receiver { return &receiver{s: s, b: NewBatch()} }

func (r *receiver) receive() {
	for more := true; more && r.err == nil; {
		more, r.err = r.s.Receive(r.b)
		for i := range r.b.Frames {
			r.frames = append(r.frames, bytes.Clone(r.b.Frames[i].Data))
		}
	}
}

func (r *receiver) expect(t fataler, want [][]byte) {
	t.Helper()
	if len(r.frames) != len(want) {
		t.Fatalf("%d frames, expected %d", len(r.frames), len(want))
	}
	for i := range want {
		if !bytes.Equal(r.frames[i], want[i]) {
			t.Fatalf("frame %d of %d bytes is not what was sent (%d)", i, len(r.frames[i]), len(want[i]))
		}
	}
}

func TestReceiveSplitAtEveryByte(t *testing.T) {
	frames := [][]byte{random(14), random(15), random(60), random(14)}
	wire := framed(frames...)
	for first := range len(wire) {
		for second := first; second <= len(wire); second += 7 {
			s, peer, done := pair(t, 1500, 0)
			r := newReceiver(s)
			peerWrite(t, peer, wire[:first], r.receive)
			peerWrite(t, peer, wire[first:second], r.receive)
			peerWrite(t, peer, wire[second:], r.receive)
			if r.err != nil {
				t.Fatal(r.err)
			}
			r.expect(t, frames)
			done()
		}
	}
}

func TestReceiveByteByByte(t *testing.T) {
	frames := [][]byte{random(14), random(1514), random(65535), random(14)}
	s, peer, done := pair(t, 1500, 0)
	defer done()
	r := newReceiver(s)
	wire := framed(frames...)
	for i := range wire {
		peerWrite(t, peer, wire[i:i+1], r.receive)
	}
	r.expect(t, frames)
}

// The longest frames, in pieces of many sizes, so that the beginning of one is
// kept at places all over the buffer, and moved.
func TestReceiveLongFramesSplit(t *testing.T) {
	frames := [][]byte{random(65535), random(65534), random(65535), random(65533), random(65535), random(14)}
	wire := framed(frames...)
	for split := 509; split < 140000; split += split / 9 {
		s, peer, done := pair(t, 1500, 1<<20)
		r := newReceiver(s)
		for b := wire; len(b) > 0; b = b[min(split, len(b)):] {
			peerWrite(t, peer, b[:min(split, len(b))], r.receive)
		}
		r.expect(t, frames)
		done()
	}
}

func TestReceiveLengths(t *testing.T) {
	before := random(100)
	for _, tt := range []struct {
		length uint32
		ok     bool
	}{
		{0, false}, {1, false}, {13, false}, {14, true}, {65535, true}, {65536, false},
		{1 << 24, false}, {1 << 31, false}, {1<<32 - 1, false},
	} {
		t.Run(fmt.Sprint(tt.length), func(t *testing.T) {
			s, peer, done := pair(t, 1500, 0)
			defer done()
			wire := append(framed(before), binary.BigEndian.AppendUint32(nil, tt.length)...)
			want := [][]byte{before}
			if tt.ok {
				want = append(want, random(int(tt.length)))
				wire = append(wire, want[1]...)
			} else {
				wire = append(wire, random(64)...)
			}
			r := newReceiver(s)
			peerWrite(t, peer, wire, r.receive)
			r.expect(t, want)
			if tt.ok != (r.err == nil) {
				t.Fatalf("error %v", r.err)
			}
			if tt.ok {
				return
			}
			if r.err != ErrLength || !errors.Is(r.err, ErrClosed) || s.Counters().Malformed != 1 {
				t.Errorf("error %v, counters %+v", r.err, *s.Counters())
			}
			if s.Send(nil, random(60), nil) || s.CanSend() || s.WantWrite() || s.Flush() == nil {
				t.Error("the link goes on after a malformed length")
			}
			if _, err := s.Receive(r.b); err == nil || len(r.b.Frames) != 0 {
				t.Error("frames after a malformed length")
			}
		})
	}
}

func TestReceiveDisconnect(t *testing.T) {
	frame := random(1000)
	wire := framed(frame, frame)
	for _, n := range []int{0, 1, 3, 4, 5, 1003, 1004, 1006, 1008, 1500, 2007, 2008} {
		s, peer, done := pair(t, 1500, 0)
		r := newReceiver(s)
		peerWrite(t, peer, wire[:n], r.receive)
		unix.Close(peer)
		r.receive()
		if r.err != ErrClosed || len(r.frames) != n/1004 {
			t.Errorf("after %d bytes: %d frames, error %v", n, len(r.frames), r.err)
		}
		done()
	}
}

// A new client must not see the beginning of a frame of the last one, though
// both use the same batch.
func TestReceiveAfterReconnect(t *testing.T) {
	b := NewBatch()
	for i := range 3 {
		s, peer, done := pair(t, 1500, 0)
		r := &receiver{s: s, b: b}
		whole := random(200 + i)
		peerWrite(t, peer, append(framed(whole), 0, 0, 1), r.receive)
		unix.Close(peer)
		r.receive()
		r.expect(t, [][]byte{whole})
		done()
	}
}

// A flood of the smallest frames: batches stay within bounds, nothing is lost,
// more is never false while whole frames are left in the batch.
func TestReceiveFlood(t *testing.T) {
	s, peer, done := pair(t, 1500, 4<<20)
	defer done()
	const count = 50000
	var wire []byte
	for i := range count {
		f := make([]byte, MinFrame)
		binary.BigEndian.PutUint32(f, uint32(i))
		wire = append(wire, framed(f)...)
	}
	b, next := NewBatch(), uint32(0)
	for len(wire) > 0 {
		n, err := unix.Write(peer, wire)
		if err != nil && err != unix.EAGAIN {
			t.Fatal(err)
		}
		wire = wire[max(n, 0):]
		for more := true; more; {
			if more, err = s.Receive(b); err != nil {
				t.Fatal(err)
			}
			if len(b.Frames) > MaxFrames {
				t.Fatalf("batch of %d frames", len(b.Frames))
			}
			for i := range b.Frames {
				if got := binary.BigEndian.Uint32(b.Frames[i].Data); got != next || len(b.Frames[i].Data) != MinFrame {
					t.Fatalf("frame %d, expected %d", got, next)
				}
				next++
			}
		}
	}
	if next != count || len(b.buf) != batchSize {
		t.Errorf("%d frames of %d", next, count)
	}
}

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
			for _, n := range []int{1, 1448, 4 * 1448, 8000, 30000, 65480} {
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
	data := random(65535)
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
				n := rapid.IntRange(1, 65000).Draw(t, "payload")
				super := tcpSuper(i%2 == 0, packet.ACK, 0, data[:n],
					rapid.SampledFrom([]int{100, 536, 1448, 60000}).Draw(t, "mss"))
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
