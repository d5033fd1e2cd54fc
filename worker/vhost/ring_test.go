// SPDX-License-Identifier: Apache-2.0

package vhost

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"math/rand"
	"strings"
	"testing"
)

// TestRandom: chains of random shapes go to and fro, in any pace, and each comes back
// once, in order, with what was in it.
func TestRandom(t *testing.T) {
	for mode := range 8 {
		writable, indirect, event := mode&1 != 0, mode&2 != 0, mode&4 != 0
		t.Run(fmt.Sprintf("writable=%v indirect=%v event=%v", writable, indirect, event), func(t *testing.T) {
			for _, size := range []int{1, 2, 8, 256} {
				randomRun(t, rand.New(rand.NewSource(int64(mode))), newFront(t, size, writable, indirect, event))
			}
		})
	}
}

func randomRun(t *testing.T, rnd *rand.Rand, f *front) {
	a := NewArena(MaxPieces)
	type given struct {
		head uint16
		len  int
		sum  byte
	}
	var offered, held []given
	var chains []Chain
	for range 20000 {
		switch rnd.Intn(4) {
		case 0:
			n := 1 + rnd.Intn(min(4, f.s.Size))
			if len(f.free) < n {
				break
			}
			g := given{}
			var pieces [][2]int
			for range n {
				p := [2]int{bufferAt + rnd.Intn(1<<20), 1 + rnd.Intn(3000)}
				f.mem[p[0]] = byte(rnd.Int())
				pieces = append(pieces, p)
				g.len += p[1]
			}
			for _, p := range pieces {
				g.sum += f.mem[p[0]]
			}
			g.head = f.offer(pieces...)
			offered = append(offered, g)
		case 1:
			var c Chain
			if len(held) > 0 || !f.r.Pop(&c, a) {
				break
			}
			g := offered[0]
			offered = offered[1:]
			if rnd.Intn(4) == 0 { // another look at it
				f.r.Unpop(&c)
				a.Reset()
				if !f.r.Pop(&c, a) {
					t.Fatal("put back and gone")
				}
			}
			var sum byte
			for _, p := range c.Pieces {
				sum += p[0]
			}
			if c.head != g.head || c.Len != g.len || !f.s.Writable && len(c.Pieces) < 1 {
				t.Fatalf("%+v, offered %+v", c, g)
			}
			held, chains = append(held, g), append(chains, c)
		case 2:
			for k := range held {
				f.r.Use(&chains[k], k+1)
			}
			shown := len(held) > 0
			if call := f.r.Publish(); call && !shown {
				t.Fatal("a call for nothing")
			}
			for k, g := range held {
				if head, written, ok := f.take(); !ok || head != uint32(g.head) || written != uint32(k+1) {
					t.Fatalf("took %d, %d, %v; want %+v", head, written, ok, g)
				}
			}
			held, chains = held[:0], chains[:0]
			a.Reset()
		case 3:
			// Of a ring to receive by, what was seen before is no news.
			want, seen := len(offered) > 0, f.r.seen
			if writable := f.s.Writable; writable {
				want = seen != f.idx
			}
			if f.r.EnableKicks() != want {
				t.Fatalf("%d are offered", len(offered))
			}
			if event := load16(f.used(), ringHead+f.s.Size*usedEntry); f.s.EventIdx && event != seen {
				t.Fatalf("a kick is wanted at %d, seen was %d", event, seen)
			}
			if rnd.Intn(2) == 0 {
				f.r.DisableKicks()
			}
		}
		if f.r.Err() != nil {
			t.Fatal(f.r.Err())
		}
	}
}

