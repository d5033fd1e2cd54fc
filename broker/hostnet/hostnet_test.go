// SPDX-License-Identifier: Apache-2.0

package hostnet

import (
	"net/netip"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"aldente/broker/hostnet/nettest"
)

func TestMain(m *testing.M) { nettest.Main(m) }

// seen is what a test expects of a family.
type seen struct {
	Link, Address, Gateway, LinkLocal string
	Local, Multiple                   bool
	Addresses, Routes, Connected      int
}

func look(f *Family) seen {
	s := seen{Link: f.Link.Name, Local: f.Local, Multiple: f.Multiple,
		Addresses: len(f.Addresses), Routes: len(f.Routes), Connected: len(f.Connected)}
	if f.Address.IsValid() {
		s.Address = f.Address.String()
	}
	if f.Gateway.IsValid() {
		s.Gateway = f.Gateway.String()
	}
	if f.LinkLocal.IsValid() {
		s.LinkLocal = f.LinkLocal.String()
	}
	return s
}

// local4 and local6 are local mode without any template.
var (
	local4 = seen{Address: "169.254.2.1/16", Gateway: "169.254.2.2", Local: true}
	local6 = seen{Gateway: "fe80::1", Local: true}
)

var hosts = []struct {
	name    string
	veth    string // names of interfaces
	ip      string // ip(8) lines
	options Options
	v4, v6  seen
	tap     string
}{
	{name: "no interface", v4: local4, v6: local6, tap: "tap0"},
	{name: "interface without address", veth: "v0", v4: local4, v6: local6, tap: "tap0"},
	{
		name: "IPv4 only", veth: "v0",
		ip: "addr add 10.1.0.5/24 dev v0; route add default via 10.1.0.1",
		v4: seen{Link: "v0", Address: "10.1.0.5/24", Gateway: "10.1.0.1", Addresses: 1, Routes: 1, Connected: 1},
		v6: local6, tap: "v0",
	},
	{
		name: "IPv6 only", veth: "v0",
		ip: "addr add fd01::5/64 dev v0 nodad; addr add fe80::5/64 dev v0 nodad; -6 route add default via fe80::99 dev v0",
		v4: local4,
		v6: seen{Link: "v0", Address: "fd01::5/64", Gateway: "fe80::99", LinkLocal: "fe80::5", Addresses: 1, Routes: 2}, tap: "v0",
	},
	{
		name: "IPv6 link-local with a router", veth: "v0",
		ip: "addr add fe80::5/64 dev v0 nodad; -6 route add default via fe80::99 dev v0",
		v4: local4, v6: seen{Link: "v0", Gateway: "fe80::99", LinkLocal: "fe80::5", Local: true}, tap: "tap0",
	},
	{
		name: "no default route", veth: "v0 v1",
		ip: "addr add 10.2.0.5/24 dev v1; addr add 10.1.0.5/24 dev v0",
		v4: seen{Link: "v0", Address: "10.1.0.5/24", Addresses: 1, Routes: 1, Connected: 1}, v6: local6, tap: "v0",
	},
	{
		name: "several default routes: the lowest metric", veth: "v0 v1",
		ip: "addr add 10.1.0.5/24 dev v0; addr add 10.2.0.5/24 dev v1; route add default via 10.1.0.1 metric 100;" +
			"route add default via 10.2.0.1 metric 50; route add 10.9.0.0/16 via 10.2.0.9 metric 7",
		v4: seen{Link: "v1", Address: "10.2.0.5/24", Gateway: "10.2.0.1", Multiple: true, Addresses: 1, Routes: 2, Connected: 1},
		v6: local6, tap: "v1",
	},
	{
		name: "interface given", veth: "v0 v1", options: Options{Interface: "v0", Outbound4: "v1"},
		ip: "addr add 10.1.0.5/24 dev v0; addr add 10.2.0.5/24 dev v1; route add default via 10.1.0.1 metric 100;" +
			"route add default via 10.2.0.1 metric 50; addr add fd01::5/64 dev v1 nodad",
		v4: seen{Link: "v0", Address: "10.1.0.5/24", Gateway: "10.1.0.1", Addresses: 1, Routes: 1, Connected: 1},
		v6: seen{Link: "v0", Gateway: "fe80::1", Local: true}, tap: "v0",
	},
	{
		name: "outbound interface of one family", veth: "v0 v1", options: Options{Outbound4: "v0"},
		ip: "addr add 10.1.0.5/24 dev v0; addr add 10.2.0.5/24 dev v1; route add default via 10.2.0.1;" +
			"addr add fd01::5/64 dev v1 nodad; -6 route add default via fd01::1",
		v4: seen{Link: "v0", Address: "10.1.0.5/24", Addresses: 1, Connected: 1},
		v6: seen{Link: "v1", Address: "fd01::5/64", Gateway: "fd01::1", Addresses: 1, Routes: 2}, tap: "v0",
	},
	{
		name: "multipath over two interfaces: the heaviest", veth: "v0 v1",
		ip: "addr add 10.1.0.5/24 dev v0; addr add 10.2.0.5/24 dev v1;" +
			"route add default nexthop via 10.1.0.1 weight 1 nexthop via 10.2.0.1 weight 5",
		v4: seen{Link: "v1", Address: "10.2.0.5/24", Gateway: "10.2.0.1", Addresses: 1, Routes: 1, Connected: 1},
		v6: local6, tap: "v1",
	},
	{
		name: "multipath over one interface: first of equals", veth: "v0",
		ip: "addr add 10.1.0.5/24 dev v0; route add default nexthop via 10.1.0.3 weight 2 nexthop via 10.1.0.4 weight 2",
		v4: seen{Link: "v0", Address: "10.1.0.5/24", Gateway: "10.1.0.3", Addresses: 1, Routes: 1, Connected: 1},
		v6: local6, tap: "v0",
	},
	{
		name: "nexthop object", veth: "v0",
		ip: "addr add 10.1.0.5/24 dev v0; nexthop add id 7 via 10.1.0.1 dev v0; route add default nhid 7",
		v4: seen{Link: "v0", Address: "10.1.0.5/24", Gateway: "10.1.0.1", Addresses: 1, Routes: 1, Connected: 1},
		v6: local6, tap: "v0",
	},
	{
		name: "point to point", veth: "v0",
		ip: "addr add 10.1.0.5 peer 10.1.0.1 dev v0; route add default dev v0",
		v4: seen{Link: "v0", Address: "10.1.0.5/32", Addresses: 1, Routes: 1, Connected: 1}, v6: local6, tap: "v0",
	},
	{
		name: "longest prefix, not deprecated", veth: "v0",
		ip: "addr add 10.1.0.5/16 dev v0; addr add 10.1.1.6/24 dev v0; addr add 10.1.1.7/24 dev v0;" +
			"addr add fd01::5/64 dev v0 nodad; addr add fd01::6/80 dev v0 nodad; addr add fd01::7/96 dev v0 nodad preferred_lft 0",
		v4: seen{Link: "v0", Address: "10.1.1.6/24", Addresses: 3, Connected: 2},
		v6: seen{Link: "v0", Address: "fd01::6/80", Addresses: 2, Routes: 3}, tap: "v0",
	},
	{
		name: "only an address of link scope", veth: "v0",
		ip: "addr add 169.254.7.7/16 dev v0 scope link; route add default dev v0",
		v4: seen{Link: "v0", Address: "169.254.7.7/16", Addresses: 1, Routes: 1, Connected: 1}, v6: local6, tap: "v0",
	},
	{
		name: "other tables, blackholes and multicast do not count", veth: "v0 v1",
		ip: "addr add 10.1.0.5/24 dev v0; addr add 10.2.0.5/24 dev v1; route add default via 10.2.0.1 table 77;" +
			"route add blackhole default metric 9; route add default via 10.1.0.1 metric 10",
		v4: seen{Link: "v0", Address: "10.1.0.5/24", Gateway: "10.1.0.1", Addresses: 1, Routes: 1, Connected: 1},
		v6: local6, tap: "v0",
	},
	{
		name: "address without prefix route", veth: "v0",
		ip: "addr add 10.1.0.5/24 dev v0 noprefixroute; route add 10.1.0.0/24 dev v0 proto kernel src 10.1.0.5 metric 100; route add default via 10.1.0.1",
		v4: seen{Link: "v0", Address: "10.1.0.5/24", Gateway: "10.1.0.1", Addresses: 1, Routes: 2}, v6: local6, tap: "v0",
	},
	{
		name: "one family not wanted", veth: "v0", options: Options{Skip6: true},
		ip: "addr add 10.1.0.5/24 dev v0; addr add fd01::5/64 dev v0 nodad",
		v4: seen{Link: "v0", Address: "10.1.0.5/24", Addresses: 1, Connected: 1}, tap: "v0",
	},
}

