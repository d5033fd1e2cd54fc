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
	weight  int // 1 to 256
	gateway netip.Addr
}

// route is one route of the main table.
type route struct {
	rtnl.Route // a copy of what the kernel has written
	dst        netip.Prefix
	hops       []hop // one, or several for multipath; none for blackhole and the like
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

// addRoute reads one RTM_NEWROUTE. Kernels without strict dumps answer with all
// tables, and those without IPv6 with IPv4's routes when asked for IPv6's.
func (t *tables) addRoute(to *[]route, af uint8, m rtnl.Message) {
	if m.Type != unix.RTM_NEWROUTE {
		return
	}
	theirs, ok := rtnl.RouteOf(m.Body)
	if !ok || theirs.Family() != af || theirs.Table() != unix.RT_TABLE_MAIN || theirs.Flags()&unix.RTM_F_CLONED != 0 {
		return
	}
	r := route{}
	r.Route, _ = rtnl.RouteOf(slices.Clone(m.Body))
	r.dst = r.Dst()
	if oif, ok := r.Out(); ok {
		r.hops = []hop{{index: oif, weight: 1, gateway: r.Gateway()}}
	} else {
		// A gateway of the other family, RTA_VIA, counts as none: the guest's
		// address family has no router to name.
		for h := range r.Hops().All() {
			r.hops = append(r.hops, hop{index: h.Index(), weight: h.Weight(), gateway: h.Gateway(af)})
		}
	}
	*to = append(*to, r)
}
