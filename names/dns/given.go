// SPDX-License-Identifier: Apache-2.0

package dns

import (
	"net/netip"
	"strconv"
	"strings"

	"aldente/ipc/domain"
)

// given is which name the guest has been told an address for, so that its PTR
// questions have answers that nobody else need be asked for. The oldest goes first.
type given struct {
	names map[netip.Addr]givenName
	ring  []netip.Addr // in the order in which they came; full, from at on
	at    int
}

type givenName struct {
	name  domain.Name
	until int64
}

func (g *given) init() { g.names = make(map[netip.Addr]givenName) }

func (g *given) add(addr netip.Addr, name domain.Name, until int64) {
	if _, known := g.names[addr]; !known {
		if len(g.ring) < maxGiven {
			g.ring = append(g.ring, addr)
		} else {
			delete(g.names, g.ring[g.at])
			g.ring[g.at] = addr
			g.at = (g.at + 1) % maxGiven
		}
	}
	g.names[addr] = givenName{name, until}
}

// find returns the name of an address that was given, and for how many seconds that
// lasts, by the name that PTR questions have.
func (g *given) find(name domain.Name, now int64) (domain.Name, uint32, bool) {
	addr, ok := reversed(name)
	if !ok {
		return "", 0, false
	}
	n, ok := g.names[addr]
	if !ok || n.until <= now {
		return "", 0, false
	}
	return n.name, uint32((n.until - now + second - 1) / second), true
}

// reversed is the address of a name below in-addr.arpa (RFC 1035 section 3.5) or ip6.arpa
// (RFC 3596 section 2.5).
func reversed(name domain.Name) (netip.Addr, bool) {
	if text, ok := strings.CutSuffix(string(name), ".in-addr.arpa"); ok {
		return reversed4(text)
	}
	if text, ok := strings.CutSuffix(string(name), ".ip6.arpa"); ok {
		return reversed6(text)
	}
	return netip.Addr{}, false
}

func reversed4(text string) (netip.Addr, bool) {
	var b [4]byte
	for i := range b {
		digits, rest, more := strings.Cut(text, ".")
		n, err := strconv.ParseUint(digits, 10, 8)
		if err != nil || more != (i < 3) || len(digits) > 1 && digits[0] == '0' {
			return netip.Addr{}, false
		}
		b[3-i], text = byte(n), rest
	}
	return netip.AddrFrom4(b), true
}

func reversed6(text string) (netip.Addr, bool) {
	var b [16]byte
	if len(text) != 4*len(b)-1 {
		return netip.Addr{}, false
	}
	for i := range 2 * len(b) {
		n, err := strconv.ParseUint(text[2*i:2*i+1], 16, 4)
		if err != nil || 2*i+1 < len(text) && text[2*i+1] != '.' {
			return netip.Addr{}, false
		}
		b[15-i/2] |= byte(n) << (4 * (i % 2))
	}
	return netip.AddrFrom16(b), true
}
