// SPDX-License-Identifier: Apache-2.0

// Package machine is what tests of virtual machines share, whichever link they use: a
// passt at work, and what is seen of it from outside.
package machine

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"aldente/test/netlab"
)

// Passt is a running passt.
type Passt struct {
	*netlab.Proc
	Path string // of its socket
}

// Start starts passt in the foreground on the lab's host and waits until it listens. Of
// spec, the user and the program are set.
func Start(t *testing.T, lab *netlab.Lab, spec netlab.GuestSpec, args ...string) *Passt {
	t.Helper()
	path := filepath.Join(OpenDir(t), "socket")
	spec.Binary, spec.User = Program(t), netlab.Nobody
	p := &Passt{lab.For(t).StartPasta(spec, slices.Concat([]string{"-f", "-s", path}, args)...), path}
	for range 500 {
		if Listens(lab.Host, path) {
			return p
		}
		if p.Exited() {
			t.Fatalf("passt ended with status %d: %s", p.Wait(), p.Output())
		}
		time.Sleep(10 * time.Millisecond)
	}
	t.Fatalf("passt does not listen: %s", p.Output())
	return nil
}

// Program is the passt beside the pasta under test.
func Program(t *testing.T) string {
	t.Helper()
	if netlab.Pasta() == "" {
		t.Fatal("no program to test: run make first")
	}
	return filepath.Join(filepath.Dir(netlab.Pasta()), "passt")
}

// OpenDir returns a folder that any user may write to.
func OpenDir(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp(netlab.Stage(), "socket")
	if err == nil {
		err = os.Chmod(dir, 0o777)
	}
	if err != nil {
		t.Fatal(err)
	}
	return dir
}

// Listens looks the socket up in the kernel's list: connecting would count as
// a client.
func Listens(host *netlab.NS, path string) bool {
	for line := range strings.Lines(host.Read("/proc/net/unix")) {
		f := strings.Fields(line)
		// Flags 0x10000: it accepts connections.
		if len(f) == 8 && f[7] == path && f[3] == "00010000" {
			return true
		}
	}
	return false
}

// Worker returns the process id of passt's worker.
func (p *Passt) Worker(t *testing.T) int {
	t.Helper()
	for _, pid := range netlab.Children(p.PID) {
		cmd, _ := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", pid))
		if strings.HasPrefix(string(cmd), "aldente-worker") {
			return pid
		}
	}
	t.Fatalf("passt has no worker: %s", p.Output())
	return 0
}

// Descriptors returns how many a process has open.
func Descriptors(t *testing.T, pid int) int {
	t.Helper()
	e, err := os.ReadDir(fmt.Sprintf("/proc/%d/fd", pid))
	if err != nil {
		t.Fatal(err)
	}
	return len(e)
}

// NeedOurs leaves a test out that asks more than another passt does.
func NeedOurs(t *testing.T) {
	t.Helper()
	if !netlab.Ours() {
		t.Skip("asks more than this passt does")
	}
}
