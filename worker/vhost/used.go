// SPDX-License-Identifier: Apache-2.0

package vhost

import "encoding/binary"

// Use gives a chain back, of which the first written bytes were written to. The guest
// sees it after Publish. Each has an entry of its own, in order too (VIRTIO_F_IN_ORDER), where one for
// several would do: the guest is told then how much was written to each.
func (r *Ring) Use(c *Chain, written int) {
	if r.idle() {
		return
	}
	i := int(r.usedAt) & (r.s.Size - 1)
	at := ringHead + i*usedEntry
	binary.LittleEndian.PutUint64(r.used[at:], uint64(c.head)|uint64(uint32(written))<<32)
	r.inflight.used(c.head)
	r.usedAt++
	if r.mem.log == nil {
		return
	}
	for k, b := range c.Pieces {
		n := min(written, len(b))
		r.mem.mark(c.at[k], uint64(n))
		written -= n
	}
	r.logUsed(at, usedEntry)
}

// Publish shows the guest what was given back since the last time, and tells whether it
// wants to be called for it.
func (r *Ring) Publish() (call bool) {
	if r.shown == r.usedAt || r.err != nil {
		return false
	}
	r.held -= int(r.usedAt - r.shown)
	r.shown = r.usedAt
	r.show()
	r.inflight.shown(r.usedAt)
	return r.wantsCall()
}

// show writes the head of the used ring, which is all that the guest looks at.
func (r *Ring) show() {
	storePair(r.used, 0, r.flags, r.shown)
	r.logUsed(0, ringHead)
}

func (r *Ring) logUsed(at, n int) {
	if r.s.LogUsed {
		r.mem.mark(r.s.LogAddr+uint64(at), uint64(n))
	}
}

// wantsCall tells whether the guest wants to be called, virtio 1.3 section 2.7.7.
func (r *Ring) wantsCall() bool {
	if !r.s.EventIdx {
		return load16(r.avail, 0)&availNoInterrupt == 0
	}
	event := load16(r.avail, ringHead+r.s.Size*availEntry)
	old, known := r.called, r.known
	r.called, r.known = r.shown, true
	return !known || r.shown-event-1 < r.shown-old
}

// DisableKicks tells the guest that we look by ourselves. It may kick all the same.
func (r *Ring) DisableKicks() {
	if r.idle() || r.s.EventIdx || r.flags != 0 {
		return // with an event index, one that is passed is not passed again
	}
	r.flags = usedNoNotify
	r.show()
}

// EnableKicks asks for a kick when a chain becomes available, and looks once more: more
// says that there is something already, for which there may be no kick. Of a ring by which the
// guest receives, that is only what has come since the last look: who has too few of these waits for others.
func (r *Ring) EnableKicks() (more bool) {
	if r.idle() {
		return false
	}
	known := r.seen
	switch at := ringHead + r.s.Size*usedEntry; {
	case !r.s.EventIdx && r.flags != 0:
		r.flags = 0
		r.show()
	case r.s.EventIdx:
		// One that is passed already is not passed again: it has to be the end.
		if !store16(r.used, at, known) {
			_ = r.broken("what is behind it does not stop changing")
			return false
		}
		r.logUsed(at, 2)
	}
	waits := r.look()
	if r.s.Writable {
		return r.seen != known
	}
	return waits || r.inflight.left() > 0
}
