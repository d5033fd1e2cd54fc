// SPDX-License-Identifier: Apache-2.0

package packet

import "encoding/binary"

const fragmentLen = 8

// Fragmenter cuts packets that are larger than the link's MTU. It holds the
// headers of one fragment, so that nothing is allocated.
type Fragmenter struct {
	headers [MaxHeaders]byte
}

// Fragment cuts the IP packet in frame into fragments of at most mtu bytes, IP
// header included. It calls emit with the headers and the part of the payload of
// each, in order. Preconditions: this package has built the packet (no IPv4
// options, no IPv6 extension headers), its checksum is complete, and it has no
// padding. Both are valid only until emit returns; emit may not change the
// payload. id is the identification, of which IPv4 takes the low 16 bits.
//
// A packet that fits is emitted as it is. An mtu that leaves no room for eight
// bytes of payload, or a frame that is none of the above, emits nothing.
func (f *Fragmenter) Fragment(frame []byte, mtu int, id uint32, emit func(headers, payload []byte)) {
	var p Packet
	if p.Decode(frame) != nil || p.IPVersion == 0 || p.Fragment {
		return
	}
	if p.End-p.L3 <= mtu {
		emit(frame[:p.L4], frame[p.L4:p.End])
		return
	}
	if p.IPVersion == 4 && p.L4-p.L3 == ipv4Len {
		f.cut4(&p, (mtu-ipv4Len)&^7, uint16(id), emit)
	}
	if p.IPVersion == 6 && p.L4-p.L3 == ipv6Len {
		f.cut6(&p, (mtu-ipv6Len-fragmentLen)&^7, id, emit)
	}
}

// cut4 emits fragments of up to chunk bytes of data, RFC 791 section 3.2.
func (f *Fragmenter) cut4(p *Packet, chunk int, id uint16, emit func(headers, payload []byte)) {
	h := f.headers[:EthernetLen+ipv4Len]
	copy(h, p.Frame)
	ip := h[EthernetLen:]
	data := p.Payload()
	for off := 0; chunk > 0 && off < len(data); off += chunk {
		part := data[off:min(off+chunk, len(data))]
		flags := uint16(off / 8)
		if off+len(part) < len(data) {
			flags |= ipv4MF
		}
		binary.BigEndian.PutUint16(ip[2:], uint16(ipv4Len+len(part)))
		binary.BigEndian.PutUint16(ip[4:], id)
		binary.BigEndian.PutUint16(ip[6:], flags)
		binary.BigEndian.PutUint16(ip[10:], 0)
		binary.BigEndian.PutUint16(ip[10:], Checksum(ip))
		emit(h, part)
	}
}

// cut6 does the same with fragment headers, RFC 8200 section 4.5.
func (f *Fragmenter) cut6(p *Packet, chunk int, id uint32, emit func(headers, payload []byte)) {
	h := f.headers[:EthernetLen+ipv6Len+fragmentLen]
	copy(h, p.Frame[:p.L4])
	ip, frag := h[EthernetLen:], h[EthernetLen+ipv6Len:]
	ip[6] = ProtoFragment
	frag[0], frag[1] = p.Proto, 0
	binary.BigEndian.PutUint32(frag[4:], id)
	data := p.Payload()
	for off := 0; chunk > 0 && off < len(data); off += chunk {
		part := data[off:min(off+chunk, len(data))]
		more := uint16(0)
		if off+len(part) < len(data) {
			more = 1
		}
		binary.BigEndian.PutUint16(ip[4:], uint16(fragmentLen+len(part)))
		binary.BigEndian.PutUint16(frag[2:], uint16(off)|more)
		emit(h, part)
	}
}
