// SPDX-License-Identifier: Apache-2.0

package link

import (
	"bytes"
	"encoding/binary"
	"errors"
	"slices"
	"testing"

	"golang.org/x/sys/unix"

	"aldente/fuzz"
	"aldente/worker/packet"
)

// FuzzStreamReceive compares what comes out of the link, however the stream is
// split, with what a reader of the whole stream finds.
func FuzzStreamReceive(f *testing.F) {
	captured := fuzz.Captured("ping", "curl", "neighbours")
	fuzz.Add(f, framed(captured...), uint16(700))
	fuzz.Add(f, framed(captured[:4]...), uint16(0))
	fuzz.Add(f, framed(random(14), random(60)), uint16(3))
	fuzz.Add(f, framed(random(13)), uint16(1))
	fuzz.Add(f, []byte{0, 1, 0, 0, 1}, uint16(2))
	fuzz.Add(f, []byte{0xff, 0xff, 0xff, 0xff}, uint16(4))
	fuzz.Add(f, append(framed(random(65535), random(1514)), 0, 0), uint16(40000))
	fuzz.Add(f, framed(random(65550), random(maxReceived), random(maxReceived+1)), uint16(40000))
	fuzz.Add(f, framed(slices.Repeat([][]byte{random(14)}, 3*MaxFrames)...), uint16(40000))
	f.Fuzz(func(t *testing.T, wire []byte, piece uint16) {
		if len(wire) > 1<<20 {
			return
		}
		var want [][]byte
		bad := false
		for rest := wire; len(rest) >= prefixLen; {
			n := binary.BigEndian.Uint32(rest)
			if bad = n < MinFrame || n > maxReceived; bad {
				break
			}
			if uint32(len(rest)-prefixLen) < n {
				break
			}
			want = append(want, rest[prefixLen:prefixLen+n])
			rest = rest[prefixLen+n:]
		}
		s, peer, done := pair(t, 1500, 0)
		defer done()
		r := newReceiver(s)
		step := max(int(piece), len(wire)/1000+1)
		for b := wire; len(b) > 0 && r.err == nil; b = b[min(step, len(b)):] {
			for rest := b[:min(step, len(b))]; len(rest) > 0 && r.err == nil; {
				n, err := unix.Write(peer, rest)
				if err != nil && err != unix.EAGAIN {
					t.Fatal(err)
				}
				rest = rest[max(n, 0):]
				r.receive()
			}
		}
		if bad != (r.err == ErrLength) {
			t.Fatalf("error %v, malformed: %v", r.err, bad)
		}
		r.expect(t, want)
	})
}

// takeSuper makes a frame or super-frame: one that our own builders write, or,
// with bit 7 of the first byte, whatever comes, behind a virtio-net header.
func takeSuper(s *fuzz.Source) (f *super, built bool) {
	kind := s.Byte()
	if kind&0x80 != 0 {
		f = &super{}
		var o [packet.OffloadSize]byte
		s.Fill(o[:])
		decodeOffload(o[:], &f.o)
		f.headers = s.Block()
		f.payload = s.Take(1 << 16)
		return f, false
	}
	flags, sack, size := s.Byte(), int(s.Byte()%4), int(s.Uint16())
	n, seed := int(s.Uint16()), s.Uint32()
	if size > 0 {
		n = min(n, 2000*size) // more segments only take more time
	}
	payload := fuzz.Pattern(n, seed)
	if kind&2 != 0 {
		f = udpSuper(kind&1 != 0, payload, size)
	} else {
		f = tcpSuper(kind&1 != 0, flags&^packet.SYN, sack, payload, size)
	}
	if kind&4 != 0 {
		f.o.GSOType, f.o.GSOSize = packet.GSONone, 0
	}
	if kind&8 != 0 { // all in one piece, as from a guest
		f.headers, f.payload = append(f.headers, f.payload...), nil
	}
	if kind&16 != 0 {
		f.o.GSOType |= packet.GSOECN
	}
	return f, true
}

