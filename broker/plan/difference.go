// SPDX-License-Identifier: Apache-2.0

package plan

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"aldente/broker/hostnet"
)

// Difference says whom the way from one plan to the next concerns.
type Difference struct {
	Guest   bool // who configures the guest's interface: Plan.Tap
	Worker  bool // Plan.Worker
	Factory bool // Plan.Factory
	Names   bool // aldente-names: Plan.Names
	Resolv  bool // a command's resolv.conf: Plan.ResolvText
	Link    bool // who is on the link of the host's: Scope of a family
	Asks    bool // who asks a resolver that aldente-names answers for: Plan.Factory.Resolvers
}

// Any tells whether it concerns anybody.
func (d *Difference) Any() bool { return *d != Difference{} }

// Difference compares p with what has come of it by Again.
func (p *Plan) Difference(q *Plan) (d Difference) {
	d.Guest = p.Tap.Configure && !p.Tap.Same(&q.Tap)
	d.Worker = p.Worker != q.Worker
	a, b := &p.Factory, &q.Factory
	d.Link = a.V4.Scope != b.V4.Scope || a.V6.Scope != b.V6.Scope
	d.Asks = !slices.Equal(a.Resolvers, b.Resolvers)
	d.Factory = a.V4 != b.V4 || a.V6 != b.V6 || a.NoLoopback6 != b.NoLoopback6 || d.Asks
	if p.Names != nil && q.Names != nil {
		d.Names = !slices.Equal(p.Names.Resolvers, q.Names.Resolvers) || p.Names.Config != q.Names.Config
	}
	d.Resolv = string(p.ResolvText()) != string(q.ResolvText())
	return d
}

// Lost are the addresses that the host had and has no more.
func (p *Plan) Lost(q *Plan) (gone []netip.Addr) {
	has := make(map[netip.Addr]bool, len(q.host.Network.Own)) // some hosts have thousands
	for _, a := range q.host.Network.Own {
		has[a] = true
	}
	for _, a := range p.host.Network.Own {
		if !has[a] {
			gone = append(gone, a)
		}
	}
	return gone
}

// Resolvers are those of the host that the plan was made of.
func (p *Plan) Resolvers() hostnet.Resolvers { return p.host.Resolvers }

// ResolvText is what a command's own resolv.conf has to say: ResolvConf, or where the
// host's would serve, that.
func (p *Plan) ResolvText() []byte {
	if p.ResolvConf == nil {
		return p.host.Resolvers.Text
	}
	return p.ResolvConf
}

// Changes says in lines what is different for the guest.
func (p *Plan) Changes(q *Plan) (lines []string) {
	for _, f := range []struct {
		name    string
		was, is *guestFamily
	}{{"IPv4", &p.net.v4, &q.net.v4}, {"IPv6", &p.net.v6, &q.net.v6}} {
		if was, is := f.was.text(), f.is.text(); f.is.enabled && was != is {
			lines = append(lines, fmt.Sprintf("%s is now %s, was %s", f.name, is, was))
		}
	}
	if was, is := p.Told(), q.Told(); !slices.Equal(was.Resolvers, is.Resolvers) || p.net.v4.dnsHost != q.net.v4.dnsHost || p.net.v6.dnsHost != q.net.v6.dnsHost {
		lines = append(lines, "resolvers are now "+strings.Join(resolverText(q), " "))
	}
	if lines == nil {
		lines = append(lines, "routes or further addresses")
	}
	return lines
}

// text is what a family is like, for people.
func (f *guestFamily) text() string {
	if f.local {
		return "not connected"
	}
	s := fmt.Sprintf("%s by %s", f.addr, f.link.Name)
	if f.gateway.IsValid() {
		s += " via " + f.gateway.String()
	}
	return s
}

func resolverText(p *Plan) (all []string) {
	for _, a := range p.host.Resolvers.Servers() {
		all = append(all, a.String())
	}
	if all == nil {
		return []string{"none"}
	}
	return all
}
