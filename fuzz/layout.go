// SPDX-License-Identifier: Apache-2.0

package fuzz

import "encoding/binary"

// Numbers of IANA's registries.
const (
	etherIPv4 = 0x0800
	etherIPv6 = 0x86dd

	protoHopByHop = 0
	protoICMP     = 1
	protoTCP      = 6
	protoUDP      = 17
	protoRouting  = 43
	protoFragment = 44
	protoICMPv6   = 58
	protoDestOpts = 60
)

const ethernet = 14

// layout is where the headers of an IP packet lie in its frame.
type layout struct {
	v6       bool
	upper    int   // offset of the upper-layer header
	end      int   // by the IP header's length
	proto    uint8 // of the upper layer
	fragment bool  // a part of a packet
}

// locate finds the headers of an IP packet whose headers lie within the frame.
func locate(b []byte) (l layout, ok bool) {
	if len(b) < ethernet+20 {
		return l, false
	}
	ip := b[ethernet:]
	switch binary.BigEndian.Uint16(b[12:]) {
	case etherIPv4:
		header := int(ip[0]&15) * 4
		l.upper, l.end, l.proto = ethernet+header, ethernet+int(binary.BigEndian.Uint16(ip[2:])), ip[9]
		l.fragment = binary.BigEndian.Uint16(ip[6:])&0x3fff != 0
		return l, ip[0]>>4 == 4 && header >= 20 && l.upper <= l.end && l.end <= len(b)
	case etherIPv6:
		if len(ip) < 40 || ip[0]>>4 != 6 {
			return l, false
		}
		l = layout{v6: true, upper: ethernet + 40, end: ethernet + 40 + int(binary.BigEndian.Uint16(ip[4:])), proto: ip[6]}
		return l, l.end <= len(b) && l.walk(b)
	}
	return l, false
}

// walk goes through the chain of extension headers, up to the first fragment
// header that makes the packet a part.
func (l *layout) walk(b []byte) bool {
	for isExtension(l.proto) {
		if l.upper+8 > l.end {
			return false
		}
		h := b[l.upper:l.end]
		size := 8
		if l.proto == protoFragment {
			l.fragment = l.fragment || binary.BigEndian.Uint16(h[2:])&^6 != 0
		} else {
			size += int(h[1]) * 8
		}
		if size > len(h) {
			return false
		}
		ended := l.proto == protoFragment && l.fragment
		l.proto = h[0]
		l.upper += size
		if ended {
			return true
		}
	}
	return true
}

func isExtension(proto uint8) bool {
	return proto == protoHopByHop || proto == protoRouting || proto == protoFragment || proto == protoDestOpts
}

// Sum is the one's-complement sum of RFC 1071, two bytes at a time.
func Sum(parts ...[]byte) uint16 {
	var s uint32
	for _, b := range parts {
		for ; len(b) > 1; b = b[2:] {
			s += uint32(b[0])<<8 | uint32(b[1])
			s = s&0xffff + s>>16
		}
		if len(b) == 1 {
			s += uint32(b[0]) << 8
			s = s&0xffff + s>>16
		}
	}
	return uint16(s)
}

// pseudo is the pseudo-header of RFC 9293 section 3.1 or RFC 8200 section 8.1.
func (l *layout) pseudo(b []byte) []byte {
	p := append([]byte(nil), b[ethernet+12:ethernet+20]...)
	if l.v6 {
		p = append([]byte(nil), b[ethernet+8:ethernet+40]...)
	}
	p = append(p, 0, l.proto)
	return binary.BigEndian.AppendUint16(p, uint16(l.end-l.upper))
}

// checksumAt returns where the upper layer's checksum is, and whether the
// pseudo-header is part of it; zero for a protocol without.
func (l *layout) checksumAt() (offset int, pseudo bool) {
	switch {
	case l.proto == protoTCP:
		return 16, true
	case l.proto == protoUDP:
		return 6, true
	case l.proto == protoICMP && !l.v6:
		return 2, false
	case l.proto == protoICMPv6 && l.v6:
		return 2, true
	}
	return 0, false
}

// upperSum is the sum over the upper layer and its pseudo-header.
func (l *layout) upperSum(b []byte) uint16 {
	_, with := l.checksumAt()
	if !with {
		return Sum(b[l.upper:l.end])
	}
	return Sum(l.pseudo(b), b[l.upper:l.end])
}
