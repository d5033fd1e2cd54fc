// SPDX-License-Identifier: Apache-2.0

package stream

import (
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"aldente/test/machine"
	"aldente/test/netlab"
)

// TestSecondStart: a start that fails, since its socket is another instance's, takes
// nothing of that one's along.
func TestSecondStart(t *testing.T) {
	lab := netlab.New(t, netlab.Options{NoRemote: true})
	dir := machine.OpenDir(t)
	path, pidFile := filepath.Join(dir, "socket"), filepath.Join(dir, "pid")
	args := []string{machine.Program(t), "--socket", path, "--pid", pidFile}
	ends(t, lab.Host.Start(netlab.Spec{User: netlab.Nobody, Args: args}), 10*time.Second)
	pid := readPID(t, pidFile)
	defer syscall.Kill(pid, syscall.SIGTERM)
	second := lab.Host.Start(netlab.Spec{User: netlab.Nobody, Args: args})
	if st, ok := second.WaitFor(10 * time.Second); !ok || st != 1 || !strings.Contains(second.Output(), "in use") {
		t.Errorf("status %d, %t: %s", st, ok, second.Output())
	}
	if now := readPID(t, pidFile); now != pid {
		t.Errorf("the PID file says %d, not %d", now, pid)
	}
}
