// SPDX-License-Identifier: Apache-2.0

package egress

import (
	"net/netip"
	"testing"
)

func must(t *testing.T, own string, rules ...string) *RuleSet {
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
	e.Allowed(protoUDP, netip.AddrPortFrom(resolver, 53))
	before := e.pinned(&Flow{Proto: protoUDP, To: netip.AddrPortFrom(resolver, 53)})
	other := netip.MustParseAddr("127.0.0.54")
	if e.Pin(other, resolver); e.pinned(&Flow{Proto: protoUDP, To: netip.AddrPortFrom(resolver, 53)}) != before {
		t.Error("what is pinned again is counted anew")
	}
	e.Pin(other)
	if e.Allowed(protoUDP, netip.AddrPortFrom(resolver, 53)) || !e.Allowed(protoUDP, netip.AddrPortFrom(other, 53)) {
		t.Error("pins are not replaced")
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
		{[]string{"-10.0.0.53/32"}, protoUDP, 53, false},
		{[]string{"-udp:10.0.0.53/32"}, protoUDP, 853, false},
		{[]string{"-10.0.0.52/31"}, protoUDP, 53, true},
		{[]string{"-udp:any:53"}, protoUDP, 53, false},
		{[]string{"-udp:any:53"}, protoTCP, 53, true},
		{[]string{"-udp:any:53"}, protoUDP, 853, true},
		{[]string{"-any:853"}, protoTCP, 853, false},
		{[]string{"-private:53-60"}, protoUDP, 53, false},
		{[]string{"-any:1-52", "-any"}, protoUDP, 53, true},
		{[]string{"+any:53", "-any:1-65535"}, protoUDP, 53, true},
		{[]string{"-any", "-any:53"}, protoUDP, 53, false},
	} {
		e := must(t, "", c.rules...)
		e.Pin(resolver, netip.Addr{}, resolver)
		if got := e.Allowed(c.proto, netip.AddrPortFrom(resolver, c.port)); got != c.want {
			t.Errorf("%v, %d port %d: %v, want %v", c.rules, c.proto, c.port, got, c.want)
		}
	}
}

// TestPinIPv6: the same by a prefix of one address.
func TestPinIPv6(t *testing.T) {
	resolver := netip.MustParseAddr("fd00::53")
	for rule, want := range map[string]bool{"-any": true, "-fd00::/64": true, "-fd00::53/128": false, "-udp:[fd00::53]/128": false,
		"-udp:[fd00::]/64:53": false, "-tcp:any:53": true} {
		e := must(t, "", rule)
		e.Pin(resolver)
		if got := e.Allowed(protoUDP, netip.AddrPortFrom(resolver, 53)); got != want {
			t.Errorf("%s: %v, want %v", rule, got, want)
		}
	}
}

