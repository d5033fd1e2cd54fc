// SPDX-License-Identifier: Apache-2.0

package fuzz

import (
	"encoding/binary"
	"slices"
)

// What Repair puts right. A fuzzer rarely guesses a checksum: without this, most
// of what it makes ends at the first check, and what is behind that is never
// seen. It chooses the bits itself, with a byte of its input, so that it can
// leave wrong what it wants wrong.
const (
	Version   = 1 << iota // Ethernet type and IP version agree
	Lengths               // IP and UDP lengths, header lengths
	Options               // lengths of extension headers and options fit their area
	Sums                  // all checksums
	Unpadded              // the frame ends where the IP packet does
	AllRepair = 1<<iota - 1
)

// Repair returns a copy of the frame with what is asked for put right. The
// frame must not be longer than 64 KiB.
func Repair(frame []byte, what uint8) []byte {
	b := slices.Clone(frame)
	if len(b) < ethernet+20 {
		return b
	}
	ip := b[ethernet:]
	if what&Version != 0 {
		switch binary.BigEndian.Uint16(b[12:]) {
		case etherIPv4:
			ip[0] = 4<<4 | ip[0]&15
		case etherIPv6:
			ip[0] = 6<<4 | ip[0]&15
		}
	}
	switch {
	case binary.BigEndian.Uint16(b[12:]) == etherIPv4:
		repair4(b, what)
	case binary.BigEndian.Uint16(b[12:]) == etherIPv6 && len(ip) >= 40:
		repair6(b, what)
	}
	l, ok := locate(b)
	if !ok {
		return b
	}
	if what&Unpadded != 0 {
		b = b[:l.end]
	}
	l.repairUpper(b, what)
	if what&Sums != 0 && !l.v6 {
		header := b[ethernet:l.upper]
		header[10], header[11] = 0, 0
		binary.BigEndian.PutUint16(header[10:], ^Sum(header))
	}
	return b
}

// repair4 leaves a header length that is possible alone.
func repair4(b []byte, what uint8) {
	ip := b[ethernet:]
	if what&Lengths == 0 {
		return
	}
	if words := ip[0] & 15; words < 5 || int(words)*4 > len(ip) {
		ip[0] = ip[0]&0xf0 | 5
	}
	if total := int(binary.BigEndian.Uint16(ip[2:])); what&Unpadded == 0 || total < int(ip[0]&15)*4 || total > len(ip) {
		binary.BigEndian.PutUint16(ip[2:], uint16(min(len(ip), 65535)))
	}
}

// repair6 makes each extension header fit, and the options in it.
func repair6(b []byte, what uint8) {
	ip := b[ethernet:]
	if total := 40 + int(binary.BigEndian.Uint16(ip[4:])); what&Lengths != 0 && (what&Unpadded == 0 || total > len(ip)) {
		binary.BigEndian.PutUint16(ip[4:], uint16(min(len(ip)-40, 65535)))
	}
	if what&Options == 0 {
		return
	}
	proto, at := ip[6], 40
	for isExtension(proto) && at+8 <= len(ip) {
		h := ip[at:]
		size := 8
		if proto != protoFragment {
			if most := len(h)/8 - 1; int(h[1]) > most {
				h[1] = uint8(most)
			}
			size += int(h[1]) * 8
		}
		if proto == protoHopByHop || proto == protoDestOpts {
			FixTLV(h[2:size], TLV{Head: 2, LenAt: 1, Single: func(t byte) bool { return t == 0 }})
		}
		proto = h[0]
		at += size
	}
}

// repairUpper puts the upper layer's lengths and its checksum right.
func (l *layout) repairUpper(b []byte, what uint8) {
	u := b[l.upper:l.end]
	if l.fragment {
		return
	}
	switch {
	case l.proto == protoTCP && len(u) >= 20:
		if words := int(u[12] >> 4); what&Lengths != 0 && (words < 5 || words*4 > len(u)) {
			u[12] = 5<<4 | u[12]&15
		}
		if end := int(u[12]>>4) * 4; what&Options != 0 && end >= 20 && end <= len(u) {
			FixTLV(u[20:end], TLV{Head: 2, LenAt: 1, Whole: true, Single: func(t byte) bool { return t < 2 }})
		}
	case l.proto == protoUDP && len(u) >= 8:
		if what&Lengths != 0 {
			binary.BigEndian.PutUint16(u[4:], uint16(len(u)))
		}
	}
	at, _ := l.checksumAt()
	if what&Sums == 0 || at == 0 || at+2 > len(u) {
		return
	}
	u[at], u[at+1] = 0, 0
	sum := ^l.upperSum(b)
	if sum == 0 && l.proto == protoUDP {
		sum = 0xffff
	}
	binary.BigEndian.PutUint16(u[at:], sum)
}

// TLV says how options are laid out.
type TLV struct {
	Head   int             // bytes before the value
	LenAt  int             // offset of the length in it
	Wide   bool            // the length is two bytes, big-endian, not one
	Whole  bool            // it counts the head too
	Unit   int             // it counts these many bytes; 0 or 1: bytes
	Single func(byte) bool // types of one byte and no length
}

// FixTLV cuts the lengths of options down to what is left in b, so that all of
// it is a list of options. What cannot be one at the end is left as it is.
func FixTLV(b []byte, f TLV) {
	unit := max(f.Unit, 1)
	for len(b) > 0 {
		if f.Single != nil && f.Single(b[0]) {
			b = b[1:]
			continue
		}
		if len(b) < f.Head {
			return
		}
		n := int(b[f.LenAt])
		if f.Wide {
			n = int(binary.BigEndian.Uint16(b[f.LenAt:]))
		}
		least, most := 0, (len(b)-f.Head)/unit
		if f.Whole {
			least, most = (f.Head+unit-1)/unit, len(b)/unit
		}
		if most < least {
			return
		}
		n = min(max(n, least), most)
		if f.Wide {
			binary.BigEndian.PutUint16(b[f.LenAt:], uint16(n))
		} else {
			n = min(n, 255)
			b[f.LenAt] = uint8(n)
		}
		n *= unit
		if !f.Whole {
			n += f.Head
		}
		b = b[n:]
	}
}
