// SPDX-License-Identifier: Apache-2.0

package packet

import "encoding/binary"

// TCP header flags, RFC 9293 section 3.1 and RFC 3168.
const (
	FIN = 1
	SYN = 2
	RST = 4
	PSH = 8
	ACK = 16
	URG = 32
	ECE = 64
	CWR = 128
)

const (
	tcpLen = 20

	optionEnd           = 0
	optionNop           = 1
	optionMSS           = 2 // RFC 9293 section 3.7.1
	optionWScale        = 3 // RFC 7323 section 2.2
	optionSACKPermitted = 4 // RFC 2018 section 2
	optionSACK          = 5 // RFC 2018 section 3

	// maxWScale is the largest shift that may be used, RFC 7323 section 2.3.
	maxWScale = 14

	// maxSACK is how many blocks fit into 40 bytes of options.
	maxSACK = 4
)

// SACKBlock is a range of sequence numbers that has arrived: Left is the
// first, Right the one after the last. Nothing is checked of them.
type SACKBlock struct{ Left, Right uint32 }

// TCP is a decoded segment. It is meant to be reused.
type TCP struct {
	SrcPort, DstPort uint16 // in host byte order, as all below
	Seq, Ack         uint32 // Ack means something with ACK only
	Flags            uint8  // FIN to CWR
	Window, Urgent   uint16 // Window as sent, not scaled
	Payload          []byte // in the frame

	// More is where the payload goes on, for Beyond bytes: see Packet.
	More   [][]byte
	Beyond int // bytes

	// Options. The first three count only in segments with SYN, SACK only in
	// those without; elsewhere they are not reported.
	MSS           uint16             // 0: none
	WScale        int8               // 0 to 14, -1: none
	SACKPermitted bool               // RFC 2018 section 2
	NumSACK       int                // 0 to 4
	SACK          [maxSACK]SACKBlock // the first NumSACK are set
}

// Decode reads a segment; l4 ends where the segment does. The checksum is not
// looked at.
func (t *TCP) Decode(l4 []byte) error {
	if len(l4) < tcpLen {
		return ErrTruncated
	}
	h := (*[tcpLen]byte)(l4)
	hlen := int(h[12]>>4) * 4
	if hlen < tcpLen {
		return ErrHeaderLength
	}
	if hlen > len(l4) {
		return ErrTruncated
	}
	t.SrcPort = binary.BigEndian.Uint16(h[0:])
	t.DstPort = binary.BigEndian.Uint16(h[2:])
	t.Seq = binary.BigEndian.Uint32(h[4:])
	t.Ack = binary.BigEndian.Uint32(h[8:])
	t.Flags = h[13]
	t.Window = binary.BigEndian.Uint16(h[14:])
	t.Urgent = binary.BigEndian.Uint16(h[18:])
	t.Payload = l4[hlen:]
	t.More, t.Beyond = nil, 0
	t.MSS, t.WScale, t.SACKPermitted, t.NumSACK = 0, -1, false, 0
	if hlen > tcpLen {
		t.options(l4[tcpLen:hlen])
	}
	return nil
}

// TCP reads the segment that p carries, wherever its payload lies.
func (p *Packet) TCP(t *TCP) error {
	err := t.Decode(p.Payload())
	t.More, t.Beyond = p.More, p.Beyond
	return err
}

// Len is the length of the payload.
func (t *TCP) Len() int { return len(t.Payload) + t.Beyond }

// TCPHeaders is the length of all headers of a frame with a TCP segment, if it
// begins with all of them: an IP packet that is no fragment and has no extension
// headers. Otherwise it is zero. Nothing else of them is checked.
func TCPHeaders(frame []byte) int {
	if len(frame) < EthernetLen+ipv4Len+tcpLen {
		return 0
	}
	ip, l4 := frame[EthernetLen:], 0
	switch binary.BigEndian.Uint16(frame[12:14]) {
	case EtherTypeIPv4:
		hlen := int(ip[0]&15) * 4
		if hlen < ipv4Len || ip[9] != ProtoTCP || binary.BigEndian.Uint16(ip[6:8])&(ipv4MF|ipv4OffsetMask) != 0 {
			return 0
		}
		l4 = EthernetLen + hlen
	case EtherTypeIPv6:
		if ip[6] != ProtoTCP {
			return 0
		}
		l4 = EthernetLen + ipv6Len
	default:
		return 0
	}
	if l4+tcpLen > len(frame) {
		return 0
	}
	if n := l4 + int(frame[l4+12]>>4)*4; n >= l4+tcpLen && n <= len(frame) {
		return n
	}
	return 0
}

// options reads what it knows, skips what it does not, and stops at a length
// that is impossible, keeping what came before (RFC 9293 section 3.2, MUST-7).
// A known option of the wrong length is skipped.
func (t *TCP) options(b []byte) {
	for len(b) > 0 {
		switch b[0] {
		case optionEnd:
			return
		case optionNop:
			b = b[1:]
			continue
		}
		if len(b) < 2 || b[1] < 2 || int(b[1]) > len(b) {
			return
		}
		t.option(b[0], b[2:b[1]])
		b = b[b[1]:]
	}
}

func (t *TCP) option(kind uint8, data []byte) {
	syn := t.Flags&SYN != 0
	switch {
	case kind == optionMSS && syn && len(data) == 2:
		t.MSS = binary.BigEndian.Uint16(data)
	case kind == optionWScale && syn && len(data) == 1:
		t.WScale = int8(min(data[0], maxWScale))
	case kind == optionSACKPermitted && syn && len(data) == 0:
		t.SACKPermitted = true
	case kind == optionSACK && !syn && len(data)%8 == 0:
		// At most four blocks: the option has at most 38 bytes of data.
		t.NumSACK = len(data) / 8
		for i := range t.NumSACK {
			t.SACK[i] = SACKBlock{
				Left:  binary.BigEndian.Uint32(data[i*8:]),
				Right: binary.BigEndian.Uint32(data[i*8+4:]),
			}
		}
	}
}
