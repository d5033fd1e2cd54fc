// SPDX-License-Identifier: Apache-2.0

package packet

import "encoding/binary"

const icmpLen = 8

// Echo is a decoded ICMP or ICMPv6 message with the layout of an echo request,
// RFC 792 and RFC 4443 section 4.1. Whether it is one, Type tells.
type Echo struct {
	Type, Code uint8  // of ICMP or ICMPv6
	ID, Seq    uint16 // in host byte order
	Payload    []byte // behind the eight bytes of header; in the frame
}

// Decode reads a message; l4 ends where the message does. The checksum is not
// looked at.
func (e *Echo) Decode(l4 []byte) error {
	if len(l4) < icmpLen {
		return ErrTruncated
	}
	e.Type, e.Code = l4[0], l4[1]
	e.ID = binary.BigEndian.Uint16(l4[4:])
	e.Seq = binary.BigEndian.Uint16(l4[6:])
	e.Payload = l4[icmpLen:]
	return nil
}

// Most of an ICMP error: RFC 1812 section 4.3.2.3 and RFC 4443 section 2.4.
const (
	maxICMPError   = 576
	maxICMPv6Error = 1280
)

// PutICMPError writes a whole frame with an ICMP or ICMPv6 error, checksum
// included. info is the second word of the message: an MTU, a pointer, or 0.
// quoted is the packet that it is about, from its IP header on. As much of that
// is quoted as the family allows: 548 bytes with IPv4, 1232 with IPv6. It
// returns the frame's length, at most EthernetLen+1280.
func PutICMPError(b []byte, e *Ends, typ, code uint8, info uint32, quoted []byte) int {
	l4, limit := EthernetLen+ipv4Len, EthernetLen+maxICMPError
	if !e.Src.Is4() {
		l4, limit = EthernetLen+ipv6Len, EthernetLen+maxICMPv6Error
	}
	end := min(l4+icmpLen+len(quoted), limit)
	copy(b[l4+icmpLen:end], quoted)
	b[l4], b[l4+1] = typ, code
	binary.BigEndian.PutUint32(b[l4+4:], info)
	finishICMP(b, e, b[l4:end])
	return end
}

// PutEcho writes a whole frame with an echo request or reply, checksum
// included, and returns its length.
func PutEcho(b []byte, e *Ends, request bool, id, seq uint16, payload []byte) int {
	l4, typ := EthernetLen+ipv4Len, uint8(ICMPEchoReply)
	if request {
		typ = ICMPEchoRequest
	}
	if !e.Src.Is4() {
		l4, typ = EthernetLen+ipv6Len, ICMPv6EchoReply
		if request {
			typ = ICMPv6EchoRequest
		}
	}
	end := l4 + icmpLen + len(payload)
	copy(b[l4+icmpLen:end], payload)
	b[l4], b[l4+1] = typ, 0
	binary.BigEndian.PutUint16(b[l4+4:], id)
	binary.BigEndian.PutUint16(b[l4+6:], seq)
	finishICMP(b, e, b[l4:end])
	return end
}

// finishICMP writes the checksum of the message msg, which lies in b, and the
// headers before it.
func finishICMP(b []byte, e *Ends, msg []byte) {
	proto, initial := uint8(ProtoICMP), uint64(0)
	if !e.Src.Is4() {
		proto = ProtoICMPv6
		initial = PseudoSum(&e.Src, &e.Dst, ProtoICMPv6, len(msg))
	}
	msg[2], msg[3] = 0, 0
	binary.BigEndian.PutUint16(msg[2:], ^Fold(Sum(msg, initial)))
	PutIP(b, e, proto, len(msg))
}
