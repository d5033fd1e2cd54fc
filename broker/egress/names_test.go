// SPDX-License-Identifier: Apache-2.0

package egress

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"aldente/ipc"
	"aldente/ipc/domain"
)

// clocked is a rule set with a clock of its own.
type clocked struct {
	*RuleSet
	at time.Time
}

// named makes rules: "+" allows, "-" denies, "!" denies by default, against names too.
func named(t testing.TB, rules ...string) *clocked {
	t.Helper()
	e, err := New(rulesOf(rules...), []netip.Addr{netip.MustParseAddr("203.0.113.5")})
	if err != nil {
		t.Fatal(err)
	}
	c := &clocked{e, time.Now()}
	e.table.clock = func() time.Time { return c.at }
	return c
}

func rulesOf(rules ...string) (all []Rule) {
	for _, r := range rules {
		one := Rule{Allow: r[0] == '+', Dest: r[1:], Guard: r[0] == '!'}
		if one.Guard {
			one.Source = ByDefault
		}
		all = append(all, one)
	}
	return all
}

// grant grants addresses to "NAME alias …", for ttl, and returns those that may be told.
func (c *clocked) grant(names string, ttl time.Duration, addrs ...string) string {
	var all []netip.Addr
	for _, a := range addrs {
		all = append(all, netip.MustParseAddr(a))
	}
	f := strings.Fields(names)
	var aliases []domain.Name
	for _, a := range f[1:] {
		aliases = append(aliases, domain.Name(a))
	}
	mask := c.Grant(domain.Name(f[0]), aliases, all, c.at.Add(ttl))
	var told []string
	for i, a := range addrs {
		if mask>>i&1 != 0 {
			told = append(told, a)
		}
	}
	return strings.Join(told, " ")
}

// to judges a flow, written "tcp 192.0.2.1:80".
func (c *clocked) to(flow string) Verdict {
	proto, dst, _ := strings.Cut(flow, " ")
	f := Flow{Proto: map[string]uint8{"tcp": protoTCP, "udp": protoUDP, "icmp": protoICMP, "icmp6": protoICMPv6}[proto]}
	if f.To, _ = netip.ParseAddrPort(dst); !f.To.IsValid() {
		f.To = netip.AddrPortFrom(netip.MustParseAddr(dst), 0)
	}
	return c.Judge(f)
}

