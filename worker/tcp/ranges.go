// SPDX-License-Identifier: Apache-2.0

package tcp

import "aldente/worker/packet"

// maxRanges bounds how many separate pieces a set of ranges keeps. Sixty-four
// holes in a window are far beyond what a link with usable throughput shows.
const maxRanges = 64

// ranges is a set of sequence ranges in ascending order, disjoint and not
// touching. A flow has one only while it recovers from loss or reordering.
type ranges struct {
	n    int
	last int // range that was touched last: reported first, RFC 2018 section 4
	r    [maxRanges]packet.SACKBlock
}

func (s *ranges) reset() { s.n, s.last = 0, 0 }

// add puts [left, right) into the set. It reports false, leaving the set as it
// was, if that would take more than maxRanges.
func (s *ranges) add(left, right uint32) bool {
	i := 0
	for i < s.n && before(s.r[i].Right, left) {
		i++
	}
	j := i
	for j < s.n && notAfter(s.r[j].Left, right) {
		j++
	}
	if i == j {
		if s.n == maxRanges {
			return false
		}
		copy(s.r[i+1:s.n+1], s.r[i:s.n])
		s.n++
		s.r[i] = packet.SACKBlock{Left: left, Right: right}
		s.last = i
		return true
	}
	if before(s.r[i].Left, left) {
		left = s.r[i].Left
	}
	right = later(right, s.r[j-1].Right)
	s.r[i] = packet.SACKBlock{Left: left, Right: right}
	copy(s.r[i+1:], s.r[j:s.n])
	s.n -= j - i - 1
	s.last = i
	return true
}

// advance removes everything before seq and returns the end of the range that
// seq then lies in or touches, or seq itself: how far a stream in order goes.
func (s *ranges) advance(seq uint32) uint32 {
	k := 0
	end := seq
	for k < s.n && notAfter(s.r[k].Left, end) {
		end = later(end, s.r[k].Right)
		k++
	}
	if k > 0 {
		copy(s.r[:], s.r[k:s.n])
		s.n -= k
		s.last = max(s.last-k, 0)
	}
	return end
}

// gap returns the first hole at or after seq that lies before the end of the
// set: [left, right). Without one, ok is false.
func (s *ranges) gap(seq uint32) (left, right uint32, ok bool) {
	for i := range s.n {
		if before(seq, s.r[i].Left) {
			return seq, s.r[i].Left, true
		}
		seq = later(seq, s.r[i].Right)
	}
	return 0, 0, false
}

// bytes is how much the set covers.
func (s *ranges) bytes() uint32 {
	var n uint32
	for i := range s.n {
		n += s.r[i].Right - s.r[i].Left
	}
	return n
}

// blocks fills b with up to four ranges for a SACK option, the one touched
// last first, and returns how many.
func (s *ranges) blocks(b *[4]packet.SACKBlock) int {
	if s.n == 0 {
		return 0
	}
	last := min(s.last, s.n-1)
	b[0] = s.r[last]
	k := 1
	for i := 0; i < s.n && k < len(b); i++ {
		if i != last {
			b[k] = s.r[i]
			k++
		}
	}
	return k
}
