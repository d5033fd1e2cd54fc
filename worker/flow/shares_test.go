// SPDX-License-Identifier: Apache-2.0

package flow

import (
	"testing"

	"pgregory.net/rapid"
)

func TestShares(t *testing.T) {
	fill := func(s *Shares, k Share) (n int) {
		for s.May(k, 1) {
			s.Take(k, 1)
			n++
		}
		return n
	}
	for first := range shares {
		s := NewShares(960)
		if n := fill(s, first); n < 960/2 {
			t.Errorf("share %d: %d of 960", first, n)
		}
		// Whoever came first has left all others a part.
		for k, least := range []int{ShareOut: 240, ShareIn: 90, ShareUDP: 120, ShareBypass: 30, ShareEcho: 30} {
			if k := Share(k); k != first && fill(s, k) != least {
				t.Errorf("after share %d: share %d has %d, not %d", first, k, s.Used(k), least)
			}
		}
		for k := range shares {
			s.Take(k, -s.Used(k))
		}
		if n := fill(s, ShareIn); n < 960/2 {
			t.Errorf("%d once all was given back", n)
		}
	}
	s := NewShares(960)
	s.Take(ShareUDP, 1)
	if s.Returned() {
		t.Error("returned, nothing was")
	}
	if s.Take(ShareUDP, -1); !s.Returned() || s.Returned() {
		t.Error("what is given back is told once")
	}
	var none *Shares
	none.Take(ShareIn, 1)
	none.Reduce(1)
	if !none.May(ShareIn, 1<<30) {
		t.Error("bounded by nothing")
	}
}

func TestSharesModel(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		total := rapid.IntRange(32, 300).Draw(t, "total")
		s := NewShares(total)
		var used [shares]int
		for range 200 {
			k := Share(rapid.IntRange(0, int(shares)-1).Draw(t, "kind"))
			n := rapid.IntRange(1, 2).Draw(t, "n")
			if rapid.Bool().Draw(t, "give") {
				if n <= used[k] {
					s.Take(k, -n)
					used[k] -= n
				}
				continue
			}
			sum := used[k] + n
			for o := range used {
				if Share(o) != k {
					sum += max(used[o], s.least[o])
				}
			}
			want := sum <= total || used[k]+n <= s.least[k]
			if s.May(k, n) != want {
				t.Fatalf("%d more of %d: %v, used %v of %d", n, k, !want, used, total)
			}
			if want {
				s.Take(k, n)
				used[k] += n
			}
		}
		all := 0
		for _, n := range used {
			all += n
		}
		if all > total {
			t.Fatalf("%d of %d", all, total)
		}
	})
}
