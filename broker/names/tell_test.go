// SPDX-License-Identifier: Apache-2.0

package names

import (
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"aldente/ipc"
)

// TestTell: nobody waits for a process that reads nothing. What comes with a descriptor it does
// not get; what does not it gets when there is room, however late.
func TestTell(t *testing.T) {
	r := newRig(t, rules(t, "allow pypi.test", "deny any"), "192.0.2.53")
	_ = unix.SetsockoptTimeval(r.broker, unix.SOL_SOCKET, unix.SO_SNDTIMEO, &unix.Timeval{Sec: 20})
	rec := (&ipc.StageEnd{ID: 7}).Encode()
	sent := 0
	for ; ipc.SendNow(r.broker, rec, -1) == nil; sent++ {
	}
	since := time.Now()
	if err := r.Tell((&ipc.Stage{ID: 9, What: ipc.StageTLS}).Encode(), r.control); err != unix.EAGAIN {
		t.Errorf("with a descriptor: %v", err)
	}
	if err := r.Tell((&ipc.StageEnd{ID: 8}).Encode(), -1); err != nil {
		t.Errorf("without: %v", err)
	}
	if took := time.Since(since); took > 5*time.Second {
		t.Errorf("it waited for %v", took)
	}
	var last ipc.StageEnd
	for range sent + 1 {
		b, _ := r.hear(ipc.NamesKindStageEnd)
		if err := last.Decode(b); err != nil {
			t.Fatal(err)
		}
	}
	if last.ID != 8 {
		t.Errorf("the last is about %d", last.ID)
	}
}
