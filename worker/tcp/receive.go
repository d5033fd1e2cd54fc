// SPDX-License-Identifier: Apache-2.0

package tcp

import (
	"syscall"

	"aldente/worker/flow"
	"aldente/worker/packet"
	"aldente/worker/store"
)

// From the guest to the host. Windows are granted against chunks set aside in
// the pool, so what arrives inside a window always has a place. How much the
// socket would take is not asked: it takes what it can, the rest waits here,
// and the window follows what it took.

const (
	firstReserve = 5 // chunks for a new flow: a window of 64 KiB
	minReserve   = 2 // chunks for a new flow when the pool is half gone: 16 KiB

	roundingSlack = 256 // bytes by which the window may exceed its limit
)

// chunksLeft is how many chunks no window has a claim on.
func (t *Translator) chunksLeft() int { return t.pool.Len() - t.reserved }

func (t *Translator) reserveFirst(c *conn) {
	n := firstReserve
	if t.chunksLeft() < max(t.pool.Len()/2, n) {
		n = minReserve
	}
	c.reserved = uint16(n)
	t.reserved += n
}

// grow gives a flow that fills its window a larger one, while there is plenty.
func (t *Translator) grow(c *conn) {
	if c.taken < 2*c.windowLimit() || c.reserved >= t.mostReserve {
		return
	}
	more := min(int(c.reserved)-1, int(t.mostReserve-c.reserved))
	if t.chunksLeft()-more < t.pool.Len()/4 {
		return
	}
	c.reserved += uint16(more)
	t.reserved += more
	c.taken = 0
}

// windowLimit is the window that the chunks of c can hold: the first of them
// may be used up to its last byte, and rounding to the window scale may add
// up to roundingSlack.
func (c *conn) windowLimit() uint32 {
	return min(uint32(c.reserved-1)*store.ChunkSize-roundingSlack, 65535<<c.rcvScale)
}

// step is the least by which a small window grows, so that the guest is not
// made to send small segments (RFC 9293 section 3.8.6.2.2).
func (c *conn) step() uint32 { return max(min(2*uint32(c.mss), c.windowLimit()/2), c.windowLimit()/4) }

// advertise moves the window's right edge as far as chunks allow and returns
// the window field.
func (t *Translator) advertise(c *conn) uint16 {
	edge := c.hostSeq + c.windowLimit()
	if now := c.rcvEdge - c.rcvNxt; before(edge, c.rcvEdge) || now < c.step() && edge-c.rcvEdge < c.step() {
		edge = c.rcvEdge
	}
	wnd := uint32(0)
	if after(edge, c.rcvNxt) {
		wnd = edge - c.rcvNxt
	}
	// Rounded up, so that the edge does not move left; down where one
	// rounding after the other would lead beyond the chunks. Bytes up to
	// rcvEdge are taken even then.
	field := min((wnd+1<<c.rcvScale-1)>>c.rcvScale, 65535)
	if after(c.rcvNxt+field<<c.rcvScale, c.hostSeq+c.windowLimit()+roundingSlack) {
		field = wnd >> c.rcvScale
	}
	c.rcvEdge = later(c.rcvEdge, c.rcvNxt+field<<c.rcvScale)
	return uint16(field)
}

// windowUpdate tells the guest that there is room again, if it was short of it
// and would not hear otherwise.
func (t *Translator) windowUpdate(i uint32, c *conn) {
	edge := c.hostSeq + c.windowLimit()
	if !c.has(flagGuestFIN) && c.rcvEdge-c.rcvNxt < c.windowLimit()/2 && after(edge, c.rcvEdge) && edge-c.rcvEdge >= c.step() {
		t.sendAck(i, c)
	}
}

// data takes the payload and FIN of an acceptable segment, unless its
// acknowledgment was the last that was waited for.
func (t *Translator) data(i uint32, c *conn, s *packet.TCP) {
	if c.over() {
		return
	}
	t.touch(i, c)
	seq, n, fin := s.Seq, s.Len(), s.Flags&packet.FIN != 0
	if seq == c.rcvNxt && (fin && c.mayDelayFIN(n) || !fin && (c.mayDelay(n) || c.mayGather(n))) {
		c.set(flagAckLater)
	} else {
		c.set(flagAckNow)
	}
	c.noteQuery(n, t.env.Now())
	if c.has(flagGuestFIN) {
		return // a FIN seen again; nothing may follow it
	}
	old := 0
	if before(seq, c.rcvNxt) {
		if old = int(c.rcvNxt - seq); old > n {
			return
		}
		seq, n = c.rcvNxt, n-old
	}
	if room := c.rcvEdge - seq; uint32(n) > room {
		t.Stats.OutOfWindow++
		n, fin = int(room), false
	}
	if seq != c.rcvNxt {
		if t.batch.of(i) {
			t.writeBatch()
		}
		if fin {
			c.set(flagEarlyFIN)
			c.earlyFIN = seq + uint32(n)
		}
		t.Stats.OutOfOrder++
		t.payload(i, c, s, seq, old, n)
		t.sendAck(i, c) // at once and each time, RFC 5681 section 4.2
		return
	}
	t.payload(i, c, s, seq, old, n)
	if fin || c.has(flagEarlyFIN) && c.earlyFIN == c.rcvNxt {
		c.set(flagGuestFIN)
		c.rcvNxt++
		if !t.batch.of(i) {
			t.finishWrite(i, c)
		}
	}
}