// TestByName: rules by name among others, with what a resolver has answered.
func TestByName(t *testing.T) {
	const v4, v6, other = "198.51.100.7", "2001:db8::7", "198.51.100.8"
	for _, tt := range []struct {
		rules    string
		name     string // asked for, with its aliases
		told     string // of v4 and v6
		yes, no  string // flows, separated by commas
		resolved bool
	}{
		{"+pypi.test:443 -any", "pypi.test", v4 + " " + v6, "tcp " + v4 + ":443,udp " + v4 + ":443,tcp [" + v6 + "]:443,tcp [::ffff:" + v4 + "]:443",
			"tcp " + v4 + ":80,tcp " + other + ":443,icmp " + v4 + ",icmp6 " + v6, true},
		{"+tcp:pypi.test -any", "pypi.test", v4 + " " + v6, "tcp " + v4 + ":1,tcp [" + v6 + "]:65535", "udp " + v4 + ":1,icmp " + v4, true},
		{"+pypi.test -any", "pypi.test", v4 + " " + v6, "tcp " + v4 + ":1,udp [" + v6 + "]:2,icmp " + v4 + ",icmp6 " + v6, "tcp " + other + ":1", true},
		{"+icmp:pypi.test -any", "pypi.test", v4 + " " + v6, "icmp " + v4 + ",icmp6 " + v6, "tcp " + v4 + ":443", true},
		{"+pypi.test:443-445 -any", "pypi.test", v4 + " " + v6, "tcp " + v4 + ":443,tcp " + v4 + ":445", "tcp " + v4 + ":442,tcp " + v4 + ":446", true},
		{"+PyPI.Test.:443 -any", "pypi.test", v4 + " " + v6, "tcp " + v4 + ":443", "", true},
		{"+*.pypi.test:443 -any", "a.b.pypi.test", v4 + " " + v6, "tcp " + v4 + ":443", "", true},
		{"+*.pypi.test:443 -any", "pypi.test", "", "", "tcp " + v4 + ":443", false},
		{"+pypi.test:443 -any", "evil.test", "", "", "tcp " + v4 + ":443", false},
		{"+pypi.test:443 -any", "pypi.test.evil.test", "", "", "tcp " + v4 + ":443", false},
		// An alias allows nothing, and nothing has to allow it.
		{"+pypi.test:443 -any", "pypi.test cdn.test", v4 + " " + v6, "tcp " + v4 + ":443", "", true},
		{"+cdn.test:443 -any", "pypi.test cdn.test", "", "", "tcp " + v4 + ":443", false},
		{"-*.evil.test +pypi.test -any", "pypi.test a.evil.test", "", "", "tcp " + v4 + ":443", true},
		{"+pypi.test -*.test -any", "pypi.test a.evil.test", v4 + " " + v6, "tcp " + v4 + ":443", "", true},
		// First match, mixed: what an address rule says before counts, and behind it does not.
		{"-198.51.100.0/24 +pypi.test -any", "pypi.test", v6, "tcp [" + v6 + "]:443", "tcp " + v4 + ":443", true},
		{"+pypi.test -198.51.100.0/24 -any", "pypi.test", v4 + " " + v6, "tcp " + v4 + ":443", "tcp " + other + ":443", true},
		{"-tcp:198.51.100.0/24:443 +pypi.test -any", "pypi.test", v4 + " " + v6, "tcp " + v4 + ":80", "tcp " + v4 + ":443", true},
		{"-any +pypi.test", "pypi.test", "", "", "tcp " + v4 + ":443", false}, // nothing leads there
		{"+any -pypi.test", "pypi.test", v4 + " " + v6, "tcp " + v4 + ":443", "", true},
		{"+any:80 +pypi.test:443 -any", "evil.test", v4 + " " + v6, "tcp " + v4 + ":80", "tcp " + v4 + ":443", true},
		{"-any:25 +pypi.test -any", "pypi.test", v4 + " " + v6, "tcp " + v4 + ":26", "tcp " + v4 + ":25", true},
		// Denied by name: the name, or, with ports or a protocol, what its addresses have.
		{"-ads.test", "ads.test", "", "tcp " + v4 + ":443", "", false},
		{"-ads.test", "pypi.test", v4 + " " + v6, "tcp " + v4 + ":443", "", true},
		{"-ads.test:25", "ads.test", v4 + " " + v6, "tcp " + v4 + ":26,icmp " + v4, "tcp " + v4 + ":25,udp [" + v6 + "]:25", true},
		{"-udp:ads.test", "ads.test", v4 + " " + v6, "tcp " + v4 + ":25", "udp " + v4 + ":25", true},
		{"-ads.test:25", "pypi.test a.test ads.test", v4 + " " + v6, "tcp " + v4 + ":26", "tcp " + v4 + ":25", true},
		{"-*.test:25 +ads.test -any", "ads.test", v4 + " " + v6, "tcp " + v4 + ":26", "tcp " + v4 + ":25", true},
		{"+ads.test:25 -*.test:25 -any", "ads.test", v4 + " " + v6, "tcp " + v4 + ":25", "tcp " + v4 + ":26", true},
		{"-x.test +*.test -any", "x.test", "", "", "tcp " + v4 + ":443", false},
	} {
		c := named(t, strings.Fields(tt.rules)...)
		if got := c.JudgeName(domain.Name(strings.Fields(tt.name)[0])).Allowed; got != tt.resolved && len(strings.Fields(tt.name)) == 1 {
			t.Errorf("%s: %s resolved: %t", tt.rules, tt.name, got)
		}
		if told := c.grant(tt.name, time.Minute, v4, v6); told != tt.told {
			t.Errorf("%s: of %s the guest is told %q, want %q", tt.rules, tt.name, told, tt.told)
		}
		for i, flows := range []string{tt.yes, tt.no} {
			for flow := range strings.SplitSeq(flows, ",") {
				if flow == "" {
					continue
				}
				if v := c.to(flow); v.Allowed != (i == 0) {
					t.Errorf("%s, after %s: %s: %+v", tt.rules, tt.name, flow, v)
				}
			}
		}
	}
}

