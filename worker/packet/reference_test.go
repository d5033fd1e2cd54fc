// SPDX-License-Identifier: Apache-2.0

package packet

import (
	"encoding/binary"

	"aldente/fuzz"
)

// referenceDecode reads a frame as the RFCs say it, one rule after the other,
// with no regard to speed. The order of the rules decides which error is
// reported.
func referenceDecode(b []byte) (p Packet, err error) {
	if len(b) < 14 {
		return Packet{}, ErrTruncated
	}
	ethernet := Packet{EtherType: binary.BigEndian.Uint16(b[12:]), L3: 14, L4: 14, End: 14}
	copy(ethernet.DstMAC[:], b)
	copy(ethernet.SrcMAC[:], b[6:])
	p = ethernet
	switch p.EtherType {
	case 0x0800:
		err = reference4(&p, b)
	case 0x86dd:
		err = reference6(&p, b)
	default:
		p.End = len(b)
	}
	if err != nil {
		return ethernet, err
	}
	return p, nil
}

func reference4(p *Packet, b []byte) error {
	ip := b[14:]
	if len(ip) < 20 {
		return ErrTruncated
	}
	version, header, total := ip[0]>>4, int(ip[0]&15)*4, int(ip[2])<<8|int(ip[3])
	if version != 4 {
		return ErrVersion
	}
	if header < 20 || total < header {
		return ErrHeaderLength
	}
	if total > len(ip) {
		return ErrTruncated
	}
	if fuzz.Sum(ip[:header]) != 0xffff {
		return ErrHeaderChecksum
	}
	p.IPVersion, p.TrafficClass, p.TTL, p.Proto = 4, ip[1], ip[8], ip[9]
	p.Src, p.Dst = AddrFrom4([4]byte(ip[12:16])), AddrFrom4([4]byte(ip[16:20]))
	p.L4, p.End = 14+header, 14+total
	p.FragID = uint32(ip[4])<<8 | uint32(ip[5])
	more, offset := ip[6]&0x20 != 0, (int(ip[6]&0x1f)<<8|int(ip[7]))*8
	if !more && offset == 0 {
		return nil
	}
	p.Fragment, p.MoreFragments, p.FragOffset = true, more, offset
	data := total - header
	if data == 0 || more && data%8 != 0 || header+offset+data > 65535 {
		return ErrFragment
	}
	return nil
}

func reference6(p *Packet, b []byte) error {
	ip := b[14:]
	if len(ip) < 40 {
		return ErrTruncated
	}
	if ip[0]>>4 != 6 {
		return ErrVersion
	}
	length := int(ip[4])<<8 | int(ip[5])
	if 40+length > len(ip) {
		return ErrTruncated
	}
	p.IPVersion, p.TrafficClass, p.TTL = 6, ip[0]<<4|ip[1]>>4, ip[7]
	copy(p.Src[:], ip[8:])
	copy(p.Dst[:], ip[24:])
	if p.Src.Is4() || p.Dst.Is4() {
		return ErrMapped
	}
	p.L4, p.End, p.Proto = 54, 54+length, ip[6]
	return referenceChain(p, ip[:40+length])
}

// referenceChain reads extension headers. at is the offset in the IP packet.
func referenceChain(p *Packet, ip []byte) error {
	next, named, at := ip[6], 6, 40
	seen := map[uint8]bool{}
	for count := 0; ; count++ {
		if next != 0 && next != 43 && next != 44 && next != 60 {
			break
		}
		size := 8
		if len(ip)-at < 8 {
			return ErrTruncated
		}
		if next != 44 {
			size = 8 * (1 + int(ip[at+1]))
		}
		if len(ip)-at < size {
			return ErrTruncated
		}
		if next == 43 && ip[at+3] != 0 {
			return ErrRouting
		}
		if next == 0 || next == 60 {
			if err := referenceOptions(ip[at+2 : at+size]); err != nil {
				return err
			}
		}
		if count == 8 || at+size-40 > 512 || next == 0 && count != 0 || next == 44 && seen[44] {
			return ErrExtension
		}
		seen[next] = true
		if next == 44 {
			word := int(ip[at+2])<<8 | int(ip[at+3])
			p.FragNext, p.FragUnfragLen = 14+named, at
			p.FragID = binary.BigEndian.Uint32(ip[at+4:])
			if offset, more := word&^7, word&1 != 0; offset != 0 || more {
				p.Fragment, p.MoreFragments, p.FragOffset = true, more, offset
				p.Proto, p.L4 = ip[at], 14+at+8
				data := len(ip) - at - 8
				if data == 0 || more && data%8 != 0 || at-40+offset+data > 65535 {
					return ErrFragment
				}
				if offset != 0 {
					return nil // what follows is no header
				}
			}
		}
		next, named, at = ip[at], at, at+size
	}
	if !p.Fragment {
		p.Proto, p.L4 = next, 14+at
		return nil
	}
	// RFC 7112: the first fragment holds the whole chain.
	least := map[uint8]int{6: 20, 17: 8, 58: 8}[next]
	if len(ip)-at < least {
		return ErrFragment
	}
	return nil
}

func referenceOptions(b []byte) error {
	for i := 0; i < len(b); {
		if b[i] == 0 {
			i++
			continue
		}
		if i+1 == len(b) || i+2+int(b[i+1]) > len(b) {
			return ErrTruncated
		}
		if b[i]>>6 != 0 && b[i] != 0xc2 {
			return ErrOption
		}
		i += 2 + int(b[i+1])
	}
	return nil
}

// referenceSumOK verifies the upper layer's checksum as RFC 1071 has it.
func referenceSumOK(p *Packet) bool {
	u := p.Payload()
	pseudo := append(p.Src[:], p.Dst[:]...)
	switch {
	case p.Fragment || p.IPVersion == 0:
		return true
	case p.Proto == ProtoTCP && len(u) < 20:
		return false
	case p.Proto == ProtoTCP:
	case p.Proto == ProtoUDP:
		if len(u) < 8 {
			return false
		}
		n := int(u[4])<<8 | int(u[5])
		if n < 8 || n > len(u) {
			return false
		}
		if u[6] == 0 && u[7] == 0 {
			return p.IPVersion == 4
		}
		u = u[:n]
	case p.Proto == ProtoICMP && p.IPVersion == 4:
		return len(u) >= 8 && fuzz.Sum(u) == 0xffff
	case p.Proto == ProtoICMPv6 && p.IPVersion == 6:
		if len(u) < 8 {
			return false
		}
	default:
		return true
	}
	if p.IPVersion == 4 {
		pseudo = append(p.Src[12:16:16], p.Dst[12:]...)
	}
	pseudo = append(pseudo[:len(pseudo):len(pseudo)], 0, p.Proto, uint8(len(u)>>8), uint8(len(u)))
	return fuzz.Sum(pseudo, u) == 0xffff
}
