// SPDX-License-Identifier: Apache-2.0

// Package egress decides where a guest may connect. Only the broker imports it.
package egress

import (
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"strings"
)

// Protocol numbers that an egress rule may name, IANA's registry.
const (
	protoICMP   = 1
	protoTCP    = 6
	protoUDP    = 17
	protoICMPv6 = 58
)

// Policy decides where the guest may connect: rules in order, the first that
// matches wins, and what none matches is allowed. It is asked about the
// address that a socket would really be connected to.
type Policy struct {
	rules []rule
	pins  []netip.Addr // resolvers, see Pin
	local func(netip.Addr) bool
}

// rule is one --allow or --deny.
type rule struct {
	allow       bool
	proto       uint8 // protoTCP, protoUDP, protoICMP for both echo protocols, 0: any
	first, last uint16
	ports       bool // first and last count; echo has none and does not match
	prefixes    []netip.Prefix
	exact       bool // one address, not a set or a range
	host        bool // the set "host": prefixes, and what is local when asked
	text        string
}

// Named sets of destinations. Host is completed by New with the host's own
// addresses, and by SetLocal with those it gets later.
var sets = map[string][]netip.Prefix{
	"any": prefixes("0.0.0.0/0", "::/0"),
	// RFC 1122 section 3.2.1.3, RFC 4291 section 2.5.3; unspecified addresses
	// connect to the host itself on Linux.
	"host": prefixes("127.0.0.0/8", "::1/128", "0.0.0.0/8", "::/128"),
	// RFC 3927, RFC 4291 section 2.5.6.
	"link-local": prefixes("169.254.0.0/16", "fe80::/10"),
	// RFC 1918, RFC 6598, RFC 4193.
	"private": prefixes("10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16", "100.64.0.0/10", "fc00::/7"),
	// Where clouds serve credentials.
	"metadata": prefixes("169.254.169.254/32", "fd00:ec2::254/128"),
}

func prefixes(all ...string) []netip.Prefix {
	p := make([]netip.Prefix, len(all))
	for i, s := range all {
		p[i] = netip.MustParsePrefix(s)
	}
	return p
}

// Rule is one rule as given: an option and its argument.
type Rule struct {
	Allow bool
	Dest  string // [tcp:|udp:|icmp:]ADDR[/LEN][:PORT[-PORT]], or a named set for ADDR
}

// New parses rules. own are the host's addresses, for the set "host".
func New(rules []Rule, own []netip.Addr) (*Policy, error) {
	e := &Policy{}
	for _, r := range rules {
		p, err := parse(r.Dest)
		option := "--deny"
		if r.Allow {
			option = "--allow"
		}
		if err != nil {
			return nil, fmt.Errorf("%s %s: %w", option, r.Dest, err)
		}
		p.allow = r.Allow
		p.text = option + " " + r.Dest
		if p.host {
			p.prefixes = append(p.prefixes, sets["host"]...)
			for _, a := range own {
				a = a.Unmap().WithZone("")
				p.prefixes = append(p.prefixes, netip.PrefixFrom(a, a.BitLen()))
			}
		}
		e.rules = append(e.rules, p)
	}
	return e, nil
}

// SetLocal says how to find out whether an address is the host's own at the
// time of asking: hosts get addresses while guests run.
func (e *Policy) SetLocal(local func(netip.Addr) bool) { e.local = local }

// parse reads one destination.
func parse(s string) (r rule, err error) {
	for name, proto := range map[string]uint8{"tcp:": protoTCP, "udp:": protoUDP, "icmp:": protoICMP} {
		if rest, ok := strings.CutPrefix(s, name); ok {
			r.proto, s = proto, rest
			break
		}
	}
	if s == "" {
		return r, fmt.Errorf("no destination")
	}
	dest, ports := cutPorts(s)
	if ports != "" {
		if r.proto == protoICMP {
			return r, fmt.Errorf("icmp has no ports")
		}
		if r.first, r.last, err = parsePorts(ports); err != nil {
			return r, err
		}
		r.ports = true
	}
	if dest == "host" {
		r.host = true
		return r, nil
	}
	if set, ok := sets[dest]; ok {
		r.prefixes = set
		return r, nil
	}
	dest = strings.TrimSuffix(strings.TrimPrefix(dest, "["), "]")
	if a, err := netip.ParseAddr(dest); err == nil {
		if a.Zone() != "" {
			return r, fmt.Errorf("%s: an address with a zone means nothing here", dest)
		}
		a = a.Unmap()
		r.prefixes = []netip.Prefix{netip.PrefixFrom(a, a.BitLen())}
		r.exact = true
		return r, nil
	}
	p, err := netip.ParsePrefix(strings.Replace(dest, "]/", "/", 1))
	if err != nil {
		return r, fmt.Errorf("%q is neither an address, a prefix, nor one of any, host, link-local, private, metadata", dest)
	}
	if p.Addr().Is4In6() {
		if p.Bits() < 96 {
			return r, fmt.Errorf("%s: shorter than the IPv4-mapped prefix", dest)
		}
		p = netip.PrefixFrom(p.Addr().Unmap(), p.Bits()-96)
	}
	if p != p.Masked() {
		return r, fmt.Errorf("%s has host bits set: meant %s?", dest, p.Masked())
	}
	r.prefixes = []netip.Prefix{p}
	return r, nil
}