// TestRebinding: wherever a name leads, what rules by address deny stays denied: those
// before it, and under aldente the defaults, wherever the rule by name stands. Only an
// address that was allowed before is an exception.
func TestRebinding(t *testing.T) {
	defaults := []string{"!host", "!metadata", "!private"}
	inside := []string{"127.0.0.1", "::1", "0.0.0.0", "::", "203.0.113.5", "10.1.2.3", "172.16.0.1", "192.168.1.1", "100.64.0.1", "fd12::1",
		"169.254.169.254", "fd00:ec2::254", "::ffff:10.1.2.3", "::ffff:127.0.0.1", "64:ff9b::10.1.2.3", "2002:a01:203::1", "::10.1.2.3",
		"2001:db8:64::10.1.2.3", "fe80::5efe:10.1.2.3", "224.0.0.251", "ff02::fb", "255.255.255.255"}
	for _, before := range []bool{false, true} {
		rules := slices.Concat([]string{"+rebind.test"}, defaults)
		if before {
			rules = []string{"-host", "-metadata", "-private", "+rebind.test", "-any"}
		}
		c := named(t, rules...)
		c.SetNAT64([]netip.Prefix{netip.MustParsePrefix("2001:db8:64::/96")})
		for _, a := range inside {
			if told := c.grant("rebind.test", time.Minute, a); told != "" {
				t.Errorf("%v: the guest is told %s", rules, told)
			}
			for _, proto := range []string{"tcp", "udp"} {
				if v := c.to(proto + " " + netip.AddrPortFrom(netip.MustParseAddr(a), 80).String()); v.Allowed && !netip.MustParseAddr(a).IsMulticast() && a != "255.255.255.255" {
					t.Errorf("%v: %s to %s: %+v", rules, proto, a, v)
				}
			}
		}
		// Beside them, one that may be told is.
		if told := c.grant("rebind.test", time.Minute, "10.1.2.3", "198.51.100.7", "::1"); told != "198.51.100.7" {
			t.Errorf("%v: the guest is told %q", rules, told)
		}
	}
	c := named(t, "+10.1.2.0/24:80", "+db.test:443", "!host", "!metadata", "!private", "-any")
	if told := c.grant("db.test", time.Minute, "10.1.2.3", "10.1.3.3"); told != "10.1.2.3" {
		t.Errorf("an exception by address: told %q", told)
	}
	if !c.to("tcp 10.1.2.3:80").Allowed || c.to("tcp 10.1.2.3:443").Allowed {
		t.Error("an exception by address is another's")
	}
	// Link-local addresses are no names' under any name of the program, and a rule by
	// address lets the guest have them.
	c = named(t, "+db.test:443", "-any")
	for _, a := range []string{"169.254.169.254", "169.254.7.7", "fe80::1", "64:ff9b::169.254.7.7", "::ffff:169.254.7.7"} {
		if told := c.grant("db.test", time.Minute, a); told != "" {
			t.Errorf("told %q, which is link-local", told)
		}
	}
	// Nor is what leads to a host's loopback, to all or to nobody once a tunnel or a
	// translator has made IPv4 of it.
	for _, a := range []string{"2002:7f00:1::1", "64:ff9b::127.0.0.1", "64:ff9b::0.0.0.0", "2002:e000:fb::1", "64:ff9b::255.255.255.255",
		"::127.0.0.1", "2001:db8::5efe:127.0.0.1", "::ffff:0:127.0.0.1", "2001:0:7f00:1::1"} {
		c = named(t, "+db.test:443", "-any")
		if told := c.grant("db.test", time.Minute, a); told != "" {
			t.Errorf("told %q, which leads to no host beyond the link", told)
		}
		// Were it in the table, the judge of flows would refuse it.
		f := Flow{Proto: protoTCP, To: netip.AddrPortFrom(netip.MustParseAddr(a), 443), Open: true, Name: "db.test"}
		if v := c.Judge(f); v.Allowed {
			t.Errorf("%s: %+v", a, v)
		}
	}
	c = named(t, "+169.254.7.7:80", "+db.test:443", "-any")
	if told := c.grant("db.test", time.Minute, "169.254.7.7"); told == "" || !c.to("tcp 169.254.7.7:80").Allowed || c.to("tcp 169.254.7.7:443").Allowed {
		t.Errorf("an exception by address: told %q", told)
	}
	// Where an address came to be the host's later, it is the host's.
	c = named(t, "+db.test:443", "!host", "-any")
	c.SetLocal(func(f Flow) bool { return f.To.Addr() == netip.MustParseAddr("198.51.100.9") })
	if told := c.grant("db.test", time.Minute, "198.51.100.9", "198.51.100.7"); told != "198.51.100.7" {
		t.Errorf("told %q of the host's", told)
	}
	c.SetLocal(func(f Flow) bool { return f.To.Addr() == netip.MustParseAddr("198.51.100.7") })
	if v := c.to("tcp 198.51.100.7:443"); v.Allowed || v.Rule != "--deny host" && v.Rule != "--deny any" {
		t.Errorf("an address that is the host's now: %+v", v)
	}
}

