// SPDX-License-Identifier: Apache-2.0

package rtnl

import (
	"encoding/binary"
	"iter"
	"net/netip"

	"golang.org/x/sys/unix"
)

// Offsets in struct rtmsg, include/uapi/linux/rtnetlink.h.
const (
	rtmFamily = 0
	rtmDstLen = 1
	rtmSrcLen = 2
	rtmTOS    = 3
	rtmTable  = 4
	rtmProto  = 5
	rtmScope  = 6
	rtmType   = 7
	rtmFlags  = 8
)

// RtaNhID is RTA_NH_ID, include/uapi/linux/rtnetlink.h, which golang.org/x/sys does
// not name.
const RtaNhID = 30

// Route is a route, or what is asked about one: struct rtmsg and attributes, in
// place. Only RouteOf makes one that may be looked at.
type Route struct{ b []byte }

// RouteOf looks at the body of an RTM_*ROUTE message. It reports false if that is
// too short.
func RouteOf(body []byte) (Route, bool) {
	if len(body) < unix.SizeofRtMsg {
		return Route{}, false
	}
	return Route{body}, true
}

// RouteHeader is struct rtmsg, to make a body of.
type RouteHeader struct {
	Family                       uint8  // AF_*
	DstLen, SrcLen               int    // bits
	Table, Protocol, Scope, Type uint8  // RT_TABLE_*, RTPROT_*, RT_SCOPE_*, RTN_*
	Flags                        uint32 // RTNH_F_*, RTM_F_*
}

// Body returns a body without attributes.
func (h *RouteHeader) Body() []byte {
	b := make([]byte, unix.SizeofRtMsg, 96)
	b[rtmFamily], b[rtmDstLen], b[rtmSrcLen] = h.Family, uint8(h.DstLen), uint8(h.SrcLen)
	b[rtmTable], b[rtmProto], b[rtmScope], b[rtmType] = h.Table, h.Protocol, h.Scope, h.Type
	binary.NativeEndian.PutUint32(b[rtmFlags:], h.Flags)
	return b
}

// Family is AF_INET, AF_INET6 or another.
func (r Route) Family() uint8 { return r.b[rtmFamily] }

// DstLen is the length of the destination's prefix, in bits.
func (r Route) DstLen() int { return int(r.b[rtmDstLen]) }

// Protocol is who made it, RTPROT_*.
func (r Route) Protocol() uint8 { return r.b[rtmProto] }

// Type is RTN_*.
func (r Route) Type() uint8 { return r.b[rtmType] }

// Flags are RTM_F_* and RTNH_F_*.
func (r Route) Flags() uint32 { return binary.NativeEndian.Uint32(r.b[rtmFlags:]) }

// SetFlags changes the flags.
func (r Route) SetFlags(flags uint32) { binary.NativeEndian.PutUint32(r.b[rtmFlags:], flags) }

// SrcLen is the length of the source's prefix, in bits: above zero for routes that are
// for some sources only, which IPv6 alone has.
func (r Route) SrcLen() int { return int(r.b[rtmSrcLen]) }

// Src is the source's prefix, of SrcLen bits. It is not valid where that is zero.
func (r Route) Src() netip.Prefix {
	src, _ := r.Attrs().Addr(r.Family(), unix.RTA_SRC)
	if r.SrcLen() == 0 {
		return netip.Prefix{}
	}
	return netip.PrefixFrom(src, r.SrcLen())
}

// TOS is the class of traffic that it is for, zero: any.
func (r Route) TOS() uint8 { return r.b[rtmTOS] }

// Priority is the metric: of equal routes the lowest counts.
func (r Route) Priority() uint32 {
	v, _ := r.Attrs().Uint32(unix.RTA_PRIORITY)
	return v
}

// Preference is that of RFC 4191, which IPv6 routes of one priority have: -1, 0 or 1.
func (r Route) Preference() int {
	if v := r.Attrs().Get(unix.RTA_PREF); len(v) == 1 {
		switch v[0] {
		case prefHigh:
			return 1
		case prefLow:
			return -1
		}
	}
	return 0
}

// Values of RTA_PREF, include/uapi/linux/icmpv6.h.
const (
	prefHigh = 1
	prefLow  = 3
)

// SetMain puts it into the main table, for any source. RTA_TABLE and RTA_SRC are not
// changed.
func (r Route) SetMain() { r.b[rtmTable], r.b[rtmSrcLen] = unix.RT_TABLE_MAIN, 0 }

// Nexthop is the number of the nexthop object that it leads to, zero if to none.
func (r Route) Nexthop() uint32 {
	id, _ := r.Attrs().Uint32(RtaNhID)
	return id
}

