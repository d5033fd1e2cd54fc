// SPDX-License-Identifier: Apache-2.0

package hostnet

import (
	"encoding/binary"
	"net/netip"

	"golang.org/x/sys/unix"

	"aldente/broker/hostnet/rtnl"
)

// Attribute types that golang.org/x/sys does not name.
const (
	ifaProto = 11 // IFA_PROTO, include/uapi/linux/if_addr.h
	rtaNhID  = 30 // RTA_NH_ID, include/uapi/linux/rtnetlink.h
)

// copied returns the template's addresses for --config-net: all that reach
// beyond the link and are not deprecated. A host whose only address is of link
// scope hands on that one, for a guest without any could not talk at all.
func (t *tables) copied(af uint8, index int, chosen netip.Prefix) []*addr {
	var all, fallback []*addr
	for i := range t.addrs {
		a := &t.addrs[i]
		switch {
		case a.family != af || a.index != index:
		case a.scope < unix.RT_SCOPE_LINK && a.flags&unix.IFA_F_DEPRECATED == 0:
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
	flags := a.flags&^hostAddrFlags | unix.IFA_F_PERMANENT
	if a.family == unix.AF_INET6 {
		flags |= unix.IFA_F_NODAD
	}
	b := make([]byte, unix.SizeofIfAddrmsg, len(a.body)+8)
	copy(b, a.body)
	b[ifaFlags] = uint8(flags)
	putInt32(b[ifaIndex:], 0)
	b = copyAttrs(b, a.body[unix.SizeofIfAddrmsg:], func(typ uint16) bool {
		switch typ {
		case unix.IFA_LABEL, unix.IFA_CACHEINFO, unix.IFA_FLAGS, ifaProto, unix.IFA_TARGET_NETNSID:
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
		if _, ok := heaviest(r.hops, index); !ok || linkOwn(r) {
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
	return r.body[rtmProto] == unix.RTPROT_KERNEL && r.dst.Addr().Is6() && r.dst.Addr().IsLinkLocalUnicast()
}

// connects tells whether a route came with one of the addresses. IPv6's need no
// such care: the kernel refuses a second identical route.
func connects(r *route, addrs []*addr) bool {
	if r.body[rtmProto] != unix.RTPROT_KERNEL || len(r.hops) != 1 || r.hops[0].gateway.IsValid() {
		return false
	}
	src, ok := addrFrom(unix.AF_INET, rtnl.Attr(r.body[unix.SizeofRtMsg:], unix.RTA_PREFSRC))
	if !ok {
		return false
	}
	for _, a := range addrs {
		if a.prefix.Addr() == src {
			return a.flags&unix.IFA_F_NOPREFIXROUTE == 0
		}
	}
	return false
}

// copyRoute returns the body of an RTM_NEWROUTE that makes the same route
// elsewhere, by one interface that the receiver fills in. Nexthops by other
// interfaces are dropped, nexthop objects replaced by what they stand for, and
// a preferred source left to the kernel, since -a may have replaced it.
func copyRoute(r *route, index int) []byte {
	b := make([]byte, unix.SizeofRtMsg, len(r.body)+16)
	copy(b, r.body)
	binary.NativeEndian.PutUint32(b[rtmFlags:], binary.NativeEndian.Uint32(b[rtmFlags:])&unix.RTNH_F_ONLINK)
	attrs := r.body[unix.SizeofRtMsg:]
	b = copyAttrs(b, attrs, routeAttr)
	mp := rtnl.Attr(attrs, unix.RTA_MULTIPATH)
	if mp == nil {
		return b
	}
	hops, n := copyHops(mp, index)
	switch n {
	case 0:
		return nil
	case 1:
		// A path with one hop is an ordinary route.
		flags := binary.NativeEndian.Uint32(b[rtmFlags:]) | uint32(hops[rtnhFlags])
		binary.NativeEndian.PutUint32(b[rtmFlags:], flags)
		return copyAttrs(b, hops[rtnhSize:], routeAttr)
	}
	return rtnl.AppendAttr(b, unix.RTA_MULTIPATH, hops)
}

// routeAttr tells whether an attribute of a route means the same elsewhere.
func routeAttr(typ uint16) bool {
	switch typ {
	case unix.RTA_PREFSRC, rtaNhID, unix.RTA_OIF, unix.RTA_IIF, unix.RTA_CACHEINFO,
		unix.RTA_MULTIPATH, unix.RTA_EXPIRES:
		return false
	}
	return true
}

// copyHops returns those nexthops that leave by the interface, with their state
// cleared, and their number.
func copyHops(b []byte, index int) (hops []byte, n int) {
	for {
		h, rest, ok := nextHop(b)
		if !ok {
			return hops, n
		}
		b = rest
		if int32At(h[rtnhIndex:]) != index {
			continue
		}
		start := len(hops)
		hops = append(hops, h...)
		hops[start+rtnhFlags] &= unix.RTNH_F_ONLINK
		putInt32(hops[start+rtnhIndex:], 0)
		for len(hops)%4 != 0 {
			hops = append(hops, 0)
		}
		n++
	}
}

// copyAttrs appends those attributes that keep says, byte for byte.
func copyAttrs(to, attrs []byte, keep func(typ uint16) bool) []byte {
	for {
		typ, val, rest, ok := rtnl.NextAttr(attrs)
		if !ok {
			return to
		}
		if keep(typ) {
			raw := binary.NativeEndian.Uint16(attrs[2:])
			to = rtnl.AppendAttr(to, raw, val)
		}
		attrs = rest
	}
}

// WithPrefixRoute returns an address of Family.Addresses that brings the route
// to its prefix along. It is for when Family.Routes are not copied: on the host
// such a route may have been made separately (IFA_F_NOPREFIXROUTE).
func WithPrefixRoute(body []byte) []byte {
	b := append([]byte(nil), body...)
	if v := rtnl.Attr(b[unix.SizeofIfAddrmsg:], unix.IFA_FLAGS); len(v) == 4 {
		binary.NativeEndian.PutUint32(v, binary.NativeEndian.Uint32(v)&^unix.IFA_F_NOPREFIXROUTE)
	}
	return b
}
