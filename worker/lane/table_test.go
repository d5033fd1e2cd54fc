// SPDX-License-Identifier: Apache-2.0

package lane

import (
	"testing"

	"aldente/worker/flow"
)

// fired is a translator that knows of timers only.
type fired struct {
	translator
	last uint32
}

func (*fired) Ready(uint64, uint32) {}
func (f *fired) Timer(id uint32)    { f.last = id }

// TestTimerRanges: each timer id is one owner's, the first and the last of a range too,
// and an id that nobody has set aside is nobody's.
func TestTimerRanges(t *testing.T) {
	var tab table
	owners := []flow.Owner{flow.OwnerICMP, flow.OwnerBypass, flow.OwnerTCP}
	sizes := []int{1, 5, 300}
	var first []uint32
	var all []*fired
	for k, o := range owners {
		f := new(fired)
		first, all = append(first, tab.reserve(o, sizes[k])), append(all, f)
		tab.add(o, f)
	}
	seen := make(map[uint32]bool)
	for k, n := range sizes {
		for id := first[k]; id < first[k]+uint32(n); id++ {
			for _, f := range all {
				f.last = ^uint32(0)
			}
			tab.timer(id)
			for j, f := range all {
				if (f.last == id) != (j == k) {
					t.Fatalf("timer %d of owner %d: owner %d has %d", id, owners[k], owners[j], f.last)
				}
			}
			if seen[id] || int(id) >= tab.timers() {
				t.Fatalf("timer %d of %d, seen before: %v", id, tab.timers(), seen[id])
			}
			seen[id] = true
		}
	}
	if len(seen) != tab.timers() {
		t.Errorf("%d timers of %d", len(seen), tab.timers())
	}
	tab.timer(uint32(tab.timers()))
}
