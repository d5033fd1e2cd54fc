// SPDX-License-Identifier: Apache-2.0

package lane

import (
	"aldente/ipc"
	"aldente/worker/flow"
)

// translator is one kind of flow, as the lane drives it. A kind without a need
// for one of the calls does nothing there.
type translator interface {
	// Ready is called for events on a watched descriptor, with its token.
	Ready(token uint64, events uint32)
	// Opened takes the broker's answer to a request that had this token.
	Opened(token uint64, fd int32, o *ipc.Opened)
	// RevokeFlow ends the flow whose request had this token, if there is one.
	RevokeFlow(token uint64)

	// Timer is called when the timer with this id fires.
	Timer(id uint32)

	// Flush ends a batch of frames from the guest.
	Flush()
	// Pending tells whether Poll has work that no event will announce, Poll
	// does a turn's worth of it.
	Pending() bool
	Poll()
	// Sweep ends a turn: flows that have ended in it are freed.
	Sweep()
	// Resume is called when the link takes frames again.
	Resume()

	// Evict closes a flow for want of descriptors. It reports false if there
	// is none that may go.
	Evict() bool
	// Freed tells that descriptors were closed since the last turn.
	Freed()
}

// table is the translators in the order in which they go on with what is left
// of earlier turns, and where answers, events and timers lead, by owner.
type table struct {
	all    []translator
	owner  [flow.Owners]translator // takes answers
	ready  [flow.Owners]func(token uint64, events uint32)
	fire   [flow.Owners]func(id uint32)
	ranges []timers
}

// timers are the timer ids of an owner: from the end of those before up to end.
type timers struct {
	end   uint32
	owner flow.Owner
}

// add gives a translator its place, and what is its owner's.
func (t *table) add(o flow.Owner, tr translator) {
	t.all = append(t.all, tr)
	t.owner[o], t.ready[o], t.fire[o] = tr, tr.Ready, tr.Timer
}

// reserve sets n timer ids aside for an owner, and returns the first.
func (t *table) reserve(o flow.Owner, n int) uint32 {
	first := uint32(t.timers())
	t.ranges = append(t.ranges, timers{first + uint32(n), o})
	return first
}

// timers is how many timer ids are set aside.
func (t *table) timers() int {
	if len(t.ranges) == 0 {
		return 0
	}
	return int(t.ranges[len(t.ranges)-1].end)
}

// timer gives a timer that fired to its owner.
func (t *table) timer(id uint32) {
	for _, r := range t.ranges {
		if id < r.end {
			t.fire[r.owner](id)
			return
		}
	}
}

func (t *table) flush() {
	for _, tr := range t.all {
		tr.Flush()
	}
}

func (t *table) resume() {
	for _, tr := range t.all {
		tr.Resume()
	}
}

// resumeFrom is resume, beginning at some translator.
func (t *table) resumeFrom(k int) {
	for n := range t.all {
		t.all[(k+n)%len(t.all)].Resume()
	}
}

func (t *table) pending() bool {
	for _, tr := range t.all {
		if tr.Pending() {
			return true
		}
	}
	return false
}

func (t *table) poll() {
	for _, tr := range t.all {
		if tr.Pending() {
			tr.Poll()
		}
	}
}

func (t *table) sweep() {
	for _, tr := range t.all {
		tr.Sweep()
	}
}

// evict closes one flow of the first kind that has one to spare.
func (t *table) evict() {
	for _, tr := range t.all {
		if tr.Evict() {
			return
		}
	}
}

func (t *table) freed() {
	for _, tr := range t.all {
		tr.Freed()
	}
}