func TestDiscover(t *testing.T) {
	for _, h := range hosts {
		t.Run(h.name, func(t *testing.T) {
			nettest.Host(t)
			for _, v := range strings.Fields(h.veth) {
				nettest.Veth(t, v)
			}
			if h.ip != "" {
				nettest.IP(t, strings.Split(h.ip, ";")...)
			}
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
			if n.TapName() != h.tap {
				t.Errorf("tap %q, want %q", n.TapName(), h.tap)
			}
		})
	}
}

func TestDiscoverLink(t *testing.T) {
	nettest.Host(t)
	nettest.IP(t, "link add long type veth peer name other", "link set long address 02:00:00:00:00:07 up",
		"link property add dev long altname an-alternative-name", "addr add 10.1.0.5/24 dev long")
	for _, name := range []string{"long", "an-alternative-name"} {
		n, err := Discover(Options{Interface: name})
		if err != nil {
			t.Fatal(err)
		}
		want := Link{Index: n.V4.Link.Index, Name: "long", MAC: [6]byte{2, 0, 0, 0, 0, 7}}
		if n.V4.Link != want || want.Index < 2 {
			t.Errorf("%s: %+v", name, n.V4.Link)
		}
	}
	for _, name := range []string{"none", "a-name-that-is-longer-than-an-interface's"} {
		if _, err := Discover(Options{Outbound6: name}); err == nil || !strings.Contains(err.Error(), name) {
			t.Errorf("interface %s: %v", name, err)
		}
	}
}

