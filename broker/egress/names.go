// SPDX-License-Identifier: Apache-2.0

package egress

import (
	"fmt"
	"net/netip"
	"strings"
	"sync/atomic"
	"time"

	"aldente/ipc/domain"
)

// setNames are the sets, for people.
const setNames = "any, host, link-local, private, metadata"

// mayBeName tells what is no address and no prefix, whatever may be wrong with it.
func mayBeName(dest string) bool {
	if strings.ContainsAny(dest, ":/[]") {
		return false
	}
	_, err := netip.ParseAddr(dest)
	return err != nil
}

// parseName reads the pattern of a rule by name. A name of one label has a dot behind
// it, so that no misspelled set becomes a name.
func parseName(dest string) (domain.Pattern, error) {
	p, err := domain.ParsePattern(dest)
	if err == nil && !strings.Contains(dest, ".") {
		err = fmt.Errorf("%q is neither an address, a prefix, nor one of %s; a name of one label is written with a dot behind it, as %q",
			dest, setNames, dest+".")
	}
	return p, err
}

// hostOf is the name in what stands behind the scheme of a URL, or an example of one.
func hostOf(s string) string {
	s, _, _ = strings.Cut(s, "/")
	s, _, _ = strings.Cut(s[strings.LastIndexByte(s, '@')+1:], ":")
	if _, err := domain.Parse(s); err != nil {
		return "name.example"
	}
	return s
}

// IsName tells whether a rule's destination is by name, and can be read.
func IsName(dest string) bool {
	r, err := parse(dest)
	return err == nil && r.byName
}

// settle completes new rules: with the counters of those that stay, the guards, and
// what all of them say of names; and has the table be theirs. The caller holds its lock.
func (e *RuleSet) settle(l *ruleList) {
	old, stay := e.kept(), map[uint32]bool{noRule: true}
	var fresh []*rule
	for i := range l.rules {
		r := &l.rules[i]
		var ok bool
		if r.hits, r.id, ok = old.take(r.text); !ok {
			e.table.lastID++
			r.hits, r.id = new(atomic.Uint64), e.table.lastID
			if r.byName {
				fresh = append(fresh, r)
			}
		}
		stay[r.id] = true
		l.byName = l.byName || r.byName
		if r.guard && !r.byName && !r.allow {
			l.guards = append(l.guards, i)
		}
	}
	l.names = namesOf(l.rules)
	e.table.change(stay, fresh)
}

// namesOf is what rules say of names. A rule by address says nothing of a name, unless
// it is for any: that fits each name's addresses, and no rule behind it is asked about
// those.
func namesOf(rules []rule) domain.Rules {
	d := domain.Rules{Default: true}
	for i := range rules {
		r := &rules[i]
		switch {
		case r.byName:
			d.List = append(d.List, domain.Rule{Index: i, Pattern: r.pattern, Allow: r.allow, Narrow: r.narrow()})
		case r.all && (r.allow || !r.narrow()):
			d.Default = r.allow
			return d
		}
	}
	return d
}

// narrow tells whether the rule is for some ports or one protocol.
func (r *rule) narrow() bool { return r.ports || r.proto != 0 }

// ByName tells whether a rule is by name: without one, there is nothing to grant.
func (e *RuleSet) ByName() bool { return e.list.Load().byName }

// Names returns what the rules say of names, for whoever asks resolvers on behalf of the
// guest.
func (e *RuleSet) Names() domain.Rules { return e.list.Load().names }

// JudgeName tells whether a name may be resolved.
func (e *RuleSet) JudgeName(name domain.Name, aliases ...domain.Name) domain.Verdict {
	return e.list.Load().names.Judge(name, aliases...)
}

// matchesName tells whether a rule by name fits, or why not.
func (e *RuleSet) matchesName(l *ruleList, r *rule, f *Flow, n *known) match {
	if m := r.matchesPort(f); m != fits {
		return m
	}
	m, _ := n.stands(r)
	if m == fits && r.allow && e.guards(l, f) {
		m = guarded
	}
	return m
}

