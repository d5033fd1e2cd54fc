// SPDX-License-Identifier: Apache-2.0

package logging

import (
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// noted collects what is told.
type noted struct{ lines []string }

func (n *noted) note(e *event) { n.lines = append(n.lines, string(e.line)) }

// line is an event of one line.
func line(format string, args ...any) *event {
	return newEvent(slog.LevelInfo, fmt.Sprintf(format, args...))
}

// smallDisk makes a file system of a few pages.
func smallDisk(t *testing.T, size string) string {
	t.Helper()
	dir := t.TempDir()
	if err := unix.Mount("tmpfs", dir, "tmpfs", 0, "size="+size); err != nil {
		t.Skip("no file system can be mounted:", err)
	}
	t.Cleanup(func() { _ = unix.Unmount(dir, unix.MNT_DETACH) })
	return dir
}

// TestLogFileFullDisk: whole lines, how many are missing and where, and one word of
// it elsewhere.
func TestLogFileFullDisk(t *testing.T) {
	dir := smallDisk(t, "64k")
	filler := filepath.Join(dir, "filler")
	if err := os.WriteFile(filler, make([]byte, 48<<10), 0o600); err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(dir, "log")
	l, err := openFile("log file", path, unix.O_TRUNC, 40<<10, false)
	if err != nil {
		t.Fatal(err)
	}
	var said noted
	l.elsewhere = said.note
	for i := range 1000 {
		if i == 900 {
			if err := os.Remove(filler); err != nil {
				t.Fatal(err)
			}
		}
		l.write(line("line %d", i))
	}
	if len(said.lines) != 1 || !strings.Contains(said.lines[0], "no space left") || !strings.Contains(said.lines[0], path) {
		t.Errorf("said %q", said.lines)
	}
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	next, missing := 0, 0
	for line := range strings.Lines(string(b)) {
		text := line[len(stamp):]
		var n int
		switch {
		case strings.HasPrefix(text, "warning: lines are missing here count="):
			if _, err := fmt.Sscanf(text, "warning: lines are missing here count=%d\n", &n); err != nil {
				t.Fatal(err)
			}
			next += n
			missing++
		case text == fmt.Sprintf("info: line %d\n", next):
			next++
		default:
			t.Fatalf("%q, expected line %d", line, next)
		}
	}
	if next != 1000 || missing != 1 {
		t.Errorf("%d lines are accounted for, with %d gaps", next, missing)
	}
}

// TestLogFilePipe: a FIFO that nobody reads takes some lines, and holds up nobody.
func TestLogFilePipe(t *testing.T) {
	path := filepath.Join(t.TempDir(), "fifo")
	if err := unix.Mkfifo(path, 0o600); err != nil {
		t.Fatal(err)
	}
	l, err := openFile("log file", path, unix.O_TRUNC, 40<<10, false)
	if err != nil {
		t.Fatal(err)
	}
	var said noted
	l.elsewhere = said.note
	for range 5000 {
		l.write(line("a line that is longer than most"))
	}
	if len(said.lines) != 1 || l.lost < 1000 {
		t.Errorf("said %q, %d lost", said.lines, l.lost)
	}
}

// TestLogFileRotates keeps the newer half, whole lines.
func TestLogFileRotates(t *testing.T) {
	path := filepath.Join(t.TempDir(), "log")
	l, err := openFile("log file", path, unix.O_TRUNC, 8192, false)
	if err != nil {
		t.Fatal(err)
	}
	for i := range 2000 {
		l.write(line("line %d", i))
		if st, err := os.Stat(path); err != nil || st.Size() > 8192 || i > 500 && st.Size() < 3000 {
			t.Fatalf("%d bytes, %v", st.Size(), err)
		}
	}
	b, _ := os.ReadFile(path)
	if !strings.HasSuffix(string(b), " line 1999\n") || !strings.HasPrefix(string(b), "20") {
		t.Errorf("%q", b)
	}
}

// TestJournal writes each line behind its level if standard error is the journal.
func TestJournal(t *testing.T) {
	was, isJournal := os.Stderr, stderrIsJournal
	defer func() { os.Stderr, stderrIsJournal = was, isJournal }()
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	os.Stderr = w
	for _, journal := range []bool{true, false} {
		stderrIsJournal = func() bool { return journal }
		toStderr(newEvent(slog.LevelWarn, "two\nlines"))
		toStderr(newEvent(slog.LevelDebug, "one"))
	}
	w.Close()
	b := make([]byte, 100)
	n, _ := r.Read(b)
	if want := "<4>two\n<4>lines\n<7>one\ntwo\nlines\none\n"; string(b[:n]) != want {
		t.Errorf("%q, want %q", b[:n], want)
	}
}
