// SPDX-License-Identifier: Apache-2.0

package proxy

import (
	"encoding/binary"

	"aldente/ipc"
)

// Numbers of RFC 1928 and RFC 1929.
const (
	socksVersion = 5
	methodNone   = 0
	methodUser   = 2
	methodNoneOf = 0xff
	userVersion  = 1
	cmdConnect   = 1
	atypIPv4     = 1
	atypName     = 3
	atypIPv6     = 4
)

// What a socks waits for.
const (
	waitMethod = iota // RFC 1928 section 3
	waitUser          // RFC 1929 section 2
	waitReply         // RFC 1928 section 6: up to the kind of the address
	waitLength        // of the address, which is a name
	waitRest          // address and port
)

// socks is a proxy of SOCKS version 5.
type socks struct {
	config *Config
	to     Target
	wait   int
	rest   int     // with waitRest: bytes that follow
	buf    [4]byte // what has come of what is waited for
	n      int
}

func (s *socks) greeting() []byte {
	if len(s.config.User) > 0 {
		return []byte{socksVersion, 2, methodUser, methodNone}
	}
	return []byte{socksVersion, 1, methodNone}
}

// need is how much is waited for.
func (s *socks) need() int {
	switch s.wait {
	case waitMethod, waitUser:
		return 2
	case waitReply:
		return 4
	case waitLength:
		return 1
	}
	return s.rest
}

func (s *socks) want() int { return s.need() - s.n }

func (s *socks) take(b []byte) (out []byte, result uint8, code uint16) {
	if s.wait == waitRest { // of no concern, but that it ends
		if s.rest -= len(b); s.rest == 0 {
			return nil, ipc.RelayDone, 0
		}
		return nil, 0, 0
	}
	s.n += copy(s.buf[s.n:], b)
	if s.n < s.need() {
		return nil, 0, 0
	}
	s.n = 0
	switch s.wait {
	case waitMethod:
		return s.method()
	case waitUser:
		if s.buf[0] != userVersion {
			return nil, ipc.RelayGarbage, 0
		}
		if s.buf[1] != 0 {
			return nil, ipc.RelayAuth, uint16(s.buf[1])
		}
		return s.request(), 0, 0
	case waitReply:
		return s.reply()
	}
	s.wait, s.rest = waitRest, int(s.buf[0])+2
	return nil, 0, 0
}

// method goes on with the method that the proxy has chosen of ours.
func (s *socks) method() (out []byte, result uint8, code uint16) {
	user := len(s.config.User) > 0
	switch m := s.buf[1]; {
	case s.buf[0] != socksVersion:
		return nil, ipc.RelayGarbage, 0
	case m == methodNone:
		return s.request(), 0, 0
	case m == methodUser && user:
		s.wait = waitUser
		out = make([]byte, 0, 3+len(s.config.User)+len(s.config.Secret))
		out = append(append(out, userVersion, byte(len(s.config.User))), s.config.User...)
		return append(append(out, byte(len(s.config.Secret))), s.config.Secret...), 0, 0
	case m == methodNoneOf:
		return nil, ipc.RelayAuth, methodNoneOf
	}
	return nil, ipc.RelayGarbage, 0
}

// request asks for the destination, RFC 1928 section 4.
func (s *socks) request() []byte {
	s.wait = waitReply
	b := []byte{socksVersion, cmdConnect, 0}
	switch a := s.to.Addr.Addr(); {
	case s.to.Name != "":
		b = append(append(b, atypName, byte(len(s.to.Name))), s.to.Name...)
	case a.Is4():
		b = append(append(b, atypIPv4), a.AsSlice()...)
	default:
		b = append(append(b, atypIPv6), a.AsSlice()...)
	}
	return binary.BigEndian.AppendUint16(b, s.to.Addr.Port())
}

// replies are what codes of a reply mean, RFC 1928 section 6.
var replies = [...]uint8{0: ipc.RelayDone, 1: ipc.RelayFailed, 2: ipc.RelayDenied, 3: ipc.RelayNetwork, 4: ipc.RelayHost, 5: ipc.RelayRefused,
	6: ipc.RelayTimeout, 7: ipc.RelayUnsupported, 8: ipc.RelayUnsupported}

// reply looks at the beginning of the answer. The address in it, from which the proxy has
// connected, is read but for what it is.
func (s *socks) reply() (out []byte, result uint8, code uint16) {
	switch code := s.buf[1]; {
	case s.buf[0] != socksVersion, int(code) >= len(replies):
		return nil, ipc.RelayGarbage, uint16(code)
	case code != 0:
		return nil, replies[code], uint16(code)
	}
	switch s.buf[3] {
	case atypIPv4:
		s.wait, s.rest = waitRest, 4+2
	case atypIPv6:
		s.wait, s.rest = waitRest, 16+2
	case atypName:
		s.wait = waitLength
	default:
		return nil, ipc.RelayGarbage, 0
	}
	return nil, 0, 0
}
