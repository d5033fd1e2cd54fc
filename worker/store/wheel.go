// SPDX-License-Identifier: Apache-2.0

package store

import "math/bits"

// The wheel has levels of 64 buckets; a bucket of level n spans 8^n ticks. A
// timer is put once, at the level that fits its distance, and never moved: it
// fires up to an eighth of its length late and never early. So the cost of a
// timer does not depend on how many there are, and a timer hours away does not
// wake the lane before its time.
const (
	wheelBits   = 6
	wheelSlots  = 1 << wheelBits
	wheelShift  = 3
	wheelLevels = 8
	wheelDue    = wheelLevels * wheelSlots // the bucket of timers about to be fired
	// Tick is the wheel's resolution in nanoseconds.
	Tick = 1_000_000
)

// NoTimer is the deadline when no timer is set.
const NoTimer = int64(1<<63 - 1)

type timerNode struct {
	next, prev uint32 // id+1 of the neighbours, 0: none
	bucket     uint16 // 1 + level*wheelSlots + slot, 0: not set
}

// Wheel holds one timer for each of a fixed number of ids. Owners take ranges
// of ids; what a timer means is the owner's to know.
type Wheel struct {
	nodes  []timerNode
	heads  [wheelLevels*wheelSlots + 1]uint32
	expiry [wheelLevels * wheelSlots]int64 // tick at which the bucket is due
	used   [wheelLevels]uint64             // bit: bucket is not empty
	tick   int64                           // all buckets up to this tick are done
}

// NewWheel makes a wheel for ids below size that starts at now, in
// nanoseconds.
func NewWheel(size int, now int64) *Wheel {
	return &Wheel{nodes: make([]timerNode, size), tick: now / Tick}
}

// Set starts or moves the timer of id to at, in nanoseconds. It is measured from
// the last Advance: the caller advances the wheel to the present first, or the
// timer may be late by an eighth of the time since then too.
func (w *Wheel) Set(id uint32, at int64) {
	n := &w.nodes[id]
	if n.bucket != 0 {
		w.unlink(id)
	}
	due := (at + Tick - 1) / Tick
	if due <= w.tick {
		due = w.tick + 1
	}
	level := uint(0)
	for level < wheelLevels-1 && due-w.tick >= (wheelSlots-2)<<(wheelShift*level) {
		level++
	}
	gran := int64(1) << (wheelShift * level)
	if far := w.tick + (wheelSlots-2)*gran; due > far {
		due = far // beyond the last level, 36 hours: the owner sets it again
	}
	unit := (due + gran - 1) >> (wheelShift * level)
	b := uint(level)*wheelSlots + uint(unit)&(wheelSlots-1)
	w.expiry[b] = unit << (wheelShift * level)
	w.used[level] |= 1 << (uint(unit) & (wheelSlots - 1))
	w.push(id, b)
}

// push puts a timer that is in no bucket into bucket b.
func (w *Wheel) push(id uint32, b uint) {
	n := &w.nodes[id]
	n.bucket = uint16(b + 1)
	n.prev = 0
	n.next = w.heads[b]
	if n.next != 0 {
		w.nodes[n.next-1].prev = id + 1
	}
	w.heads[b] = id + 1
}

// Cancel stops the timer of id, if it is set.
func (w *Wheel) Cancel(id uint32) {
	if w.nodes[id].bucket != 0 {
		w.unlink(id)
	}
}

// Pending tells whether the timer of id is set.
func (w *Wheel) Pending(id uint32) bool { return w.nodes[id].bucket != 0 }

func (w *Wheel) unlink(id uint32) {
	n := &w.nodes[id]
	b := n.bucket - 1
	if n.prev != 0 {
		w.nodes[n.prev-1].next = n.next
	} else {
		w.heads[b] = n.next
		if n.next == 0 && b != wheelDue {
			w.used[b/wheelSlots] &^= 1 << (b % wheelSlots)
		}
	}
	if n.next != 0 {
		w.nodes[n.next-1].prev = n.prev
	}
	*n = timerNode{}
}

// Next is the time in nanoseconds at which Advance has something to do, or
// NoTimer.
func (w *Wheel) Next() int64 {
	best := int64(-1)
	for level := range uint(wheelLevels) {
		used := w.used[level]
		if used == 0 {
			continue
		}
		// Buckets of a level are due in order from the current one on.
		cur := uint(w.tick>>(wheelShift*level)) & (wheelSlots - 1)
		rot := bits.RotateLeft64(used, -int(cur))
		slot := (cur + uint(bits.TrailingZeros64(rot))) & (wheelSlots - 1)
		if e := w.expiry[level*wheelSlots+slot]; best < 0 || e < best {
			best = e
		}
	}
	if best < 0 {
		return NoTimer
	}
	return best * Tick
}

// Advance moves the wheel to now and calls fire for each timer that is due, in
// no particular order. Such a timer is no longer set. fire may set and cancel
// any timer; one that it sets is not due before the next Advance.
func (w *Wheel) Advance(now int64, fire func(id uint32)) {
	target := now / Tick
	// All that is due leaves its bucket before the first is fired: what fire
	// sets is then measured from now, however long the wheel has stood still.
	for {
		next := w.Next()
		if next == NoTimer || next/Tick > target {
			break
		}
		if t := next / Tick; t > w.tick {
			w.tick = t
		}
		for level := range uint(wheelLevels) {
			slot := uint(w.tick>>(wheelShift*level)) & (wheelSlots - 1)
			b := level*wheelSlots + slot
			for w.heads[b] != 0 && w.expiry[b] <= w.tick {
				id := w.heads[b] - 1
				w.unlink(id)
				w.push(id, wheelDue)
			}
		}
	}
	if target > w.tick {
		w.tick = target
	}
	for w.heads[wheelDue] != 0 {
		id := w.heads[wheelDue] - 1
		w.unlink(id)
		fire(id)
	}
}
