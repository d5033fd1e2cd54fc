// SPDX-License-Identifier: Apache-2.0

// Package store holds the containers of the translators: the table with its hash,
// the order of last use, the pool of buffers and the timers. Each allocates once,
// when it is made, and knows of a flow only its key and its number.
package store

import (
	"encoding/binary"
	"hash/maphash"

	"aldente/worker/packet"
)

// Key identifies a flow by what the guest's frames carry: the remote's address
// and port as the guest sees them, then the guest's own. An array of bytes, so
// that it can be hashed without a copy.
type Key [36]byte

// MakeKey builds a key. For echo, the identifier stands for both ports.
func MakeKey(remote, guest *packet.Addr, remotePort, guestPort uint16) Key {
	var k Key
	copy(k[0:16], remote[:])
	copy(k[16:32], guest[:])
	binary.NativeEndian.PutUint16(k[32:], remotePort)
	binary.NativeEndian.PutUint16(k[34:], guestPort)
	return k
}

// Remote is the far end's address and port, as the guest sees them.
func (k *Key) Remote() (packet.Addr, uint16) {
	return packet.Addr(k[0:16]), binary.NativeEndian.Uint16(k[32:])
}

// Guest is the guest's address and port.
func (k *Key) Guest() (packet.Addr, uint16) {
	return packet.Addr(k[16:32]), binary.NativeEndian.Uint16(k[34:])
}

// None is the index of no flow.
const None = ^uint32(0)

// Table holds flows of one protocol in place: an index stays valid, and the
// pointer that At returns stays good, until the flow is removed. Nothing is
// allocated after NewTable; memory is touched as flows are first used.
//
// The hash is seeded per process, so that a guest cannot choose colliding
// keys; open addressing with linear probing keeps a look-up to one or two
// cache lines however many flows are idle.
type Table[V any] struct {
	seed  maphash.Seed
	slots []uint32 // index+1 of a flow, 0: free
	mask  uint32
	keys  []Key
	gens  []uint32
	vals  []V
	free  []uint32 // stack of indices given back
	next  uint32   // first index never used
	last  uint32   // index+1 of the flow last found, 0: none
	count int
}

// NewTable makes a table for up to size flows.
func NewTable[V any](size int) *Table[V] {
	n := 16
	for n < size*2 {
		n *= 2
	}
	return &Table[V]{
		seed:  maphash.MakeSeed(),
		slots: make([]uint32, n),
		mask:  uint32(n - 1),
		keys:  make([]Key, size),
		gens:  make([]uint32, size),
		vals:  make([]V, size),
		free:  make([]uint32, 0, size),
	}
}

// Len is the number of flows, with those that have ended and are not freed yet.
func (t *Table[V]) Len() int { return t.count }

// Cap is the number of flows that fit.
func (t *Table[V]) Cap() int { return len(t.vals) }

func (t *Table[V]) home(k *Key) uint32 { return uint32(maphash.Bytes(t.seed, k[:])) & t.mask }

// Find returns the flow's index, or None. Frames of one flow come in rows, so
// the flow found last is looked at first.
func (t *Table[V]) Find(k *Key) uint32 {
	if i := t.last; i != 0 && t.keys[i-1] == *k {
		return i - 1
	}
	for s := t.home(k); ; s = (s + 1) & t.mask {
		i := t.slots[s]
		if i == 0 {
			return None
		}
		if t.keys[i-1] == *k {
			t.last = i
			return i - 1
		}
	}
}

// Insert adds a flow, zeroed, and returns its index; None if the table is
// full. The key must not be in the table.
func (t *Table[V]) Insert(k *Key) uint32 {
	var i uint32
	switch {
	case len(t.free) > 0:
		i = t.free[len(t.free)-1]
		t.free = t.free[:len(t.free)-1]
	case int(t.next) < len(t.vals):
		i = t.next
		t.next++
	default:
		return None
	}
	t.keys[i] = *k
	var zero V
	t.vals[i] = zero
	t.gens[i]++
	t.count++
	t.link(i)
	return i
}

// Rename gives a flow another key, which must not be in the table.
func (t *Table[V]) Rename(i uint32, k *Key) {
	t.unlink(i)
	t.keys[i] = *k
	t.link(i)
}

// Remove takes a flow out.
func (t *Table[V]) Remove(i uint32) {
	t.End(i)
	t.Free(i)
}

// End has a flow found no more, by its key or as one that lives. Its place, and
// what At and Key return, stay as they are until Free.
func (t *Table[V]) End(i uint32) {
	t.unlink(i)
	t.gens[i]++
}

// Free gives the place of a flow that has ended to the next.
func (t *Table[V]) Free(i uint32) {
	t.free = append(t.free, i)
	t.count--
}

// link has Find find a flow.
func (t *Table[V]) link(i uint32) {
	s := t.home(&t.keys[i])
	for t.slots[s] != 0 {
		s = (s + 1) & t.mask
	}
	t.slots[s] = i + 1
}

func (t *Table[V]) unlink(i uint32) {
	s := t.home(&t.keys[i])
	for t.slots[s] != i+1 {
		s = (s + 1) & t.mask
	}
	if t.last == i+1 {
		t.last = 0
	}
	// Close the gap: every entry behind it that could not be found across an
	// empty slot moves up.
	for j := s; ; {
		j = (j + 1) & t.mask
		k := t.slots[j]
		if k == 0 {
			break
		}
		if h := t.home(&t.keys[k-1]); (j-h)&t.mask >= (j-s)&t.mask {
			t.slots[s] = k
			s = j
		}
	}
	t.slots[s] = 0
}

// At returns the flow's state.
func (t *Table[V]) At(i uint32) *V { return &t.vals[i] }

// Key returns the flow's key.
func (t *Table[V]) Key(i uint32) *Key { return &t.keys[i] }

// Gen is the flow's generation, of which a token keeps 24 bits.
func (t *Table[V]) Gen(i uint32) uint32 { return t.gens[i] & 0xffffff }

// Used is the number of places that flows have or have had: they are those below it.
func (t *Table[V]) Used() uint32 { return t.next }

// Has tells whether a place below Used has a flow that has not ended.
func (t *Table[V]) Has(i uint32) bool { return t.gens[i]&1 == 1 }

// Live tells whether index and generation name a flow that exists. Generations
// are odd while a flow lives: Insert and Remove both count.
func (t *Table[V]) Live(i, gen uint32) bool {
	return i < t.next && t.Gen(i) == gen && gen&1 == 1
}

// Each calls f for each flow; f may remove the flow it is called for.
func (t *Table[V]) Each(f func(i uint32)) {
	for i := uint32(0); i < t.next; i++ {
		if t.gens[i]&1 == 1 {
			f(i)
		}
	}
}
