// SPDX-License-Identifier: Apache-2.0

package egress

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"aldente/fuzz"
	"aldente/ipc/domain"
)

// modelRule is a rule of the palette, and what it means in plain words.
type modelRule struct {
	Rule
	proto   uint8  // zero: any
	port    uint16 // zero: any
	names   string // "a.test", or ".test" for all below
	has     func(netip.Addr) bool
	forName bool
}

func in(prefixes ...string) func(netip.Addr) bool {
	return func(a netip.Addr) bool {
		return slices.ContainsFunc(prefixes, func(p string) bool { return netip.MustParsePrefix(p).Contains(a) })
	}
}

// modelRules are what a script may choose from.
var modelRules = []modelRule{
	{Rule: Rule{Allow: true, Dest: "a.test:443"}, port: 443, names: "a.test", forName: true},
	{Rule: Rule{Allow: true, Dest: "*.test"}, names: ".test", forName: true},
	{Rule: Rule{Allow: true, Dest: "tcp:*.b.test:80"}, proto: protoTCP, port: 80, names: ".b.test", forName: true},
	{Rule: Rule{Dest: "a.test"}, names: "a.test", forName: true},
	{Rule: Rule{Dest: "*.b.test:443"}, port: 443, names: ".b.test", forName: true},
	{Rule: Rule{Dest: "udp:a.test"}, proto: protoUDP, names: "a.test", forName: true},
	{Rule: Rule{Allow: true, Dest: "10.0.0.0/8"}, has: in("10.0.0.0/8")},
	{Rule: Rule{Dest: "10.0.0.1"}, has: in("10.0.0.1/32")},
	{Rule: Rule{Dest: "private", Source: ByDefault, Guard: true}, has: in("10.0.0.0/8", "fc00::/7")},
	{Rule: Rule{Dest: "private"}, has: in("10.0.0.0/8", "fc00::/7")},
	{Rule: Rule{Dest: "any"}, has: in("0.0.0.0/0", "::/0")},
	{Rule: Rule{Allow: true, Dest: "any:80"}, port: 80, has: in("0.0.0.0/0", "::/0")},
	{Rule: Rule{Dest: "udp:any"}, proto: protoUDP, has: in("0.0.0.0/0", "::/0")},
}

var (
	modelNames = []domain.Name{"a.test", "b.test", "x.b.test", "test", "evil.example", "y.b.test"}
	modelAddrs = []netip.Addr{
		netip.MustParseAddr("198.51.100.1"), netip.MustParseAddr("10.0.0.1"), netip.MustParseAddr("10.0.0.2"), netip.MustParseAddr("2001:db8::1"),
		netip.MustParseAddr("fd00::1"), netip.MustParseAddr("64:ff9b::10.0.0.1"), netip.MustParseAddr("64:ff9b::198.51.100.1"), netip.MustParseAddr("127.0.0.1"),
		netip.MustParseAddr("198.51.100.2"), netip.MustParseAddr("198.51.100.3"), netip.MustParseAddr("169.254.7.7"), netip.MustParseAddr("fe80::7"),
		netip.MustParseAddr("64:ff9b::127.0.0.1"),
	}
)

func (r *modelRule) fits(n domain.Name) bool {
	if strings.HasPrefix(r.names, ".") {
		return strings.HasSuffix(string(n), r.names)
	}
	return string(n) == r.names
}

func (r *modelRule) ports(proto uint8, port uint16) bool {
	return (r.proto == 0 || r.proto == proto) && (r.port == 0 || r.port == port)
}

func (r *modelRule) narrow() bool { return r.proto != 0 || r.port != 0 }

// modelPair is one pair of the model's table, which is a list by age.
type modelPair struct {
	key  string // the rule's text and which of them it is; empty: none
	addr netip.Addr
	name domain.Name
	end  time.Duration
}

type model struct {
	rules []*modelRule
	keys  []string
	pairs []modelPair
	now   time.Duration
}

const modelPairs = 12

// setKeys gives rules of the same text different keys, in order.
func (m *model) setKeys() {
	m.keys = nil
	n := map[string]int{}
	for _, r := range m.rules {
		text := fmt.Sprint(r.Allow, r.Dest)
		m.keys = append(m.keys, fmt.Sprint(text, n[text]))
		n[text]++
	}
}

func (m *model) enter(p modelPair) {
	i := slices.IndexFunc(m.pairs, func(q modelPair) bool { return q.key == p.key && q.addr == p.addr })
	switch {
	case i >= 0:
		p.end = max(p.end, m.pairs[i].end)
		m.pairs = slices.Delete(m.pairs, i, i+1)
	case len(m.pairs) == modelPairs:
		m.pairs = slices.Delete(m.pairs, 0, 1)
	}
	m.pairs = append(m.pairs, p)
}