// payload takes n bytes of a segment's payload, behind the first old ones, which
// begin at seq, wherever they lie.
func (t *Translator) payload(i uint32, c *conn, s *packet.TCP, seq uint32, old, n int) {
	inOrder := seq == c.rcvNxt
	for k, b := 0, s.Payload; ; k++ {
		skip := min(old, len(b))
		old -= skip
		b = b[skip:min(len(b), skip+n)]
		n -= len(b)
		at := seq
		seq += uint32(len(b))
		if inOrder && before(at, c.rcvNxt) { // what came early was found to follow
			b = b[min(int(c.rcvNxt-at), len(b)):]
		}
		switch {
		case len(b) == 0:
		case inOrder:
			t.inOrder(i, c, b)
		case !t.early(i, c, at, b):
			return
		}
		if n == 0 || k == len(s.More) {
			return
		}
		b = s.More[k]
	}
}

// inOrder takes bytes at rcvNxt: to the batch for the socket if nothing is
// before them, else behind what waits.
func (t *Translator) inOrder(i uint32, c *conn, b []byte) {
	if t.batch.of(i) && t.batch.full() {
		t.writeBatch()
	}
	if c.over() {
		return
	}
	if c.qHead == store.None && c.has(flagWritable) {
		if !t.batch.of(i) {
			t.writeBatch()
		}
		c.rcvNxt += uint32(len(b))
		t.batch.add(i, b)
		return
	}
	if t.batch.of(i) {
		t.writeBatch()
	}
	if !t.store(c, c.rcvNxt, b) {
		t.noChunk(i, c)
		return
	}
	c.rcvNxt += uint32(len(b))
	if c.held != 0 {
		set := &t.sets[c.held-1]
		c.rcvNxt = set.advance(c.rcvNxt)
		if set.n == 0 {
			t.putSet(&c.held)
		}
	}
	t.drain(i, c)
}

// early keeps what came before its turn. It is acknowledged at once and, with
// SACK, reported; so only what finds no place in the set of ranges is sent
// again (RFC 9293 section 3.10.7.4, RFC 2018): then it reports false.
// Preconditions: what came before it in the batch is written.
func (t *Translator) early(i uint32, c *conn, seq uint32, b []byte) bool {
	set := t.getSet(&c.held)
	if set == nil || !set.add(seq, seq+uint32(len(b))) {
		t.Stats.Dropped++
		return false
	}
	if !t.store(c, seq, b) {
		t.noChunk(i, c)
		return false
	}
	return true
}

// noChunk cannot happen while windows are granted against chunks set aside.
// Should it, the guest hears of it: a reset loses no byte silently.
func (t *Translator) noChunk(i uint32, c *conn) {
	t.Stats.NoMemory++
	t.sendRST(i, c)
	t.abort(i, c)
}

// writeBatch gives the batch to its socket and keeps what the socket does not
// take.
func (t *Translator) writeBatch() {
	b := &t.batch
	if b.empty() {
		return
	}
	i := b.flow
	c := t.flows.At(i)
	n, e := b.write(t.env, c.fd)
	if e != 0 && e != syscall.EAGAIN {
		t.hostReset(i, c)
		return
	}
	if e != 0 {
		n = 0
	}
	t.took(c, n)
	if n < b.size {
		t.awaitRoom(i, c)
		t.keep(i, c, b.bufs, n)
	}
	b.reset()
	t.finishWrite(i, c)
}

// keep stores what is in bufs but for the first n bytes, which the socket has
// taken.
func (t *Translator) keep(i uint32, c *conn, bufs [][]byte, n int) {
	seq := c.hostSeq
	for _, b := range bufs {
		if n >= len(b) {
			n -= len(b)
			continue
		}
		b, n = b[n:], 0
		if !t.store(c, seq, b) {
			t.noChunk(i, c)
			return
		}
		seq += uint32(len(b))
	}
}

// took notes that the socket has taken n bytes.
func (t *Translator) took(c *conn, n int) {
	c.hostSeq += uint32(n)
	c.taken += uint32(n)
	c.Sent += uint64(n)
	if n > 0 && c.has(flagDetached) {
		c.seenAt = t.env.Now()
	}
	t.grow(c)
}

