// SPDX-License-Identifier: Apache-2.0

package frame

import (
	"bytes"
	"encoding/binary"
	"testing"

	"aldente/fuzz"
)

// whole is a plain reading of a stream: its messages, and whether something is wrong
// behind them.
func whole(stream []byte, most int) (all [][]byte, bad bool) {
	for len(stream) >= 2 {
		n := int(binary.BigEndian.Uint16(stream))
		if n < 12 || n > most {
			return all, true
		}
		if len(stream) < 2+n {
			return all, false
		}
		all, stream = append(all, stream[2:2+n]), stream[2+n:]
	}
	return all, false
}

// FuzzDNSStream reads a stream in pieces: the same messages as a reader of the whole, and
// malformed exactly where that one says so, with no more in memory than two messages; what
// is written of them, through a queue that is emptied by and by, is the stream again.
func FuzzDNSStream(f *testing.F) {
	var some []byte
	for i := range 9 {
		some = Append(some, fuzz.Pattern(12+i*90, uint32(i)))
	}
	for _, piece := range []uint16{0, 1, 5, 999, 4095} {
		fuzz.Add(f, piece, some)
		fuzz.Add(f, piece, append(some[:len(some):len(some)], 0, 11, 1, 2))
		fuzz.Add(f, piece, append(some[:len(some):len(some)], 0xff, 0xff))
	}
	fuzz.Add(f, uint16(3000), bytes.Repeat(Append(nil, make([]byte, 1900)), 20))
	fuzz.Add(f, uint16(9), bytes.Repeat(Append(nil, make([]byte, 2000)), 40))
	fuzz.Add(f, uint16(5000), some)
	f.Fuzz(func(t *testing.T, piece uint16, stream []byte) {
		const most = 2000
		want, bad := whole(stream, most)
		r := NewReader(most)
		var q Queue
		var again []byte
		n := int(piece)%(MaxRead+1) + 1
		for rest := stream; ; {
			msg, err := r.Next()
			if err != nil {
				if !bad || len(want) > 0 {
					t.Fatalf("an error, and %d messages left", len(want))
				}
				bad = false
				break
			}
			if msg != nil {
				if len(want) == 0 || !bytes.Equal(msg, want[0]) {
					t.Fatalf("a message that is not there: % x", msg)
				}
				for want = want[1:]; !q.Add(Append(nil, msg)); { // a socket takes some now and then
					again = append(again, q.Bytes()[:min(q.Len(), n)]...)
					q.Wrote(min(q.Len(), n))
				}
				continue
			}
			if r.Buffered() > most+Prefix {
				t.Fatalf("%d bytes wait", r.Buffered())
			}
			if len(rest) == 0 {
				break
			}
			p := rest[:min(n, len(rest))]
			if !r.Add(p) {
				if len(p) <= MaxRead {
					t.Fatal("no room for what may be read")
				}
				return
			}
			rest = rest[len(p):]
		}
		if bad || len(want) > 0 {
			t.Fatalf("%d messages left, an error that is none: %v", len(want), bad)
		}
		again = append(again, q.Bytes()...)
		if q.Wrote(q.Len()); q.Len() != 0 || !bytes.HasPrefix(stream, again) {
			t.Fatal("what was written is not what was read")
		}
	})
}
