// SPDX-License-Identifier: Apache-2.0

package sockets

import (
	"errors"
	"io"
	"testing"

	"golang.org/x/sys/unix"

	"aldente/ipc"
	"aldente/ipc/ipctest"
)

// TestRecordsTaken: a running worker is served exactly as long as it sends what the
// table of kinds says.
func TestRecordsTaken(t *testing.T) {
	for _, m := range ipctest.Messages(ipctest.Records()) {
		w := work(t)
		fd := -1
		if m.FD {
			fd = w.worker
		}
		if err := ipc.Send(w.worker, m.Bytes, fd); err != nil {
			t.Fatal(err)
		}
		// It reads to the end what was sent before.
		if err := unix.Shutdown(w.worker, unix.SHUT_WR); err != nil {
			t.Fatal(err)
		}
		err := w.end(t)
		if want := ipctest.Permitted(&m, ipc.FromWorker, ipc.Running); want != errors.Is(err, io.EOF) || want == errors.Is(err, ipc.ErrMalformed) {
			t.Errorf("%s: %v, the table says %v", m.Name, err, want)
		}
	}
}
