// SPDX-License-Identifier: Apache-2.0

// Package stream tests passt through its stream socket, as QEMU speaks to it,
// with frames made by hand and with a guest whose kernel is that of a network
// namespace. Package qemu does it with QEMU itself.
package stream

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"aldente/test/netlab"
	"aldente/test/stream/standin"
)

func TestMain(m *testing.M) {
	standin.Main()
	os.Exit(netlab.Main(m.Run))
}

// passt is a running passt.
type passt struct {
	*netlab.Proc
	path string // of its socket
}

// start starts passt in the foreground on the lab's host and waits until it
// listens.
func start(t *testing.T, lab *netlab.Lab, args ...string) *passt {
	t.Helper()
	return startWith(t, lab, "", args...)
}

// startWith is start on a host with this resolv.conf, or its own.
func startWith(t *testing.T, lab *netlab.Lab, resolv string, args ...string) *passt {
	t.Helper()
	return startFor(t, lab, netlab.GuestSpec{Timeout: 5 * time.Minute, Resolv: resolv}, args...)
}

// startFor is start with the timeout and resolv.conf of spec.
func startFor(t *testing.T, lab *netlab.Lab, spec netlab.GuestSpec, args ...string) *passt {
	t.Helper()
	path := filepath.Join(openDir(t), "socket")
	spec.Binary, spec.User = program(t), netlab.Nobody
	p := &passt{lab.For(t).StartPasta(spec, slices.Concat([]string{"-f", "-s", path}, args)...), path}
	for range 500 {
		if listens(lab.Host, path) {
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

// program is the passt beside the pasta under test.
func program(t *testing.T) string {
	t.Helper()
	if netlab.Pasta() == "" {
		t.Fatal("no program to test: run make first")
	}
	return filepath.Join(filepath.Dir(netlab.Pasta()), "passt")
}

// openDir returns a folder that any user may write to.
func openDir(t *testing.T) string {
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

// listens looks the socket up in the kernel's list: connecting would count as
// a client.
func listens(host *netlab.NS, path string) bool {
	for line := range strings.Lines(host.Read("/proc/net/unix")) {
		f := strings.Fields(line)
		// Flags 0x10000: it accepts connections.
		if len(f) == 8 && f[7] == path && f[3] == "00010000" {
			return true
		}
	}
	return false
}

// worker returns the process id of passt's worker.
func (p *passt) worker(t *testing.T) int {
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

// memory returns the resident memory of a process in KiB, without what it maps
// of files.
func memory(t *testing.T, pid int) (kib int64) {
	t.Helper()
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(b)) {
		if v, ok := strings.CutPrefix(line, "RssAnon:"); ok {
			fmt.Sscan(v, &kib)
		}
	}
	return kib
}

// descriptors returns how many a process has open.
func descriptors(t *testing.T, pid int) int {
	t.Helper()
	e, err := os.ReadDir(fmt.Sprintf("/proc/%d/fd", pid))
	if err != nil {
		t.Fatal(err)
	}
	return len(e)
}

// needOurs leaves a test out that asks more than another passt does.
func needOurs(t *testing.T) {
	t.Helper()
	if !netlab.Ours() {
		t.Skip("asks more than this passt does")
	}
}
