// SPDX-License-Identifier: Apache-2.0

package packet

import "encoding/binary"

// Bounds on extension headers, as RFC 8504 section 5.3 lets a host set them.
// Real traffic has one or two of 8 to 40 bytes.
const (
	maxExtensions     = 8
	maxExtensionBytes = 512
)

// Options that are known, or that are skipped though their type says not to.
const (
	optionPad1   = 0
	optionAction = 0xc0 // mask: what to do if unknown; 0 is to skip it, RFC 8200 section 4.2
	// The jumbo payload length, RFC 2675. No link of ours carries more than
	// the ordinary length field says, and that field is what counts.
	optionJumbo = 0xc2
)

// decode6 reads an IPv6 header, RFC 8200 section 3; b starts with it.
func (p *Packet) decode6(b []byte) error {
	if len(b) < ipv6Len {
		return ErrTruncated
	}
	if b[0]>>4 != 6 {
		return ErrVersion
	}
	total := ipv6Len + int(binary.BigEndian.Uint16(b[4:6]))
	if total > len(b)+p.Beyond {
		return ErrTruncated
	}
	p.IPVersion = 6
	p.TrafficClass = b[0]<<4 | b[1]>>4
	p.Proto = b[6]
	p.TTL = b[7]
	p.Src = Addr(b[8:24])
	p.Dst = Addr(b[24:40])
	// Addr holds IPv4 addresses in mapped form. On the wire that form has no
	// meaning, and taken for IPv4 it would reach what IPv4 rules guard.
	if p.Src.Is4() || p.Dst.Is4() {
		return ErrMapped
	}
	p.L4 = p.L3 + ipv6Len
	p.ends(p.L3 + total)
	p.DF, p.ProtoAt = true, p.L3+6
	switch p.Proto {
	case ProtoTCP, ProtoUDP, ProtoICMPv6:
		return nil
	}
	return p.extensions()
}

// extensions walks the chain of extension headers and sets Proto and L4, and
// the fields of a fragment.
func (p *Packet) extensions() error {
	next, off := p.Proto, p.L4
	named := p.ProtoAt // offset of the Next Header byte that holds next
	for n := 0; ; n++ {
		size, err := p.extension(next, off)
		switch {
		case err != nil:
			return err
		case size == 0:
			return p.upper(next, off, named)
		case n == maxExtensions || off+size-p.L3-ipv6Len > maxExtensionBytes,
			next == ProtoHopByHop && n > 0: // RFC 8200 section 4.1: only the first
			return ErrExtension
		}
		if next == ProtoFragment {
			done, err := p.fragment6(off, named)
			if done || err != nil {
				return err
			}
		}
		next, named = p.Frame[off], off
		off += size
	}
}

// upper ends the walk at the upper-layer header. In a first fragment it only
// makes sure that the header is there (RFC 8200 section 4.5, RFC 7112).
func (p *Packet) upper(proto uint8, off, named int) error {
	if !p.Fragment {
		p.Proto, p.L4, p.ProtoAt = proto, off, named
		return nil
	}
	need := 0
	switch proto {
	case ProtoTCP:
		need = tcpLen
	case ProtoUDP, ProtoICMPv6:
		need = 8
	}
	if p.End-off < need {
		return ErrFragment
	}
	return nil
}

// extension returns the size of the extension header at off, or zero if next
// is not one that is walked. It checks what the header says, fragments apart.
func (p *Packet) extension(next uint8, off int) (int, error) {
	switch next {
	case ProtoHopByHop, ProtoRouting, ProtoFragment, ProtoDestOpts:
	default:
		return 0, nil
	}
	if p.End-off < 8 {
		return 0, ErrTruncated
	}
	if next == ProtoFragment {
		return 8, nil
	}
	size := 8 + int(p.Frame[off+1])*8
	if p.End-off < size {
		return 0, ErrTruncated
	}
	if next == ProtoRouting {
		// With segments left this is not the packet's destination, and type 0
		// is forbidden besides (RFC 5095).
		if p.Frame[off+3] != 0 {
			return 0, ErrRouting
		}
		return size, nil
	}
	return size, checkOptions(p.Frame[off+2 : off+size])
}

// checkOptions steps through the options of a hop-by-hop or destination
// options header. An option that is unknown is skipped only if its type allows
// that; all others demand that the packet is discarded.
func checkOptions(b []byte) error {
	for len(b) > 0 {
		if b[0] == optionPad1 {
			b = b[1:]
			continue
		}
		if len(b) < 2 || len(b)-2 < int(b[1]) {
			return ErrTruncated
		}
		if b[0]&optionAction != 0 && b[0] != optionJumbo {
			return ErrOption
		}
		b = b[2+int(b[1]):]
	}
	return nil
}

// fragment6 reads the fragment header at off, RFC 8200 section 4.5. It reports
// done when no header follows that could be read: behind any fragment but the
// first there is plain data.
func (p *Packet) fragment6(off, named int) (done bool, err error) {
	b := p.Frame[off : off+8]
	f := binary.BigEndian.Uint16(b[2:4])
	offset, more := int(f&^7), f&1 != 0
	if p.FragNext != 0 {
		return true, ErrExtension // a second fragment header
	}
	p.FragNext = named
	p.FragID = binary.BigEndian.Uint32(b[4:8])
	p.FragUnfragLen = off - p.L3
	if offset == 0 && !more {
		return false, nil
	}
	p.Proto, p.L4 = b[0], off+8
	err = p.setFragment(offset, more, p.FragUnfragLen-ipv6Len)
	return offset != 0, err
}
