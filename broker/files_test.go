// SPDX-License-Identifier: Apache-2.0

package main

import (
	"encoding/binary"
	"log/slog"
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"

	"aldente/broker/cli"
	"aldente/ipc"
)

// noted collects what is told.
type noted struct{ lines []string }

// Write implements io.Writer.
func (n *noted) Write(line []byte) (int, error) {
	n.lines = append(n.lines, string(line))
	return len(line), nil
}

func (n *noted) log() *slog.Logger { return slog.New(slog.NewTextHandler(n, nil)) }

// TestCaptureCut: what a worker that died has left behind the last whole record is
// cut off, as far as one buffer goes and the worker has written it.
func TestCaptureCut(t *testing.T) {
	for _, tt := range []struct {
		name    string
		written int    // by the worker, behind 1,000 bytes of one before
		count   uint64 // that it says are whole
		size    int    // of the file after that
		ended   bool
	}{
		{"whole", 500, 500, 1500, false},
		{"nothing", 0, 0, 1000, false},
		{"half a record", 777, 500, 1500, false},
		{"half of the first record", 77, 0, 1000, false},
		{"a full buffer", ipc.CaptureBuffer, 0, 1000, false},
		{"takes back more than it had in hand", ipc.CaptureBuffer + 1, 0, 1000 + ipc.CaptureBuffer + 1, true},
		{"says more than it has written", 500, 501, 1500, true},
		{"says far more", 500, 1 << 63, 1500, true},
		{"says as much as can be", 500, 1<<64 - 2, 1500, true},
	} {
		t.Run(tt.name, func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "pcap")
			var said noted
			c, err := openCapture(&cli.Config{Pcap: path, PcapSize: -1}, said.log())
			if err != nil {
				t.Fatal(err)
			}
			write := func(n int, whole uint64) {
				unix.Write(c.fd, make([]byte, n))
				var b [8]byte
				binary.NativeEndian.PutUint64(b[:], whole)
				unix.Write(c.mark, b[:])
			}
			write(1000, 1000)
			c.workerGone()
			write(tt.written, tt.count)
			c.workerGone()
			st, err := os.Stat(path)
			if err != nil || st.Size() != int64(tt.size) || c.ended != tt.ended || len(said.lines) != 0 != tt.ended {
				t.Errorf("%d bytes, want %d; ended %v, want %v; said %q; %v", st.Size(), tt.size, c.ended, tt.ended, said.lines, err)
			}
			if !tt.ended && c.size != int64(tt.size) {
				t.Errorf("%d bytes are known to be whole, want %d", c.size, tt.size)
			}
		})
	}
}

// TestUndo removes what was left, unless that is forgotten.
func TestUndo(t *testing.T) {
	dir := t.TempDir()
	var u undo
	for _, name := range []string{"kept", "gone"} {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, nil, 0o600); err != nil {
			t.Fatal(err)
		}
		u.add(path)
		if name == "kept" {
			u.forget()
		}
	}
	u.all()
	if left, _ := filepath.Glob(dir + "/*"); len(left) != 1 || filepath.Base(left[0]) != "kept" {
		t.Errorf("left are %q", left)
	}
}
