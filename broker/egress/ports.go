// SPDX-License-Identifier: Apache-2.0

package egress

import (
	"fmt"
	"strconv"
	"strings"
)

// cutPorts splits "DEST:PORTS". A colon belongs to ports if what precedes it
// is bracketed or holds no other colon, so that IPv6 addresses with ports are
// written in brackets. A colon with nothing behind it is an error, as is half of the
// brackets: a port was meant, and without it the rule would be for all.
func cutPorts(s string) (dest, ports string, err error) {
	dest = s
	if i := strings.LastIndexByte(s, ':'); i >= 0 {
		head := s[:i]
		if !strings.Contains(head, ":") || strings.HasPrefix(head, "[") && strings.Contains(head, "]") {
			if dest, ports = head, s[i+1:]; ports == "" {
				return dest, "", fmt.Errorf("no port behind the colon: write one, as %s:443, or leave the colon out", dest)
			}
		}
	}
	return dest, ports, paired(dest)
}

// paired tells whether an address is in brackets or not.
func paired(s string) error {
	if strings.HasPrefix(s, "[") != strings.Contains(s, "]") {
		return fmt.Errorf("%q has one bracket of two", s)
	}
	return nil
}

func parsePorts(s string) (first, last uint16, err error) {
	a, b, ranged := strings.Cut(s, "-")
	if !ranged {
		b = a
	}
	lo, err1 := strconv.ParseUint(a, 10, 16)
	hi, err2 := strconv.ParseUint(b, 10, 16)
	if err1 != nil || err2 != nil || lo == 0 || hi < lo {
		return 0, 0, fmt.Errorf("%q is not a port or a range of ports", s)
	}
	return uint16(lo), uint16(hi), nil
}
