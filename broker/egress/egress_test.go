// SPDX-License-Identifier: Apache-2.0

package egress

import (
	"net/netip"
	"testing"
)

func must(t *testing.T, own string, rules ...string) *Policy {
	t.Helper()
	var all []Rule
	for _, r := range rules {
		all = append(all, Rule{Allow: r[0] == '+', Dest: r[1:]})
	}
	var addrs []netip.Addr
	if own != "" {
		addrs = append(addrs, netip.MustParseAddr(own))
	}
	e, err := New(all, addrs)
	if err != nil {
		t.Fatal(err)
	}
	return e
}

func TestFirstMatch(t *testing.T) {
	for _, c := range []struct {
		name  string
		rules []string
		proto uint8
		dst   string
		want  bool
	}{
		{"no rule", nil, protoTCP, "198.51.100.1:80", true},
		{"first match wins", []string{"+198.51.100.1", "-any"}, protoTCP, "198.51.100.1:80", true},
		{"first match wins, reversed", []string{"-any", "+198.51.100.1"}, protoTCP, "198.51.100.1:80", false},
		{"no match", []string{"-192.0.2.0/24"}, protoUDP, "198.51.100.1:80", true},
		{"port", []string{"+tcp:192.0.2.1:443", "-any"}, protoTCP, "192.0.2.1:443", true},
		{"other port", []string{"+tcp:192.0.2.1:443", "-any"}, protoTCP, "192.0.2.1:80", false},
		{"other protocol", []string{"+tcp:192.0.2.1:443", "-any"}, protoUDP, "192.0.2.1:443", false},
		{"range, first", []string{"-any:1000-2000"}, protoUDP, "192.0.2.1:1000", false},
		{"range, last", []string{"-any:1000-2000"}, protoUDP, "192.0.2.1:2000", false},
		{"range, beyond", []string{"-any:1000-2000"}, protoUDP, "192.0.2.1:2001", true},
		{"echo has no port", []string{"-any:1-65535"}, protoICMP, "192.0.2.1:0", true},
		{"echo", []string{"-icmp:any"}, protoICMP, "192.0.2.1:0", false},
		{"echo, IPv6", []string{"-icmp:any"}, protoICMPv6, "[2001:db8::1]:0", false},
		{"bracketed", []string{"-tcp:[2001:db8::1]:25"}, protoTCP, "[2001:db8::1]:25", false},
		{"bare IPv6", []string{"-2001:db8::25"}, protoTCP, "[2001:db8::25]:25", false},
		{"IPv6 prefix with port", []string{"-[2001:db8::]/32:25"}, protoTCP, "[2001:db8:1::1]:25", false},
		{"mapped destination", []string{"-192.0.2.1"}, protoTCP, "[::ffff:192.0.2.1]:25", false},
		{"mapped rule", []string{"-::ffff:192.0.2.0/120"}, protoTCP, "192.0.2.9:25", false},
		{"host: loopback", []string{"-host"}, protoTCP, "127.1.2.3:25", false},
		{"host: loopback, IPv6", []string{"-host"}, protoTCP, "[::1]:25", false},
		{"host: own", []string{"-host"}, protoTCP, "203.0.113.5:25", false},
		{"host: other", []string{"-host"}, protoTCP, "203.0.113.6:25", true},
		{"link-local", []string{"-link-local"}, protoUDP, "[fe80::1%2]:53", false},
		{"private", []string{"-private"}, protoUDP, "100.64.0.1:53", false},
		{"private, IPv6", []string{"-private"}, protoUDP, "[fd12::1]:53", false},
		{"metadata", []string{"-metadata"}, protoTCP, "169.254.169.254:80", false},
		{"metadata, IPv6", []string{"-metadata"}, protoTCP, "[fd00:ec2::254]:80", false},
		{"metadata, neighbour", []string{"-metadata"}, protoTCP, "169.254.169.253:80", true},
	} {
		e := must(t, "203.0.113.5", c.rules...)
		if got := e.Allowed(c.proto, netip.MustParseAddrPort(c.dst)); got != c.want {
			t.Errorf("%s: %v, %d to %s: %v, want %v", c.name, c.rules, c.proto, c.dst, got, c.want)
		}
	}
}

func TestPin(t *testing.T) {
	resolver := netip.MustParseAddr("127.0.0.53")
	e := must(t, "", "-host")
	e.Pin(resolver)
	for port, want := range map[uint16]bool{53: true, 853: true, 80: false} {
		if got := e.Allowed(protoUDP, netip.AddrPortFrom(resolver, port)); got != want {
			t.Errorf("port %d: %v, want %v", port, got, want)
		}
	}
	e = must(t, "", "-127.0.0.53")
	e.Pin(resolver)
	if e.Allowed(protoUDP, netip.AddrPortFrom(resolver, 53)) {
		t.Error("a resolver denied by its own address is reachable")
	}
}