// TestMetadataByName: every form of every address where clouds hand out credentials.
func TestMetadataByName(t *testing.T) {
	for _, s := range []string{"169.254.169.254", "fd00:ec2::254", "fd20:ce::254", "100.100.100.200", "192.0.0.192", "168.63.129.16", "169.254.170.2", "169.254.170.23", "fd00:ec2::23"} {
		forms := []string{s}
		if a := netip.MustParseAddr(s); a.Is4() {
			b := a.As4()
			forms = append(forms, "::ffff:"+s, "64:ff9b::"+s, "64:ff9b:1::"+s, "2001:db8:64::"+s, "::"+s, "::ffff:0:"+s, "2001:db8::5efe:"+s,
				fmt.Sprintf("2002:%x:%x::1", int(b[0])<<8|int(b[1]), int(b[2])<<8|int(b[3])),
				fmt.Sprintf("2001:db8:48:%x:%x:%x00::", int(b[0])<<8|int(b[1]), b[2], b[3]))
		}
		for _, rules := range [][]string{{"+evil.test", "!metadata"}, {"-metadata", "+evil.test", "-any"}} {
			c := named(t, rules...)
			c.SetNAT64([]netip.Prefix{netip.MustParsePrefix("2001:db8:64::/96"), netip.MustParsePrefix("2001:db8:48::/48")})
			for _, form := range forms {
				if told := c.grant("evil.test", time.Hour, form); told != "" {
					t.Errorf("%v: %s as %s is told", rules, s, form)
				}
				// Even if it stood in the table: the judge of flows is another.
				c.table.mu.Lock()
				c.table.init()
				c.table.enter(c.list.Load().rules[slices.IndexFunc(rules, func(r string) bool { return r == "+evil.test" })].id, netip.MustParseAddr(form).Unmap(), "evil.test", time.Hour)
				c.table.mu.Unlock()
				for _, proto := range []string{"tcp", "udp"} {
					if v := c.to(proto + " " + netip.AddrPortFrom(netip.MustParseAddr(form), 80).String()); v.Allowed {
						t.Errorf("%v: %s as %s by %s: %+v", rules, s, form, proto, v)
					}
				}
			}
		}
	}
}

// TestTranslatedName: where translators are, a name leads to IPv6 addresses that stand for
// IPv4 ones; the name has led to both.
func TestTranslatedName(t *testing.T) {
	c := named(t, "-private", "+pypi.test:443", "-any")
	c.SetNAT64([]netip.Prefix{netip.MustParsePrefix("2001:db8:64::/96")})
	for _, a := range []string{"64:ff9b::198.51.100.7", "2001:db8:64::198.51.100.7", "2002:c633:6407::1"} {
		flow := "tcp " + netip.AddrPortFrom(netip.MustParseAddr(a), 443).String()
		if c.to(flow).Allowed {
			t.Errorf("%s is allowed before anybody has asked", flow)
		}
		if told := c.grant("pypi.test", time.Minute, a); told != a {
			t.Errorf("%s is not told", a)
		}
		if v := c.to(flow); !v.Allowed || v.Name != "pypi.test" {
			t.Errorf("%s: %+v", flow, v)
		}
	}
	if c.to("tcp 198.51.100.7:443").Allowed {
		t.Error("the IPv4 address by itself was never an answer")
	}
}

