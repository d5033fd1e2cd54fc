// SPDX-License-Identifier: Apache-2.0

package hostnet

import (
	"net/netip"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"aldente/broker/hostnet/nettest"
	"aldente/broker/rtnl"
)

// ways are hosts of two interfaces, v0 and v1, where the main table alone does not say
// how the kernel sends to somewhere far away, or not in so many words.
var ways = []struct {
	name    string
	script  string // lines of sh(1)
	options Options
	v4, v6  seen
}{
	{
		name: "another table",
		script: "ip route add default via 10.1.0.1 table 100; ip rule add lookup 100 pref 20000\n" +
			"ip -6 route add default via fe80::1 dev v0 table 1000; ip -6 rule add lookup 1000 pref 40000",
		v4: seen{Link: "v0", Address: "10.1.0.5/24", Gateway: "10.1.0.1", Addresses: 1, Routes: 1, Connected: 1},
		v6: seen{Link: "v0", Address: "fd01::5/64", Gateway: "fe80::1", Addresses: 1, Routes: 2},
	},
	{
		name: "another table of another interface",
		script: "ip route add default via 10.2.0.1 table 1000; ip rule add lookup 1000 pref 20000\n" +
			"ip -6 route add default via fd02::1 table 100; ip -6 rule add lookup 100 pref 20000",
		v4: seen{Link: "v1", Address: "10.2.0.5/24", Gateway: "10.2.0.1", Addresses: 1, Routes: 1, Connected: 1},
		v6: seen{Link: "v1", Address: "fd02::5/64", Gateway: "fd02::1", Addresses: 1, Routes: 2},
	},
	{
		name: "nexthop objects that routes name by number alone",
		script: "echo 0 >/proc/sys/net/ipv4/nexthop_compat_mode\n" +
			"ip nexthop add id 7 via 10.1.0.1 dev v0; ip route add default nhid 7; ip nexthop add id 8 via fe80::1 dev v0; ip -6 route add default nhid 8",
		v4: seen{Link: "v0", Address: "10.1.0.5/24", Gateway: "10.1.0.1", Addresses: 1, Routes: 1, Connected: 1},
		v6: seen{Link: "v0", Address: "fd01::5/64", Gateway: "fe80::1", Addresses: 1, Routes: 2},
	},
	{
		name: "groups of nexthop objects",
		script: "echo 0 >/proc/sys/net/ipv4/nexthop_compat_mode\n" +
			"ip nexthop add id 1 via 10.1.0.1 dev v0; ip nexthop add id 2 via 10.2.0.1 dev v1; ip nexthop add id 3 group 1,2/2,9; ip route add default nhid 3\n" +
			"ip nexthop add id 4 via fe80::1 dev v0; ip nexthop add id 5 via fe80::2 dev v0; ip nexthop add id 6 group 4/5; ip -6 route add default nhid 6",
		v4: seen{Link: "v1", Address: "10.2.0.5/24", Gateway: "10.2.0.1", Addresses: 1, Routes: 1, Connected: 1},
		v6: seen{Link: "v0", Address: "fd01::5/64", Gateway: "fe80::1", Addresses: 1, Routes: 2},
	},
	{
		name: "nexthop objects in another table",
		script: "echo 0 >/proc/sys/net/ipv4/nexthop_compat_mode\n" +
			"ip nexthop add id 7 via 10.2.0.1 dev v1; ip route add default nhid 7 table 100; ip rule add lookup 100 pref 20000\n" +
			"ip nexthop add id 8 via fe80::1 dev v1; ip -6 route add default nhid 8 table 100; ip -6 rule add lookup 100 pref 20000",
		v4: seen{Link: "v1", Address: "10.2.0.5/24", Gateway: "10.2.0.1", Addresses: 1, Routes: 1, Connected: 1},
		v6: seen{Link: "v1", Address: "fd02::5/64", Gateway: "fe80::1", Addresses: 1, Routes: 2},
	},
	{
		name:   "a nexthop object that discards",
		script: "echo 0 >/proc/sys/net/ipv4/nexthop_compat_mode\nip nexthop add id 7 blackhole; ip route add default nhid 7",
		v4:     seen{Link: "v0", Address: "10.1.0.5/24", Addresses: 1, Routes: 1, Connected: 1}, // what v1 leads to
		v6:     seen{Link: "v0", Address: "fd01::5/64", Addresses: 1, Routes: 2},
	},
	{
		name: "multipath whose heaviest interface is down",
		script: "ip route add default nexthop via 10.1.0.1 weight 9 nexthop via 10.2.0.1\n" +
			"ip -6 route add default nexthop via fd01::1 weight 9 nexthop via fd02::1\nip link set v0 down",
		v4: seen{Link: "v1", Address: "10.2.0.5/24", Gateway: "10.2.0.1", Addresses: 1, Routes: 1, Connected: 1},
		v6: seen{Link: "v1", Address: "fd02::5/64", Gateway: "fd02::1", Addresses: 1, Routes: 2},
	},
	{
		name: "two halves",
		script: "ip route add 0.0.0.0/1 via 10.2.0.1; ip route add 128.0.0.0/1 via 10.2.0.1\n" +
			"ip -6 route add 2000::/3 via fe80::1 dev v1",
		v4: seen{Link: "v1", Address: "10.2.0.5/24", Gateway: "10.2.0.1", Addresses: 1, Routes: 2, Connected: 1},
		v6: seen{Link: "v1", Address: "fd02::5/64", Gateway: "fe80::1", Addresses: 1, Routes: 2},
	},
	{
		name: "for some sources only",
		script: "ip route add default via 10.1.0.1 table 100; ip rule add from 10.1.0.5 lookup 100\n" +
			"ip -6 route add default via fe80::1 dev v0 table 100; ip -6 rule add from fd01::/64 lookup 100",
		options: Options{Source4: netip.MustParseAddr("10.1.0.5"), Source6: netip.MustParseAddr("fd01::5")},
		v4:      seen{Link: "v0", Address: "10.1.0.5/24", Gateway: "10.1.0.1", Addresses: 1, Routes: 1, Connected: 1},
		v6:      seen{Link: "v0", Address: "fd01::5/64", Gateway: "fe80::1", Addresses: 1, Routes: 2},
	},
	{
		name: "for packets that are not ours",
		script: "ip route add default via 10.2.0.1 table 100; ip rule add fwmark 7 lookup 100; ip rule add iif v1 lookup 100\n" +
			"ip -6 route add default via fe80::1 dev v1 table 100; ip -6 rule add fwmark 7 lookup 100; ip -6 rule add iif v1 lookup 100",
		v4: seen{Link: "v0", Address: "10.1.0.5/24", Addresses: 1, Routes: 1, Connected: 1},
		v6: seen{Link: "v0", Address: "fd01::5/64", Addresses: 1, Routes: 2},
	},
	{
		name: "unreachable, but in another table",
		script: "ip route add unreachable default metric 4278198272; ip route add default via 10.2.0.1 table 100; ip rule add lookup 100 pref 20000\n" +
			"ip -6 route add unreachable default metric 4278198272; ip -6 route add default via fe80::1 dev v1 table 100; ip -6 rule add lookup 100 pref 20000",
		v4: seen{Link: "v1", Address: "10.2.0.5/24", Gateway: "10.2.0.1", Addresses: 1, Routes: 1, Connected: 1},
		v6: seen{Link: "v1", Address: "fd02::5/64", Gateway: "fe80::1", Addresses: 1, Routes: 2},
	},
	{
		name: "a table that refuses",
		script: "ip route add unreachable default table 100; ip rule add lookup 100 pref 40000\n" +
			"ip -6 route add blackhole default table 100; ip -6 rule add lookup 100 pref 40000",
		v4: seen{Link: "v0", Address: "10.1.0.5/24", Addresses: 1, Routes: 1, Connected: 1},
		v6: seen{Link: "v0", Address: "fd01::5/64", Addresses: 1, Routes: 2},
	},
	{
		name: "the interface's own table",
		script: "ip route add default via 10.1.0.1; ip route add default via 10.2.0.1 table 100; ip rule add oif v1 lookup 100\n" +
			"ip -6 route add default via fe80::9 dev v0; ip -6 route add default via fe80::1 dev v1 table 100; ip -6 rule add oif v1 lookup 100",
		options: Options{Interface: "v1"},
		v4:      seen{Link: "v1", Address: "10.2.0.5/24", Gateway: "10.2.0.1", Addresses: 1, Routes: 1, Connected: 1},
		v6:      seen{Link: "v1", Address: "fd02::5/64", Gateway: "fe80::1", Addresses: 1, Routes: 2},
	},
	{
		name: "preferred",
		script: "ip route add default via 10.1.0.1 tos 0x10; ip route add default via 10.2.0.1 metric 7\n" +
			"ip -6 route add default via fe80::1 dev v0 metric 2000; ip -6 route add default via fe80::1 dev v1 metric 1000",
		v4: seen{Link: "v1", Address: "10.2.0.5/24", Gateway: "10.2.0.1", Addresses: 1, Routes: 1, Connected: 1},
		v6: seen{Link: "v1", Address: "fd02::5/64", Gateway: "fe80::1", Addresses: 1, Routes: 2, Multiple: true},
	},
}

