// SPDX-License-Identifier: Apache-2.0

package plan

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"

	"aldente/broker/agent"
	"aldente/broker/cli"
	"aldente/broker/hostnet"
)

// defaultMTU is the guest's MTU where none is asked for: the largest multiple
// of 8 below 64 KiB with room for an Ethernet header.
const defaultMTU = 65520

// minMTU6 is the least MTU with which an interface has IPv6, RFC 8200 section 5.
const minMTU6 = 1280

// guestNet is what the guest will see, settled from options and the host's
// network. The worker's configuration and the socket factory's are two views
// of it.
type guestNet struct {
	v4, v6 guestFamily
	linkLL netip.Addr // our link-local address
	search []string
	mtu    int
	tap    string // name of the guest's interface, where we make it

	noLoopback6 bool // the host has no ::1
}

// guestFamily is one address family of guestNet. Invalid addresses are absent.
type guestFamily struct {
	enabled         bool
	addr            netip.Prefix // the guest's
	fixed           bool         // given by -a: never learned from frames
	our             netip.Addr   // our address on the link
	gateway         netip.Addr   // the guest's default router
	mapHostLoopback netip.Addr
	mapGuestAddr    netip.Addr
	dnsForward      netip.Addr
	dnsHost         netip.Addr
	dnsGateway      bool         // dnsForward is mapHostLoopback, by our own choice
	dns             []netip.Addr // advertised
	locals          []netip.Addr // addresses that the guest has itself
	own             []netip.Addr // those, and the template's others, which it may give itself
	kept            []netip.Addr // addresses that the guest had, and the host still has elsewhere
	former          []netip.Addr // what addr was before, the last first; at most ipc.MaxFormer
	link            hostnet.Link
	scope           int  // index of the interface on which link-local addresses are; zero: that of link
	local           bool // the host has no route: addresses are link-local ones
}

// settle derives the guest's network. Notes are lines worth telling the user.
func settle(cfg *cli.Config, n *hostnet.Network, r hostnet.Resolvers) (g guestNet, notes []string, err error) {
	g.mtu = cfg.MTU
	if g.mtu < 0 {
		g.mtu = defaultMTU
	}
	g.v4 = family(cfg, &n.V4, true)
	g.v6 = family(cfg, &n.V6, false)
	g.v4.enabled = !cfg.IPv6Only && !n.V4.Unsupported
	g.v6.enabled = !cfg.IPv4Only && !n.V6.Unsupported && (g.mtu == 0 || g.mtu >= minMTU6)
	if !g.v4.enabled && !g.v6.enabled {
		return g, nil, errors.New("neither IPv4 nor IPv6 is available")
	}
	g.v4.our, g.v6.our = ourAddress4(&g.v4), ourAddress6(&g.v6, &n.V6)
	g.linkLL = g.v6.our
	if g.tap = cfg.NSIfName; g.tap == "" {
		g.tap = n.TapName()
	}
	g.noLoopback6 = !slices.Contains(n.Own, netip.IPv6Loopback())
	g.names(cfg, r)
	switch {
	case cfg.SearchNone:
	case len(cfg.Search) > 0:
		g.search = cfg.Search
	default:
		g.search = r.Search
	}
	if n.V4.Multiple && g.v4.enabled || n.V6.Multiple && g.v6.enabled {
		notes = append(notes, "several default routes: using the first; choose with -i")
	}
	if cfg.Personality == cli.Slirp && g.v4.mapHostLoopback.IsValid() {
		notes = append(notes, fmt.Sprintf("services on the host's loopback are within the guest's reach, at %v: --disable-host-loopback forbids it", g.v4.mapHostLoopback))
	}
	if n.V4.Local && g.v4.enabled && n.V6.Local && cfg.Personality != cli.Slirp {
		notes = append(notes, "no interface with a route: using link-local addresses")
	}
	return g, notes, nil
}

// family settles addresses of one family.
func family(cfg *cli.Config, h *hostnet.Family, v4 bool) guestFamily {
	f := guestFamily{addr: h.Address, gateway: h.Gateway, link: h.Link, scope: h.Scope, local: h.Local}
	if f.scope == 0 {
		f.scope = h.Link.Index
	}
	given, loop, guest, fwd := cfg.Gateway6, cfg.MapHostLoopback6, cfg.MapGuestAddr6, cfg.DNSForward6
	if v4 {
		given, loop, guest, fwd = cfg.Gateway4, cfg.MapHostLoopback4, cfg.MapGuestAddr4, cfg.DNSForward4
	}
	for _, p := range cfg.Addresses {
		if p.Addr().Is4() == v4 {
			f.addr, f.fixed = p, true
		}
	}
	if v4 && !f.fixed && cfg.Netmask > 0 && f.addr.IsValid() {
		f.addr = netip.PrefixFrom(f.addr.Addr(), cfg.Netmask)
	}
	if given.IsValid() {
		f.gateway = given
	}
	f.mapHostLoopback, f.mapGuestAddr, f.dnsForward = loop, guest, fwd
	if !loop.IsValid() && !cfg.NoMapGW {
		f.mapHostLoopback = f.gateway
	}
	if f.addr.IsValid() {
		f.locals = []netip.Addr{f.addr.Addr()}
	}
	if f.own = f.locals; !f.fixed {
		f.own = h.Locals
		if cfg.ConfigNet {
			f.locals = append(f.locals, h.Locals...)
		}
	}
	return f
}

// given is the address that -a gave, invalid if none.
func (f *guestFamily) given() netip.Prefix {
	if f.fixed {
		return f.addr
	}
	return netip.Prefix{}
}

// reach lets the guest's routes lead to the addresses that only we know.
func (f *guestFamily) reach(to *agent.Family) {
	if f.enabled {
		to.Reach(f.dnsForward)
		to.Reach(f.mapHostLoopback)
		to.Reach(f.mapGuestAddr)
		to.Reach(f.our)
	}
}

// ourAddress4 is what we are on the link: the guest's gateway.
func ourAddress4(f *guestFamily) netip.Addr {
	if f.gateway.IsValid() {
		return f.gateway
	}
	return hostnet.LocalGateway4
}

// ourAddress6 is link-local, since advertisements come from it: the gateway if
// that is, else the host's own.
func ourAddress6(f *guestFamily, h *hostnet.Family) netip.Addr {
	switch {
	case f.gateway.IsValid() && f.gateway.IsLinkLocalUnicast():
		return f.gateway
	case h.LinkLocal.IsValid():
		return h.LinkLocal
	}
	return hostnet.LocalGateway6
}
