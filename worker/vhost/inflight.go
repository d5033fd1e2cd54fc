// SPDX-License-Identifier: Apache-2.0

package vhost

import (
	"encoding/binary"
	"slices"
)

// What is in our hands is noted in memory that outlives us, so that who comes next
// knows: "Inflight I/O tracking" of the vhost-user protocol, for split rings. The
// header has 16 bytes: features, 8; version, 2; descriptors, 2; the head of the last
// batch, 2; the used index, 2. For each descriptor there are 16: in flight, 1; 5 are
// free; the next of its batch, 2; a counter, 8.

const (
	inflightHead    = 16
	inflightEntry   = 16
	inflightVersion = 1
)

// InflightSize is how many bytes a ring of so many descriptors has of that memory.
func InflightSize(ring int) int { return (inflightHead + inflightEntry*ring + 63) &^ 63 }

// inflight is the notes of one ring. Without memory for them, every method does
// nothing.
type inflight struct {
	mem     []byte
	size    int
	counter uint64   // of the next chain that is taken
	heads   []noted  // that were in flight, in their order
	again   []noted  // the end of heads, which is to be taken again
	batch   []uint16 // used, and not shown yet
}

// noted is a chain that was in flight, and when it was taken.
type noted struct {
	head    uint16
	counter uint64
}

func (f *inflight) left() int { return len(f.again) }

func (f *inflight) first() (head uint16, ok bool) {
	if len(f.again) == 0 {
		return 0, false
	}
	return f.again[0].head, true
}

// unread puts back the one of again that was taken last.
func (f *inflight) unread() { f.again = f.heads[len(f.heads)-len(f.again)-1:] }

func (f *inflight) entry(head uint16) []byte {
	at := inflightHead + int(head)*inflightEntry
	return f.mem[at : at+inflightEntry]
}

// taken notes that a chain was.
func (f *inflight) taken(head uint16) {
	if f.mem == nil {
		return
	}
	e := f.entry(head)
	binary.LittleEndian.PutUint64(e[8:], f.counter)
	f.counter++
	e[0] = 1
}

// returned forgets one that was taken.
func (f *inflight) returned(head uint16) {
	if f.mem != nil {
		f.entry(head)[0] = 0
	}
}

// used adds a chain to the batch that the guest is about to see.
func (f *inflight) used(head uint16) {
	if f.mem == nil {
		return
	}
	binary.LittleEndian.PutUint16(f.entry(head)[6:], binary.LittleEndian.Uint16(f.mem[12:]))
	binary.LittleEndian.PutUint16(f.mem[12:], head)
	if len(f.batch) < cap(f.batch) {
		f.batch = append(f.batch, head)
	}
}

// shown notes that the guest sees the batch.
func (f *inflight) shown(used uint16) {
	if f.mem == nil {
		return
	}
	for _, head := range f.batch {
		f.entry(head)[0] = 0
	}
	f.batch = f.batch[:0]
	binary.LittleEndian.PutUint16(f.mem[14:], used)
}

// recover finds what was in the hands of whoever was before us. Chains whose use the
// guest has seen while that was not noted any more are not taken again.
func (r *Ring) recover() error {
	f, m, size := &r.inflight, r.s.Inflight, r.s.Size
	if len(m) < InflightSize(size) {
		return r.broken("too little memory for what is in flight")
	}
	if cap(f.batch) < size {
		f.batch = make([]uint16, 0, size)
	}
	*f = inflight{mem: m, size: size, batch: f.batch[:0], heads: f.heads[:0]}
	// The last batch may have been shown without that being noted. An index further away
	// is of another life of the ring, before its guest has set it up anew.
	last := r.usedAt - binary.LittleEndian.Uint16(m[14:])
	if binary.LittleEndian.Uint16(m[8:]) == 0 || int(last) > size { // new
		clear(m[:InflightSize(size)])
		binary.LittleEndian.PutUint16(m[8:], inflightVersion)
		binary.LittleEndian.PutUint16(m[10:], uint16(size))
		binary.LittleEndian.PutUint16(m[14:], r.usedAt)
		return nil
	}
	if v, n := binary.LittleEndian.Uint16(m[8:]), binary.LittleEndian.Uint16(m[10:]); v != inflightVersion || int(n) != size {
		return r.broken("what is in flight is noted in version %d for %d descriptors", v, n)
	}
	head := binary.LittleEndian.Uint16(m[12:])
	for ; last > 0 && int(head) < size; last-- {
		e := f.entry(head)
		e[0] = 0
		head = binary.LittleEndian.Uint16(e[6:])
	}
	binary.LittleEndian.PutUint16(m[14:], r.usedAt)
	for i := range size {
		if e := f.entry(uint16(i)); e[0] == 1 {
			n := noted{uint16(i), binary.LittleEndian.Uint64(e[8:])}
			f.heads = append(f.heads, n)
			f.counter = max(f.counter, n.counter+1)
		}
	}
	slices.SortFunc(f.heads, func(a, b noted) int {
		if d := int64(a.counter - b.counter); d != 0 {
			return int(d>>63 | 1)
		}
		return int(a.head) - int(b.head)
	})
	f.again = f.heads
	r.next = r.usedAt + uint16(len(f.heads))
	r.seen = r.next
	return nil
}