// Table is the routing table that it is in.
func (r Route) Table() uint32 {
	if t, ok := r.Attrs().Uint32(unix.RTA_TABLE); ok {
		return t
	}
	return uint32(r.b[rtmTable])
}

// Dst is the destination, of a default route all addresses of the family. It is not
// valid for other families than IPv4 and IPv6.
func (r Route) Dst() netip.Prefix {
	dst, ok := r.Attrs().Addr(r.Family(), unix.RTA_DST)
	switch {
	case ok:
	case r.Family() == unix.AF_INET:
		dst = netip.IPv4Unspecified()
	case r.Family() == unix.AF_INET6:
		dst = netip.IPv6Unspecified()
	}
	return netip.PrefixFrom(dst, r.DstLen())
}

// Out is the interface that it leaves by, if that is one.
func (r Route) Out() (index int, ok bool) {
	v, ok := r.Attrs().Uint32(unix.RTA_OIF)
	return int(int32(v)), ok
}

// Gateway is the next hop's address, if it has one. RTA_VIA, a gateway of the other
// family (RFC 5549), is none.
func (r Route) Gateway() netip.Addr { return gateway(r.Family(), r.Attrs()) }

func gateway(family uint8, a Attrs) netip.Addr {
	gw, _ := a.Addr(family, unix.RTA_GATEWAY)
	return gw
}

// Hops are the paths of a route that has several, in place; nil for others.
func (r Route) Hops() Hops { return r.Attrs().Get(unix.RTA_MULTIPATH) }

// Header returns a copy without attributes.
func (r Route) Header() []byte { return append([]byte(nil), r.b[:unix.SizeofRtMsg]...) }

// Attrs are the attributes, in place.
func (r Route) Attrs() Attrs { return r.b[unix.SizeofRtMsg:] }

// Body is all of it, in place.
func (r Route) Body() []byte { return r.b }

// Offsets in struct rtnexthop, and its size.
const (
	rtnhLen   = 0
	rtnhFlags = 2
	rtnhHops  = 3
	rtnhIndex = 4
	rtnhSize  = 8
)

// Hops is the value of RTA_MULTIPATH: struct rtnexthop with attributes, one behind
// the other.
type Hops []byte

// next splits the first path off.
func (h Hops) next() (first Hop, rest Hops, ok bool) {
	if len(h) < rtnhSize {
		return Hop{}, h, false
	}
	n := int(binary.NativeEndian.Uint16(h[rtnhLen:]))
	if n < rtnhSize || n > len(h) {
		return Hop{}, h, false
	}
	return Hop{h[:n]}, h[min(align(n), len(h)):], true
}

// All yields the paths, up to the first that is no whole one.
func (h Hops) All() iter.Seq[Hop] {
	return func(yield func(Hop) bool) {
		for {
			first, rest, ok := h.next()
			if !ok || !yield(first) {
				return
			}
			h = rest
		}
	}
}

// Whole tells whether there are paths and nothing else, but for what is too short to
// be one.
func (h Hops) Whole() bool {
	for {
		var ok bool
		if _, h, ok = h.next(); !ok {
			return len(h) < rtnhSize
		}
	}
}

// Hop is one path of a route: struct rtnexthop and attributes, in place.
type Hop struct{ b []byte }

// Index is the interface that it leaves by.
func (h Hop) Index() int { return getInt(h.b[rtnhIndex:]) }

// SetIndex has it leave by another interface.
func (h Hop) SetIndex(index int) { putInt(h.b[rtnhIndex:], index) }

// Weight is 1 to 256.
func (h Hop) Weight() int { return int(h.b[rtnhHops]) + 1 }

// Flags are RTNH_F_*.
func (h Hop) Flags() uint8 { return h.b[rtnhFlags] }

// SetFlags changes the flags.
func (h Hop) SetFlags(flags uint8) { h.b[rtnhFlags] = flags }

// Gateway is as Route's.
func (h Hop) Gateway(family uint8) netip.Addr { return gateway(family, h.Attrs()) }

// Attrs are the attributes, in place.
func (h Hop) Attrs() Attrs { return h.b[rtnhSize:] }

// AppendTo appends a copy to the value of an RTA_MULTIPATH, with those attributes that
// keep says, and returns it too, in its place.
func (h Hop) AppendTo(to Hops, keep func(typ uint16) bool) (Hops, Hop) {
	start := len(to)
	to = h.Attrs().AppendTo(append(to, h.b[:rtnhSize]...), keep)
	end := len(to)
	binary.NativeEndian.PutUint16(to[start+rtnhLen:], uint16(end-start))
	for len(to)%unix.NLMSG_ALIGNTO != 0 {
		to = append(to, 0)
	}
	return to, Hop{to[start:end]}
}
