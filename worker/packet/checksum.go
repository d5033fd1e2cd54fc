// SPDX-License-Identifier: Apache-2.0

package packet

import (
	"encoding/binary"
	"math"
	"math/bits"
)

// A running sum is a 64-bit one's-complement sum. Modulo 65535 it equals the
// sum of the 16-bit big-endian words added so far, RFC 1071, so any such words,
// or lengths and protocol numbers, may be added to it with an end-around
// carry. It is zero only if all that was added is.

// wideLen is from how many bytes on sumWide is used.
const wideLen = 256

// Sum adds b to a running sum. b must start at an even offset of what is
// summed; if its length is odd, it must be the end.
func Sum(b []byte, initial uint64) uint64 {
	// Words are loaded little-endian and the order is corrected at the end:
	// swapping the bytes of every word swaps those of the sum (RFC 1071
	// section 2(B)), and a rotation by eight bits does that to 16-bit words
	// of a sum modulo 65535.
	//
	// Vector instructions sum up to four times as fast, once they are worth it.
	//
	// One chain of additions with carry is bound by its latency, eight bytes a
	// cycle. Two chains that do not wait for each other take twice that.
	var s, s2, c, carries uint64
	if wide && len(b) >= wideLen {
		s = sumWide(b)
		b = b[len(b)&^127:]
	}
	for len(b) >= 128 {
		p := (*[128]byte)(b)
		s, c = bits.Add64(s, binary.LittleEndian.Uint64(p[0:]), 0)
		s, c = bits.Add64(s, binary.LittleEndian.Uint64(p[8:]), c)
		s, c = bits.Add64(s, binary.LittleEndian.Uint64(p[16:]), c)
		s, c = bits.Add64(s, binary.LittleEndian.Uint64(p[24:]), c)
		s, c = bits.Add64(s, binary.LittleEndian.Uint64(p[32:]), c)
		s, c = bits.Add64(s, binary.LittleEndian.Uint64(p[40:]), c)
		s, c = bits.Add64(s, binary.LittleEndian.Uint64(p[48:]), c)
		s, c = bits.Add64(s, binary.LittleEndian.Uint64(p[56:]), c)
		carries += c
		s2, c = bits.Add64(s2, binary.LittleEndian.Uint64(p[64:]), 0)
		s2, c = bits.Add64(s2, binary.LittleEndian.Uint64(p[72:]), c)
		s2, c = bits.Add64(s2, binary.LittleEndian.Uint64(p[80:]), c)
		s2, c = bits.Add64(s2, binary.LittleEndian.Uint64(p[88:]), c)
		s2, c = bits.Add64(s2, binary.LittleEndian.Uint64(p[96:]), c)
		s2, c = bits.Add64(s2, binary.LittleEndian.Uint64(p[104:]), c)
		s2, c = bits.Add64(s2, binary.LittleEndian.Uint64(p[112:]), c)
		s2, c = bits.Add64(s2, binary.LittleEndian.Uint64(p[120:]), c)
		carries += c
		b = b[128:]
	}
	s, c = bits.Add64(s, s2, 0)
	s = sumRest(b, s, carries+c)
	return add(bits.RotateLeft64(s, 8), initial)
}

