// SPDX-License-Identifier: Apache-2.0

package main

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"aldente/policy"
	"aldente/policy/calls"
)

// events makes lines of the kernel's of calls by one process.
type events struct {
	u    *usage
	comm string
	pid  int
}

func (e *events) call(nr int, args ...uint64) {
	text := make([]string, 6)
	for i := range text {
		text[i] = "0"
		if i < len(args) {
			text[i] = fmt.Sprintf("%x", args[i])
		}
	}
	e.u.line(fmt.Sprintf("  %s-%d (  %d) [000] ..... 1.000001: sys_enter: NR %d (%s)", e.comm, e.pid, e.pid, nr, strings.Join(text, ", ")))
}

func (e *events) confine() { e.call(unix.SYS_SECCOMP, unix.SECCOMP_SET_MODE_FILTER) }

// excuseAll excuses all rules but one.
func excuseAll(u *usage, but string) map[string]string {
	all := map[string]string{}
	for _, r := range u.rules {
		if r.String() != but {
			all[r.String()] = "for this test"
		}
	}
	return all
}

// TestUnused: a rule that nothing used is named, and one that was is not: by the
// process that the list is of, when it was in force.
func TestUnused(t *testing.T) {
	u := newUsage()
	readv := &rule{Rule: calls.Rule{Call: "readv"}, list: policy.FilterWorker}
	u.rules = append(u.rules, readv)
	u.by[readv.list]["readv"] = []*rule{readv}
	excused := excuseAll(u, readv.String())
	check := func(when string, want ...string) {
		t.Helper()
		if got := u.judge(excused); !slices.Equal(got, want) {
			t.Errorf("%s: %q, want %q", when, got, want)
		}
	}
	const unused = "never used: worker readv: any arguments"
	check("nothing happened", unused)
	worker, other := events{u, workerComm, 4711}, events{u, "pasta", 4712}
	worker.call(unix.SYS_READV)
	check("not confined", unused)
	worker.confine()
	worker.call(unix.SYS_READV)
	check("with the list of its start", unused)
	other.confine()
	other.call(unix.SYS_READV)
	check("by the broker", unused)
	worker.confine()
	worker.call(unix.SYS_READ)
	check("another call", unused)
	worker.call(unix.SYS_READV)
	check("used")
	excused["worker writev: of anything"] = "a slip"
	check("excused what is not there", "an exception for no rule: worker writev: of anything")
}

// TestOwnNumbers: where the loader of a filter puts its own number, user and group
// in place, a call with those is its use.
func TestOwnNumbers(t *testing.T) {
	u := newUsage()
	e := events{u, "pasta", os.Getpid()}
	e.confine()
	me, uid, gid := uint64(os.Getpid()), uint64(os.Getuid()), uint64(os.Getgid())
	e.call(unix.SYS_TGKILL, me, me, uint64(unix.SIGURG))
	e.call(unix.SYS_SETRESUID, uid, uid, uid)
	e.call(unix.SYS_SETRESGID, gid, gid, gid+1)
	for name, want := range map[string]int{"tgkill": 1, "setresuid": 1, "setresgid": 0} {
		if got := u.by[policy.FilterBroker][name][0].seen; got != want {
			t.Errorf("%s: seen %d times, want %d", name, got, want)
		}
	}
}

// TestNarrowed: what a worker does is reported until it has used all of the broker's
// rules as well: a replacement is subject to both.
func TestNarrowed(t *testing.T) {
	u := newUsage()
	left := fmt.Sprintf(" && id != %d", unix.SYS_FCNTL)
	workers := func() string {
		task, _, _ := strings.Cut(u.filter(), ") || (")
		return task
	}
	for _, list := range []string{policy.FilterWorkerStart, policy.FilterWorker, policy.FilterWorkerVhostStart, policy.FilterWorkerVhost} {
		for _, r := range u.by[list]["fcntl"] {
			r.seen = 1
		}
	}
	if strings.Contains(workers(), left) {
		t.Error("fcntl is not reported, though the broker's rules were not all used")
	}
	for _, r := range u.by[policy.FilterBroker]["fcntl"] {
		r.seen = 1
	}
	if !strings.Contains(workers(), left) {
		t.Errorf("fcntl is still reported: %s", workers())
	}
}

// TestNotRecorded: where nothing can be recorded, the command runs all the same, and
// ends as it would.
func TestNotRecorded(t *testing.T) {
	was := tracefs
	t.Cleanup(func() { tracefs = was })
	tracefs = t.TempDir()
	trace := filepath.Join(tracefs, "ran")
	for status, want := range []int{0, 1, 2, 3} {
		got, err := run(&options{exceptions: "exceptions.txt"}, []string{"sh", "-c", fmt.Sprintf("echo >>%s; exit %d", trace, status)})
		if got != want || err != nil {
			t.Errorf("status %d, %v, want %d", got, err, want)
		}
	}
	if b, _ := os.ReadFile(trace); len(b) != 4 {
		t.Errorf("it ran %d times", len(b))
	}
	if _, err := run(&options{exceptions: "exceptions.txt"}, []string{"/nonexistent"}); err == nil {
		t.Error("a command that does not exist")
	}
}

// TestReasons: each exception has a reason, and is of a rule that there is.
func TestReasons(t *testing.T) {
	excused, err := readExceptions("exceptions.txt")
	if err != nil {
		t.Fatal(err)
	}
	u := newUsage()
	for _, b := range u.judge(excused) {
		if strings.HasPrefix(b, "an exception") {
			t.Error(b)
		}
	}
	bad := filepath.Join(t.TempDir(), "bad")
	if err := os.WriteFile(bad, []byte("worker read: any arguments\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := readExceptions(bad); err == nil {
		t.Error("an exception without a reason")
	}
}