func TestWays(t *testing.T) {
	for _, h := range ways {
		t.Run(h.name, func(t *testing.T) {
			nettest.Host(t)
			nettest.Veth(t, "v0")
			nettest.Veth(t, "v1")
			nettest.IP(t, "addr add 10.1.0.5/24 dev v0", "addr add fd01::5/64 dev v0 nodad", "addr add 10.2.0.5/24 dev v1", "addr add fd02::5/64 dev v1 nodad")
			nettest.Run(t, "sh", "-ec", h.script)
			n, err := Discover(h.options)
			if err != nil {
				t.Fatal(err)
			}
			if d := cmp.Diff(h.v4, look(&n.V4)); d != "" {
				t.Errorf("IPv4 (-want +got):\n%s", d)
			}
			if d := cmp.Diff(h.v6, look(&n.V6)); d != "" {
				t.Errorf("IPv6 (-want +got):\n%s", d)
			}
			if reached := h.v4.Gateway != ""; n.V4.Default != reached {
				t.Errorf("a default route of IPv4: %t, want %t", n.V4.Default, reached)
			}
			checkCopied(t, n)
		})
	}
}

// checkCopied: what is copied means something where there are no other tables, nexthop
// objects and sources.
func checkCopied(t *testing.T, n *Network) {
	t.Helper()
	for _, f := range []*Family{&n.V4, &n.V6} {
		for _, b := range append(f.Routes, f.Connected...) {
			r, ok := rtnl.RouteOf(b)
			if !ok || r.Table() != unix.RT_TABLE_MAIN || r.SrcLen() != 0 || r.Nexthop() != 0 || r.Type() != unix.RTN_UNICAST {
				t.Errorf("copied route %x", b)
			}
		}
	}
}

