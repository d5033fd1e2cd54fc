// SPDX-License-Identifier: Apache-2.0

package bypass

import (
	"cmp"

	"aldente/ipc"
	"aldente/worker/datagram"
	"aldente/worker/flow"
	"aldente/worker/store"
)

// lifetime is how long a flow may go unused, in nanoseconds.
func (t *Translator) lifetime(f *dflow) int64 {
	if f.refused {
		return datagram.RefusedLife
	}
	return datagram.Lifetime(t.g, f.answered)
}

// Timer is called when the timer with this id fires.
func (t *Translator) Timer(id uint32) {
	i := id - t.timer
	f := t.flows.At(i)
	if due := f.last + t.lifetime(f); due > t.env.Now() {
		t.wheel.Set(id, due)
		return
	}
	t.Stats.Expired++
	f.how = ipc.EndIdle
	t.removeUDP(i, f)
}

// Evict closes the flow that was not used for longest, for want of
// descriptors, those that nobody has answered first. It reports false if there is
// none.
func (t *Translator) Evict() bool {
	for _, a := range [...]*store.LRU{&t.unanswered, &t.ages} {
		for i := a.Oldest(); i != store.None; i = a.Newer(i) {
			if f := t.flows.At(i); f.sides[near].sock.FD >= 0 || f.sides[far].sock.FD >= 0 {
				t.evict(i)
				return true
			}
		}
	}
	return false
}

// evict removes a flow in favour of another.
func (t *Translator) evict(i uint32) {
	t.Stats.Evicted++
	t.removeUDP(i, t.flows.At(i))
}

func (t *Translator) closeSides(i uint32, f *dflow) {
	if fd := f.sides[far].sock.FD; fd >= 0 && t.Ended != nil {
		moved := f.Traffic
		if !outOfNamespace(t.flows.Key(i)) {
			moved.Sent, moved.SentPackets, moved.Received, moved.ReceivedPackets = moved.Received, moved.ReceivedPackets, moved.Sent, moved.SentPackets
		}
		t.Ended(fd, cmp.Or(f.how, ipc.EndEvicted), &moved)
	}
	for k := range f.sides {
		if f.sides[k].sock.FD >= 0 {
			t.env.Close(f.sides[k].sock.FD)
			f.sides[k].sock.FD = -1
		}
	}
}

func (t *Translator) removeUDP(i uint32, f *dflow) {
	t.queues.Clear(&f.queue)
	t.closeSides(i, f)
	t.wheel.Cancel(t.timer + i)
	t.unlist(i, f)
	t.g.Shares.Take(flow.ShareBypass, -2)
	t.flows.Remove(i)
}

func (t *Translator) closeUDP() {
	t.flows.Each(func(i uint32) { t.removeUDP(i, t.flows.At(i)) })
}

// touch notes that a flow is in use. Its timer stays where it is, and moves
// when it fires.
func (t *Translator) touch(i uint32, f *dflow) {
	f.last = t.env.Now()
	if f.answered {
		t.ages.Touch(i)
	} else {
		t.unanswered.Touch(i)
	}
}

// unlist takes a flow out of its list.
func (t *Translator) unlist(i uint32, f *dflow) {
	if f.answered {
		t.ages.Remove(i)
		return
	}
	t.unanswered.Remove(i)
	t.numUnanswered--
}
