// SPDX-License-Identifier: Apache-2.0

package link

import (
	"encoding/binary"

	"aldente/worker/packet"
)

// Filter says which frames are wanted; the zero value: all. What is not set of it
// matches anything. An ICMP error is also wanted where the packet is that it quotes,
// so that who looks at a flow sees what became of it.
type Filter struct {
	Proto uint8       // of IP, ICMP with ICMPv6; ProtoARP; zero: any
	Addr  packet.Addr // either side's, zero: any
	Port  uint16      // either side's, zero: any
}

// ProtoARP is Filter.Proto of ARP. Number 255 is no protocol of IP.
const ProtoARP = 255

// Offsets from the start of each header, RFC 826, 791, 8200 and 792.
const (
	arpSender    = 14
	arpTarget    = 24
	arpEnd       = 28
	ipv4Fragment = 6
	ipv4Proto    = 9
	ipv6Next     = 6
	ipv6Fragment = 2
	icmpQuote    = 8

	ipv4Offset   = 0x1fff // of a fragment, in ipv4Fragment
	ipv6Offset   = 0xfff8 // the same, in ipv6Fragment
	ipv6Headers  = 9      // extension headers that are looked behind, and what follows
	fragmentSize = 8
)

// match tells whether a frame is wanted that begins with b, which holds its headers.
// What cannot be read is not.
func (f *Filter) match(b []byte) bool {
	if *f == (Filter{}) {
		return true
	}
	if len(b) < packet.EthernetLen {
		return false
	}
	p := b[packet.EthernetLen:]
	switch binary.BigEndian.Uint16(b[12:]) {
	case packet.EtherTypeARP:
		return f.arp(p)
	case packet.EtherTypeIPv4:
		return f.ipv4(p, false)
	case packet.EtherTypeIPv6:
		return f.ipv6(p, false)
	}
	return false
}

func (f *Filter) arp(b []byte) bool {
	if f.Proto != 0 && f.Proto != ProtoARP || f.Port != 0 || len(b) < arpEnd {
		return false
	}
	return f.addresses(packet.AddrFrom4([4]byte(b[arpSender:])), packet.AddrFrom4([4]byte(b[arpTarget:])))
}

func (f *Filter) addresses(a, b packet.Addr) bool {
	return f.Addr.IsZero() || f.Addr == a || f.Addr == b
}

// ipv4 tells of a packet, which may be one that an ICMP error quotes.
func (f *Filter) ipv4(b []byte, quoted bool) bool {
	if len(b) < ipv4Min {
		return false
	}
	hlen := int(b[0]&0xf) * 4
	if hlen < ipv4Min || hlen > len(b) {
		return false
	}
	l4 := b[hlen:]
	if binary.BigEndian.Uint16(b[ipv4Fragment:])&ipv4Offset != 0 {
		l4 = nil
	}
	src, dst := packet.AddrFrom4([4]byte(b[ipv4Src:])), packet.AddrFrom4([4]byte(b[ipv4Src+4:]))
	proto := b[ipv4Proto]
	if f.addresses(src, dst) && f.upper(proto, l4) {
		return true
	}
	return !quoted && proto == packet.ProtoICMP && len(l4) > icmpQuote && errorOf4(l4[0]) && f.ipv4(l4[icmpQuote:], true)
}

// ipv6 is ipv4's sibling.
func (f *Filter) ipv6(b []byte, quoted bool) bool {
	if len(b) < ipv6Len {
		return false
	}
	proto, l4 := behind6(b[ipv6Next], b[ipv6Len:])
	if f.addresses(packet.Addr(b[ipv6Src:]), packet.Addr(b[ipv6Src+16:])) && f.upper(proto, l4) {
		return true
	}
	return !quoted && proto == packet.ProtoICMPv6 && len(l4) > icmpQuote && l4[0] < packet.ICMPv6EchoRequest && f.ipv6(l4[icmpQuote:], true)
}

// behind6 looks behind extension headers. Of a fragment that is not the first, or
// where a header is cut off, there is no upper layer: l4 is nil.
func behind6(next uint8, b []byte) (proto uint8, l4 []byte) {
	for range ipv6Headers {
		size := 0
		switch next {
		case packet.ProtoHopByHop, packet.ProtoRouting, packet.ProtoDestOpts:
			if len(b) >= 2 {
				size = int(b[1])*8 + 8
			}
		case packet.ProtoFragment:
			size = fragmentSize
			if len(b) >= size && binary.BigEndian.Uint16(b[ipv6Fragment:])&ipv6Offset != 0 {
				return b[0], nil
			}
		default:
			return next, b
		}
		if size == 0 || size > len(b) {
			return next, nil
		}
		next, b = b[0], b[size:]
	}
	return next, nil
}

// errorOf4 tells whether an ICMP message is an error, which quotes a packet.
func errorOf4(typ uint8) bool {
	return typ == packet.ICMPDestUnreachable || typ == packet.ICMPTimeExceeded || typ == packet.ICMPParamProblem
}

// upper tells of protocol and ports; l4 is nil where there are none to be seen.
func (f *Filter) upper(proto uint8, l4 []byte) bool {
	if proto == packet.ProtoICMPv6 {
		proto = packet.ProtoICMP
	}
	if f.Proto != 0 && f.Proto != proto {
		return false
	}
	if f.Port == 0 {
		return true
	}
	if proto != packet.ProtoTCP && proto != packet.ProtoUDP || len(l4) < 4 {
		return false
	}
	return binary.BigEndian.Uint16(l4) == f.Port || binary.BigEndian.Uint16(l4[2:]) == f.Port
}
