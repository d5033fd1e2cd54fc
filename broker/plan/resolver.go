// SPDX-License-Identifier: Apache-2.0

package plan

import (
	"fmt"
	"net/netip"
	"slices"

	"aldente/broker/cli"
	"aldente/broker/egress"
	"aldente/broker/hostnet"
	"aldente/ipc"
)

// Addresses under which a command reaches a resolver of the host that it could
// not reach by its own: the one that podman uses, and a unique local one (RFC
// 4193) that spells our name.
var (
	dnsForward4 = netip.AddrFrom4([4]byte{169, 254, 1, 1})
	dnsForward6 = netip.MustParseAddr("fd61:6c64:656e:7465::53")
)

// names settles which resolvers the guest is told of, and where forwarded
// queries go.
//
// Where the guest cannot ask the host's resolver by its address, the mapped
// gateway stands for it. Ports 53 and 853 of the gateway then lead to the
// resolver, the others to the host's loopback as always. What the user says
// about names comes first, and aldente has addresses of its own for that.
func (g *guestNet) names(cfg *cli.Config, r hostnet.Resolvers) {
	byGateway := !cfg.DNSNone && cfg.Personality != cli.Aldente && cfg.Personality != cli.Slirp
	given4, given6 := split(cfg.DNS)
	g.v4.resolvers(given4, r.Servers4, cfg.DNSHost4, byGateway)
	g.v6.resolvers(given6, r.Servers6, cfg.DNSHost6, byGateway)
	if f, other := g.only(); byGateway && f != nil && len(cfg.DNS) == 0 && f.mapHostLoopback.IsValid() &&
		f.borrowResolver(other, f.mapHostLoopback) {
		f.dnsGateway = true
	}
	if cfg.DNSNone {
		g.v4.dns, g.v6.dns = nil, nil
	}
	if cfg.Personality == cli.Slirp {
		// Whatever the family of the host's resolvers, both names lead to one.
		four, six := g.v4.dnsHost, g.v6.dnsHost
		if !four.IsValid() {
			g.v4.dnsHost = six
		}
		if !six.IsValid() {
			g.v6.dnsHost = four
		}
	}
}

func split(all []netip.Addr) (v4, v6 []netip.Addr) {
	for _, a := range all {
		if a.Is4() {
			v4 = append(v4, a)
		} else {
			v6 = append(v6, a)
		}
	}
	return
}

// resolvers settles one family's: given are those of --dns, which the guest is
// told as they are, host those of the host. dnsHost is --dns-host, or invalid.
func (f *guestFamily) resolvers(given, host []netip.Addr, dnsHost netip.Addr, byGateway bool) {
	f.dnsHost, f.dns = dnsHost, given
	if all := slices.Concat(host, given); !dnsHost.IsValid() && len(all) > 0 {
		f.dnsHost = all[0]
	}
	if !f.dnsForward.IsValid() && byGateway {
		f.forwardByGateway(host, dnsHost)
	}
	switch {
	case len(given) > 0:
	case f.dnsForward.IsValid() && !f.dnsGateway:
		f.dns = []netip.Addr{f.dnsForward}
	default:
		f.dns = f.seen(host)
	}
}

// forwardByGateway has the mapped gateway stand for the first resolver that it,
// or nothing, must stand for, or for the one of --dns-host.
func (f *guestFamily) forwardByGateway(host []netip.Addr, dnsHost netip.Addr) {
	i := slices.IndexFunc(host, f.hidden)
	switch {
	case !f.mapHostLoopback.IsValid(), i < 0 && !(dnsHost.IsValid() && f.hidden(dnsHost)):
		return
	case !dnsHost.IsValid():
		f.dnsHost = host[i]
	}
	f.dnsForward, f.dnsGateway = f.mapHostLoopback, true
}

// hidden tells whether an address means something else to the guest than to the
// host: its own loopback, itself, or the host's loopback.
func (f *guestFamily) hidden(a netip.Addr) bool {
	bare := a.WithZone("")
	return a.IsLoopback() || bare == f.mapHostLoopback || slices.Contains(f.locals, bare) || f.elsewhere(a)
}

// elsewhere tells whether a link-local address is on another interface of the host's than
// the one that the guest's link stands for.
func (f *guestFamily) elsewhere(a netip.Addr) bool {
	scope := hostnet.ScopeOf(a)
	return scope != 0 && scope != f.scope
}

