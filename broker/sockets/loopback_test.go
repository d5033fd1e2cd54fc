// SPDX-License-Identifier: Apache-2.0

package sockets

import (
	"net/netip"
	"testing"

	"aldente/ipc"
)

// TestBypassWithoutIPv6: where a flow past the link leads on a host that has no
// ::1, or to a guest that has no IPv6 address but its link-local one.
func TestBypassWithoutIPv6(t *testing.T) {
	const tap = 7
	into := Listener{ID: 1, Proto: ipc.ProtoTCP, Port: 8001, GuestPort: 80, Splice: true}
	out := Listener{ID: 2, Proto: ipc.ProtoTCP, Port: 9001, GuestPort: 90, Namespace: true}
	aimed := out
	aimed.Target = netip.IPv6Loopback()
	for _, tt := range []struct {
		name     string
		listener Listener
		none     bool // the host has no ::1
		addr     string
		want     string
		scope    uint32
	}{
		{"to link-local", into, true, "fe80::2", "[fe80::2]:80", tap},
		{"to a global address", into, false, "2001:db8::2", "[2001:db8::2]:80", tap},
		{"out", out, false, "::1", "[::1]:90", 0},
		{"out, no ::1", out, true, "::1", "127.0.0.1:90", 0},
		{"out, a target given", aimed, true, "::1", "[::1]:90", 0},
	} {
		c := Config{V4: Family{Enabled: true}, V6: Family{Enabled: true}, NamespaceScope: tap, NoLoopback6: tt.none}
		d := c.decide(&request{
			proto: ipc.ProtoTCP, splice: true, listener: tt.listener,
			src: netip.AddrPortFrom(netip.MustParseAddr(tt.addr), 0), dst: netip.MustParseAddrPort("[::1]:40000"),
		})
		if d.refused != 0 || d.to.String() != tt.want || d.Scope != tt.scope || d.from.Addr().Is4() != d.to.Addr().Is4() {
			t.Errorf("%s: to %v from %v, scope %d, refused %v; want %s, scope %d", tt.name, d.to, d.from, d.Scope, d.refused, tt.want, tt.scope)
		}
	}
}

// TestLoopbackHasNoInterface: what goes to the host's loopback is bound neither
// to an interface nor to an address of one.
func TestLoopbackHasNoInterface(t *testing.T) {
	gateway := netip.MustParseAddr("192.0.2.1")
	c := Config{V4: Family{Enabled: true, Source: netip.MustParseAddr("192.0.2.2"), Interface: "eth0", MapHostLoopback: gateway}}
	for to, bound := range map[string]bool{"192.0.2.1:80": false, "192.0.2.9:80": true} {
		d := c.decide(&request{proto: ipc.ProtoUDP, src: netip.MustParseAddrPort("192.0.2.2:40000"), dst: netip.MustParseAddrPort(to)})
		if d.refused != 0 || d.Source.IsValid() != bound || (d.Interface != "") != bound || d.from.Addr().IsUnspecified() == bound {
			t.Errorf("%s: %+v", to, d)
		}
	}
}
