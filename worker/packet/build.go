// SPDX-License-Identifier: Apache-2.0

package packet

import "encoding/binary"

// DefaultTTL is what a builder uses for Ends.TTL zero, RFC 1700.
const DefaultTTL = 64

// Ends is what a builder needs to know of the layers below the upper one. The
// family is that of Src; Dst must be of the same.
type Ends struct {
	SrcMAC, DstMAC    MAC    // Ethernet
	Src, Dst          Addr   // IP
	TTL, TrafficClass uint8  // TTL 0: DefaultTTL
	FlowLabel         uint32 // IPv6 only, 20 bits
	ID                uint16 // IPv4 only
	DF                bool   // IPv4 only
}

const (
	tcpChecksumOffset = 16
	udpChecksumOffset = 6
)

func putEthernet(b []byte, dst, src *MAC, etherType uint16) {
	h := (*[EthernetLen]byte)(b)
	copy(h[0:6], dst[:])
	copy(h[6:12], src[:])
	binary.BigEndian.PutUint16(h[12:], etherType)
}

// PutIP writes an Ethernet header and an IPv4 header with its checksum, or an
// IPv6 header, for payloadLen bytes that follow, and returns the length of
// both, 34 or 54. The IP packet must not exceed 65535 bytes.
func PutIP(b []byte, e *Ends, proto uint8, payloadLen int) int {
	ttl := e.TTL
	if ttl == 0 {
		ttl = DefaultTTL
	}
	if e.Src.Is4() {
		putEthernet(b, &e.DstMAC, &e.SrcMAC, EtherTypeIPv4)
		return EthernetLen + putIPv4(b[EthernetLen:], e, proto, ttl, payloadLen)
	}
	putEthernet(b, &e.DstMAC, &e.SrcMAC, EtherTypeIPv6)
	return EthernetLen + putIPv6(b[EthernetLen:], e, proto, ttl, payloadLen)
}

func putIPv4(b []byte, e *Ends, proto, ttl uint8, payloadLen int) int {
	h := (*[ipv4Len]byte)(b)
	first := 4<<28 | ipv4Len/4<<24 | uint32(e.TrafficClass)<<16 | uint32(uint16(ipv4Len+payloadLen))
	second := uint32(e.ID) << 16
	if e.DF {
		second |= ipv4DF
	}
	third := uint32(ttl)<<24 | uint32(proto)<<16
	src, dst := binary.BigEndian.Uint32(e.Src[12:]), binary.BigEndian.Uint32(e.Dst[12:])
	// Summed from what is written, not from b: reading back what was just
	// stored in other sizes stalls.
	sum := uint64(first) + uint64(second) + uint64(third) + uint64(src) + uint64(dst)
	binary.BigEndian.PutUint32(h[0:], first)
	binary.BigEndian.PutUint32(h[4:], second)
	binary.BigEndian.PutUint32(h[8:], third|uint32(^Fold(sum)))
	binary.BigEndian.PutUint32(h[12:], src)
	binary.BigEndian.PutUint32(h[16:], dst)
	return ipv4Len
}

func putIPv6(b []byte, e *Ends, proto, ttl uint8, payloadLen int) int {
	h := (*[ipv6Len]byte)(b)
	binary.BigEndian.PutUint32(h[0:], 6<<28|uint32(e.TrafficClass)<<20|e.FlowLabel&0xfffff)
	binary.BigEndian.PutUint16(h[4:], uint16(payloadLen))
	h[6], h[7] = proto, ttl
	copy(h[8:24], e.Src[:])
	copy(h[24:40], e.Dst[:])
	return ipv6Len
}

// TCPFields is a TCP header to be written. MSS, WScale and SACKPermitted are
// written only with SYN, SACK only without, as their RFCs demand.
type TCPFields struct {
	SrcPort, DstPort uint16      // in host byte order, as all below
	Seq, Ack         uint32      // Ack is written whether Flags has ACK or not
	Flags            uint8       // FIN to CWR
	Window           uint16      // as sent, not scaled
	MSS              uint16      // 0: none
	WScale           int8        // -1: none
	SACKPermitted    bool        // RFC 2018 section 2
	SACK             []SACKBlock // at most 4 are written
}

