// SPDX-License-Identifier: Apache-2.0

package netlab

import (
	"fmt"
	"os/exec"
	"strings"
)

// Shape is what the host's network looks like.
type Shape int

// Shapes of the host's network.
const (
	Dual         Shape = iota // IPv4 and IPv6, a default route each
	OnlyIPv4                  // no IPv6 address but link-local, no IPv6 route
	OnlyIPv6                  // no IPv4 at all
	NoDefault                 // addresses, but no default route
	PointToPoint              // a /32 and a /128 with peers, default routes without gateway
	TwoDefaults               // a second interface with default routes of higher metric
	NoInterface               // loopback only
	Routed                    // a router between host and remote
)

// Addresses of the lab. The host's gateway is not the remote's address: the
// gateway's may be mapped to the host's loopback.
const (
	Host4    = "192.0.2.2"
	Host6    = "2001:db8:1::2"
	Gateway4 = "192.0.2.1"
	Gateway6 = "fe80::1"
	Far4     = "198.51.100.9" // on the remote, behind the default route
	Far6     = "2001:db8:2::9"
)

// Options of a lab.
type Options struct {
	Shape    Shape   // how the host is connected
	MTU      int     // of the veth pair, 0: 1500
	Wire     *Damage // put a damaging wire between host and remote
	NoRemote bool    // the host is alone
}

// Lab is a host and a remote.
type Lab struct {
	TB      TB      // the test
	Host    *NS     // where guests are started
	Remote  *NS     // nil for NoInterface
	Router  *NS     // Routed only
	Remote4 string  // the remote's IPv4 address
	Remote6 string  // its IPv6 address
	Options Options // as given to New
	Wire    *Wire   // between host and remote, if Options has one
	Binary  string  // the pasta under test
}

// New builds the namespaces, links, addresses and routes.
func New(tb TB, o Options) *Lab {
	tb.Helper()
	if o.MTU == 0 {
		o.MTU = 1500
	}
	l := &Lab{TB: tb, Options: o, Binary: Pasta(), Remote4: "192.0.2.9", Remote6: "2001:db8:1::9"}
	l.Host = NewNS(tb, "host")
	if o.Shape == NoInterface {
		return l
	}
	l.Remote = NewNS(tb, "remote")
	switch {
	case o.Shape == Routed:
		l.routed()
		return l
	case o.Wire != nil:
		wire := NewNS(tb, "wire")
		Veth(l.Host, "h0", wire, "w0", o.MTU)
		Veth(l.Remote, "r0", wire, "w1", o.MTU)
		NoOffload(l.Host, "h0")
		NoOffload(l.Remote, "r0")
		l.Wire = NewWire(wire, "w0", "w1", *o.Wire)
	default:
		Veth(l.Host, "h0", l.Remote, "r0", o.MTU)
	}
	l.Remote.IP("addr add 192.0.2.9/24 dev r0", "addr add 192.0.2.1/24 dev r0",
		"addr add 2001:db8:1::9/64 dev r0 nodad", "addr add fe80::1/64 dev r0 nodad",
		"addr add 198.51.100.9/32 dev lo", "addr add 2001:db8:2::9/128 dev lo nodad")
	l.Host.IP(hostSetup(o.Shape)...)
	if o.Shape == TwoDefaults {
		second := NewNS(tb, "second")
		Veth(l.Host, "h1", second, "s0", o.MTU)
		second.IP("addr add 203.0.113.1/24 dev s0", "addr add fe80::1/64 dev s0 nodad")
		l.Host.IP("addr add 203.0.113.2/24 dev h1", "addr add 2001:db8:9::2/64 dev h1 nodad",
			"route add default via 203.0.113.1 metric 4096", "-6 route add default via fe80::1 dev h1 metric 4096")
	}
	return l
}

// HostLink takes the host's interface away, and its addresses and routes with
// it, or gives all back.
func (l *Lab) HostLink(up bool) {
	l.TB.Helper()
	if !up {
		l.Host.IP("link set h0 down", "addr flush dev h0")
		return
	}
	l.Host.IP("link set h0 up")
	l.Host.IP(hostSetup(l.Options.Shape)...)
}

// For returns the lab as a subtest uses it: what the subtest starts ends with
// it.
func (l *Lab) For(tb TB) *Lab {
	c := *l
	c.TB = tb
	for _, n := range []**NS{&c.Host, &c.Remote, &c.Router} {
		if *n != nil {
			*n = (*n).For(tb)
		}
	}
	return &c
}

func hostSetup(s Shape) []string {
	v4 := []string{"addr add 192.0.2.2/24 dev h0", "route add default via 192.0.2.1"}
	v6 := []string{"addr add 2001:db8:1::2/64 dev h0 nodad", "-6 route add default via fe80::1 dev h0"}
	switch s {
	case OnlyIPv4:
		return v4
	case OnlyIPv6:
		return v6
	case NoDefault:
		return []string{v4[0], v6[0]}
	case PointToPoint:
		return []string{"addr add 192.0.2.2 peer 192.0.2.9/32 dev h0", "route add default dev h0",
			"addr add 2001:db8:1::2 peer 2001:db8:1::9/128 dev h0 nodad", "-6 route add default dev h0"}
	}
	return append(v4, v6...)
}

func (l *Lab) routed() {
	l.Router = NewNS(l.TB, "router")
	Veth(l.Host, "h0", l.Router, "q0", l.Options.MTU)
	Veth(l.Router, "q1", l.Remote, "r0", l.Options.MTU)
	l.Router.Sysctl("net/ipv4/ip_forward", "1")
	l.Router.Sysctl("net/ipv6/conf/all/forwarding", "1")
	l.Router.IP("addr add 192.0.2.1/24 dev q0", "addr add fe80::1/64 dev q0 nodad", "addr add 2001:db8:1::1/64 dev q0 nodad",
		"addr add 203.0.113.1/24 dev q1", "addr add 2001:db8:3::1/64 dev q1 nodad")
	l.Remote.IP("addr add 203.0.113.9/24 dev r0", "route add default via 203.0.113.1",
		"addr add 2001:db8:3::9/64 dev r0 nodad", "-6 route add default via 2001:db8:3::1")
	l.Host.IP(hostSetup(Dual)...)
	l.Remote4, l.Remote6 = "203.0.113.9", "2001:db8:3::9"
}

// Veth joins two namespaces and brings both ends up.
func Veth(a *NS, an string, b *NS, bn string, mtu int) {
	a.tb.Helper()
	a.IP(fmt.Sprintf("link add %s mtu %d type veth peer name %s mtu %d netns %s", an, mtu, bn, mtu, b.Path()))
	a.IP("link set " + an + " up txqueuelen 10000")
	b.IP("link set " + bn + " up txqueuelen 10000")
}

// NoOffload makes the interface send whole checksums and no super-frames.
func NoOffload(n *NS, iface string) {
	n.tb.Helper()
	n.Must("ethtool", "-K", iface, "tso", "off", "gso", "off", "tx", "off", "tx-udp-segmentation", "off")
}

// Have fails the test when a program that it needs is missing.
func Have(tb TB, programs ...string) {
	tb.Helper()
	var missing []string
	for _, p := range programs {
		if _, err := exec.LookPath(p); err != nil {
			missing = append(missing, p)
		}
	}
	if len(missing) > 0 {
		tb.Fatalf("not installed: %s (test/setup.sh knows the packages)", strings.Join(missing, ", "))
	}
}
