// SPDX-License-Identifier: Apache-2.0

package test

import (
	"testing"

	"aldente/test/netlab"
)

// TestChaos moves data both ways, through the tap with small and large segments and
// past it, while every process is stopped at random.
func TestChaos(t *testing.T) {
	lab := netlab.New(t, netlab.Options{})
	size := netlab.ChaosSize()
	for _, mtu := range []string{"1500", "65520"} {
		g := lab.GuestWith(netlab.GuestSpec{Args: []string{"--config-net", "-m", mtu, "-t", "9000,9001"}, Timeout: 4 * netlab.ChaosTimeout(size)})
		t.Run("tap "+mtu, func(t *testing.T) {
			f := families[len(mtu)%2]
			netlab.Chaos(t, g.NS, lab.Remote, f.at(f.remote, "9000"), f.at(f.remote, "9000"), size, g.Processes())
		})
		t.Run("inbound "+mtu, func(t *testing.T) {
			netlab.Chaos(t, lab.Remote, g.NS, ":9001", netlab.Host4+":9001", size/4, g.Processes())
			netlab.BriefChaos(t, lab.Remote, g.NS, ":9000", netlab.Host4+":9000", 60, g.Processes())
		})
		if mtu == "1500" {
			t.Run("outbound, briefly", func(t *testing.T) {
				netlab.BriefChaos(t, g.NS, lab.Remote, "192.0.2.9:9002", "192.0.2.9:9002", 60, g.Processes())
			})
			t.Run("bypass", func(t *testing.T) {
				netlab.Chaos(t, lab.Host, g.NS, ":9001", "127.0.0.1:9001", size, g.Processes())
				netlab.BriefChaos(t, lab.Host, g.NS, ":9000", "127.0.0.1:9000", 60, g.Processes())
			})
		}
		g.Close()
	}
}