// guards tells whether no rule by name that allows fits an address: only those of one host
// beyond its link have a place in the DNS (RFC 4472 section 2.1, RFC 3927 section 2.8),
// and there are rules by address that hold against names wherever they stand. It is
// asked of what an IPv6 address may become, too: 2002:7f00:1:: is nobody's name for
// a host's loopback.
func (e *RuleSet) guards(l *ruleList, f *Flow) bool {
	if a := f.To.Addr(); a.IsValid() && !a.IsGlobalUnicast() {
		return true
	}
	for _, i := range l.guards {
		if r := &l.rules[i]; r.matchesPort(f) == fits && r.covers(e, f) {
			return true
		}
	}
	return false
}

// Bounds of the time for which an address stands for a name.
const (
	leastTime = 5 * time.Second
	mostTime  = time.Hour
	// overTime is how much longer it stands than the guest was told: clocks of caches
	// begin later than ours.
	overTime = time.Minute
)

// maxAddrs is how many addresses are granted at a time.
const maxAddrs = 64

// Grant notes that a name has led to addresses, until a time that the guest is told,
// which counts as 5 seconds from now at least and an hour at most. Bit i is set of what
// it returns if the guest may be told of address i: where no rule would ever let it
// connect there, the address is of no use but to somebody who lies about names. Aliases
// are the names that the answer has led to on the way. It may be called while others ask.
func (e *RuleSet) Grant(name domain.Name, aliases []domain.Name, addrs []netip.Addr, until time.Time) (granted uint64) {
	for {
		l := e.list.Load()
		bare, may := e.grantable(l, name, aliases, addrs)
		if may == 0 {
			return 0
		}
		e.table.mu.Lock()
		if e.list.Load() != l {
			e.table.mu.Unlock()
			continue // judged by rules that are gone
		}
		granted = e.table.grant(l, name, aliases, bare, may, until)
		e.table.mu.Unlock()
		return granted
	}
}

// grantable tells which addresses the guest may be told of, and has them bare.
func (e *RuleSet) grantable(l *ruleList, name domain.Name, aliases []domain.Name, addrs []netip.Addr) (bare []netip.Addr, may uint64) {
	if name == "" || !l.names.Judge(name, aliases...).Allowed {
		return nil, 0
	}
	bare = make([]netip.Addr, min(len(addrs), maxAddrs))
	for i := range bare {
		bare[i] = addrs[i].Unmap().WithZone("")
		if e.tellable(l, name, aliases, bare[i]) {
			may |= 1 << i
		}
	}
	return bare, may
}

// tellable asks of an address and all that it may be turned into. What no guest can
// connect to by its address is none: only under another name it would lead somewhere.
func (e *RuleSet) tellable(l *ruleList, name domain.Name, aliases []domain.Name, a netip.Addr) bool {
	if !a.IsValid() || a.IsLoopback() || a.IsUnspecified() || a.IsMulticast() || a == broadcast || !e.reaches(l, name, aliases, a) {
		return false
	}
	in := embeddedIn(a, e.nat64)
	for _, v4 := range in.addr[:in.n] {
		if !e.reaches(l, name, aliases, v4) {
			return false
		}
	}
	return true
}

// broadcast is the address of all on a link, RFC 919 section 7.
var broadcast = netip.AddrFrom4([4]byte{255, 255, 255, 255})

// reaches tells whether there is a protocol and a port for which the rules may let a
// guest go to an address of a name's.
func (e *RuleSet) reaches(l *ruleList, name domain.Name, aliases []domain.Name, a netip.Addr) bool {
	f := Flow{Proto: protoTCP, To: netip.AddrPortFrom(a, 0)}
	held := false // by a guard: asked once
	for i := range l.rules {
		r := &l.rules[i]
		switch {
		case r.byName && r.allow:
			if !held && r.pattern.Matches(name) {
				if held = e.guards(l, &f); !held {
					return true
				}
			}
		case r.byName:
			if !r.narrow() && r.fitsName(name, aliases) {
				return false
			}
		case (r.allow || !r.narrow()) && r.covers(e, &f):
			return r.allow
		}
	}
	return true
}

// fitsName tells whether a rule by name is for a name: one that allows, for that which
// was asked for, one that denies, for its aliases too.
func (r *rule) fitsName(name domain.Name, aliases []domain.Name) bool {
	if r.pattern.Matches(name) {
		return true
	}
	if !r.allow {
		for _, a := range aliases {
			if r.pattern.Matches(a) {
				return true
			}
		}
	}
	return false
}
