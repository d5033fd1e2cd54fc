// SPDX-License-Identifier: Apache-2.0

package frontend

import (
	"encoding/binary"

	"aldente/worker/packet"
)

// segments cuts a super-frame of TCP without copying its payload.
type segments struct {
	headers []byte // of the segment that next has returned the payload of
	rest    []byte // payload that is left
	size    int    // of a segment's payload
	l4      int    // where the TCP header begins
	flags   byte   // of the last segment
	seq     uint32 // of the next one
	fixed   uint64 // sum of the addresses and the protocol
	id      uint16 // of the next one, IPv4
}

const l3 = 14 // no VLAN tags

// newSegments returns nil for what is no such frame.
func newSegments(o *packet.Offload, frame []byte) *segments {
	s := &segments{size: int(o.GSOSize), l4: int(o.CsumStart)}
	if o.GSOType&^packet.GSOECN != packet.GSOTCPv4 && o.GSOType&^packet.GSOECN != packet.GSOTCPv6 || len(frame) < s.l4+20 || s.size == 0 {
		return nil
	}
	hlen := s.l4 + int(frame[s.l4+12]>>4)*4
	if len(frame) <= hlen {
		return nil
	}
	s.headers, s.rest = frame[:hlen:hlen], frame[hlen:]
	s.flags = s.headers[s.l4+13]
	s.seq = binary.BigEndian.Uint32(s.headers[s.l4+4:])
	addresses := s.headers[l3+8 : l3+40]
	if s.v4() {
		addresses = s.headers[l3+12 : l3+20]
		s.id = binary.BigEndian.Uint16(s.headers[l3+4:])
	}
	s.fixed = packet.Sum(addresses, uint64(packet.ProtoTCP))
	return s
}

func (s *segments) v4() bool { return s.headers[l3]>>4 == 4 }

// next completes headers for the next segment and returns its payload, or nil.
func (s *segments) next() []byte {
	if len(s.rest) == 0 {
		return nil
	}
	n := min(s.size, len(s.rest))
	payload := s.rest[:n]
	s.rest = s.rest[n:]
	h := s.headers
	binary.BigEndian.PutUint32(h[s.l4+4:], s.seq)
	s.seq += uint32(n)
	h[s.l4+13] = s.flags
	if len(s.rest) > 0 {
		h[s.l4+13] &^= packet.FIN | packet.PSH
	}
	if s.v4() {
		binary.BigEndian.PutUint16(h[l3+2:], uint16(len(h)-l3+n))
		binary.BigEndian.PutUint16(h[l3+4:], s.id)
		s.id++
		binary.BigEndian.PutUint16(h[l3+10:], 0)
		binary.BigEndian.PutUint16(h[l3+10:], packet.Checksum(h[l3:s.l4]))
	} else {
		binary.BigEndian.PutUint16(h[l3+4:], uint16(len(h)-l3-40+n))
	}
	binary.BigEndian.PutUint16(h[s.l4+16:], 0)
	sum := packet.Sum(payload, 0)
	sum = packet.Sum(h[s.l4:], uint64(packet.Fold(sum))+uint64(packet.Fold(s.fixed))+uint64(len(h)-s.l4+n))
	binary.BigEndian.PutUint16(h[s.l4+16:], ^packet.Fold(sum))
	s.flags &^= 0x80 // CWR goes with the first
	return payload
}
