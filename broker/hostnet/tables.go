// SPDX-License-Identifier: Apache-2.0

package hostnet

import (
	"encoding/binary"
	"net/netip"

	"golang.org/x/sys/unix"

	"aldente/broker/hostnet/rtnl"
)

// Offsets in struct ifaddrmsg (include/uapi/linux/if_addr.h), struct rtmsg and
// struct ifinfomsg (include/uapi/linux/rtnetlink.h), struct rtnexthop.
const (
	ifaPrefixLen = 1
	ifaFlags     = 2
	ifaScope     = 3
	ifaIndex     = 4

	rtmDstLen = 1
	rtmTable  = 4
	rtmProto  = 5
	rtmType   = 7
	rtmFlags  = 8

	ifiIndex = 4

	rtnhSize   = 8
	rtnhFlags  = 2
	rtnhHops   = 3
	rtnhIndex  = 4
	loopbackIf = 1 // index of lo in every network namespace
)

// addr is one address of the host.
type addr struct {
	family uint8
	scope  uint8
	flags  uint32 // IFA_F_*
	index  int
	prefix netip.Prefix // local address with the prefix length
	body   []byte
}

// hop is one way out of a route.
type hop struct {
	index   int
	weight  int // 1 to 256
	gateway netip.Addr
}

// route is one route of the main table.
type route struct {
	dst  netip.Prefix
	hops []hop // one, or several for multipath; none for blackhole and the like
	typ  uint8
	body []byte
}

// tables is what the kernel says, in its order.
type tables struct {
	addrs            []addr
	routes4, routes6 []route
}

func (t *tables) own() []netip.Addr {
	own := make([]netip.Addr, 0, len(t.addrs))
	for i := range t.addrs {
		own = append(own, t.addrs[i].prefix.Addr())
	}
	return own
}

// addAddr reads one RTM_NEWADDR.
func (t *tables) addAddr(m rtnl.Message) {
	if m.Type != unix.RTM_NEWADDR || len(m.Body) < unix.SizeofIfAddrmsg {
		return
	}
	b := append([]byte(nil), m.Body...)
	a := addr{
		family: b[0],
		scope:  b[ifaScope],
		flags:  uint32(b[ifaFlags]),
		index:  int32At(b[ifaIndex:]),
		body:   b,
	}
	attrs := b[unix.SizeofIfAddrmsg:]
	if f, ok := rtnl.AttrUint32(attrs, unix.IFA_FLAGS); ok {
		a.flags = f
	}
	// On a point-to-point link IFA_ADDRESS is the peer's, IFA_LOCAL ours.
	local := rtnl.Attr(attrs, unix.IFA_LOCAL)
	if local == nil {
		local = rtnl.Attr(attrs, unix.IFA_ADDRESS)
	}
	ip, ok := addrFrom(a.family, local)
	if !ok {
		return
	}
	a.prefix = netip.PrefixFrom(ip, int(b[ifaPrefixLen]))
	t.addrs = append(t.addrs, a)
}

// addRoute reads one RTM_NEWROUTE. Kernels without strict dumps answer with all
// tables, and those without IPv6 with IPv4's routes when asked for IPv6's.
func (t *tables) addRoute(to *[]route, af uint8, m rtnl.Message) {
	if m.Type != unix.RTM_NEWROUTE || len(m.Body) < unix.SizeofRtMsg || m.Body[0] != af {
		return
	}
	attrs := m.Body[unix.SizeofRtMsg:]
	table := uint32(m.Body[rtmTable])
	if v, ok := rtnl.AttrUint32(attrs, unix.RTA_TABLE); ok {
		table = v
	}
	if table != unix.RT_TABLE_MAIN || binary.NativeEndian.Uint32(m.Body[rtmFlags:])&unix.RTM_F_CLONED != 0 {
		return
	}
	b := append([]byte(nil), m.Body...)
	attrs = b[unix.SizeofRtMsg:]
	r := route{typ: b[rtmType], body: b}
	dst, ok := addrFrom(af, rtnl.Attr(attrs, unix.RTA_DST))
	if !ok {
		dst = unspecified(af)
	}
	r.dst = netip.PrefixFrom(dst, int(b[rtmDstLen]))
	if oif, ok := rtnl.AttrUint32(attrs, unix.RTA_OIF); ok {
		r.hops = []hop{{index: int(int32(oif)), weight: 1, gateway: gatewayOf(af, attrs)}}
	} else if mp := rtnl.Attr(attrs, unix.RTA_MULTIPATH); mp != nil {
		r.hops = hopsOf(af, mp)
	}
	*to = append(*to, r)
}

// hopsOf reads RTA_MULTIPATH: a sequence of struct rtnexthop with attributes.
func hopsOf(af uint8, b []byte) []hop {
	var hops []hop
	for {
		h, rest, ok := nextHop(b)
		if !ok {
			return hops
		}
		hops = append(hops, hop{
			index:   int32At(h[rtnhIndex:]),
			weight:  int(h[rtnhHops]) + 1,
			gateway: gatewayOf(af, h[rtnhSize:]),
		})
		b = rest
	}
}

// nextHop splits the first struct rtnexthop, with its attributes, off b.
func nextHop(b []byte) (h, rest []byte, ok bool) {
	if len(b) < rtnhSize {
		return nil, b, false
	}
	n := int(binary.NativeEndian.Uint16(b))
	if n < rtnhSize || n > len(b) {
		return nil, b, false
	}
	return b[:n], b[min((n+3)&^3, len(b)):], true
}

// gatewayOf returns the next hop's address. RTA_VIA, a gateway of the other
// family (RFC 5549), counts as a route without gateway: the guest's address
// family has no router to name.
func gatewayOf(af uint8, attrs []byte) netip.Addr {
	gw, _ := addrFrom(af, rtnl.Attr(attrs, unix.RTA_GATEWAY))
	return gw
}

func addrFrom(af uint8, b []byte) (netip.Addr, bool) {
	switch {
	case af == unix.AF_INET && len(b) == 4:
		return netip.AddrFrom4([4]byte(b)), true
	case af == unix.AF_INET6 && len(b) == 16:
		return netip.AddrFrom16([16]byte(b)), true
	}
	return netip.Addr{}, false
}

func unspecified(af uint8) netip.Addr {
	if af == unix.AF_INET {
		return netip.IPv4Unspecified()
	}
	return netip.IPv6Unspecified()
}

func int32At(b []byte) int { return int(int32(binary.NativeEndian.Uint32(b))) }

func putInt32(b []byte, v int) { binary.NativeEndian.PutUint32(b, uint32(int32(v))) }
