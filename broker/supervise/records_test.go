// SPDX-License-Identifier: Apache-2.0

package supervise

import (
	"errors"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"aldente/ipc"
	"aldente/ipc/ipctest"
)

// TestRecordsTaken: a worker that starts says what the table of kinds permits, that it
// is ready, or it is none. The same holds for names, which has a kind of its own for that.
func TestRecordsTaken(t *testing.T) {
	for _, p := range []Program{Worker, Names} {
		recordsTaken(t, p.From)
	}
}

func recordsTaken(t *testing.T, from ipc.Direction) {
	for _, m := range ipctest.Messages(ipctest.Records()) {
		ours, its, err := ipc.Pair()
		if err != nil {
			t.Fatal(err)
		}
		fd := -1
		if m.FD {
			fd = its
		}
		if err := ipc.Send(its, m.Bytes, fd); err != nil {
			t.Fatal(err)
		}
		err = awaitReady(ours, from, 10*time.Second)
		want := ipctest.Permitted(&m, from, ipc.Starting)
		if want != (err == nil) || want == errors.Is(err, ipc.ErrMalformed) {
			t.Errorf("%s: %v, the table says %v", m.Name, err, want)
		}
		unix.Close(ours)
		unix.Close(its)
	}
}
