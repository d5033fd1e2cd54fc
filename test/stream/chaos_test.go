// SPDX-License-Identifier: Apache-2.0

package stream

import (
	"fmt"
	"testing"

	"aldente/test/netlab"
)

// TestChaos moves data both ways through the stream socket, while every process is
// stopped at random.
func TestChaos(t *testing.T) {
	for _, mtu := range []int{1500, 65520} {
		t.Run(fmt.Sprint(mtu), func(t *testing.T) {
			lab := netlab.New(t, netlab.Options{})
			size := netlab.ChaosSize()
			p := startFor(t, lab, netlab.GuestSpec{Timeout: 2 * netlab.ChaosTimeout(size)}, "-m", fmt.Sprint(mtu))
			g := p.join(t, mtu)
			addr := families[0].remote + ":9000"
			netlab.Chaos(t, size, netlab.Children(p.PID), netlab.ChaosWay{Client: g.NS, Server: lab.Remote, Listen: addr, Addr: addr})
			netlab.BriefChaos(t, g.NS, lab.Remote, addr, addr, 60, netlab.Children(p.PID))
		})
	}
}
