// SPDX-License-Identifier: Apache-2.0

package rtnl

import (
	"encoding/binary"
	"net/netip"

	"golang.org/x/sys/unix"
)

// Offsets in struct ifaddrmsg, include/uapi/linux/if_addr.h.
const (
	ifaFamily    = 0
	ifaPrefixLen = 1
	ifaFlags     = 2
	ifaScope     = 3
	ifaIndex     = 4
)

// IfaProto is IFA_PROTO, include/uapi/linux/if_addr.h, which golang.org/x/sys does
// not name.
const IfaProto = 11

// Addr is an address of an interface: struct ifaddrmsg and attributes, in place. Only
// AddrOf makes one that may be looked at.
type Addr struct{ b []byte }

// AddrOf looks at the body of an RTM_*ADDR message. It reports false if that is too
// short.
func AddrOf(body []byte) (Addr, bool) {
	if len(body) < unix.SizeofIfAddrmsg {
		return Addr{}, false
	}
	return Addr{body}, true
}

// AddrHeader is struct ifaddrmsg, to make a body of.
type AddrHeader struct {
	Family, Scope uint8  // AF_*, RT_SCOPE_*
	PrefixLen     int    // bits
	Flags         uint32 // IFA_F_*; those that the header has no room for are for IFA_FLAGS
	Index         int    // of the interface
}

// Body returns a body without attributes.
func (h *AddrHeader) Body() []byte {
	b := make([]byte, unix.SizeofIfAddrmsg)
	b[ifaFamily], b[ifaPrefixLen], b[ifaFlags], b[ifaScope] = h.Family, uint8(h.PrefixLen), uint8(h.Flags), h.Scope
	putInt(b[ifaIndex:], h.Index)
	return b
}

// Family is AF_INET or AF_INET6.
func (a Addr) Family() uint8 { return a.b[ifaFamily] }

// PrefixLen is the length of the prefix, in bits.
func (a Addr) PrefixLen() int { return int(a.b[ifaPrefixLen]) }

// Scope is RT_SCOPE_*.
func (a Addr) Scope() uint8 { return a.b[ifaScope] }

// Index is the interface's.
func (a Addr) Index() int { return getInt(a.b[ifaIndex:]) }

// SetIndex makes it an address of another interface.
func (a Addr) SetIndex(index int) { putInt(a.b[ifaIndex:], index) }

// Flags are IFA_F_*.
func (a Addr) Flags() uint32 {
	if f, ok := a.Attrs().Uint32(unix.IFA_FLAGS); ok {
		return f
	}
	return uint32(a.b[ifaFlags])
}

// SetFlags changes the flags where they are: IFA_FLAGS is not appended.
func (a Addr) SetFlags(flags uint32) {
	a.b[ifaFlags] = uint8(flags)
	if v := a.Attrs().Get(unix.IFA_FLAGS); len(v) >= 4 {
		binary.NativeEndian.PutUint32(v, flags)
	}
}

// Local is the interface's own address. On a point-to-point link IFA_ADDRESS is the
// peer's and IFA_LOCAL ours.
func (a Addr) Local() (netip.Addr, bool) {
	typ := uint16(unix.IFA_LOCAL)
	if a.Attrs().Get(typ) == nil {
		typ = unix.IFA_ADDRESS
	}
	return a.Attrs().Addr(a.Family(), typ)
}

// Network is where it leads on the link: IFA_ADDRESS with the prefix's length. It is
// not valid where the kernel did not say so.
func (a Addr) Network() netip.Prefix {
	to, _ := a.Attrs().Addr(a.Family(), unix.IFA_ADDRESS)
	return netip.PrefixFrom(to, a.PrefixLen())
}

// Attrs are the attributes, in place.
func (a Addr) Attrs() Attrs { return a.b[unix.SizeofIfAddrmsg:] }

// Body is all of it, in place.
func (a Addr) Body() []byte { return a.b }

func getInt(b []byte) int { return int(int32(binary.NativeEndian.Uint32(b))) }

func putInt(b []byte, v int) { binary.NativeEndian.PutUint32(b, uint32(int32(v))) }

// Forever is the lifetime of what does not end.
const Forever = 0xffffffff

// AppendLifetimes appends to the body of an address for how many seconds it is preferred,
// and valid (struct ifa_cacheinfo).
func AppendLifetimes(b []byte, preferred, valid uint32) []byte {
	info := make([]byte, unix.SizeofIfaCacheinfo)
	binary.NativeEndian.PutUint32(info, preferred)
	binary.NativeEndian.PutUint32(info[4:], valid)
	return AppendAttr(b, unix.IFA_CACHEINFO, info)
}
