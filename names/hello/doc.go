// SPDX-License-Identifier: Apache-2.0

// Package hello reads which server a client means: the server name in a TLS client
// hello (RFC 8446 section 4.1.2, RFC 6066 section 3), of TCP as TLS, and of a first
// flight of QUIC (RFC 9000, 9001, 9369) as QUIC.
//
// Whoever sends it is hostile, and whoever reads it behind us reads it once more. So
// what two readers could take for two things is refused: two names, an overlap that
// says two things, bytes behind the hello in its record. A hello may be encrypted
// (ECH): then it is the outer name that counts, which is in plain.
//
// Nothing here makes a system call. Memory is bounded by ipc.MaxStaged.
package hello

import "aldente/ipc"

// more is what a reader returns that wants more: no ipc.Found*.
const more = 0

// maxHello is the longest hello that is read, in bytes, with its header of four.
const maxHello = 16 << 10

// MaxName is the longest name that a server can have, RFC 1035 section 2.3.4.
const MaxName = 253

// message is a handshake message as it comes: a client hello, or nothing of ours.
type message struct {
	buf  []byte // from the first byte on, without a gap
	name []byte // of the server, in lower case
}

// length is how long the message is, with its header; zero: that is not known yet.
// found says what else it is, if it is no client hello or a long one.
func (m *message) length() (n int, found uint8) {
	if len(m.buf) > 0 && m.buf[0] != clientHello {
		return 0, ipc.FoundNotHello
	}
	if len(m.buf) < 4 {
		return 0, more
	}
	if n = 4 + uint24(m.buf[1:]); n > maxHello {
		return 0, ipc.FoundTooLong
	}
	return n, more
}

// read reads the message, if it is whole.
func (m *message) read() uint8 {
	n, found := m.length()
	switch {
	case found != more:
		return found
	case n == 0 || len(m.buf) < n:
		return more
	case len(m.buf) > n:
		return ipc.FoundNotHello // one message, and no more, comes before an answer
	}
	m.name, found = serverName(m.buf[4:n])
	return found
}

func uint24(b []byte) int { return int(b[0])<<16 | int(b[1])<<8 | int(b[2]) }
