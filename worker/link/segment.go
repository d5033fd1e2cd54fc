// SPDX-License-Identifier: Apache-2.0

package link

import (
	"encoding/binary"
	"math/bits"

	"aldente/worker/packet"
)

// Offsets from the start of each header, RFC 791, 8200, 9293 and 768.
const (
	ipv4Length   = 2
	ipv4ID       = 4
	ipv4Checksum = 10
	ipv4Src      = 12
	ipv4Min      = 20
	ipv6Payload  = 4
	ipv6Src      = 8
	ipv6Len      = 40

	tcpSeq      = 4
	tcpDataOff  = 12
	tcpFlags    = 13
	tcpChecksum = 16
	tcpMin      = 20
	udpLength   = 4
	udpChecksum = 6
	udpLen      = 8
)

// maxPayload bounds the payload of a super-frame. IP's length fields do not:
// they are written anew for each segment. The kernel's tap takes 64 KiB.
const maxPayload = 256 << 10

// cutter cuts a super-frame into the frames it stands for, as a network card
// with TSO and USO would. Headers are summed once and patched for each segment;
// every byte of payload is read once.
//
// The numbers that differ between segments are added to sums of everything
// else, RFC 1071 section 2(A); the template holds zero or whatever in their
// place.
type cutter struct {
	payload []byte // not cut off yet
	size    int    // payload of each segment but the last, bytes
	hlen    int    // of all headers
	l4      int    // offset of the upper layer's header
	v4, tcp bool

	ipSum uint64 // IPv4 header without length, identification, checksum
	l4Sum uint64 // pseudo-header and upper header without what varies
	id    uint16 // IPv4 identification of the next segment
	seq   uint32 // of the next segment
	flags uint8  // TCP flags of a segment in the middle
	first uint8  // flags for the next segment only
	last  uint8  // flags for the last segment only

	head [packet.MaxHeaders]byte
}

// start takes a super-frame; the payload must stay as it is until the last
// segment was cut. TCP segments are made no larger than fits mtu, in bytes of
// IP packet. It reports false if o and the headers do not describe a
// super-frame whose segments are frames.
func (c *cutter) start(o *packet.Offload, headers, payload []byte, mtu int) bool {
	c.payload = nil
	if n := int(o.HdrLen); len(payload) == 0 && n < len(headers) {
		headers, payload = headers[:n], headers[n:]
	}
	if !c.layout(o, headers) || len(payload) == 0 || len(payload) > maxPayload {
		return false
	}
	c.size = int(o.GSOSize)
	if c.tcp {
		c.size = min(c.size, mtu-(c.hlen-packet.EthernetLen), MaxFrame-c.hlen)
	}
	if c.size <= 0 || c.hlen+min(c.size, len(payload)) > MaxFrame {
		return false
	}
	c.payload = payload
	c.template(headers)
	return true
}

// layout finds the headers' offsets and checks that they fill headers exactly.
func (c *cutter) layout(o *packet.Offload, headers []byte) bool {
	c.hlen, c.l4 = len(headers), int(o.CsumStart)
	if o.Flags&packet.OffloadNeedsChecksum == 0 || c.hlen > packet.MaxHeaders ||
		c.l4 < packet.EthernetLen+ipv4Min || c.l4+udpLen > c.hlen {
		return false
	}
	etherType := binary.BigEndian.Uint16(headers[12:])
	c.v4 = etherType == packet.EtherTypeIPv4
	if c.v4 {
		ihl := int(headers[packet.EthernetLen]&0xf) * 4
		if ihl < ipv4Min || c.l4 != packet.EthernetLen+ihl {
			return false
		}
	} else if etherType != packet.EtherTypeIPv6 || c.l4 < packet.EthernetLen+ipv6Len {
		return false
	}
	switch kind := o.GSOType &^ packet.GSOECN; {
	case kind == packet.GSOTCPv4 && c.v4, kind == packet.GSOTCPv6 && !c.v4:
		c.tcp = true
		return o.CsumOffset == tcpChecksum && c.l4+tcpMin <= c.hlen &&
			c.l4+int(headers[c.l4+tcpDataOff]>>4)*4 == c.hlen
	case kind == packet.GSOUDPL4:
		c.tcp = false
		return o.CsumOffset == udpChecksum && c.l4+udpLen == c.hlen
	}
	return false
}