// cutPorts splits "DEST:PORTS". A colon belongs to ports if what precedes it
// is bracketed or holds no other colon, so that IPv6 addresses with ports are
// written in brackets.
func cutPorts(s string) (dest, ports string) {
	i := strings.LastIndexByte(s, ':')
	if i < 0 {
		return s, ""
	}
	if head := s[:i]; !strings.Contains(head, ":") || strings.HasPrefix(head, "[") && strings.Contains(head, "]") {
		return head, s[i+1:]
	}
	return s, ""
}

func parsePorts(s string) (first, last uint16, err error) {
	a, b, ranged := strings.Cut(s, "-")
	if !ranged {
		b = a
	}
	lo, err1 := strconv.ParseUint(a, 10, 16)
	hi, err2 := strconv.ParseUint(b, 10, 16)
	if err1 != nil || err2 != nil || lo == 0 || hi < lo {
		return 0, 0, fmt.Errorf("%q is not a port or a range of ports", s)
	}
	return uint16(lo), uint16(hi), nil
}

// Pin allows ports 53 and 853 of the resolver that queries are forwarded to,
// unless a rule denies it by its own address: a guest that may not reach the
// host can still have names resolved.
func (e *Policy) Pin(resolver netip.Addr) {
	if resolver.IsValid() {
		e.pins = append(e.pins, resolver.Unmap().WithZone(""))
	}
}

// pinned tells whether a pin allows what other rules may not.
func (e *Policy) pinned(proto uint8, a netip.Addr, port uint16) bool {
	if proto == protoICMP || port != 53 && port != 853 || !slices.Contains(e.pins, a) {
		return false
	}
	for i := range e.rules {
		if r := &e.rules[i]; r.exact && r.matches(e, proto, a, port) {
			return r.allow
		}
	}
	return true
}

// nat64 is the prefix by which translators reach IPv4, RFC 6052 section 2.1.
var nat64 = netip.MustParsePrefix("64:ff9b::/96")

// Allowed tells whether the guest may connect to dst by proto, which is a
// protocol number of IP. Echo has port zero. What a translator on the way would
// send to an IPv4 address has to be allowed there as well.
func (e *Policy) Allowed(proto uint8, dst netip.AddrPort) bool {
	if proto == protoICMPv6 {
		proto = protoICMP
	}
	a := dst.Addr().Unmap().WithZone("")
	if nat64.Contains(a) {
		b := a.As16()
		if !e.decide(proto, netip.AddrFrom4([4]byte(b[12:])), dst.Port()) {
			return false
		}
	}
	return e.decide(proto, a, dst.Port())
}

// decide is Allowed for one bare address.
func (e *Policy) decide(proto uint8, a netip.Addr, port uint16) bool {
	if e.pinned(proto, a, port) {
		return true
	}
	for i := range e.rules {
		if e.rules[i].matches(e, proto, a, port) {
			return e.rules[i].allow
		}
	}
	return true
}

func (r *rule) matches(e *Policy, proto uint8, a netip.Addr, port uint16) bool {
	if r.proto != 0 && r.proto != proto || r.ports && (proto == protoICMP || port < r.first || port > r.last) {
		return false
	}
	for _, p := range r.prefixes {
		if p.Contains(a) {
			return true
		}
	}
	return r.host && e.local != nil && e.local(a)
}

// Rules returns the rules as they were given, in order.
func (e *Policy) Rules() []string {
	all := make([]string, len(e.rules))
	for i := range e.rules {
		all[i] = e.rules[i].text
	}
	return all
}
