// SPDX-License-Identifier: Apache-2.0

package frame

import (
	"bytes"
	"slices"
	"testing"
)

// TestReader: messages come out as they went in, whatever the pieces.
func TestReader(t *testing.T) {
	for _, piece := range []int{1, 2, 3, 13, 100, MaxRead} {
		var stream []byte
		var want [][]byte
		for i := range 300 {
			msg := bytes.Repeat([]byte{byte(i)}, minMessage+i*7)
			want = append(want, msg)
			stream = Append(stream, msg)
		}
		r := NewReader(4096)
		var got [][]byte
		for at := 0; at < len(stream); at += piece {
			if !r.Add(stream[at:min(len(stream), at+piece)]) {
				t.Fatalf("pieces of %d: no room", piece)
			}
			for {
				msg, err := r.Next()
				if err != nil {
					t.Fatal(err)
				}
				if msg == nil {
					break
				}
				got = append(got, bytes.Clone(msg))
			}
		}
		if !slices.EqualFunc(got, want, bytes.Equal) || r.Buffered() != 0 || cap(r.buf) > keep {
			t.Errorf("pieces of %d: %d messages, %d bytes left", piece, len(got), r.Buffered())
		}
	}
}

// TestReaderBounds: lengths that are none, and who does not wait.
func TestReaderBounds(t *testing.T) {
	for n, bad := range map[int]bool{0: true, minMessage - 1: true, minMessage: false, 100: false, 101: true, 65535: true} {
		r := NewReader(100)
		r.Add([]byte{byte(n >> 8), byte(n)})
		if _, err := r.Next(); (err != nil) != bad {
			t.Errorf("length %d: %v", n, err)
		}
	}
	r := NewReader(MaxRead)
	held := 0
	for r.Add(make([]byte, 1000)) {
		held += 1000
	}
	if held > 2*MaxRead+Prefix || held != r.Buffered() {
		t.Errorf("%d bytes held", held)
	}
	if NewReader(100).Add(make([]byte, MaxRead+1)) {
		t.Error("a piece that is too long")
	}
}

// TestQueue: what was added comes out in order, and no more is held than may be.
func TestQueue(t *testing.T) {
	var q Queue
	var in, out []byte
	for i := range 10_000 {
		p := bytes.Repeat([]byte{byte(i)}, i%700)
		if q.Add(p) {
			in = append(in, p...)
		} else if q.Len()+len(p) <= MaxQueue {
			t.Fatalf("no room behind %d bytes", q.Len())
		}
		n := min(q.Len(), 300)
		out = append(out, q.Bytes()[:n]...)
		q.Wrote(n)
		if q.Len() > MaxQueue {
			t.Fatalf("%d bytes held", q.Len())
		}
	}
	out = append(out, q.Bytes()...)
	q.Wrote(q.Len())
	if !bytes.Equal(in, out) || q.Len() != 0 || q.buf != nil {
		t.Error("what came out is not what went in")
	}
}
