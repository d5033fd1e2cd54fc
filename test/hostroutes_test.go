// SPDX-License-Identifier: Apache-2.0

package test

import (
	"fmt"
	"net/netip"
	"strings"
	"testing"

	"aldente/test/netlab"
)

// hostRoutes are hosts that have addresses on two interfaces, h0 and h1, and no default
// route yet. Whatever their tables and rules make of that, the guest reaches what the host
// reaches, and has a default route where the host has one.
var hostRoutes = []struct {
	name   string
	sysctl string // "key=value"
	ip     string // lines of ip(8) on the host
	remote string // and on the remote
	args   string
	v4, v6 string // how the guest's default routes begin, "": there is none
	bound  bool   // only sockets that are bound as args say have that
	no4    bool   // nothing is reached by IPv4
	no6    bool   // or IPv6
}{
	{
		name: "in another table by a rule",
		ip: "route add default via 192.0.2.1 table 100; rule add lookup 100 pref 20000;" +
			"-6 route add default via fe80::1 dev h0 table 1000; -6 rule add lookup 1000 pref 20000",
		v4: "default via 192.0.2.1", v6: "default via fe80::1",
	},
	{
		name: "in another table, of another interface",
		ip: "route add default via 203.0.113.1 table 1000; rule add lookup 1000 pref 40000;" +
			"-6 route add default via fe80::1 dev h1 table 100; -6 rule add lookup 100 pref 40000",
		v4: "default via 203.0.113.1", v6: "default via fe80::1",
	},
	{
		name: "nexthop objects", sysctl: "net/ipv4/nexthop_compat_mode=0",
		ip: "nexthop add id 7 via 192.0.2.1 dev h0; route add default nhid 7;" +
			"nexthop add id 8 via fe80::1 dev h0; -6 route add default nhid 8 metric 1024",
		v4: "default via 192.0.2.1", v6: "default via fe80::1",
	},
	{
		name: "nexthop objects, shown as routes", sysctl: "net/ipv4/nexthop_compat_mode=1",
		ip: "nexthop add id 7 via 192.0.2.1 dev h0; route add default nhid 7;" +
			"nexthop add id 8 via fe80::1 dev h0; -6 route add default nhid 8 metric 1024",
		v4: "default via 192.0.2.1", v6: "default via fe80::1",
	},
	{
		name: "groups of nexthop objects in another table", sysctl: "net/ipv4/nexthop_compat_mode=0",
		ip: "nexthop add id 1 via 203.0.113.1 dev h1; nexthop add id 2 via 192.0.2.1 dev h0; nexthop add id 3 group 1/2,9;" +
			"route add default nhid 3 table 100; rule add lookup 100;" +
			"nexthop add id 4 via fe80::1 dev h1; nexthop add id 5 via fe80::1 dev h0; nexthop add id 6 group 4/5,9;" +
			"-6 route add default nhid 6 table 100; -6 rule add lookup 100",
		v4: "default via 192.0.2.1", v6: "default via fe80::1",
	},
	{
		name: "multipath whose heaviest interface is down",
		ip: "route add default nexthop via 203.0.113.1 weight 9 nexthop via 192.0.2.1;" +
			"-6 route add default nexthop via fe80::1 dev h1 weight 9 nexthop via fe80::1 dev h0; link set h1 down",
		v4: "default via 192.0.2.1", v6: "default via fe80::1",
	},
	{
		name:   "by a router outside the subnet",
		ip:     "route add default via 198.18.0.77 dev h0 onlink; -6 route add default via 2001:db8:77::1 dev h0 onlink",
		remote: "addr add 198.18.0.77/32 dev r0; addr add 2001:db8:77::1/128 dev r0 nodad",
		v4:     "default via 198.18.0.77", v6: "default via 2001:db8:77::1",
	},
	{
		name: "none, but a way by another interface",
		ip:   "route add 198.51.100.0/24 via 203.0.113.1; -6 route add 2001:db8:2::/64 via fe80::1 dev h1",
	},
	{
		name: "two halves",
		ip: "route add 0.0.0.0/1 via 203.0.113.1; route add 128.0.0.0/1 via 203.0.113.1;" +
			"-6 route add ::/1 via fe80::1 dev h1; -6 route add 8000::/1 via fe80::1 dev h1",
	},
	{
		name: "two metrics",
		ip: "route add default via 192.0.2.77 metric 200; route add default via 203.0.113.1 metric 100;" +
			"-6 route add default via fe80::77 dev h0 metric 200; -6 route add default via fe80::1 dev h1 metric 100",
		v4: "default via 203.0.113.1", v6: "default via fe80::1",
	},
	{
		name: "unreachable, and one in another table",
		ip: "route add unreachable default metric 4278198272; route add default via 192.0.2.1 table 100; rule add lookup 100 pref 20000;" +
			"-6 route add unreachable default metric 4278198272; -6 route add default via fe80::1 dev h0 table 100; -6 rule add lookup 100 pref 20000",
		v4: "default via 192.0.2.1", v6: "default via fe80::1",
	},
	{
		name: "beside rules for packets that are not ours",
		ip: "route add default via 192.0.2.1; route add unreachable default table 100; rule add fwmark 7 lookup 100; rule add iif h0 lookup 100;" +
			"-6 route add default via fe80::1 dev h0; -6 route add unreachable default table 100; -6 rule add fwmark 7 lookup 100; -6 rule add iif h0 lookup 100",
		v4: "default via 192.0.2.1", v6: "default via fe80::1",
	},
	{
		name: "for packets that are not ours alone",
		ip: "route add default via 192.0.2.1 table 100; rule add fwmark 7 lookup 100; rule add iif h0 lookup 100;" +
			"-6 route add default via fe80::1 dev h0 table 100; -6 rule add fwmark 7 lookup 100; -6 rule add iif h0 lookup 100",
		no4: true, no6: true,
	},
	{
		name: "a table that refuses",
		ip: "route add unreachable default table 100; rule add lookup 100 pref 20000;" +
			"-6 route add blackhole default table 100; -6 rule add lookup 100 pref 20000",
		no4: true, no6: true,
	},
	{
		// Who does not choose a source has none yet when IPv4's rules are asked, and IPv6
		// asks again with one.
		name: "for a source that nobody has chosen",
		ip: "route add default via 192.0.2.1 table 100; rule add from 192.0.2.2 lookup 100;" +
			"-6 route add default via fe80::1 dev h0 table 100; -6 rule add from 2001:db8:1::/64 lookup 100",
		v6: "default via fe80::1", no4: true,
	},
	{
		name: "for a source that is chosen", args: "-o 192.0.2.2 -o 2001:db8:1::2", bound: true,
		ip: "route add default via 192.0.2.1 table 100; rule add from 192.0.2.2 lookup 100;" +
			"-6 route add default via fe80::1 dev h0 table 100; -6 rule add from 2001:db8:1::2 lookup 100",
		v4: "default via 192.0.2.1", v6: "default via fe80::1",
	},
	{
		name: "for an interface that is chosen", args: "-i h1 --outbound-if4 h1 --outbound-if6 h1", bound: true,
		ip: "route add default via 203.0.113.1 table 100; rule add oif h1 lookup 100;" +
			"-6 route add default via fe80::1 dev h1 table 100; -6 rule add oif h1 lookup 100",
		v4: "default via 203.0.113.1", v6: "default via fe80::1",
	},
	{
		name: "by source, IPv6",
		ip:   "route add default via 192.0.2.1; -6 route add default from 2001:db8:1::/64 via fe80::1 dev h0",
		v4:   "default via 192.0.2.1", v6: "default via fe80::1",
	},
}

