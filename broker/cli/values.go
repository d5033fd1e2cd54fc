// SPDX-License-Identifier: Apache-2.0

package cli

import (
	"encoding/hex"
	"net/netip"
	"strconv"
	"strings"
)

// addrKind is a set of special addresses that an option takes besides ordinary
// unicast ones.
type addrKind uint8

const (
	loopback addrKind = 1 << iota
	multicast
	unspecified
	broadcast

	anyAddr = loopback | multicast | unspecified | broadcast
)

var broadcast4 = netip.AddrFrom4([4]byte{255, 255, 255, 255})

// parseAddr reads an IPv4 or IPv6 address without a scope. An IPv4-mapped IPv6
// address is returned as IPv4. False: no address, or one of a kind not in allow.
func parseAddr(s string, allow addrKind) (netip.Addr, bool) {
	addr, err := netip.ParseAddr(s)
	if err != nil || addr.Zone() != "" {
		return netip.Addr{}, false
	}
	addr = addr.Unmap()
	var kind addrKind
	switch {
	case addr.IsLoopback():
		kind = loopback
	case addr.IsMulticast():
		kind = multicast
	case addr.IsUnspecified():
		kind = unspecified
	case addr == broadcast4:
		kind = broadcast
	}
	if kind&^allow != 0 {
		return netip.Addr{}, false
	}
	return addr, true
}

// parsePrefix reads ADDR or ADDR/LEN, the address in brackets or not. bits is
// -1 without a length. The error says which part is wrong.
func parsePrefix(s string) (addr netip.Addr, bits int, err error) {
	text, length, given := strings.Cut(s, "/")
	addr, ok := parseAddr(unbracket(text), 0)
	if !ok {
		return addr, 0, nextf(addressHint(text), "Invalid guest address: %s", s)
	}
	if !given {
		return addr, -1, nil
	}
	n, ok := parseNumber(length, 10, 1<<16)
	if !ok {
		return addr, 0, nextf("behind the slash goes a number of bits", "Invalid guest address: %s", s)
	}
	// The length of an IPv4-mapped address may be meant either way.
	if bits = int(n); addr.Is4() && strings.Contains(text, ":") && bits >= 96 {
		bits -= 96
	}
	if bits > addr.BitLen() {
		return addr, 0, nextf("at most 32 bits for IPv4, 128 for IPv6", "Invalid prefix length: %s", s)
	}
	return addr, bits, nil
}

// parseNetmask reads an IPv4 mask in dotted form or as a number of bits.
func parseNetmask(s string) (int, bool) {
	if n, ok := parseNumber(s, 0, 32); ok {
		return int(n), true
	}
	addr, err := netip.ParseAddr(s)
	if err != nil || !addr.Is4() {
		return 0, false
	}
	for bits := 0; bits <= 32; bits++ {
		if mask, _ := broadcast4.Prefix(bits); mask.Addr() == addr {
			return bits, true
		}
	}
	return 0, false
}

// classBits is the prefix length of an IPv4 address by RFC 791 section 3.2,
// what is meant when no length is given.
func classBits(addr netip.Addr) int {
	switch first := addr.As4()[0]; {
	case first < 128:
		return 8
	case first < 192:
		return 16
	case first < 224:
		return 24
	}
	return 32
}

// parseMAC reads a unicast address as six pairs of hexadecimal digits with
// colons. All-zero is not one.
func parseMAC(s string) (mac [6]byte, ok bool) {
	if len(s) != 17 {
		return mac, false
	}
	for i := range mac {
		if i > 0 && s[3*i-1] != ':' {
			return mac, false
		}
		if _, err := hex.Decode(mac[i:i+1], []byte(s[3*i:3*i+2])); err != nil {
			return mac, false
		}
	}
	return mac, mac != [6]byte{} && mac[0]&1 == 0
}

// validIfName follows dev_valid_name() in the kernel's net/core/dev.c.
func validIfName(s string) bool {
	return s != "" && len(s) <= maxIfName && s != "." && s != ".." && !strings.ContainsAny(s, "/: \t\n\v\f\r")
}

// validDomain tells whether s can be encoded as in RFC 1035 section 3.1.
func validDomain(s string) bool {
	if len(s) > MaxName {
		return false
	}
	for label := range strings.SplitSeq(s, ".") {
		if label == "" || len(label) > 63 {
			return false
		}
	}
	return true
}

// parseNumber reads a number as strtoul(3) does, but whole: leading white
// space and a plus sign are let pass, base 0 takes 0x and 0 for prefixes.
// Unlike there, a negative number is none.
func parseNumber(s string, base int, limit uint64) (uint64, bool) {
	s = strings.TrimLeft(s, " \t\n\v\f\r")
	s = strings.TrimPrefix(s, "+")
	if base == 0 {
		base = 10
		if rest, ok := strings.CutPrefix(strings.ToLower(s), "0x"); ok {
			s, base = rest, 16
		} else if len(s) > 1 && s[0] == '0' {
			base = 8
		}
	}
	n, err := strconv.ParseUint(s, base, 64)
	return n, err == nil && n <= limit
}
