// SPDX-License-Identifier: Apache-2.0

package tcp

import (
	"testing"

	"pgregory.net/rapid"

	"aldente/worker/packet"
)

// bitmap is the model of ranges: one bool for each sequence number from base.
type bitmap struct {
	base uint32
	bit  [512]bool
}

func (m *bitmap) each(left, right uint32, f func(k int)) {
	for q := left; q != right; q++ {
		f(int(q - m.base))
	}
}

func (m *bitmap) blocks() []packet.SACKBlock {
	var r []packet.SACKBlock
	for k := 0; k < len(m.bit); k++ {
		if !m.bit[k] {
			continue
		}
		left := k
		for k < len(m.bit) && m.bit[k] {
			k++
		}
		r = append(r, packet.SACKBlock{Left: m.base + uint32(left), Right: m.base + uint32(k)})
	}
	return r
}

func TestRanges(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		base := rapid.SampledFrom([]uint32{0, 1 << 31, ^uint32(0) - 300, ^uint32(0) - 511}).Draw(t, "base")
		m := &bitmap{base: base}
		var s ranges
		s.reset()
		draw := func(name string) uint32 { return base + uint32(rapid.IntRange(0, len(m.bit)-1).Draw(t, name)) }
		t.Repeat(map[string]func(*rapid.T){
			"add": func(t *rapid.T) {
				left := draw("left")
				n := uint32(rapid.IntRange(1, 8).Draw(t, "n"))
				right := base + min(left+n-base, uint32(len(m.bit)))
				saved := m.bit
				m.each(left, right, func(k int) { m.bit[k] = true })
				if fits := len(m.blocks()) <= maxRanges; s.add(left, right) != fits {
					t.Fatalf("add said %t", !fits)
				} else if !fits {
					m.bit = saved
					return
				}
				var b [4]packet.SACKBlock
				if s.blocks(&b) == 0 || before(left, b[0].Left) || after(right, b[0].Right) {
					t.Fatalf("[%d,%d) not reported first: %v", left, right, b)
				}
			},
			"advance": func(t *rapid.T) {
				seq := draw("seq")
				end := seq
				for k := int(seq - base); k < len(m.bit) && m.bit[k]; k++ {
					end++
				}
				if left := (seq - base); left > 0 {
					// A range that ends at seq or spans it belongs to it.
					m.each(base, seq, func(k int) { m.bit[k] = false })
				}
				m.each(seq, end, func(k int) { m.bit[k] = false })
				if got := s.advance(seq); got != end {
					t.Fatalf("advance(%d) = %d, want %d", seq, got, end)
				}
			},
			"gap": func(t *rapid.T) {
				seq := draw("seq")
				blocks := m.blocks()
				left, right, ok := s.gap(seq)
				for k := int(seq - base); ; k++ {
					if len(blocks) == 0 || !before(base+uint32(k), blocks[len(blocks)-1].Right) {
						if ok {
							t.Fatalf("gap [%d,%d) behind the end", left, right)
						}
						return
					}
					if m.bit[k] {
						continue
					}
					end := k
					for !m.bit[end] {
						end++
					}
					if !ok || left != base+uint32(k) || right != base+uint32(end) {
						t.Fatalf("gap(%d) = [%d,%d) %t, want [%d,%d)", seq, left, right, ok, base+uint32(k), base+uint32(end))
					}
					return
				}
			},
			"covers": func(t *rapid.T) {
				left := draw("left")
				right := base + min(left+uint32(rapid.IntRange(1, 8).Draw(t, "n"))-base, uint32(len(m.bit)))
				want := true
				m.each(left, right, func(k int) { want = want && m.bit[k] })
				if s.covers(left, right) != want {
					t.Fatalf("covers(%d,%d) = %t", left, right, !want)
				}
			},
			"": func(t *rapid.T) {
				want := m.blocks()
				if s.n != len(want) {
					t.Fatalf("%v, want %v", s.r[:s.n], want)
				}
				for k, w := range want {
					if s.r[k] != w {
						t.Fatalf("%v, want %v", s.r[:s.n], want)
					}
				}
				var b [4]packet.SACKBlock
				n := s.blocks(&b)
				if n != min(len(want), 4) {
					t.Fatalf("%d blocks reported of %d", n, len(want))
				}
				for k, r := range b[:n] {
					if !s.covers(r.Left, r.Right) || k > 0 && b[k] == b[k-1] {
						t.Fatalf("reported %v of %v", b[:n], want)
					}
				}
			},
		})
	})
}

// Comparison is that of RFC 9293 section 3.4 at every distance below 2^31,
// wherever the numbers wrap.
func TestSeq(t *testing.T) {
	for _, a := range []uint32{0, 1, 1 << 31, 1<<31 - 1, ^uint32(0), ^uint32(0) - 100, 12345} {
		for _, d := range []uint32{1, 2, 100, 1 << 30, 1<<31 - 1} {
			b := a + d
			if !before(a, b) || before(b, a) || after(a, b) || !after(b, a) || !notAfter(a, b) || notAfter(b, a) ||
				atLeast(a, b) || !atLeast(b, a) || later(a, b) != b || later(b, a) != b {
				t.Errorf("%d and %d", a, b)
			}
		}
		if before(a, a) || after(a, a) || !notAfter(a, a) || !atLeast(a, a) || later(a, a) != a {
			t.Errorf("%d and itself", a)
		}
	}
}
