// SPDX-License-Identifier: Apache-2.0

package quiet

import (
	"runtime"
	"runtime/debug"
	"testing"
	"time"
)

// settings are the percentage and the limit in force.
func settings() (percent int, limit int64) {
	percent = debug.SetGCPercent(-1)
	debug.SetGCPercent(percent)
	return percent, debug.SetMemoryLimit(-1)
}

var sink []byte

// TestCollector: after a collection by the clock there are no more of them, nevertheless
// what is allocated is collected as soon as before, and then all is as it was.
func TestCollector(t *testing.T) {
	percent, limit := settings()
	defer debug.SetGCPercent(percent)
	defer debug.SetMemoryLimit(limit)
	for round := range 3 {
		runtime.GC()
		start := time.Now()
		c := collector{last: start}
		c.after(start.Add(byClock - time.Second))
		if p, l := settings(); c.off || p != percent || l != limit {
			t.Fatalf("round %d, after a collection for want of room: %d %%, limit %d", round, p, l)
		}
		var before, now runtime.MemStats
		runtime.ReadMemStats(&before)
		c.after(start.Add(2 * byClock))
		if p, l := settings(); !c.off || p >= 0 || l >= limit {
			t.Fatalf("round %d, after one by the clock: %d %%, limit %d", round, p, l)
		}
		for now = before; now.NumGC == before.NumGC; runtime.ReadMemStats(&now) {
			if now.HeapAlloc > before.HeapAlloc+64<<20 {
				t.Fatalf("round %d: a heap of %d MiB became %d MiB without a collection", round, before.HeapAlloc>>20, now.HeapAlloc>>20)
			}
			sink = make([]byte, 1<<16)
		}
		if grown := now.TotalAlloc - before.TotalAlloc; grown < 1<<20 {
			t.Errorf("round %d: collected after %d KiB: it would go on doing that", round, grown>>10)
		}
		c.after(start.Add(2*byClock + time.Second))
		if p, l := settings(); c.off || p != percent || l != limit {
			t.Fatalf("round %d, after one for want of room: %d %%, limit %d", round, p, l)
		}
	}
}

// TestLimitStays: a limit that is lower than what would stand for the percentage is the
// one in force, and the percentage stays with it.
func TestLimitStays(t *testing.T) {
	percent, limit := settings()
	defer debug.SetMemoryLimit(limit)
	debug.SetMemoryLimit(1 << 20)
	c := collector{last: time.Now()}
	c.after(c.last.Add(byClock))
	if p, l := settings(); p != percent || l != 1<<20 || c.off {
		t.Errorf("%d %%, limit %d", p, l)
	}
}

// TestCollected: each collection is noticed.
func TestCollected(t *testing.T) {
	m := &mark{collector{last: time.Now().Add(-time.Hour), off: true, percent: debug.SetGCPercent(77), limit: debug.SetMemoryLimit(-1)}}
	percent := m.percent
	defer debug.SetGCPercent(percent)
	debug.SetGCPercent(-1)
	runtime.SetFinalizer(m, (*mark).collected)
	m = nil
	for range 1000 {
		runtime.GC()
		if p, _ := settings(); p == percent {
			return
		}
		time.Sleep(5 * time.Millisecond)
	}
	t.Error("a collection went unnoticed")
}
