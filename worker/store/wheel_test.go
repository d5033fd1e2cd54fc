// SPDX-License-Identifier: Apache-2.0

package store

import (
	"testing"

	"pgregory.net/rapid"
)

// wheelModel is the plainest timer: a list of times.
type wheelModel struct {
	due map[uint32]int64 // when each timer was set for
	set map[uint32]int64 // and when that was
}

// lateness bounds how late a timer of this length may fire: the granularity of
// its level, and a tick for rounding.
func lateness(length int64) int64 { return length*8/(wheelSlots-2) + 2*Tick }

// Timers fire once each, never early, never later than their length allows; not
// at all when they were cancelled; and Next tells when to look.
func TestWheelModel(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		const ids = 20
		now := rapid.Int64Range(0, 1<<45).Draw(t, "start")
		w := NewWheel(ids, now)
		m := wheelModel{make(map[uint32]int64), make(map[uint32]int64)}
		lengths := rapid.OneOf(
			rapid.Int64Range(0, 100*Tick), rapid.Int64Range(0, 200e9), rapid.Int64Range(0, 24*3600e9),
			rapid.SampledFrom([]int64{62 * Tick, 61 * Tick, 63 * Tick, 64 * Tick, 496 * Tick, 8 * 62 * Tick, 64 * 62 * Tick}))
		var fire func(id uint32)
		again := false
		set := func(id uint32, length int64) {
			w.Set(id, now+length)
			m.due[id], m.set[id] = now+length, now
		}
		fire = func(id uint32) {
			due, ok := m.due[id]
			if !ok {
				t.Fatalf("timer %d fired and was not set", id)
			}
			if w.Pending(id) {
				t.Fatalf("timer %d fires and is set", id)
			}
			if now < due {
				t.Fatalf("timer %d fired %d ns early", id, due-now)
			}
			delete(m.due, id)
			if again { // as owners do
				again = false
				set(id, 30*Tick)
			}
		}
		t.Repeat(map[string]func(*rapid.T){
			"set": func(t *rapid.T) {
				set(uint32(rapid.IntRange(0, ids-1).Draw(t, "id")), lengths.Draw(t, "length"))
			},
			"cancel": func(t *rapid.T) {
				id := uint32(rapid.IntRange(0, ids-1).Draw(t, "id"))
				w.Cancel(id)
				delete(m.due, id)
			},
			"advance": func(t *rapid.T) {
				now += lengths.Draw(t, "by")
				again = rapid.Bool().Draw(t, "again")
				w.Advance(now, fire)
			},
			"sleep": func(t *rapid.T) { // as long as Next allows
				next := w.Next()
				if next == NoTimer {
					if len(m.due) > 0 {
						t.Fatalf("nothing to wait for with %d timers", len(m.due))
					}
					return
				}
				before := len(m.due)
				now = max(now, next)
				again = false
				w.Advance(now, fire)
				if len(m.due) == before {
					t.Fatalf("woken up for nothing")
				}
			},
			"": func(t *rapid.T) {
				for id := range uint32(ids) {
					due, ok := m.due[id]
					if ok != w.Pending(id) {
						t.Fatalf("timer %d pending %v, want %v", id, !ok, ok)
					}
					if ok && now > due+lateness(due-m.set[id]) {
						t.Fatalf("timer %d of %d ns is %d ns late", id, due-m.set[id], now-due)
					}
				}
				if next := w.Next(); next != NoTimer && len(m.due) == 0 {
					t.Fatalf("wakes up at %d for nothing", next)
				}
			},
		})
	})
}

// TestWheelFar sets a timer further away than the wheel reaches: it fires early,
// and its owner sets it again.
func TestWheelFar(t *testing.T) {
	w := NewWheel(1, 0)
	const reach, far = int64(36 * 3600e9), int64(1000 * 3600e9)
	w.Set(0, far)
	if next := w.Next(); next < reach || next >= far {
		t.Fatalf("due after %d s", next/1e9)
	}
	fired := 0
	for now := int64(0); fired < 40 && now < far; now = w.Next() {
		w.Advance(now, func(uint32) { fired++ })
		if !w.Pending(0) {
			w.Set(0, far)
		}
	}
	if fired < 20 || w.Next() < far || w.Next() > far+lateness(reach) {
		t.Errorf("fired %d times, then due at %d s", fired, w.Next()/1e9)
	}
}

func TestWheelAllocs(t *testing.T) {
	w := NewWheel(100, 0)
	now := int64(0)
	fire := func(id uint32) {}
	if n := testing.AllocsPerRun(100, func() {
		for id := range uint32(100) {
			w.Set(id, now+int64(id)*1e7)
		}
		now += 5e8
		w.Advance(now, fire)
		w.Next()
	}); n != 0 {
		t.Errorf("%v allocations", n)
	}
}

func BenchmarkWheelSet(b *testing.B) {
	w := NewWheel(1<<16, 0)
	id := uint32(0)
	for b.Loop() {
		w.Set(id&0xffff, int64(id&0xffff)*Tick)
		id += 7
	}
}
