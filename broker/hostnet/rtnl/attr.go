// SPDX-License-Identifier: Apache-2.0

// Package rtnl speaks rtnetlink (RFC 3549, include/uapi/linux/rtnetlink.h)
// without interpreting what it carries: dumps yield messages byte for byte as
// the kernel wrote them, and requests go out as they are given, many at a time.
//
// Routes and addresses of the host have to arrive in the guest's namespace
// exactly, attributes unknown to us included, so nothing here decodes them
// into structures and back. The package stays clear of package net and of the
// runtime's poller: broker and agent both pay for it at every start.
package rtnl

import "encoding/binary"

// AttrMask takes the flag bits (NLA_F_NESTED, NLA_F_NET_BYTEORDER) off an
// attribute's type.
const AttrMask = 0x3fff

// attrHeader is the size of struct rtattr.
const attrHeader = 4

// NextAttr splits the first attribute off b. ok is false when no whole
// attribute is left; b was well formed if it is empty then.
func NextAttr(b []byte) (typ uint16, val, rest []byte, ok bool) {
	if len(b) < attrHeader {
		return 0, nil, b, false
	}
	n := int(binary.NativeEndian.Uint16(b))
	if n < attrHeader || n > len(b) {
		return 0, nil, b, false
	}
	typ = binary.NativeEndian.Uint16(b[2:]) & AttrMask
	return typ, b[attrHeader:n], b[min(align(n), len(b)):], true
}

// Attr returns the value of the first attribute of the type, or nil.
func Attr(b []byte, want uint16) []byte {
	for {
		typ, val, rest, ok := NextAttr(b)
		if !ok {
			return nil
		}
		if typ == want {
			return val
		}
		b = rest
	}
}

// AttrUint32 returns the value of a 32-bit attribute in host order.
func AttrUint32(b []byte, want uint16) (uint32, bool) {
	v := Attr(b, want)
	if len(v) < 4 {
		return 0, false
	}
	return binary.NativeEndian.Uint32(v), true
}

// AppendAttr appends one attribute, padded to four bytes. The value must be
// shorter than 64 KiB less the header.
func AppendAttr(b []byte, typ uint16, val []byte) []byte {
	b = binary.NativeEndian.AppendUint16(b, uint16(attrHeader+len(val)))
	b = binary.NativeEndian.AppendUint16(b, typ)
	b = append(b, val...)
	for len(b)%4 != 0 {
		b = append(b, 0)
	}
	return b
}

// AppendAttrUint32 appends a 32-bit attribute in host order.
func AppendAttrUint32(b []byte, typ uint16, val uint32) []byte {
	return AppendAttr(b, typ, binary.NativeEndian.AppendUint32(nil, val))
}

func align(n int) int { return (n + 3) &^ 3 }
