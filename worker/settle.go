// SPDX-License-Identifier: Apache-2.0

//go:build !race

package main

import (
	"runtime/debug"
	"time"
)

// heapLimit is a safety net, in bytes: nothing on the packet path allocates, so
// the collector is off unless something leaks.
const heapLimit = 1 << 30

// settleRuntime makes the runtime do now what it would otherwise do when first
// needed, and be killed for.
func settleRuntime() {
	debug.SetGCPercent(-1)
	debug.SetMemoryLimit(heapLimit)
	// The first timer makes the runtime's own epoll and eventfd descriptors.
	// The collector's scavenger uses timers.
	time.AfterFunc(time.Hour, func() {}).Stop()
}
