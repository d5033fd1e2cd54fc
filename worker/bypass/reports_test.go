// SPDX-License-Identifier: Apache-2.0

package bypass

import (
	"testing"

	"aldente/worker/flow"
)

// TestReports verifies that the lane is woken for nothing that is of no use: not
// for data that nobody takes, nor for room that nobody waits for.
func TestReports(t *testing.T) {
	l := newLane(t)
	c := l.connect("127.0.0.1")
	defer c.close()
	seen := func() [2]uint8 {
		s := &l.t.streams.all[0].sides
		return [2]uint8{s[near].seen, s[far].seen}
	}
	sent := l.stall(c.client, plenty)
	if want := ([2]uint8{0, flow.Readable | flow.Writable}); seen() != want {
		t.Errorf("full: %d is reported, want %d", seen(), want)
	}
	got := receive(c.server)
	var r result
	l.until("received", func() bool { return poll(got, &r) })
	if r.err != nil || r.n != plenty {
		t.Fatalf("%d bytes, %v", r.n, r.err)
	}
	l.until("no room awaited", func() bool { return seen()[far] == flow.Readable })
	<-sent
	for range 8 {
		events := l.reports
		if _, err := fd(c.server).Write([]byte{1}); err != nil {
			t.Fatal(err)
		}
		for range 5 {
			l.step()
		}
		if n := l.reports - events; n != 1 {
			t.Errorf("%d events for a byte", n)
		}
	}
}