// PutTCP writes the headers of a segment whose payload of payloadLen bytes
// follows, and returns their length, at most 114. The checksum field holds the
// sum of the pseudo-header; o asks the link for the rest. For a super-frame
// the caller goes on with SetGSO.
func PutTCP(b []byte, e *Ends, f *TCPFields, payloadLen int, o *Offload) int {
	l4 := EthernetLen + ipv6Len
	if e.Src.Is4() {
		l4 = EthernetLen + ipv4Len
	}
	hlen := tcpLen
	h := b[l4 : l4+tcpLen+40]
	if f.Flags&SYN != 0 {
		hlen += putSYNOptions(h[tcpLen:], f)
	} else if len(f.SACK) > 0 {
		hlen += putSACK(h[tcpLen:], f.SACK)
	}
	binary.BigEndian.PutUint16(h[0:], f.SrcPort)
	binary.BigEndian.PutUint16(h[2:], f.DstPort)
	binary.BigEndian.PutUint32(h[4:], f.Seq)
	binary.BigEndian.PutUint32(h[8:], f.Ack)
	h[12] = uint8(hlen / 4 << 4)
	h[13] = f.Flags
	binary.BigEndian.PutUint16(h[14:], f.Window)
	binary.BigEndian.PutUint16(h[16:], Fold(PseudoSum(&e.Src, &e.Dst, ProtoTCP, hlen+payloadLen)))
	binary.BigEndian.PutUint16(h[18:], 0)
	PutIP(b, e, ProtoTCP, hlen+payloadLen)
	partial(o, l4, hlen, tcpChecksumOffset)
	return l4 + hlen
}

// putSYNOptions writes at most 12 bytes, each option padded to four.
func putSYNOptions(b []byte, f *TCPFields) int {
	n := 0
	if f.MSS != 0 {
		binary.BigEndian.PutUint32(b[n:], optionMSS<<24|4<<16|uint32(f.MSS))
		n += 4
	}
	if f.WScale >= 0 {
		binary.BigEndian.PutUint32(b[n:], optionNop<<24|optionWScale<<16|3<<8|uint32(f.WScale))
		n += 4
	}
	if f.SACKPermitted {
		binary.BigEndian.PutUint32(b[n:], optionNop<<24|optionNop<<16|optionSACKPermitted<<8|2)
		n += 4
	}
	return n
}

// putSACK writes at most 36 bytes.
func putSACK(b []byte, blocks []SACKBlock) int {
	blocks = blocks[:min(len(blocks), maxSACK)]
	binary.BigEndian.PutUint32(b, optionNop<<24|optionNop<<16|optionSACK<<8|uint32(2+8*len(blocks)))
	n := 4
	for i := range blocks {
		binary.BigEndian.PutUint32(b[n:], blocks[i].Left)
		binary.BigEndian.PutUint32(b[n+4:], blocks[i].Right)
		n += 8
	}
	return n
}

// PutUDP writes the headers of a datagram whose payload of payloadLen bytes
// follows, and returns their length, 42 or 62. Checksum and super-frames are
// as with PutTCP.
func PutUDP(b []byte, e *Ends, srcPort, dstPort uint16, payloadLen int, o *Offload) int {
	l4 := PutIP(b, e, ProtoUDP, udpLen+payloadLen)
	sum := Fold(PseudoSum(&e.Src, &e.Dst, ProtoUDP, udpLen+payloadLen))
	putUDPHeader(b[l4:], srcPort, dstPort, udpLen+payloadLen, sum)
	partial(o, l4, udpLen, udpChecksumOffset)
	return l4 + udpLen
}

// PutUDPFull writes a whole frame, payload and checksum included, and returns
// its length.
func PutUDPFull(b []byte, e *Ends, srcPort, dstPort uint16, payload []byte) int {
	l4 := EthernetLen + ipv6Len
	if e.Src.Is4() {
		l4 = EthernetLen + ipv4Len
	}
	size := udpLen + len(payload)
	d := b[l4 : l4+size]
	copy(d[udpLen:], payload)
	putUDPHeader(d, srcPort, dstPort, size, 0)
	sum := ^Fold(Sum(d, PseudoSum(&e.Src, &e.Dst, ProtoUDP, size)))
	if sum == 0 {
		sum = 0xffff // zero means "none", RFC 768
	}
	binary.BigEndian.PutUint16(d[udpChecksumOffset:], sum)
	PutIP(b, e, ProtoUDP, size)
	return l4 + size
}

func putUDPHeader(b []byte, srcPort, dstPort uint16, length int, sum uint16) {
	h := (*[udpLen]byte)(b)
	binary.BigEndian.PutUint16(h[0:], srcPort)
	binary.BigEndian.PutUint16(h[2:], dstPort)
	binary.BigEndian.PutUint16(h[4:], uint16(length))
	binary.BigEndian.PutUint16(h[6:], sum)
}

// partial fills o for headers that end at l4+hlen.
func partial(o *Offload, l4, hlen, sumOffset int) {
	*o = Offload{
		Flags:      OffloadNeedsChecksum,
		HdrLen:     uint16(l4 + hlen),
		CsumStart:  uint16(l4),
		CsumOffset: uint16(sumOffset),
	}
}

// SetGSO makes o that of a super-frame, to be cut into segments of size bytes
// of payload each. proto is ProtoTCP or ProtoUDP.
func SetGSO(o *Offload, e *Ends, proto uint8, size int) {
	switch {
	case proto == ProtoUDP:
		o.GSOType = GSOUDPL4
	case e.Src.Is4():
		o.GSOType = GSOTCPv4
	default:
		o.GSOType = GSOTCPv6
	}
	o.GSOSize = uint16(size)
}
