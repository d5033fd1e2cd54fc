// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"net/netip"
	"testing"

	"golang.org/x/sys/unix"

	"aldente/broker/rtnl"
)

// TestReach: an address that only we know gets a route where none leads to it.
func TestReach(t *testing.T) {
	address := func(s string) []byte { return addressBody(netip.MustParsePrefix(s), unix.RT_SCOPE_UNIVERSE, 0) }
	gateway := netip.MustParseAddr("192.0.2.1")
	for _, tt := range []struct {
		name string
		f    Family
		to   string
		want string // of the route, "": none
	}{
		{"no default route", Family{Addresses: [][]byte{address("192.0.2.2/24")}}, "169.254.1.1", "169.254.1.1/32"},
		{"no default route, IPv6", Family{Addresses: [][]byte{address("2001:db8::2/64")}}, "fd12::1", "fd12::1/128"},
		{"in the address's network", Family{Addresses: [][]byte{address("192.0.2.2/24")}}, "192.0.2.77", ""},
		{"in the given address's network", Family{Address: netip.MustParsePrefix("10.0.2.15/24")}, "10.0.2.3", ""},
		{"beside the given address's network", Family{Address: netip.MustParsePrefix("10.0.2.15/24")}, "10.0.3.3", "10.0.3.3/32"},
		{"default route", Family{Addresses: [][]byte{address("192.0.2.2/24")}, Routes: [][]byte{defaultRoute(gateway)}}, "169.254.1.1", ""},
		{"gateway given", Family{Addresses: [][]byte{address("192.0.2.2/24")}, Gateway: gateway}, "169.254.1.1", ""},
		{"a route there", Family{Routes: [][]byte{linkRoute(netip.MustParseAddr("169.254.1.1"))}}, "169.254.1.1", ""},
		{"a route elsewhere", Family{Routes: [][]byte{linkRoute(netip.MustParseAddr("169.254.1.2"))}}, "169.254.1.1", "169.254.1.1/32"},
		{"link-local", Family{Addresses: [][]byte{address("2001:db8::2/64")}}, "fe80::1", ""},
	} {
		before := len(tt.f.Routes)
		tt.f.Reach(netip.MustParseAddr(tt.to))
		got := ""
		if len(tt.f.Routes) > before {
			r, _ := rtnl.RouteOf(tt.f.Routes[before])
			got = routeString(r)
		}
		if got != tt.want {
			t.Errorf("%s: route %q, want %q", tt.name, got, tt.want)
		}
	}
	var f Family
	if f.Reach(netip.Addr{}); f.Routes != nil {
		t.Error("a route to nowhere")
	}
}
