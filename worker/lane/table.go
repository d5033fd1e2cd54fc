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

	// Timers is the number of timer ids in use. Timer is called when the
	// timer with that id fires.
	Timers() int
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
// of earlier turns, and where each one's events and timers lead.
type table struct {
	all   []translator
	ends  []uint32 // behind the last timer id of each
	ready [flow.Owners]func(token uint64, events uint32)
	owner [flow.Owners]translator
}

// add gives a translator its place, and events under its owner.
func (t *table) add(o flow.Owner, tr translator) {
	t.all = append(t.all, tr)
	t.ends = append(t.ends, t.timers()+uint32(tr.Timers()))
	t.ready[o], t.owner[o] = tr.Ready, tr
}

// timers is how many timer ids the translators use: the first of the next.
func (t *table) timers() uint32 {
	if len(t.ends) == 0 {
		return 0
	}
	return t.ends[len(t.ends)-1]
}

// timer gives a timer that fired to its owner.
func (t *table) timer(id uint32) {
	for k, end := range t.ends {
		if id < end {
			t.all[k].Timer(id)
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
