// SPDX-License-Identifier: Apache-2.0

package bypass

import "aldente/worker/flow"

// A stream in full flow would wake this process for every packet, since it is
// faster than whoever fills the socket. So the socket of such a stream gets a
// low-water mark. Bytes below the mark would wait for ever; therefore a socket
// that is silent for patienceTime loses its mark, and if it turns out to have
// had something, it has to flow for twice as long until it gets one again.
const (
	lowWater     = 512 << 10
	patienceTime = 200_000   // nanoseconds
	firstRush    = 4 << 20   // bytes without a pause that make a stream patient
	lastRush     = 512 << 20 // the most that is asked for
	maxPatient   = 64        // sockets with a mark at a time
)

// rush is what is known of how steadily a socket's data come.
type rush struct {
	moved uint32 // bytes since the last pause
	need  uint32 // bytes that make it patient, zero: firstRush
	at    int64  // when something came last, while patient
}

// drained is called when a socket has nothing more: it may get a mark.
func (t *Translator) drained(i uint32, s *stream, k int) {
	d := &s.sides[k]
	if d.has(patient) {
		d.rush.at = t.env.Now()
		return
	}
	if d.rush.moved < max(d.rush.need, firstRush) || d.flags&(bulky|finished|ended) != bulky || len(t.patient) == cap(t.patient) {
		return
	}
	if t.env.LowWater(d.fd, lowWater) != 0 {
		return
	}
	d.flags |= patient
	d.rush.at = t.env.Now()
	t.patient = append(t.patient, token(s.gen, i, k, 0))
}

// Patience is how long the lane may wait for events before it has to call
// Impatient, in nanoseconds; zero: for ever.
func (t *Translator) Patience() int64 {
	if len(t.patient) == 0 {
		return 0
	}
	return patienceTime
}

// Impatient takes the marks from sockets that have been silent.
func (t *Translator) Impatient() {
	n := 0
	for _, tok := range t.patient {
		_, gen, index := flow.SplitToken(tok)
		i, k := index>>1, int(index&indexFar)
		s := t.streams.live(i, gen)
		if s == nil {
			continue
		}
		d := &s.sides[k]
		if t.env.Now()-d.rush.at < patienceTime {
			t.patient[n] = tok
			n++
			continue
		}
		d.flags &^= patient
		t.env.LowWater(d.fd, 1) // raises an event if there is anything
		// One that has data for a peer that takes none is not silent: it gets the
		// mark again as soon as it runs dry.
		if d.held == 0 && !d.has(readable) {
			d.rush.moved = 0
			d.rush.need = min(2*max(d.rush.need, firstRush), lastRush)
		}
	}
	t.patient = t.patient[:n]
}
