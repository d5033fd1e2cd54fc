// SPDX-License-Identifier: Apache-2.0

package link

import (
	"encoding/binary"

	"golang.org/x/sys/unix"

	"aldente/worker/packet"
)

const (
	prefixLen = 4 // big-endian length before each frame

	// queueSize bounds what waits for a peer that does not read. It holds
	// what a super-frame becomes at the least MSS, 48 bytes, with the longest
	// headers (886 KiB), together with what may be gathered. Memory is touched
	// only as far as it is used.
	queueSize = 1 << 20
	// flushAt is how much is gathered before it is written: a super-frame of
	// 64 KiB with the headers of all its segments, and more behind it.
	flushAt = 80 << 10
	// copyMax is the largest frame or super-frame that is gathered. What is
	// longer is written at once from where it lies: a system call costs about
	// as much as copying this many bytes.
	copyMax = 8 << 10
	// copySegment is the largest segment of a super-frame that is gathered
	// nevertheless: the kernel's work for two more vectors costs as much as
	// copying this many bytes.
	copySegment = 2 << 10
	// maxSegments is what longer ones can become.
	maxSegments = maxPayload/(copySegment+1) + 1
	// bulky is a read after which there is likely more by the time that it has
	// been dealt with: a writer with a short buffer is woken by each read.
	bulky = 64 << 10
	// minRoom is the least room for a read before the beginning of a frame
	// is moved to the front of the batch.
	minRoom = 128 << 10
)

// stream is QEMU's -netdev stream or socket over a UNIX stream socket: frames
// behind their lengths, without offload metadata. Nor has it any where the sender's
// guest uses offloads all the same, as libkrun's does: see packet.OffloadUntold.
//
// While the kernel takes everything, small frames and segments are gathered in
// queue, until there are enough for a call or the batch ends. Large ones are
// written from the caller's memory, with their headers from scratch. Once the
// kernel does not (blocked), what it refused goes to queue and all that follows
// goes behind it, as long as it fits.
type stream struct {
	fd       int32
	mtu      int
	blocked  bool
	err      error // once set, nothing is read or written any more
	counters Counters
	none     packet.Offload

	rest    []byte // received and not passed on yet; lies in the batch
	drained bool   // the last read took all there was
	bulky   bool   // and that was much

	backlog
	cut     cutter
	scratch []byte // prefixes and headers that iov points to
	used    int
	vecs    int // vectors of iov in use; iov[0] is for queue
	iov     [1 + 2*maxSegments]unix.Iovec
}

// NewStream returns the link of a connected UNIX stream socket. mtu is that of
// the guest's interface, in bytes of IP packet; TCP super-frames are cut to it.
func NewStream(fd int32, mtu int) Link {
	return &stream{
		fd:      fd,
		mtu:     mtu,
		backlog: newBacklog(),
		scratch: make([]byte, maxSegments*(prefixLen+packet.MaxHeaders)),
		vecs:    1,
	}
}

// NextStream is NewStream in the memory of a stream that was closed: clients
// come and go, and none is to cost more than the first.
func NextStream(last Link, fd int32, mtu int) Link {
	s, ok := last.(*stream)
	if !ok {
		return NewStream(fd, mtu)
	}
	*s = stream{fd: fd, mtu: mtu, backlog: s.emptied(), scratch: s.scratch, vecs: 1}
	return s
}

func (s *stream) FD() int32           { return s.fd }
func (s *stream) CanSend() bool       { return !s.blocked && s.err == nil }
func (s *stream) WantWrite() bool     { return s.blocked && s.err == nil }
func (s *stream) Counters() *Counters { return &s.counters }

func (s *stream) Close() {
	if s.err == nil {
		s.err = ErrClosed
	}
	closeFD(s.fd)
}

// Receive passes on what the last read left, or reads again.
func (s *stream) Receive(b *Batch) (more bool, err error) {
	b.reset()
	if s.err != nil {
		return false, s.err
	}
	if !s.parse(b) {
		return false, s.err
	}
	if len(b.Frames) == 0 {
		room := s.room(b)
		n, e := read(s.fd, room)
		switch {
		case e == unix.EAGAIN:
			return false, nil
		case e != 0 || n == 0: // end of file, or reset with data unread
			s.err = ended(e)
			return false, s.err
		}
		s.rest = s.rest[:len(s.rest)+n]
		s.drained, s.bulky = n < len(room), n >= bulky
		if !s.parse(b) {
			return false, s.err
		}
	}
	return b.full() || !s.drained || s.bulky, nil
}

// room is the memory behind what was received so far. Only when that runs out
// is the beginning of a frame moved to the front.
func (s *stream) room(b *Batch) []byte {
	if len(s.rest) == 0 || cap(s.rest)-len(s.rest) < minRoom {
		s.rest = b.buf[:copy(b.buf, s.rest)]
	}
	return s.rest[len(s.rest):cap(s.rest)]
}