// superSeeds are inputs of takeSuper.
func superSeeds() [][]byte {
	seeds := [][]byte{
		{0, packet.ACK | packet.PSH | packet.CWR, 2, 5, 0xa8, 0x20, 0, 1, 2, 3, 4},
		{1, packet.ACK | packet.FIN, 0, 0, 1, 2, 0, 1, 2, 3, 4},
		{2, 0, 0, 4, 0xb0, 0x10, 0, 1, 2, 3, 4}, {3, 0, 0, 0xff, 0xff, 0, 100, 1, 2, 3, 4},
		{4, packet.ACK, 0, 0, 0, 5, 0, 1, 2, 3, 4}, {7, packet.ACK, 0, 0, 0, 5, 1, 1, 2, 3, 4}, {6, 0, 0, 0, 0, 0, 3, 1, 2, 3, 4},
		{8, packet.ACK, 3, 5, 0xa8, 0xff, 0xff, 1, 2, 3, 4}, {11, 0, 0, 5, 0, 0x30, 0, 1, 2, 3, 4},
		{16, packet.ACK, 0, 5, 0xa8, 0x20, 0, 1, 2, 3, 4}, {0, packet.ACK, 0, 0, 0, 0, 9, 1, 2, 3, 4}, {0, packet.ACK, 0, 5, 0, 0, 0, 1, 2, 3, 4},
		{4, packet.ACK, 0, 0, 0, 0x20, 0, 1, 2, 3, 4}, {1, packet.ACK, 0, 0x0b, 0, 0x80, 0, 1, 2, 3, 4},
	}
	for _, s := range []*super{
		tcpSuper(false, packet.ACK|packet.PSH|packet.CWR, 2, random(5000), 1448), tcpSuper(true, packet.ACK, 0, random(3000), 1),
		udpSuper(false, random(3000), 1200), udpSuper(true, random(100), 65535),
	} {
		b := make([]byte, 1+packet.OffloadSize)
		b[0] = 0x80
		encodeOffload(b[1:], &s.o)
		b = append(append(b, uint8(len(s.headers))), s.headers...)
		seeds = append(seeds, append(b, s.payload...))
	}
	return append(seeds, brokenSeeds()...)
}

// brokenSeeds are super-frames that do not add up, each in another way.
func brokenSeeds() (seeds [][]byte) {
	for _, change := range []func(s *super){
		func(s *super) { s.o.Flags = 0 },
		func(s *super) { s.o.CsumStart = 20 },
		func(s *super) { s.o.CsumStart = 13 },
		func(s *super) { s.o.CsumOffset = 7 },
		func(s *super) { s.o.CsumOffset = 60000 },
		func(s *super) { s.o.CsumOffset = uint16(len(s.headers)+len(s.payload)-1) - s.o.CsumStart },
		func(s *super) { s.o.GSOType = 3 },
		func(s *super) { s.o.GSOType = packet.GSOTCPv4 },
		func(s *super) { s.o.GSOType = packet.GSOUDPL4 },
		func(s *super) { s.o.GSOSize = 0 },
		func(s *super) { s.o.GSOType, s.o.Flags = packet.GSONone, 0 },
		func(s *super) { s.headers[12] = 0x81 },
		func(s *super) { s.headers[12], s.headers[13], s.headers[14] = 8, 0, 0x44 },
		func(s *super) { s.headers[len(s.headers)-8] = 0xf0 },
		func(s *super) { s.headers = append(s.headers, make([]byte, 100)...) },
		func(s *super) { s.headers = s.headers[:10] },
		func(s *super) { s.payload = nil },
		func(s *super) { s.payload = s.payload[:3] },
		func(s *super) { s.o.GSOType, s.o.CsumOffset = packet.GSONone, 200 },
	} {
		for _, s := range []*super{tcpSuper(true, packet.ACK, 0, random(300), 100), udpSuper(false, random(300), 100)} {
			change(s)
			b := make([]byte, 1+packet.OffloadSize)
			b[0] = 0x80
			encodeOffload(b[1:], &s.o)
			b = append(append(b, uint8(len(s.headers))), s.headers...)
			seeds = append(seeds, append(b, s.payload...))
		}
	}
	return seeds
}