// twoLinks is a lab whose host has a second interface to the remote.
func twoLinks(t *testing.T) *netlab.Lab {
	t.Helper()
	lab := netlab.New(t, netlab.Options{Shape: netlab.NoDefault})
	netlab.Veth(lab.Host, "h1", lab.Remote, "r1", 1500)
	lab.Host.IP("addr add 203.0.113.2/24 dev h1", "addr add 2001:db8:9::2/64 dev h1 nodad")
	lab.Remote.IP("addr add 203.0.113.1/24 dev r1", "addr add 2001:db8:9::1/64 dev r1 nodad", "addr add fe80::1/64 dev r1 nodad")
	return lab
}

func TestHostRoutes(t *testing.T) {
	for _, tt := range hostRoutes {
		t.Run(tt.name, func(t *testing.T) {
			lab := twoLinks(t)
			far := [2]string{netlab.Far4 + ":7000", "[" + netlab.Far6 + "]:7000"}
			for _, at := range far {
				tellPeer(lab.Remote, at)
			}
			if key, value, ok := strings.Cut(tt.sysctl, "="); ok {
				lab.Host.Sysctl(key, value)
			}
			lines := func(s string) []string { return strings.FieldsFunc(s, func(c rune) bool { return c == ';' }) }
			for _, l := range lines(tt.remote) {
				lab.Remote.IP(strings.TrimSpace(l))
			}
			if strings.Contains(tt.ip, "default from") {
				if st, _ := lab.Host.Run("ip", "-6", "route", "add", "2001:db8:ff::/64", "from", "2001:db8:1::/64", "dev", "h0"); st != 0 {
					t.Skip("the kernel has no routes by source (CONFIG_IPV6_SUBTREES)")
				}
			}
			for _, l := range lines(tt.ip) {
				lab.Host.IP(strings.TrimSpace(l))
			}
			g := lab.Guest(strings.Fields(tt.args)...)
			for i, want := range []string{tt.v4, tt.v6} {
				checkGuestRoutes(t, g, [2]string{"-4", "-6"}[i], want)
				for _, network := range []string{"tcp", "udp"} {
					reached := [2]bool{!tt.no4, !tt.no6}[i]
					if _, err := netlab.Ask(lab.Host, network, far[i], "?"); !tt.bound && (err == nil) != reached {
						t.Errorf("the lab: the host asks %s by %s: %v", far[i], network, err)
					}
					if _, err := netlab.Ask(g.NS, network, far[i], "?"); (err == nil) != reached {
						t.Errorf("the guest asks %s by %s: %v", far[i], network, err)
					}
				}
			}
		})
	}
}

