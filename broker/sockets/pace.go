// SPDX-License-Identifier: Apache-2.0

package sockets

import (
	"aldente/broker/limiter"
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

// paced bounds what a worker that floods its broker with valid records can make it spend.
func paced() limiter.Pace {
	return limiter.Pace{Rate: limiter.Rate{PerSecond: pacePerSecond, Burst: paceBurst}}
}

// weight is what a message counts for: its requests, or as much as one. An answer is
// none to a flood, since we have asked for it.
func weight(msg []byte) int {
	if ipc.KindOf(msg) == ipc.KindOpen {
		return max(len(msg)/ipc.OpenSize, 1)
	}
	return 1
}
