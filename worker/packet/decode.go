// SPDX-License-Identifier: Apache-2.0

package packet

import "encoding/binary"

// Packet is the decoded form of one frame. It is meant to be reused: Decode
// sets every field.
type Packet struct {
	Frame          []byte // the whole frame from the Ethernet header on
	SrcMAC, DstMAC MAC    // of the Ethernet header
	EtherType      uint16 // EtherTypeIPv4, EtherTypeIPv6, EtherTypeARP or other
	IPVersion      uint8  // 4, 6, or 0 when not IP
	TrafficClass   uint8  // IPv4 TOS or IPv6 traffic class, ECN bits included
	TTL            uint8  // TTL or hop limit
	Proto          uint8  // upper-layer protocol; of a fragment: see Fragment
	DF             bool   // nobody on its way may cut it: IPv4 says so, and IPv6 always means it
	Src, Dst       Addr   // of the IP header; IPv4 as IPv4-mapped IPv6

	// Offsets into Frame: IP header, upper-layer header, and the end by the
	// IP length, which cuts Ethernet padding off. L3 <= L4 <= End.
	L3, L4, End int

	// More is what follows Frame, after DecodeSplit: its first Beyond bytes belong
	// to the packet, and are upper-layer payload. End is that of Frame then.
	More   [][]byte
	Beyond int // bytes

	// Fragment tells that the packet is a part of one: its offset is not zero,
	// or more fragments follow. Then Payload is this part of what reassembly
	// puts together (IPv4: the data; IPv6: everything behind the fragment
	// header). Proto is the protocol or the extension header that it starts with
	// in the first fragment. The reassembled packet is to be decoded again. An
	// IPv6 fragment header on a whole packet (RFC 6946) does not count.
	Fragment      bool
	MoreFragments bool   // of a fragment: it is not the last
	FragOffset    int    // in bytes
	FragID        uint32 // identification: 16 bits in any IPv4 packet, 32 in a fragment header
	// IPv6 with a fragment header only. FragUnfragLen is the length of the
	// headers that repeat in each fragment, from L3 to the fragment header.
	// FragNext is the offset into Frame of the Next Header byte that names the
	// fragment header; after reassembly it is Proto.
	FragUnfragLen int
	FragNext      int // see above

	// ProtoAt is the offset into Frame of the byte that names Proto, of IPv6 that is no
	// fragment: in the fixed header, or in the last extension header.
	ProtoAt int
}

// Decode reads the Ethernet header, and the IP header with IPv4 options or
// IPv6 extension headers where there is one. Other frames, VLAN-tagged ones
// among them, have IPVersion 0 and their contents as Payload.
//
// The IPv4 header checksum is verified; the upper-layer checksum is not
// (ChecksumOK). After an error only the Ethernet header is decoded.
func (p *Packet) Decode(frame []byte) error {
	p.More, p.Beyond = nil, 0
	return p.decode(frame)
}

// DecodeSplit is Decode for a frame that goes on in more, which is not read.
// A fragment, or headers that are not all in frame, are refused.
func (p *Packet) DecodeSplit(frame []byte, more [][]byte) error {
	p.More, p.Beyond = more, 0
	for _, b := range more {
		p.Beyond += len(b)
	}
	return p.decode(frame)
}

func (p *Packet) decode(frame []byte) error {
	if len(frame) < EthernetLen {
		*p = Packet{}
		return ErrTruncated
	}
	// Field by field: a literal would be built aside and copied.
	p.Frame = frame
	p.DstMAC = MAC(frame[0:6])
	p.SrcMAC = MAC(frame[6:12])
	p.EtherType = binary.BigEndian.Uint16(frame[12:14])
	p.IPVersion, p.TrafficClass, p.TTL, p.Proto = 0, 0, 0, 0
	p.L3, p.L4, p.End = EthernetLen, EthernetLen, len(frame)
	p.Fragment, p.MoreFragments, p.FragOffset = false, false, 0
	p.FragID, p.FragUnfragLen, p.FragNext = 0, 0, 0
	p.DF, p.ProtoAt = false, 0
	var err error
	switch p.EtherType {
	case EtherTypeIPv4:
		err = p.decode4(frame[EthernetLen:])
	case EtherTypeIPv6:
		err = p.decode6(frame[EthernetLen:])
	default:
		p.Src, p.Dst = Addr{}, Addr{}
	}
	if err != nil {
		*p = Packet{
			Frame: frame, DstMAC: p.DstMAC, SrcMAC: p.SrcMAC, EtherType: p.EtherType,
			L3: EthernetLen, L4: EthernetLen, End: EthernetLen,
		}
	}
	return err
}

// Payload is the upper-layer header and what follows it, without padding and
// what is in More.
func (p *Packet) Payload() []byte { return p.Frame[p.L4:p.End] }

// IPHeader is the IP header with its options or extension headers.
func (p *Packet) IPHeader() []byte { return p.Frame[p.L3:p.L4] }

const (
	ipv4Len = 20
	ipv6Len = 40

	maxIPLen = 65535

	ipv4DF         = 0x4000
	ipv4MF         = 0x2000
	ipv4OffsetMask = 0x1fff
)

// decode4 reads an IPv4 header, RFC 791 section 3.1; b starts with it.
func (p *Packet) decode4(b []byte) error {
	if len(b) < ipv4Len {
		return ErrTruncated
	}
	if b[0]>>4 != 4 {
		return ErrVersion
	}
	hlen := int(b[0]&15) * 4
	total := int(binary.BigEndian.Uint16(b[2:4]))
	switch {
	case hlen < ipv4Len || total < hlen:
		return ErrHeaderLength
	case total > len(b)+p.Beyond || hlen > len(b):
		return ErrTruncated
	case Fold(Sum(b[:hlen], 0)) != 0xffff:
		return ErrHeaderChecksum
	}
	p.IPVersion = 4
	p.TrafficClass = b[1]
	p.TTL = b[8]
	p.Proto = b[9]
	p.Src.set4(b[12:16])
	p.Dst.set4(b[16:20])
	p.L4 = p.L3 + hlen
	p.ends(p.L3 + total)
	p.FragID = uint32(binary.BigEndian.Uint16(b[4:6]))
	f := binary.BigEndian.Uint16(b[6:8])
	p.DF = f&ipv4DF != 0
	if f&(ipv4MF|ipv4OffsetMask) != 0 {
		return p.setFragment(int(f&ipv4OffsetMask)*8, f&ipv4MF != 0, hlen)
	}
	return nil
}

// ends notes where the packet ends, by its IP length.
func (p *Packet) ends(end int) {
	p.End = min(end, len(p.Frame))
	p.Beyond = end - p.End
}

// setFragment notes a fragment whose data is Payload. It refuses what cannot be
// part of a packet (RFC 791 section 3.2, RFC 8200 section 4.5): an empty part,
// one in the middle that does not end on eight bytes, and one that ends where no
// length field reaches. headers is how much of the length field the headers of
// the whole packet take.
func (p *Packet) setFragment(offset int, more bool, headers int) error {
	n := p.End - p.L4
	if n == 0 || p.Beyond > 0 || more && n%8 != 0 || headers+offset+n > maxIPLen {
		return ErrFragment
	}
	p.Fragment = true
	p.DF, p.ProtoAt = false, 0
	p.FragOffset = offset
	p.MoreFragments = more
	return nil
}
