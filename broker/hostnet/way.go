// SPDX-License-Identifier: Apache-2.0

package hostnet

import (
	"net/netip"

	"golang.org/x/sys/unix"

	"aldente/broker/inet"
	"aldente/broker/rtnl"
	"aldente/ipc/sock"
)

// way is how the kernel would send to somewhere far away. Only where the main table has
// no default route it is asked: rules may name another table, a VRF has one of its own, a
// route may be for some sources only, or two halves stand for a whole.
type way struct {
	index   int // of the interface, zero: nobody knows
	gateway netip.Addr
	table   uint32
}

// by is the interface that it leads by, or another where it is not known. With a VRF, it is
// one of the VRF's.
func (w way) by(index int) int {
	if w.index != 0 {
		return w.index
	}
	return index
}

// far are addresses that are nobody's, and so are reached, if any address is, as all are
// that no route is about: for documentation (RFC 5737, RFC 3849, RFC 9637), of relays that
// are given up (RFC 7526), for benchmarks (RFC 5180). In a laboratory some may be
// somebody's, hence several.
var (
	far4 = []netip.Addr{netip.MustParseAddr("192.0.2.1"), netip.MustParseAddr("198.51.100.1"), netip.MustParseAddr("203.0.113.1"), netip.MustParseAddr("192.88.99.1")}
	far6 = []netip.Addr{netip.MustParseAddr("2001:db8::1"), netip.MustParseAddr("3fff::1"), netip.MustParseAddr("2001:2::1"), netip.MustParseAddr("2002::1")}
)

// widest is how long a route's prefix may be that is taken for part of a default route,
// as those of VPNs are which leave some networks out.
const widest = 8

// ask has the kernel look the way up, for a socket that is bound to the interface and the
// source, where these are given.
func (t *tables) ask(c *rtnl.Conn, af uint8, device Link, source netip.Addr) (best way, ok bool) {
	all := far4
	if af == unix.AF_INET6 {
		all = far6
	}
	shortest := widest + 1
	for _, to := range all {
		if _, bits, ok := t.lookUp(c, to, source, device.Index); ok && bits > widest {
			continue // it is somebody's: what is found from the source that leads there is not for all
		}
		from, ok := sourceTo(to, device.Name, source)
		if !ok {
			continue
		}
		if w, bits, ok := t.lookUp(c, to, from, device.Index); ok && bits < shortest {
			best, shortest = w, bits
			if bits == 0 {
				break
			}
		}
	}
	return best, shortest <= widest
}

// sourceTo is the address that the kernel gives a socket which is connected there. Nothing
// is sent.
func sourceTo(to netip.Addr, device string, source netip.Addr) (netip.Addr, bool) {
	const discard = 9 // RFC 863
	q := inet.Question{Path: inet.Path{Device: device}, Source: source, To: netip.AddrPortFrom(to, discard)}
	r := q.Dial()
	if r.Err != nil {
		return netip.Addr{}, false
	}
	defer unix.Close(r.FD)
	sa, err := sock.Getsockname(r.FD)
	if err != nil {
		return netip.Addr{}, false
	}
	switch sa := sa.(type) {
	case *unix.SockaddrInet4:
		return netip.AddrFrom4(sa.Addr), true
	case *unix.SockaddrInet6:
		return netip.AddrFrom16(sa.Addr), true
	}
	return netip.Addr{}, false
}

// lookUp asks for the route itself, not for what would come of it for that destination,
// and returns how long its prefix is.
func (t *tables) lookUp(c *rtnl.Conn, to, from netip.Addr, oif int) (w way, bits int, ok bool) {
	h := rtnl.RouteHeader{Family: unix.AF_INET6, DstLen: to.BitLen(), Flags: unix.RTM_F_FIB_MATCH}
	if to.Is4() { // IPv6 always tells the table, and refuses to be asked for it
		h.Family, h.Flags = unix.AF_INET, h.Flags|unix.RTM_F_LOOKUP_TABLE
	}
	if from.IsValid() {
		h.SrcLen = from.BitLen()
	}
	b := rtnl.AppendAttr(h.Body(), unix.RTA_DST, to.AsSlice())
	if from.IsValid() {
		b = rtnl.AppendAttr(b, unix.RTA_SRC, from.AsSlice())
	}
	if oif != 0 {
		b = rtnl.AppendAttrUint32(b, unix.RTA_OIF, uint32(oif))
	}
	found, err := c.Route(b)
	if err != nil {
		return w, 0, false
	}
	r := []route{routeOf(found)}
	if t.resolveNexthops(c, r) != nil {
		return w, 0, false
	}
	hop, ok := heaviest(r[0].hops, 0)
	if !ok || r[0].Type() != unix.RTN_UNICAST || hop.state == dead || hop.index == rtnl.Loopback {
		return w, 0, false
	}
	return way{index: hop.index, gateway: hop.gateway, table: r[0].Table()}, r[0].DstLen(), true
}
