// SPDX-License-Identifier: Apache-2.0

package tcptest

import "aldente/worker/packet"

// span is a range of sequence numbers, and spans a set of them, in order.
type span = packet.SACKBlock
type spans []span

func (s spans) add(left, right uint32) spans {
	var out spans
	for _, x := range s {
		if before(x.Right, left) || after(x.Left, right) {
			continue
		}
		if before(x.Left, left) {
			left = x.Left
		}
		right = later(right, x.Right)
	}
	placed := false
	for _, x := range s {
		switch {
		case before(x.Right, left):
			out = append(out, x)
		case after(x.Left, right):
			if !placed {
				out, placed = append(out, span{Left: left, Right: right}), true
			}
			out = append(out, x)
		}
	}
	if !placed {
		out = append(out, span{Left: left, Right: right})
	}
	return out
}

// over returns the end of the span that seq is in, or seq.
func (s spans) over(seq uint32) uint32 {
	for _, x := range s {
		if notAfter(x.Left, seq) && before(seq, x.Right) {
			return x.Right
		}
	}
	return seq
}

// from drops what lies before seq.
func (s spans) from(seq uint32) spans {
	for len(s) > 0 && notAfter(s[0].Right, seq) {
		s = s[1:]
	}
	return s
}
