// SPDX-License-Identifier: Apache-2.0

package store

import (
	"testing"

	"pgregory.net/rapid"

	"aldente/worker/packet"
)

func TestKey(t *testing.T) {
	a, b := packet.AddrFrom4([4]byte{192, 0, 2, 1}), packet.Addr{0: 0xfe, 1: 0x80, 15: 9}
	k := MakeKey(&a, &b, 0x1234, 0x5678)
	if ra, rp := k.Remote(); ra != a || rp != 0x1234 {
		t.Errorf("remote %v %#x", ra, rp)
	}
	if ga, gp := k.Guest(); ga != b || gp != 0x5678 {
		t.Errorf("guest %v %#x", ga, gp)
	}
}

// The table does what a map does, whatever the order of changes: with few keys
// and a small table, so that probing and closing gaps are the rule.
func TestTableModel(t *testing.T) {
	type entry struct {
		index, gen uint32
		value      int
	}
	rapid.Check(t, func(t *rapid.T) {
		size := rapid.IntRange(1, 40).Draw(t, "size")
		tab := NewTable[int](size)
		if rapid.Bool().Draw(t, "crowded") {
			// As small as a table may be: one slot stays free.
			n := 1
			for n < size+1 {
				n *= 2
			}
			tab.slots, tab.mask = make([]uint32, n), uint32(n-1)
		}
		model := make(map[Key]entry)
		dead := make(map[uint32][]uint32) // index to generations that are over
		ended := make(map[uint32]Key)     // not freed yet
		values := make(map[uint32]int)    // of those
		key := func(t *rapid.T) Key {
			a := packet.AddrFrom4([4]byte{10, 0, 0, byte(rapid.IntRange(0, 60).Draw(t, "key"))})
			return MakeKey(&a, &a, 1, 2)
		}
		value := 0
		remove := func(k Key) {
			e := model[k]
			tab.Remove(e.index)
			delete(model, k)
			dead[e.index] = append(dead[e.index], e.gen)
		}
		t.Repeat(map[string]func(*rapid.T){
			"insert": func(t *rapid.T) {
				k := key(t)
				if _, ok := model[k]; ok {
					return
				}
				i := tab.Insert(&k)
				if len(model)+len(ended) == size {
					if i != None {
						t.Fatalf("inserted into a full table")
					}
					return
				}
				if i == None || *tab.At(i) != 0 || *tab.Key(i) != k {
					t.Fatalf("index %d, not zeroed or not its key", i)
				}
				value++
				*tab.At(i) = value
				model[k] = entry{i, tab.Gen(i), value}
			},
			"remove": func(t *rapid.T) {
				if k := key(t); model[k].value != 0 {
					remove(k)
				}
			},
			"rename": func(t *rapid.T) {
				from, to := key(t), key(t)
				e, ok := model[from]
				if _, taken := model[to]; !ok || taken {
					return
				}
				tab.Rename(e.index, &to)
				delete(model, from)
				model[to] = e
			},
			"end": func(t *rapid.T) {
				k := key(t)
				e, ok := model[k]
				if !ok {
					return
				}
				tab.End(e.index)
				delete(model, k)
				dead[e.index] = append(dead[e.index], e.gen)
				ended[e.index], values[e.index] = k, e.value
			},
			"free": func(t *rapid.T) {
				for i := range ended {
					tab.Free(i)
					delete(ended, i)
				}
			},
			"each": func(t *rapid.T) { // and remove some on the way
				seen := make(map[uint32]bool)
				bits := rapid.Uint64().Draw(t, "remove")
				n := len(model)
				tab.Each(func(i uint32) {
					k := *tab.Key(i)
					if seen[i] || model[k].index != i {
						t.Fatalf("flow %d seen twice or unknown", i)
					}
					seen[i] = true
					if bits>>(i%64)&1 != 0 {
						remove(k)
					}
				})
				if len(seen) != n {
					t.Fatalf("%d flows seen of %d", len(seen), n)
				}
			},
			"": func(t *rapid.T) {
				for i, k := range ended {
					if *tab.At(i) != values[i] || *tab.Key(i) != k {
						t.Fatalf("flow %d has changed before it was freed", i)
					}
				}
				if tab.Len() != len(model)+len(ended) || tab.Cap() != size {
					t.Fatalf("%d flows, want %d", tab.Len(), len(model))
				}
				for b := range 61 {
					a := packet.AddrFrom4([4]byte{10, 0, 0, byte(b)})
					k := MakeKey(&a, &a, 1, 2)
					e, ok := model[k]
					i := tab.Find(&k)
					if !ok && i != None || ok && (i != e.index || *tab.At(i) != e.value || !tab.Live(i, e.gen)) {
						t.Fatalf("key %d: index %d, want %+v %v", b, i, e, ok)
					}
				}
				for i, gens := range dead {
					for _, g := range gens {
						if tab.Live(i, g) {
							t.Fatalf("flow %d: generation %d is over", i, g)
						}
					}
				}
				if tab.Live(uint32(size), 1) || tab.Live(None, 1) {
					t.Fatalf("an index that does not exist is live")
				}
			},
		})
	})
}

func TestTableAllocs(t *testing.T) {
	tab := NewTable[[64]byte](100)
	a := packet.AddrFrom4([4]byte{10, 0, 0, 1})
	if n := testing.AllocsPerRun(100, func() {
		for port := range uint16(100) {
			k := MakeKey(&a, &a, port, 1)
			tab.Insert(&k)
		}
		for port := range uint16(100) {
			k := MakeKey(&a, &a, port, 1)
			tab.Remove(tab.Find(&k))
		}
	}); n != 0 {
		t.Errorf("%v allocations", n)
	}
}

func BenchmarkTableFind(b *testing.B) {
	tab := NewTable[[64]byte](1 << 16)
	a := packet.AddrFrom4([4]byte{10, 0, 0, 1})
	for port := range uint16(65535) {
		k := MakeKey(&a, &a, port, 1)
		tab.Insert(&k)
	}
	k := MakeKey(&a, &a, 4711, 1)
	for b.Loop() {
		if tab.Find(&k) == None {
			b.Fatal("not found")
		}
	}
}
