// SPDX-License-Identifier: Apache-2.0

package packet

import "encoding/binary"

const udpLen = 8

// UDP is a decoded datagram, RFC 768. It is meant to be reused.
type UDP struct {
	SrcPort, DstPort uint16 // in host byte order
	Length           uint16 // header and payload, as sent
	Checksum         uint16 // 0: none
	Payload          []byte // in the frame
}

// Decode reads a datagram. Its Length must cover the header and fit into l4;
// what follows it in l4 is not payload.
func (u *UDP) Decode(l4 []byte) error {
	if len(l4) < udpLen {
		return ErrTruncated
	}
	u.header(l4)
	switch {
	case u.Length < udpLen:
		return ErrHeaderLength
	case int(u.Length) > len(l4):
		return ErrTruncated
	}
	u.Payload = l4[udpLen:u.Length]
	return nil
}

// DecodeGSO reads a super-frame (Offload.GSOType is GSOUDPL4), whose payload is
// all of l4: senders do not agree on what Length is before segmentation, so it
// says nothing.
func (u *UDP) DecodeGSO(l4 []byte) error {
	if len(l4) < udpLen {
		return ErrTruncated
	}
	u.header(l4)
	u.Payload = l4[udpLen:]
	return nil
}

func (u *UDP) header(l4 []byte) {
	h := (*[udpLen]byte)(l4)
	u.SrcPort = binary.BigEndian.Uint16(h[0:])
	u.DstPort = binary.BigEndian.Uint16(h[2:])
	u.Length = binary.BigEndian.Uint16(h[4:])
	u.Checksum = binary.BigEndian.Uint16(h[6:])
}