// checkGuestRoutes: a guest has the default route that it should have, and no route that
// means something on the host alone.
func checkGuestRoutes(t *testing.T, g *netlab.Guest, family, want string) {
	t.Helper()
	routes := g.Must("ip", family, "route", "show", "table", "all")
	found := ""
	for line := range strings.Lines(routes) {
		switch {
		case strings.HasPrefix(line, "unreachable"), strings.HasPrefix(line, "prohibit"), strings.HasPrefix(line, "blackhole"):
			t.Errorf("%s: the guest has %s", family, line)
		case strings.HasPrefix(line, "default") && found == "":
			found = line
		}
		for _, word := range []string{"nhid", " from ", "table 1"} {
			if strings.Contains(line, word) {
				t.Errorf("%s: the guest has %s", family, line)
			}
		}
	}
	if want == "" && found != "" || !strings.HasPrefix(found, want) {
		t.Errorf("%s: the guest's default route is %q, want %q of\n%s", family, found, want, routes)
	}
}

// TestInboundOwn connects from the host itself by each of its addresses. The guest has some
// of them, too: copied, of its own making while it runs, or not at all. What comes from an
// address that is its own nobody would take.
func TestInboundOwn(t *testing.T) {
	lab := netlab.New(t, netlab.Options{})
	lab.Host.IP("addr add 192.0.2.3/24 dev h0", "addr add 2001:db8:1::3/64 dev h0 nodad", "addr add 198.51.100.50/24 dev h0",
		"addr add 2001:db8:5::3/64 dev h0 nodad", "addr add 203.0.113.77/32 dev lo", "addr add 2001:db8:77::77/128 dev lo nodad")
	hostAddrs := []string{"192.0.2.2", "192.0.2.3", "198.51.100.50", "203.0.113.77", "127.0.0.1",
		"2001:db8:1::2", "2001:db8:1::3", "2001:db8:5::3", "2001:db8:77::77", "::1"}
	for _, tt := range []struct {
		name string
		args []string
		own  []string // lines of ip(8) in the guest
		say  []string // addresses that it sends from
	}{
		{name: "copied", args: []string{"--config-net"}},
		{name: "one address", args: []string{"--config-net", "-a", "192.0.2.2", "-a", "2001:db8:1::2"}},
		{name: "added later", args: []string{"--config-net", "-a", "192.0.2.2/24", "-a", "2001:db8:1::2"},
			own: []string{"addr add 203.0.113.77/32 dev h0", "addr add 2001:db8:77::77/128 dev h0 nodad", "addr add 192.0.2.3/24 dev h0", "addr add 2001:db8:1::3/64 dev h0 nodad"},
			say: []string{"203.0.113.77", "2001:db8:77::77", "192.0.2.3", "2001:db8:1::3", "192.0.2.2", "2001:db8:1::2"}},
		{name: "configured by the guest", own: []string{"link set h0 up", "addr add 192.0.2.2/24 dev h0", "route add default via 192.0.2.1", "addr add 192.0.2.3/24 dev h0",
			"addr add 198.51.100.50/24 dev h0", "addr add 2001:db8:1::2/64 dev h0", "addr add 2001:db8:1::3/64 dev h0 nodad", "addr add 2001:db8:5::3/64 dev h0"}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			lab := lab.For(t)
			g := lab.GuestWith(netlab.GuestSpec{Args: append([]string{"-t", "10001", "-u", "10001"}, tt.args...)})
			g.IP(tt.own...)
			tellPeer(g.NS, ":10001")
			for _, from := range tt.say {
				if call(g.NS, "udp", from, netip.AddrPortFrom(farOf(from), 9).String()) != "" {
					t.Error("somebody answers")
				}
			}
			for _, a := range hostAddrs {
				for _, network := range []string{"tcp", "udp"} {
					got, err := netlab.Ask(lab.Host, network, netip.AddrPortFrom(netip.MustParseAddr(a), 10001).String(), "?")
					if _, port, _ := strings.Cut(got, " "); err != nil || port != "10001" {
						t.Errorf("%s by %s: %q, %v", network, a, got, err)
					}
				}
			}
			for _, f := range families { // who is somewhere else is seen as who it is
				if got, err := netlab.Ask(lab.Remote, "tcp", f.at(f.host, "10001"), "?"); got != f.remote+" 10001" {
					t.Errorf("from the remote: %q, %v", got, err)
				}
			}
		})
	}
}

