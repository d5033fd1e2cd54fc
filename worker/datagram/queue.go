// SPDX-License-Identifier: Apache-2.0

package datagram

import (
	"encoding/binary"

	"aldente/worker/packet"
	"aldente/worker/store"
)

// MaxQueue bounds what waits for one socket, in chunks of a pool.
const MaxQueue = 16

// queueHead precedes each entry of a queue: its length and its Mark.
const queueHead = 7

// Queues holds datagrams that wait for sockets. Nothing is allocated after
// NewQueues.
type Queues struct {
	pool       *store.Pool
	used, most int // chunks
}

// NewQueues makes queues that take up to most chunks of pool, together.
func NewQueues(pool *store.Pool, most int) Queues { return Queues{pool: pool, most: most} }

// Used is how many chunks all queues hold.
func (s *Queues) Used() int { return s.used }

// Mark is what goes with a datagram that waits.
type Mark struct {
	// Segment is the size in bytes of each of several datagrams that were joined,
	// the last of which may be shorter; zero: it is one.
	Segment uint16
	// TTL and Class are time to live and traffic class of the packet.
	TTL, Class uint8
	// DF: nobody may cut it on its way.
	DF bool
}

// MarkOf is the mark of a datagram that a packet holds.
func MarkOf(p *packet.Packet) Mark { return Mark{TTL: p.TTL, Class: p.TrafficClass, DF: p.DF} }

// Goes tells whether a datagram of size bytes with mark o may leave as one with m.
func (m *Mark) Goes(o *Mark, size int) bool {
	return m.TTL == o.TTL && m.Class == o.Class && (m.DF == o.DF || size <= alwaysWhole4)
}

// Queue is what waits for one socket, in order: a list of chunks. Its zero value
// is empty. It holds no pointers.
type Queue struct {
	head, tail uint32 // chunks that are read and written, if there are any
	chunks     uint16 // of the list
	spare      uint16 // of those, behind tail
	get, put   uint16 // offsets into head and tail
	count      uint16
}

// Len is the number of entries, Chunks that of chunks held.
func (q *Queue) Len() int { return int(q.count) }

// Chunks is the number of chunks held.
func (q *Queue) Chunks() int { return int(q.chunks) }

// Bytes is what the entries hold.
func (q *Queue) Bytes() int {
	if q.count == 0 {
		return 0
	}
	return int(q.chunks-1-q.spare)*store.ChunkSize + int(q.put) - int(q.get) - int(q.count)*queueHead
}

// Add puts a datagram, of up to 65,535 bytes, at the end of a queue. It reports
// false if there is no room: then nothing is added.
func (s *Queues) Add(q *Queue, data []byte, m Mark) bool {
	room := int(q.spare) * store.ChunkSize
	if q.chunks > 0 {
		room += store.ChunkSize - int(q.put)
	}
	for need := queueHead + len(data); room < need; room += store.ChunkSize {
		if !s.extend(q) {
			return false // what was got is for the next that fits
		}
	}
	var head [queueHead]byte
	binary.NativeEndian.PutUint16(head[0:], uint16(len(data)))
	binary.NativeEndian.PutUint16(head[2:], m.Segment)
	head[4], head[5] = m.TTL, m.Class
	if m.DF {
		head[6] = 1
	}
	s.put(q, head[:])
	s.put(q, data)
	q.count++
	return true
}

// extend adds a chunk to the list, behind what is written to.
func (s *Queues) extend(q *Queue) bool {
	if q.chunks == MaxQueue || s.used >= s.most {
		return false
	}
	n := s.pool.Get()
	if n == store.None {
		return false
	}
	s.used++
	q.chunks++
	if q.chunks == 1 {
		q.head, q.tail, q.get, q.put = n, n, 0, 0
		return true
	}
	last := q.tail
	for range q.spare {
		last = s.pool.Next(last)
	}
	s.pool.SetNext(last, n)
	q.spare++
	return true
}

// put writes b at the end of a queue, whose chunks have room for it.
func (s *Queues) put(q *Queue, b []byte) {
	for len(b) > 0 {
		if q.put == store.ChunkSize {
			q.tail, q.put = s.pool.Next(q.tail), 0
			q.spare--
		}
		n := copy(s.pool.Bytes(q.tail)[q.put:], b)
		q.put += uint16(n)
		b = b[n:]
	}
}

// Next takes what waits for longest into b, which holds any datagram, and returns
// its length. Preconditions: there is one.
func (s *Queues) Next(q *Queue, b []byte) (n int, m Mark) {
	var head [queueHead]byte
	s.take(q, head[:])
	n = int(binary.NativeEndian.Uint16(head[0:]))
	m = Mark{binary.NativeEndian.Uint16(head[2:]), head[4], head[5], head[6] != 0}
	s.take(q, b[:n])
	q.count--
	return n, m
}

// Each calls f with each that waits, in order, in b, which holds any datagram. All of
// them stay.
func (s *Queues) Each(q *Queue, b []byte, f func(data []byte)) {
	at := *q
	for range q.count {
		var head [queueHead]byte
		s.look(&at, head[:])
		n := int(binary.NativeEndian.Uint16(head[0:]))
		s.look(&at, b[:n])
		f(b[:n])
	}
}

// look is take for a copy of a queue's head: no chunk is given back.
func (s *Queues) look(at *Queue, b []byte) {
	for len(b) > 0 {
		if at.get == store.ChunkSize {
			at.head, at.get = s.pool.Next(at.head), 0
		}
		n := copy(b, s.pool.Bytes(at.head)[at.get:])
		at.get += uint16(n)
		b = b[n:]
	}
}

// take reads from the front of a queue.
func (s *Queues) take(q *Queue, b []byte) {
	for len(b) > 0 {
		if q.get == store.ChunkSize {
			s.drop(q)
		}
		n := copy(b, s.pool.Bytes(q.head)[q.get:])
		q.get += uint16(n)
		b = b[n:]
	}
}

// drop gives the first chunk back.
func (s *Queues) drop(q *Queue) {
	n := s.pool.Next(q.head)
	s.pool.Put(q.head)
	s.used--
	q.chunks--
	q.head, q.get = n, 0
}

// Clear empties a queue and gives its chunks back.
func (s *Queues) Clear(q *Queue) {
	for q.chunks > 0 {
		s.drop(q)
	}
	*q = Queue{}
}