// sumRest ends Sum's work on the last bytes, fewer than 128, where a loop
// would cost more than it does. It returns s with all carries added.
func sumRest(b []byte, s, carries uint64) uint64 {
	var c uint64
	if len(b) >= 64 {
		p := (*[64]byte)(b)
		s, c = bits.Add64(s, binary.LittleEndian.Uint64(p[0:]), 0)
		s, c = bits.Add64(s, binary.LittleEndian.Uint64(p[8:]), c)
		s, c = bits.Add64(s, binary.LittleEndian.Uint64(p[16:]), c)
		s, c = bits.Add64(s, binary.LittleEndian.Uint64(p[24:]), c)
		s, c = bits.Add64(s, binary.LittleEndian.Uint64(p[32:]), c)
		s, c = bits.Add64(s, binary.LittleEndian.Uint64(p[40:]), c)
		s, c = bits.Add64(s, binary.LittleEndian.Uint64(p[48:]), c)
		s, c = bits.Add64(s, binary.LittleEndian.Uint64(p[56:]), c)
		carries += c
		b = b[64:]
	}
	if len(b) >= 32 {
		p := (*[32]byte)(b)
		s, c = bits.Add64(s, binary.LittleEndian.Uint64(p[0:]), 0)
		s, c = bits.Add64(s, binary.LittleEndian.Uint64(p[8:]), c)
		s, c = bits.Add64(s, binary.LittleEndian.Uint64(p[16:]), c)
		s, c = bits.Add64(s, binary.LittleEndian.Uint64(p[24:]), c)
		carries += c
		b = b[32:]
	}
	if len(b) >= 16 {
		p := (*[16]byte)(b)
		s, c = bits.Add64(s, binary.LittleEndian.Uint64(p[0:]), 0)
		s, c = bits.Add64(s, binary.LittleEndian.Uint64(p[8:]), c)
		carries += c
		b = b[16:]
	}
	if len(b) >= 8 {
		s, c = bits.Add64(s, binary.LittleEndian.Uint64(b), 0)
		carries += c
		b = b[8:]
	}
	if len(b) > 0 {
		s, c = bits.Add64(s, tail(b), 0)
		carries += c
	}
	return add(s, carries)
}

// tail is a little-endian word of the fewer than eight bytes in b, with zeros
// behind them.
func tail(b []byte) uint64 {
	var w uint64
	shift := uint(0)
	if len(b) >= 4 {
		w = uint64(binary.LittleEndian.Uint32(b))
		b, shift = b[4:], 32
	}
	if len(b) >= 2 {
		w |= uint64(binary.LittleEndian.Uint16(b)) << (shift & 63)
		b, shift = b[2:], shift+16
	}
	if len(b) > 0 {
		w |= uint64(b[0]) << (shift & 63)
	}
	return w
}

// add is one's-complement addition.
func add(a, b uint64) uint64 {
	s, c := bits.Add64(a, b, 0)
	return s + c // cannot overflow: with a carry, s is at most 2^64-2
}

// Fold reduces a running sum to 16 bits, not complemented: what a partial
// checksum field holds.
func Fold(s uint64) uint16 {
	s = s>>32 + s&0xffffffff
	s = s>>16 + s&0xffff
	s = s>>16 + s&0xffff
	s = s>>16 + s&0xffff
	return uint16(s)
}

// Checksum is the Internet checksum of b, as stored in a header whose checksum
// field is zero in b.
func Checksum(b []byte) uint16 { return ^Fold(Sum(b, 0)) }

// PseudoSum is the sum of the pseudo-header of RFC 9293 section 3.1 (IPv4) or
// RFC 8200 section 8.1 (IPv6). length is that of upper-layer header and
// payload; of a super-frame, of the whole of it.
func PseudoSum(src, dst *Addr, proto uint8, length int) uint64 {
	// The prefix ::ffff:0:0/96 of a mapped address adds 0xffff, which is zero
	// in one's complement, so both families are summed alike.
	s, c := bits.Add64(binary.BigEndian.Uint64(src[0:]), binary.BigEndian.Uint64(src[8:]), 0)
	s, c = bits.Add64(s, binary.BigEndian.Uint64(dst[0:]), c)
	s, c = bits.Add64(s, binary.BigEndian.Uint64(dst[8:]), c)
	s, c = bits.Add64(s, uint64(length)+uint64(proto), c)
	s, c = bits.Add64(s, 0, c)
	return s + c
}

// ChecksumOK tells whether the upper-layer checksum is right or need not be
// looked at. It need not where o (which may be nil) says that the link vouches
// for it or that it is still to be filled in, in a fragment, and with a protocol
// other than TCP, UDP, ICMP and ICMPv6. With OffloadUntold the field itself may
// say that: it is still to be filled in where it holds the pseudo-header's sum.
// UDP over IPv4 may come without checksum, over IPv6 it may not (RFC 8200 section
// 8.1). A header cut short is not right.
func (p *Packet) ChecksumOK(o *Offload) bool {
	if o != nil && o.Flags&(OffloadNeedsChecksum|OffloadDataValid) != 0 || p.Fragment {
		return true
	}
	b := p.Payload()
	switch {
	case p.IPVersion == 0:
		return true
	case p.Proto == ProtoTCP:
		return len(b) >= tcpLen && p.sumOK(b, p.Beyond, o.untold(), tcpChecksumOffset)
	case p.Proto == ProtoUDP:
		return p.udpSumOK(b, o.untold())
	case p.Proto == ProtoICMP && p.IPVersion == 4:
		return len(b) >= icmpLen && Fold(Sum(b, 0)) == 0xffff
	case p.Proto == ProtoICMPv6 && p.IPVersion == 6:
		return len(b) >= icmpLen && p.sumOK(b, 0, false, 0)
	}
	return true
}