// TestPinAndRules: a rule that names the resolver itself decides, one that only
// covers it does not.
func TestPinAndRules(t *testing.T) {
	resolver := netip.MustParseAddr("10.0.0.53")
	for _, c := range []struct {
		rules []string
		proto uint8
		port  uint16
		want  bool
	}{
		{[]string{"-any"}, protoUDP, 53, true},
		{[]string{"-any"}, protoTCP, 853, true},
		{[]string{"-any"}, protoTCP, 80, false},
		{[]string{"-any"}, protoICMP, 0, false},
		{[]string{"-private"}, protoUDP, 53, true},
		{[]string{"-10.0.0.0/8"}, protoUDP, 53, true},
		{[]string{"-10.0.0.53"}, protoUDP, 53, false},
		{[]string{"-udp:10.0.0.53"}, protoUDP, 53, false},
		{[]string{"-udp:10.0.0.53"}, protoTCP, 53, true},
		{[]string{"-tcp:10.0.0.53:80"}, protoUDP, 53, true},
		{[]string{"+tcp:10.0.0.53:80", "-any"}, protoUDP, 53, true},
		{[]string{"+10.0.0.53", "-10.0.0.53"}, protoUDP, 53, true},
	} {
		e := must(t, "", c.rules...)
		e.Pin(resolver)
		e.Pin(netip.Addr{})
		if got := e.Allowed(c.proto, netip.AddrPortFrom(resolver, c.port)); got != c.want {
			t.Errorf("%v, %d port %d: %v, want %v", c.rules, c.proto, c.port, got, c.want)
		}
	}
}

// TestLocal: the host's addresses are asked for, those it had at the start are
// remembered.
func TestLocal(t *testing.T) {
	e := must(t, "203.0.113.5", "+203.0.113.8", "-tcp:host", "+any")
	asked := 0
	e.SetLocal(func(a netip.Addr) bool {
		asked++
		return a == netip.MustParseAddr("203.0.113.7") || a == netip.MustParseAddr("203.0.113.8")
	})
	for dst, want := range map[string]bool{
		"203.0.113.5:80": false, "203.0.113.6:80": true, "203.0.113.7:80": false,
		"[::ffff:203.0.113.7]:80": false, "203.0.113.8:80": true,
	} {
		if got := e.Allowed(protoTCP, netip.MustParseAddrPort(dst)); got != want {
			t.Errorf("%s: %v, want %v", dst, got, want)
		}
	}
	if asked != 3 {
		t.Errorf("asked %d times", asked)
	}
	if !e.Allowed(protoUDP, netip.MustParseAddrPort("203.0.113.7:80")) || asked != 3 {
		t.Error("a rule for TCP decides on UDP")
	}
}

// TestTranslators: an address behind NAT64 is no way around a rule.
func TestTranslators(t *testing.T) {
	for _, c := range []struct {
		rules []string
		dst   string
		want  bool
	}{
		{[]string{"-private"}, "[64:ff9b::10.1.2.3]:80", false},
		{[]string{"-metadata"}, "[64:ff9b::169.254.169.254]:80", false},
		{[]string{"-host"}, "[64:ff9b::127.0.0.1]:80", false},
		{[]string{"-private"}, "[64:ff9b::198.51.100.1]:80", true},
		{[]string{"-64:ff9b::/96"}, "[64:ff9b::198.51.100.1]:80", false},
		{[]string{"+64:ff9b::/96", "-private"}, "[64:ff9b::10.1.2.3]:80", false},
		{[]string{"-private"}, "[64:ff9b:1::10.1.2.3]:80", true}, // not the well-known prefix
	} {
		if got := must(t, "", c.rules...).Allowed(protoTCP, netip.MustParseAddrPort(c.dst)); got != c.want {
			t.Errorf("%v, %s: %v, want %v", c.rules, c.dst, got, c.want)
		}
	}
}

func TestErrors(t *testing.T) {
	for _, s := range []string{"", "tcp:", "example.org", "192.0.2.1/24", "192.0.2.1:0", "192.0.2.1:5-4", "any:x",
		"icmp:any:7", "fe80::1%eth0", "::ffff:0:0/90", "192.0.2.0/33", "[2001:db8::1]:70000", "sctp:any"} {
		if _, err := New([]Rule{{Dest: s}}, nil); err == nil {
			t.Errorf("%q is accepted", s)
		}
	}
}
