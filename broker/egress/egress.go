// SPDX-License-Identifier: Apache-2.0

// Package egress decides where a guest may connect. Only the broker imports it.
package egress

import (
	"cmp"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"sync/atomic"

	"aldente/ipc/domain"
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
	list  atomic.Pointer[ruleList]
	table table                        // which addresses stand for names, see Grant
	own   atomic.Pointer[[]netip.Addr] // the host's addresses, for the set "host", see SetOwn
	pins  atomic.Pointer[[]*pin]       // resolvers, see Pin
	nat64 []netip.Prefix               // translators, see SetNAT64
	local func(Flow) bool
	rest  atomic.Uint64 // what no rule fits and no pin
}

// ruleList is what Replace puts in place, as a whole.
type ruleList struct {
	rules  []rule
	byName bool         // one of them is
	guards []int        // those that hold against rules by name wherever they stand
	names  domain.Rules // what they say of names
}

// Flow is a socket as it would be: what a rule set judges.
type Flow struct {
	Proto uint8          // protocol number of IP
	To    netip.AddrPort // where it would be connected; echo has port zero
	From  netip.AddrPort // what it would be bound to; zero or unspecified: the kernel's choice
	// Device is what it would be bound to, empty: nothing.
	Device string
	Scope  uint32 // index of the interface that link-local addresses are on, zero: unknown

	// Group says that it goes to a group of the network's. The host may be a member, but is
	// not whom the guest means: whoever makes the socket sees to it that the host hears
	// nothing which it is not to hear.
	Group bool

	// Mapped says that the guest calls the destination by another address: what names
	// have led to is none of it, and rules by name do not fit.
	Mapped bool
	// Open says that the socket is there already. For rules by name its Name counts,
	// by which it was opened, and not what the address stands for now.
	Open bool
	Past bool        // what has stood for a name counts as if it did: for display
	Name domain.Name // of what is open
	// Lifted says that rules which deny any do not count, whatever their ports: what
	// would be allowed but for them is allowed. Others that deny hold.
	Lifted bool
}

// Verdict is what a rule set says of a flow.
type Verdict struct {
	Allowed bool           // whether the guest may have the socket
	Rule    string         // the option that decided, empty: none fits
	Name    domain.Name    // by which the guest has come to the address, empty: not known
	ByName  bool           // it is a rule by name that decided
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
	all         bool // the set "any"
	byName      bool // what addresses of the pattern's names are, and no prefixes
	pattern     domain.Pattern
	guard       bool   // see Rule.Guard
	id          uint32 // in the table: a rule that stays when others are replaced keeps it
	text        string
	source      Source
	note        string
	hits        *atomic.Uint64 // a rule that stays when others are replaced keeps it
}

// Named sets of destinations. Host is completed by SetOwn with the host's own
// addresses, and by SetLocal with those it has when asked.
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
	Dest  string // [tcp:|udp:|icmp:]WHERE[:PORT[-PORT]]: an address, a prefix, a set, or a name's pattern

	Source Source // who says so; empty: an option
	Note   string // what for, where the rule's own text does not tell
	// Guard says of a rule that denies that it holds against rules by name before it,
	// too: only one by address can make an exception. It is for rules without a name.
	Guard bool
}

// New parses rules. own are the host's addresses, for the set "host".
func New(rules []Rule, own []netip.Addr) (*RuleSet, error) {
	e := &RuleSet{}
	e.SetOwn(own)
	if err := e.Replace(rules); err != nil {
		return nil, err
	}
	return e, nil
}

// Replace puts other rules in the place of the set's, or none of them if one
// cannot be parsed. What stands in the table for a rule whose text stays goes on to.
// It may be called while others ask.
func (e *RuleSet) Replace(rules []Rule) error {
	l, byName := &ruleList{}, 0
	for _, r := range rules {
		p, err := e.read(&r)
		if err != nil {
			return err
		}
		if p.byName {
			byName++
		}
		l.rules = append(l.rules, p)
	}
	if byName > domain.MaxRules {
		return fmt.Errorf("%d rules by name: at most %d are possible; one for *.SUFFIX may stand for many", byName, domain.MaxRules)
	}
	e.table.mu.Lock()
	defer e.table.mu.Unlock()
	e.settle(l)
	e.list.Store(l)
	return nil
}

// read makes a rule of one as given.
func (e *RuleSet) read(r *Rule) (rule, error) {
	p, err := parse(r.Dest)
	option := "--deny"
	if r.Allow {
		option = "--allow"
	}
	if err != nil {
		return p, fmt.Errorf("%s %s: %w", option, r.Dest, err)
	}
	p.allow, p.guard = r.Allow, r.Guard
	p.text, p.source, p.note = option+" "+r.Dest, cmp.Or(r.Source, ByOption), r.Note
	if p.host {
		p.prefixes = append(p.prefixes, sets["host"]...)
	}
	return p, nil
}

// SetOwn says which addresses the host has, in the place of those that were said before,
// and reports whether others are among them. It may be called while others ask.
//
// A rule that denies the set "host" holds for these and for what SetLocal tells. One that
// allows it, where SetLocal is there, holds for that alone: an address that the host has
// lost is somebody else's, whom nobody has allowed.
func (e *RuleSet) SetOwn(own []netip.Addr) (changed bool) {
	now := make([]netip.Addr, len(own))
	for i, a := range own {
		now[i] = a.Unmap().WithZone("")
	}
	slices.SortFunc(now, netip.Addr.Compare)
	now = slices.Compact(now)
	before := e.own.Swap(&now)
	return before == nil || !slices.Equal(*before, now)
}

func (e *RuleSet) owns(a netip.Addr) bool {
	_, ok := slices.BinarySearchFunc(*e.own.Load(), a, netip.Addr.Compare)
	return ok
}