// seen is under which addresses the guest reaches the host's resolvers. Those
// that it cannot reach at all are left out.
func (f *guestFamily) seen(host []netip.Addr) (dns []netip.Addr) {
	for _, s := range host {
		switch {
		case !f.hidden(s):
		case f.mapGuestAddr.IsValid() && s == f.addr.Addr():
			s = f.mapGuestAddr
		case f.dnsForward.IsValid():
			s = f.dnsForward
		case s.IsLoopback(), f.elsewhere(s):
			continue
		}
		s = s.WithZone("") // the guest has one of its own
		if len(dns) < ipc.MaxDNS && !slices.Contains(dns, s) {
			dns = append(dns, s)
		}
	}
	return dns
}

// only is the family of a guest that has one only, and the other one.
func (g *guestNet) only() (f, other *guestFamily) {
	switch {
	case !g.v4.enabled:
		return &g.v6, &g.v4
	case !g.v6.enabled:
		return &g.v4, &g.v6
	}
	return nil, nil
}

// borrowResolver gives the only family of a guest, if it would have no resolver,
// the other's under a name: queries go to a host socket, whose family is the
// host's affair.
func (f *guestFamily) borrowResolver(other *guestFamily, name netip.Addr) bool {
	if len(f.dns) > 0 || f.dnsForward.IsValid() || !other.dnsHost.IsValid() {
		return false
	}
	f.dnsForward, f.dnsHost, f.dns = name, other.dnsHost, []netip.Addr{name}
	return true
}

// forwardResolvers has names resolve out of the box for a command of aldente. A
// resolver of the host's that the guest cannot reach, since it is on loopback or
// the egress rules deny it, gets a name on the guest's side. Options of the user
// come first. With a rule by name each guest needs a resolver to ask.
func (p *Plan) forwardResolvers(host *hostnet.Network, r hostnet.Resolvers) {
	wanted := p.cfg.Personality == cli.Aldente || p.answers && len(p.net.dns(false)) == 0
	if !wanted || p.cfg.DNSNone || p.cfg.SpliceOnly {
		return
	}
	given4, given6 := split(p.cfg.DNS)
	for _, f := range []struct {
		*guestFamily
		given, servers []netip.Addr
		forward        netip.Addr
	}{{&p.net.v4, given4, r.Servers4, dnsForward4}, {&p.net.v6, given6, r.Servers6, dnsForward6}} {
		if !f.enabled || f.dnsForward.IsValid() || len(f.given) > 0 {
			continue
		}
		far := func(a netip.Addr) bool { return a.WithZone("") == f.mapHostLoopback || !reachable(host, p.Egress, a) }
		if f.dnsHost.IsValid() && (slices.ContainsFunc(f.servers, far) || p.answers && len(f.dns) == 0) {
			f.dnsForward, f.dns = f.forward, []netip.Addr{f.forward}
		}
	}
	if f, other := p.net.only(); f != nil && len(p.cfg.DNS) == 0 {
		name := dnsForward6
		if f == &p.net.v4 {
			name = dnsForward4
		}
		f.borrowResolver(other, name)
	}
}

// reachable tells whether the guest may ask a resolver by its own address.
func reachable(host *hostnet.Network, rules *egress.RuleSet, a netip.Addr) bool {
	return !a.IsLoopback() && !a.IsLinkLocalUnicast() && !slices.Contains(host.Own, a) &&
		(rules == nil || rules.Judge(egress.Flow{Proto: ipc.ProtoUDP, To: netip.AddrPortFrom(a, 53)}).Allowed)
}

// noteNames says why the guest has no resolver, if it has none.
func (p *Plan) noteNames(r hostnet.Resolvers) {
	if p.cfg.DNSNone || p.cfg.SpliceOnly || len(p.net.dns(false)) > 0 {
		return
	}
	if all := r.Servers(); len(all) > 0 {
		p.Notes = append(p.Notes, fmt.Sprintf("the guest can reach no resolver of the host's (%s): --dns-forward ADDR gives it a name there", all[0]))
	} else {
		p.Notes = append(p.Notes, "no resolver in "+hostnet.ResolvConf+": --dns ADDR tells the guest of one")
	}
}

// dns is all resolvers that the guest is told of.
func (g *guestNet) dns(v6First bool) (all []netip.Addr) {
	families := []*guestFamily{&g.v4, &g.v6}
	if v6First {
		slices.Reverse(families)
	}
	for _, f := range families {
		if f.enabled {
			all = append(all, f.dns...)
		}
	}
	return all
}
