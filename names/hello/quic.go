// SPDX-License-Identifier: Apache-2.0

package hello

import (
	"bytes"
	"encoding/binary"

	"aldente/ipc"
)

// Types of packets with a long header, as bits of the first byte have them in version
// 1: RFC 9000 section 17.2. Version 2 counts one further, RFC 9369 section 3.2.
const (
	packetInitial = iota
	packet0RTT
	packetHandshake
	packetRetry
)

// Frames that an initial packet may have, RFC 9000 section 12.4. One that closes the
// connection is none of them here: nothing would come of it.
const (
	framePadding = 0x00
	framePing    = 0x01
	frameACK     = 0x02
	frameACKECN  = 0x03
	frameCrypto  = 0x06
)

// Bounds of a packet, RFC 9000 sections 17.2, 12.4 and RFC 9001 section 5.4.2.
const (
	maxConnectionID = 20
	sampleLen       = 16
	tagLen          = 16
	maxNumber       = 1<<62 - 1
)

// QUIC reads the first datagrams that a client sends, until its hello is whole. All
// packets of it have one connection identifier for the server, which the keys are
// derived from: what comes with another is another connection, and is refused. The zero
// value is ready.
type QUIC struct {
	msg     message
	have    []uint64 // which bytes of the message are there, a bit each
	version uint32   // zero: nothing has come yet
	to      []byte   // connection identifier for the server
	keys    keys
	next    uint64 // packet number behind the highest
	count   int    // datagrams
	found   uint8
}

// Name is the server's name, in lower case, once ipc.FoundName was returned.
func (q *QUIC) Name() string { return string(q.msg.name) }

// Read takes the next datagram, and writes over it. It returns as TLS.Read does.
func (q *QUIC) Read(datagram []byte) uint8 {
	if q.found != more {
		return q.found
	}
	if q.count++; q.count > ipc.MaxStagedDatagrams {
		q.found = ipc.FoundTooLong
		return q.found
	}
	if len(datagram) == 0 {
		q.found = ipc.FoundNotHello
	}
	for first := true; len(datagram) > 0 && q.found == more; first = false {
		if datagram[0]&0x80 == 0 { // a short header: the rest is for keys that come later
			if first {
				q.found = ipc.FoundNotHello
			}
			break
		}
		datagram = q.packet(datagram, first)
	}
	if q.found == more {
		q.found = q.read()
	}
	return q.found
}

// read reads the message if it is whole, and nothing is there behind it.
func (q *QUIC) read() uint8 {
	m := message{buf: q.msg.buf[:q.contiguous()]}
	n, found := m.length()
	if found != more || n == 0 {
		return found
	}
	if len(q.msg.buf) > n {
		return ipc.FoundNotHello
	}
	found = m.read()
	q.msg.name = m.name
	return found
}

// packet takes one packet with a long header, RFC 9000 section 17.2, and returns what
// is coalesced behind it.
func (q *QUIC) packet(b []byte, first bool) (rest []byte) {
	r := reader{b: b[1:]}
	v := r.take(4)
	to := r.vector8()
	from := r.vector8()
	if r.bad {
		q.found = ipc.FoundNotHello
		return nil
	}
	version := binary.BigEndian.Uint32(v)
	kind := int(b[0]>>4) & 3
	switch version {
	case version1:
	case version2:
		kind = (kind + 3) & 3
	case 0:
		q.found = ipc.FoundNotHello // version negotiation, which servers send
		return nil
	default:
		q.found = ipc.FoundVersion
		return nil
	}
	if len(to) > maxConnectionID || len(from) > maxConnectionID || kind == packetRetry || kind == packetHandshake ||
		first && q.version == 0 && kind != packetInitial {
		q.found = ipc.FoundNotHello
		return nil
	}
	if q.version != 0 && (version != q.version || !bytes.Equal(to, q.to)) {
		q.found = ipc.FoundNotHello
		return nil
	}
	if kind == packetInitial {
		r.varbytes() // token
	}
	length := r.varint()
	if r.bad || length > uint64(len(r.b)) {
		q.found = ipc.FoundNotHello
		return nil
	}
	body := len(b) - len(r.b) // where packet number and payload begin
	end := body + int(length)
	if kind == packetInitial {
		q.found = q.initial(b[:end], body, version, to)
	}
	return b[end:]
}

