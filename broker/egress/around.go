// SPDX-License-Identifier: Apache-2.0

package egress

import (
	"math/bits"
	"net/netip"
)

// bounds are prefixes within which an address is judged by itself or by another, whatever
// the rules are: tellable, guards, embeddedIn.
var bounds = append(prefixes("0.0.0.0/32", "127.0.0.0/8", "169.254.0.0/16", "224.0.0.0/4", "255.255.255.255/32",
	"::/128", "::1/128", "fe80::/10", "ff00::/8"), nat64, nat64Local, compatible, translated, sixToFour, teredo)

// mappedBits is how long the prefix of IPv4 is among addresses of 16 bytes.
const mappedBits = 96

// Around tells how far what Grant has said of an address holds: for all addresses of which as
// many of the first bits are the same, in 16 bytes, if no ISATAP address is among them
// (ipc.Around), and for all names that the same rules by name fit, as long as the rules are
// these. Where the host's own addresses count it holds for the very address, until those
// change.
func (e *RuleSet) Around(a netip.Addr) uint8 {
	a = a.Unmap().WithZone("")
	if embeddedIn(a, e.nat64).n > 0 {
		return 128
	}
	b := a.As16()
	n := 0
	if a.Is4() {
		n = mappedBits
	} else if k := same(b, netip.IPv4Unspecified().As16()); k < mappedBits {
		n = k + 1
	}
	within := func(all []netip.Prefix) {
		for _, p := range all {
			of, k := p.Bits(), same(b, p.Addr().As16())
			if p.Addr().Is4() {
				of += mappedBits
			}
			n = max(n, min(k+1, of))
		}
	}
	within(bounds)
	within(e.nat64)
	l := e.list.Load()
	for i := range l.rules {
		r := &l.rules[i]
		if r.host && e.local != nil {
			return 128
		}
		if r.host {
			for _, own := range *e.own.Load() {
				within([]netip.Prefix{netip.PrefixFrom(own, own.BitLen())})
			}
		}
		within(r.prefixes)
	}
	return uint8(n)
}

// same is how many of the first bits of two addresses are.
func same(a, b [16]byte) int {
	for i := range a {
		if x := a[i] ^ b[i]; x != 0 {
			return 8*i + bits.LeadingZeros8(x)
		}
	}
	return 128
}
