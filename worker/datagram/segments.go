// SPDX-License-Identifier: Apache-2.0

package datagram

import "aldente/worker/flow"

// Batch collects datagrams for one socket that will leave in one write: all of the
// same size, but for the last, which may be shorter. Its zero value is empty.
type Batch struct {
	bufs   [MaxSegments][]byte
	n      int // of bufs
	size   int // of each datagram
	count  int // datagrams
	bytes  int
	closed bool // the last one is shorter
}

// Count is the number of datagrams.
func (b *Batch) Count() int { return b.count }

// Reset empties the batch.
func (b *Batch) Reset() { b.n, b.count, b.bytes, b.closed = 0, 0, 0, false }

// Add appends datagrams of size bytes each, the last may be shorter, as Socket.Cut
// cuts them. They must not change before they are written. It reports false if
// they do not go with those that are there: an empty batch takes all.
func (b *Batch) Add(data []byte, size int) bool {
	count := (len(data) + size - 1) / size
	if count == 1 {
		size = len(data)
	}
	switch {
	case b.n == 0:
		b.size = size
	case b.closed || b.count+count > MaxSegments || b.bytes+len(data) > MaxWrite:
		return false
	case size != b.size && (count > 1 || size > b.size):
		return false
	}
	b.bufs[b.n] = data
	b.n++
	b.count += count
	b.bytes += len(data)
	b.closed = len(data) != count*b.size
	return true
}

// Run is how many datagrams from the first on may travel as one of up to most
// bytes: of the same size, at most limit, but for the last, which may be shorter.
// It is at least one.
func Run(d []flow.Datagram, limit, most int) int {
	size, total := d[0].N, d[0].N
	if d[0].Segment != 0 || d[0].Truncated || size == 0 || size > limit {
		return 1
	}
	n := 1
	for n < len(d) && d[n].Segment == 0 && !d[n].Truncated &&
		d[n].N > 0 && d[n].N <= size && total+d[n].N <= most {
		total += d[n].N
		n++
		if d[n-1].N < size {
			break
		}
	}
	return n
}