// forms are an address and what it may become.
func forms(a netip.Addr) []netip.Addr {
	all := []netip.Addr{a}
	if b := a.As16(); strings.HasPrefix(a.String(), "64:ff9b::") {
		all = append(all, netip.AddrFrom4([4]byte(b[12:])))
	}
	return all
}

func (m *model) guarded(a netip.Addr) bool {
	return in("169.254.0.0/16", "fe80::/10", "127.0.0.0/8")(a) || slices.ContainsFunc(m.rules, func(r *modelRule) bool { return r.Guard && r.has(a) })
}

// judge is the first rule that fits.
func (m *model) judge(proto uint8, to netip.AddrPort) bool {
	for _, a := range forms(to.Addr()) {
		ok := true
		for i, r := range m.rules {
			if !r.ports(proto, to.Port()) {
				continue
			}
			fits := !r.forName && r.has(a)
			if r.forName && !(r.Allow && m.guarded(a)) {
				fits = slices.ContainsFunc(m.pairs, func(p modelPair) bool { return p.key == m.keys[i] && p.addr == to.Addr() && p.end > m.now })
			}
			if fits {
				ok = r.Allow
				break
			}
		}
		if !ok {
			return false
		}
	}
	return true
}

// told says whether a guest may hear of an address.
func (m *model) told(n domain.Name, aliases []domain.Name, addr netip.Addr) bool {
	if addr.IsLoopback() || !m.resolved(n, aliases) {
		return false
	}
	for _, a := range forms(addr) {
		ok := true
	rules:
		for _, r := range m.rules {
			switch {
			case r.forName && r.Allow && r.fits(n) && !m.guarded(a):
				break rules
			case r.forName && r.Allow, r.narrow() && !r.Allow:
			case r.forName && slices.ContainsFunc(append([]domain.Name{n}, aliases...), r.fits), !r.forName && r.has(a):
				ok = r.Allow
				break rules
			}
		}
		if !ok {
			return false
		}
	}
	return true
}

func (m *model) resolved(n domain.Name, aliases []domain.Name) bool {
	for _, r := range m.rules {
		switch {
		case !r.Allow && r.narrow():
		case !r.forName && strings.HasPrefix(strings.TrimPrefix(r.Dest, "udp:"), "any"):
			return r.Allow
		case r.forName && (r.fits(n) || !r.Allow && slices.ContainsFunc(aliases, r.fits)):
			return r.Allow
		}
	}
	return true
}

func (m *model) grant(n domain.Name, aliases []domain.Name, addrs []netip.Addr, ttl time.Duration) (mask uint64) {
	var keys, denied []string
	for i, r := range m.rules {
		switch {
		case !r.forName:
		case r.Allow && r.fits(n):
			keys = append(keys, m.keys[i])
		case !r.Allow && (r.fits(n) || slices.ContainsFunc(aliases, r.fits)):
			denied = append(denied, m.keys[i])
		}
	}
	if len(keys) == 0 {
		keys = append(keys, "")
	}
	keys = append(keys, denied...)
	room := modelPairs / len(keys)
	for i, a := range addrs {
		if room == 0 || !m.told(n, aliases, a) {
			continue
		}
		for _, k := range keys {
			m.enter(modelPair{k, a, n, m.now + min(max(ttl, leastTime), mostTime) + overTime})
		}
		mask |= 1 << i
		room--
	}
	return mask
}

func (m *model) replace(rules []*modelRule) {
	old := m.keys
	m.rules = rules
	m.setKeys()
	stood := m.pairs
	m.pairs = nil
	for _, p := range stood {
		if p.key == "" || slices.Contains(m.keys, p.key) {
			m.pairs = append(m.pairs, p)
		}
	}
	for _, p := range stood {
		for i, r := range m.rules {
			if p.end > m.now && r.forName && !slices.Contains(old, m.keys[i]) && r.fits(p.name) {
				m.enter(modelPair{m.keys[i], p.addr, p.name, p.end})
			}
		}
	}
}