// SetLocal says how to find out whether what a flow sends would stay on the host
// at the time of asking: hosts get addresses while guests run. The address is
// neither mapped nor has it a zone.
func (e *RuleSet) SetLocal(local func(Flow) bool) { e.local = local }

// Varies tells whether what the rules say depends on which addresses the host has
// at the time.
func (e *RuleSet) Varies() bool {
	return slices.ContainsFunc(e.list.Load().rules, func(r rule) bool { return r.host })
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
	if _, rest, ok := strings.Cut(s, "://"); ok {
		return r, fmt.Errorf("a URL is no destination: write its name and port, as %s:443", hostOf(rest))
	}
	dest, ports, err := cutPorts(s)
	if err != nil {
		return r, err
	}
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
		r.prefixes, r.all = set, dest == "any"
		return r, nil
	}
	if mayBeName(dest) {
		r.byName = true
		r.pattern, err = parseName(dest)
		return r, err
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
		return r, fmt.Errorf("%q is neither an address, a prefix, a name, nor one of %s", dest, setNames)
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

// Pin allows ports 53 and 853 of the resolvers that queries are forwarded to: a
// guest that may not reach the host can still have names resolved. Rules that
// name its very address, or a port, count before that. Where a rule is by name, pins
// count nothing: they would lead past it.
//
// What was pinned before is so no more. It is for one goroutine at a time.
func (e *RuleSet) Pin(resolvers ...netip.Addr) {
	before, now := e.pinList(), []*pin{}
	for _, r := range resolvers {
		a := r.Unmap().WithZone("")
		same := func(p *pin) bool { return p.addr == a }
		switch i := slices.IndexFunc(before, same); {
		case !a.IsValid() || slices.ContainsFunc(now, same):
		case i >= 0:
			now = append(now, before[i])
		default:
			now = append(now, &pin{addr: a})
		}
	}
	e.pins.Store(&now)
}

func (e *RuleSet) pinList() []*pin {
	if p := e.pins.Load(); p != nil {
		return *p
	}
	return nil
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
	for _, p := range e.pinList() {
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
func (e *RuleSet) Judge(f Flow) Verdict { return e.judge(&f, nil) }

// judge is Judge, and with a trail notes on it which rules were asked. The flow becomes a
// bare one.
func (e *RuleSet) judge(f *Flow, t *trail) Verdict {
	if f.Proto == protoICMPv6 {
		f.Proto = protoICMP
	}
	a := f.To.Addr().Unmap().WithZone("")
	f.To = netip.AddrPortFrom(a, f.To.Port())
	l, n := e.list.Load(), known{}
	if l.byName {
		e.table.mu.RLock()
		defer e.table.mu.RUnlock()
		l = e.list.Load() // the table's
		n = e.known(f)
	}
	v := e.decide(l, f, &n, t)
	in := embeddedIn(a, e.nat64)
	for _, v4 := range in.addr[:in.n] {
		if !v.Allowed {
			break
		}
		// Who sends it on is not known, nor from where. The name that has led to the
		// one has led to the other.
		f4 := Flow{Proto: f.Proto, To: netip.AddrPortFrom(v4, f.To.Port()), Lifted: f.Lifted}
		if inner := e.decide(l, &f4, &n, t); !inner.Allowed {
			v = inner
		}
	}
	return v
}

// decide is judge for one bare address.
func (e *RuleSet) decide(l *ruleList, f *Flow, n *known, t *trail) Verdict {
	var pinned *atomic.Uint64
	if !l.byName { // else the guest asks us, and no resolver by its address
		pinned = e.pinned(f)
	}
	for i := range l.rules {
		r := &l.rules[i]
		if f.Lifted && r.all && !r.allow {
			continue
		}
		m := tooWide
		switch {
		case pinned != nil && !r.exact && !r.ports:
		case r.byName:
			m = e.matchesName(l, r, f, n)
		default:
			if m = r.matchesPort(f); m == fits && !r.covers(e, f) {
				m = otherAddress
			}
		}
		if t != nil {
			t.add(f, i, r, m, n)
		}
		if m == fits {
			return Verdict{Allowed: r.allow, Rule: r.text, Name: n.by(r), ByName: r.byName, hits: r.hits}
		}
	}
	if pinned == nil {
		pinned = &e.rest
	}
	return Verdict{Allowed: true, Name: n.name, hits: pinned}
}

// match is whether a rule fits a flow, or why it does not.
type match uint8

const (
	fits match = iota
	otherProtocol
	otherPort
	otherAddress
	tooWide // names neither the pinned resolver's address nor ports
	otherName
	pastTime // the address stood for a name of the rule's
	guarded  // no name leads there, see guards
)

// matchesPort looks at protocol and ports alone.
func (r *rule) matchesPort(f *Flow) match {
	port := f.To.Port()
	switch {
	case r.proto != 0 && r.proto != f.Proto:
		return otherProtocol
	case r.ports && (f.Proto == protoICMP || port < r.first || port > r.last):
		return otherPort
	}
	return fits
}

// covers tells whether the destination's address is one of those of a rule by address.
func (r *rule) covers(e *RuleSet, f *Flow) bool {
	for _, p := range r.prefixes {
		if p.Contains(f.To.Addr()) {
			return true
		}
	}
	switch {
	case !r.host:
		return false
	case (e.local == nil || !r.allow) && e.owns(f.To.Addr()):
		return true
	}
	return e.local != nil && !f.Group && e.local(*f)
}

// Rules returns the rules as they were given, in order.
func (e *RuleSet) Rules() []string {
	rules := e.list.Load().rules
	all := make([]string, len(rules))
	for i := range rules {
		all[i] = rules[i].text
	}
	return all
}
