// SPDX-License-Identifier: Apache-2.0

package bypass

import "aldente/worker/flow"

// A stream in full flow would wake this process for every packet, since it is
// faster than whoever fills the socket. So the socket of such a stream gets a
// low-water mark. Bytes below the mark would wait for ever. Therefore a socket
// that is silent for markTimeout loses its mark, and has to flow for twice as
// long until it gets one again.
const (
	lowWater    = 512 << 10
	markTimeout = 200_000   // nanoseconds
	firstSteady = 4 << 20   // bytes without a pause after which a stream gets a mark
	maxSteady   = 512 << 20 // the most that is asked for
	maxMarked   = 64        // sockets with a mark at a time
)

// steadiness is what is known of how steadily a socket's data come.
type steadiness struct {
	moved uint32 // bytes since the last pause
	need  uint32 // bytes after which it gets a mark, zero: firstSteady
	at    int64  // when something came last, while it has a mark
}

// drained is called when a socket has nothing more: it may get a mark.
func (t *Translator) drained(i uint32, s *stream, k int) {
	d := &s.sides[k]
	if d.has(lowWaterSet) {
		d.steady.at = t.env.Now()
		return
	}
	if d.steady.moved < max(d.steady.need, firstSteady) || d.flags&(bulky|finished|ended) != bulky || len(t.marked) == cap(t.marked) {
		return
	}
	if t.env.LowWater(d.fd, lowWater) != 0 {
		return
	}
	d.flags |= lowWaterSet
	d.steady.at = t.env.Now()
	t.marked = append(t.marked, token(s.gen, i, k, 0))
}

// MarkTimeout is how long the lane may wait for events before it has to call
// ExpireMarks, in nanoseconds; zero: for ever.
func (t *Translator) MarkTimeout() int64 {
	if len(t.marked) == 0 {
		return 0
	}
	return markTimeout
}

// ExpireMarks takes the marks from sockets that have been silent.
func (t *Translator) ExpireMarks() {
	n := 0
	for _, tok := range t.marked {
		_, gen, index := flow.SplitToken(tok)
		i, k := index>>1, int(index&indexFar)
		s := t.streams.live(i, gen)
		if s == nil {
			continue
		}
		d := &s.sides[k]
		if t.env.Now()-d.steady.at < markTimeout {
			t.marked[n] = tok
			n++
			continue
		}
		d.flags &^= lowWaterSet
		t.env.LowWater(d.fd, 1) // raises an event if there is anything
		// One that has data for a peer that takes none is not silent: it gets the
		// mark again as soon as it runs dry.
		if d.held == 0 && !d.has(readable) {
			d.steady.moved = 0
			d.steady.need = min(2*max(d.steady.need, firstSteady), maxSteady)
		}
	}
	t.marked = t.marked[:n]
}