// TestInboundOwnWithoutDefault: on a host without a default route, what stands for the host's
// addresses is within the guest's reach, too.
func TestInboundOwnWithoutDefault(t *testing.T) {
	lab := netlab.New(t, netlab.Options{Shape: netlab.NoDefault})
	for _, more := range []string{"", "--no-map-gw", "--map-guest-addr 169.254.1.2 --map-guest-addr fd00::2"} {
		g := lab.Guest(append([]string{"-t", "10001", "-u", "10001", "--no-splice"}, strings.Fields(more)...)...)
		tellPeer(g.NS, ":10001")
		for _, a := range []string{"192.0.2.2", "2001:db8:1::2", "127.0.0.1", "::1"} {
			for _, network := range []string{"tcp", "udp"} {
				got, err := netlab.Ask(lab.Host, network, netip.AddrPortFrom(netip.MustParseAddr(a), 10001).String(), "?")
				if _, port, _ := strings.Cut(got, " "); err != nil || port != "10001" {
					t.Errorf("%s: %s by %s: %q, %v", more, network, a, got, err)
				}
			}
		}
		g.Close()
	}
}

func farOf(a string) netip.Addr {
	if netip.MustParseAddr(a).Is4() {
		return netip.MustParseAddr(netlab.Far4)
	}
	return netip.MustParseAddr(netlab.Far6)
}

