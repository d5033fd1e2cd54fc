// SPDX-License-Identifier: Apache-2.0

package lane

import (
	"math/rand/v2"
	"runtime"
	"runtime/debug"
	"testing"

	"aldente/ipc"
	"aldente/worker/flow"
)

// TestHeapFlat runs worlds until every lane has seen everything, and more: turns
// allocate nothing, and in the end the heap holds as many objects as before.
func TestHeapFlat(t *testing.T) {
	defer debug.SetGCPercent(debug.SetGCPercent(-1)) // the collector's own objects would be counted
	objects := func(from, to uint64) uint64 {
		for s := from; s < to; s++ {
			t.Run("", func(t *testing.T) {
				w := randomWorld(t, rand.NewPCG(s, 11))
				w.counting = s%4 == 0
				w.live()
				if w.allocs > 20 { // a new thread of the runtime's costs six
					t.Errorf("seed %d: %d allocations in the lane's turns", s, w.allocs)
				}
			})
		}
		runtime.GC()
		runtime.GC()
		var m runtime.MemStats
		runtime.ReadMemStats(&m)
		return m.HeapObjects
	}
	first := objects(0, 160)
	last := objects(160, 240)
	t.Logf("%d objects, then %d", first, last)
	if last > first+300 {
		t.Errorf("heap objects grew from %d to %d", first, last)
	}
}

// TestAnswersAllocateNothing: the broker's answers come as often as connections
// do, whoever's they are.
func TestAnswersAllocateNothing(t *testing.T) {
	w := newWorld(t, rand.New(rand.NewPCG(1, 1)), ipc.LinkTap, 1500, true)
	var rec [ipc.OpenedSize]byte
	for _, o := range []flow.Owner{flow.OwnerTCP, flow.OwnerUDP, flow.OwnerICMP, flow.OwnerBypass} {
		(&ipc.Opened{Token: flow.Token(o, 0xfffff, 3), Errno: 111}).Encode(rec[:]) // a flow that is gone
		n := testing.AllocsPerRun(100, func() {
			w.l.channel.outstanding++
			w.l.record(rec[:], -1)
		})
		if n != 0 || w.l.err != nil {
			t.Errorf("owner %d: %v allocations, %v", o, n, w.l.err)
		}
	}
}