// TestHops: of a route's paths the one counts that is up, then the heaviest, then the first.
func TestHops(t *testing.T) {
	flags := map[byte]uint8{'a': 0, 'd': unix.RTNH_F_LINKDOWN, 'x': unix.RTNH_F_DEAD | unix.RTNH_F_LINKDOWN}
	for paths, want := range map[string]int{"a1 a1": 1, "a1 a2": 2, "d9 a1": 2, "x9 d1": 2, "x9 d1 d2": 3, "x9": 0, "x1 x2": 0, "d1": 1, "": 0} {
		var hops rtnl.Hops
		for i, p := range strings.Fields(paths) {
			hops = rtnl.AppendHop(hops, i+2, int(p[1]-'0'), flags[p[0]], unix.AF_INET, netip.Addr{})
		}
		h := rtnl.RouteHeader{Family: unix.AF_INET, Table: unix.RT_TABLE_MAIN, Type: unix.RTN_UNICAST}
		got, _ := template([]route{routeOf(bodyOf(rtnl.AppendAttr(h.Body(), unix.RTA_MULTIPATH, hops)))})
		if got != 0 {
			got--
		}
		if got != want {
			t.Errorf("%s: path %d, want %d", paths, got, want)
		}
	}
}

// TestPreferred: routers of one metric differ by preference (RFC 4191).
func TestPreferred(t *testing.T) {
	by := func(index uint32, pref ...byte) route {
		h := rtnl.RouteHeader{Family: unix.AF_INET6, Table: unix.RT_TABLE_MAIN, Type: unix.RTN_UNICAST}
		return routeOf(bodyOf(rtnl.AppendAttr(rtnl.AppendAttrUint32(h.Body(), unix.RTA_OIF, index), unix.RTA_PREF, pref)))
	}
	for _, tt := range []struct {
		routes []route
		want   int
	}{
		{[]route{by(2, 3), by(3, 0), by(4, 1)}, 4}, {[]route{by(2, 1), by(3, 0), by(4, 3)}, 2}, {[]route{by(2, 3), by(3), by(4, 0)}, 3},
	} {
		if got, _ := template(tt.routes); got != tt.want {
			t.Errorf("interface %d, want %d", got, tt.want)
		}
	}
}

// TestWayOfSources: a default route for the sources of some prefixes is one, to a socket
// that may choose.
func TestWayOfSources(t *testing.T) {
	nettest.Host(t)
	nettest.Veth(t, "v0")
	nettest.Veth(t, "v1")
	nettest.IP(t, "addr add fd01::5/64 dev v0 nodad", "addr add 2001:db8:7::5/64 dev v1 nodad")
	if nettest.Try("ip", "-6 route add default from 2001:db8:7::/64 via fe80::1 dev v1") != nil {
		t.Skip("the kernel has no routes by source (CONFIG_IPV6_SUBTREES)")
	}
	nettest.IP(t, "-6 route add default from fd77::/64 via fe80::9 dev v0")
	n, err := Discover(Options{})
	if err != nil {
		t.Fatal(err)
	}
	want := seen{Link: "v1", Address: "2001:db8:7::5/64", Gateway: "fe80::1", Addresses: 1, Routes: 2}
	got := look(&n.V6)
	got.Multiple = false
	if d := cmp.Diff(want, got); d != "" {
		t.Errorf("-want +got:\n%s", d)
	}
	checkCopied(t, n)
}

