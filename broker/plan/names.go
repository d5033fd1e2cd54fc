// SPDX-License-Identifier: Apache-2.0

package plan

import (
	"net/netip"
	"slices"

	"aldente/broker/hostnet"
	"aldente/ipc"
)

// Names is what aldente-names is told, and which resolvers it asks.
type Names struct {
	Config    ipc.NamesConfig // but for the number of resolvers
	Resolvers []netip.Addr    // in the order in which they are asked, at most ipc.MaxResolvers; zones are numbers
}

// planNames has questions answered by aldente-names where a rule is by name, or names are
// to be learned, whichever resolver the guest asks of those that it may know.
func (p *Plan) planNames(r hostnet.Resolvers) {
	if !p.answers {
		if len(p.cfg.VerifySNI) > 0 {
			p.Notes = append(p.Notes, "--verify-sni is for rules by name, as --allow NAME:443, and there is none")
		}
		return
	}
	if p.cfg.ViaNames && !p.byName() {
		p.Notes = append(p.Notes, "--via-names is for what rules by name allow, as --allow NAME, and there is none: the proxy is told addresses")
	}
	p.Names = &Names{Resolvers: p.upstream(r)}
	c := &p.Names.Config
	for _, b := range []struct {
		on  bool
		bit uint32
	}{{p.cfg.NamesNXDOMAIN, ipc.NamesNXDOMAIN}, {p.cfg.Audit != "", ipc.NamesAudit}, {p.cfg.Debug, ipc.NamesDebug}, {len(p.cfg.VerifySNI) > 0, ipc.NamesHellos}} {
		if b.on {
			c.Flags |= b.bit
		}
	}
	for _, s := range p.net.search {
		if n, err := ipc.MakeName(s); err == nil && int(c.NSearch) < len(c.Search) {
			c.Search[c.NSearch] = n
			c.NSearch++
		}
	}
	if len(p.Names.Resolvers) == 0 {
		p.Notes = append(p.Notes, "no resolver is known that could be asked for names: --dns-host ADDR names one")
	}
}

// upstream is who is asked: who the user has named for that, else those that the guest was
// to ask, else the host's.
func (p *Plan) upstream(r hostnet.Resolvers) []netip.Addr {
	var all []netip.Addr
	add := func(more ...netip.Addr) {
		for _, a := range more {
			if a.IsValid() && !slices.Contains(all, a) && len(all) < ipc.MaxResolvers {
				all = append(all, a)
			}
		}
	}
	if add(p.cfg.DNSHost4, p.cfg.DNSHost6); len(all) == 0 {
		add(p.cfg.DNS...)
	}
	if len(all) == 0 {
		add(r.Servers()...)
	}
	return all
}

// answered are the guest's names for resolvers: those that it is told of, and those that
// it may have read of in a file of the host's.
func (p *Plan) answered(r hostnet.Resolvers) []netip.Addr {
	if p.Names == nil {
		return nil
	}
	var all []netip.Addr
	for _, f := range []*guestFamily{&p.net.v4, &p.net.v6} {
		all = append(all, f.dnsForward, f.dnsHost)
		all = append(all, f.dns...)
	}
	all = slices.Concat(all, p.cfg.DNS, r.Servers())
	for i := range all {
		all[i] = all[i].WithZone("")
	}
	all = slices.DeleteFunc(all, func(a netip.Addr) bool { return !a.IsValid() || a.IsLoopback() }) // those no guest can name
	slices.SortFunc(all, netip.Addr.Compare)
	return slices.Compact(all)
}
