// SPDX-License-Identifier: Apache-2.0

// Package stream tests passt through its stream socket, as QEMU speaks to it,
// with frames made by hand and with a guest whose kernel is that of a network
// namespace. Package qemu does it with QEMU itself.
package stream

import (
	"fmt"
	"os"
	"strings"
	"testing"
	"time"

	"aldente/test/fetcher"
	"aldente/test/machine"
	"aldente/test/netlab"
	"aldente/test/stream/standin"
)

func TestMain(m *testing.M) {
	standin.Main()
	fetcher.Main()
	os.Exit(netlab.Main(m.Run))
}

// passt is a running passt.
type passt struct{ *machine.Passt }

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
	return &passt{machine.Start(t, lab, spec, args...)}
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