// TestNameErrors: what is no rule by name, and what to do about it.
func TestNameErrors(t *testing.T) {
	for dest, words := range map[string]string{
		"bücher.test": "write the A-label", "*.bücher.test:443": "write the A-label", "*foo": "only in front", "a.*.b": "only in front", "*.*.test": "only in front",
		"a..b": "a label is empty", ".test": "a label is empty", strings.Repeat("a", 64) + ".test": "longer than 63", strings.Repeat("a.", 130) + "test": "longer than 253",
		"10.0.0": "no name ends in a number", "tcp:300.1.1.1:80": "no name ends in a number", "icmp:pypi.test:443": "icmp has no ports", "pypi.test:0": "not a port",
		"pypi.test:https": "not a port", "privat": "neither an address", "metdata:80": "neither an address", "sctp": "with a dot behind it", "https://pypi.test/simple": "as pypi.test:443",
		"https://": "a URL is no destination", "*": `"any" means all`, "pypi.test/24": "neither an address", "pypi.test:80:90": "neither an address", "[pypi.test]:80": "neither an address",
		"pypi.test:": "as pypi.test:443, or leave the colon out", "tcp:*.pypi.test:": "no port behind the colon", "[pypi.test": "one bracket of two",
		"a b.test": "is in no name", "pypi.test,x.test": "is in no name",
	} {
		_, err := New([]Rule{{Dest: dest}}, nil)
		if err == nil || !strings.Contains(err.Error(), words) || strings.Contains(err.Error(), "\n") {
			t.Errorf("%q: %v, want %q", dest, err, words)
		}
	}
	for _, dest := range []string{"registry.", "tcp:registry.:5000", "*.test", "pypi.test.:443", "xn--bcher-kva.test", "udp:*.a.b.c:1-65535", "icmp:pypi.test", "any.", "host.test"} {
		if e, err := New([]Rule{{Dest: dest}}, nil); err != nil || !e.ByName() || !IsName(dest) {
			t.Errorf("%q: %v", dest, err)
		}
	}
	if e := must(t, "", "-any", "+192.0.2.1"); e.ByName() || IsName("any") || IsName("x..y") || e.Grant("a.test", nil, []netip.Addr{netip.MustParseAddr("192.0.2.1")}, time.Now()) != 0 {
		t.Error("without a rule by name something is by name")
	}
}

// TestManyRules: as many rules by name as aldente-names can be told of, and no more.
func TestManyRules(t *testing.T) {
	var rules []Rule
	for i := range domain.MaxRules {
		rules = append(rules, Rule{Allow: true, Dest: fmt.Sprintf("n%d.test", i)})
	}
	e, err := New(append(rules, Rule{Dest: "any"}), nil)
	if err != nil || len(e.Names().List) != ipc.MaxNameRules {
		t.Fatalf("%v", err)
	}
	if err := e.Replace(append(rules, Rule{Dest: "one.more"})); err == nil || !strings.Contains(err.Error(), "at most 4096") {
		t.Errorf("one more: %v", err)
	}
	if len(e.Rules()) != domain.MaxRules+1 {
		t.Error("half of a change")
	}
}

// TestNames: what the rules say of names, for the program that asks resolvers.
func TestNames(t *testing.T) {
	for rules, want := range map[string]string{
		"+a.test -any":                           "+a.test@0 refused",
		"+a.test":                                "+a.test@0 resolved",
		"-a.test:25 -b.test":                     "-a.test:@0 -b.test@1 resolved",
		"+a.test -any:25 -any +b.test":           "+a.test@0 refused",
		"+any:80 +a.test -any":                   "resolved",
		"+192.0.2.1 -private +*.a.test -udp:any": "+*.a.test@2 resolved",
		"-any +a.test":                           "refused",
	} {
		d := named(t, strings.Fields(rules)...).Names()
		var got []string
		for _, r := range d.List {
			s := "-" + r.Pattern.String()
			if r.Allow {
				s = "+" + r.Pattern.String()
			}
			if r.Narrow {
				s += ":"
			}
			got = append(got, fmt.Sprintf("%s@%d", s, r.Index))
		}
		got = append(got, map[bool]string{true: "resolved", false: "refused"}[d.Default])
		if s := strings.Join(got, " "); s != want {
			t.Errorf("%s: %s, want %s", rules, s, want)
		}
	}
}

