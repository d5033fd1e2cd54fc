// SPDX-License-Identifier: Apache-2.0

package vhost

import (
	"encoding/binary"
	"testing"

	"golang.org/x/sys/unix"
)

// front is the driver's side of one ring, in one region of memory.
type front struct {
	t    testing.TB
	mem  []byte
	m    Memory
	s    Setup
	r    Ring
	free []uint16
	idx  uint16 // of the available ring, shown or not
	seen uint16 // of the used ring
}

const (
	guestBase = 0x1_0000_0000
	userBase  = 0x7f00_0000_0000
	bufferAt  = 1 << 20 // buffers are behind
	tableAt   = 1 << 19 // and tables of descriptors before them
)

func newFront(t testing.TB, size int, writable, indirect, event bool) *front {
	mem, err := unix.Mmap(-1, 0, 4<<20, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANONYMOUS)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = unix.Munmap(mem) })
	return newFrontIn(t, mem, size, writable, indirect, event)
}

func newFrontIn(t testing.TB, mem []byte, size int, writable, indirect, event bool) *front {
	f := &front{t: t, mem: mem}
	if err := f.m.Set([]Region{{guestBase, userBase, mem}}); err != nil {
		t.Fatal(err)
	}
	avail := size * descSize
	used := (avail + 6 + 2*size + 3) &^ 3
	f.s = Setup{
		Size: size, Desc: userBase, Avail: userBase + uint64(avail), Used: userBase + uint64(used),
		Writable: writable, Indirect: indirect, EventIdx: event,
	}
	for i := range size {
		f.free = append(f.free, uint16(i))
	}
	if err := f.r.Start(&f.m, &f.s); err != nil {
		t.Fatal(err)
	}
	return f
}

func (f *front) avail() []byte { return f.mem[f.s.Avail-userBase:] }
func (f *front) used() []byte  { return f.mem[f.s.Used-userBase:] }

func (f *front) put(table []byte, i int, addr uint64, n uint32, flags, next uint16) {
	b := table[i*descSize:]
	binary.LittleEndian.PutUint64(b, addr)
	binary.LittleEndian.PutUint32(b[8:], n)
	binary.LittleEndian.PutUint16(b[12:], flags)
	binary.LittleEndian.PutUint16(b[14:], next)
}

func (f *front) dir() uint16 {
	if f.s.Writable {
		return descWrite
	}
	return 0
}

// offer makes a chain of pieces {offset, length} available, and shows it.
func (f *front) offer(pieces ...[2]int) (head uint16) {
	if f.s.Indirect && len(pieces) > 1 {
		head, f.free = f.free[0], f.free[1:]
		table := f.mem[tableAt+int(head)*1024:]
		for k, p := range pieces {
			flags := f.dir()
			if k < len(pieces)-1 {
				flags |= descNext
			}
			f.put(table, k, guestBase+uint64(p[0]), uint32(p[1]), flags, uint16(k+1))
		}
		f.put(f.mem, int(head), guestBase+tableAt+uint64(head)*1024, uint32(len(pieces)*descSize), descIndirect, 0)
	} else {
		head = f.free[0]
		for k, p := range pieces {
			flags, next := f.dir(), uint16(0)
			if k < len(pieces)-1 {
				flags, next = flags|descNext, f.free[k+1]
			}
			f.put(f.mem, int(f.free[k]), guestBase+uint64(p[0]), uint32(p[1]), flags, next)
		}
		f.free = f.free[len(pieces):]
	}
	binary.LittleEndian.PutUint16(f.avail()[4+2*(int(f.idx)%f.s.Size):], head)
	f.idx++
	f.show()
	return head
}

func (f *front) show() {
	storePair(f.avail()[:4:4], 0, binary.LittleEndian.Uint16(f.avail()), f.idx)
}

// take returns the next used entry, and frees its descriptors.
func (f *front) take() (head, written uint32, ok bool) {
	if f.seen == load16(f.used(), 2) {
		return 0, 0, false
	}
	e := f.used()[4+8*(int(f.seen)%f.s.Size):]
	f.seen++
	head, written = binary.LittleEndian.Uint32(e), binary.LittleEndian.Uint32(e[4:])
	for i := uint16(head); ; {
		f.free = append(f.free, i)
		d := readDescriptor(f.mem, int(i))
		if d.flags&descNext == 0 {
			break
		}
		i = d.next
	}
	return head, written, true
}
