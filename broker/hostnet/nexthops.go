// SPDX-License-Identifier: Apache-2.0

package hostnet

import (
	"slices"

	"golang.org/x/sys/unix"

	"aldente/broker/rtnl"
)

// unresolved tells whether the kernel has named a route's nexthop object and not what
// it stands for, as it does with net.ipv4.nexthop_compat_mode=0.
func unresolved(r *route) bool {
	return len(r.hops) == 0 && r.Type() == unix.RTN_UNICAST && r.Nexthop() != 0
}

// resolveNexthops writes into routes what their nexthop objects stand for. These are
// asked for once, and only if a route needs them.
func (t *tables) resolveNexthops(c *rtnl.Conn, routes []route) error {
	if !slices.ContainsFunc(routes, func(r route) bool { return unresolved(&r) }) {
		return nil
	}
	if t.nexthops == nil {
		if err := t.readNexthops(c); err != nil {
			return err
		}
	}
	t.replaceNexthops(routes)
	return nil
}

func (t *tables) readNexthops(c *rtnl.Conn) error {
	return dump(c, unix.RTM_GETNEXTHOP, rtnl.NexthopBody(), func() { t.nexthops = map[uint32]rtnl.Nexthop{} }, t.addNexthop)
}

// addNexthop reads one RTM_NEWNEXTHOP.
func (t *tables) addNexthop(m rtnl.Message) {
	if m.Type != unix.RTM_NEWNEXTHOP {
		return
	}
	if n, ok := rtnl.NexthopOf(slices.Clone(m.Body)); ok {
		t.nexthops[n.ID()] = n
	}
}

func (t *tables) replaceNexthops(routes []route) {
	for i := range routes {
		if unresolved(&routes[i]) {
			routes[i] = routeOf(t.spelledOut(routes[i].Route))
		}
	}
}

// spelledOut is a route with paths in place of the nexthop object, as the kernel would
// have written it in compatible mode. What the object has besides (encapsulation) means
// nothing to a guest.
func (t *tables) spelledOut(r rtnl.Route) rtnl.Route {
	b := r.Attrs().AppendTo(r.Header(), func(typ uint16) bool { return typ != rtnl.RtaNhID })
	object, ok := t.nexthops[r.Nexthop()]
	if !ok {
		return bodyOf(b)
	}
	if index, ok := object.Out(); ok {
		b = rtnl.AppendAttrUint32(b, unix.RTA_OIF, uint32(index))
		if gw := object.Gateway(); gw.IsValid() {
			b = rtnl.AppendVia(b, r.Family(), gw)
		}
		to := bodyOf(b)
		to.SetFlags(r.Flags() | object.Flags()&0xff)
		return to
	}
	var hops rtnl.Hops
	for id, weight := range object.Group() {
		if member, ok := t.nexthops[id]; ok && len(hops) < maxHops {
			if index, ok := member.Out(); ok {
				hops = rtnl.AppendHop(hops, index, weight, uint8(member.Flags()), r.Family(), member.Gateway())
			}
		}
	}
	if hops != nil {
		b = rtnl.AppendAttr(b, unix.RTA_MULTIPATH, hops)
	}
	return bodyOf(b)
}

// maxHops bounds the bytes of a route's paths, for which the agent's records have room.
const maxHops = 2048

// bodyOf is a route that we have made, and that so is long enough.
func bodyOf(b []byte) rtnl.Route {
	r, _ := rtnl.RouteOf(b)
	return r
}
