// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"

	"golang.org/x/sys/unix"

	"aldente/broker/rtnl"
)

// route is one route to be added.
type route struct {
	rtnl.Route
	onLink bool // may be retried with its gateway on the link
}

// bindAddress makes an address one of the interface.
func bindAddress(body []byte, index int) (rtnl.Addr, error) {
	a, ok := rtnl.AddrOf(body)
	if !ok {
		return a, &failure{"address record too short", unix.EBADMSG}
	}
	a.SetIndex(index)
	return a, nil
}

// bindRoute makes a route, or each path of it, go by the interface.
func bindRoute(body []byte, index int) (rtnl.Route, error) {
	r, ok := rtnl.RouteOf(body)
	if !ok {
		return r, &failure{"route record too short", unix.EBADMSG}
	}
	// An attribute cut short, or not padded, would take in the one that is
	// appended.
	if !r.Attrs().Whole() {
		return r, &failure{"route record malformed", unix.EBADMSG}
	}
	hops := r.Hops()
	if hops == nil {
		r, _ = rtnl.RouteOf(rtnl.AppendAttrUint32(body, unix.RTA_OIF, uint32(index)))
		return r, nil
	}
	if !hops.Whole() {
		return r, &failure{"multipath route malformed", unix.EBADMSG}
	}
	for h := range hops.All() {
		h.SetIndex(index)
	}
	return r, nil
}

// addRoutes inserts the routes. A gateway must be reachable when its route
// comes, but the kernel lists routes in the order of their prefixes. So those
// that are refused are tried again as long as any of them is accepted.
func addRoutes(c *rtnl.Conn, routes []route) (warnings []error, err error) {
	for fallback := false; len(routes) > 0; {
		errs, err := c.Do(routeRequests(routes))
		if err != nil {
			return nil, err
		}
		var refused []route
		var why []error
		for i, err := range errs {
			if err != nil && !errors.Is(err, unix.EEXIST) {
				refused = append(refused, routes[i])
				why = append(why, err)
			}
		}
		if len(refused) == len(routes) {
			if fallback || !forceOnLink(refused) {
				return describe(refused, why), nil
			}
			fallback = true
		}
		routes = refused
	}
	return nil, nil
}

func routeRequests(routes []route) []rtnl.Request {
	reqs := make([]rtnl.Request, len(routes))
	for i := range routes {
		reqs[i] = rtnl.Request{Type: unix.RTM_NEWROUTE, Flags: unix.NLM_F_CREATE, Body: routes[i].Body()}
		if routes[i].Family() == unix.AF_INET {
			// Of equal routes the first counts: keep the host's order.
			reqs[i].Flags |= unix.NLM_F_APPEND
		}
	}
	return reqs
}

// forceOnLink marks the gateways that may be taken to be on the link, and tells
// whether there were any.
func forceOnLink(routes []route) bool {
	any := false
	for i := range routes {
		if routes[i].onLink {
			routes[i].SetFlags(routes[i].Flags() | unix.RTNH_F_ONLINK)
			any = true
		}
	}
	return any
}

func describe(routes []route, why []error) []error {
	var warnings []error
	for i := range routes {
		if i == maxWarnings {
			return append(warnings, &failure{fmt.Sprintf("cannot set %d more routes", len(routes)-i), nil})
		}
		warnings = append(warnings, &failure{"cannot set route to " + routeString(routes[i].Route), why[i]})
	}
	return warnings
}

// family is that of an address.
func family(a netip.Addr) uint8 {
	if a.Is6() {
		return unix.AF_INET6
	}
	return unix.AF_INET
}

// addressBody returns an RTM_NEWADDR body for an address of an interface. IPv6
// ones are not checked for duplicates: the host has the same.
func addressBody(p netip.Prefix, scope uint8, index int) []byte {
	h := rtnl.AddrHeader{Family: family(p.Addr()), PrefixLen: p.Bits(), Scope: scope, Flags: unix.IFA_F_PERMANENT, Index: index}
	if p.Addr().Is6() {
		h.Flags |= unix.IFA_F_NODAD
	}
	ip := p.Addr().AsSlice()
	b := rtnl.AppendAttr(rtnl.AppendAttr(h.Body(), unix.IFA_LOCAL, ip), unix.IFA_ADDRESS, ip)
	if p.Addr().Is4() && p.Bits() < 31 { // RFC 3021: two addresses leave none for it
		b = rtnl.AppendAttr(b, unix.IFA_BROADCAST, broadcast(p))
	}
	return b
}

// broadcast is the last address of an IPv4 prefix, as programs that ask an interface
// for it want to know it (SIOCGIFBRDADDR).
func broadcast(p netip.Prefix) []byte {
	ip := p.Addr().As4()
	return binary.BigEndian.AppendUint32(nil, binary.BigEndian.Uint32(ip[:])|^uint32(0)>>p.Bits())
}

// keptBody is addressBody for an address that nothing new is to come from: deprecated
// (RFC 4862 section 5.5.4), and on no network.
func keptBody(a netip.Addr) []byte {
	return rtnl.AppendLifetimes(addressBody(netip.PrefixFrom(a, a.BitLen()), unix.RT_SCOPE_UNIVERSE, 0), 0, rtnl.Forever)
}

// routeBody returns an RTM_NEWROUTE body for a route without interface.
func routeBody(af uint8, bits int, scope uint8) []byte {
	h := rtnl.RouteHeader{Family: af, DstLen: bits, Table: unix.RT_TABLE_MAIN, Protocol: unix.RTPROT_BOOT, Scope: scope, Type: unix.RTN_UNICAST}
	return h.Body()
}

// defaultRoute returns an RTM_NEWROUTE body for a default route without
// interface.
func defaultRoute(gateway netip.Addr) []byte {
	return rtnl.AppendAttr(routeBody(family(gateway), 0, unix.RT_SCOPE_UNIVERSE), unix.RTA_GATEWAY, gateway.AsSlice())
}

// linkRoute returns an RTM_NEWROUTE body for a route to one address on the link,
// without interface.
func linkRoute(to netip.Addr) []byte {
	return rtnl.AppendAttr(routeBody(family(to), to.BitLen(), unix.RT_SCOPE_LINK), unix.RTA_DST, to.AsSlice())
}

// addressString and routeString are for messages.
func addressString(a rtnl.Addr) string {
	ip, ok := a.Local()
	if !ok {
		return "?"
	}
	return fmt.Sprintf("%s/%d", ip, a.PrefixLen())
}

func routeString(r rtnl.Route) string {
	s := "default"
	if r.Attrs().Get(unix.RTA_DST) != nil {
		s = r.Dst().String()
	}
	if gw := r.Gateway(); gw.IsValid() {
		s += " via " + gw.String()
	}
	return s
}

func macString(m [6]byte) string {
	return fmt.Sprintf("%02x:%02x:%02x:%02x:%02x:%02x", m[0], m[1], m[2], m[3], m[4], m[5])
}
