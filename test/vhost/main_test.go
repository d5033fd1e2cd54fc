// SPDX-License-Identifier: Apache-2.0

// Package vhost tests passt's vhost-user: by a front-end that stands in for QEMU,
// with frames made by hand and with a guest whose kernel is that of a network
// namespace.
package vhost

import (
	"fmt"
	"os"
	"testing"
	"time"

	"aldente/test/machine"
	"aldente/test/netlab"
	"aldente/test/vhost/frontend"
)

func TestMain(m *testing.M) {
	frontend.Main()
	os.Exit(netlab.Main(m.Run))
}

// passt is a running passt.
type passt struct{ *machine.Passt }

// start starts passt in the foreground on the lab's host and waits until it listens.
func start(t *testing.T, lab *netlab.Lab, args ...string) *passt {
	t.Helper()
	return startFor(t, lab, 5*time.Minute, args...)
}

// startFor is start with the time after which it is killed.
func startFor(t *testing.T, lab *netlab.Lab, timeout time.Duration, args ...string) *passt {
	t.Helper()
	return &passt{machine.Start(t, lab, netlab.GuestSpec{Timeout: timeout}, append([]string{"--vhost-user"}, args...)...)}
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
	o.Socket = p.Path
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
