// SPDX-License-Identifier: Apache-2.0

package test

import (
	"path/filepath"
	"strings"
	"testing"
	"time"

	"aldente/broker/control/api"
	"aldente/test/netlab"
)

// TestWhyByName: what is explained of names is what happens, before the guest has asked for
// them and after; to ask neither resolves nor counts; rules say how many addresses stand,
// and the logs by which name a guest came to an address.
func TestWhyByName(t *testing.T) {
	needOurs(t)
	netlab.Have(t, "dig")
	lab, z := namesLab(t)
	flows := filepath.Join(socketDir(t), "flows")
	g := lab.GuestWith(netlab.GuestSpec{Args: append([]string{"--config-net", "--flow-log", flows}, byName...), Resolv: "nameserver 192.0.2.9\n"})
	explain := func(when string, want map[string]string) {
		t.Helper()
		for what, verdict := range want {
			allow, got := because(t, lab, g, what)
			if !strings.HasPrefix(got, verdict) || allow != strings.HasPrefix(verdict, "allowed") {
				t.Errorf("%s, %s: %t, %q, want %q", when, what, allow, got, verdict)
			}
		}
	}
	const refused = `refused: the guest's question for `
	explain("before", map[string]string{
		"tcp pypi.test:443": "allowed, once the guest has asked", "tcp PYPI.test.:443": "allowed, once the guest has asked", "tcp pypi.test:80": `refused by "--deny any", whatever the address`,
		"udp files.pythonhosted.test:443": `refused by "--deny any"`, "tcp other.test:443": refused, "icmp pythonhosted.test": refused,
		"tcp " + named4 + ":443": `refused by "--deny any"`,
	})
	if asked := z.Asked(); len(asked) != 0 {
		t.Errorf("to explain asks the resolver for %q", asked)
	}
	for _, typ := range []string{"A", "AAAA"} {
		if askIn(g, "+notcp", "pypi.test", typ, "192.0.2.9") == "" {
			t.Fatalf("no answer\n%s", g.Proc.Output())
		}
	}
	if n := len(askIn(g, "+notcp", "other.test", "A", "192.0.2.9")); n != 0 {
		t.Error("a refused name is answered")
	}
	before := hitsBy(t, lab, g)
	explain("after", map[string]string{
		"tcp pypi.test:443": "allowed: to tcp ", "tcp " + named4 + ":443": "allowed: to tcp " + named4, "tcp [" + named6 + "]:443": "allowed: to tcp [" + named6,
		"tcp pypi.test:80": `refused by "--deny any"`, "tcp " + other4 + ":443": `refused by "--deny any"`, "tcp other.test:443": refused,
	})
	const rule = "--allow tcp:pypi.test:443 2 addresses now"
	if n, ok := before[rule]; n != 0 || !ok {
		t.Errorf("rules: %v", before)
	}
	for _, at := range []string{named4 + ":443", "[" + named6 + "]:443"} {
		c, err := g.DialError("tcp", at, 5*time.Second)
		if err != nil {
			t.Fatalf("%s: %v", at, err)
		}
		c.Close()
	}
	if _, err := g.DialError("tcp", named4+":80", 5*time.Second); err == nil {
		t.Error("another port is open")
	}
	if after := hitsBy(t, lab, g); after[rule] != 2 {
		t.Errorf("hits: %v", after)
	}
	var limit *api.Limit
	for _, l := range asked[*api.StatusReply](t, lab, g, "status").Limits {
		if l.Name == "addresses of names" {
			limit = &l
		}
	}
	if limit == nil || limit.Used != 2 || limit.Max != 16384 {
		t.Errorf("status: %+v", limit)
	}
	flowLine(t, flows, `flow ended protocol=tcp direction=out guest=[^ ]+ remote=`+named4+`:443 name=pypi\.test verdict=allowed rule="--allow tcp:pypi\.test:443" .*`)
	flowLine(t, flows, `flow refused protocol=tcp direction=out guest=[^ ]+ remote=`+named4+`:80 name=pypi\.test verdict=refused rule="--deny any" reason="egress rules"`)
	if out := g.Proc.Output(); !strings.Contains(out, "to="+named4+":80 name=pypi.test rule=") {
		t.Errorf("the log has no name:\n%s", out)
	}
}

// TestNamesLeadOutside: under aldente, a name that is allowed leads to nothing inside, though
// its rule stands before all defaults; a rule by address before it does.
func TestNamesLeadOutside(t *testing.T) {
	needOurs(t)
	netlab.Have(t, "dig")
	lab, z := namesLab(t)
	z.Set("rebind6.pythonhosted.test", 0, "fd12::7", "64:ff9b::10.1.2.3", "64:ff9b::169.254.169.254", "2002:a9fe:a9fe::1", "::ffff:10.1.2.3", "fd00:ec2::254", "::1", named6)
	for _, tt := range []struct {
		args           []string
		told, told6    string // of the addresses of two names
		reach, unreach string // at port 443
	}{
		{[]string{"--allow", "*.pythonhosted.test:443"}, named4, named6, named4, "10.1.2.3 169.254.169.254 " + netlab.Host4},
		{[]string{"--allow", "10.1.2.0/24", "--allow", "*.pythonhosted.test:443", "--deny", "any"}, "10.1.2.3 " + named4,
			"64:ff9b::a01:203 ::ffff:10.1.2.3 " + named6, named4 + " 10.1.2.3", "169.254.169.254 " + other4},
	} {
		g := lab.For(t).GuestWith(netlab.GuestSpec{Binary: aldente(), Args: append([]string{"--config-net", "--dns-forward", "192.0.2.99"}, tt.args...), Resolv: "nameserver 192.0.2.9\n"})
		if got := strings.Fields(askIn(g, "+notcp", "rebind.pythonhosted.test", "A", "192.0.2.99")); strings.Join(got, " ") != tt.told {
			t.Errorf("%v: told %q, want %q\n%s", tt.args, got, tt.told, g.Proc.Output())
		}
		if got := strings.Fields(askIn(g, "+tcp", "rebind6.pythonhosted.test", "AAAA", "192.0.2.99")); strings.Join(got, " ") != tt.told6 {
			t.Errorf("%v: told %q of IPv6\n%s", tt.args, got, g.Proc.Output())
		}
		for i, list := range []string{tt.reach, tt.unreach} {
			for a := range strings.FieldsSeq(list) {
				c, err := g.DialError("tcp", a+":443", 5*time.Second)
				if err == nil {
					c.Close()
				}
				if (err == nil) != (i == 0) {
					t.Errorf("%v: %s: %v", tt.args, a, err)
				}
			}
		}
	}
}
