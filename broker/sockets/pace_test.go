// SPDX-License-Identifier: Apache-2.0

package sockets

import (
	"testing"
	"time"
)

// TestPace plays workers of different zeal against a clock of its own.
func TestPace(t *testing.T) {
	for _, c := range []struct {
		name      string
		batch     int           // records in one message
		every     time.Duration // between messages
		messages  int
		slept     bool
		perSecond float64 // upper bound on what gets through
	}{
		{"one burst", 32, 0, paceBurst / 32, false, 0},
		{"50,000 connections a second, for 10 s", 32, 32 * time.Second / 50_000, 10 * 50_000 / 32, false, 50_100},
		{"one by one", 1, time.Second / 50_000, 50_000, false, 50_100},
		{"flood", 32, time.Microsecond, 100_000, true, pacePerSecond * 1.05},
	} {
		t.Run(c.name, func(t *testing.T) {
			now := time.Unix(1, 0)
			start := now
			var slept time.Duration
			p := paced()
			p.Sleep = func(d time.Duration) { slept += d; now = now.Add(d) }
			for range c.messages {
				p.Take(c.batch, now)
				now = now.Add(c.every)
			}
			if (slept > 0) != c.slept {
				t.Errorf("waited %v", slept)
			}
			n := float64(c.messages*c.batch) - paceBurst
			if rate := n / now.Sub(start).Seconds(); c.perSecond > 0 && rate > c.perSecond {
				t.Errorf("%.0f records a second", rate)
			}
		})
	}
}
