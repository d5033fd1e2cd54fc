// SPDX-License-Identifier: Apache-2.0

package reader

import (
	"bytes"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

const maxSize = 4096

func write(t *testing.T, path, text string) {
	t.Helper()
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
}

// TestRead: files are read as they are at the time, each with its own error.
func TestRead(t *testing.T) {
	dir := t.TempDir()
	a, b := filepath.Join(dir, "a"), filepath.Join(dir, "b")
	write(t, a, "one")
	r, err := New([]string{a, b}, maxSize, false)
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	read := func() []File {
		t.Helper()
		got, err := r.Read()
		if err != nil || len(got) != 2 {
			t.Fatal(got, err)
		}
		return got
	}
	if got := read(); string(got[0].Text) != "one" || got[0].Err != nil || !errors.Is(got[1].Err, fs.ErrNotExist) {
		t.Errorf("%q", got)
	}
	// As editors do it: another file by the same name.
	write(t, b+".new", strings.Repeat("x", maxSize))
	if err := os.Rename(b+".new", b); err != nil {
		t.Fatal(err)
	}
	write(t, a, "")
	if got := read(); got[0].Err != nil || len(got[0].Text) != 0 || got[1].Err != nil || len(got[1].Text) != maxSize {
		t.Errorf("%q", got)
	}
	write(t, b, strings.Repeat("x", maxSize+1))
	write(t, a, strings.Repeat("x", 3*maxSize))
	for _, f := range read() {
		if f.Err == nil || !strings.Contains(f.Err.Error(), "larger than 4096 bytes") {
			t.Errorf("too large: %v", f.Err)
		}
	}
	if err := errors.Join(os.Remove(a), os.Mkdir(a, 0o700), os.Remove(b), unix.Mkfifo(b, 0o600)); err != nil {
		t.Fatal(err)
	}
	if got := read(); !errors.Is(got[0].Err, unix.EISDIR) || got[1].Err != nil || len(got[1].Text) != 0 {
		t.Errorf("a folder and a FIFO: %q", got)
	}
}

// TestReadGuarded: whoever is going to be somebody else follows no link.
func TestReadGuarded(t *testing.T) {
	dir := t.TempDir()
	file, link := filepath.Join(dir, "file"), filepath.Join(dir, "link")
	write(t, file, "secret")
	if err := os.Symlink(file, link); err != nil {
		t.Fatal(err)
	}
	for _, guarded := range []bool{false, true} {
		r, err := New([]string{link}, maxSize, guarded)
		if err != nil {
			t.Fatal(err)
		}
		got, err := r.Read()
		r.Close()
		now, errNow := Read(link, maxSize, guarded)
		if err != nil || (got[0].Err != nil) != guarded || (errNow != nil) != guarded {
			t.Errorf("guarded %t: %q, %v; at the start %q, %v", guarded, got, err, now, errNow)
		}
		if !guarded && (string(now) != "secret" || !bytes.Equal(now, got[0].Text)) {
			t.Errorf("%q and %q", now, got[0].Text)
		}
	}
}

// TestReadNoFile: what is no regular file is refused when it is read first.
func TestReadNoFile(t *testing.T) {
	fifo := filepath.Join(t.TempDir(), "fifo")
	if err := unix.Mkfifo(fifo, 0o600); err != nil {
		t.Fatal(err)
	}
	for _, path := range []string{fifo, "/dev/zero", "/"} {
		if b, err := Read(path, maxSize, false); err == nil || !strings.Contains(err.Error(), "no regular file") {
			t.Errorf("%s: %d bytes, %v", path, len(b), err)
		}
	}
}

// TestReadGone: a child that does not answer is left alone from then on, and whoever
// closes a reader has no process left.
func TestReadGone(t *testing.T) {
	defer func(d time.Duration) { patience = d }(patience)
	file := filepath.Join(t.TempDir(), "file")
	write(t, file, "text")
	r, err := New([]string{file}, maxSize, false)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := r.Read(); err != nil {
		t.Fatal(err)
	}
	patience = -time.Second
	if _, err := r.Read(); err == nil {
		t.Error("an answer before the question")
	}
	if _, err := r.Read(); !errors.Is(err, errGone) {
		t.Errorf("asked again: %v", err)
	}
	r.Close()
	var status unix.WaitStatus
	for {
		pid, err := unix.Wait4(-1, &status, 0, nil)
		if err == unix.EINTR {
			continue
		}
		if err == unix.ECHILD {
			break
		}
		if err != nil || !status.Exited() {
			t.Fatalf("process %d: %v, %#x", pid, err, status)
		}
	}
}