// FuzzSegment sends whatever it is given by a stream link, and cuts it. Each
// segment is a frame, all of them together hold the payload; segments of what
// our own builders wrote are those that gopacket would write; only whole frames
// leave, as many as were counted.
func FuzzSegment(f *testing.F) {
	for _, b := range superSeeds() {
		fuzz.Add(f, append([]byte{5, 0xdc}, b...))
		fuzz.Add(f, append([]byte{0xff, 0xf0}, b...))
		fuzz.Add(f, append([]byte{0, 60}, b...))
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		s := &fuzz.Source{B: b}
		mtu := int(s.Uint16())
		frame, built := takeSuper(s)
		checkSend(t, frame, mtu, built)
		if frame.o.GSOType == packet.GSONone {
			return
		}
		var c cutter
		if !c.start(&frame.o, frame.headers, frame.payload, mtu) {
			return
		}
		checkSegments(t, &c, frame, mtu, built)
	})
}

func checkSegments(t *testing.T, c *cutter, f *super, mtu int, built bool) {
	t.Helper()
	all := append(bytes.Clone(f.headers), f.payload...)[c.hlen:]
	var got []byte
	index := -1
	for left := c.segments(); c.more(); left-- {
		index++
		head := make([]byte, packet.MaxHeaders)
		p := c.next(head)
		if len(p) == 0 || len(p) > int(f.o.GSOSize) || c.hlen+len(p) > MaxFrame || c.segments() != left-1 ||
			c.tcp && c.hlen+len(p) > mtu+packet.EthernetLen {
			t.Fatalf("segment of %d+%d bytes, %d left of %d", c.hlen, len(p), c.segments(), left)
		}
		got = append(got, p...)
		if i := bytes.IndexFunc(head[c.hlen:], func(r rune) bool { return r != 0 }); i >= 0 {
			t.Fatal("wrote behind the headers")
		}
		if !built {
			continue
		}
		frame := append(head[:c.hlen:c.hlen], p...)
		if err := fuzz.CheckFrame(frame); err != nil {
			t.Fatalf("%v\n%x", err, frame)
		}
		checkProgress(t, f, frame, c.l4, len(got)-len(p), index, left == 1)
		if again, _, _, _ := reencode(t, frame); len(got) < 9000 && !bytes.Equal(again, frame) {
			t.Fatalf("%x, gopacket writes %x", frame, again)
		}
	}
	if !bytes.Equal(got, all) {
		t.Fatal("payloads together are not the input")
	}
}