// TestWaysScope: link-local addresses are on the interface that sockets are bound to.
func TestWaysScope(t *testing.T) {
	nettest.Host(t)
	nettest.Veth(t, "v0")
	nettest.Veth(t, "v1")
	nettest.IP(t, "addr add fd01::5/64 dev v0 nodad", "-6 route add default via fe80::1 dev v0")
	v1, err := LinkIndex("v1")
	if err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct {
		options Options
		other   bool
	}{{Options{}, false}, {Options{Interface: "v0"}, false}, {Options{Outbound6: "v1"}, true}, {Options{Interface: "v0", Outbound6: "v1"}, true}} {
		n, err := Discover(tt.options)
		if err != nil || (n.V6.Scope == v1) != tt.other {
			t.Errorf("%+v: scope %d, %v; v1 is %d", tt.options, n.V6.Scope, err, v1)
		}
	}
}

// TestSnapshotWithout: an interface that is not there is an error, and no reason to know
// nothing of the other family.
func TestSnapshotWithout(t *testing.T) {
	nettest.Host(t)
	nettest.Veth(t, "v0")
	nettest.IP(t, "addr add 10.1.0.5/24 dev v0", "addr add fd01::5/64 dev v0 nodad")
	c, err := rtnl.Dial()
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	o := Options{Outbound6: "gone"}
	s, err := Read(c, o)
	if err != nil {
		t.Fatal(err)
	}
	n, err := s.Network(o)
	if err == nil {
		t.Error("no error")
	}
	if !n.V6.Local || n.V4.Local || n.V4.Link.Name != "v0" {
		t.Errorf("%+v, %+v", look(&n.V4), look(&n.V6))
	}
}

// TestVRF: an interface in a VRF has its default route in the VRF's table, which sockets
// find that are bound to the one or the other.
func TestVRF(t *testing.T) {
	nettest.Host(t)
	if nettest.Try("ip", "link add blue type vrf table 10") != nil {
		t.Skip("the kernel has no VRF")
	}
	nettest.Veth(t, "v0")
	nettest.Veth(t, "v1")
	nettest.IP(t, "link set blue up", "link set v1 master blue", "addr add 10.1.0.5/24 dev v0", "addr add fd01::5/64 dev v0 nodad",
		"addr add 10.2.0.5/24 dev v1", "addr add fd02::5/64 dev v1 nodad", "route add default via 10.1.0.1", "-6 route add default via fd01::1",
		"route add default via 10.2.0.1 table 10", "-6 route add default via fe80::1 dev v1 table 10")
	// The subnets' own routes are in the VRF's table, too.
	inside4 := seen{Link: "v1", Address: "10.2.0.5/24", Gateway: "10.2.0.1", Addresses: 1, Routes: 1, Connected: 1}
	inside6 := seen{Link: "v1", Address: "fd02::5/64", Gateway: "fe80::1", Addresses: 1, Routes: 2}
	outside4 := seen{Link: "v0", Address: "10.1.0.5/24", Gateway: "10.1.0.1", Addresses: 1, Routes: 1, Connected: 1}
	outside6 := seen{Link: "v0", Address: "fd01::5/64", Gateway: "fd01::1", Addresses: 1, Routes: 2}
	for _, tt := range []struct {
		options Options
		v4, v6  seen
	}{
		{Options{}, outside4, outside6}, {Options{Interface: "v1"}, inside4, inside6}, {Options{Interface: "blue"}, inside4, inside6},
		{Options{Outbound4: "blue"}, inside4, outside6}, {Options{Outbound6: "v1"}, outside4, inside6},
	} {
		n, err := Discover(tt.options)
		if err != nil {
			t.Fatal(err)
		}
		if d := cmp.Diff([]seen{tt.v4, tt.v6}, []seen{look(&n.V4), look(&n.V6)}); d != "" {
			t.Errorf("%+v (-want +got):\n%s", tt.options, d)
		}
		if v1, _ := LinkIndex("v1"); (n.V6.Scope == v1) != (tt.v6 == inside6) {
			t.Errorf("%+v: link-local addresses are on %d, v1 is %d", tt.options, n.V6.Scope, v1)
		}
		checkCopied(t, n)
	}
}
