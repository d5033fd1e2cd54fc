// SPDX-License-Identifier: Apache-2.0

package hostnet

import (
	"net/netip"
	"slices"

	"golang.org/x/sys/unix"

	"aldente/broker/rtnl"
)

// derive chooses template, address, gateway and what is to be copied for one
// family. index forces the template; zero leaves the choice to the routes. w is what the
// kernel said where the main table says nothing. Of the link only the index is filled in.
func (t *tables) derive(af uint8, index int, w way) Family {
	routes := *t.routes(af)
	var f Family
	everywhere := false
	if index == 0 {
		index, f.Multiple = template(routes)
		everywhere = defaultOf(routes, 0) == nil
	}
	if index != 0 {
		f.Link.Index = index
		f.Gateway, f.Default = w.gateway, w.index != 0
		if best := defaultOf(routes, index); best != nil && w.index == 0 {
			hop, _ := heaviest(best.hops, index)
			f.Gateway, f.Default = hop.gateway, true
		}
		f.Address = t.address(af, index)
		addrs := t.copied(af, index, f.Address)
		for _, a := range addrs {
			f.Addresses = append(f.Addresses, copyAddr(a))
			f.Locals = append(f.Locals, a.prefix.Addr())
		}
		f.Routes, f.Connected = copyRoutes(routes, addrs, index)
		if everywhere {
			f.Routes = append(f.Routes, copyOthers(routes, index)...)
		}
		if af == unix.AF_INET6 {
			f.LinkLocal = t.linkLocal(index)
			// The kernel lists the newest first: added in this order, the guest's
			// list is the host's, which matters where it chooses a source.
			slices.Reverse(f.Addresses)
		}
	}
	if !f.Address.IsValid() {
		f.local(af)
	}
	return f
}

// local puts the link-local defaults in place of what the host does not have.
// A gateway that the host does have for IPv6 stays: with a link-local
// address alone the guest reaches it as well.
func (f *Family) local(af uint8) {
	f.Local = true
	f.Addresses, f.Locals, f.Routes, f.Connected = nil, nil, nil, nil
	if af == unix.AF_INET {
		f.Address, f.Gateway = LocalAddress4, LocalGateway4
	} else if !f.Gateway.IsLinkLocalUnicast() {
		f.Gateway = LocalGateway6
	}
}

// template returns the index of the interface to imitate: that of the first
// default route, else the first with any route; and whether there were several
// default routes to choose from. Loopback and routes to link-local destinations
// say nothing about the network outside.
func template(routes []route) (index int, multiple bool) {
	if best := defaultOf(routes, 0); best != nil {
		hop, _ := heaviest(best.hops, 0)
		n := 0
		for i := range routes {
			if isDefault(&routes[i], 0) {
				n++
			}
		}
		return hop.index, n > 1
	}
	for i := range routes {
		if h, ok := outward(&routes[i], 0); ok && routes[i].dst.Bits() != 0 && !routes[i].dst.Addr().IsMulticast() {
			return h.index, false
		}
	}
	return 0, false
}

// outward returns how a route leads to the network outside, by the interface if index is
// not zero. What is dead leads nowhere.
func outward(r *route, index int) (hop, bool) {
	h, ok := heaviest(r.hops, index)
	return h, ok && r.Type() == unix.RTN_UNICAST && h.state != dead && h.index != rtnl.Loopback && !r.dst.Addr().IsLinkLocalUnicast()
}

// isDefault tells whether a route is a default one, for traffic of any class, though not
// of any source, by the interface if index is not zero.
func isDefault(r *route, index int) bool {
	_, ok := outward(r, index)
	return ok && r.dst.Bits() == 0 && (r.TOS() == 0 || r.Family() != unix.AF_INET)
}

// defaultOf returns the default route that counts: one for any source before those for
// some, the lowest metric, the preferred, the first. nil: there is none.
func defaultOf(routes []route, index int) (best *route) {
	for i := range routes {
		if r := &routes[i]; isDefault(r, index) && (best == nil || before(r, best)) {
			best = r
		}
	}
	return best
}

func before(a, b *route) bool {
	switch {
	case (a.SrcLen() == 0) != (b.SrcLen() == 0):
		return a.SrcLen() == 0
	case a.Priority() != b.Priority():
		return a.Priority() < b.Priority()
	}
	return a.Preference() > b.Preference()
}

// heaviest returns the best of the hops, of those that leave by the interface if index is
// not zero: alive, of the highest weight, the first.
func heaviest(hops []hop, index int) (best hop, ok bool) {
	for _, h := range hops {
		if index != 0 && h.index != index {
			continue
		}
		if !ok || h.state < best.state || h.state == best.state && h.weight > best.weight {
			best, ok = h, true
		}
	}
	return best, ok
}

// address returns the guest's address: the first with the longest prefix that
// is not deprecated and, for IPv6, reaches beyond the link.
func (t *tables) address(af uint8, index int) netip.Prefix {
	var best netip.Prefix
	for i := range t.addrs {
		a := &t.addrs[i]
		if a.Family() != af || a.Index() != index || a.Flags()&unix.IFA_F_DEPRECATED != 0 ||
			af == unix.AF_INET6 && a.Scope() >= unix.RT_SCOPE_LINK {
			continue
		}
		if !best.IsValid() || a.prefix.Bits() > best.Bits() {
			best = a.prefix
		}
	}
	return best
}

// linkLocal returns the interface's link-local IPv6 address.
func (t *tables) linkLocal(index int) netip.Addr {
	for i := range t.addrs {
		a := &t.addrs[i]
		if a.Family() == unix.AF_INET6 && a.Index() == index && a.prefix.Addr().IsLinkLocalUnicast() {
			return a.prefix.Addr()
		}
	}
	return netip.Addr{}
}
