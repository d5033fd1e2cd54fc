// SPDX-License-Identifier: Apache-2.0

package tcp

import "time"

// Who goes first to the guest. Whoever was sent little of late is served as its event
// comes. Flows of bulk are put into a queue, and wait for their turn there, once events have
// had them send some, or at once where somebody is known to say little beside them. So
// that one does not wait for bulk, however many flows of it there are. The idea is that of
// fq_codel's sparse flows, RFC 8290 section 4.2.

const (
	pushTurn = 8 // super-frames for one flow before others have a turn

	// Of bulk, a turn of the lane sends so many bytes. While somebody says little beside
	// it, turns are shorter: what it says next comes amid one. Short turns cost bulk some
	// per cent, so it has them only then.
	bulkTurn   = 512 << 10
	besideTurn = 192 << 10 // what events have sent, too, before bulk waits
	besideFor  = int64(10 * time.Millisecond)

	// heavy bytes sent make a flow one of bulk. light ones make one that may have to wait.
	// Of what was sent 1 KiB is forgotten in each 65 µs: 16 MB/s.
	heavy        = 128 << 10
	light        = 8 << 10
	loadUnit     = 16 // as a power of two, nanoseconds
	loadForgiven = 1 << 10
)

// sentOfLate is how many bytes were sent to the guest and are not forgotten.
func (c *conn) sentOfLate(now int64) uint32 {
	// Of a flow that was idle for days it may be too many.
	if gone := uint64(uint32(now>>loadUnit)-c.loadAt) * loadForgiven; gone < uint64(c.load) {
		return c.load - uint32(gone)
	}
	return 0
}

// noteSent counts n bytes that are sent to the guest.
func (t *Translator) noteSent(c *conn, n int) {
	now := t.env.Now()
	c.load, c.loadAt = min(c.sentOfLate(now)+uint32(n), 2*heavy), uint32(now>>loadUnit)
	t.pushed += n
	if n > 0 && c.load < light {
		t.Beside()
	}
}

// yields tells whether a flow waits for its turn.
func (t *Translator) yields(c *conn) bool {
	if t.polling {
		return false
	}
	n := c.sentOfLate(t.env.Now())
	return n >= light && t.pushed >= besideTurn || n >= heavy && t.isBeside()
}

// isBeside tells whether somebody is known to say little.
func (t *Translator) isBeside() bool { return t.env.Now()-t.besideAt < besideFor }

// Beside tells that somebody has little to say: for a while bulk waits, and turns are short.
func (t *Translator) Beside() { t.besideAt = t.env.Now() }

// mostTurn is how many bytes of bulk are sent in this turn.
func (t *Translator) mostTurn() int {
	if t.isBeside() {
		return besideTurn
	}
	return bulkTurn
}

// Pending tells whether Poll has work that no event will announce.
func (t *Translator) Pending() bool {
	return len(t.ready) > 0 && t.env.CanSend() || t.paused
}

// Poll goes on with flows that wait for their turn, in their order. What it sends is
// bounded: other traffic need not wait for long, however many flows are ready.
func (t *Translator) Poll() {
	if t.paused {
		t.acceptAll()
	}
	n, k := len(t.ready), 0
	t.polling, t.most = true, t.mostTurn()
	for t.pushed = 0; k < n && t.pushed < t.most && t.env.CanSend(); k++ {
		i := t.ready[k]
		c := t.flows.At(i)
		c.clear(flagReady)
		t.finishBatch(i, c)
	}
	t.ready = t.ready[:copy(t.ready, t.ready[k:])]
	t.pushed, t.polling = 0, false
}
