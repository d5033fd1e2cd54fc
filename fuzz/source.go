// SPDX-License-Identifier: Apache-2.0

package fuzz

import "encoding/binary"

// Source hands out an input piece by piece. At its end it yields zeros, so that
// any input makes a whole of whatever is built from it.
type Source struct{ B []byte }

// Byte takes one byte.
func (s *Source) Byte() byte {
	if len(s.B) == 0 {
		return 0
	}
	c := s.B[0]
	s.B = s.B[1:]
	return c
}

// Uint16 takes a number, big-endian.
func (s *Source) Uint16() uint16 { return uint16(s.Byte())<<8 | uint16(s.Byte()) }

// Uint32 takes a number, big-endian.
func (s *Source) Uint32() uint32 { return uint32(s.Uint16())<<16 | uint32(s.Uint16()) }

// Fill takes len(b) bytes.
func (s *Source) Fill(b []byte) {
	n := copy(b, s.B)
	s.B = s.B[n:]
	clear(b[n:])
}

// Take takes n bytes, or what is left.
func (s *Source) Take(n int) []byte {
	n = min(n, len(s.B))
	b := s.B[:n:n]
	s.B = s.B[n:]
	return b
}

// Block takes a byte that says how long a piece is, and the piece.
func (s *Source) Block() []byte { return s.Take(int(s.Byte())) }

// LongBlock is Block with two bytes of length.
func (s *Source) LongBlock() []byte { return s.Take(int(s.Uint16())) }

// Rest takes all that is left.
func (s *Source) Rest() []byte { return s.Take(len(s.B)) }

// Pattern is n bytes that depend on a seed and on where they are, so that a
// piece in the wrong place shows.
func Pattern(n int, seed uint32) []byte {
	b := make([]byte, n)
	x := seed | 1
	for i := 0; i < n; i += 4 {
		x = x*1664525 + 1013904223
		var w [4]byte
		binary.BigEndian.PutUint32(w[:], x^x>>15)
		copy(b[i:], w[:])
	}
	return b
}
