// SPDX-License-Identifier: Apache-2.0

package egress

import (
	"math/rand/v2"
	"net/netip"
	"testing"
	"time"

	"aldente/ipc"
	"aldente/ipc/domain"
)

// TestAround: what is granted of an address is granted of all that Around tells of, for all
// names that the same rules fit, by rules of every kind and for addresses next to where they
// end.
func TestAround(t *testing.T) {
	dests := []string{"private", "metadata", "link-local", "host", "198.51.100.0/24", "198.51.100.77", "2001:db8:1::/48", "2001:db8:1::5", "192.0.0.0/9", "8000::/1",
		"tcp:203.0.113.0/28", "udp:203.0.113.0/25", "203.0.113.0/26:443", "64:ff9b::/96", "::/0", "0.0.0.0/0", "any"}
	names := []domain.Name{"a.test", "b.test", "x.other.test", "nowhere"}
	chance := rand.New(rand.NewPCG(7, 11))
	wide := 0
	for range 400 {
		var rules []Rule
		for range chance.IntN(6) {
			rules = append(rules, Rule{Allow: chance.IntN(2) == 0, Dest: dests[chance.IntN(len(dests))]})
			rules[len(rules)-1].Guard = !rules[len(rules)-1].Allow && chance.IntN(2) == 0
		}
		for _, p := range []string{"a.test", "*.test", "*.other.test", "tcp:b.test:443"} {
			if chance.IntN(2) == 0 {
				rules = append(rules, Rule{Allow: chance.IntN(4) > 0, Dest: p})
			}
		}
		rules = append(rules, Rule{Allow: true, Dest: "*.other.test"}, Rule{Dest: "any"})
		e, err := New(rules, []netip.Addr{netip.MustParseAddr("192.0.2.2")})
		if err != nil {
			t.Fatal(err)
		}
		e.SetNAT64(prefixes("2001:db8:64::/96"))
		d := e.Names()
		grants := func(n domain.Name, a netip.Addr) bool { return e.Grant(n, nil, []netip.Addr{a}, time.Now()) == 1 }
		for range 60 {
			a := someAddress(chance)
			bits := e.Around(a)
			if bits == 0 || bits > 128 || a.Is4() && bits <= 96 {
				t.Fatalf("%v: %d bits", a, bits)
			}
			if bits < 120 {
				wide++
			}
			for _, n := range names {
				was := grants(n, a)
				for range 4 {
					b := near(chance, a, int(bits))
					other := names[chance.IntN(len(names))]
					if !ipc.Around(a.As16(), bits, b.As16()) || d.Fitting(n) != d.Fitting(other) || d.Judge(n) != d.Judge(other) {
						continue
					}
					if got := grants(other, b); got != was {
						t.Fatalf("%v\n%s at %v is granted: %v; %s at %v, which is within %d bits: %v", e.Rules(), n, a, was, other, b, bits, got)
					}
				}
			}
		}
	}
	if wide < 1000 {
		t.Errorf("only %d times it held for many", wide)
	}
}

// someAddress is one near where something begins or ends.
func someAddress(chance *rand.Rand) netip.Addr {
	all := []string{"198.51.100.0", "198.51.99.255", "198.51.101.0", "198.51.100.77", "203.0.113.15", "203.0.113.16", "203.0.113.64", "10.0.0.0", "9.255.255.255", "127.0.0.1",
		"126.255.255.255", "128.0.0.0", "169.254.169.253", "223.255.255.255", "192.0.2.2", "192.128.0.0", "255.255.255.254", "0.0.0.1", "100.100.100.201", "2001:db8:1::5",
		"2001:db8:1::4", "2001:db8:2::", "2001:db8:64::c000:201", "64:ff9b::c000:201", "64:ff9b::a00:1", "64:ff9a::1", "2002:c000:201::1", "2001:1::1", "2001::1", "fe7f::1",
		"fe80::1", "fc00::1", "fbff::1", "2001:db8::5efe:a00:1", "2001:db8::5efe:c000:201", "::ffff:192.0.2.9", "::fffe:192.0.2.9", "::1:0:0", "::192.0.2.1", "4000::1"}
	a := netip.MustParseAddr(all[chance.IntN(len(all))])
	if chance.IntN(3) == 0 {
		b := a.As16()
		for k := range b {
			if a.Is6() || k >= 12 {
				b[k] ^= 1 << chance.IntN(64) // most times nothing
			}
		}
		a = netip.AddrFrom16(b)
	}
	return a.Unmap()
}

// near is an address whose first bits are the same.
func near(chance *rand.Rand, a netip.Addr, bits int) netip.Addr {
	b := a.As16()
	for i := bits; i < 128; i++ {
		if chance.IntN(2) == 0 {
			b[i/8] ^= 0x80 >> (i % 8)
		}
	}
	if chance.IntN(4) == 0 && bits < 64 {
		copy(b[8:], []byte{0, 0, 0x5e, 0xfe, 10, 0, 0, 1})
	}
	return netip.AddrFrom16(b).Unmap()
}

// TestAroundHost: where it counts which addresses the host has at the time, what holds holds
// for one address.
func TestAroundHost(t *testing.T) {
	e, err := New([]Rule{{Dest: "host", Guard: true}, {Allow: true, Dest: "*.test"}, {Dest: "any"}}, nil)
	if err != nil {
		t.Fatal(err)
	}
	a := netip.MustParseAddr("198.51.100.1")
	if n := e.Around(a); n >= 128 {
		t.Errorf("%d bits where nobody is asked", n)
	}
	e.SetLocal(func(Flow) bool { return false })
	if n := e.Around(a); n != 128 {
		t.Errorf("%d bits", n)
	}
}
