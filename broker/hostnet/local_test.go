// SPDX-License-Identifier: Apache-2.0

package hostnet

import (
	"net"
	"net/netip"
	"testing"
	"time"

	"aldente/broker/hostnet/nettest"
)

func TestLocal(t *testing.T) {
	nettest.Host(t)
	nettest.Veth(t, "v0")
	nettest.IP(t, "addr add 10.1.0.5/24 dev v0", "addr add fd01::5/64 dev v0 nodad", "addr add fe80::5/64 dev v0 nodad",
		"route add local 198.51.100.0/24 dev lo", "-6 route add local 2001:db8:5::/64 dev lo",
		"route add default via 10.1.0.1", "route add blackhole 192.0.2.0/24", "route add prohibit 192.0.3.0/24")
	link, err := net.InterfaceByName("v0")
	if err != nil {
		t.Fatal(err)
	}
	l, err := NewLocal(link.Index)
	if err != nil {
		t.Fatal(err)
	}
	check := func(want bool, addrs ...string) {
		t.Helper()
		for _, a := range addrs {
			got := l.Has(netip.MustParseAddr(a))
			// The kernel delivers to a new IPv6 address a moment after it is set.
			for tries := 0; got != want && tries < 200; tries++ {
				time.Sleep(10 * time.Millisecond)
				got = l.Has(netip.MustParseAddr(a))
			}
			if got != want {
				t.Errorf("%s: %v, want %v", a, got, want)
			}
		}
	}
	check(true, "127.0.0.1", "127.9.8.7", "::1", "10.1.0.5", "::ffff:10.1.0.5", "fd01::5", "fe80::5",
		"198.51.100.77", "2001:db8:5::77", "10.1.0.255")
	check(false, "10.1.0.6", "fd01::6", "fe80::6", "203.0.113.1", "192.0.2.1", "192.0.3.1", "2001:db8:9::1")

	nettest.IP(t, "addr add 10.1.0.6/24 dev v0", "addr add fd01::6/64 dev v0 nodad")
	check(true, "10.1.0.6", "fd01::6")
}

func BenchmarkLocal(b *testing.B) {
	l, err := NewLocal(0)
	if err != nil {
		b.Fatal(err)
	}
	a := netip.MustParseAddr("127.0.0.1")
	for b.Loop() {
		l.Has(a)
	}
}
