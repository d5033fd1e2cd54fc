// SPDX-License-Identifier: Apache-2.0

package store

import (
	"slices"
	"testing"

	"pgregory.net/rapid"
)

// order lists an LRU from old to new, and checks that it reads the same
// backwards.
func order(t *rapid.T, a *LRU) []uint32 {
	var all []uint32
	prev := None
	for i := a.Oldest(); i != None; i = a.Newer(i) {
		if a.links[i].older != prev {
			t.Fatalf("before %d comes %d, not %d", i, a.links[i].older, prev)
		}
		all, prev = append(all, i), i
	}
	if a.newest != prev {
		t.Fatalf("newest is %d, not %d", a.newest, prev)
	}
	return all
}

func TestLRUKeepsTheOrderOfUse(t *testing.T) {
	const size = 8
	rapid.Check(t, func(t *rapid.T) {
		a := NewLRU(size)
		var want []uint32 // oldest first
		flow := rapid.Uint32Range(0, size-1)
		t.Repeat(map[string]func(*rapid.T){
			"add": func(t *rapid.T) {
				i := flow.Draw(t, "flow")
				if slices.Contains(want, i) {
					t.Skip("is in the order")
				}
				a.Add(i)
				want = append(want, i)
			},
			"touch": func(t *rapid.T) {
				i := flow.Draw(t, "flow")
				k := slices.Index(want, i)
				if k < 0 {
					t.Skip("is not in the order")
				}
				a.Touch(i)
				want = append(slices.Delete(want, k, k+1), i)
			},
			"remove": func(t *rapid.T) {
				i := flow.Draw(t, "flow")
				k := slices.Index(want, i)
				if k < 0 {
					t.Skip("is not in the order")
				}
				a.Remove(i)
				want = slices.Delete(want, k, k+1)
			},
			"": func(t *rapid.T) {
				if got := order(t, &a); !slices.Equal(got, want) {
					t.Fatalf("order %v, want %v", got, want)
				}
			},
		})
	})
}
