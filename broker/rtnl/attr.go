// SPDX-License-Identifier: Apache-2.0

package rtnl

import (
	"encoding/binary"
	"iter"
	"net/netip"

	"golang.org/x/sys/unix"
)

// AttrMask takes the flag bits (NLA_F_NESTED, NLA_F_NET_BYTEORDER) off an
// attribute's type.
const AttrMask = 0x3fff

// attrHeader is the size of struct rtattr.
const attrHeader = 4

// Attrs are attributes, one behind the other: struct rtattr with values, padded to
// four bytes. Whatever the bytes are, what is read of them ends at the first that is
// no whole attribute.
type Attrs []byte

// next splits the first attribute off. ok is false when no whole attribute is left;
// the bytes were well formed if there are none then.
func (a Attrs) next() (typ uint16, val []byte, rest Attrs, ok bool) {
	if len(a) < attrHeader {
		return 0, nil, a, false
	}
	n := int(binary.NativeEndian.Uint16(a))
	if n < attrHeader || n > len(a) {
		return 0, nil, a, false
	}
	typ = binary.NativeEndian.Uint16(a[2:]) & AttrMask
	return typ, a[attrHeader:n], a[min(align(n), len(a)):], true
}

// All yields types, without flag bits, and values.
func (a Attrs) All() iter.Seq2[uint16, []byte] {
	return func(yield func(uint16, []byte) bool) {
		for {
			typ, val, rest, ok := a.next()
			if !ok || !yield(typ, val) {
				return
			}
			a = rest
		}
	}
}

// Whole tells whether there are attributes and nothing else, the last one padded:
// another may be appended.
func (a Attrs) Whole() bool {
	if len(a)%unix.NLMSG_ALIGNTO != 0 {
		return false
	}
	for len(a) > 0 {
		var ok bool
		if _, _, a, ok = a.next(); !ok {
			return false
		}
	}
	return true
}

// Get returns the value of the first attribute of the type, or nil.
func (a Attrs) Get(want uint16) []byte {
	for {
		typ, val, rest, ok := a.next()
		if !ok {
			return nil
		}
		if typ == want {
			return val
		}
		a = rest
	}
}

// Uint32 returns the value of a 32-bit attribute in host order.
func (a Attrs) Uint32(want uint16) (uint32, bool) {
	v := a.Get(want)
	if len(v) < 4 {
		return 0, false
	}
	return binary.NativeEndian.Uint32(v), true
}

// Addr returns the value of an attribute that is an address of the family.
func (a Attrs) Addr(family uint8, want uint16) (netip.Addr, bool) {
	v := a.Get(want)
	switch {
	case family == unix.AF_INET && len(v) == 4:
		return netip.AddrFrom4([4]byte(v)), true
	case family == unix.AF_INET6 && len(v) == 16:
		return netip.AddrFrom16([16]byte(v)), true
	}
	return netip.Addr{}, false
}

// AppendTo appends to b those attributes that keep says, byte for byte, flag bits
// included.
func (a Attrs) AppendTo(b []byte, keep func(typ uint16) bool) []byte {
	for {
		typ, val, rest, ok := a.next()
		if !ok {
			return b
		}
		if keep(typ) {
			b = AppendAttr(b, binary.NativeEndian.Uint16(a[2:]), val)
		}
		a = rest
	}
}

// AppendAttr appends one attribute, padded to four bytes. The value must be
// shorter than 64 KiB less the header.
func AppendAttr(b []byte, typ uint16, val []byte) []byte {
	b = binary.NativeEndian.AppendUint16(b, uint16(attrHeader+len(val)))
	b = binary.NativeEndian.AppendUint16(b, typ)
	b = append(b, val...)
	for len(b)%unix.NLMSG_ALIGNTO != 0 {
		b = append(b, 0)
	}
	return b
}

// AppendAttrUint32 appends a 32-bit attribute in host order.
func AppendAttrUint32(b []byte, typ uint16, val uint32) []byte {
	return AppendAttr(b, typ, binary.NativeEndian.AppendUint32(nil, val))
}

// appendName appends an attribute that is a name, with its final NUL.
func appendName(b []byte, typ uint16, name string) []byte {
	return AppendAttr(b, typ, append([]byte(name), 0))
}

func align(n int) int { return (n + unix.NLMSG_ALIGNTO - 1) &^ (unix.NLMSG_ALIGNTO - 1) }
