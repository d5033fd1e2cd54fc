// SPDX-License-Identifier: Apache-2.0

package fuzz

import (
	"encoding/binary"
	"fmt"
)

// CheckFrame verifies a frame that goes to a guest: every length in it is exact,
// every checksum valid, and TCP options make a list. A frame of 60 bytes may be
// padded. Other than IP, nothing is looked at.
func CheckFrame(b []byte) error {
	if len(b) < ethernet {
		return fmt.Errorf("frame of %d bytes", len(b))
	}
	if t := binary.BigEndian.Uint16(b[12:]); t != etherIPv4 && t != etherIPv6 {
		return nil
	}
	l, ok := locate(b)
	if !ok {
		return fmt.Errorf("headers beyond the frame of %d bytes", len(b))
	}
	if l.end != len(b) && len(b) != 60 {
		return fmt.Errorf("IP packet ends at %d of %d", l.end, len(b))
	}
	if h := b[ethernet:l.upper]; !l.v6 && Sum(h) != 0xffff {
		return fmt.Errorf("IPv4 header checksum of %x", h)
	}
	if l.fragment {
		return nil
	}
	return l.checkUpper(b)
}

func (l *layout) checkUpper(b []byte) error {
	u := b[l.upper:l.end]
	at, _ := l.checksumAt()
	if at == 0 {
		return nil
	}
	if len(u) < 8 || l.proto == protoTCP && len(u) < 20 {
		return fmt.Errorf("protocol %d with %d bytes", l.proto, len(u))
	}
	switch l.proto {
	case protoTCP:
		end := int(u[12]>>4) * 4
		if end < 20 || end > len(u) || !optionsEnd(u[20:end]) {
			return fmt.Errorf("TCP header of %d bytes in %d, options %x", end, len(u), u[20:min(max(end, 20), len(u))])
		}
	case protoUDP:
		if n := int(binary.BigEndian.Uint16(u[4:])); n != len(u) {
			return fmt.Errorf("UDP length %d with %d bytes", n, len(u))
		}
		if u[6] == 0 && u[7] == 0 {
			return fmt.Errorf("UDP without checksum")
		}
	}
	if s := l.upperSum(b); s != 0xffff {
		return fmt.Errorf("checksum of protocol %d: sum %#04x", l.proto, s)
	}
	return nil
}

// optionsEnd tells whether TCP options fill b, or end before it does.
func optionsEnd(b []byte) bool {
	for len(b) > 0 && b[0] != 0 {
		switch {
		case b[0] == 1:
			b = b[1:]
		case len(b) < 2 || b[1] < 2 || int(b[1]) > len(b):
			return false
		default:
			b = b[b[1]:]
		}
	}
	return true
}
