// SPDX-License-Identifier: Apache-2.0

// Package egress decides where a guest may connect. Only the broker imports it.
package egress

import (
	"cmp"
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
)

// Protocol numbers that an egress rule may name, IANA's registry.
const (
	protoICMP   = 1
	protoTCP    = 6
	protoUDP    = 17
	protoICMPv6 = 58
)

// RuleSet decides where the guest may connect: rules in order, the first that
// matches wins, and what none matches is allowed. It is asked about the
// address that a socket would really be connected to.
type RuleSet struct {
	rules atomic.Pointer[[]rule]
	own   []netip.Addr   // the host's addresses, for the set "host"
	pins  []*pin         // resolvers, see Pin
	nat64 []netip.Prefix // translators, see SetNAT64
	local func(Flow) bool
	rest  atomic.Uint64 // what no rule fits and no pin
}

// Flow is a socket as it would be: what a rule set judges.
type Flow struct {
	Proto uint8          // protocol number of IP
	To    netip.AddrPort // where it would be connected; echo has port zero
	From  netip.AddrPort // what it would be bound to; zero or unspecified: the kernel's choice
	// Device is what it would be bound to, empty: nothing.
	Device string
}

// Verdict is what a rule set says of a flow.
type Verdict struct {
	Allowed bool           // whether the guest may have the socket
	Rule    string         // the option that decided, empty: none fits
	hits    *atomic.Uint64 // of what decided
}

// rule is one --allow or --deny.
type rule struct {
	allow       bool
	proto       uint8 // protoTCP, protoUDP, protoICMP for both echo protocols, 0: any
	first, last uint16
	ports       bool // first and last count; echo has none and does not match
	prefixes    []netip.Prefix
	exact       bool // one address, not a set or a range of them
	host        bool // the set "host": prefixes, and what is local when asked
	text        string
	source      Source
	note        string
	hits        *atomic.Uint64 // a rule that stays when others are replaced keeps it
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
	// Where clouds serve credentials: Amazon, Google, Azure, Oracle and others by
	// one address; Amazon's by IPv6 and for containers; Google's by IPv6;
	// Alibaba's; Oracle's older one; Azure's agent.
	"metadata": prefixes("169.254.169.254/32", "fd00:ec2::254/128", "169.254.170.2/32", "169.254.170.23/32", "fd00:ec2::23/128",
		"fd20:ce::254/128", "100.100.100.200/32", "192.0.0.192/32", "168.63.129.16/32"),
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
	Allow bool   // --allow, else --deny
	Dest  string // [tcp:|udp:|icmp:]ADDR[/LEN][:PORT[-PORT]], or a named set for ADDR

	Source Source // who says so; empty: an option
	Note   string // what for, where the rule's own text does not tell
}

// New parses rules. own are the host's addresses, for the set "host".
func New(rules []Rule, own []netip.Addr) (*RuleSet, error) {
	e := &RuleSet{own: own}
	if err := e.Replace(rules); err != nil {
		return nil, err
	}
	return e, nil
}

// Replace puts other rules in the place of the set's, or none of them if one
// cannot be parsed. It may be called while others ask.
func (e *RuleSet) Replace(rules []Rule) error {
	var parsed []rule
	counters := e.counters()
	for _, r := range rules {
		p, err := parse(r.Dest)
		option := "--deny"
		if r.Allow {
			option = "--allow"
		}
		if err != nil {
			return fmt.Errorf("%s %s: %w", option, r.Dest, err)
		}
		p.allow = r.Allow
		p.text, p.source, p.note = option+" "+r.Dest, cmp.Or(r.Source, ByOption), r.Note
		p.hits = counters.take(p.text)
		if p.host {
			p.prefixes = append(p.prefixes, sets["host"]...)
			for _, a := range e.own {
				a = a.Unmap().WithZone("")
				p.prefixes = append(p.prefixes, netip.PrefixFrom(a, a.BitLen()))
			}
		}
		parsed = append(parsed, p)
	}
	e.rules.Store(&parsed)
	return nil
}

// SetLocal says how to find out whether what a flow sends would stay on the host
// at the time of asking: hosts get addresses while guests run. The address is
// neither mapped nor has it a zone.
func (e *RuleSet) SetLocal(local func(Flow) bool) { e.local = local }

