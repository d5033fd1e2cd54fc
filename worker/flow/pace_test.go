// SPDX-License-Identifier: Apache-2.0

package flow

import "testing"

// TestPace: so many in a second, as many of them at once, and whoever has to wait hears
// until when.
func TestPace(t *testing.T) {
	p := NewPace(10)
	now, n := int64(1_000_000_000), 0
	for end := now + 3_000_000_000; now < end; now += 1_000_000 {
		for p.Ready(now) && n < 100 {
			p.Spend()
			n++
		}
		due := p.Due()
		if due <= now || due > now+100_000_001 {
			t.Fatalf("at %d due at %d", now, due)
		}
		if p.Due() != 0 {
			t.Fatal("due twice")
		}
		now = max(now, due-1_000_000)
	}
	if n < 39 || n > 41 {
		t.Errorf("%d in three seconds and at once, of 10 a second", n)
	}
	var none *Pace
	if none.Spend(); !none.Ready(1) || none.Due() != 0 || NewPace(0) != nil {
		t.Error("a bound where there is none")
	}
}

// TestSharesBound: no more flows than may be, however many descriptors they have.
func TestSharesBound(t *testing.T) {
	s := NewShares(960)
	s.Bound(10)
	for range 4 {
		s.Take(ShareIn, 2) // past the link
	}
	for range 6 {
		if !s.May(ShareOut, 1) {
			t.Fatal("no room for as many as may be")
		}
		s.Take(ShareOut, 1)
	}
	for k := range shares {
		if s.May(k, 1) || s.May(k, 2) {
			t.Errorf("share %d: one more than may be", k)
		}
	}
	if !s.Lend(ShareOut, func() bool { return s.May(ShareOut, 1) }) {
		t.Error("no room in place of another")
	}
	s.Take(ShareIn, -2)
	if !s.May(ShareUDP, 1) {
		t.Error("no room where one is gone")
	}
}
