// SPDX-License-Identifier: Apache-2.0

package tcp

import (
	"slices"
	"testing"
	"time"
)

// The window is bounded for bulk from a near host, once, and for nothing
// else: a far one needs what the kernel finds out.
func TestBound(t *testing.T) {
	for _, tt := range []struct {
		name string
		rtt  time.Duration
		size int
		want []int
	}{
		{"near", 30 * time.Microsecond, 100_000, []int{nearWindow, nearBuffer}},
		{"nearly far", nearRTT, 100_000, []int{nearWindow, nearBuffer}},
		{"far", nearRTT + time.Microsecond, 100_000, nil},
		{"unknown", 0, 100_000, nil},
		{"no bulk", 30 * time.Microsecond, bulk, nil},
	} {
		t.Run(tt.name, func(t *testing.T) {
			e := newEnv(t)
			p := dial(e)
			p.s.rtt = tt.rtt
			for sent := 0; sent < tt.size; sent += 10_000 {
				p.s.say(min(10_000, tt.size-sent))
				e.settle()
				p.acks(uint32(min(sent+10_000, tt.size)), 60_000)
				e.settle()
			}
			if !slices.Equal(p.s.bounded, tt.want) {
				t.Errorf("TCP_WINDOW_CLAMP, SO_RCVBUF %d, want %d", p.s.bounded, tt.want)
			}
		})
	}
}