// drain gives the socket what waits for it, as far as it takes it.
func (t *Translator) drain(i uint32, c *conn) {
	if c.has(flagStaged) {
		t.copyOut(i, c)
		return
	}
	for !c.over() && c.queued() > 0 && c.has(flagWritable) {
		bufs, total := t.gather(c, c.hostSeq, int(c.queued()))
		n, e := t.env.Writev(c.fd, bufs)
		if e == syscall.EAGAIN {
			n, e = 0, 0
		}
		if e != 0 {
			t.hostReset(i, c)
			return
		}
		t.took(c, n)
		t.freeTaken(c)
		if n < total {
			t.awaitRoom(i, c)
		}
	}
	t.finishWrite(i, c)
}

// awaitRoom notes that the socket takes no more for now.
func (t *Translator) awaitRoom(i uint32, c *conn) {
	c.clear(flagWritable)
	if c.has(flagHeld) {
		return
	}
	if t.Held != nil && t.Held(t.token(i)) {
		c.set(flagHeld)
		return
	}
	if c.has(flagAwaitRoom) {
		return
	}
	c.set(flagAwaitRoom)
	if t.env.Rewatch(c.fd, t.token(i), flow.Readable|flow.Writable) != 0 {
		t.sendRST(i, c)
		t.abort(i, c)
	}
}

// finishWrite passes the guest's FIN on once all before it was taken.
func (t *Translator) finishWrite(i uint32, c *conn) {
	if c.has(flagStaged) {
		t.copyOut(i, c)
		return
	}
	if !c.over() && c.has(flagGuestFIN) && !c.has(flagShutdown) && c.queued() == 0 {
		c.set(flagShutdown)
		if !c.has(flagFINSent) || !after(c.sndUna, c.finSeq) { // else the socket is closed next, which says it too
			t.env.ShutdownWrite(c.fd)
		}
		t.finish(i, c)
	}
}

// gather lists the memory of what is queued from seq on, as far as it goes: left bytes
// at most.
func (t *Translator) gather(c *conn, seq uint32, left int) ([][]byte, int) {
	bufs := t.vec[:0]
	total := 0
	off, ch := int(seq-c.qBase), c.qHead
	for ; off >= store.ChunkSize; off -= store.ChunkSize {
		ch = t.pool.Next(ch)
	}
	for ; left > 0 && len(bufs) < cap(bufs); ch = t.pool.Next(ch) {
		n := min(left, store.ChunkSize-off)
		bufs = append(bufs, t.pool.Bytes(ch)[off:off+n])
		left -= n
		total += n
		off = 0
	}
	return bufs, total
}

// freeTaken gives back the chunks that the socket has taken whole, and all of
// them when nothing waits any more.
func (t *Translator) freeTaken(c *conn) {
	if c.queued() == 0 && c.held == 0 {
		t.dropQueue(c)
		return
	}
	for c.qHead != store.None && c.hostSeq-c.qBase >= store.ChunkSize {
		ch := c.qHead
		c.qHead = t.pool.Next(ch)
		c.qBase += store.ChunkSize
		t.pool.Put(ch)
	}
	if c.qHead == store.None {
		c.qTail = store.None
	}
}

func (t *Translator) dropQueue(c *conn) {
	for ch := c.qHead; ch != store.None; {
		next := t.pool.Next(ch)
		t.pool.Put(ch)
		ch = next
	}
	c.qHead, c.qTail = store.None, store.None
}

// store copies b to its place, counted from hostSeq, in the flow's chunks.
func (t *Translator) store(c *conn, seq uint32, b []byte) bool {
	for len(b) > 0 {
		ch, off := t.chunkAt(c, seq)
		if ch == store.None {
			return false
		}
		n := copy(t.pool.Bytes(ch)[off:], b)
		b = b[n:]
		seq += uint32(n)
	}
	return true
}

// chunkAt finds or makes the chunk that holds seq.
func (t *Translator) chunkAt(c *conn, seq uint32) (ch uint32, off uint32) {
	if c.qHead == store.None {
		if ch = t.pool.Get(); ch == store.None {
			return
		}
		c.qHead, c.qTail = ch, ch
		c.qBase, c.qTailSeq = c.hostSeq, c.hostSeq
	}
	for seq-c.qTailSeq >= store.ChunkSize && atLeast(seq, c.qTailSeq) {
		if ch = t.pool.Get(); ch == store.None {
			return
		}
		t.pool.SetNext(c.qTail, ch)
		c.qTail = ch
		c.qTailSeq += store.ChunkSize
	}
	if atLeast(seq, c.qTailSeq) {
		return c.qTail, seq - c.qTailSeq
	}
	ch = c.qHead
	for off = seq - c.qBase; off >= store.ChunkSize; off -= store.ChunkSize {
		ch = t.pool.Next(ch)
	}
	return ch, off
}
