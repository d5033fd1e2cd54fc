// SPDX-License-Identifier: Apache-2.0

package cli

import "iter"

// bitmap is a set of ports.
type bitmap [(maxPort + 1) / 64]uint64

func (b *bitmap) add(r PortRange) {
	for p := int(r.First); p <= int(r.Last); p++ {
		b[p/64] |= 1 << (p % 64)
	}
}

func (b *bitmap) has(p int) bool { return b[p/64]&(1<<(p%64)) != 0 }

// subtractFrom yields the ranges of r that are not in the set, in order, each
// as long as possible.
func (b *bitmap) subtractFrom(r PortRange) iter.Seq[PortRange] {
	return func(yield func(PortRange) bool) {
		last := int(r.Last)
		for p := int(r.First); p <= last; p++ {
			if b.has(p) {
				continue
			}
			first := p
			for p < last && !b.has(p+1) {
				p++
			}
			if !yield(PortRange{uint16(first), uint16(p)}) {
				return
			}
		}
	}
}