// TestInboundLinkLocal: peers that are on the link of another interface than the template
// get answers, though nobody but them knows their addresses' link.
func TestInboundLinkLocal(t *testing.T) {
	lab := netlab.New(t, netlab.Options{})
	netlab.Veth(lab.Host, "h1", lab.Remote, "r1", 1500)
	lab.Host.IP("addr add fe80::22/64 dev h0 nodad", "addr add fe80::22/64 dev h1 nodad")
	lab.Remote.IP("addr add fe80::77/64 dev r0 nodad", "addr add fe80::77/64 dev r1 nodad")
	g := lab.Guest("-t", "10001", "-u", "10001", "-t", "fe80::22%h1/10002", "-u", "fe80::22%h1/10002")
	tellPeer(g.NS, ":10001")
	tellPeer(g.NS, ":10002")
	for _, to := range []string{"[fe80::22%r0]:10001", "[fe80::22%r1]:10001", "[fe80::22%r1]:10002"} {
		for _, network := range []string{"tcp", "udp"} {
			for range 3 {
				if got, err := netlab.Ask(lab.Remote, network, to, "?"); err != nil || !strings.HasPrefix(got, "fe80::") {
					t.Errorf("%s %s: %q, %v", network, to, got, err)
				}
			}
		}
	}
}

// TestResolverOfLink: resolv.conf names a resolver by a link-local address on a link of its
// own, which the guest has not.
func TestResolverOfLink(t *testing.T) {
	needOurs(t)
	netlab.Have(t, "dig")
	lab := netlab.New(t, netlab.Options{})
	netlab.Veth(lab.Host, "h1", lab.Remote, "r1", 1500)
	lab.Remote.IP("addr add fe80::53/64 dev r0 nodad", "addr add fe80::53/64 dev r1 nodad", "addr add fe80::54/64 dev r1 nodad")
	answers := map[string]string{"fe80::53%h0": "192.0.2.150", "fe80::53%h1": "192.0.2.151", "fe80::54%h1": "192.0.2.152"}
	for at, v4 := range answers {
		netlab.ServeDNS(lab.Remote, "["+strings.Replace(at, "%h", "%r", 1)+"]:53", netip.MustParseAddr(v4), netip.MustParseAddr("2001:db8::1"))
	}
	for _, tt := range []struct{ args, ask string }{
		{"--config-net --dns-forward fd00:53::53", "fd00:53::53"},
		{"--config-net", "fe80::1%h0"},
		{"--config-net --outbound-if6 h0 --dns-forward fd00:53::53", "fd00:53::53"},
		{"--config-net -6", "fe80::1%h0"},
		{"--config-net --no-map-gw --dns-forward fd00:53::53 --allow name.example --deny any", "fd00:53::53"},
	} {
		for resolver, want := range answers {
			t.Run(tt.args+" "+resolver, func(t *testing.T) {
				lab := lab.For(t)
				ask := tt.ask
				if ask == "fe80::1%h0" && resolver == "fe80::53%h0" {
					ask = resolver // it is within the guest's reach, as it is
				}
				script := fmt.Sprintf("for way in +notcp +tcp; do dig +short +time=3 +tries=2 $way @%s name.example A || echo $?; done", ask)
				args := append(netlab.NoForward(), strings.Fields(tt.args)...)
				p := lab.StartPasta(netlab.GuestSpec{User: netlab.Nobody, Resolv: "nameserver " + resolver + "\n"}, append(args, "--", "sh", "-c", script)...)
				if p.Wait(); strings.Join(strings.Fields(p.Stdout()), " ") != want+" "+want {
					t.Errorf("answer %q, want %s twice", p.Stdout(), want)
				}
			})
		}
	}
}