// FuzzStreamSend sends frames and super-frames to a peer that now and then does
// not read, and may close. Only whole frames arrive, in order, as many as were
// counted; what was refused or dropped left no trace; the link says that it cannot
// send exactly while something waits; its memory serves the next client.
func FuzzStreamSend(f *testing.F) {
	seeds := superSeeds()
	small := []byte{4, packet.ACK, 0, 0, 0, 0x10, 0, 1, 2, 3, 4}
	large := []byte{4, packet.ACK, 0, 0, 0, 0xf0, 0, 1, 2, 3, 4}
	segments := []byte{0, packet.ACK, 0, 0x0b, 0xb8, 0xea, 0x61, 1, 2, 3, 4} // the last one of one byte
	short := []byte{0, packet.ACK, 0, 0x0b, 0xb8, 0x23, 0x29, 1, 2, 3, 4}
	fuzz.Add(f, slices.Concat([]byte{0xff, 0xf0, 0x0d, 0}, small, large, small, large, segments, small, segments, large, large, large, large, large))
	fuzz.Add(f, slices.Concat([]byte{0xff, 0xf0, 0x01, 0}, small, large, small))
	fuzz.Add(f, slices.Concat([]byte{0xff, 0xf0, 0x01, 0}, seeds[6], large, small, segments))
	fuzz.Add(f, slices.Concat([]byte{0xff, 0xf0, 0x2d, 0x55}, small, large, small, segments, small, large, segments, small, large, large, segments))
	fuzz.Add(f, slices.Concat([]byte{0xff, 0xf0, 0x0d, 0}, slices.Concat(slices.Repeat([][]byte{segments}, 12)...)))
	fuzz.Add(f, slices.Concat([]byte{0xff, 0xf0, 0x0c, 0xff}, short, segments, seeds[5], seeds[2], seeds[3]))
	fuzz.Add(f, slices.Concat([]byte{0xff, 0xf0, 0x6d, 0x0f}, short, segments, large))
	fuzz.Add(f, slices.Concat([]byte{5, 0xdc, 0x81, 0xff}, seeds[0], seeds[3], seeds[13]))
	fuzz.Add(f, slices.Concat([]byte{5, 0xdc, 0x01, 0xff}, seeds[13], seeds[0], seeds[6], seeds[11], seeds[12]))
	fuzz.Add(f, slices.Concat([]byte{0, 60, 0x0f, 3}, seeds[0], seeds[5]))
	fuzz.Add(f, slices.Concat([]byte{5, 0xdc, 0x2f, 3}, seeds[12], seeds[0], seeds[5]))
	fuzz.Add(f, slices.Concat([]byte{0xff, 0xff, 0x4f, 0}, seeds[7], seeds[13], seeds[12], seeds[7]))
	for _, b := range seeds {
		fuzz.Add(f, slices.Concat([]byte{5, 0xdc, 0x1f, 0}, b))
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		s := &fuzz.Source{B: b}
		mtu, mode, reads := int(s.Uint16()), s.Byte(), s.Byte()
		buffer := 0
		if mode&1 != 0 {
			buffer = 4608
		}
		l, peer, done := pair(t, mtu, buffer)
		defer done()
		var wire []byte
		var want []recorded
		for i := 0; i < 12 && len(s.B) > 0; i++ {
			frame, built := takeSuper(s)
			all := expectSent(frame, mtu, built)
			for range 1 + mode>>2&3 {
				before := *l.Counters()
				waited := l.WantWrite()
				ok := l.Send(&frame.o, frame.headers, frame.payload)
				after := *l.Counters()
				if ok != (after.Refused == before.Refused && after.Dropped == before.Dropped) || l.CanSend() == l.WantWrite() {
					t.Fatalf("taken %v, waited %v, %+v, then %+v", ok, waited, before, after)
				}
				want = append(want, all[:after.Sent-before.Sent]...)
			}
			if reads>>(i%8)&1 == 0 {
				continue
			}
			if err := l.Flush(); err != nil {
				t.Fatal(err)
			}
			if mode&0x20 == 0 || i%3 == 2 {
				wire = append(wire, peerRead(t, peer, 1<<20)...)
				l.Writable()
			}
		}
		if mode&0x40 != 0 {
			checkGone(t, l, peer)
			return
		}
		for err := l.Flush(); err == nil; l.Writable() {
			b := peerRead(t, peer, 1<<20)
			wire = append(wire, b...)
			if len(b) == 0 && !l.WantWrite() {
				break
			}
		}
		frames, rest := unframe(t, wire)
		if len(rest) != 0 || len(frames) != len(want) {
			t.Fatalf("%d frames and %d bytes, %+v", len(frames), len(rest), *l.Counters())
		}
		for i, w := range want {
			got := frames[i]
			if len(got) != max(w.size, minWire) || !bytes.HasSuffix(got[:w.size], w.tail) || w.valid && fuzz.CheckFrame(got) != nil {
				t.Fatalf("frame %d of %d is not what was sent: %v\n%x", i, len(want), fuzz.CheckFrame(got), got)
			}
		}
	})
}

