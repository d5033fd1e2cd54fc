// SPDX-License-Identifier: Apache-2.0

// Package ports lists the ports that are bound in a network namespace, for rules
// with "auto".
package ports

import (
	"iter"
	"math/bits"
)

// Set is a set of port numbers.
type Set [1 << 16 / 64]uint64

// Add adds a port.
func (p *Set) Add(port uint16) { p[port/64] |= 1 << (port % 64) }

// Has tells whether port is in the set.
func (p *Set) Has(port uint16) bool { return p[port/64]>>(port%64)&1 != 0 }

// Clear takes a port away.
func (p *Set) Clear(port uint16) { p[port/64] &^= 1 << (port % 64) }

// Merge adds all ports of q.
func (p *Set) Merge(q *Set) {
	for i := range p {
		p[i] |= q[i]
	}
}

// All yields the ports in order.
func (p *Set) All() iter.Seq[uint16] {
	return func(yield func(uint16) bool) {
		for i, w := range p {
			for ; w != 0; w &= w - 1 {
				if !yield(uint16(i*64 + bits.TrailingZeros64(w))) {
					return
				}
			}
		}
	}
}
