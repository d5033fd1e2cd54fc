// SPDX-License-Identifier: Apache-2.0

package test

import (
	"testing"
	"time"

	"aldente/test/netlab"
)

// TestChaos moves data both ways, from the guest and to it through the tap, with small
// and large segments, and past it, while every process is stopped at random.
func TestChaos(t *testing.T) {
	lab := netlab.New(t, netlab.Options{})
	size := netlab.ChaosSize()
	for k, mtu := range []string{"1500", "65520"} {
		f := families[k]
		g := lab.GuestWith(netlab.GuestSpec{Args: []string{"--config-net", "-m", mtu, "-t", "9000,9001"}, Timeout: 2*netlab.ChaosTimeout(3*size) + 10*time.Minute})
		ways := []netlab.ChaosWay{
			{Client: g.NS, Server: lab.Remote, Listen: f.at(f.remote, "9000"), Addr: f.at(f.remote, "9000")},
			{Client: lab.Remote, Server: g.NS, Listen: ":9001", Addr: f.at(f.host, "9001")},
		}
		if mtu == "1500" {
			ways = append(ways, netlab.ChaosWay{Client: lab.Host, Server: g.NS, Listen: ":9000", Addr: f.at(f.lo, "9000")})
		}
		t.Run("at once, "+mtu, func(t *testing.T) { netlab.Chaos(t, size, g.Processes(), ways...) })
		t.Run("briefly, "+mtu, func(t *testing.T) {
			netlab.BriefChaos(t, lab.Remote, g.NS, ":9000", f.at(f.host, "9000"), 60, g.Processes())
			if mtu == "1500" {
				netlab.BriefChaos(t, g.NS, lab.Remote, "192.0.2.9:9002", "192.0.2.9:9002", 60, g.Processes())
				netlab.BriefChaos(t, lab.Host, g.NS, ":9000", "127.0.0.1:9000", 60, g.Processes())
			}
		})
		g.Close()
	}
}
