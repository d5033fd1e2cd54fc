// SPDX-License-Identifier: Apache-2.0

package bypass

import (
	"syscall"

	"aldente/worker/flow"
)

const (
	// bufferSize is what is copied rather than spliced, in bytes: a piece that
	// small costs less by itself than the pipe does.
	bufferSize = 16 << 10
	// turnBytes bounds what one direction of a flow moves before others have
	// their turn.
	turnBytes = 4 << 20
	// urgentTries is how often a read is tried again that finds nothing where
	// there was an urgent byte. A signal that is about to be delivered makes the
	// read fail at that byte; it is delivered between two calls.
	urgentTries = 2
)

// turn moves what can be moved, both ways, and ends the flow when all is said.
func (t *Translator) turn(i uint32, s *stream) {
	again := false
	s.last = t.env.Now()
	for k := range s.sides {
		if s.state == stateEnded {
			return
		}
		from, to := &s.sides[k], &s.sides[1-k]
		had := from.has(readable)
		more, ok := t.pump(from, to)
		if !ok {
			t.abort(i, s)
			return
		}
		if !from.has(readable) {
			t.watch(i, s, k, from.seen|flow.Readable)
		}
		if !to.has(writable) {
			t.watch(i, s, 1-k, to.seen|flow.Writable)
		}
		if had && !from.has(readable) {
			t.drained(i, s, k)
		}
		again = again || more
	}
	switch {
	case s.state == stateEnded:
	case s.sides[near].has(shut) && s.sides[far].has(shut):
		t.Stats.Closed++
		t.end(i, s)
	case again && !s.has(flagBusy):
		s.flags |= flagBusy
		t.busy = append(t.busy, i)
	}
}

// pump moves data one way until there are none, there is no room for them, or
// the turn is over, which more tells. It reports false if the connection
// broke.
func (t *Translator) pump(from, to *side) (more, ok bool) {
	for moved := 0; moved < turnBytes; {
		switch {
		case from.held > 0:
			if !to.has(writable) {
				return false, true
			}
			n, e := t.pipes.all[from.pipe].drain(t.env, to.fd, int(from.held))
			if e == syscall.EAGAIN {
				to.flags &^= writable
				return false, true
			}
			if e != 0 {
				return false, false
			}
			t.Stats.Spliced += uint64(n)
			from.steady.moved = min(from.steady.moved+uint32(n), maxSteady)
			from.passed += uint64(n)
			moved += n
			if from.held -= int32(n); from.held == 0 {
				t.pipes.put(t.env, from.pipe)
				from.pipe = 0
			}
		case from.has(ended):
			if !to.has(shut) {
				to.flags |= shut
				if !to.has(ended) || !from.has(shut) { // otherwise both are about to be closed
					t.env.ShutdownWrite(to.fd)
				}
			}
			return false, true
		case !from.has(readable) || !to.has(writable):
			return false, true
		default:
			n, ok := t.take(from, to)
			if !ok {
				return false, false
			}
			from.passed += uint64(n)
			moved += n
		}
	}
	return true, true
}

// take moves one piece from a socket that may have something to one that may
// take it, or into a pipe on its way.
func (t *Translator) take(from, to *side) (int, bool) {
	k := t.pipes.get(t.env)
	if k == 0 {
		return t.takeByPeek(from, to)
	}
	p := &t.pipes.all[k]
	if from.has(bulky) {
		n, e := p.fill(t.env, from.fd)
		switch {
		case e == 0 && n > 0:
			from.held, from.pipe = int32(n), k
			if n < bufferSize/2 {
				from.flags &^= bulky
			}
			return 0, true
		case e == 0:
			// The end, or an urgent byte that has come in this moment, with the
			// end behind it. A read tells.
			from.flags &^= bulky
		case e == syscall.EAGAIN:
			from.flags &^= readable // if for an urgent byte, its event is to come
		}
		t.pipes.put(t.env, k)
		return 0, e == 0 || e == syscall.EAGAIN
	}
	room := min(len(t.buf), p.size)
	n, e := t.readPiece(from, t.buf[:room])
	if e != 0 || n == 0 {
		t.pipes.put(t.env, k)
		return 0, t.nothing(from, e)
	}
	if n == room && !from.has(urgent) {
		from.flags |= bulky
	} else if n < room && !from.has(finished|urgent) {
		from.flags &^= readable // what comes now raises a new event
	}
	t.Stats.Copied += uint64(n)
	w, e := t.env.Write(to.fd, t.buf[:n])
	if e != 0 && e != syscall.EAGAIN {
		t.pipes.put(t.env, k)
		return 0, false
	}
	if e != 0 {
		w = 0
	}
	if w == n {
		t.pipes.put(t.env, k)
		return n, true
	}
	// The rest waits in the pipe, which is empty and has room for it.
	to.flags &^= writable
	if m, e := t.env.Write(p.w, t.buf[w:n]); e != 0 || m != n-w {
		t.pipes.discard(t.env, k)
		return 0, false
	}
	from.held, from.pipe = int32(n-w), k
	return w, true
}

// takeByPeek is take without a pipe: bytes leave the one socket only when
// the other has them.
func (t *Translator) takeByPeek(from, to *side) (int, bool) {
	n, e := t.env.Recv(from.fd, t.buf, flow.MsgPeek|flow.MsgDontWait)
	for tries := 0; e == syscall.EAGAIN && from.has(urgent) && tries < urgentTries; tries++ {
		n, e = t.env.Recv(from.fd, t.buf, flow.MsgPeek|flow.MsgDontWait)
	}
	if e != 0 || n == 0 {
		return 0, t.nothing(from, e)
	}
	w, e := t.env.Write(to.fd, t.buf[:n])
	switch {
	case e == syscall.EAGAIN:
		to.flags &^= writable
		return 0, true
	case e != 0:
		return 0, false
	case w < n:
		to.flags &^= writable
	}
	t.Stats.Copied += uint64(w)
	for left, tries := w, 0; left > 0; {
		d, e := t.env.Discard(from.fd, left) // short before an urgent byte
		if e == syscall.EAGAIN && tries < urgentTries {
			tries++
			continue
		}
		if e != 0 || d <= 0 {
			return 0, false
		}
		left -= d
	}
	return w, true
}

// readPiece is read(2), tried again where an urgent byte may be in the way.
func (t *Translator) readPiece(from *side, b []byte) (int, syscall.Errno) {
	n, e := t.env.Read(from.fd, b)
	for tries := 0; e == syscall.EAGAIN && from.has(urgent) && tries < urgentTries; tries++ {
		n, e = t.env.Read(from.fd, b)
	}
	return n, e
}

// nothing notes why a read gave nothing. It reports false for an error.
func (t *Translator) nothing(from *side, e syscall.Errno) bool {
	switch e {
	case 0:
		from.flags |= ended
	case syscall.EAGAIN:
		from.flags &^= readable
	default:
		return false
	}
	return true
}