func (p *Packet) udpSumOK(b []byte, untold bool) bool {
	if len(b) < udpLen {
		return false
	}
	n := int(binary.BigEndian.Uint16(b[4:]))
	if n < udpLen || n > len(b) {
		return false
	}
	if b[6] == 0 && b[7] == 0 {
		return p.IPVersion == 4
	}
	return p.sumOK(b[:n], 0, untold, udpChecksumOffset)
}

// sumOK tells whether the checksum of b, and of beyond bytes more, is right. Where
// nobody could tell, it need not be there yet; then the payload is not read.
func (p *Packet) sumOK(b []byte, beyond int, untold bool, field int) bool {
	pseudo := PseudoSum(&p.Src, &p.Dst, p.Proto, len(b)+beyond)
	if untold && binary.BigEndian.Uint16(b[field:]) == Fold(pseudo) {
		return true
	}
	if beyond > 0 {
		pseudo = SumAt(len(b), p.More, beyond, pseudo)
	}
	return Fold(Sum(b, pseudo)) == 0xffff
}

// SumAt adds the first n bytes of pieces to a running sum, as they stand at an
// offset, even or odd, of what is summed.
func SumAt(offset int, pieces [][]byte, n int, initial uint64) uint64 {
	for _, b := range pieces {
		b = b[:min(n, len(b))]
		s := Sum(b, 0)
		if offset&1 != 0 { // RFC 1071 section 2(B)
			s = uint64(bits.ReverseBytes16(Fold(s)))
		}
		initial = add(initial, s)
		offset += len(b)
		n -= len(b)
	}
	return initial
}

func (o *Offload) untold() bool { return o != nil && o.Flags&OffloadUntold != 0 }

// Tell replaces OffloadUntold by what the frame's headers say: OffloadNeedsChecksum
// where the checksum field of TCP or UDP holds the pseudo-header's sum alone. So who
// copies the frame can complete it. Preconditions: p was decoded of the whole frame.
func (p *Packet) Tell(o *Offload) {
	if !o.untold() {
		return
	}
	o.Flags &^= OffloadUntold
	b, n, field, least := p.Payload(), 0, tcpChecksumOffset, tcpLen
	switch {
	case p.IPVersion == 0 || p.Fragment:
		return
	case p.Proto == ProtoTCP:
		n = len(b)
	case p.Proto == ProtoUDP && len(b) >= udpLen:
		n, field, least = int(binary.BigEndian.Uint16(b[4:])), udpChecksumOffset, udpLen
	}
	if n < least || n > len(b) || p.L4 > math.MaxUint16 {
		return
	}
	sum := binary.BigEndian.Uint16(b[field:])
	if sum == 0 || sum != Fold(PseudoSum(&p.Src, &p.Dst, p.Proto, n)) {
		return
	}
	o.Flags |= OffloadNeedsChecksum
	o.CsumStart, o.CsumOffset = uint16(p.L4), uint16(field)
}

// CompleteChecksum does in software what OffloadNeedsChecksum asks for, on one
// frame that is not a super-frame and holds no padding, and clears the flag.
// If the offsets lie outside the frame, nothing is written.
func CompleteChecksum(frame []byte, o *Offload) {
	if o.Flags&OffloadNeedsChecksum == 0 {
		return
	}
	o.Flags &^= OffloadNeedsChecksum
	start := int(o.CsumStart)
	field := start + int(o.CsumOffset)
	if field+2 > len(frame) {
		return
	}
	sum := ^Fold(Sum(frame[start:], 0))
	if sum == 0 && o.CsumOffset == udpChecksumOffset {
		sum = 0xffff // zero means "none", RFC 768
	}
	binary.BigEndian.PutUint16(frame[field:], sum)
}
