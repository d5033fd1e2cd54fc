// SPDX-License-Identifier: Apache-2.0

package link

import (
	"encoding/binary"

	"aldente/worker/packet"
)

// backlog is what waits for a peer that does not read, and what is gathered for it:
// frames behind their lengths.
type backlog struct {
	queue      []byte
	head, tail int // what waits is queue[head:tail]
}

func newBacklog() backlog { return backlog{queue: make([]byte, queueSize)} }

// emptied is the same memory, with nothing in it.
func (s *backlog) emptied() backlog { return backlog{queue: s.queue} }

// reserve extends the queue by n bytes and returns them, or nil if it has no
// room. While a stream is not blocked it always has: at most flushAt and a
// frame are gathered, and the vectors of one call are less than two frames.
func (s *backlog) reserve(n int) []byte {
	if s.tail+n > len(s.queue) {
		if s.tail-s.head+n > len(s.queue) {
			return nil
		}
		s.tail = copy(s.queue, s.queue[s.head:s.tail])
		s.head = 0
	}
	b := s.queue[s.tail : s.tail+n]
	s.tail += n
	return b
}

// frame takes room in the queue for a frame of size bytes, writes its length
// and padding and returns the rest. nil: there is no room. Either is counted.
func (s *backlog) frame(size int, c *Counters) []byte {
	padded := max(size, minWire)
	b := s.reserve(prefixLen + padded)
	if b == nil {
		c.Dropped++
		return nil
	}
	binary.BigEndian.PutUint32(b, uint32(padded))
	clear(b[prefixLen+size:])
	c.Sent++
	c.SentBytes += uint64(size)
	return b[prefixLen : prefixLen+size]
}

// gather queues one frame.
func (s *stream) gather(o *packet.Offload, headers, payload []byte) bool {
	if o.Flags&packet.OffloadNeedsChecksum != 0 &&
		int(o.CsumStart)+int(o.CsumOffset)+2 > len(headers) {
		s.counters.Refused++
		return false
	}
	b := s.frame(len(headers)+len(payload), &s.counters)
	if b == nil {
		return false
	}
	n := copy(b, headers)
	copy(b[n:], payload)
	complete(b[:n], b[n:], o)
	return s.full()
}

// gatherSegment queues the next segment. Without room for it, it drops those
// behind it as well.
func (s *stream) gatherSegment() bool {
	c := &s.cut
	b := s.frame(c.hlen+min(c.size, len(c.payload)), &s.counters)
	if b == nil {
		s.counters.Dropped += uint64(c.segments() - 1)
		return false
	}
	copy(b[c.hlen:], c.next(b))
	return s.full()
}

// full writes the queue if enough is gathered. It reports false if the peer is
// gone.
func (s *stream) full() bool {
	if !s.blocked && s.tail-s.head >= flushAt {
		s.drain()
	}
	return s.err == nil
}

// drain writes what is queued. It reports true if nothing is left.
func (s *stream) drain() bool {
	if s.tail > s.head {
		n, e := write(s.fd, s.queue[s.head:s.tail])
		if !s.goesOn(e) {
			return false
		}
		s.head += n
	}
	s.blocked = s.tail > s.head
	if !s.blocked {
		s.head, s.tail = 0, 0
	}
	return !s.blocked
}

// Flush writes what is gathered, unless the peer is known not to take it.
func (s *stream) Flush() error {
	if s.err == nil && !s.blocked {
		s.drain()
	}
	return s.err
}

// Writable goes on where the peer stopped reading.
func (s *stream) Writable() bool { return s.err == nil && s.drain() }
