// SPDX-License-Identifier: Apache-2.0

package test

import (
	"strings"
	"testing"

	"aldente/test/netlab"
)

// TestFollowRules: port rules change while the interfaces that they name do. A port is
// where its interface's name is now, by both protocols; a rule that was deleted while its
// interface was away does not come back with it, and one that was added does.
func TestFollowRules(t *testing.T) {
	lab := netlab.New(t, netlab.Options{})
	far := netlab.NewNS(t, "far")
	lan := func(peer, net string) {
		netlab.Veth(lab.Host, "lan1", far, peer, 1500)
		lab.Host.IP("addr add " + net + ".2/24 dev lan1")
		far.IP("addr add " + net + ".9/24 dev " + peer)
	}
	lan("f0", "203.0.113")
	s := steer(t, lab, "-t", "%lan1/8080", "-u", "%lan1/8080")
	s.answer(8080, 8081)
	answers := func(at string, want bool) func() bool {
		port := at[strings.LastIndex(at, ":")+1:]
		return func() bool {
			for _, network := range []string{"tcp", "udp"} {
				if got, err := netlab.Ask(far, network, at, "?"); (err == nil && got == port) != want {
					return false
				}
			}
			return true
		}
	}
	comesTrue(t, "the port answers", answers("203.0.113.2:8080", true))

	t.Log("an address is renewed, and a rule comes")
	lab.Host.IP("addr del 192.0.2.2/24 dev h0", "addr add 192.0.2.7/24 dev h0", "route replace default via 192.0.2.1")
	s.must("-A -t %lan1/8081 -u %lan1/8081")
	comesTrue(t, "the new port answers", answers("203.0.113.2:8081", true))

	t.Log("the interface gets another name, and another its name")
	lab.Host.IP("link set lan1 down", "link set lan1 name old1", "link set old1 up")
	lan("f1", "198.18.7")
	comesTrue(t, "the ports answer on the interface that has the name", func() bool {
		return answers("198.18.7.2:8080", true)() && answers("198.18.7.2:8081", true)()
	})
	if !answers("203.0.113.2:8080", false)() {
		t.Error("the port answers on the interface that had the name")
	}

	t.Log("the interface goes, a rule as well, and it comes back")
	lab.Host.IP("link del lan1")
	s.must("-D -t %lan1/8080 -u %lan1/8080")
	lan("f1", "198.18.7")
	comesTrue(t, "the port answers whose rule is left", answers("198.18.7.2:8081", true))
	if !answers("198.18.7.2:8080", false)() {
		t.Errorf("the port answers whose rule was deleted\n%s", s.rules())
	}
}
