// SPDX-License-Identifier: Apache-2.0

package datagram

import (
	"bytes"
	"testing"

	"pgregory.net/rapid"

	"aldente/worker/store"
)

// Whatever is taken comes out whole, in order and with its mark, whatever the
// order of calls; bounds hold, and the pool gets all its chunks back.
func TestQueues(t *testing.T) {
	type entry struct {
		data []byte
		mark Mark
	}
	pool := store.NewPool(make([]byte, 48*store.ChunkSize))
	buf := make([]byte, 1<<16)
	rapid.Check(t, func(t *rapid.T) {
		most := rapid.SampledFrom([]int{1, 20, 40, 1000}).Draw(t, "most")
		s := NewQueues(pool, most)
		var queues [4]Queue
		var model [4][]entry
		n := byte(0)
		t.Repeat(map[string]func(*rapid.T){
			"add": func(t *rapid.T) {
				k := rapid.IntRange(0, 3).Draw(t, "queue")
				size := rapid.OneOf(rapid.IntRange(0, 40), rapid.IntRange(16300, 16400), rapid.IntRange(0, 65535)).Draw(t, "size")
				n++
				e := entry{bytes.Repeat([]byte{n, byte(size)}, size/2+1)[:size], Mark{uint16(n) * 7, n, ^n, n%2 != 0}}
				before := queues[k].Len()
				switch {
				case s.Add(&queues[k], e.data, e.mark):
					model[k] = append(model[k], e)
				case queues[k].Len() != before:
					t.Fatal("refused and added")
				case size+queueHead <= store.ChunkSize && s.Used() < most && pool.Used() < pool.Len() && queues[k].Chunks() < MaxQueue:
					t.Fatalf("%d bytes refused, though there is room", size)
				}
			},
			"next": func(t *rapid.T) {
				k := rapid.IntRange(0, 3).Draw(t, "queue")
				if len(model[k]) == 0 {
					return
				}
				size, mark := s.Next(&queues[k], buf)
				want := model[k][0]
				model[k] = model[k][1:]
				if !bytes.Equal(buf[:size], want.data) || mark != want.mark {
					t.Fatalf("%d bytes with %+v, want %d with %+v", size, mark, len(want.data), want.mark)
				}
			},
			"clear": func(t *rapid.T) {
				k := rapid.IntRange(0, 3).Draw(t, "queue")
				s.Clear(&queues[k])
				model[k] = nil
			},
			"": func(t *rapid.T) {
				chunks := 0
				for k := range queues {
					if queues[k].Len() != len(model[k]) || queues[k].Chunks() > MaxQueue {
						t.Fatalf("queue %d: %d entries of %d in %d chunks", k, queues[k].Len(), len(model[k]), queues[k].Chunks())
					}
					chunks += queues[k].Chunks()
				}
				if chunks != s.Used() || chunks != pool.Used() || chunks > most {
					t.Fatalf("%d chunks in queues, %d counted, %d of the pool", chunks, s.Used(), pool.Used())
				}
			},
		})
		for k := range queues {
			s.Clear(&queues[k])
			if queues[k] != (Queue{}) {
				t.Fatalf("cleared: %+v", queues[k])
			}
		}
		if s.Used() != 0 || pool.Used() != 0 {
			t.Fatalf("%d chunks lost", pool.Used())
		}
	})
}

func TestQueueAllocs(t *testing.T) {
	pool := store.NewPool(make([]byte, 8*store.ChunkSize))
	s := NewQueues(pool, 8)
	var q Queue
	data, buf := make([]byte, 20000), make([]byte, 1<<16)
	if n := testing.AllocsPerRun(100, func() {
		s.Add(&q, data, Mark{})
		s.Add(&q, data, Mark{})
		s.Next(&q, buf)
		s.Clear(&q)
	}); n != 0 {
		t.Errorf("%v allocations", n)
	}
}