// TestNoPins: where a rule is by name, no resolver stays reachable by its address.
func TestNoPins(t *testing.T) {
	c := named(t, "+a.test", "-any")
	c.Pin(netip.MustParseAddr("10.0.0.53"))
	for _, l := range c.List() {
		if strings.Contains(l.Text, "10.0.0.53") {
			t.Errorf("listed: %+v", l)
		}
	}
	if c.to("udp 10.0.0.53:53").Allowed {
		t.Error("the resolver is reachable past the rules by name")
	}
	if err := c.Replace(rulesOf("-any")); err != nil || !c.to("udp 10.0.0.53:53").Allowed {
		t.Errorf("%v, and without a rule by name it is not", err)
	}
}

// TestNamesShown: what people are told of rules by name.
func TestNamesShown(t *testing.T) {
	c := named(t, "+pypi.test:443", "+old.test", "+inside.test", "!private", "-any")
	c.grant("pypi.test", time.Minute, "198.51.100.7", "2001:db8::7")
	c.grant("old.test", 0, "198.51.100.8")
	c.at = c.at.Add(70 * time.Second)
	if got := c.List(); got[0].Note != "2 addresses now" || got[1].Note != "0 addresses now" || got[4].Note != "" {
		t.Errorf("%+v", got)
	}
	c.table.enter(c.list.Load().rules[2].id, netip.MustParseAddr("10.0.0.1"), "inside.test", time.Hour)
	for dst, want := range map[string]string{
		"198.51.100.7:443": "fits by pypi.test for another 50s, and allows",
		"198.51.100.7:80":  "is for other ports",
		"198.51.100.8:443": "is for old.test, whose time is over: the guest has to ask for it again",
		"198.51.100.9:443": "is for other names, as far as the guest has asked for any",
		"10.0.0.1:443":     "is for inside.test, but no name leads there: it is on the link, of a host itself, or denied by default",
	} {
		_, asked := c.Explain(Flow{Proto: protoTCP, To: netip.MustParseAddrPort(dst)})
		if !slices.ContainsFunc(asked, func(a Asked) bool { return a.Result == want }) {
			t.Errorf("%s: %+v, want %q", dst, asked, want)
		}
	}
	for flow, want := range map[string]struct {
		resolved, allowed bool
		stands            int
	}{"pypi.test:443": {true, true, 2}, "pypi.test:80": {true, false, 2}, "evil.test:443": {false, false, 0}, "old.test:443": {true, true, 0}} {
		name, port, _ := strings.Cut(flow, ":")
		p, _, _ := parsePorts(port)
		w := c.ExplainName(domain.Name(name), protoTCP, p)
		if w.Name.Allowed != want.resolved || w.Verdict.Allowed != want.allowed || len(w.Stands) != want.stands || len(w.Asked) == 0 {
			t.Errorf("%s: %+v", flow, w)
		}
	}
}

// BenchmarkJudge: what a flow costs, without a rule by name and with some.
func BenchmarkJudge(b *testing.B) {
	for _, tt := range []struct{ name, rules string }{
		{"addresses", "+192.0.2.1 +192.0.2.2 -private -any"},
		{"names", "+a.test:443 +b.test:443 +*.pypi.test:443 -any"},
	} {
		c := named(b, strings.Fields(tt.rules)...)
		c.table.clock = nil
		for i := range 1000 {
			c.Grant(domain.Name(fmt.Sprintf("n%d.pypi.test", i)), nil, []netip.Addr{netip.AddrFrom4([4]byte{198, 18, byte(i >> 8), byte(i)})}, time.Now().Add(time.Hour))
		}
		f := Flow{Proto: protoTCP, To: netip.MustParseAddrPort("198.18.1.7:443")}
		b.Run(tt.name, func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				c.Judge(f)
			}
		})
	}
}
