// SPDX-License-Identifier: Apache-2.0

package tcp

import "aldente/ipc"

// A flow ends in the middle of what is done for it: a write fails, and those who
// asked for it go on. So a flow that ends is marked, and no more: it is not found,
// nothing is said or written for it, and what it holds is freed at the end of the
// turn. Whoever has it in hand until then may touch it.

// end ends a flow on our side. What is in the socket's send buffer is still
// delivered.
func (t *Translator) end(i uint32, c *conn) {
	if c.state == stateEnded {
		return
	}
	c.ends(ipc.EndClosed)
	if t.batch.of(i) {
		t.batch.reset()
	}
	c.state = stateEnded
	t.flows.End(i)
	t.mark(i, c)
}

// ends notes how a flow has ended, unless that is known.
func (c *conn) ends(how ipc.How) {
	if c.how == 0 {
		c.how = how
	}
}

// abort ends a flow and resets the host's side.
func (t *Translator) abort(i uint32, c *conn) {
	if c.state == stateEnded {
		return
	}
	t.Stats.Reset++
	c.ends(ipc.EndReset)
	c.set(flagAbort)
	t.end(i, c)
}

// mark has Sweep look at a flow.
func (t *Translator) mark(i uint32, c *conn) {
	if !c.has(flagMarked) {
		c.set(flagMarked)
		t.marked = append(t.marked, i)
	}
}

// Sweep ends a turn: it frees the flows that have ended, and what those have no
// use for that wait for a last FIN to come again. Nobody has one of them in hand.
func (t *Translator) Sweep() {
	if len(t.marked) == 0 {
		return
	}
	ready := false
	for _, i := range t.marked {
		c := t.flows.At(i)
		ready = ready || c.state == stateEnded && c.has(flagReady)
		t.release(i, c)
		if c.state == stateEnded {
			t.wheel.Cancel(t.timer + i)
			t.places[c.share()]--
			c.flags, c.state = 0, 0
			t.flows.Free(i)
			t.Freed()
		}
	}
	t.marked = t.marked[:0]
	if ready {
		t.trimReady()
	}
}

// release frees all that a flow holds but for its place in the table.
func (t *Translator) release(i uint32, c *conn) {
	if t.Ended != nil && c.fd >= 0 {
		c.ends(ipc.EndClosed) // one that waits for a last FIN
		t.Ended(c.fd, c.how, &c.Traffic)
	}
	switch {
	case c.fd < 0:
	case c.has(flagAbort):
		t.env.Abort(c.fd)
		t.Freed()
	default:
		t.env.Close(c.fd)
		t.Freed()
	}
	c.fd = -1
	t.dropQueue(c)
	t.putSet(&c.held)
	t.putSet(&c.sacked)
	t.reserved -= int(c.reserved)
	c.reserved = 0
	t.leaveHalfOpen(i, c)
	t.giveBack(c)
	c.flags &= flagDirty | flagReady | flagAckNow | flagGuestFIN | flagOut
}

// trimReady takes those that were freed off the list: with the link stalled, it
// would grow by them.
func (t *Translator) trimReady() {
	n := 0
	for _, i := range t.ready {
		if t.flows.At(i).has(flagReady) {
			t.ready[n] = i
			n++
		}
	}
	t.ready = t.ready[:n]
}
