// SPDX-License-Identifier: Apache-2.0

package hostnet

import (
	"net/netip"
	"slices"

	"golang.org/x/sys/unix"

	"aldente/broker/rtnl"
)

// addr is one address of the host.
type addr struct {
	rtnl.Addr              // a copy of what the kernel has written
	prefix    netip.Prefix // local address with the prefix length
}

// hop is one way out of a route.
type hop struct {
	index   int
	weight  int // 1 and more
	gateway netip.Addr
	state   int // alive, down or dead
}

// States of a hop, the better one first. Of a dead one the kernel makes no use; one that is
// down is used where there is no other.
const (
	alive = iota
	down
	dead
)

func stateOf(flags uint32) int {
	switch {
	case flags&unix.RTNH_F_DEAD != 0:
		return dead
	case flags&unix.RTNH_F_LINKDOWN != 0:
		return down
	}
	return alive
}

// route is one route of a table.
type route struct {
	rtnl.Route // a copy of what the kernel has written
	dst        netip.Prefix
	hops       []hop // one, or several for multipath; none for blackhole and the like
}

// tables is what the kernel says, in its order. Routes are those of the main table,
// and behind them those of the table that has the default route, if that is another.
type tables struct {
	addrs            []addr
	routes4, routes6 []route
	nexthops         map[uint32]rtnl.Nexthop // nil: no route needs them
}

func (t *tables) routes(af uint8) *[]route {
	if af == unix.AF_INET6 {
		return &t.routes6
	}
	return &t.routes4
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
	if m.Type != unix.RTM_NEWADDR {
		return
	}
	a, ok := rtnl.AddrOf(slices.Clone(m.Body))
	if !ok {
		return
	}
	ip, ok := a.Local()
	if !ok {
		return
	}
	t.addrs = append(t.addrs, addr{a, netip.PrefixFrom(ip, a.PrefixLen())})
}

// addRoute reads one RTM_NEWROUTE of a table. Kernels without strict dumps answer with
// all tables, and those without IPv6 with IPv4's routes when asked for IPv6's.
func (t *tables) addRoute(to *[]route, af uint8, table uint32, m rtnl.Message) {
	if m.Type != unix.RTM_NEWROUTE {
		return
	}
	theirs, ok := rtnl.RouteOf(m.Body)
	if !ok || theirs.Family() != af || theirs.Table() != table || theirs.Flags()&unix.RTM_F_CLONED != 0 {
		return
	}
	r, _ := rtnl.RouteOf(slices.Clone(m.Body))
	*to = append(*to, routeOf(r))
}

// routeOf looks at where a route leads.
func routeOf(r rtnl.Route) route {
	to := route{Route: r, dst: r.Dst()}
	if oif, ok := r.Out(); ok {
		to.hops = []hop{{index: oif, weight: 1, gateway: r.Gateway(), state: stateOf(r.Flags())}}
		return to
	}
	// A gateway of the other family, RTA_VIA, counts as none: the guest's
	// address family has no router to name.
	for h := range r.Hops().All() {
		to.hops = append(to.hops, hop{index: h.Index(), weight: h.Weight(), gateway: h.Gateway(r.Family()), state: stateOf(uint32(h.Flags()))})
	}
	return to
}
