// SPDX-License-Identifier: Apache-2.0

package egress

import (
	"net/netip"
	"slices"

	"aldente/ipc/domain"
)

// WhyName is what becomes of a name, and of a flow to an address of its.
type WhyName struct {
	Name     domain.Verdict // whether it is resolved
	Resolves string         // the rule that decides on that; empty: none fits
	Asked    []Asked        // the rules, as far as they can be asked without an address
	Verdict  Verdict        // on a flow to an address that only these rules fit
	Stands   []netip.Addr   // what the name has led to, some of it
}

// ExplainName tells what the rules say of a name, and of a flow to where it leads, of
// which only protocol and port are given.
func (e *RuleSet) ExplainName(name domain.Name, proto uint8, port uint16) (w WhyName) {
	l := e.list.Load()
	if w.Name = l.names.Judge(name); w.Name.Rule >= 0 {
		w.Resolves = l.rules[l.names.List[w.Name.Rule].Index].text
	}
	f := Flow{Proto: proto, To: netip.AddrPortFrom(netip.Addr{}, port), Open: true, Name: name}
	n := known{name: name, open: true}
	w.Verdict = Verdict{Allowed: true, Name: name, hits: &e.rest}
	for i := range l.rules {
		r := &l.rules[i]
		m := r.matchesPort(&f)
		a := Asked{Index: i, Text: r.text, Source: r.source}
		switch {
		case m != fits:
			a.Result = r.result(&f, m, &n)
		case r.byName && !r.pattern.Matches(name):
			a.Result = "is for other names"
		case !r.byName && !r.all:
			a.Result = "depends on the address"
		case r.allow:
			a.Fits, a.Result = true, "fits, and allows"
		default:
			a.Fits, a.Result = true, "fits, and denies"
		}
		w.Asked = append(w.Asked, a)
		if a.Fits {
			w.Verdict = Verdict{Allowed: r.allow, Rule: r.text, Name: name, ByName: r.byName, hits: r.hits}
			break
		}
	}
	w.Stands = e.table.of(name)
	return w
}

// mostShown bounds the addresses of one name that people are shown.
const mostShown = 64

// of returns addresses that a name has led to last, the latest first.
func (t *table) of(name domain.Name) (all []netip.Addr) {
	t.mu.RLock()
	defer t.mu.RUnlock()
	if t.heads == nil {
		return nil
	}
	now := t.now()
	for i := t.pairs[0].older; i != 0 && len(all) < mostShown; i = t.pairs[i].older {
		if p := &t.pairs[i]; p.name == name && p.until > now && !slices.Contains(all, p.addr) {
			all = append(all, p.addr)
		}
	}
	return all
}
