// SPDX-License-Identifier: Apache-2.0

package rtnl

import (
	"encoding/binary"

	"golang.org/x/sys/unix"
)

// Offsets in struct ifinfomsg, include/uapi/linux/rtnetlink.h.
const (
	ifiIndex  = 4
	ifiFlags  = 8
	ifiChange = 12
)

// Loopback is the index of lo in every network namespace.
const Loopback = 1

// skipStats is RTEXT_FILTER_SKIP_STATS, include/uapi/linux/rtnetlink.h. Without
// statistics an answer about a link is a quarter as long.
const skipStats = 1 << 3

// Link is an interface: struct ifinfomsg and attributes, in place. Only LinkOf makes
// one that may be looked at.
type Link struct{ b []byte }

// LinkOf looks at the body of an RTM_*LINK message. It reports false if that is too
// short.
func LinkOf(body []byte) (Link, bool) {
	if len(body) < unix.SizeofIfInfomsg {
		return Link{}, false
	}
	return Link{body}, true
}

// LinkHeader is struct ifinfomsg, to make a body of.
type LinkHeader struct {
	Index  int    // of the interface, zero: a new one
	Flags  uint32 // IFF_*
	Change uint32 // which of the flags count
}

// Body returns a body without attributes.
func (h *LinkHeader) Body() []byte {
	b := make([]byte, unix.SizeofIfInfomsg)
	putInt(b[ifiIndex:], h.Index)
	binary.NativeEndian.PutUint32(b[ifiFlags:], h.Flags)
	binary.NativeEndian.PutUint32(b[ifiChange:], h.Change)
	return b
}

// Index is the interface's number in its namespace.
func (l Link) Index() int { return getInt(l.b[ifiIndex:]) }

// Flags are IFF_*.
func (l Link) Flags() uint32 { return binary.NativeEndian.Uint32(l.b[ifiFlags:]) }

// Name is its name, empty if it has none.
func (l Link) Name() string { return unix.ByteSliceToString(l.Attrs().Get(unix.IFLA_IFNAME)) }

// MAC is the link's address, zero if it has none of six bytes.
func (l Link) MAC() (mac [6]byte) {
	if v := l.Attrs().Get(unix.IFLA_ADDRESS); len(v) == len(mac) {
		copy(mac[:], v)
	}
	return mac
}

// Attrs are the attributes, in place.
func (l Link) Attrs() Attrs { return l.b[unix.SizeofIfInfomsg:] }

// LinkNamed asks for the interface of a name, which may be an alternative one.
// unix.ENODEV says that there is none.
func (c *Conn) LinkNamed(name string) (Link, error) {
	attr := uint16(unix.IFLA_IFNAME)
	if len(name) >= unix.IFNAMSIZ {
		attr = unix.IFLA_ALT_IFNAME
	}
	return c.link(appendName((&LinkHeader{}).Body(), attr, name))
}

// LinkAt asks for the interface of an index.
func (c *Conn) LinkAt(index int) (Link, error) { return c.link((&LinkHeader{Index: index}).Body()) }

func (c *Conn) link(body []byte) (Link, error) {
	b, err := c.Get(unix.RTM_GETLINK, AppendAttrUint32(body, unix.IFLA_EXT_MASK, skipStats))
	if err != nil {
		return Link{}, err
	}
	l, ok := LinkOf(b)
	if !ok {
		return Link{}, errShort
	}
	return l, nil
}
