// SPDX-License-Identifier: Apache-2.0

package link

import (
	"encoding/binary"

	"aldente/worker/packet"
)

// steering remembers by which pair of queues the guest has sent what last, so that it
// is answered there: by the processor that has asked. Flows are told apart by a hash;
// those with the same share an entry. It is as the kernel's tap with several queues
// does it.
type steering struct {
	pairs [1 << 10]uint8 // and one; zero: nothing is known
}

// learn takes a frame from the guest that came by a pair.
func (s *steering) learn(frame []byte, pair uint8) {
	if h, ok := hashFrame(frame, true); ok {
		s.pairs[h%uint32(len(s.pairs))] = pair + 1
	}
}

// find returns the hash of a frame to the guest, and the pair; -1: none is known.
func (s *steering) find(frame []byte) (hash uint32, pair int) {
	h, _ := hashFrame(frame, false)
	return h, int(s.pairs[h%uint32(len(s.pairs))]) - 1
}

// findEnds is find for a frame between e, with ports.
func (s *steering) findEnds(e *packet.Ends, src, dst uint16) (hash uint32, pair int) {
	from, to := e.Src[:], e.Dst[:]
	if e.Src.Is4() {
		from, to = from[12:], to[12:]
	}
	h := hashFlow(from, to, uint32(src)<<16|uint32(dst))
	return h, int(s.pairs[h%uint32(len(s.pairs))]) - 1
}

// hashFrame hashes a frame's flow, the same for both directions. Without ports that can
// be read, it is that of the addresses. Without addresses, it reports false.
func hashFrame(frame []byte, fromGuest bool) (uint32, bool) {
	if len(frame) < packet.EthernetLen+ipv4Min {
		return 0, false
	}
	var from, to []byte
	var proto uint8
	l4 := 0
	ip := frame[packet.EthernetLen:]
	switch binary.BigEndian.Uint16(frame[12:]) {
	case packet.EtherTypeIPv4:
		from, to = ip[ipv4Src:ipv4Src+4], ip[ipv4Src+4:ipv4Src+8]
		if proto = ip[9]; binary.BigEndian.Uint16(ip[6:])&0x3fff != 0 {
			proto = packet.ProtoNone // a fragment
		}
		l4 = int(ip[0]&15) * 4
	case packet.EtherTypeIPv6:
		if len(ip) < ipv6Len {
			return 0, false
		}
		from, to, proto, l4 = ip[ipv6Src:ipv6Src+16], ip[ipv6Src+16:ipv6Src+32], ip[6], ipv6Len
	default:
		return 0, false
	}
	ports := uint32(0)
	if (proto == packet.ProtoTCP || proto == packet.ProtoUDP) && l4+4 <= len(ip) {
		ports = binary.BigEndian.Uint32(ip[l4:])
	}
	if fromGuest {
		from, to = to, from
		ports = ports<<16 | ports>>16
	}
	return hashFlow(from, to, ports), true
}

// hashFlow hashes addresses, four bytes at a time, and ports: those of the remote first.
// Nothing is at stake: a guest that has its flows collide has them share a queue.
func hashFlow(remote, guest []byte, ports uint32) uint32 {
	h := ports * 0x9e3779b1
	for k := 0; k < len(remote); k += 4 {
		h = (h ^ binary.BigEndian.Uint32(remote[k:])) * 0x85ebca6b
		h = (h<<13 | h>>19 ^ binary.BigEndian.Uint32(guest[k:])) * 0xc2b2ae35
	}
	return h ^ h>>15
}
