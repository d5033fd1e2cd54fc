// SPDX-License-Identifier: Apache-2.0

package link

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"testing"

	"golang.org/x/sys/unix"
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
	s      Link
	b      *Batch
	frames [][]byte
	err    error
}

func newReceiver(s Link) *receiver { return &receiver{s: s, b: NewBatch()} }

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
		{0, false}, {1, false}, {13, false}, {14, true}, {65535, true}, {maxReceived, true}, {maxReceived + 1, false},
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
		if r.err != ErrHungUp || len(r.frames) != n/1004 {
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

// TestNextStream has one client after another: nothing is left of the last,
// and nothing is allocated.
func TestNextStream(t *testing.T) {
	first, _, done := pair(t, 1500, 0)
	defer done()
	first.Send(nil, random(60), nil)
	first.rest = random(100)
	first.err = ErrClosed
	queue := &first.queue[0]
	if n := testing.AllocsPerRun(10, func() { NextStream(first, first.fd, 1500) }); n != 0 {
		t.Errorf("%v allocations", n)
	}
	next := NextStream(first, first.fd, 9000).(*stream)
	if &next.queue[0] != queue || next.mtu != 9000 {
		t.Error("the memory is not that of the last one")
	}
	if b := NewBatch(); !next.CanSend() || next.tail != 0 || len(next.rest) != 0 || next.counters != (Counters{}) {
		t.Errorf("not as new: %+v", next.counters)
	} else if _, err := next.Receive(b); err != nil || len(b.Frames) != 0 {
		t.Errorf("received %d frames, %v", len(b.Frames), err)
	}
	if next := NextStream(nil, first.fd, 1500); !next.CanSend() {
		t.Error("the first cannot send")
	}
}

// TestReceiveBulky has the caller look again at once after much was read, and
// wait for the descriptor after little was.
func TestReceiveBulky(t *testing.T) {
	s, peer, done := pair(t, 1500, 1<<20)
	defer done()
	b := NewBatch()
	for _, tt := range []struct {
		size int
		more bool
	}{{60, false}, {bulky - prefixLen - 1, false}, {bulky - prefixLen, true}} {
		wire := framed(random(min(tt.size, 1000)))
		if tt.size > 1000 {
			wire = append(wire, framed(random(tt.size-1000-prefixLen))...)
		}
		peerWrite(t, peer, wire, func() {})
		more, err := s.Receive(b)
		if err != nil || len(b.Frames) == 0 || more != tt.more {
			t.Errorf("%d bytes: %d frames, more %v, %v", tt.size, len(b.Frames), more, err)
		}
		if more, err := s.Receive(b); more || err != nil || len(b.Frames) != 0 {
			t.Errorf("then: %d frames, more %v, %v", len(b.Frames), more, err)
		}
	}
}
