// SPDX-License-Identifier: Apache-2.0

package bypass

import (
	"encoding/binary"

	"aldente/worker/flow"
	"aldente/worker/store"
)

// Bounds on what waits for sockets, in chunks: of one flow, and of all.
const (
	maxQueue  = 16
	maxQueued = 3072
)

// queueHead precedes each entry of a queue: its length and, where it is several
// datagrams joined, the size of one.
const queueHead = 4

// queue holds a peer's first datagrams, in a list of chunks, while the sockets
// are on their way.
type queue struct {
	head, tail uint32
	chunks     uint8
	get, put   uint16 // offsets into the first and the last chunk
	count      uint16 // entries
}

// enqueue adds a datagram, or drops it if there is no room.
func (t *Translator) enqueue(f *dflow, d *flow.Datagram) {
	q := &f.queue
	need := queueHead + d.N
	free := int(maxQueue-q.chunks) * store.ChunkSize
	if q.chunks > 0 {
		free += store.ChunkSize - int(q.put)
	}
	if d.Truncated || need > free || t.queued+need/store.ChunkSize+1 > maxQueued {
		t.Stats.Dropped++
		return
	}
	var head [queueHead]byte
	binary.NativeEndian.PutUint16(head[0:], uint16(d.N))
	binary.NativeEndian.PutUint16(head[2:], uint16(d.Segment))
	mark := *q
	if !t.store(q, head[:]) || !t.store(q, d.Buf[:d.N]) {
		q.put, q.tail = mark.put, mark.tail // chunks added stay in the list
		t.Stats.Dropped++
		return
	}
	q.count++
}

// store writes b at the end of the queue. It reports false if the pool is
// empty.
func (t *Translator) store(q *queue, b []byte) bool {
	for len(b) > 0 {
		if q.chunks == 0 || q.put == store.ChunkSize {
			if !t.grow(q) {
				return false
			}
		}
		n := copy(t.pool.Bytes(q.tail)[q.put:], b)
		q.put += uint16(n)
		b = b[n:]
	}
	return true
}

// grow moves the end of the queue to a chunk behind its last.
func (t *Translator) grow(q *queue) bool {
	if q.chunks > 0 {
		if next := t.pool.Next(q.tail); next != store.None {
			q.tail, q.put = next, 0
			return true
		}
	}
	c := t.pool.Get()
	if c == store.None {
		return false
	}
	t.queued++
	q.chunks++
	if q.chunks == 1 {
		q.head = c
	} else {
		t.pool.SetNext(q.tail, c)
	}
	q.tail, q.put = c, 0
	return true
}

// load reads n bytes from the front of the queue into b.
func (t *Translator) load(q *queue, b []byte) {
	for len(b) > 0 {
		if q.get == store.ChunkSize {
			t.dropChunk(q)
		}
		n := copy(b, t.pool.Bytes(q.head)[q.get:])
		q.get += uint16(n)
		b = b[n:]
	}
}

func (t *Translator) dropChunk(q *queue) {
	next := t.pool.Next(q.head)
	t.pool.Put(q.head)
	t.queued--
	q.chunks--
	q.head, q.get = next, 0
}

func (t *Translator) dropQueue(q *queue) {
	for q.chunks > 0 {
		t.dropChunk(q)
	}
	*q = queue{head: store.None, tail: store.None}
}

// sendQueue forwards what has waited for the sockets. It must not be called
// from within forward, whose buffers it uses.
func (t *Translator) sendQueue(f *dflow) {
	q := &f.queue
	for ; q.count > 0; q.count-- {
		var head [queueHead]byte
		t.load(q, head[:])
		d := &t.read[0]
		d.N = int(binary.NativeEndian.Uint16(head[0:]))
		d.Segment = int(binary.NativeEndian.Uint16(head[2:]))
		d.Truncated = false
		t.load(q, d.Buf[:d.N])
		t.forward(f, far, t.read[:1])
	}
	t.dropQueue(q)
}
