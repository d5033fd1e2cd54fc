// SPDX-License-Identifier: Apache-2.0

package wait

import (
	"testing"
	"time"
)

// TestTimer: a timer in a set is ready once for each time that it was taken, and neither
// before it was started nor after it was stopped.
func TestTimer(t *testing.T) {
	var timer Timer
	var s Set
	if err := timer.Open(); err != nil {
		t.Fatal(err)
	}
	defer timer.Close()
	if err := s.Open(); err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	if err := s.Add(timer.FD()); err != nil {
		t.Fatal(err)
	}
	if timer.Take() {
		t.Error("it has ended and was not started")
	}
	const period = 20 * time.Millisecond
	start := time.Now()
	for range 2 { // the second changes nothing
		if err := timer.Start(period); err != nil {
			t.Fatal(err)
		}
	}
	for range 3 {
		returns(t, waiting(&s))
		if !s.Ready(timer.FD()) || !timer.Take() {
			t.Fatal("the wait ends, and the timer has not")
		}
	}
	if d := time.Since(start); d < 3*period {
		t.Errorf("three periods of %v took %v", period, d)
	}
	time.Sleep(2 * period) // it ends once more, and nobody takes that
	if err := timer.Stop(); err != nil {
		t.Fatal(err)
	}
	ended := waiting(&s)
	select {
	case err := <-ended:
		t.Fatalf("it was stopped, and the wait ends: %v", err)
	case <-time.After(5 * period):
	}
	if err := timer.Start(period); err != nil {
		t.Fatal(err)
	}
	returns(t, ended)
}
