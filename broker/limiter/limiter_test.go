// SPDX-License-Identifier: Apache-2.0

package limiter

import (
	"testing"
	"time"
)

func TestBucket(t *testing.T) {
	const burst, perSecond = 100, 20
	b := Bucket{Rate: Rate{perSecond, burst}}
	now := time.Unix(0, 0)
	for i := range burst {
		if !b.Take(now) {
			t.Fatalf("event %d refused", i)
		}
	}
	for range 7 {
		if b.Take(now) {
			t.Fatal("allowed beyond the burst")
		}
	}
	now = now.Add(time.Second / perSecond)
	if !b.Take(now) || b.Missed() != 7 || b.Missed() != 0 {
		t.Error("after a pause: not one, or not 7 missed, once")
	}
	if b.Take(now) {
		t.Error("two events for one token")
	}
	now = now.Add(time.Hour)
	n := 0
	for b.Take(now) {
		n++
	}
	if n != burst {
		t.Errorf("%d after an hour, of %d", n, burst)
	}
	if b.Take(now.Add(-time.Minute)) {
		t.Error("a clock that goes back gives tokens")
	}
}

func TestRefund(t *testing.T) {
	b := Bucket{Rate: Rate{1, 2}}
	now := time.Unix(0, 0)
	for range 3 {
		if !b.Ready(now) {
			t.Fatal("not ready")
		}
		b.Spend()
		b.Refund()
	}
	for range 3 {
		b.Refund() // never beyond the burst
	}
	n := 0
	for b.Take(now) {
		n++
	}
	if n != b.Rate.Burst {
		t.Errorf("%d tokens of %d", n, b.Rate.Burst)
	}
}

func TestNoLimit(t *testing.T) {
	b := Bucket{Rate: Rate{-1, -1}}
	for range 1000 {
		if !b.Take(time.Unix(0, 0)) {
			t.Fatal("refused")
		}
	}
}
