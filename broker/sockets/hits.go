// SPDX-License-Identifier: Apache-2.0

package sockets

import (
	"net/netip"
	"sync/atomic"

	"aldente/broker/egress"
)

// hits counts what was decided by no rule of the egress rule set.
type hits struct {
	always  [numAlways][2]atomic.Uint64 // by family, IPv4 first
	unruled atomic.Uint64               // allowed, since there are no rules
}

// count notes a decision about a worker's request.
func (h *hits) count(q *request, d *decision) {
	if d.redirect != nil {
		d.redirect.Count()
	}
	switch {
	case d.always != possible:
		h.always[d.always][familyIndex(q.dst.Addr())].Add(1)
	case !d.verdict.Count() && d.verdict.Allowed:
		h.unruled.Add(1)
	}
}

func familyIndex(a netip.Addr) int {
	if a.Is4() {
		return 0
	}
	return 1
}

// unnamed are the addresses that no guest may name, in the order in which they are
// looked for, by family.
var unnamed = [...]struct {
	why  always
	dest [2]string
}{
	{isLoopback, [2]string{"127.0.0.0/8", "::1"}},
	{isUnspecified, [2]string{"0.0.0.0", "::"}},
	{isMulticast, [2]string{"224.0.0.0/4", "ff00::/8"}},
	{isBroadcast, [2]string{"255.255.255.255", ""}},
}

// Rules returns what decides where the guest may connect, in the order in which it is
// asked: what holds for addresses as the guest names them, and the egress rules, which
// see what those addresses mean.
func (f *Factory) Rules() []egress.Listed {
	all := f.beforeRules()
	if f.cfg().Egress == nil {
		return append(all, egress.Rest(f.hits.unruled.Load()))
	}
	return append(all, f.cfg().Egress.List()...)
}

// beforeRules is what is listed before the egress rules.
func (f *Factory) beforeRules() []egress.Listed {
	return append(f.unnameable(), f.cfg().Redirects.List()...)
}

// unnameable are the rules that hold for addresses as the guest names them.
func (f *Factory) unnameable() (all []egress.Listed) {
	for i, fam := range []*Family{&f.cfg().V4, &f.cfg().V6} {
		for _, u := range unnamed {
			if !fam.Enabled || u.dest[i] == "" {
				continue
			}
			note := "as the guest names it"
			if u.why == isMulticast && f.cfg().Multicast.Send || u.why == isBroadcast && f.cfg().Multicast.Broadcast {
				note += ", but for what --multicast lets leave"
			}
			all = append(all, egress.Listed{
				Text: "--deny " + u.dest[i], Source: egress.BuiltIn, Note: note, Hits: f.hits.always[u.why][i].Load(),
			})
		}
		if fam.Enabled && fam.Virtual.IsValid() {
			all = append(all, egress.Listed{
				Text: "--deny " + fam.Virtual.String(), Source: egress.BuiltIn,
				Note: "as the guest names it: its own network, but for what has a meaning there", Hits: f.hits.always[isVirtual][i].Load(),
			})
		}
	}
	return all
}
