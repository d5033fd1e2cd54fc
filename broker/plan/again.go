// SPDX-License-Identifier: Apache-2.0

package plan

import (
	"cmp"
	"net/netip"
	"slices"

	"aldente/broker/hostnet"
	"aldente/ipc"
)

// Again is the plan for a host whose network or resolvers have changed. It shares p's
// rules and limits, which stay what they are, and so do the families that the guest has,
// the name of its interface, its MTU, and who answers its questions for names. p stays as
// it is.
//
// An address that the guest has and the host still has, though not by the template any
// more, is kept: connections from it go on, and new ones take the new address.
func (p *Plan) Again(n *hostnet.Network, r hostnet.Resolvers) (*Plan, error) {
	q := &Plan{
		cfg: p.cfg, Inbound: p.Inbound, Outbound: p.Outbound, Egress: p.Egress, Redirects: p.Redirects, Ingress: p.Ingress,
		Budget: p.Budget, Limits: p.Limits, answers: p.answers,
	}
	q.ruled.Store(p.ruled.Load())
	var err error
	if q.net, q.Notes, err = settle(p.cfg, n, r); err != nil {
		return nil, err
	}
	q.net.v4.enabled, q.net.v6.enabled = p.net.v4.enabled, p.net.v6.enabled
	q.net.tap, q.net.mtu = p.net.tap, p.net.mtu
	q.net.v4.keep(&p.net.v4, n.Own)
	q.net.v6.keep(&p.net.v6, n.Own)
	h := p.host
	h.Network, h.Resolvers = n, r
	return q, q.tellAll(h, p)
}

// maxKept is how many addresses of a family are kept.
const maxKept = 8

// keep has a family keep what it had before and the host has still, and remember what it
// was assigned.
func (f *guestFamily) keep(before *guestFamily, own []netip.Addr) {
	if !f.enabled || f.fixed {
		return
	}
	has := slices.Concat(f.locals, []netip.Addr{f.addr.Addr()})
	for _, a := range slices.Concat([]netip.Addr{before.addr.Addr()}, before.locals, before.kept) {
		if a.IsValid() && !a.IsLinkLocalUnicast() && slices.Contains(own, a) && !slices.Contains(has, a) && len(f.kept) < maxKept {
			f.kept, has = append(f.kept, a), append(has, a)
		}
	}
	f.locals, f.own = append(slices.Clip(f.locals), f.kept...), append(slices.Clip(f.own), f.kept...)
	for _, a := range slices.Concat([]netip.Addr{before.addr.Addr()}, before.former) {
		if a.IsValid() && a != f.addr.Addr() && !slices.Contains(f.former, a) && len(f.former) < ipc.MaxFormer {
			f.former = append(f.former, a)
		}
	}
}

// keepName has a name of ours for the host's resolver go on to lead there, though the
// guest could ask that by its own address now: programs read once whom they ask.
func (f *guestFamily) keepName(before *guestFamily) {
	name := before.dnsForward
	if !f.enabled || f.dnsForward.IsValid() || !name.IsValid() || !f.dnsHost.IsValid() || before.dnsGateway && name != f.mapHostLoopback {
		return
	}
	f.dnsForward, f.dnsGateway = name, before.dnsGateway
	if slices.Contains(before.dns, name) {
		f.dns = []netip.Addr{name}
	}
}

// Template is the names of the interfaces that the guest's network is like, without those
// that are missing, for people.
func (p *Plan) Template() string {
	a, b := p.net.v4.link.Name, p.net.v6.link.Name
	if !p.net.v4.enabled || p.net.v4.local {
		a = ""
	}
	if !p.net.v6.enabled || p.net.v6.local {
		b = ""
	}
	if a != "" && b != "" && a != b {
		return a + " (IPv4), " + b + " (IPv6)"
	}
	return cmp.Or(a, b)
}

// Connected tells whether the host has a network in one of the guest's families.
func (p *Plan) Connected() bool {
	return p.net.v4.enabled && !p.net.v4.local || p.net.v6.enabled && !p.net.v6.local
}

// Scope is the index of the interface that link-local destinations are on, zero: none.
func (p *Plan) Scope() int { return p.host.Network.V6.Scope }