func TestDiscoverOwn(t *testing.T) {
	nettest.Host(t)
	nettest.Veth(t, "v0")
	nettest.IP(t, "addr add 10.1.0.5 peer 10.1.0.1 dev v0", "addr add fd01::5/64 dev v0 nodad")
	n, err := Discover(Options{})
	if err != nil {
		t.Fatal(err)
	}
	got := make(map[netip.Addr]bool)
	for _, a := range n.Own {
		got[a] = true
	}
	for _, a := range []string{"127.0.0.1", "::1", "10.1.0.5", "fd01::5"} {
		if !got[netip.MustParseAddr(a)] {
			t.Errorf("%s is missing in %v", a, n.Own)
		}
	}
	if got[netip.MustParseAddr("10.1.0.1")] {
		t.Error("the peer's address counts as ours")
	}
}

func TestDiscoverIPv6Disabled(t *testing.T) {
	nettest.Host(t)
	nettest.Veth(t, "v0")
	nettest.IP(t, "addr add fd01::5/64 dev v0 nodad", "addr add 10.1.0.5/24 dev v0")
	nettest.Run(t, "sh", "-c", "echo 1 >/proc/sys/net/ipv6/conf/all/disable_ipv6")
	n, err := Discover(Options{})
	if err != nil {
		t.Fatal(err)
	}
	if d := cmp.Diff(local6, look(&n.V6)); d != "" {
		t.Errorf("IPv6 (-want +got):\n%s", d)
	}
}

func BenchmarkDiscover(b *testing.B) {
	for b.Loop() {
		if _, err := Discover(Options{}); err != nil {
			b.Fatal(err)
		}
	}
}