// expectSent are the frames that may leave for one that is sent.
func expectSent(f *super, mtu int, built bool) (all []recorded) {
	var c cutter
	if f.o.GSOType == packet.GSONone {
		whole := append(bytes.Clone(f.headers), f.payload...)
		valid := built && len(whole) <= MaxFrame
		return []recorded{{len(whole), whole[min(f.headersEnd(), len(whole)):], valid}}
	}
	if !c.start(&f.o, f.headers, f.payload, mtu) {
		return nil
	}
	for c.more() {
		head := make([]byte, packet.MaxHeaders)
		p := c.next(head)
		all = append(all, recorded{c.hlen + len(p), p, built})
	}
	return all
}

// checkGone closes the peer: the link tells, and sends no more.
func checkGone(t *testing.T, l *stream, peer int) {
	t.Helper()
	unix.Shutdown(peer, unix.SHUT_RDWR)
	frame := random(60)
	l.Send(nil, frame, nil)
	l.Flush()
	l.Writable()
	if l.Send(nil, frame, nil) || l.Flush() == nil || l.CanSend() || l.WantWrite() || l.Writable() {
		t.Fatal("sends to a peer that is gone")
	}
	if _, err := l.Receive(NewBatch()); !errors.Is(err, ErrClosed) {
		t.Fatal(err)
	}
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	l.Close()
	next := NextStream(l, int32(fds[0]), 1500) // in l's place, which the caller closes
	defer unix.Close(fds[1])
	if !next.CanSend() || !next.Send(nil, frame, nil) || next.Flush() != nil || next.FD() != int32(fds[0]) || next.Counters().Sent != 1 {
		t.Fatal("the next client's link does not send")
	}
	if got := peerRead(t, fds[1], 100); !bytes.Equal(got, framed(frame)) {
		t.Fatalf("%x", got)
	}
}

// checkProgress verifies what differs between segments: identification, sequence
// number, and flags that belong to the first or the last alone.
func checkProgress(t *testing.T, f *super, frame []byte, l4, offset, index int, last bool) {
	t.Helper()
	word := func(b []byte, at int) uint16 { return binary.BigEndian.Uint16(b[at:]) }
	if frame[12] == 8 && word(frame, 18) != word(f.headers, 18)+uint16(index) {
		t.Fatalf("segment %d: identification %#x, the first's %#x", index, word(frame, 18), word(f.headers, 18))
	}
	if f.o.CsumOffset != tcpChecksum {
		return
	}
	seq := func(b []byte) uint32 { return binary.BigEndian.Uint32(b[l4+4:]) }
	want := f.headers[l4+13]
	if index > 0 {
		want &^= packet.CWR
	}
	if !last {
		want &^= packet.FIN | packet.PSH
	}
	if seq(frame) != seq(f.headers)+uint32(offset) || frame[l4+13] != want {
		t.Fatalf("segment %d: sequence number %#x, flags %#x, want %#x", index, seq(frame), frame[l4+13], want)
	}
}

// checkSend sends the input by a stream and reads what arrives.
func checkSend(t *testing.T, f *super, mtu int, built bool) {
	t.Helper()
	s, peer, done := pair(t, mtu, 0)
	defer done()
	taken := s.Send(&f.o, f.headers, f.payload)
	var wire []byte
	for err := s.Flush(); err == nil; s.Writable() {
		b := peerRead(t, peer, 1<<20)
		wire = append(wire, b...)
		if len(b) == 0 && !s.WantWrite() {
			break
		}
	}
	frames, rest := unframe(t, wire)
	c := s.Counters()
	if len(rest) != 0 || uint64(len(frames)) != c.Sent || c.Sent+c.Refused+c.Dropped == 0 || taken != (c.Refused+c.Dropped == 0) {
		t.Fatalf("taken %v, %d frames and %d bytes, %+v", taken, len(frames), len(rest), *c)
	}
	for _, frame := range frames {
		if !built || f.o.GSOType == packet.GSONone && len(f.payload) == 0 {
			continue // may be what no builder of ours makes
		}
		if err := fuzz.CheckFrame(frame); err != nil {
			t.Fatalf("%v\n%x", err, frame)
		}
	}
}
