// SPDX-License-Identifier: Apache-2.0

package egress

import (
	"fmt"
	"net/netip"
	"sync/atomic"
)

// Source is who has said a rule.
type Source string

// Sources.
const (
	ByOption  Source = "option"   // the user
	ByFile    Source = "file"     // the user, in a rules file
	ByDefault Source = "default"  // the name under which the program runs
	BuiltIn   Source = "built in" // nobody can say otherwise
)

// Listed is one rule in force, for people to read.
type Listed struct {
	Text   string // as it would be written as an option
	Source Source // who says so
	Note   string // what for or to what, where the text does not tell
	Hits   uint64 // what was decided by it, see Verdict.Count
}

// SaidAt is the rule as one that FILE:LINE says; empty: it is what it was.
func (l Listed) SaidAt(at string) Listed {
	if at != "" {
		l.Source, l.Note = ByFile, at+": "+l.Note
	}
	return l
}

// Asked is one rule that was asked about a flow.
type Asked struct {
	Index  int        // among those of List
	Text   string     // the rule
	Source Source     // of the rule
	To     netip.Addr // what it was asked about: an IPv6 address may stand for others
	Fits   bool       // it decides
	Result string     // how, or why not
}

// Count notes that something was opened or refused as the verdict says, and reports
// false if it is no rule set's. Rules that are only asked, to look at what stands or to
// explain, count nothing.
func (v *Verdict) Count() bool {
	if v.hits != nil {
		v.hits.Add(1)
	}
	return v.hits != nil
}

// Explain is Judge, with all rules that were asked, in order.
func (e *RuleSet) Explain(f Flow) (Verdict, []Asked) {
	var t trail
	v := e.judge(&f, &t)
	return v, t
}

// List returns all rules in the order in which they are asked.
func (e *RuleSet) List() []Listed {
	l := e.list.Load()
	rules, pins, stands := l.rules, e.pinList(), e.standing()
	if l.byName {
		pins = nil
	}
	all := make([]Listed, 0, len(rules)+len(pinPorts)*len(pins)+1)
	for i := range rules {
		r := &rules[i]
		all = append(all, Listed{r.text, r.source, r.listNote(stands), r.hits.Load()})
	}
	for _, p := range pins {
		for i, port := range pinPorts {
			all = append(all, Listed{
				Text: "--allow " + netip.AddrPortFrom(p.addr, port).String(), Source: BuiltIn,
				Note: "forwarded resolver, before sets and networks without ports", Hits: p.hits[i].Load(),
			})
		}
	}
	return append(all, Rest(e.rest.Load()))
}

// Rest is what stands behind all rules.
func Rest(hits uint64) Listed {
	return Listed{Text: "--allow any", Source: BuiltIn, Note: "what no rule fits", Hits: hits}
}

// trail gathers the rules that were asked.
type trail []Asked

func (t *trail) add(f *Flow, index int, r *rule, m match, n *known) {
	*t = append(*t, Asked{Index: index, Text: r.text, Source: r.source, To: f.To.Addr(), Fits: m == fits, Result: r.result(f, m, n)})
}

// result puts a match into words.
func (r *rule) result(f *Flow, m match, n *known) string {
	switch m {
	case otherProtocol:
		return "is for another protocol"
	case otherPort:
		if f.Proto == protoICMP {
			return "has ports, and echo has none"
		}
		return "is for other ports"
	case otherAddress:
		return "is for other addresses"
	case tooWide:
		return fmt.Sprintf("does not count for the forwarded resolver: it names neither %v nor ports", f.To.Addr())
	case otherName, pastTime, guarded:
		return n.why(r, m)
	}
	if r.byName {
		return n.why(r, m)
	}
	if r.allow {
		return "fits, and allows"
	}
	return "fits, and denies"
}

// kept are the counters and numbers of rules that may stay, by their text.
type kept map[string][]*rule

func (e *RuleSet) kept() kept {
	k := kept{}
	if l := e.list.Load(); l != nil {
		for i := range l.rules {
			r := &l.rules[i]
			k[r.text] = append(k[r.text], r)
		}
	}
	return k
}

// take returns the counter and number of a rule, if there is one.
func (k kept) take(text string) (hits *atomic.Uint64, id uint32, ok bool) {
	old := k[text]
	if len(old) == 0 {
		return nil, 0, false
	}
	k[text] = old[1:]
	return old[0].hits, old[0].id, true
}
