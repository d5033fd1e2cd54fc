// SPDX-License-Identifier: Apache-2.0

package main

import (
	"encoding/binary"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
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

// TestUndo removes what was left, unless that is forgotten, and nothing else: not what
// has taken its place, in the directory or by another way to the same path.
func TestUndo(t *testing.T) {
	dir := t.TempDir()
	t.Chdir(dir)
	made := func(name string) (st unix.Stat_t) {
		t.Helper()
		fd, err := unix.Open(name, unix.O_WRONLY|unix.O_CREAT|unix.O_CLOEXEC, 0o600)
		if err == nil {
			err = unix.Fstat(fd, &st)
		}
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { unix.Close(fd) }) // as long as it is open its number is its own
		return st
	}
	for _, d := range []string{"ours", "theirs", "elsewhere"} {
		if err := os.Mkdir(d, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	var u undo
	for _, name := range []string{"ours/kept", "ours/gone", "gone", "ours/moved", "ours/replaced"} {
		st := made(name)
		if u.add(name, &st); name == "ours/kept" {
			u.forget()
		}
	}
	st := made("ours/other")
	u.add("ours/kept", &st) // another file's path by then
	for _, err := range []error{
		os.Rename("ours/moved", "ours/away"),
		os.Remove("ours/replaced"),
		os.WriteFile("ours/replaced", nil, 0o600),
		os.WriteFile("theirs/gone", nil, 0o600),
		os.WriteFile("elsewhere/gone", nil, 0o600),
		os.Rename("ours", "hidden"),
		os.Symlink("theirs", "ours"),
		os.Chdir("elsewhere"), // in the background there is another directory
	} {
		if err != nil {
			t.Fatal(err)
		}
	}
	u.all()
	var left []string
	for _, glob := range []string{"*", "*/*"} {
		names, _ := filepath.Glob(filepath.Join(dir, glob))
		for _, n := range names {
			if st, err := os.Lstat(n); err == nil && st.Mode().IsRegular() {
				n, _ = filepath.Rel(dir, n)
				left = append(left, n)
			}
		}
	}
	slices.Sort(left)
	want := []string{"elsewhere/gone", "hidden/away", "hidden/kept", "hidden/other", "hidden/replaced", "ours/gone", "theirs/gone"}
	if !slices.Equal(left, want) {
		t.Errorf("left are %q, want %q", left, want)
	}
}

// TestCaptureSend: a worker is told of the capture what is left of it, and that of its
// own mark.
func TestCaptureSend(t *testing.T) {
	var none *capture
	if err := none.send(-1); err != nil || none.bound() != 0 {
		t.Errorf("no capture: %v, %d", err, none.bound())
	}
	none.workerGone()
	var said noted
	for _, tt := range []struct {
		size, max  int64
		room       int64
		appends    bool
		sent, ends bool
	}{
		{0, -1, -1, false, true, false},
		{0, 8192, 8192, false, true, false},
		{5000, 8192, 3192, true, true, false},
		{9000, 8192, 0, true, true, false},
		{0, -1, 0, false, false, true},
	} {
		c, err := openCapture(&cli.Config{Pcap: filepath.Join(t.TempDir(), "pcap"), PcapSize: tt.max}, said.log())
		if err != nil {
			t.Fatal(err)
		}
		c.size, c.ended = tt.size, tt.ends
		ours, its, err := ipc.Pair()
		if err != nil {
			t.Fatal(err)
		}
		if err := c.send(ours); err != nil {
			t.Fatal(err)
		}
		unix.Close(ours)
		var got []ipc.Capture
		for {
			b := make([]byte, ipc.MaxRecord)
			n, fd, err := ipc.Receive(its, b, 0)
			if err != nil {
				break
			}
			var r ipc.Capture
			if err := r.Decode(b[:n]); err != nil || fd < 0 {
				t.Fatalf("%+v, descriptor %d, %v", r, fd, err)
			}
			unix.Close(fd)
			got = append(got, r)
		}
		unix.Close(its)
		switch {
		case !tt.sent && len(got) == 0:
		case len(got) != 2 || got[0].Flags != ipc.CaptureMark || got[1].Room != tt.room || (got[1].Flags&ipc.CaptureAppend != 0) != tt.appends:
			t.Errorf("%d of %d bytes: %+v", tt.size, tt.max, got)
		}
		unix.Close(c.fd)
		unix.Close(c.mark)
	}
	// A folder is no place to write to: the guest is connected all the same.
	if c, err := openCapture(&cli.Config{Pcap: t.TempDir(), PcapSize: -1}, said.log()); c != nil || err != nil || !strings.Contains(fmt.Sprint(said.lines), "no packet capture") {
		t.Errorf("a folder: %v, %v, %q", c, err, said.lines)
	}
}
