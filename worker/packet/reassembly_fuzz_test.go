// SPDX-License-Identifier: Apache-2.0

package packet

import (
	"encoding/binary"
	"testing"

	"aldente/fuzz"
)

// FuzzReassemble feeds a stream of fragments as a guest could write them.
// Whatever comes out must decode as a whole packet or be refused by Decode,
// and buffers must be neither lost nor used twice.
func FuzzReassemble(f *testing.F) {
	whole := wholeUDP(true, 60, 0)
	whole6 := wholeUDP(false, 60, 0)
	seed := func(frames ...[]byte) {
		var b []byte
		for _, fr := range frames {
			b = binary.BigEndian.AppendUint16(b, uint16(len(fr)))
			b = append(b, fr...)
		}
		fuzz.Add(f, b)
	}
	seed(cut(whole, piece{0, 32, true}, 1, false), cut(whole, piece{32, 36, false}, 1, false))
	seed(cut(whole6, piece{32, 36, false}, 1, true), cut(whole6, piece{0, 32, true}, 1, true))
	seed(cut(whole, piece{0, 32, true}, 1, false), cut(whole, piece{24, 44, false}, 1, false))
	r := NewReassembler()
	now := int64(0)
	f.Fuzz(func(t *testing.T, b []byte) {
		var p Packet
		for len(b) >= 2 {
			n := min(int(binary.BigEndian.Uint16(b)), len(b)-2)
			frame := b[2 : 2+n]
			b = b[2+n:]
			now += 1e9
			if p.Decode(frame) != nil || !p.Fragment {
				continue
			}
			whole, ok := r.Reassemble(&p, now)
			if !ok {
				continue
			}
			if err := p.Decode(whole); err == nil && p.Fragment {
				t.Fatalf("still a fragment")
			}
		}
		r.check(t)
	})
}

// check verifies that each buffer is in one place.
func (r *Reassembler) check(t *testing.T) {
	var owner [numBuffers]int
	for _, b := range r.free {
		owner[b]++
	}
	for _, b := range r.done {
		owner[b]++
	}
	for i := range r.sets {
		if s := &r.sets[i]; s.used && !s.spoiled {
			owner[s.buf]++
		}
	}
	for b, n := range owner {
		want := 1
		if b >= int(r.high) {
			want = 0
		}
		if n != want {
			t.Fatalf("buffer %d is in %d places", b, n)
		}
	}
}
