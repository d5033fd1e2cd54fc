// SPDX-License-Identifier: Apache-2.0

package egress

import (
	"fmt"
	"net/netip"
	"strings"
)

// Peers is a set of peers and ports, as a rule for connections to the guest has it.
type Peers struct {
	Proto       uint8          // protocol number of TCP or UDP, 0: both
	Prefixes    []netip.Prefix // of peers
	Host        bool           // the set "host": whoever is on the host itself
	First, Last uint16         // ports, both zero: all
}

// ParsePeers reads [tcp:|udp:]WHERE[:PORT[-PORT]], where WHERE is an address, a
// prefix, or one of any, host, link-local and private.
func ParsePeers(s string) (r Peers, err error) {
	for name, proto := range map[string]uint8{"tcp:": protoTCP, "udp:": protoUDP} {
		if rest, ok := strings.CutPrefix(s, name); ok {
			r.Proto, s = proto, rest
			break
		}
	}
	if strings.HasPrefix(s, "icmp:") {
		return r, fmt.Errorf("icmp is not forwarded to the guest: tcp: or udp: can stand there")
	}
	where, ports, err := cutPorts(s)
	if err != nil {
		return r, err
	}
	if ports != "" {
		if r.First, r.Last, err = parsePorts(ports); err != nil {
			return r, err
		}
	}
	switch where {
	case "":
		return r, fmt.Errorf("no source")
	case "host":
		r.Host = true
		return r, nil
	case "any", "link-local", "private":
		r.Prefixes = sets[where]
		return r, nil
	}
	p, err := parsePrefix(where)
	if err != nil {
		return r, fmt.Errorf("%w, nor one of any, host, link-local, private", err)
	}
	if a := p.Addr(); a.IsLoopback() && (p.Bits() >= 8) {
		return r, fmt.Errorf("%s: the host itself is the set \"host\", by all of its addresses", where)
	}
	r.Prefixes = []netip.Prefix{p}
	return r, nil
}

// parsePrefix reads an address or a prefix, in brackets or not.
func parsePrefix(s string) (netip.Prefix, error) {
	text := strings.Replace(strings.TrimSuffix(strings.TrimPrefix(s, "["), "]"), "]/", "/", 1)
	p, err := netip.ParsePrefix(text)
	if a, e := netip.ParseAddr(text); e == nil && a.Zone() == "" {
		p, err = netip.PrefixFrom(a, a.BitLen()), nil
	}
	switch {
	case err != nil:
		return p, fmt.Errorf("%q is neither an address nor a prefix", s)
	case p.Addr().Is4In6() && p.Bits() < 96:
		return p, fmt.Errorf("%s: shorter than the IPv4-mapped prefix", s)
	case p.Addr().Is4In6():
		p = netip.PrefixFrom(p.Addr().Unmap(), p.Bits()-96)
	}
	if p != p.Masked() {
		return p, fmt.Errorf("%s has host bits set: meant %s?", s, p.Masked())
	}
	return p, nil
}