// TestLocal: the host's addresses are asked for, with all that the socket has;
// those that it was said to have are remembered.
func TestLocal(t *testing.T) {
	e := must(t, "203.0.113.5", "+203.0.113.8", "-tcp:host", "+any")
	asked := 0
	var last Flow
	e.SetLocal(func(f Flow) bool {
		asked++
		last = f
		return f.To.Addr() == netip.MustParseAddr("203.0.113.7") || f.To.Addr() == netip.MustParseAddr("203.0.113.8")
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
	f := Flow{Proto: protoTCP, To: netip.MustParseAddrPort("[::ffff:203.0.113.6]:80"), From: netip.MustParseAddrPort("192.0.2.1:7"), Device: "eth0"}
	e.Judge(f)
	if f.To = netip.MustParseAddrPort("203.0.113.6:80"); last != f {
		t.Errorf("asked about %+v, want %+v", last, f)
	}
	// What another host makes of an address has no source and no interface here.
	f.To = netip.MustParseAddrPort("[64:ff9b::203.0.113.7]:80")
	if v := e.Judge(f); v.Allowed || v.Rule != "--deny tcp:host" || last != (Flow{Proto: protoTCP, To: netip.MustParseAddrPort("203.0.113.7:80")}) {
		t.Errorf("%+v, asked about %+v", v, last)
	}
}

// TestOwnLost: an address that the host has lost is somebody else's: a rule that allows the
// host does not let the guest go there, nor is it refused as the host any more; where
// nobody tells what is the host's at the moment, those count that were said last.
func TestOwnLost(t *testing.T) {
	lost, has := netip.MustParseAddrPort("203.0.113.5:80"), netip.MustParseAddrPort("203.0.113.6:80")
	local := func(f Flow) bool { return f.To.Addr() == has.Addr() }
	for _, asked := range []bool{false, true} {
		allow, deny := must(t, "203.0.113.5", "+host", "-any"), must(t, "203.0.113.5", "-host")
		if asked {
			allow.SetLocal(local)
			deny.SetLocal(local)
		}
		if got := allow.Allowed(protoTCP, lost); got == asked {
			t.Errorf("asked %t: --allow host lets the guest go to what the host has lost: %t", asked, got)
		}
		if deny.Allowed(protoTCP, lost) {
			t.Errorf("asked %t: --deny host does not hold for what the host was said to have", asked)
		}
		for _, e := range []*RuleSet{allow, deny} {
			if !e.SetOwn([]netip.Addr{has.Addr(), netip.IPv6Loopback()}) || e.SetOwn([]netip.Addr{netip.IPv6Loopback(), has.Addr(), has.Addr()}) {
				t.Errorf("asked %t: what has changed is not told", asked)
			}
		}
		if !allow.Allowed(protoTCP, has) || deny.Allowed(protoTCP, has) || allow.Allowed(protoTCP, lost) || !deny.Allowed(protoTCP, lost) {
			t.Errorf("asked %t: after the change: allowed %t and %t, not denied %t and %t", asked,
				allow.Allowed(protoTCP, has), allow.Allowed(protoTCP, lost), deny.Allowed(protoTCP, has), deny.Allowed(protoTCP, lost))
		}
	}
}

// TestVerdict names the rule.
func TestVerdict(t *testing.T) {
	e := must(t, "", "+tcp:192.0.2.1:80", "-private")
	for dst, want := range map[string]Verdict{
		"192.0.2.1:80":  {Allowed: true, Rule: "--allow tcp:192.0.2.1:80"},
		"10.0.0.1:80":   {Rule: "--deny private"},
		"192.0.2.1:443": {Allowed: true},
	} {
		got := e.Judge(Flow{Proto: protoTCP, To: netip.MustParseAddrPort(dst)})
		if got.hits = nil; got != want {
			t.Errorf("%s: %+v, want %+v", dst, got, want)
		}
	}
}

// TestMetadata: wherever clouds hand out credentials, in every form that may
// become that address on the way.
func TestMetadata(t *testing.T) {
	e := must(t, "", "-metadata")
	for _, s := range []string{"169.254.169.254", "169.254.170.2", "169.254.170.23", "100.100.100.200", "192.0.0.192", "168.63.129.16",
		"fd00:ec2::254", "fd00:ec2::23", "fd20:ce::254"} {
		forms := []string{s}
		if a := netip.MustParseAddr(s); a.Is4() {
			b := a.As4()
			v6 := func(s string) [16]byte { return netip.MustParseAddr(s).As16() }
			for _, f := range []struct {
				base [16]byte
				at   []int
				flip byte
			}{
				{v6("64:ff9b::"), []int{12, 13, 14, 15}, 0}, {v6("::"), []int{12, 13, 14, 15}, 0},
				{v6("::ffff:0:0"), []int{12, 13, 14, 15}, 0}, {v6("::ffff:0:0:0"), []int{12, 13, 14, 15}, 0},
				{v6("64:ff9b:1::"), []int{12, 13, 14, 15}, 0}, {v6("64:ff9b:1:ab00::"), []int{12, 13, 14, 15}, 0},
				{v6("64:ff9b:1::"), []int{6, 7, 9, 10}, 0}, {v6("64:ff9b:1:ab00::"), []int{7, 9, 10, 11}, 0},
				{v6("64:ff9b:1:abcd::"), []int{9, 10, 11, 12}, 0},
				{v6("2002::"), []int{2, 3, 4, 5}, 0}, {v6("2002::1234:0:0:1"), []int{2, 3, 4, 5}, 0},
				{v6("2001:0:102:304:8000::"), []int{12, 13, 14, 15}, 0xff}, {v6("2001::"), []int{4, 5, 6, 7}, 0},
				{v6("2001:db8::5efe:0:0"), []int{12, 13, 14, 15}, 0}, {v6("2001:db8::200:5efe:0:0"), []int{12, 13, 14, 15}, 0},
				{v6("fe80::5efe:0:0"), []int{12, 13, 14, 15}, 0},
			} {
				for i, at := range f.at {
					f.base[at] = b[i] ^ f.flip
				}
				forms = append(forms, netip.AddrFrom16(f.base).String())
			}
		}
		for _, form := range forms {
			for _, proto := range []uint8{protoTCP, protoUDP, protoICMP, protoICMPv6} {
				if e.Allowed(proto, netip.AddrPortFrom(netip.MustParseAddr(form), 80)) {
					t.Errorf("%s as %s is reachable by %d", s, form, proto)
				}
			}
		}
	}
}

// TestTranslators: no address of IPv6 is a way around a rule on one of IPv4, and
// none is refused for what it does not stand for.
func TestTranslators(t *testing.T) {
	own := []netip.Prefix{netip.MustParsePrefix("2001:db8:64::/96"), netip.MustParsePrefix("2001:db8:32::/48"), netip.MustParsePrefix("64:ff9b:1:64::/64")}
	for _, c := range []struct {
		rules []string
		dst   string
		want  bool
	}{
		{[]string{"-private"}, "64:ff9b::10.1.2.3", false},
		{[]string{"-metadata"}, "64:ff9b::169.254.169.254", false},
		{[]string{"-host"}, "64:ff9b::127.0.0.1", false},
		{[]string{"-private"}, "64:ff9b::198.51.100.1", true},
		{[]string{"-64:ff9b::/96"}, "64:ff9b::198.51.100.1", false},
		{[]string{"+64:ff9b::/96", "-private"}, "64:ff9b::10.1.2.3", false},
		{[]string{"+10.1.2.3", "-private", "-64:ff9b::/96"}, "64:ff9b::10.1.2.3", false},
		{[]string{"-private"}, "64:ff9b:1::10.1.2.3", false},
		{[]string{"-host", "-metadata", "-private"}, "64:ff9b:1::198.51.100.1", true}, // zeros are no address of host's
		{[]string{"-host"}, "64:ff9b:1:7f00:0:100::", false},                          // 127.0.0.1 behind 48 bits
		{[]string{"-private"}, "2002:a01:203::1", false},
		{[]string{"-private"}, "2002:c633:6401::1", true},
		{[]string{"-private"}, "::10.1.2.3", false},
		{[]string{"-private"}, "::ffff:0:10.1.2.3", false},
		{[]string{"-private"}, "2001:0:102:304::f5fe:fdfc", false},
		{[]string{"-private"}, "2001:0:c633:6401::39cc:9bfe", true},
		{[]string{"-private"}, "2001:db8::5efe:10.1.2.3", false},
		{[]string{"-private"}, "2001:db8::10.1.2.3", true},
		// The loopback address is that, and no IPv4-compatible one.
		{[]string{"+::1", "-host"}, "::1", true},
		// Prefixes that the user names; of such, the length is known.
		{[]string{"-private"}, "2001:db8:64::10.1.2.3", false},
		{[]string{"-private"}, "2001:db8:32:a01:2:300::", false},
		{[]string{"-private"}, "2001:db8:32::10.1.2.3", true},
		{[]string{"-private"}, "64:ff9b:1:64:c6:3364:a00:0", true}, // 198.51.100.10; not 10.0.0.0 behind 96 bits
		{[]string{"-private"}, "64:ff9b:1:64:a:102:300:0", false},
	} {
		e := must(t, "", c.rules...)
		e.SetNAT64(own)
		if got := e.Allowed(protoTCP, netip.AddrPortFrom(netip.MustParseAddr(c.dst), 80)); got != c.want {
			t.Errorf("%v, %s: %v, want %v", c.rules, c.dst, got, c.want)
		}
	}
	for s, want := range map[string]bool{"2001:db8::/32": true, "2001:db8::/40": true, "2001:db8::/96": true, "2001:db8::/33": false,
		"2001:db8::1/96": false, "10.0.0.0/8": false, "::ffff:10.0.0.0/104": false, "2001:db8::/128": false, "2001:db8::/0": false} {
		if err := CheckNAT64(netip.MustParsePrefix(s)); (err == nil) != want {
			t.Errorf("%s: %v", s, err)
		}
	}
}

func TestErrors(t *testing.T) {
	for _, s := range []string{"", "tcp:", "example", "192.0.2.1/24", "192.0.2.1:0", "192.0.2.1:5-4", "any:x",
		"icmp:any:7", "fe80::1%eth0", "::ffff:0:0/90", "192.0.2.0/33", "[2001:db8::1]:70000", "sctp:any",
		"any:", "tcp:any:", "host:", "192.0.2.1:", "[2001:db8::1]:", "[2001:db8::]/32:", ":", // a port was meant
		"[2001:db8::1", "[2001:db8::1:443", "2001:db8::1]", "192.0.2.1]:80"} {
		if _, err := New([]Rule{{Dest: s}}, nil); err == nil {
			t.Errorf("%q is accepted", s)
		}
	}
}
