// SPDX-License-Identifier: Apache-2.0

package logging

import (
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// listener binds a socket for datagrams in the place of one of the system's, and
// returns what reads the next, "" if there is none.
func listener(t *testing.T, place *string) func() string {
	t.Helper()
	was := *place
	*place = filepath.Join(t.TempDir(), "socket")
	t.Cleanup(func() { *place = was })
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { unix.Close(fd) })
	if err := unix.Bind(fd, &unix.SockaddrUnix{Name: *place}); err != nil {
		t.Fatal(err)
	}
	b := make([]byte, 1<<20)
	return func() string {
		n, err := unix.Read(fd, b)
		if err != nil {
			return ""
		}
		return string(b[:n])
	}
}

// absent has one of the system's sockets not be there.
func absent(t *testing.T, place *string) {
	was := *place
	*place = filepath.Join(t.TempDir(), "none")
	t.Cleanup(func() { *place = was })
}

// atJournal has standard error be the journal's, or not.
func atJournal(t *testing.T, is bool) {
	was := stderrIsJournal
	stderrIsJournal = func() bool { return is }
	t.Cleanup(func() { stderrIsJournal = was })
}

// TestJournalFields: what the journal gets, byte by byte.
func TestJournalFields(t *testing.T) {
	next := listener(t, &journalSocket)
	said := stderr(t)
	atJournal(t, true)
	log, _, err := New(Options{Level: slog.LevelDebug, Tag: "pasta"})
	if err != nil {
		t.Fatal(err)
	}
	frame := func(message string, priority int) string {
		return fmt.Sprintf("MESSAGE=%s\nPRIORITY=%d\nSYSLOG_FACILITY=3\nSYSLOG_IDENTIFIER=pasta\nSYSLOG_PID=%d\n", message, priority, os.Getpid())
	}
	for _, tt := range []struct {
		do   func()
		want string
	}{
		{func() { log.Info("plain") }, frame("plain", 6)},
		{func() { log.Error("wrong", "error", errors.New("no such file")) }, frame(`wrong error="no such file"`, 3) + "ALDENTE_ERROR=no such file\n"},
		{func() { log.With("component", "worker").Warn("said", "change_by", "x=y", "a-b.c", 7) },
			frame("said component=worker change_by=x=y a-b.c=7", 4) + "ALDENTE_COMPONENT=worker\nALDENTE_CHANGE_BY=x=y\nALDENTE_A_B_C=7\n"},
		{func() { log.Debug("lines", "of", "two\nlines") },
			frame(`lines of="two\nlines"`, 7) + "ALDENTE_OF\n\x09\x00\x00\x00\x00\x00\x00\x00two\nlines\n"},
		{func() { log.Info("two\nlines") },
			"MESSAGE\n\x09\x00\x00\x00\x00\x00\x00\x00two\nlines\n" + frame("", 6)[len("MESSAGE=\n"):]},
		{func() { log.Info("forged\x1b[2J", "a", "x\nPRIORITY=0\n\x1b[2J") },
			frame(`forged?[2J a="x\nPRIORITY=0\n\x1b[2J"`, 6) + "ALDENTE_A\n\x11\x00\x00\x00\x00\x00\x00\x00x\nPRIORITY=0\n?[2J\n"},
		{func() { log.Info("empty", "a", "") }, frame("empty a=", 6) + "ALDENTE_A=\n"},
	} {
		tt.do()
		if got := next(); got != tt.want {
			t.Errorf("%q, want %q", got, tt.want)
		}
	}
	if s := said() + next(); s != "" {
		t.Errorf("standard error has %q", s)
	}
}

// TestJournalBounds: however much there is to say, it arrives, cut.
func TestJournalBounds(t *testing.T) {
	next := listener(t, &journalSocket)
	said := stderr(t)
	atJournal(t, true)
	log, _, err := New(Options{Tag: "pasta"})
	if err != nil {
		t.Fatal(err)
	}
	long := strings.Repeat("x", 1<<20)
	var args []any
	for k := range 100 {
		args = append(args, fmt.Sprintf("k%d", k), long)
	}
	log.Info(long, args...)
	got := next()
	if len(got) > maxJournal || !strings.HasPrefix(got, "MESSAGE=xxx") || !strings.Contains(got, "\nALDENTE_K0=xxx") || said() != "" {
		t.Errorf("%d bytes: %.40q; standard error has %d", len(got), got, len(said()))
	}
	for l := range strings.Lines(got) {
		if !regexp.MustCompile(`^[A-Z][A-Z0-9_]{0,63}=`).MatchString(l) {
			t.Errorf("line %.80q", l)
		}
	}
	log.Info("name", long, 1)
	if got := next(); !strings.Contains(got, "\nALDENTE_"+strings.Repeat("X", 56)+"=1\n") {
		t.Errorf("%.200q", got)
	}
}

// TestJournalGone: a journal that is not there, or not any more, leaves what there was
// without it.
func TestJournalGone(t *testing.T) {
	atJournal(t, true)
	absent(t, &journalSocket)
	said := stderr(t)
	log, _, err := New(Options{Tag: "pasta"})
	if err != nil {
		t.Fatal(err)
	}
	if log.Info("none", "a", 1); said() != "<6>none a=1\n" {
		t.Errorf("%q", said())
	}
	next := listener(t, &journalSocket)
	if log, _, err = New(Options{Tag: "pasta", Stream: true}); err != nil {
		t.Fatal(err)
	}
	if log.Info("stream"); next() != "" || said() != "<6>none a=1\n<6>stream\n" {
		t.Errorf("%q", said())
	}
	if log, _, err = New(Options{Tag: "pasta"}); err != nil {
		t.Fatal(err)
	}
	for k := 0; said() == "<6>none a=1\n<6>stream\n"; k++ { // until the socket's queue is full
		if log.Info("queued"); k > 10000 {
			t.Fatal("the journal reads nothing, and all is taken")
		}
	}
	if said() != "<6>none a=1\n<6>stream\n<6>queued\n" {
		t.Errorf("%q", said())
	}
}

