// SPDX-License-Identifier: Apache-2.0

package vhost

import (
	"errors"
	"fmt"
)

// MaxRing is the greatest number of descriptors of a ring, virtio 1.3 section 2.7.
const MaxRing = 32768

// MaxPieces is how many descriptors a chain may have, those of an indirect table
// among them. It is what Linux's drivers bound a chain by, and writev(2) its buffers.
const MaxPieces = 1024

// ErrRing means that a ring holds what cannot be. Errors that say what wrap it; the
// ring is of no use from then on.
var ErrRing = errors.New("virtqueue")

// Flags of descriptors and of the two rings, virtio 1.3 sections 2.7.5 to 2.7.8.
const (
	descNext     = 1
	descWrite    = 2
	descIndirect = 4

	availNoInterrupt = 1
	usedNoNotify     = 1
)

const (
	descSize    = 16
	ringHead    = 4 // flags and index of either ring
	availEntry  = 2
	usedEntry   = 8
	maxChainLen = 1 << 30 // bytes; far above any frame, far below what an int holds
)

// Setup says where a ring is and how it is used.
type Setup struct {
	Size              int    // descriptors, a power of two up to MaxRing
	Desc, Avail, Used uint64 // addresses as the front end has them
	Base              uint16 // the entry of the available ring that is the next to take
	Writable          bool   // the guest's buffers are written to: it receives by this ring

	Indirect bool // VIRTIO_F_INDIRECT_DESC was acknowledged
	EventIdx bool // VIRTIO_F_EVENT_IDX was

	LogUsed bool   // writes to the used ring are marked as those of pages
	LogAddr uint64 // from this guest's address on

	Inflight []byte // of this ring, InflightSize bytes; nil: nothing is noted
}

// Ring is a split virtqueue. Chains are taken (Pop) and given back (Use) in the same
// order, which is what VIRTIO_F_IN_ORDER asks for.
type Ring struct {
	mem *Memory
	s   Setup
	err error

	desc, avail, used []byte

	next   uint16 // entry of the available ring to take next
	seen   uint16 // its end, as it was read last
	usedAt uint16 // entry of the used ring to write next
	shown  uint16 // its end, as the guest may see it
	flags  uint16 // of the used ring
	called uint16 // its end at the last look at whether to call
	known  bool   // called is of this run
	held   int    // chains that were taken and are not shown as used

	inflight inflight
}

// Chain is a buffer of the guest's, in pieces that lie in its memory.
type Chain struct {
	Pieces [][]byte // in order, none empty
	Len    int      // bytes of them together

	head  uint16
	again bool     // it was in flight when a worker ended
	at    []uint64 // guest's addresses of the pieces
}

// Arena is room for the pieces of chains.
type Arena struct {
	pieces [][]byte
	at     []uint64
}

// NewArena makes room for n pieces. With fewer than MaxPieces, there are chains that
// never find room.
func NewArena(n int) *Arena {
	return &Arena{pieces: make([][]byte, 0, n), at: make([]uint64, 0, n)}
}

// Reset makes all room free. Chains that have pieces in it are over.
func (a *Arena) Reset() { a.pieces, a.at = a.pieces[:0], a.at[:0] }

// drop gives back what came after the first n pieces.
func (a *Arena) drop(n int) { a.pieces, a.at = a.pieces[:n], a.at[:n] }

// Start begins with a ring. Its memory has to be there. After an error all is as before.
func (r *Ring) Start(m *Memory, s *Setup) error {
	n := &Ring{mem: m, s: *s, next: s.Base, seen: s.Base}
	n.inflight.batch, n.inflight.heads = r.inflight.batch, r.inflight.heads // their room
	if s.Size <= 0 || s.Size > MaxRing || s.Size&(s.Size-1) != 0 {
		return fmt.Errorf("%w: %d descriptors", ErrRing, s.Size)
	}
	if err := n.Moved(); err != nil {
		return err
	}
	n.usedAt = load16(n.used, 2) // goes on where whoever was before us ended
	n.shown = n.usedAt
	if s.Inflight != nil {
		if err := n.recover(); err != nil {
			return err
		}
	}
	*r = *n
	r.show()
	return nil
}

