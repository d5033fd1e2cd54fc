// SPDX-License-Identifier: Apache-2.0

package frontend

import (
	"math/rand/v2"
	"sync"
	"time"
)

// chaos has one direction of one queue behave as no driver does for long, and as
// every driver may. A nil one behaves well.
type chaos struct {
	rnd *rand.Rand

	mu      sync.Mutex
	watched [16][]byte // frames that are with the device, perhaps
	next    int
	hdr     int
}

func newChaos(seed uint64) *chaos { return &chaos{rnd: rand.New(rand.NewPCG(seed, 1))} }

// stall does nothing for a while, at times.
func (c *chaos) stall() {
	if c != nil && c.rnd.IntN(300) == 0 {
		time.Sleep(time.Duration(c.rnd.IntN(20_000)) * time.Microsecond)
	}
}

// late is stall before a kick.
func (c *chaos) late() {
	if c != nil && c.rnd.IntN(100) == 0 {
		time.Sleep(time.Duration(c.rnd.IntN(5_000)) * time.Microsecond)
	}
}

// piece is how long the next piece of a frame may be, where size was asked for.
func (c *chaos) piece(size int) int {
	if c == nil || size == 0 {
		return size
	}
	return size + c.rnd.IntN(3*size)
}

// buffer is the size of the next receive buffer, where size was asked for.
func (c *chaos) buffer(size uint64) uint64 {
	if c == nil {
		return size
	}
	return 64 + c.rnd.Uint64N(2*size)
}

// watch has rewrite change a frame that is about to be the device's.
func (c *chaos) watch(frame []byte, hdr int) {
	if c == nil || len(frame) < hdr+54 {
		return
	}
	c.mu.Lock()
	c.watched[c.next%len(c.watched)], c.hdr = frame, hdr
	c.next++
	c.mu.Unlock()
}

// rewrite changes headers of frames while the device may be reading them, and puts
// them back: lengths, and what says where the frame may be cut. A device that reads
// one of them twice gets two answers. Any one of them leaves a stream what it was.
func (c *chaos) rewrite() {
	rnd := rand.New(rand.NewPCG(2, 3))
	for {
		for range 100 {
			c.mu.Lock()
			b, hdr := c.watched[rnd.IntN(len(c.watched))], c.hdr
			if b != nil {
				at := []int{2, 3, 4, 5}[rnd.IntN(4)] // of the virtio header: header's and segments' length
				switch {
				case b[hdr+12] == 0x86 && rnd.IntN(2) == 0:
					at = hdr + 14 + 4 + rnd.IntN(2) // IPv6: payload length
				case b[hdr+12] == 8 && rnd.IntN(2) == 0:
					at = hdr + 14 + 1 + rnd.IntN(3) // IPv4: class, total length
				}
				old := b[at]
				b[at] = byte(rnd.IntN(256))
				for range rnd.IntN(50) {
				}
				b[at] = old
			}
			c.mu.Unlock()
		}
		time.Sleep(time.Duration(rnd.IntN(200)) * time.Microsecond)
	}
}
