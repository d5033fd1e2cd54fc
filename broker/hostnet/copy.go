// SPDX-License-Identifier: Apache-2.0

package hostnet

import (
	"net/netip"
	"slices"

	"golang.org/x/sys/unix"

	"aldente/broker/rtnl"
)

// copied returns the template's addresses for --config-net: all that reach
// beyond the link and are not deprecated. A host whose only address is of link
// scope hands on that one, for a guest without any could not talk at all.
func (t *tables) copied(af uint8, index int, chosen netip.Prefix) []*addr {
	var all, fallback []*addr
	for i := range t.addrs {
		a := &t.addrs[i]
		switch {
		case a.Family() != af || a.Index() != index:
		case a.Scope() < unix.RT_SCOPE_LINK && a.Flags()&unix.IFA_F_DEPRECATED == 0:
			all = append(all, a)
		case a.prefix == chosen:
			fallback = append(fallback, a)
		}
	}
	if all == nil {
		return fallback
	}
	return all
}

// Flags of an address that describe its life on the host, not what it is. The
// guest must neither repeat duplicate address detection, whose probe
// would meet the same address on the host, nor make temporary addresses of it.
const hostAddrFlags = unix.IFA_F_SECONDARY | unix.IFA_F_OPTIMISTIC | unix.IFA_F_DADFAILED |
	unix.IFA_F_TENTATIVE | unix.IFA_F_MANAGETEMPADDR | unix.IFA_F_STABLE_PRIVACY

// copyAddr returns the body of an RTM_NEWADDR that makes the same address
// elsewhere: for ever, not tied to a label of an interface that is called
// otherwise there.
func copyAddr(a *addr) []byte {
	flags := a.Flags()&^hostAddrFlags | unix.IFA_F_PERMANENT
	if a.Family() == unix.AF_INET6 {
		flags |= unix.IFA_F_NODAD
	}
	h := rtnl.AddrHeader{Family: a.Family(), PrefixLen: a.PrefixLen(), Scope: a.Scope(), Flags: flags}
	b := a.Attrs().AppendTo(h.Body(), func(typ uint16) bool {
		switch typ {
		case unix.IFA_LABEL, unix.IFA_CACHEINFO, unix.IFA_FLAGS, rtnl.IfaProto, unix.IFA_TARGET_NETNSID:
			return false
		}
		return true
	})
	return rtnl.AppendAttrUint32(b, unix.IFA_FLAGS, flags)
}

// copyRoutes returns the template's routes of the main table for --config-net,
// apart from those that come with its addresses. The route to the link's own
// link-local prefix is nobody's to copy.
func copyRoutes(routes []route, addrs []*addr, index int) (rest, connected [][]byte) {
	for i := range routes {
		r := &routes[i]
		if _, ok := heaviest(r.hops, index); !ok || r.Type() != unix.RTN_UNICAST || linkOwn(r) {
			continue
		}
		b := copyRoute(r, index)
		switch {
		case b == nil:
		case connects(r, addrs):
			connected = append(connected, b)
		default:
			rest = append(rest, b)
		}
	}
	return rest, connected
}

func linkOwn(r *route) bool {
	return r.Protocol() == unix.RTPROT_KERNEL && r.dst.Addr().Is6() && r.dst.Addr().IsLinkLocalUnicast()
}

// connects tells whether a route came with one of the addresses. IPv6's need no
// such care: the kernel refuses a second identical route.
func connects(r *route, addrs []*addr) bool {
	if r.Protocol() != unix.RTPROT_KERNEL || len(r.hops) != 1 || r.hops[0].gateway.IsValid() {
		return false
	}
	src, ok := r.Attrs().Addr(unix.AF_INET, unix.RTA_PREFSRC)
	if !ok {
		return false
	}
	for _, a := range addrs {
		if a.prefix.Addr() == src {
			return a.Flags()&unix.IFA_F_NOPREFIXROUTE == 0
		}
	}
	return false
}

// copyRoute returns the body of an RTM_NEWROUTE that makes the same route
// elsewhere, in the main table, by one interface that the receiver fills in. Nexthops by
// other interfaces are dropped, nexthop objects replaced by what they stand for, and
// a preferred source left to the kernel, since -a may have replaced it. For the same
// reason a route for some sources becomes one for all: the host goes by its own.
func copyRoute(r *route, index int) []byte {
	b := r.Attrs().AppendTo(r.Header(), routeAttr)
	copied := bodyOf(b)
	copied.SetMain()
	copied.SetFlags(copied.Flags() & unix.RTNH_F_ONLINK)
	all := r.Hops()
	if all == nil {
		return b
	}
	hops, n := copyHops(all, index)
	switch n {
	case 0:
		return nil
	case 1:
		// A path with one hop is an ordinary route.
		for h := range hops.All() {
			copied.SetFlags(copied.Flags() | uint32(h.Flags()))
			b = h.Attrs().AppendTo(b, routeAttr)
		}
		return b
	}
	return rtnl.AppendAttr(b, unix.RTA_MULTIPATH, hops)
}

// copyOthers returns routes to what the host reaches by other interfaces than the
// template, where no default route covers it. To the guest all that is on its link.
func copyOthers(routes []route, index int) (rest [][]byte) {
	for i := range routes {
		r := &routes[i]
		if _, ok := heaviest(r.hops, index); ok || r.dst.Bits() == 0 || r.dst.Addr().IsMulticast() {
			continue
		}
		if _, ok := outward(r, 0); !ok {
			continue
		}
		h := rtnl.RouteHeader{Family: r.Family(), DstLen: r.DstLen(), Table: unix.RT_TABLE_MAIN, Protocol: unix.RTPROT_BOOT,
			Scope: unix.RT_SCOPE_LINK, Type: unix.RTN_UNICAST}
		b := rtnl.AppendAttr(h.Body(), unix.RTA_DST, r.dst.Addr().AsSlice())
		rest = append(rest, rtnl.AppendAttrUint32(b, unix.RTA_PRIORITY, r.Priority()))
	}
	return rest
}

// routeAttr tells whether an attribute of a route means the same elsewhere.
func routeAttr(typ uint16) bool {
	switch typ {
	case unix.RTA_PREFSRC, rtnl.RtaNhID, unix.RTA_OIF, unix.RTA_IIF, unix.RTA_CACHEINFO,
		unix.RTA_MULTIPATH, unix.RTA_EXPIRES, unix.RTA_TABLE, unix.RTA_SRC,
		unix.RTA_ENCAP, unix.RTA_ENCAP_TYPE, unix.RTA_NEWDST: // between the host and its router
		return false
	}
	return true
}

// copyHops returns those nexthops that leave by the interface, with their state
// cleared, and their number.
func copyHops(all rtnl.Hops, index int) (hops rtnl.Hops, n int) {
	for h := range all.All() {
		if h.Index() != index {
			continue
		}
		hops, h = h.AppendTo(hops, routeAttr)
		h.SetFlags(h.Flags() & unix.RTNH_F_ONLINK)
		h.SetIndex(0)
		n++
	}
	return hops, n
}

// WithPrefixRoute returns an address of Family.Addresses that brings the route
// to its prefix along. It is for when Family.Routes are not copied: on the host
// such a route may have been made separately (IFA_F_NOPREFIXROUTE).
func WithPrefixRoute(body []byte) []byte {
	b := slices.Clone(body)
	if a, ok := rtnl.AddrOf(b); ok {
		a.SetFlags(a.Flags() &^ unix.IFA_F_NOPREFIXROUTE)
	}
	return b
}
