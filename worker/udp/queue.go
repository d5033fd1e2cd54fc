// SPDX-License-Identifier: Apache-2.0

package udp

import "aldente/worker/store"

// Bounds on what waits for sockets, in chunks: of one flow, and of all as a
// part of the pool.
const (
	maxQueue      = 16
	queuePoolPart = 4
)

// recordHead is what precedes each datagram in a queue: length, TTL and
// traffic class.
const recordHead = 4

// queue holds the guest's datagrams, in a list of chunks, while the socket is
// on its way.
type queue struct {
	head, tail uint32 // chunks
	chunks     uint16
	get, put   uint16 // offsets into the first and the last chunk
	count      uint16 // datagrams
}

// enqueue adds one datagram. It reports false if there is no room.
func (t *Translator) enqueue(c *conn, data []byte, ttl, tos uint8) bool {
	q := &c.queue
	need := recordHead + len(data)
	room := 0
	if q.chunks > 0 {
		room = store.ChunkSize - int(q.put)
	}
	for ; room < need; room += store.ChunkSize {
		if !t.extend(q) {
			return false // what was added is used by the next that fits
		}
	}
	// The chunk that put refers to is the first one with room, which extend
	// leaves in place.
	head := [recordHead]byte{byte(len(data) >> 8), byte(len(data)), ttl, tos}
	t.store(q, head[:])
	t.store(q, data)
	q.count++
	return true
}

// extend appends a chunk to the list. tail stays at the chunk that is written
// to; the new one is reached from there.
func (t *Translator) extend(q *queue) bool {
	if q.chunks == maxQueue || t.queued >= t.pool.Len()/queuePoolPart {
		return false
	}
	n := t.pool.Get()
	if n == store.None {
		return false
	}
	t.queued++
	q.chunks++
	if q.head == store.None {
		q.head, q.tail, q.put = n, n, 0
		return true
	}
	last := q.tail
	for t.pool.Next(last) != store.None {
		last = t.pool.Next(last)
	}
	t.pool.SetNext(last, n)
	return true
}

// store writes b at the end of the queue, whose chunks have room for it.
func (t *Translator) store(q *queue, b []byte) {
	for len(b) > 0 {
		if q.put == store.ChunkSize {
			q.tail, q.put = t.pool.Next(q.tail), 0
		}
		n := copy(t.pool.Bytes(q.tail)[q.put:], b)
		q.put += uint16(n)
		b = b[n:]
	}
}

// load reads into b from the front of the queue.
func (t *Translator) load(q *queue, b []byte) {
	for len(b) > 0 {
		part := t.take(q, len(b))
		copy(b, part)
		b = b[len(part):]
	}
}

// take returns up to n bytes from the front of the queue, as many as are in
// one chunk. They stay there until the chunk is given back by dropQueue.
func (t *Translator) take(q *queue, n int) []byte {
	if q.get == store.ChunkSize {
		q.head, q.get = t.dropChunk(q), 0
	}
	part := t.pool.Bytes(q.head)[q.get:]
	part = part[:min(n, len(part))]
	q.get += uint16(len(part))
	return part
}

// next takes one datagram from the front, in pieces that are valid until the
// next call of any function here.
func (t *Translator) next(q *queue) (bufs [][]byte, ttl, tos uint8) {
	var head [recordHead]byte
	t.load(q, head[:])
	n := int(head[0])<<8 | int(head[1])
	bufs = t.vec[:0]
	for n > 0 {
		part := t.take(q, n)
		bufs = append(bufs, part)
		n -= len(part)
	}
	q.count--
	return bufs, head[2], head[3]
}

// dropChunk gives the first chunk back and returns the one behind it. Its
// memory stays readable until somebody gets the chunk: nobody does while a
// datagram is being sent.
func (t *Translator) dropChunk(q *queue) uint32 {
	n := t.pool.Next(q.head)
	t.pool.Put(q.head)
	t.queued--
	q.chunks--
	return n
}

// dropQueue gives all chunks back.
func (t *Translator) dropQueue(c *conn) {
	q := &c.queue
	for q.chunks > 0 {
		q.head = t.dropChunk(q)
	}
	*q = queue{head: store.None, tail: store.None}
}
