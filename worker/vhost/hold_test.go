// SPDX-License-Identifier: Apache-2.0

package vhost

import (
	"os"
	"path/filepath"
	"runtime/debug"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// TestEnableKicksBeforeMore: who waits for more buffers than there are is kicked for the
// next one, with an index of events too, though it has taken none.
func TestEnableKicksBeforeMore(t *testing.T) {
	f := newFront(t, 8, true, false, true)
	kicks := func(old uint16) bool { // as the driver reckons, virtio 1.3 section 2.7.10
		event := load16(f.used(), ringHead+8*usedEntry)
		return f.idx-event-1 < f.idx-old
	}
	f.offer([2]int{bufferAt, 10})
	f.offer([2]int{bufferAt, 10})
	if f.r.Waiting() != 2 || f.r.EnableKicks() {
		t.Fatal("what was seen is news")
	}
	f.offer([2]int{bufferAt, 10})
	if !kicks(2) {
		t.Error("no kick for the third, with two that were seen")
	}
	if !f.r.EnableKicks() || f.r.Waiting() != 3 {
		t.Errorf("the third is no news; %d wait", f.r.Waiting())
	}
}

// TestHeld: a guest that makes more available than it has descriptors, none of them
// used, ends the ring; what was not shown yet is not written over.
func TestHeld(t *testing.T) {
	f := newFront(t, 4, false, false, false)
	a := NewArena(MaxPieces)
	f.put(f.mem, 0, guestBase+bufferAt, 10, 0, 0)
	f.idx = 4
	f.show()
	var c Chain
	for range 4 {
		if !f.r.Pop(&c, a) {
			t.Fatal(f.r.Err())
		}
	}
	f.r.Unpop(&c)
	if !f.r.Pop(&c, a) {
		t.Fatal(f.r.Err())
	}
	f.r.Use(&c, 0)
	f.idx = 6
	f.show()
	if f.r.Pop(&c, a) || f.r.Err() == nil || !strings.Contains(f.r.Err().Error(), "in use") {
		t.Errorf("a fifth one: %v", f.r.Err())
	}
}

// TestNotStarted: nothing comes of a ring that was not started.
func TestNotStarted(t *testing.T) {
	var r Ring
	var c Chain
	r.DisableKicks()
	r.Use(&c, 1)
	if r.Pop(&c, NewArena(MaxPieces)) || r.Waiting() != 0 || r.EnableKicks() || r.Publish() || r.Err() != nil || r.Base() != 0 {
		t.Error("something")
	}
}

// TestStartAgain: who starts a ring without an end takes no memory by that.
func TestStartAgain(t *testing.T) {
	f := newFront(t, 256, false, false, true)
	f.s.Inflight = make([]byte, InflightSize(256))
	a := NewArena(MaxPieces)
	start := func() {
		if err := f.r.Start(&f.m, &f.s); err != nil {
			t.Fatal(err)
		}
	}
	start()
	for range 200 {
		var c Chain
		if f.offer([2]int{bufferAt, 10}); !f.r.Pop(&c, a) {
			t.Fatal(f.r.Err())
		}
	}
	start()
	if n := testing.AllocsPerRun(10, start); n > 1 || f.r.Waiting() != 200 {
		t.Errorf("%v allocations, %d wait", n, f.r.Waiting())
	}
}

// TestTableInRegions: a table of descriptors may lie in several regions that follow each other, as
// any buffer may.
func TestTableInRegions(t *testing.T) {
	f := newFront(t, 8, false, true, false)
	regions := []Region{
		{guestBase, userBase, f.mem[:1<<20]},
		{guestBase + 1<<20, userBase + 8<<20, f.mem[2<<20:]},
	}
	if err := f.m.Set(regions); err != nil {
		t.Fatal(err)
	}
	if err := f.r.Moved(); err != nil {
		t.Fatal(err)
	}
	const at = 1<<20 - 24 // the second descriptor begins in one and ends in the other
	table := make([]byte, 3*descSize)
	for i := range 3 {
		flags := uint16(descNext)
		if i == 2 {
			flags = 0
		}
		f.put(table, i, guestBase+0x1000*uint64(i+1), uint32(i+1), flags, uint16(i+1))
	}
	copy(f.mem[at:1<<20], table)
	copy(f.mem[2<<20:], table[24:])
	f.put(f.mem, 0, guestBase+at, uint32(len(table)), descIndirect, 0)
	f.idx = 1
	f.show()
	var c Chain
	if !f.r.Pop(&c, NewArena(8)) || c.Len != 6 || len(c.Pieces) != 3 || &c.Pieces[2][0] != &f.mem[0x3000] {
		t.Fatal(f.r.Err(), c.Len, len(c.Pieces))
	}
	f.r.Unpop(&c)
	if err := f.m.Set(regions[:1]); err != nil {
		t.Fatal(err)
	}
	if f.r.Pop(&c, NewArena(8)) || f.r.Err() == nil {
		t.Error("half a table is one")
	}
}

// TestFault: memory whose file has become shorter is a panic that whoever runs the rings can tell from
// others, whether a ring is read or a buffer copied.
func TestFault(t *testing.T) {
	file, err := os.Create(filepath.Join(t.TempDir(), "memory"))
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = file.Close() }()
	if err := file.Truncate(4 << 20); err != nil {
		t.Fatal(err)
	}
	mem, err := unix.Mmap(int(file.Fd()), 0, 4<<20, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = unix.Munmap(mem) }()
	f := newFrontIn(t, mem, 8, false, false, true)
	f.offer([2]int{bufferAt, 100})
	f.offer([2]int{bufferAt, 100})
	var c Chain
	a := NewArena(MaxPieces)
	if !f.r.Pop(&c, a) {
		t.Fatal(f.r.Err())
	}
	if err := file.Truncate(0); err != nil {
		t.Fatal(err)
	}
	defer debug.SetPanicOnFault(debug.SetPanicOnFault(true))
	for name, do := range map[string]func(){
		"index":  func() { f.r.look() },
		"pop":    func() { f.r.Pop(&c, a) },
		"use":    func() { f.r.Use(&c, 0) },
		"show":   func() { f.r.show() },
		"kicks":  func() { f.r.EnableKicks() },
		"copy":   func() { copy(make([]byte, 100), c.Pieces[0]) },
		"copied": func() { copy(c.Pieces[0], make([]byte, 100)) },
		"start":  func() { _ = f.r.Start(&f.m, &f.s) },
	} {
		if !isFault(recovered(do)) {
			t.Errorf("%s: no fault", name)
		}
	}
	for name, do := range map[string]func(){
		"nil":    func() { _ = *(*Region)(nil).nothing() },
		"bounds": func() { _ = mem[len(c.Pieces)+len(mem)] },
		"other":  func() { panic("other") },
		"none":   func() {},
	} {
		if isFault(recovered(do)) {
			t.Errorf("%s: a fault", name)
		}
	}
}

func isFault(panicked any) bool {
	_, ok := panicked.(interface{ Addr() uintptr })
	return ok
}

func (r *Region) nothing() *uint64 { return &r.Guest }

func recovered(do func()) (v any) {
	defer func() { v = recover() }()
	do()
	return nil
}
