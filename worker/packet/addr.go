// SPDX-License-Identifier: Apache-2.0

package packet

import "encoding/binary"

// MAC is an Ethernet address.
type MAC [6]byte

// Broadcast is the Ethernet broadcast address.
var Broadcast = MAC{0xff, 0xff, 0xff, 0xff, 0xff, 0xff}

// IsZero tells whether the address is unset.
func (m MAC) IsZero() bool { return m == MAC{} }

// IsGroup tells whether the address is multicast or broadcast.
func (m MAC) IsGroup() bool { return m[0]&1 != 0 }

// GroupMAC is the Ethernet address that frames for a group go to, RFC 1112 section 6.4
// and RFC 2464 section 7.
func GroupMAC(a *Addr) MAC {
	if a.Is4() {
		return MAC{0x01, 0x00, 0x5e, a[13] & 0x7f, a[14], a[15]}
	}
	return MAC{0x33, 0x33, a[12], a[13], a[14], a[15]}
}

// Addr is an IPv6 address, or an IPv4 address in its IPv4-mapped form
// (RFC 4291 section 2.5.5.2). It is comparable and holds no pointer.
type Addr [16]byte

// AddrFrom4 maps an IPv4 address.
func AddrFrom4(a [4]byte) Addr {
	return Addr{10: 0xff, 11: 0xff, 12: a[0], 13: a[1], 14: a[2], 15: a[3]}
}

// LinkLocal is the IPv6 address that RFC 4291 appendix A makes of a hardware
// address.
func LinkLocal(m MAC) Addr {
	return Addr{0: 0xfe, 1: 0x80, 8: m[0] ^ 2, 9: m[1], 10: m[2], 11: 0xff, 12: 0xfe, 13: m[3], 14: m[4], 15: m[5]}
}

// Is4 tells whether the address is IPv4 in mapped form.
func (a *Addr) Is4() bool {
	return binary.BigEndian.Uint64(a[0:8]) == 0 && binary.BigEndian.Uint32(a[8:12]) == 0xffff
}

// set4 maps the IPv4 address in b.
func (a *Addr) set4(b []byte) {
	binary.BigEndian.PutUint64(a[0:], 0)
	binary.BigEndian.PutUint64(a[8:], 0xffff<<32|uint64(binary.BigEndian.Uint32(b)))
}

// As4 returns the last four bytes, the IPv4 address of a mapped one.
func (a *Addr) As4() [4]byte { return [4]byte(a[12:]) }

// IsZero tells whether the address is unset, which is also IPv6's "::".
func (a *Addr) IsZero() bool { return *a == Addr{} }

// IsUnspecified tells whether the address is 0.0.0.0 or "::".
func (a *Addr) IsUnspecified() bool {
	return a.IsZero() || *a == Addr{10: 0xff, 11: 0xff}
}

// IsLoopback tells whether the address is in 127.0.0.0/8 or is "::1".
func (a *Addr) IsLoopback() bool {
	return a.Is4() && a[12] == 127 || *a == Addr{15: 1}
}

// IsMulticast tells whether the address is in 224.0.0.0/4 or ff00::/8.
func (a *Addr) IsMulticast() bool {
	return a.Is4() && a[12]&0xf0 == 0xe0 || a[0] == 0xff
}

// IsBroadcast tells whether the address is IPv4's limited broadcast.
func (a *Addr) IsBroadcast() bool { return *a == AddrFrom4([4]byte{255, 255, 255, 255}) }

// IsLinkLocal tells whether the address is in 169.254.0.0/16 or fe80::/10.
func (a *Addr) IsLinkLocal() bool {
	return a.Is4() && a[12] == 169 && a[13] == 254 || a[0] == 0xfe && a[1]&0xc0 == 0x80
}