// parse moves whole frames from rest to the batch. It reports false if there
// is something that cannot be a frame.
func (s *stream) parse(b *Batch) bool {
	for len(s.rest) >= prefixLen && !b.full() {
		n := binary.BigEndian.Uint32(s.rest)
		if n < MinFrame || n > maxReceived {
			s.err = ErrLength
			s.counters.Malformed++
			return false
		}
		end := prefixLen + int(n)
		if len(s.rest) < end {
			break
		}
		b.add(s.rest[prefixLen:end:end]).Offload.Flags = packet.OffloadUntold
		s.rest = s.rest[end:]
		s.counters.Received++
		s.counters.ReceivedBytes += uint64(n)
	}
	return true
}

// Send gathers small frames and writes large ones.
func (s *stream) Send(o *packet.Offload, headers, payload []byte) bool {
	if s.err != nil {
		s.counters.Dropped++
		return false
	}
	if o == nil {
		o = &s.none
	}
	if o.GSOType != packet.GSONone {
		return s.sendSuper(o, headers, payload)
	}
	size := len(headers) + len(payload)
	if size < MinFrame || size > MaxFrame {
		s.counters.Refused++
		return false
	}
	if s.blocked || size <= copyMax || len(headers) > packet.MaxHeaders {
		return s.gather(o, headers, payload)
	}
	slot := s.slot(len(headers), size)
	copy(slot, headers)
	if !complete(slot, payload, o) {
		s.counters.Refused++
		s.forget()
		return false
	}
	s.vector(payload)
	s.counters.Sent++
	s.counters.SentBytes += uint64(size)
	return s.push()
}

// sendSuper cuts a super-frame. Whole segments are sent or dropped; when the
// peer does not read, either all of them fit the queue or none is sent.
func (s *stream) sendSuper(o *packet.Offload, headers, payload []byte) bool {
	c := &s.cut
	if !c.start(o, headers, payload, s.mtu) {
		s.counters.Refused++
		return false
	}
	size := c.wireSize(prefixLen)
	if s.blocked && size > queueSize-(s.tail-s.head) {
		s.counters.Dropped += uint64(c.segments())
		return false
	}
	if s.blocked || size <= copyMax || c.size <= copySegment {
		for c.more() {
			if !s.gatherSegment() {
				return false
			}
		}
		return true
	}
	for c.more() {
		s.vectorSegment()
	}
	return s.push()
}

// vectorSegment adds the next segment to what push writes.
func (s *stream) vectorSegment() {
	c := &s.cut
	size := c.hlen + min(c.size, len(c.payload))
	slot := s.slot(c.hlen, size)
	payload := c.next(slot)
	s.counters.Sent++
	s.counters.SentBytes += uint64(size)
	if size < minWire { // only the last one, and there is room for it
		v := &s.iov[s.vecs-1]
		v.SetLen(prefixLen + minWire)
		s.used += minWire - c.hlen
		frame := bytesOf(v)[prefixLen:]
		clear(frame[c.hlen+copy(frame[c.hlen:], payload):])
		return
	}
	s.vector(payload)
}

// slot takes room in scratch for the prefix and hlen bytes of headers of a
// frame of size bytes, points the next vector there and returns the headers.
func (s *stream) slot(hlen, size int) []byte {
	b := s.scratch[s.used : s.used+prefixLen+hlen]
	s.used += len(b)
	binary.BigEndian.PutUint32(b, uint32(max(size, minWire)))
	s.vector(b)
	return b[prefixLen:]
}

func (s *stream) vector(b []byte) {
	iovec(&s.iov[s.vecs], b)
	s.vecs++
}

// forget drops what was prepared for push.
func (s *stream) forget() { s.vecs, s.used = 1, 0 }

// push writes what is gathered and the vectors, in this order. What the
// kernel does not take is kept. It reports false if the peer is gone.
func (s *stream) push() bool {
	vecs := s.iov[1:s.vecs]
	s.forget()
	all := vecs
	queued := s.tail - s.head
	if queued > 0 {
		iovec(&s.iov[0], s.queue[s.head:s.tail])
		all = s.iov[:1+len(vecs)]
	}
	n, e := writev(s.fd, all)
	if !s.goesOn(e) {
		return false
	}
	if n < queued {
		s.head += n
		n = 0
	} else {
		s.head, s.tail = 0, 0
		n -= queued
	}
	for i := range vecs {
		b := bytesOf(&vecs[i])
		taken := min(n, len(b))
		n -= taken
		copy(s.reserve(len(b)-taken), b[taken:])
	}
	s.blocked = s.tail > s.head
	return true
}

// goesOn tells whether the peer is still there after a write that ended with
// e.
func (s *stream) goesOn(e unix.Errno) bool {
	switch e {
	case 0, unix.EAGAIN, unix.ENOBUFS, unix.ENOMEM:
		return true
	}
	s.err = ended(e)
	s.forget()
	s.head, s.tail = 0, 0
	return false
}
