// SPDX-License-Identifier: Apache-2.0

package startup

import (
	"os"
	"os/exec"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// stranger is a user of whom nothing runs.
const stranger = 2000064123

// TestLimits looks from a process of its own, whose limits go down with it.
func TestLimits(t *testing.T) {
	const env = "ALDENTE_TEST_STARTUP"
	tests := map[string]struct {
		what  int
		limit uint64
		user  int
		want  string
	}{
		"as it is":            {-1, 0, -1, ""},
		"address space":       {unix.RLIMIT_AS, 1 << 30, -1, "ulimit -v"},
		"enough of it":        {unix.RLIMIT_AS, 8 << 30, -1, ""},
		"data":                {unix.RLIMIT_DATA, 1 << 30, -1, "ulimit -d"},
		"open files":          {unix.RLIMIT_NOFILE, 64, -1, "ulimit -Hn"},
		"enough of them":      {unix.RLIMIT_NOFILE, files, -1, ""},
		"processes":           {unix.RLIMIT_NPROC, 6, stranger, "ulimit -u) is 6, of which"},
		"enough processes":    {unix.RLIMIT_NPROC, 30, stranger, ""},
		"one process too few": {unix.RLIMIT_NPROC, tasks - 1, stranger, "are needed"},
	}
	if name := os.Getenv(env); name != "" {
		tt := tests[name]
		if tt.what >= 0 {
			if err := unix.Setrlimit(tt.what, &unix.Rlimit{Cur: tt.limit, Max: tt.limit}); err != nil {
				t.Skip(err)
			}
		}
		err := Limits(tt.user, tt.user)
		if (err != nil) != (tt.want != "") || err != nil && !strings.Contains(err.Error(), tt.want) {
			t.Errorf("%v, want %q", err, tt.want)
		}
		if err != nil && strings.Contains(err.Error(), "\n") {
			t.Errorf("more than one line: %v", err)
		}
		if testing.CoverMode() != "" && !t.Failed() {
			unix.Exit(0) // a profile takes memory that the limit does not leave
		}
		return
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			if tt.user >= 0 && os.Geteuid() != 0 {
				t.Skip("only root is another user as well")
			}
			cmd := exec.Command("/proc/self/exe", "-test.run=^TestLimits$", "-test.v")
			cmd.Env = append(os.Environ(), env+"="+name)
			if out, err := cmd.CombinedOutput(); err != nil {
				t.Errorf("%v\n%s", err, out)
			}
		})
	}
}

// TestTry makes as many processes as asked, and leaves none behind.
func TestTry(t *testing.T) {
	for _, n := range []int{1, 2, tasks} {
		if got := try(n, -1, -1); got != n {
			t.Errorf("%d of %d", got, n)
		}
	}
	if pid, err := unix.Wait4(-1, nil, unix.WNOHANG, nil); err != unix.ECHILD {
		t.Errorf("a child is left: %d, %v", pid, err)
	}
}

func BenchmarkLimits(b *testing.B) {
	for b.Loop() {
		if err := Limits(-1, -1); err != nil {
			b.Fatal(err)
		}
	}
}
