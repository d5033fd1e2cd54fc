// SPDX-License-Identifier: Apache-2.0

package proxy

import "aldente/ipc"

// maxHeader bounds what a proxy may answer, all interim answers included.
const maxHeader = 8 << 10

// statusLen is the shortest that a status line may begin with, "HTTP/1.1 200", RFC 9112
// section 4. So much may be read at once.
const statusLen = 12

// httpProxy is a proxy of HTTP. It keeps its status line's beginning, and of the rest
// where a line begins.
type httpProxy struct {
	status [statusLen]byte
	n      int  // of the answer that is being read
	total  int  // of all
	inLine int  // bytes of the current line, without its end
	cr     bool // the last byte was a carriage return
	code   uint16
}

// want: the end of the header comes when nobody knows. What is behind it is not ours, so
// bytes come one by one.
func (h *httpProxy) want() int { return max(statusLen-h.n, 1) }

func (h *httpProxy) take(b []byte) (out []byte, result uint8, code uint16) {
	for _, c := range b {
		if h.total++; h.total > maxHeader {
			return nil, ipc.RelayGarbage, h.code
		}
		if r := h.byte(c); r != 0 {
			return nil, r, h.code
		}
	}
	return nil, 0, 0
}

// byte takes one. It returns one of ipc.Relay* once it is known.
func (h *httpProxy) byte(c byte) uint8 {
	i := h.n
	h.n++
	switch {
	case i < statusLen:
		h.status[i] = c
		h.inLine++
		if !fits(i, c) {
			return ipc.RelayGarbage
		}
		if i == statusLen-1 {
			h.code = uint16(h.status[9]-'0')*100 + uint16(h.status[10]-'0')*10 + uint16(c-'0')
			if h.code < 100 {
				return ipc.RelayGarbage
			}
		}
		return 0
	case i == statusLen && c != ' ' && c != '\r' && c != '\n', // a number of four digits, or what not
		h.cr && c != '\n', c < ' ' && c != '\r' && c != '\n' && c != '\t', c == 0x7f:
		return ipc.RelayGarbage
	}
	switch h.cr = c == '\r'; {
	case h.cr:
	case c != '\n':
		h.inLine++
	case h.inLine > 0: // the end of a line, RFC 9112 section 2.2: with or without CR
		h.inLine = 0
	default:
		return h.end()
	}
	return 0
}

// fits tells whether a byte may be that of the beginning of a status line.
func fits(i int, c byte) bool {
	const form = "HTTP/1.d ddd"
	if form[i] == 'd' {
		return '0' <= c && c <= '9'
	}
	return form[i] == c
}

// end is what the answer means, RFC 9110 section 15. An interim one is followed by
// another. Whatever the header says of a body, one that is successful has none (section
// 9.3.6).
func (h *httpProxy) end() uint8 {
	switch c := h.code; {
	case c == 101:
		return ipc.RelayGarbage // nobody has asked for that
	case c < 200:
		h.n, h.code = 0, 0
		return 0
	case c < 300:
		return ipc.RelayDone
	case c == 401 || c == 407:
		return ipc.RelayAuth
	case c == 403 || c == 451:
		return ipc.RelayDenied
	case c == 405 || c == 501 || c == 505:
		return ipc.RelayUnsupported
	case c == 502:
		return ipc.RelayHost
	case c == 504 || c == 408:
		return ipc.RelayTimeout
	}
	return ipc.RelayFailed
}
