// SPDX-License-Identifier: Apache-2.0

package sockets

import (
	"bytes"
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

// TestInflightUnasked: memory for what is in flight is asked for by workers for
// vhost-user alone.
func TestInflightUnasked(t *testing.T) {
	var f Factory
	rec := ipctest.Records()[ipc.KindInflight]
	if err := f.message(ipc.KindInflight, rec, nil, nil); !errors.Is(err, ipc.ErrMalformed) {
		t.Errorf("without vhost-user: %v", err)
	}
	var got ipc.Inflight
	f.OnInflight = func(r *ipc.Inflight) { got = *r }
	if err := f.message(ipc.KindInflight, rec, nil, nil); err != nil || got.Bytes != 4096 || got.Ring != 64 {
		t.Errorf("%+v, %v", got, err)
	}
	if err := f.message(ipc.KindInflight, rec[:len(rec)-1], nil, nil); !errors.Is(err, ipc.ErrMalformed) {
		t.Errorf("cut off: %v", err)
	}
}

// TestFiguresUnasked: figures are for whoever has asked, and what that says is the
// worker's end. Where there is nobody, any are.
func TestFiguresUnasked(t *testing.T) {
	for kind, rec := range ipctest.Records() {
		if kind != ipc.KindFlow && kind != ipc.KindFigures && kind != ipc.KindAnswered {
			continue
		}
		var f Factory
		if err := f.message(kind, rec, nil, nil); !errors.Is(err, ipc.ErrMalformed) {
			t.Errorf("kind %#x, and nobody has asked: %v", kind, err)
		}
		f.OnFigures = func(k ipc.Kind, msg []byte) error {
			if k != kind || len(msg) != len(rec) {
				t.Errorf("kind %#x with %d bytes, want %#x with %d", k, len(msg), kind, len(rec))
			}
			return io.ErrUnexpectedEOF
		}
		if err := f.message(kind, rec, nil, nil); !errors.Is(err, io.ErrUnexpectedEOF) {
			t.Errorf("kind %#x: %v", kind, err)
		}
	}
}

// TestAnswersAreNoFlood: a long answer does not use up what requests may, and a long
// message of requests counts for all of them.
func TestAnswersAreNoFlood(t *testing.T) {
	all := ipctest.Records()
	if n := weight(bytes.Repeat(all[ipc.KindFlow], ipc.MaxFigures)); n != 1 {
		t.Errorf("an answer counts for %d records", n)
	}
	if n := weight(bytes.Repeat(all[ipc.KindOpen], ipc.MaxBatch)); n != ipc.MaxBatch {
		t.Errorf("%d requests count for %d", ipc.MaxBatch, n)
	}
}
