// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"net/netip"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"aldente/broker/hostnet/nettest"
	"aldente/broker/netns"
)

var (
	source   = regexp.MustCompile(` src \S+`)
	nexthop  = regexp.MustCompile(`nhid \d+ `)
	spaces   = regexp.MustCompile(`\s+`)
	multi    = regexp.MustCompile(`\n\s+nexthop`)
	kernelLL = regexp.MustCompile(`^fe80::/64 .*proto kernel`)
)

// routes lists the routes that ip(8) printed, in a form that is equal for a host
// and its copy.
func routes(text string) (all []string) {
	for _, l := range strings.Split(multi.ReplaceAllString(text, " nexthop"), "\n") {
		l = strings.TrimSpace(spaces.ReplaceAllString(nexthop.ReplaceAllString(l, ""), " "))
		if !strings.Contains(l, "proto kernel") {
			l = source.ReplaceAllString(l, "")
		}
		if l != "" && !kernelLL.MatchString(l) {
			all = append(all, l)
		}
	}
	slices.Sort(all)
	return all
}

// TestSetupCopies builds hosts with one interface and expects the guest's
// addresses and routes to be the host's.
func TestSetupCopies(t *testing.T) {
	for _, h := range []struct{ name, ip string }{
		{"both families", "addr add 10.1.0.5/24 brd + dev v0; route add default via 10.1.0.1;" +
			"addr add fd01::5/64 dev v0 nodad; -6 route add default via fd01::1"},
		{"several addresses", "addr add 10.1.0.5/24 dev v0; addr add 10.1.0.6/24 dev v0; addr add 10.1.0.7/16 dev v0;" +
			"addr add fd01::5/64 dev v0 nodad; addr add fd01::6/80 dev v0 nodad; -6 route add default via fe80::1 dev v0"},
		{"routes that need each other", "addr add 10.1.0.5/32 dev v0; route add 10.5.5.1 dev v0; route add 10.0.0.0/8 via 10.5.5.1;" +
			"route add default via 10.0.0.1 onlink dev v0; route add 10.5.6.0/24 via 10.5.5.1 src 10.1.0.5"},
		{"metrics and types", "addr add 10.1.0.5/24 dev v0; route add default via 10.1.0.1 metric 50; route add default via 10.1.0.2 metric 60;" +
			"route add 10.9.0.0/16 via 10.1.0.9 metric 7 mtu 1300 advmss 1200 proto static;" +
			"addr add fd01::5/64 dev v0 nodad; -6 route add fd09::/16 via fd01::9 metric 7 mtu 1300 pref high proto ra"},
		{"equal routes in order", "addr add 10.1.0.5/24 dev v0; route add default via 10.1.0.3; route append default via 10.1.0.1;" +
			"route append default via 10.1.0.2"},
		{"multipath", "addr add 10.1.0.5/24 dev v0; route add default nexthop via 10.1.0.1 weight 2 nexthop via 10.1.0.2 weight 5;" +
			"addr add fd01::5/64 dev v0 nodad; -6 route add default nexthop via fd01::1 weight 3 nexthop via fd01::2"},
		{"nexthop objects", "addr add 10.1.0.5/24 dev v0; nexthop add id 7 via 10.1.0.1 dev v0; nexthop add id 8 via 10.1.0.2 dev v0;" +
			"nexthop add id 9 group 7/8; route add default nhid 7; route add 10.9.0.0/16 nhid 9"},
		{"point to point", "addr add 10.1.0.5 peer 10.1.0.1 dev v0; route add default dev v0"},
		{"no prefix route", "addr add 10.1.0.5/24 dev v0 noprefixroute; route add 10.1.0.0/24 dev v0 proto dhcp src 10.1.0.5 metric 100;" +
			"route add default via 10.1.0.1 proto dhcp metric 100; addr add fd01::5/64 dev v0 nodad noprefixroute;" +
			"-6 route add fd01::/64 dev v0 metric 100 proto ra"},
		{"IPv4 over IPv6", "addr add 10.1.0.5/32 dev v0; addr add fd01::5/64 dev v0 nodad; -4 route add default via inet6 fe80::1 dev v0"},
		{"link scope only", "addr add 169.254.7.7/16 dev v0 scope link; route add default dev v0"},
	} {
		t.Run(h.name, func(t *testing.T) {
			nettest.Host(t)
			nettest.Veth(t, "v0")
			nettest.IP(t, strings.Split(h.ip, ";")...)
			n := discover(t)
			g := newGuest(t)
			s := copyOf(n)
			if n.V6.Local {
				s.V6 = Family{}
			}
			tap := g.setup(t, s)
			if tap.Name != "v0" {
				t.Errorf("interface %q", tap.Name)
			}
			if d := cmp.Diff(routes(nettest.Run(t, "ip", "route")), routes(g.ip(t, "route"))); d != "" {
				t.Errorf("IPv4 routes (-host +guest):\n%s", d)
			}
			if d := cmp.Diff(routes(nettest.Run(t, "ip", "-6", "route")), routes(g.ip(t, "-6 route"))); d != "" {
				t.Errorf("IPv6 routes (-host +guest):\n%s", d)
			}
			here := &guest{child: &netns.Child{}}
			var err error
			if here.child.Net, err = unix.Open("/proc/thread-self/ns/net", unix.O_RDONLY|unix.O_CLOEXEC, 0); err != nil {
				t.Fatal(err)
			}
			defer unix.Close(here.child.Net)
			if d := cmp.Diff(here.addresses(t, "v0"), g.addresses(t, "v0")); d != "" {
				t.Errorf("addresses (-host +guest):\n%s", d)
			}
		})
	}
}

