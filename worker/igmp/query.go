// SPDX-License-Identifier: Apache-2.0

package igmp

import (
	"encoding/binary"

	"aldente/worker/flow"
	"aldente/worker/packet"
)

const (
	// Interval is how often the guest is asked which groups it wants, in nanoseconds:
	// RFC 3376 section 8.2.
	Interval = int64(intervalSeconds) * 1e9
	// Life is after which time without an answer it wants one no more: section 8.4.
	Life = 2*Interval + 10e9

	intervalSeconds = 125
	robustness      = 2 // RFC 3376 section 8.1
	// The guest answers within a second.
	maxResponse4 = 10   // tenths of a second
	maxResponse6 = 1000 // milliseconds
)

const (
	query4 = 12 // bytes of a question, RFC 3376 section 4.1
	query6 = 28 // RFC 3810 section 5.1
)

// Query4 writes a frame that asks the guest for all groups of IPv4, and returns its
// length.
func Query4(g *flow.Guest, b []byte) int {
	const header = 24
	e := packet.Ends{
		SrcMAC: g.OurMAC, DstMAC: packet.MAC{0x01, 0, 0x5e, 0, 0, 1}, TTL: 1,
		Src: g.Own(true), Dst: packet.AddrFrom4([4]byte{224, 0, 0, 1}),
	}
	if e.Src.IsZero() {
		e.Src = packet.AddrFrom4([4]byte{})
	}
	packet.PutIP(b, &e, packet.ProtoIGMP, header-20+query4)
	ip := b[packet.EthernetLen : packet.EthernetLen+header+query4]
	ip[0] = 4<<4 | header/4
	copy(ip[20:], []byte{0x94, 4, 0, 0}) // router alert, RFC 2113
	ip[10], ip[11] = 0, 0
	binary.BigEndian.PutUint16(ip[10:], packet.Checksum(ip[:header]))
	q := ip[header:]
	clear(q)
	q[0], q[1] = typeQuery, maxResponse4
	q[8], q[9] = robustness, intervalSeconds
	binary.BigEndian.PutUint16(q[2:], packet.Checksum(q))
	return packet.EthernetLen + len(ip)
}

// Query6 is Query4 for IPv6. Without a link-local address of ours it writes nothing: no
// host would listen.
func Query6(g *flow.Guest, b []byte) int {
	const option = 8
	e := packet.Ends{
		SrcMAC: g.OurMAC, DstMAC: packet.MAC{0x33, 0x33, 0, 0, 0, 1}, TTL: 1,
		Src: g.OurLL6, Dst: packet.Addr{0: 0xff, 1: 2, 15: 1},
	}
	if !e.Src.IsLinkLocal() {
		return 0
	}
	n := packet.PutIP(b, &e, packet.ProtoHopByHop, option+query6)
	n += copy(b[n:], []byte{packet.ProtoICMPv6, 0, 5, 2, 0, 0, 1, 0}) // router alert, RFC 2711
	q := b[n : n+query6]
	clear(q)
	q[0] = packet.MLDQuery
	binary.BigEndian.PutUint16(q[4:], maxResponse6)
	q[24], q[25] = robustness, intervalSeconds
	binary.BigEndian.PutUint16(q[2:], ^packet.Fold(packet.Sum(q, packet.PseudoSum(&e.Src, &e.Dst, packet.ProtoICMPv6, query6))))
	return n + query6
}
