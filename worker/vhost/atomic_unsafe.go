// SPDX-License-Identifier: Apache-2.0

package vhost

import (
	"encoding/binary"
	"sync/atomic"
	"unsafe"
)

// The other side reads and writes what is here at the same time. Go's atomics are 32
// bits wide, so that half a word is read or written by way of the word that it lies
// in. They are sequentially consistent, which is more than the barriers that virtio
// 1.3 section 2.7.13 asks for. Little-endian, whatever we are.

// word is the aligned word that b[i] lies in, and where. Preconditions: b lies in memory
// that begins and ends at boundaries of four bytes.
func word(b []byte, i int) (*uint32, int) {
	p := unsafe.Pointer(&b[i])
	off := int(uintptr(p) & 3)
	return (*uint32)(unsafe.Add(p, -off)), off
}

// load16 reads two bytes at an even offset.
func load16(b []byte, i int) uint16 {
	p, off := word(b[:i+2], i)
	var w [4]byte
	binary.NativeEndian.PutUint32(w[:], atomic.LoadUint32(p))
	return binary.LittleEndian.Uint16(w[off&2:])
}

// storeTries bounds how often a neighbour may come in between.
const storeTries = 100

// store16 writes two bytes at an even offset, and leaves their neighbours alone. Should
// these not stop changing, it gives up: false.
func store16(b []byte, i int, v uint16) bool {
	p, off := word(b[:i+2], i)
	for range storeTries {
		old := atomic.LoadUint32(p)
		var w [4]byte
		binary.NativeEndian.PutUint32(w[:], old)
		binary.LittleEndian.PutUint16(w[off&2:], v)
		if atomic.CompareAndSwapUint32(p, old, binary.NativeEndian.Uint32(w[:])) {
			return true
		}
	}
	return false
}

// storePair writes two times two bytes at a boundary of four.
func storePair(b []byte, i int, first, second uint16) {
	p, _ := word(b[:i+4], i)
	var w [4]byte
	binary.LittleEndian.PutUint16(w[:], first)
	binary.LittleEndian.PutUint16(w[2:], second)
	atomic.StoreUint32(p, binary.NativeEndian.Uint32(w[:]))
}

// orByte sets bits of one byte.
func orByte(b []byte, i uint64, bits byte) {
	p, off := word(b, int(i))
	var w [4]byte
	w[off] = bits
	atomic.OrUint32(p, binary.NativeEndian.Uint32(w[:]))
}

// aligned tells whether memory begins at a boundary of n bytes, a power of two.
func aligned(b []byte, n uintptr) bool {
	return uintptr(unsafe.Pointer(unsafe.SliceData(b)))&(n-1) == 0
}
