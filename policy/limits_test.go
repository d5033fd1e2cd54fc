// SPDX-License-Identifier: Apache-2.0

package policy

import (
	"os"
	"os/exec"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// TestLimitsTighterAlready: a limit below ours, also one that may not be raised,
// is no missing layer, and stays. In a process of its own, which has given up
// the right to raise limits.
func TestLimitsTighterAlready(t *testing.T) {
	const limits = "ALDENTE_TEST_LIMITS"
	tests := map[string]struct {
		what      int
		cur, max  uint64
		stays     uint64
		threads   bool
		mentioned string
	}{
		"nproc 30":          {unix.RLIMIT_NPROC, 30, 30, 30, true, "nproc 30"},
		"nproc 20, may 30":  {unix.RLIMIT_NPROC, 20, 30, 20, true, "nproc 20"},
		"nproc 30, may 999": {unix.RLIMIT_NPROC, 30, 999, 30, true, "nproc 30"},
		"nproc 999":         {unix.RLIMIT_NPROC, 999, 999, MaxThreads, true, "nproc 32"},
		"nproc not ours":    {unix.RLIMIT_NPROC, 30, 30, 30, false, "memlock 0"},
		"memlock 0":         {unix.RLIMIT_MEMLOCK, 0, 0, 0, false, "memlock 0"},
		"core 0, may 4096":  {unix.RLIMIT_CORE, 0, 4096, 0, false, "core"},
		"msgqueue 0":        {unix.RLIMIT_MSGQUEUE, 0, 0, 0, false, "msgqueue"},
	}
	if name := os.Getenv(limits); name != "" {
		tt := tests[name]
		if err := unix.Setrlimit(tt.what, &unix.Rlimit{Cur: tt.cur, Max: tt.max}); err != nil {
			t.Skip(err)
		}
		if err := DropCapabilities(); err != nil {
			t.Skip(err)
		}
		l := Limits(tt.threads, -1, 0)
		if l.State != InForce || !strings.Contains(l.Detail, tt.mentioned) {
			t.Errorf("%v, want in force and %q", l, tt.mentioned)
		}
		var r unix.Rlimit
		if err := unix.Getrlimit(tt.what, &r); err != nil || r.Cur != tt.stays {
			t.Errorf("limit is %d (%v), want %d", r.Cur, err, tt.stays)
		}
		return
	}
	for name := range tests {
		t.Run(name, func(t *testing.T) {
			cmd := exec.Command("/proc/self/exe", "-test.run=^TestLimitsTighterAlready$", "-test.v")
			cmd.Env = append(os.Environ(), limits+"="+name)
			out, err := cmd.CombinedOutput()
			if err != nil {
				t.Errorf("%v\n%s", err, out)
			}
			if strings.Contains(string(out), "--- SKIP") {
				t.Skip(string(out))
			}
		})
	}
}
