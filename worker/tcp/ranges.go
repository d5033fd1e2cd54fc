// SPDX-License-Identifier: Apache-2.0

package tcp

import "aldente/worker/packet"

// maxRanges bounds how many separate pieces a set of ranges keeps. Sixty-four
// holes in a window are far beyond what a link with usable throughput shows.
const maxRanges = 64

// ranges is a set of sequence ranges in ascending order, disjoint and not
// touching. A flow has one only while it recovers from loss or reordering.
type ranges struct {
	n     int
	clock uint32
	r     [maxRanges]packet.SACKBlock
	at    [maxRanges]uint32 // clock when the range was touched last
}

func (s *ranges) reset() { s.n, s.clock = 0, 0 }

// add puts [left, right) into the set. It reports false, leaving the set as it
// was, if that would take more than maxRanges.
func (s *ranges) add(left, right uint32) bool {
	s.clock++
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
		copy(s.at[i+1:s.n+1], s.at[i:s.n])
		s.n++
		s.r[i], s.at[i] = packet.SACKBlock{Left: left, Right: right}, s.clock
		return true
	}
	if before(s.r[i].Left, left) {
		left = s.r[i].Left
	}
	right = later(right, s.r[j-1].Right)
	s.r[i], s.at[i] = packet.SACKBlock{Left: left, Right: right}, s.clock
	copy(s.r[i+1:], s.r[j:s.n])
	copy(s.at[i+1:], s.at[j:s.n])
	s.n -= j - i - 1
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
		copy(s.at[:], s.at[k:s.n])
		s.n -= k
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

// covers tells whether all of [left, right) is in the set.
func (s *ranges) covers(left, right uint32) bool {
	for i := range s.n {
		if atLeast(s.r[i].Right, right) {
			return notAfter(s.r[i].Left, left)
		}
	}
	return false
}

// blocks fills b with up to four ranges for a SACK option, the one touched
// last first (RFC 2018 section 4), and returns how many.
func (s *ranges) blocks(b *[4]packet.SACKBlock) int {
	var at [4]uint32
	n := 0
	for i := range s.n {
		k := n
		for k > 0 && at[k-1] < s.at[i] {
			k--
		}
		if k == len(b) {
			continue
		}
		n = min(n+1, len(b))
		copy(b[k+1:n], b[k:n-1])
		copy(at[k+1:n], at[k:n-1])
		b[k], at[k] = s.r[i], s.at[i]
	}
	return n
}
