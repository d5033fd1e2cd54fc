// SPDX-License-Identifier: Apache-2.0

// Package quiet keeps the collector from waking a program that does nothing.
//
// Go's runtime collects every two minutes once it has collected at all, whether anything
// was allocated or not: some thirty switches of threads each time. It does not where
// collection by percentage is off. So a collection that comes by the clock is the last:
// the percentage is turned off, and a limit of memory stands for it, where the next
// collection would be due by the heap's growth. That collection turns the percentage
// on again. What grows is collected as ever, and no later.
package quiet

import (
	"runtime"
	"runtime/debug"
	"time"
)

// byClock is after which time a collection has come by the clock, or might as well have.
const byClock = 110 * time.Second

// spare is what the runtime wants to have between a heap and a limit of memory.
const spare = 2 << 20

// Collector makes it so, from now on.
func Collector() {
	runtime.SetFinalizer(&mark{collector{last: time.Now()}}, (*mark).collected)
}

// mark is an object that nobody refers to: each collection finds it.
type mark struct{ collector }

func (m *mark) collected() {
	m.after(time.Now())
	runtime.SetFinalizer(m, (*mark).collected)
}

// collector is what is known of the last collection.
type collector struct {
	last    time.Time
	off     bool // collection by percentage is
	percent int  // which it was before
	limit   int64
}

// after is called when there was a collection.
func (c *collector) after(now time.Time) {
	since := now.Sub(c.last)
	c.last = now
	switch {
	case c.off:
		debug.SetMemoryLimit(c.limit)
		debug.SetGCPercent(c.percent)
		c.off = false
	case since >= byClock:
		var m runtime.MemStats
		runtime.ReadMemStats(&m)
		limit := int64(m.Sys - m.HeapReleased + max(m.NextGC, m.HeapAlloc) - m.HeapAlloc + spare)
		if c.limit = debug.SetMemoryLimit(-1); limit < c.limit {
			debug.SetMemoryLimit(limit)
			c.percent, c.off = debug.SetGCPercent(-1), true
		}
	}
}
