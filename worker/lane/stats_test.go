// SPDX-License-Identifier: Apache-2.0

package lane

import (
	"math/rand/v2"
	"testing"

	"aldente/ipc"
)

// TestStatsLine: what has grown is named with its growth, once.
func TestStatsLine(t *testing.T) {
	l := newWorld(t, rand.New(rand.NewPCG(1, 1)), ipc.LinkTap, 1500, true).l
	s := newStatsLog(l, 5)
	if got := s.line(); got != "" {
		t.Errorf("%q, nothing was counted", got)
	}
	l.Stats.Frames += 7
	l.tcp.Stats.Retransmits += 2
	l.bypass.Stats.Dropped++
	if got, want := s.line(), "lane.Frames=7 tcp.Retransmits=2 bypass.Dropped=1"; got != want {
		t.Errorf("%q, want %q", got, want)
	}
	if got := s.line(); got != "" {
		t.Errorf("%q, told already", got)
	}
}
