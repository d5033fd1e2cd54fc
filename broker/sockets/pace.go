// SPDX-License-Identifier: Apache-2.0

package sockets

import (
	"time"

	"aldente/ipc"
)

// How many records a worker may have handled: twice what a busy guest's
// connections come to, and all that its queue holds at once.
const (
	pacePerSecond = 100_000
	paceBurst     = 20_000

	// refusalRecords is what a request that got nothing counts for besides
	// itself. Whoever goes on asking for what it does not get is to leave the
	// processors to its neighbours: 5,000 such requests a second are enough.
	refusalRecords = 19
)

// pace bounds what a worker that floods its broker with valid records can make
// it spend. An honest burst that exceeds it waits a moment in the worker's queue,
// no more: too fast is no fault.
type pace struct {
	tokens float64
	last   time.Time
	sleep  func(time.Duration) // nil: time.Sleep
}

// weight is what a message counts for: its requests, or as much as one. An answer is
// none to a flood, since we have asked for it.
func weight(msg []byte) int {
	if ipc.KindOf(msg) == ipc.KindOpen {
		return max(len(msg)/ipc.OpenSize, 1)
	}
	return 1
}

// take waits until n records may be handled.
func (p *pace) take(n int, now time.Time) {
	if p.last.IsZero() {
		p.tokens = paceBurst
	} else {
		p.tokens = min(p.tokens+now.Sub(p.last).Seconds()*pacePerSecond, paceBurst)
	}
	p.last = now
	p.tokens -= float64(n)
	if p.tokens >= 0 {
		return
	}
	// Not for each record: a sleep costs more than one.
	wait := max(time.Duration(-p.tokens/pacePerSecond*float64(time.Second)), time.Millisecond)
	if p.sleep != nil {
		p.sleep(wait)
		return
	}
	time.Sleep(wait)
}
