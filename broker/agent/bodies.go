// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"

	"golang.org/x/sys/unix"

	"aldente/broker/hostnet/rtnl"
)

// Offsets in struct rtmsg and rtnexthop, include/uapi/linux/rtnetlink.h.
const (
	rtmDstLen = 1
	rtmFlags  = 8
	rtnhSize  = 8
	rtnhIndex = 4
)

// route is one route to be added.
type route struct {
	body   []byte
	onLink bool // may be retried with its gateway on the link
}

// bindAddress makes an address one of the interface.
func bindAddress(body []byte, index int) error {
	if len(body) < unix.SizeofIfAddrmsg {
		return &failure{"address record too short", unix.EBADMSG}
	}
	binary.NativeEndian.PutUint32(body[4:], uint32(index))
	return nil
}

// bindRoute makes a route, or each path of it, go by the interface.
func bindRoute(body []byte, index int) ([]byte, error) {
	if len(body) < unix.SizeofRtMsg {
		return nil, &failure{"route record too short", unix.EBADMSG}
	}
	// An attribute cut short, or not padded, would take in the one that is
	// appended.
	if len(body)%unix.NLMSG_ALIGNTO != 0 {
		return nil, &failure{"route record malformed", unix.EBADMSG}
	}
	for rest := body[unix.SizeofRtMsg:]; len(rest) > 0; {
		var ok bool
		if _, _, rest, ok = rtnl.NextAttr(rest); !ok {
			return nil, &failure{"route record malformed", unix.EBADMSG}
		}
	}
	hops := rtnl.Attr(body[unix.SizeofRtMsg:], unix.RTA_MULTIPATH)
	if hops == nil {
		return rtnl.AppendAttrUint32(body, unix.RTA_OIF, uint32(index)), nil
	}
	for len(hops) >= rtnhSize {
		n := int(binary.NativeEndian.Uint16(hops))
		if n < rtnhSize || n > len(hops) {
			return nil, &failure{"multipath route malformed", unix.EBADMSG}
		}
		binary.NativeEndian.PutUint32(hops[rtnhIndex:], uint32(index))
		hops = hops[min((n+3)&^3, len(hops)):]
	}
	return body, nil
}

// addRoutes inserts the routes. A gateway must be reachable when its route
// comes, and the kernel lists routes in the order of their prefixes: so the
// refused ones are repeated as long as that gets any of them in.
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
		reqs[i] = rtnl.Request{Type: unix.RTM_NEWROUTE, Flags: unix.NLM_F_CREATE, Body: routes[i].body}
		if routes[i].body[0] == unix.AF_INET {
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
			f := routes[i].body[rtmFlags:]
			binary.NativeEndian.PutUint32(f, binary.NativeEndian.Uint32(f)|unix.RTNH_F_ONLINK)
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
		warnings = append(warnings, &failure{"cannot set route to " + routeString(routes[i].body), why[i]})
	}
	return warnings
}

// addressBody returns an RTM_NEWADDR body for an address without index. IPv6
// ones are not checked for duplicates: the host has the same.
func addressBody(p netip.Prefix, scope uint8) []byte {
	b := make([]byte, unix.SizeofIfAddrmsg)
	flags := uint8(unix.IFA_F_PERMANENT)
	b[0] = unix.AF_INET
	if p.Addr().Is6() {
		b[0] = unix.AF_INET6
		flags |= unix.IFA_F_NODAD
	}
	b[1], b[2], b[3] = uint8(p.Bits()), flags, scope
	ip := p.Addr().AsSlice()
	b = rtnl.AppendAttr(b, unix.IFA_LOCAL, ip)
	return rtnl.AppendAttr(b, unix.IFA_ADDRESS, ip)
}

// defaultRoute returns an RTM_NEWROUTE body for a default route without
// interface.
func defaultRoute(gateway netip.Addr) []byte {
	b := make([]byte, unix.SizeofRtMsg)
	b[0] = unix.AF_INET
	if gateway.Is6() {
		b[0] = unix.AF_INET6
	}
	b[4], b[5], b[6], b[7] = unix.RT_TABLE_MAIN, unix.RTPROT_BOOT, unix.RT_SCOPE_UNIVERSE, unix.RTN_UNICAST
	return rtnl.AppendAttr(b, unix.RTA_GATEWAY, gateway.AsSlice())
}

// linkRoute returns an RTM_NEWROUTE body for a route to one address on the link,
// without interface.
func linkRoute(to netip.Addr) []byte {
	b := make([]byte, unix.SizeofRtMsg)
	b[0] = unix.AF_INET
	if to.Is6() {
		b[0] = unix.AF_INET6
	}
	b[rtmDstLen] = uint8(to.BitLen())
	b[4], b[5], b[6], b[7] = unix.RT_TABLE_MAIN, unix.RTPROT_BOOT, unix.RT_SCOPE_LINK, unix.RTN_UNICAST
	return rtnl.AppendAttr(b, unix.RTA_DST, to.AsSlice())
}

// addressString and routeString are for messages.
func addressString(body []byte) string {
	attrs := body[unix.SizeofIfAddrmsg:]
	ip := rtnl.Attr(attrs, unix.IFA_LOCAL)
	if ip == nil {
		ip = rtnl.Attr(attrs, unix.IFA_ADDRESS)
	}
	return prefixString(ip, body[1])
}

func routeString(body []byte) string {
	attrs := body[unix.SizeofRtMsg:]
	s := "default"
	if dst := rtnl.Attr(attrs, unix.RTA_DST); dst != nil {
		s = prefixString(dst, body[rtmDstLen])
	}
	if gw, ok := netip.AddrFromSlice(rtnl.Attr(attrs, unix.RTA_GATEWAY)); ok {
		s += " via " + gw.String()
	}
	return s
}

func prefixString(ip []byte, bits uint8) string {
	a, ok := netip.AddrFromSlice(ip)
	if !ok {
		return "?"
	}
	return fmt.Sprintf("%s/%d", a, bits)
}

func macString(m [6]byte) string {
	return fmt.Sprintf("%02x:%02x:%02x:%02x:%02x:%02x", m[0], m[1], m[2], m[3], m[4], m[5])
}