// TestSystemLog: in the background lines go to the journal, with fields, or where
// that is not, to what listens at /dev/log.
func TestSystemLog(t *testing.T) {
	atJournal(t, false)
	for _, has := range []bool{true, false} {
		syslog := listener(t, &syslogSocket)
		journal := func() string { return "" }
		if has {
			journal = listener(t, &journalSocket)
		} else {
			absent(t, &journalSocket)
		}
		said := stderr(t)
		log, out, err := New(Options{Tag: "passt"})
		if err != nil {
			t.Fatal(err)
		}
		log.Info("before")
		out.Prepare()
		log.Info("still before")
		out.Detach()
		log.Warn("after", "a", 1)
		if said() != "before\nstill before\n" {
			t.Errorf("standard error has %q", said())
		}
		old, fields := syslog(), journal()
		if ok := regexp.MustCompile(`^<28>\w{3} [ \d]\d \d\d:\d\d:\d\d passt\[\d+\]: after a=1$`).MatchString(old); ok == has {
			t.Errorf("journal %v: the system log has %q", has, old)
		}
		if ok := strings.HasPrefix(fields, "MESSAGE=after a=1\nPRIORITY=4\n") && strings.HasSuffix(fields, "\nALDENTE_A=1\n"); ok != has {
			t.Errorf("journal %v: it has %q", has, fields)
		}
	}
	absent(t, &journalSocket)
	absent(t, &syslogSocket)
	said := stderr(t)
	log, out, err := New(Options{Tag: "passt"})
	if err != nil {
		t.Fatal(err)
	}
	out.Prepare()
	out.Detach()
	if log.Info("nobody hears"); said() != "" {
		t.Errorf("%q", said())
	}
}

// TestSystemLogFull: lines that the system log does not take are counted, and told of in
// front of the next one that it takes.
func TestSystemLogFull(t *testing.T) {
	for _, c := range []struct {
		name       string
		here, none *string
	}{{"journal", &journalSocket, &syslogSocket}, {"syslog", &syslogSocket, &journalSocket}} {
		t.Run(c.name, func(t *testing.T) {
			next := listener(t, c.here)
			absent(t, c.none)
			_, out, err := New(Options{Tag: "pasta"})
			if err != nil {
				t.Fatal(err)
			}
			flows, err := out.Flows(Options{Tag: "pasta"})
			if err != nil {
				t.Fatal(err)
			}
			const lines = 10000 // more than a socket's queue has room for
			for k := range lines {
				flows.Info("flow", "k", k)
			}
			taken := 0
			for next() != "" {
				taken++
			}
			if taken == lines {
				t.Fatal("nothing was lost")
			}
			flows.Info("again")
			told := fmt.Sprintf("the system log did not take lines count=%d", lines-taken)
			if first, second := next(), next(); !strings.Contains(first, told) || !strings.Contains(second, "again") {
				t.Errorf("%q, %q: %q expected in front", first, second, told)
			}
			if flows.Info("last"); !strings.Contains(next(), "last") {
				t.Error("told of twice")
			}
		})
	}
}

// TestFlows: a log of its own goes on behind what its file has, and the program's log
// tells that the file takes no more. Without a file it goes to the system log.
func TestFlows(t *testing.T) {
	atJournal(t, false)
	said := stderr(t)
	path := filepath.Join(t.TempDir(), "flows")
	if err := os.WriteFile(path, []byte("of before\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	log, out, err := New(Options{Level: slog.LevelWarn, Tag: "pasta"})
	if err != nil {
		t.Fatal(err)
	}
	flows, err := out.Flows(Options{Tag: "pasta", File: path, Size: 8192})
	if err != nil {
		t.Fatal(err)
	}
	log.Warn("one")
	for range 5 {
		flows.Info("flow", "a", 1)
	}
	b, err := os.ReadFile(path)
	if err != nil || !strings.HasPrefix(string(b), "of before\n") || strings.Count(string(b), " info: flow a=1\n") != 5 || said() != "one\n" {
		t.Errorf("%q, %v; standard error has %q", b, err, said())
	}
	for range 1000 {
		flows.Info("flow", "a", 1)
	}
	if st, err := os.Stat(path); err != nil || st.Size() > 8192 || st.Size() < 3000 {
		t.Errorf("%d bytes, %v", st.Size(), err)
	}
	full, err := out.Flows(Options{Tag: "pasta", File: "/dev/full", Size: 8192})
	if err != nil {
		t.Fatal(err)
	}
	full.Info("flow")
	full.Info("flow")
	want := "one\nflow log: lines are lost until there is room path=/dev/full error=\"no space left on device\"\n"
	if said() != want {
		t.Errorf("standard error has %q, want %q", said(), want)
	}
	absent(t, &journalSocket)
	absent(t, &syslogSocket)
	if _, err := out.Flows(Options{Tag: "pasta"}); err == nil || !strings.Contains(err.Error(), "there is no system log") {
		t.Error(err)
	}
	next := listener(t, &journalSocket)
	if flows, err = out.Flows(Options{Tag: "pasta"}); err != nil {
		t.Fatal(err)
	}
	if flows.Info("flow", "end", "closed"); !strings.HasSuffix(next(), "\nALDENTE_END=closed\n") {
		t.Error("the journal has no fields")
	}
}