// FuzzNames is a script of answers, flows, time and changes of the rules: the table and
// what is decided by it are those of a plain list.
func FuzzNames(f *testing.F) {
	rules := func(all ...byte) []byte { return append([]byte{byte(len(all))}, all...) }
	answer := func(name, alias byte, ttl byte, addrs ...byte) []byte {
		set := uint16(0)
		for _, a := range addrs {
			set |= 1 << a
		}
		return []byte{0, name, alias, byte(set >> 8), byte(set), ttl}
	}
	flow := func(proto, addr, port byte) []byte { return []byte{1, proto, addr, port} }
	later := func(time byte) []byte { return []byte{2, time} }
	replace := func(all ...byte) []byte { return append([]byte{3}, rules(all...)...) }
	const (
		tcp, udp         = 0, 1
		https, http, any = 0, 1, 2
		noAlias          = 0
	)
	for _, script := range [][][]byte{
		// By port, protocol and name; what is denied behind it.
		{rules(0, 10), flow(tcp, 0, https), answer(0, noAlias, 2, 0, 3), flow(tcp, 0, https), flow(tcp, 3, https), flow(tcp, 0, http), flow(tcp, 8, https), answer(1, noAlias, 2, 0)},
		{rules(2, 10), answer(2, noAlias, 2, 0), flow(tcp, 0, http), flow(udp, 0, http), flow(tcp, 0, https)},
		// The time: a minute longer than told, at least and at most; a later answer makes it no shorter.
		{rules(0, 10), answer(0, noAlias, 0, 0), later(3), flow(tcp, 0, https), later(1), flow(tcp, 0, https)},
		{rules(0, 10), answer(0, noAlias, 255, 0), later(182), flow(tcp, 0, https), later(2), flow(tcp, 0, https)},
		{rules(0, 10), answer(0, noAlias, 20, 0), answer(0, noAlias, 0, 0), later(20), flow(tcp, 0, https)},
		// Rebinding: denied before, denied by default behind, allowed before, behind translators.
		{rules(9, 1, 10), answer(0, noAlias, 2, 0, 1, 2, 4, 5, 6, 7), flow(tcp, 1, https), flow(tcp, 5, https), flow(tcp, 6, https), flow(tcp, 0, https)},
		{rules(1, 8, 10), answer(0, noAlias, 2, 0, 1, 2, 4, 5, 6, 7), flow(tcp, 1, https), flow(tcp, 4, https), flow(tcp, 5, https), flow(tcp, 6, https), flow(tcp, 7, https)},
		{rules(1, 8), answer(0, noAlias, 2, 7), flow(tcp, 7, https)},
		{rules(7, 6, 1, 8, 10), answer(0, noAlias, 2, 0, 1, 2), flow(tcp, 1, https), flow(tcp, 2, https)},
		{rules(1, 9, 10), answer(0, noAlias, 2, 1), flow(tcp, 1, https), answer(0, noAlias, 2, 5), flow(tcp, 5, https)},
		{rules(11, 1, 8, 10), answer(0, noAlias, 2, 1, 5), flow(tcp, 1, https), flow(tcp, 1, http), flow(tcp, 5, https)},
		{rules(1, 10), answer(0, noAlias, 2, 10, 11), flow(tcp, 10, https), flow(tcp, 11, https)},
		{rules(1, 10), answer(0, noAlias, 2, 12), flow(tcp, 12, https)},
		{rules(11, 1, 10), answer(0, noAlias, 2, 10, 11), flow(tcp, 10, https), flow(tcp, 11, https), flow(tcp, 11, http)},
		{rules(5, 6, 8), answer(0, noAlias, 2, 1), flow(udp, 1, https), flow(tcp, 1, https)},
		{rules(1, 3, 6, 8), answer(0, noAlias, 2, 1, 0), flow(tcp, 1, https)},
		{rules(6, 3), answer(0, noAlias, 2, 1, 0), flow(tcp, 1, https)},
		// Denied by name, with ports and without, by an alias; and what any says before and behind.
		{rules(3, 1, 10), answer(0, noAlias, 2, 0), answer(2, 1, 2, 0), answer(2, 3, 2, 0), flow(tcp, 0, https)},
		{rules(1, 3, 10), answer(0, noAlias, 2, 0), answer(2, 1, 2, 0), flow(tcp, 0, https)},
		{rules(4, 5), answer(2, noAlias, 2, 0), flow(tcp, 0, https), flow(tcp, 0, http), answer(0, 5, 2, 8), flow(tcp, 8, https), flow(udp, 8, any), flow(tcp, 8, any)},
		{rules(2, 0, 10), answer(2, 1, 2, 0), flow(tcp, 0, https), flow(tcp, 0, http)},
		{rules(4), answer(0, 5, 2, 0), flow(tcp, 0, https), flow(tcp, 0, http)},
		{rules(11, 0, 10), answer(4, noAlias, 2, 0), flow(tcp, 0, http), flow(tcp, 0, https)},
		{rules(12, 0, 10), answer(4, noAlias, 2, 0), answer(0, noAlias, 2, 0), flow(tcp, 0, https), flow(udp, 0, https)},
		{rules(10, 1), answer(0, noAlias, 2, 0), flow(tcp, 0, https)},
		// Full: the oldest goes.
		{rules(1), answer(0, noAlias, 9, 0, 3, 6, 8, 9), answer(2, noAlias, 9, 1, 2, 4, 5), answer(3, noAlias, 9, 0), answer(5, noAlias, 9, 0), replace(1, 10), flow(tcp, 3, any)},
		{rules(1, 0, 4, 10), answer(2, noAlias, 9, 0, 3, 6, 8, 9), answer(0, noAlias, 9, 0, 3, 6, 8, 9), answer(2, noAlias, 9, 0), flow(tcp, 0, https), flow(tcp, 3, http), flow(tcp, 9, http)},
		{rules(0, 1, 0, 1, 10), answer(0, noAlias, 9, 0, 3, 6, 8, 9), flow(tcp, 0, https), flow(tcp, 8, https)},
		// Other rules: what stays, what a new one gets, what goes.
		{rules(0, 10), answer(0, noAlias, 2, 0), replace(6, 0, 10), flow(tcp, 0, https), replace(1, 10), flow(tcp, 0, any), replace(2, 10), flow(tcp, 0, http), replace(0, 10), flow(tcp, 0, https)},
		{rules(4), answer(0, noAlias, 2, 0), replace(3), flow(tcp, 0, https)},
		{rules(4), answer(0, noAlias, 0, 0), later(10), replace(3), flow(tcp, 0, https)},
		{rules(), answer(0, noAlias, 2, 0), replace(0, 0, 10), answer(0, noAlias, 2, 0), replace(0, 10), flow(tcp, 0, https)},
	} {
		fuzz.Add(f, slices.Concat(script...))
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		s := &fuzz.Source{B: b[:min(len(b), 4096)]}
		choose := func() (rules []*modelRule, given []Rule) {
			for range s.Byte() % 6 {
				r := &modelRules[int(s.Byte())%len(modelRules)]
				rules, given = append(rules, r), append(given, r.Rule)
			}
			return rules, given
		}
		at := time.Now()
		m := &model{}
		rules, given := choose()
		e, err := New(given, nil)
		if err != nil {
			t.Fatal(err)
		}
		m.replace(rules)
		e.table.most, e.table.clock = modelPairs, func() time.Time { return at.Add(m.now) }
		for steps := 0; len(s.B) > 0 && steps < 200; steps++ {
			switch s.Byte() % 4 {
			case 0:
				n := modelNames[int(s.Byte())%len(modelNames)]
				var aliases []domain.Name
				if k := int(s.Byte()); k%2 != 0 {
					aliases = append(aliases, modelNames[k/2%len(modelNames)])
				}
				var addrs []netip.Addr
				for set := s.Uint16(); set != 0; set &= set - 1 {
					for i, a := range modelAddrs {
						if set&-set == 1<<i {
							addrs = append(addrs, a)
						}
					}
				}
				ttl := time.Duration(s.Byte()) * 30 * time.Second
				got, want := e.Grant(n, aliases, addrs, at.Add(m.now+ttl)), m.grant(n, aliases, addrs, ttl)
				if got != want {
					t.Fatalf("%v: %s, aliases %v, at %v: told %b, want %b", e.Rules(), n, aliases, addrs, got, want)
				}
			case 1:
				proto := []uint8{protoTCP, protoUDP}[s.Byte()%2]
				to := netip.AddrPortFrom(modelAddrs[int(s.Byte())%len(modelAddrs)], []uint16{443, 80, 25}[s.Byte()%3])
				if got, want := e.Judge(Flow{Proto: proto, To: to}), m.judge(proto, to); got.Allowed != want {
					t.Fatalf("%v: %d to %v: %+v, want %t, with %+v", e.Rules(), proto, to, got, want, m.pairs)
				}
			case 2:
				m.now += time.Duration(s.Byte()) * 20 * time.Second
			case 3:
				rules, given := choose()
				if err := e.Replace(given); err != nil {
					t.Fatal(err)
				}
				m.replace(rules)
			}
			check(t, e, m)
		}
	})
}

// check compares the tables, and looks at how ours hangs together.
func check(t *testing.T, e *RuleSet, m *model) {
	t.Helper()
	stand := 0
	for _, p := range m.pairs {
		if p.key != "" && p.end > m.now {
			stand++
		}
	}
	n, _ := e.Table()
	if n != stand || e.table.used != len(m.pairs) || len(e.table.pairs) > modelPairs+1 {
		t.Fatalf("%v: %d stand, %d are there, of %d; want %d and %d", e.Rules(), n, e.table.used, len(e.table.pairs), stand, len(m.pairs))
	}
	chained := 0
	for a, i := range e.table.heads {
		for ; i != 0; i = e.table.pairs[i].next {
			if chained++; e.table.pairs[i].addr != a {
				t.Fatalf("a pair of %v is with those of %v", e.table.pairs[i].addr, a)
			}
		}
	}
	if chained != e.table.used {
		t.Fatalf("%d pairs are chained, %d are used", chained, e.table.used)
	}
}
