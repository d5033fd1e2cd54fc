// SPDX-License-Identifier: Apache-2.0

package stream

import (
	"net/netip"
	"strings"
	"testing"
	"time"

	"aldente/test/machine"
	"aldente/test/netlab"
)

// TestByName: rules by name hold for a virtual machine as for a namespace, by the resolver
// that DHCP tells it of; and what a resolver says that has been refused is not heard.
func TestByName(t *testing.T) {
	machine.NeedOurs(t)
	netlab.Have(t, "dig")
	lab := netlab.New(t, netlab.Options{})
	lab.Remote.IP("addr add 198.51.100.20/32 dev lo", "addr add 198.51.100.30/32 dev lo", "addr add 2001:db8:2::20/128 dev lo nodad")
	z := netlab.NewZone()
	z.Set("pypi.test", 60, "198.51.100.20", "2001:db8:2::20", "10.0.0.1")
	z.Set("other.test", 60, "198.51.100.30")
	z.Serve(lab.Remote, "192.0.2.9:53")
	go netlab.Echo(lab.Remote.Listen("tcp", "[::]:443"))
	p := startWith(t, lab, "nameserver 192.0.2.9\n", "-t", "none", "-u", "none", "--deny", "private", "--allow", "tcp:pypi.test:443", "--deny", "any")
	g := p.join(t, 1500)
	for _, how := range []string{"+notcp", "+tcp"} {
		for typ, want := range map[string]string{"A": "198.51.100.20", "AAAA": "2001:db8:2::20"} {
			if _, out := g.Run("dig", "+short", "+time=3", "+tries=3", how, "pypi.test", typ, "@192.0.2.9"); strings.TrimSpace(out) != want {
				t.Errorf("%s %s: %q", how, typ, out)
			}
		}
		if _, out := g.Run("dig", "+time=3", "+tries=3", how, "other.test", "@192.0.2.9"); !strings.Contains(out, "REFUSED") {
			t.Errorf("%s: what is not allowed is answered:\n%s", how, out)
		}
	}
	for at, want := range map[string]bool{"198.51.100.20:443": true, "[2001:db8:2::20]:443": true, "198.51.100.30:443": false, "198.51.100.20:80": false} {
		c, err := g.DialError("tcp", at, 15*time.Second)
		if err == nil {
			c.Close()
		}
		if (err == nil) != want {
			t.Errorf("%v: %v", netip.MustParseAddrPort(at), err)
		}
	}
	for _, q := range z.Asked() {
		if !strings.HasPrefix(q, "pypi.test ") {
			t.Errorf("the resolver was asked for %s", q)
		}
	}
	if t.Failed() {
		t.Log(p.Output())
	}
}
