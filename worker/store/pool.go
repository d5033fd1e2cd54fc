// SPDX-License-Identifier: Apache-2.0

package store

// ChunkSize is the size of a pooled buffer, in bytes.
const ChunkSize = 16 << 10

// Pool hands out chunks of memory that is mapped once and touched as needed.
// The most recently freed chunk is given out first, so that the memory in use
// stays as small as the need for it has been.
type Pool struct {
	mem  []byte
	next []uint32 // for users: chunks are usually in lists
	free []uint32
	used int
	high uint32 // first chunk never given out
}

// NewPool divides mem, which must not be used otherwise.
func NewPool(mem []byte) *Pool {
	n := len(mem) / ChunkSize
	return &Pool{mem: mem, next: make([]uint32, n), free: make([]uint32, 0, n)}
}

// Get returns the index of a chunk, or None. Its contents are what its last
// user left.
func (p *Pool) Get() uint32 {
	var c uint32
	switch {
	case len(p.free) > 0:
		c = p.free[len(p.free)-1]
		p.free = p.free[:len(p.free)-1]
	case int(p.high) < len(p.next):
		c = p.high
		p.high++
	default:
		return None
	}
	p.used++
	p.next[c] = None
	return c
}

// Put gives a chunk back.
func (p *Pool) Put(c uint32) {
	p.free = append(p.free, c)
	p.used--
}

// Bytes is the chunk's memory.
func (p *Pool) Bytes(c uint32) []byte {
	return p.mem[int(c)*ChunkSize : (int(c)+1)*ChunkSize : (int(c)+1)*ChunkSize]
}

// Next and SetNext keep lists of chunks.
func (p *Pool) Next(c uint32) uint32 { return p.next[c] }

// SetNext makes n follow c.
func (p *Pool) SetNext(c, n uint32) { p.next[c] = n }

// Used and Len are the number of chunks given out, and of all.
func (p *Pool) Used() int { return p.used }

// Len is the number of chunks there are.
func (p *Pool) Len() int { return len(p.next) }
