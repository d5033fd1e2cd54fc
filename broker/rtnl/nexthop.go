// SPDX-License-Identifier: Apache-2.0

package rtnl

import (
	"encoding/binary"
	"iter"
	"net/netip"

	"golang.org/x/sys/unix"
)

// Offsets in struct nhmsg, include/uapi/linux/nexthop.h, and its size.
const (
	nhFamily = 0
	nhFlags  = 4
	nhSize   = 8
)

// Offsets in struct nexthop_grp, include/uapi/linux/nexthop.h, and its size. The
// weight's high byte is zero on kernels before 6.12.
const (
	grpID     = 0
	grpWeight = 4
	grpHigh   = 5
	grpSize   = 8
)

// NexthopBody returns the body of a request for all nexthop objects.
func NexthopBody() []byte { return make([]byte, nhSize) }

// Nexthop is a nexthop object: struct nhmsg and attributes, in place. Only NexthopOf
// makes one that may be looked at.
type Nexthop struct{ b []byte }

// NexthopOf looks at the body of an RTM_*NEXTHOP message. It reports false if that is
// too short.
func NexthopOf(body []byte) (Nexthop, bool) {
	if len(body) < nhSize {
		return Nexthop{}, false
	}
	return Nexthop{body}, true
}

// ID is the object's number, by which routes name it; zero if it has none.
func (n Nexthop) ID() uint32 {
	id, _ := n.Attrs().Uint32(unix.NHA_ID)
	return id
}

// Family is the gateway's, AF_INET or AF_INET6; of a group AF_UNSPEC.
func (n Nexthop) Family() uint8 { return n.b[nhFamily] }

// Flags are RTNH_F_*.
func (n Nexthop) Flags() uint32 { return binary.NativeEndian.Uint32(n.b[nhFlags:]) }

// Out is the interface that it leaves by, if that is one.
func (n Nexthop) Out() (index int, ok bool) {
	v, ok := n.Attrs().Uint32(unix.NHA_OIF)
	return int(int32(v)), ok
}

// Gateway is the router's address, of Family, if there is one.
func (n Nexthop) Gateway() netip.Addr {
	gw, _ := n.Attrs().Addr(n.Family(), unix.NHA_GATEWAY)
	return gw
}

// Group yields the members of a group, by number and weight (1 and more); nothing for
// others.
func (n Nexthop) Group() iter.Seq2[uint32, int] {
	return func(yield func(uint32, int) bool) {
		for b := n.Attrs().Get(unix.NHA_GROUP); len(b) >= grpSize; b = b[grpSize:] {
			weight := int(b[grpWeight]) + int(b[grpHigh])<<8 + 1
			if !yield(binary.NativeEndian.Uint32(b[grpID:]), weight) {
				return
			}
		}
	}
}

// Attrs are the attributes, in place.
func (n Nexthop) Attrs() Attrs { return n.b[nhSize:] }

// AppendVia appends a gateway to a route or a path of the family: RTA_GATEWAY, or
// RTA_VIA if it is of the other family (RFC 5549).
func AppendVia(b []byte, family uint8, gateway netip.Addr) []byte {
	of := uint16(unix.AF_INET6)
	if gateway.Is4() {
		of = unix.AF_INET
	}
	if of == uint16(family) {
		return AppendAttr(b, unix.RTA_GATEWAY, gateway.AsSlice())
	}
	return AppendAttr(b, unix.RTA_VIA, append(binary.NativeEndian.AppendUint16(nil, of), gateway.AsSlice()...))
}

// AppendHop appends a path to the value of an RTA_MULTIPATH: by an interface, with a
// weight of 1 to 256, RTNH_F_* flags and a gateway of its own, if that is valid.
func AppendHop(to Hops, index, weight int, flags uint8, family uint8, gateway netip.Addr) Hops {
	start := len(to)
	to = append(to, make([]byte, rtnhSize)...)
	if gateway.IsValid() {
		to = AppendVia(to, family, gateway)
	}
	h := Hop{to[start:]}
	binary.NativeEndian.PutUint16(h.b[rtnhLen:], uint16(len(h.b)))
	h.b[rtnhHops] = uint8(max(1, min(weight, 256)) - 1)
	h.SetFlags(flags)
	h.SetIndex(index)
	return to
}