// TestEvents: with an event index the guest is called, and kicks, when it asked for it.
func TestEvents(t *testing.T) {
	f := newFront(t, 8, false, false, true)
	a := NewArena(MaxPieces)
	event := f.avail()[4+2*8:]
	use := func() bool {
		f.offer([2]int{bufferAt, 10})
		var c Chain
		if !f.r.Pop(&c, a) {
			t.Fatal("nothing")
		}
		f.r.Use(&c, 0)
		call := f.r.Publish()
		f.take()
		return call
	}
	for i, want := range []bool{true, false, false, true, false, false} {
		if i == 1 {
			binary.LittleEndian.PutUint16(event, 3) // call at the fourth
		}
		if got := use(); got != want {
			t.Errorf("%d: call %v", i, got)
		}
	}
	if f.r.EnableKicks() || load16(f.used(), 4+8*8) != 6 {
		t.Errorf("kick wanted at %d", load16(f.used(), 4+8*8))
	}
	f.s.EventIdx = false
	_ = f.r.Start(&f.m, &f.s)
	f.r.DisableKicks()
	if f.used()[0] != usedNoNotify {
		t.Error("kicks are not disabled")
	}
	f.r.EnableKicks()
	if f.used()[0] != 0 {
		t.Error("kicks are not enabled")
	}
	f.avail()[0] = availNoInterrupt
	if use() {
		t.Error("called in spite of the flag")
	}
}

// TestBroken: what cannot be ends the ring, with a reason, and nothing else.
func TestBroken(t *testing.T) {
	for name, tt := range map[string]struct {
		size     int
		indirect bool
		do       func(f *front)
		want     string
	}{
		"index jumps":       {8, false, func(f *front) { f.idx = 9; f.show() }, "9 chains are available of 8"},
		"head":              {8, false, func(f *front) { f.avail()[4] = 8; f.idx = 1; f.show() }, "descriptor 8 of 8"},
		"next":              {8, false, func(f *front) { f.put(f.mem, 0, guestBase, 1, descNext, 8); f.idx = 1; f.show() }, "descriptor 8 follows"},
		"self":              {8, false, func(f *front) { f.put(f.mem, 0, guestBase, 1, descNext, 0); f.idx = 1; f.show() }, "without end"},
		"direction":         {8, false, func(f *front) { f.put(f.mem, 0, guestBase, 1, descWrite, 0); f.idx = 1; f.show() }, "direction"},
		"outside":           {8, false, func(f *front) { f.put(f.mem, 0, 0, 1, 0, 0); f.idx = 1; f.show() }, "outside"},
		"over the end":      {8, false, func(f *front) { f.put(f.mem, 0, guestBase+4<<20-1, 2, 0, 0); f.idx = 1; f.show() }, "outside"},
		"goes round":        {8, false, func(f *front) { f.put(f.mem, 0, 1<<64-1, 2, 0, 0); f.idx = 1; f.show() }, "outside"},
		"long":              {8, false, func(f *front) { f.put(f.mem, 0, guestBase, 1<<32-1, 0, 0); f.idx = 1; f.show() }, "more than"},
		"table not agreed":  {8, false, func(f *front) { f.put(f.mem, 0, guestBase, 16, descIndirect, 0); f.idx = 1; f.show() }, "not agreed"},
		"table and next":    {8, true, func(f *front) { f.put(f.mem, 0, guestBase, 16, descIndirect|descNext, 1); f.idx = 1; f.show() }, "behind a table"},
		"table of 0 bytes":  {8, true, func(f *front) { f.put(f.mem, 0, guestBase, 0, descIndirect, 0); f.idx = 1; f.show() }, "of 0 bytes"},
		"table of 17 bytes": {8, true, func(f *front) { f.put(f.mem, 0, guestBase, 17, descIndirect, 0); f.idx = 1; f.show() }, "of 17 bytes"},
		"table outside":     {8, true, func(f *front) { f.put(f.mem, 0, 0, 16, descIndirect, 0); f.idx = 1; f.show() }, "outside"},
		"table in table": {8, true, func(f *front) {
			f.put(f.mem, 0, guestBase+tableAt, 16, descIndirect, 0)
			f.put(f.mem[tableAt:], 0, guestBase+tableAt, 16, descIndirect, 0)
			f.idx = 1
			f.show()
		}, "within another"},
		"next in a table": {8, true, func(f *front) {
			f.put(f.mem, 0, guestBase+tableAt, 32, descIndirect, 0)
			f.put(f.mem[tableAt:], 0, guestBase, 1, descNext, 2) // that is a descriptor of the ring, not of the table
			f.put(f.mem[tableAt:], 2, guestBase, 1, 0, 0)
			f.idx = 1
			f.show()
		}, "descriptor 2 follows, of 2"},
		"loop in a table": {8, true, func(f *front) {
			f.put(f.mem, 0, guestBase+tableAt, 32, descIndirect, 0)
			f.put(f.mem[tableAt:], 0, guestBase, 1, descNext, 1)
			f.put(f.mem[tableAt:], 1, guestBase, 1, descNext, 0)
			f.idx = 1
			f.show()
		}, "without end"},
		"many pieces": {2048, false, func(f *front) {
			for i := range 2047 {
				f.put(f.mem, i, guestBase, 1, descNext, uint16(i+1))
			}
			f.put(f.mem, 2047, guestBase, 1, 0, 0)
			f.idx = 1
			f.show()
		}, "more than 1024 descriptors"},
		"many descriptors of nothing": {2048, false, func(f *front) {
			for i := range 2048 {
				f.put(f.mem, i, guestBase, 0, descNext, uint16((i+1)%2048))
			}
			f.idx = 1
			f.show()
		}, "more than 1024 descriptors"},
		"table of 16400 bytes": {8, true, func(f *front) {
			f.put(f.mem, 0, guestBase, 16*(MaxPieces+1), descIndirect, 0)
			f.idx = 1
			f.show()
		}, "of 16400 bytes"},
		"bytes of several": {8, false, func(f *front) {
			for i := range 7 {
				f.put(f.mem, i, guestBase, 4<<20, descNext, uint16(i+1))
			}
			f.put(f.mem, 7, guestBase, maxChainLen, 0, 0)
			f.idx = 1
			f.show()
		}, "more than"},
	} {
		t.Run(name, func(t *testing.T) {
			f := newFront(t, tt.size, false, tt.indirect, false)
			tt.do(f)
			var c Chain
			if a := NewArena(MaxPieces); f.r.Pop(&c, a) || f.r.Err() == nil || !errors.Is(f.r.Err(), ErrRing) || !strings.Contains(f.r.Err().Error(), tt.want) {
				t.Errorf("%v", f.r.Err())
			}
			if f.r.Pop(&c, NewArena(MaxPieces)) || f.r.Publish() || f.r.EnableKicks() || f.r.Waiting() != 0 {
				t.Error("goes on")
			}
			f.r.DisableKicks()
			f.r.Use(&c, 1)
			if f.seen != load16(f.used(), 2) {
				t.Error("something is used")
			}
		})
	}
}