// TestSetupOrder expects equal routes to be in the host's order, of which the
// first counts.
func TestSetupOrder(t *testing.T) {
	nettest.Host(t)
	nettest.Veth(t, "v0")
	nettest.IP(t, "addr add 10.1.0.5/24 dev v0", "route add default via 10.1.0.3", "route append default via 10.1.0.1",
		"route append default via 10.1.0.2")
	g := newGuest(t)
	g.setup(t, copyOf(discover(t)))
	if host, copied := nettest.Run(t, "ip", "route", "show", "default"), g.ip(t, "route show default"); host != copied {
		t.Errorf("host:\n%sguest:\n%s", host, copied)
	}
}

// TestSetupOptions checks what -a, -g, local mode and several interfaces make of
// a host.
func TestSetupOptions(t *testing.T) {
	const host = "addr add 10.1.0.5/24 dev v0; addr add 10.2.0.5/24 dev v1; addr add fd01::5/64 dev v0 nodad; addr add fd01::7/96 dev v0 nodad preferred_lft 0;"
	const paths = "route add default nexthop via 10.1.0.1 weight 5 nexthop via 10.2.0.1; -6 route add default via fd01::1"
	for _, c := range []struct {
		name, ip        string
		addr4, gw4      string
		addr6, gw6      string
		addrs           []string
		routes, routes6 []string
	}{
		{
			name: "one of two interfaces", ip: host + paths,
			addrs:   []string{"10.1.0.5/24", "fd01::5/64"},
			routes:  []string{"10.1.0.0/24 dev v0 proto kernel scope link src 10.1.0.5", "default via 10.1.0.1 dev v0"},
			routes6: []string{"default via fd01::1 dev v0 metric 1024", "fd01::/64 dev v0 proto kernel metric 256", "fd01::/96 dev v0 proto kernel metric 256"},
		},
		{
			name: "-a", ip: host + paths, addr4: "10.99.0.5/16", addr6: "fd77::5/64",
			addrs: []string{"10.99.0.5/16", "fd77::5/64"},
			routes: []string{"10.1.0.0/24 dev v0 proto kernel scope link", "10.99.0.0/16 dev v0 proto kernel scope link src 10.99.0.5",
				"default via 10.1.0.1 dev v0"},
			routes6: []string{"default via fd01::1 dev v0 metric 1024", "fd01::/64 dev v0 proto kernel metric 256",
				"fd01::/96 dev v0 proto kernel metric 256", "fd77::/64 dev v0 proto kernel metric 256"},
		},
		{
			name: "-g", ip: host + paths, gw4: "10.1.0.9", gw6: "fe80::9",
			addrs:   []string{"10.1.0.5/24", "fd01::5/64"},
			routes:  []string{"10.1.0.0/24 dev v0 proto kernel scope link src 10.1.0.5", "default via 10.1.0.9 dev v0"},
			routes6: []string{"default via fe80::9 dev v0 metric 1024", "fd01::/64 dev v0 proto kernel metric 256"},
		},
		{
			name: "-a -g beside the prefix", ip: host + paths, addr4: "10.99.0.5/24", gw4: "192.0.2.1",
			addrs:   []string{"10.99.0.5/24", "fd01::5/64"},
			routes:  []string{"10.99.0.0/24 dev v0 proto kernel scope link src 10.99.0.5", "default via 192.0.2.1 dev v0 onlink"},
			routes6: []string{"default via fd01::1 dev v0 metric 1024", "fd01::/64 dev v0 proto kernel metric 256", "fd01::/96 dev v0 proto kernel metric 256"},
		},
		{
			name: "-g where the host made the prefix route separately",
			ip:   "addr add 10.1.0.5/24 dev v0 noprefixroute; route add 10.1.0.0/24 dev v0; route add default via 10.1.0.1", gw4: "10.1.0.9",
			addrs:   []string{"10.1.0.5/24"},
			routes:  []string{"10.1.0.0/24 dev v0 proto kernel scope link src 10.1.0.5", "default via 10.1.0.9 dev v0"},
			routes6: []string{"default via fe80::1 dev v0 metric 1024"},
		},
		{
			name: "local mode", addrs: []string{"169.254.2.1/16"},
			routes:  []string{"169.254.0.0/16 dev tap0 proto kernel scope link src 169.254.2.1", "default via 169.254.2.2 dev tap0"},
			routes6: []string{"default via fe80::1 dev tap0 metric 1024"},
		},
	} {
		t.Run(c.name, func(t *testing.T) {
			nettest.Host(t)
			nettest.Veth(t, "v0")
			nettest.Veth(t, "v1")
			if c.ip != "" {
				nettest.IP(t, strings.Split(c.ip, ";")...)
			}
			n := discover(t)
			prefix := func(s string) (p netip.Prefix) {
				if s != "" {
					p = netip.MustParsePrefix(s)
				}
				return p
			}
			addr := func(s string) (a netip.Addr) {
				if s != "" {
					a = netip.MustParseAddr(s)
				}
				return a
			}
			s := Setup{Name: n.TapName(), Configure: true, V4: Copy(&n.V4, prefix(c.addr4), addr(c.gw4)),
				V6: Copy(&n.V6, prefix(c.addr6), addr(c.gw6))}
			g := newGuest(t)
			g.setup(t, s)
			if d := cmp.Diff(c.addrs, g.addresses(t, s.Name)); d != "" {
				t.Errorf("addresses (-want +got):\n%s", d)
			}
			if d := cmp.Diff(c.routes, routes(g.ip(t, "route"))); d != "" {
				t.Errorf("IPv4 routes (-want +got):\n%s", d)
			}
			if d := cmp.Diff(c.routes6, routes(strings.ReplaceAll(g.ip(t, "-6 route"), " pref medium", ""))); d != "" {
				t.Errorf("IPv6 routes (-want +got):\n%s", d)
			}
		})
	}
}