// template keeps the headers and sums what all segments have in common.
func (c *cutter) template(headers []byte) {
	copy(c.head[:], headers)
	ip, l4 := c.head[packet.EthernetLen:c.l4], c.head[c.l4:c.hlen]
	var addresses []byte
	if c.v4 {
		c.id = binary.BigEndian.Uint16(ip[ipv4ID:])
		binary.BigEndian.PutUint16(ip[ipv4Length:], 0)
		binary.BigEndian.PutUint16(ip[ipv4ID:], 0)
		binary.BigEndian.PutUint16(ip[ipv4Checksum:], 0)
		c.ipSum = uint64(packet.Fold(packet.Sum(ip, 0)))
		addresses = ip[ipv4Src : ipv4Src+8]
	} else {
		addresses = ip[ipv6Src : ipv6Src+32]
	}
	if c.tcp {
		c.seq = binary.BigEndian.Uint32(l4[tcpSeq:])
		flags := l4[tcpFlags]
		c.flags = flags &^ (packet.FIN | packet.PSH | packet.CWR)
		c.first = flags & packet.CWR
		c.last = flags & (packet.FIN | packet.PSH)
		binary.BigEndian.PutUint32(l4[tcpSeq:], 0)
		l4[tcpFlags] = 0
		binary.BigEndian.PutUint16(l4[tcpChecksum:], 0)
		c.l4Sum = packet.ProtoTCP
	} else {
		binary.BigEndian.PutUint16(l4[udpLength:], 0)
		binary.BigEndian.PutUint16(l4[udpChecksum:], 0)
		c.l4Sum = packet.ProtoUDP
	}
	c.l4Sum = uint64(packet.Fold(packet.Sum(l4, packet.Sum(addresses, c.l4Sum))))
}

func (c *cutter) more() bool { return len(c.payload) > 0 }

// segments is how many are left.
func (c *cutter) segments() int { return (len(c.payload) + c.size - 1) / c.size }

// wireSize bounds the bytes of all segments left, with extra bytes on each.
func (c *cutter) wireSize(extra int) int {
	return len(c.payload) + c.segments()*(max(c.hlen, minWire)+extra)
}

// next writes the headers of the next segment to dst, hlen bytes, and returns
// its payload. Preconditions: more().
func (c *cutter) next(dst []byte) (payload []byte) {
	payload = c.payload[:min(c.size, len(c.payload))]
	c.payload = c.payload[len(payload):]
	h := dst[:c.hlen]
	copy(h, c.head[:c.hlen])
	length := c.hlen - c.l4 + len(payload)
	ip := h[packet.EthernetLen : packet.EthernetLen+ipv4Min]
	if c.v4 {
		total := c.l4 - packet.EthernetLen + length
		binary.BigEndian.PutUint16(ip[ipv4Length:], uint16(total))
		binary.BigEndian.PutUint16(ip[ipv4ID:], c.id)
		binary.BigEndian.PutUint16(ip[ipv4Checksum:], ^packet.Fold(c.ipSum+uint64(total)+uint64(c.id)))
		c.id++
	} else {
		binary.BigEndian.PutUint16(ip[ipv6Payload:], uint16(c.l4-packet.EthernetLen-ipv6Len+length))
	}
	l4 := h[c.l4:]
	sum := c.l4Sum + uint64(length)
	if !c.tcp {
		binary.BigEndian.PutUint16(l4[udpLength:], uint16(length))
		putChecksum(l4[udpChecksum:], packet.Sum(payload, sum+uint64(length)), true)
		return payload
	}
	flags := c.flags | c.first
	if len(c.payload) == 0 {
		flags |= c.last
	}
	binary.BigEndian.PutUint32(l4[tcpSeq:], c.seq)
	l4[tcpFlags] = flags
	putChecksum(l4[tcpChecksum:], packet.Sum(payload, sum+uint64(c.seq)+uint64(flags)), false)
	c.seq += uint32(len(payload))
	c.first = 0
	return payload
}

// putChecksum stores the complement. UDP's zero means "none" (RFC 768), so it
// sends the other zero.
func putChecksum(b []byte, sum uint64, udp bool) {
	v := ^packet.Fold(sum)
	if v == 0 && udp {
		v = 0xffff
	}
	binary.BigEndian.PutUint16(b, v)
}

// complete fills in the checksum that o asks for, in a frame of one segment
// whose payload lies elsewhere. It reports false if the field is not within
// head.
func complete(head, payload []byte, o *packet.Offload) bool {
	if o.Flags&packet.OffloadNeedsChecksum == 0 {
		return true
	}
	start, field := int(o.CsumStart), int(o.CsumStart)+int(o.CsumOffset)
	if field+2 > len(head) {
		return false
	}
	sum := packet.Sum(head[start:], 0)
	if (len(head)-start)%2 == 0 {
		sum = packet.Sum(payload, sum)
	} else {
		// The payload starts at an odd offset: RFC 1071 section 2(B).
		rest := packet.Fold(packet.Sum(payload, 0))
		sum = uint64(packet.Fold(sum)) + uint64(bits.ReverseBytes16(rest))
	}
	putChecksum(head[field:], sum, o.CsumOffset == udpChecksum)
	return true
}
