// SPDX-License-Identifier: Apache-2.0

package store

import (
	"testing"

	"pgregory.net/rapid"
)

// Chunks are given to one user at a time, the last one freed first, and never
// overlap.
func TestPoolModel(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		size := rapid.IntRange(0, 12).Draw(t, "chunks")
		p := NewPool(make([]byte, size*ChunkSize+rapid.IntRange(0, ChunkSize-1).Draw(t, "rest")))
		if p.Len() != size {
			t.Fatalf("%d chunks, want %d", p.Len(), size)
		}
		held := make(map[uint32]byte)
		last := None
		mark := byte(0)
		t.Repeat(map[string]func(*rapid.T){
			"get": func(t *rapid.T) {
				c := p.Get()
				if len(held) == size {
					if c != None {
						t.Fatalf("chunk %d of a pool that has none", c)
					}
					return
				}
				if _, ok := held[c]; ok || int(c) >= size {
					t.Fatalf("chunk %d is in use, or does not exist", c)
				}
				if last != None && c != last {
					t.Fatalf("chunk %d, last freed was %d", c, last)
				}
				if p.Next(c) != None {
					t.Fatalf("chunk %d is in a list", c)
				}
				last = None
				mark++
				held[c] = mark
				b := p.Bytes(c)
				if len(b) != ChunkSize || cap(b) != ChunkSize {
					t.Fatalf("chunk of %d bytes, capacity %d", len(b), cap(b))
				}
				for i := range b {
					b[i] = mark
				}
			},
			"put": func(t *rapid.T) {
				if len(held) == 0 {
					return
				}
				var all []uint32
				for c := range uint32(size) {
					if _, ok := held[c]; ok {
						all = append(all, c)
					}
				}
				c := rapid.SampledFrom(all).Draw(t, "chunk")
				p.SetNext(c, 0)
				p.Put(c)
				delete(held, c)
				last = c
			},
			"": func(t *rapid.T) {
				if p.Used() != len(held) {
					t.Fatalf("%d used, want %d", p.Used(), len(held))
				}
				for c, m := range held {
					if b := p.Bytes(c); b[0] != m || b[ChunkSize-1] != m {
						t.Fatalf("chunk %d was written by another", c)
					}
				}
			},
		})
	})
}
