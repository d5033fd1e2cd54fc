// SPDX-License-Identifier: Apache-2.0

// Package vhost tests passt's vhost-user: by a front-end that stands in for QEMU,
// with frames made by hand and with a guest whose kernel is that of a network
// namespace.
package vhost

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"aldente/test/netlab"
	"aldente/test/vhost/frontend"
)

func TestMain(m *testing.M) {
	frontend.Main()
	os.Exit(netlab.Main(m.Run))
}

// passt is a running passt.
type passt struct {
	*netlab.Proc
	path string // of its socket
}

// start starts passt in the foreground on the lab's host and waits until it listens.
func start(t *testing.T, lab *netlab.Lab, args ...string) *passt {
	t.Helper()
	return startFor(t, lab, 5*time.Minute, args...)
}

// startFor is start with the time after which it is killed.
func startFor(t *testing.T, lab *netlab.Lab, timeout time.Duration, args ...string) *passt {
	t.Helper()
	dir, err := os.MkdirTemp(netlab.Stage(), "socket")
	if err == nil {
		err = os.Chmod(dir, 0o777)
	}
	if err != nil {
		t.Fatal(err)
	}
	if netlab.Pasta() == "" {
		t.Fatal("no program to test: run make first")
	}
	path := filepath.Join(dir, "socket")
	binary := filepath.Join(filepath.Dir(netlab.Pasta()), "passt")
	p := &passt{lab.For(t).Host.Start(netlab.Spec{User: netlab.Nobody, Timeout: timeout,
		Args: slices.Concat([]string{binary, "-f", "--vhost-user", "-s", path}, args)}), path}
	for range 500 {
		if p.listens(lab) {
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

// listens looks the socket up in the kernel's list: connecting would count as a
// client.
func (p *passt) listens(lab *netlab.Lab) bool {
	for line := range strings.Lines(lab.Host.Read("/proc/net/unix")) {
		f := strings.Fields(line)
		// Flags 0x10000: it accepts connections.
		if len(f) == 8 && f[7] == p.path && f[3] == "00010000" {
			return true
		}
	}
	return false
}

// guest is a namespace whose network card is a front-end's.
type guest struct {
	*netlab.NS
	in *frontend.Process
}

// join makes a guest of this MTU, with the host's addresses, and joins it to passt.
func (p *passt) join(t *testing.T, o frontend.Options, mtu int) *guest {
	t.Helper()
	g := &guest{NS: netlab.NewNS(t, "guest")}
	g.Sysctl("net/ipv6/conf/default/accept_ra", "0") // it has all it needs
	o.Socket = p.path
	err := g.Do(func() (err error) { g.in, err = frontend.Start(o); return })
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(g.in.Kill)
	g.IP(fmt.Sprintf("link set %s mtu %d txqueuelen 32768 up", frontend.Interface, mtu),
		"addr add "+netlab.Host4+"/24 dev "+frontend.Interface, "route add default via "+netlab.Gateway4,
		"addr add "+netlab.Host6+"/64 dev "+frontend.Interface+" nodad", "-6 route add default via "+netlab.Gateway6+" dev "+frontend.Interface)
	return g
}

// needOurs leaves a test out that asks more than another passt does.
func needOurs(t *testing.T) {
	t.Helper()
	if !netlab.Ours() {
		t.Skip("asks more than this passt does")
	}
}
