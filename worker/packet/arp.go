// SPDX-License-Identifier: Apache-2.0

package packet

import "encoding/binary"

// Values of ARP.Op, RFC 826.
const (
	ARPRequest = 1
	ARPReply   = 2
)

const (
	arpLen = 28

	// minFrame is the shortest Ethernet frame without its check sequence,
	// IEEE 802.3 section 3.2.8.
	minFrame = 60
)

// ARP is a decoded ARP packet for IPv4 over Ethernet, RFC 826: the hardware
// and protocol addresses of sender and target.
type ARP struct {
	Op  uint16  // ARPRequest, ARPReply or other
	SHA MAC     // sender's hardware address
	SPA [4]byte // sender's protocol address
	THA MAC     // target's hardware address
	TPA [4]byte // target's protocol address
}

// arpHead is hardware type Ethernet, protocol type IPv4, and the lengths of
// their addresses.
const arpHead = 0x0001_0800_06_04

// Decode reads an ARP packet; l3 may be followed by padding.
func (a *ARP) Decode(l3 []byte) error {
	if len(l3) < arpLen {
		return ErrTruncated
	}
	if binary.BigEndian.Uint64(l3)>>16 != arpHead {
		return ErrARP
	}
	a.Op = binary.BigEndian.Uint16(l3[6:])
	a.SHA = MAC(l3[8:14])
	a.SPA = [4]byte(l3[14:18])
	a.THA = MAC(l3[18:24])
	a.TPA = [4]byte(l3[24:28])
	return nil
}

// PutARP writes a whole frame from srcMAC to dstEthMAC, padded to 60 bytes,
// and returns its length.
func PutARP(b []byte, op uint16, srcMAC, dstEthMAC MAC, sha MAC, spa [4]byte, tha MAC, tpa [4]byte) int {
	b = b[:minFrame]
	putEthernet(b, &dstEthMAC, &srcMAC, EtherTypeARP)
	p := b[EthernetLen:]
	binary.BigEndian.PutUint64(p, arpHead<<16|uint64(op))
	copy(p[8:14], sha[:])
	copy(p[14:18], spa[:])
	copy(p[18:24], tha[:])
	copy(p[24:28], tpa[:])
	clear(p[arpLen:])
	return minFrame
}