// Varies tells whether what the rules say depends on which addresses the host has
// at the time.
func (e *RuleSet) Varies() bool {
	return slices.ContainsFunc(*e.rules.Load(), func(r rule) bool { return r.host })
}

// SetNAT64 says by which prefixes translators of the network reach IPv4, besides
// those that everybody knows. CheckNAT64 has passed them.
func (e *RuleSet) SetNAT64(prefixes []netip.Prefix) { e.nat64 = prefixes }

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
	r.exact = p.IsSingleIP()
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

// Pin allows ports 53 and 853 of the resolver that queries are forwarded to: a
// guest that may not reach the host can still have names resolved. Rules that
// name its very address, or a port, count before that.
func (e *RuleSet) Pin(resolver netip.Addr) {
	a := resolver.Unmap().WithZone("")
	if a.IsValid() && !slices.ContainsFunc(e.pins, func(p *pin) bool { return p.addr == a }) {
		e.pins = append(e.pins, &pin{addr: a})
	}
}

// pin is a resolver that stays reachable, on each of pinPorts.
type pin struct {
	addr netip.Addr
	hits [len(pinPorts)]atomic.Uint64
}

var pinPorts = [...]uint16{53, 853}

// pinned returns the counter of the pin that lets a flow have what wide rules forbid,
// nil if there is none.
func (e *RuleSet) pinned(f *Flow) *atomic.Uint64 {
	port := slices.Index(pinPorts[:], f.To.Port())
	if port < 0 || f.Proto == protoICMP {
		return nil
	}
	for _, p := range e.pins {
		if p.addr == f.To.Addr() {
			return &p.hits[port]
		}
	}
	return nil
}

// Allowed is Judge for a socket that is bound to nothing.
func (e *RuleSet) Allowed(proto uint8, dst netip.AddrPort) bool {
	return e.Judge(Flow{Proto: proto, To: dst}).Allowed
}

// Judge tells whether the guest may have a flow. What its destination may be
// turned into on the way has to be allowed as well.
func (e *RuleSet) Judge(f Flow) Verdict { return e.judge(f, nil) }

// judge is Judge, and with a trail notes on it which rules were asked.
func (e *RuleSet) judge(f Flow, t *trail) Verdict {
	if f.Proto == protoICMPv6 {
		f.Proto = protoICMP
	}
	a := f.To.Addr().Unmap().WithZone("")
	f.To = netip.AddrPortFrom(a, f.To.Port())
	v := e.decide(&f, t)
	in := embeddedIn(a, e.nat64)
	for _, v4 := range in.addr[:in.n] {
		if !v.Allowed {
			break
		}
		// Who sends it on is not known, nor from where.
		if inner := e.decide(&Flow{Proto: f.Proto, To: netip.AddrPortFrom(v4, f.To.Port())}, t); !inner.Allowed {
			v = inner
		}
	}
	return v
}

// decide is judge for one bare address.
func (e *RuleSet) decide(f *Flow, t *trail) Verdict {
	pinned := e.pinned(f)
	rules := *e.rules.Load()
	for i := range rules {
		r := &rules[i]
		m := tooWide
		if pinned == nil || r.exact || r.ports {
			m = r.matches(e, f)
		}
		if t != nil {
			t.add(f, i, r, m)
		}
		if m == fits {
			return Verdict{r.allow, r.text, r.hits}
		}
	}
	if pinned == nil {
		pinned = &e.rest
	}
	return Verdict{Allowed: true, hits: pinned}
}

// match is whether a rule fits a flow, or why it does not.
type match uint8

const (
	fits match = iota
	otherProtocol
	otherPort
	otherAddress
	tooWide // names neither the pinned resolver's address nor ports
)

func (r *rule) matches(e *RuleSet, f *Flow) match {
	port := f.To.Port()
	switch {
	case r.proto != 0 && r.proto != f.Proto:
		return otherProtocol
	case r.ports && (f.Proto == protoICMP || port < r.first || port > r.last):
		return otherPort
	}
	for _, p := range r.prefixes {
		if p.Contains(f.To.Addr()) {
			return fits
		}
	}
	if r.host && e.local != nil && e.local(*f) {
		return fits
	}
	return otherAddress
}

// Rules returns the rules as they were given, in order.
func (e *RuleSet) Rules() []string {
	rules := *e.rules.Load()
	all := make([]string, len(rules))
	for i := range rules {
		all[i] = rules[i].text
	}
	return all
}