// initial takes an initial packet, whose packet number begins at a place.
func (q *QUIC) initial(b []byte, at int, version uint32, to []byte) uint8 {
	if len(b) < at+4+sampleLen {
		return ipc.FoundNotHello
	}
	if q.version == 0 {
		k, err := initialKeys(version, to)
		if err != nil {
			return ipc.FoundNotHello
		}
		q.version, q.to, q.keys = version, bytes.Clone(to), k
	}
	// Header protection, RFC 9001 section 5.4.
	var mask [sampleLen]byte
	q.keys.hp.Encrypt(mask[:], b[at+4:at+4+sampleLen])
	b[0] ^= mask[0] & 0x0f
	size := int(b[0]&3) + 1
	number := uint64(0)
	for i := range size {
		b[at+i] ^= mask[1+i]
		number = number<<8 | uint64(b[at+i])
	}
	number = q.number(number, size)
	if number > maxNumber || len(b) < at+size+tagLen {
		return ipc.FoundNotHello
	}
	nonce := q.keys.nonce(number)
	plain, err := q.keys.aead.Open(b[at+size:at+size], nonce[:], b[at+size:], b[:at+size])
	if err != nil || b[0]&0x0c != 0 || len(plain) == 0 {
		return ipc.FoundNotHello
	}
	q.next = max(q.next, number+1)
	return q.frames(plain)
}

// number is the whole of a packet number of which the last bytes were sent, RFC 9000
// appendix A.3.
func (q *QUIC) number(last uint64, size int) uint64 {
	window := uint64(1) << (8 * size)
	n := q.next&^(window-1) | last
	switch {
	case n+window/2 <= q.next && n+window <= maxNumber:
		return n + window
	case n > q.next+window/2 && n >= window:
		return n - window
	}
	return n
}

// frames takes the frames of an initial packet.
func (q *QUIC) frames(b []byte) uint8 {
	for r := (reader{b: b}); len(r.b) > 0; {
		switch kind := r.varint(); kind {
		case framePadding, framePing:
		case frameACK, frameACKECN:
			r.ack(kind == frameACKECN)
		case frameCrypto:
			offset := r.varint()
			data := r.varbytes()
			if r.bad {
				return ipc.FoundNotHello
			}
			if found := q.crypto(offset, data); found != more {
				return found
			}
		default:
			return ipc.FoundNotHello
		}
		if r.bad {
			return ipc.FoundNotHello
		}
	}
	return more
}

// ack passes over an acknowledgment, RFC 9000 section 19.3.
func (r *reader) ack(ecn bool) {
	r.varint() // largest
	r.varint() // delay
	ranges := r.varint()
	r.varint() // first
	for ; ranges > 0 && !r.bad; ranges-- {
		r.varint()
		r.varint()
	}
	for n := 0; ecn && n < 3; n++ {
		r.varint()
	}
}

// crypto puts bytes of the handshake to their place. They may come in any order and
// more than once, but say one thing only.
func (q *QUIC) crypto(offset uint64, data []byte) uint8 {
	if offset+uint64(len(data)) > maxHello { // neither is above 2^62
		return ipc.FoundTooLong
	}
	at := int(offset)
	if end := at + len(data); end > len(q.msg.buf) {
		q.msg.buf = append(q.msg.buf, make([]byte, end-len(q.msg.buf))...)
		if more := (end + 63) / 64; more > len(q.have) {
			q.have = append(q.have, make([]uint64, more-len(q.have))...)
		}
	}
	for i, c := range data {
		k := at + i
		if bit := uint64(1) << (k % 64); q.have[k/64]&bit == 0 {
			q.have[k/64] |= bit
			q.msg.buf[k] = c
		} else if q.msg.buf[k] != c {
			return ipc.FoundNotHello
		}
	}
	return more
}

// contiguous is how many bytes of the message are there from the first on.
func (q *QUIC) contiguous() int {
	for k := range q.msg.buf {
		if q.have[k/64]>>(k%64)&1 == 0 {
			return k
		}
	}
	return len(q.msg.buf)
}
