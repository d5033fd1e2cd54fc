// SPDX-License-Identifier: Apache-2.0

package hostnet

import (
	"net/netip"
	"slices"

	"golang.org/x/sys/unix"

	"aldente/broker/rtnl"
)

// derive chooses template, address, gateway and what is to be copied for one
// family. index forces the template; zero leaves the choice to the routes. Of
// the link only the index is filled in.
func (t *tables) derive(af uint8, index int) Family {
	routes := t.routes4
	if af == unix.AF_INET6 {
		routes = t.routes6
	}
	var f Family
	if index == 0 {
		index, f.Multiple = template(routes)
	}
	if index != 0 {
		f.Link.Index = index
		f.Gateway = gateway(routes, index)
		f.Address = t.address(af, index)
		addrs := t.copied(af, index, f.Address)
		for _, a := range addrs {
			f.Addresses = append(f.Addresses, copyAddr(a))
			f.Locals = append(f.Locals, a.prefix.Addr())
		}
		f.Routes, f.Connected = copyRoutes(routes, addrs, index)
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
	defaults, any := 0, 0
	for i := range routes {
		r := &routes[i]
		h, ok := heaviest(r.hops, 0)
		if !ok || r.Type() != unix.RTN_UNICAST || h.index == rtnl.Loopback || r.dst.Addr().IsLinkLocalUnicast() {
			continue
		}
		if r.dst.Bits() == 0 {
			if defaults++; defaults == 1 {
				index = h.index
			}
		} else if any == 0 && !r.dst.Addr().IsMulticast() {
			any = h.index
		}
	}
	if defaults == 0 {
		return any, false
	}
	return index, defaults > 1
}

// gateway returns the router of the interface's first default route.
func gateway(routes []route, index int) netip.Addr {
	for i := range routes {
		r := &routes[i]
		if r.dst.Bits() != 0 || r.Type() != unix.RTN_UNICAST {
			continue
		}
		if h, ok := heaviest(r.hops, index); ok {
			return h.gateway
		}
	}
	return netip.Addr{}
}

// heaviest returns the first hop of the highest weight, of those that leave by
// the interface if index is not zero.
func heaviest(hops []hop, index int) (hop, bool) {
	var best hop
	for _, h := range hops {
		if (index == 0 || h.index == index) && h.weight > best.weight {
			best = h
		}
	}
	return best, best.weight > 0
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