// TestArena: a chain without room for its pieces is taken later.
func TestArena(t *testing.T) {
	f := newFront(t, 8, false, false, false)
	f.offer([2]int{bufferAt, 1}, [2]int{bufferAt, 2})
	f.offer([2]int{bufferAt, 3}, [2]int{bufferAt, 4})
	a := NewArena(3)
	var c, d Chain
	if !f.r.Pop(&c, a) || f.r.Pop(&d, a) || f.r.Err() != nil || len(a.pieces) != 2 {
		t.Fatal(f.r.Err())
	}
	a.Reset()
	if !f.r.Pop(&d, a) || d.Len != 7 {
		t.Fatal(f.r.Err(), d)
	}
}

// TestRegions: a buffer may lie in several regions; there may be holes.
func TestRegions(t *testing.T) {
	f := newFront(t, 8, false, false, false)
	err := f.m.Set([]Region{
		{guestBase + 1<<20, userBase + 8<<20, f.mem[2<<20 : 3<<20]},
		{guestBase, userBase, f.mem[:1<<20]},
		{guestBase + 3<<20, userBase + 9<<20, f.mem[3<<20:]},
	})
	if err != nil {
		t.Fatal(err)
	}
	if err := f.r.Moved(); err != nil {
		t.Fatal(err)
	}
	copy(f.mem[1<<20-2:], "ab")
	copy(f.mem[2<<20:], "cd")
	f.offer([2]int{1<<20 - 2, 4})
	var c Chain
	if !f.r.Pop(&c, NewArena(8)) || string(bytes.Join(c.Pieces, nil)) != "abcd" || len(c.Pieces) != 2 {
		t.Fatal(f.r.Err(), c)
	}
	f.offer([2]int{2<<20 - 1, 2})
	if f.r.Pop(&c, NewArena(8)) || f.r.Err() == nil {
		t.Error("a hole is memory")
	}
	if f.m.User(userBase+1<<20-1, 2) != nil || f.m.User(userBase-1, 1) != nil || f.m.User(1<<64-1, 1) != nil {
		t.Error("what is not there is memory")
	}
	for name, all := range map[string][]Region{
		"empty":       {{0, 0, nil}},
		"round guest": {{1<<64 - 4096, 0, f.mem[:8192]}},
		"last guest":  {{1<<64 - 4096, 0, f.mem[:4096]}},
		"round user":  {{0, 1<<64 - 4096, f.mem[:8192]}},
		"last user":   {{0, 1<<64 - 4096, f.mem[:4096]}},
		"half a page": {{0, 0, f.mem[:2048]}},
		"not at one":  {{0, 0, f.mem[4:4100]}},
		"odd guest":   {{1, 0, f.mem[:4096]}},
		"odd user":    {{0, 2048, f.mem[:4096]}},
		"overlap":     {{0, 0, f.mem[:8192]}, {4096, 1 << 20, f.mem[:4096]}},
		"overlap u":   {{0, 0, f.mem[:8192]}, {1 << 20, 4096, f.mem[:4096]}},
		"same twice":  {{0, 0, f.mem[:4096]}, {0, 0, f.mem[:4096]}},
		"many":        make([]Region, MaxRegions+1),
	} {
		if err := f.m.Set(all); !errors.Is(err, ErrMemory) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if f.m.User(userBase, 1) == nil {
		t.Error("after an error all is as before")
	}
}

// TestSetup: a ring that cannot be is refused.
func TestSetup(t *testing.T) {
	f := newFront(t, 8, false, false, false)
	for name, change := range map[string]func(s *Setup){
		"size 0":          func(s *Setup) { s.Size = 0 },
		"size 7":          func(s *Setup) { s.Size = 7 },
		"size":            func(s *Setup) { s.Size = 65536 },
		"desc":            func(s *Setup) { s.Desc = 0 },
		"desc alignment":  func(s *Setup) { s.Desc += 8 },
		"avail":           func(s *Setup) { s.Avail = userBase + 4<<20 - 8 },
		"avail alignment": func(s *Setup) { s.Avail++ },
		"used":            func(s *Setup) { s.Used = 1<<64 - 4 },
		"used alignment":  func(s *Setup) { s.Used += 2 },
		"in flight":       func(s *Setup) { s.Inflight = make([]byte, 64) },
	} {
		s := f.s
		change(&s)
		var r Ring
		if err := r.Start(&f.m, &s); !errors.Is(err, ErrRing) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// TestLog: pages that are written to are marked, and no others.
func TestLog(t *testing.T) {
	f := newFront(t, 8, true, false, false)
	f.s.LogUsed, f.s.LogAddr = true, 0x5000
	if err := f.r.Start(&f.m, &f.s); err != nil {
		t.Fatal(err)
	}
	bits := make([]byte, (guestBase+4<<20)/pageSize/8)
	f.m.SetLog(bits)
	f.offer([2]int{bufferAt + 4090, 10}, [2]int{bufferAt + 5<<12, 4096})
	var c Chain
	if !f.r.Pop(&c, NewArena(8)) {
		t.Fatal(f.r.Err())
	}
	f.r.Use(&c, 10)
	f.r.Publish()
	first := uint64(guestBase+bufferAt) / pageSize
	for page := range uint64(len(bits) * 8) {
		want := page == 5 || page == first || page == first+1
		if got := bits[page/8]>>(page%8)&1 == 1; got != want {
			t.Errorf("page %#x: %v", page, got)
		}
	}
	f.m.mark(1<<63, 10) // behind the log's end
	f.m.SetLog(nil)
	f.m.mark(0, 10)
}

// TestInflight: what was taken and not given back is taken again by who comes next;
// what the guest has seen is not, whenever the one before was killed.
func TestInflight(t *testing.T) {
	f := newFront(t, 8, false, false, false)
	notes := make([]byte, InflightSize(8))
	f.s.Inflight = notes
	start := func() {
		t.Helper()
		if err := f.r.Start(&f.m, &f.s); err != nil {
			t.Fatal(err)
		}
	}
	start()
	for i := range 6 {
		f.offer([2]int{bufferAt + i, 1})
	}
	a := NewArena(64)
	var c [6]Chain
	for i := range 5 {
		if !f.r.Pop(&c[i], a) {
			t.Fatal(i)
		}
	}
	f.r.Unpop(&c[4])
	f.r.Use(&c[0], 0)
	f.r.Publish()
	f.r.Use(&c[1], 0)
	f.r.usedAt, f.r.shown = 2, 2
	f.r.show() // and is killed before the notes know
	start()
	if f.r.Waiting() < 2 || !f.r.EnableKicks() {
		t.Error("nothing waits")
	}
	for _, want := range []uint16{2, 3, 4, 5} {
		var d Chain
		if !f.r.Pop(&d, a) || d.head != want {
			t.Fatalf("%d instead of %d: %v", d.head, want, f.r.Err())
		}
		if want == 3 {
			f.r.Unpop(&d)
			if !f.r.Pop(&d, a) || d.head != want {
				t.Fatalf("put back: %d", d.head)
			}
		}
		f.r.Use(&d, 0)
	}
	f.r.Publish()
	start()
	if f.r.Waiting() != 0 || f.r.Base() != 6 {
		t.Errorf("%d wait, next is %d", f.r.Waiting(), f.r.Base())
	}
	for name, do := range map[string]func(){
		"version": func() { notes[8] = 7 },
		"size":    func() { notes[10] = 9 },
	} {
		was := bytes.Clone(notes)
		do()
		var r Ring
		if err := r.Start(&f.m, &f.s); !errors.Is(err, ErrRing) {
			t.Errorf("%s: %v", name, err)
		}
		copy(notes, was)
	}
	for name, do := range map[string]func(){
		"a batch of what is not there": func() { notes[14] = 0; notes[12] = 200 },
		"of another life":              func() { notes[14] = 100; notes[inflightHead+7*inflightEntry] = 1 },
	} {
		was := bytes.Clone(notes)
		do()
		f.s.Base = 6
		var r Ring
		if err := r.Start(&f.m, &f.s); err != nil || r.Waiting() != 0 || notes[14] != 6 {
			t.Errorf("%s: %v, %d wait, used are %d", name, err, r.Waiting(), notes[14])
		}
		copy(notes, was)
	}
}

func BenchmarkRing(b *testing.B) {
	for _, event := range []bool{false, true} {
		b.Run(fmt.Sprintf("event=%v", event), func(b *testing.B) {
			f := newFront(b, 256, false, false, event)
			a := NewArena(MaxPieces)
			for range 256 {
				f.offer([2]int{bufferAt, 1500})
			}
			var c Chain
			for b.Loop() {
				if !f.r.Pop(&c, a) {
					b.Fatal(f.r.Err())
				}
				f.r.Use(&c, 0)
				f.r.Publish()
				a.Reset()
				f.idx++ // the same one again
				f.show()
			}
		})
	}
}