// Moved looks for the ring anew after the memory has changed. After an error the ring
// is of no use.
func (r *Ring) Moved() error {
	s := &r.s
	r.desc = r.mem.User(s.Desc, uint64(s.Size)*descSize)
	r.avail = r.mem.User(s.Avail, ringHead+uint64(s.Size)*availEntry+2)
	r.used = r.mem.User(s.Used, ringHead+uint64(s.Size)*usedEntry+2)
	switch {
	case r.desc == nil || r.avail == nil || r.used == nil:
		return r.broken("not in the guest's memory")
	case !aligned(r.desc, descSize) || !aligned(r.avail, 2) || !aligned(r.used, 4):
		return r.broken("not aligned")
	}
	return nil
}

// broken notes why the ring is of no use.
func (r *Ring) broken(format string, args ...any) error {
	r.err = fmt.Errorf("%w: %s", ErrRing, fmt.Sprintf(format, args...))
	return r.err
}

// Err is why the ring is of no use, nil: it is.
func (r *Ring) Err() error { return r.err }

// idle tells that there is nothing to do with the ring: it is of no use, or was not started.
func (r *Ring) idle() bool { return r.err != nil || r.s.Size == 0 }

// Base is the entry of the available ring that would be taken next, for whoever goes on
// with the ring. Preconditions: what was taken was given back.
func (r *Ring) Base() uint16 { return r.next }

// Waiting is how many chains there are to take, as far as has been seen; none: it
// looks.
func (r *Ring) Waiting() int {
	if r.idle() {
		return 0
	}
	if r.next == r.seen {
		r.look()
	}
	return int(r.seen-r.next) + r.inflight.left()
}

// Available tells whether there is a chain to take, or was something wrong with the ring;
// it costs a read.
func (r *Ring) Available() bool {
	return r.s.Size > 0 && (r.err != nil || r.next != r.seen || load16(r.avail, 2) != r.next || r.inflight.left() > 0)
}

// look reads how far the available ring goes. It tells whether there is something to take.
func (r *Ring) look() bool {
	if r.idle() {
		return false
	}
	end := load16(r.avail, 2)
	if int(end-r.next) > r.s.Size {
		_ = r.broken("%d chains are available of %d descriptors", end-r.next, r.s.Size)
		return false
	}
	r.seen = end
	return r.next != end
}

// Pop takes the next chain, whose pieces it puts into a. It reports false if there is
// none, a has no room for it, or the ring is broken (Err).
func (r *Ring) Pop(c *Chain, a *Arena) bool {
	if head, ok := r.inflight.first(); ok && !r.idle() {
		c.head, c.again = head, true
		if !r.walk(c, a) {
			return false
		}
		r.inflight.again = r.inflight.again[1:]
		r.held++
		return true
	}
	if r.next == r.seen && !r.look() || r.err != nil {
		return false
	}
	if r.held == r.s.Size {
		_ = r.broken("more chains are in use than %d", r.s.Size)
		return false
	}
	at := ringHead + int(r.next)&(r.s.Size-1)*availEntry
	c.head, c.again = load16(r.avail, at), false
	if int(c.head) >= r.s.Size {
		_ = r.broken("descriptor %d of %d", c.head, r.s.Size)
		return false
	}
	if !r.walk(c, a) {
		return false
	}
	r.next++
	r.held++
	r.inflight.taken(c.head)
	return true
}

// Unpop puts back what was taken last and not given back.
func (r *Ring) Unpop(c *Chain) {
	r.held--
	if c.again {
		r.inflight.unread()
		return
	}
	r.next--
	r.inflight.returned(c.head)
}
