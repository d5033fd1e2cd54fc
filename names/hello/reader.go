// SPDX-License-Identifier: Apache-2.0

package hello

import "encoding/binary"

// reader takes fields off bytes. Once something is missing it is bad, and all that
// follows is empty.
type reader struct {
	b   []byte
	bad bool
}

// take returns the next n bytes. If there are fewer, it returns none.
func (r *reader) take(n int) []byte {
	if r.bad || n < 0 || n > len(r.b) {
		r.b, r.bad = nil, true
		return nil
	}
	b := r.b[:n]
	r.b = r.b[n:]
	return b
}

func (r *reader) uint8() int {
	if b := r.take(1); b != nil {
		return int(b[0])
	}
	return 0
}

func (r *reader) uint16() int {
	if b := r.take(2); b != nil {
		return int(binary.BigEndian.Uint16(b))
	}
	return 0
}

// vector8 and vector16 return bytes behind their number, RFC 8446 section 3.4.
func (r *reader) vector8() []byte  { return r.take(r.uint8()) }
func (r *reader) vector16() []byte { return r.take(r.uint16()) }

// varint is an integer of QUIC, RFC 9000 section 16.
func (r *reader) varint() uint64 {
	if r.bad || len(r.b) == 0 {
		r.bad = true
		return 0
	}
	b := r.take(1 << (r.b[0] >> 6))
	if b == nil {
		return 0
	}
	v := uint64(b[0] & 0x3f)
	for _, c := range b[1:] {
		v = v<<8 | uint64(c)
	}
	return v
}

// varbytes returns bytes behind their number, which is an integer of QUIC.
func (r *reader) varbytes() []byte {
	n := r.varint()
	if n > uint64(len(r.b)) {
		r.b, r.bad = nil, true
		return nil
	}
	return r.take(int(n))
}
