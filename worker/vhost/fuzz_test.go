// SPDX-License-Identifier: Apache-2.0

package vhost

import (
	"bytes"
	"encoding/binary"
	"slices"
	"testing"
	"unsafe"

	"golang.org/x/sys/unix"

	"aldente/fuzz"
)

// model is a driver that does all as virtio 1.3 says, in any pace, and a device that
// takes chains and gives them back. What the ring does is compared with what both remember.
type model struct {
	*front
	src     fuzz.Source
	a       *Arena
	offered []offer // in the available ring
	held    []offer // taken, in this order
	chains  []Chain
	waits   bool   // kicks are enabled, and there was nothing new
	called  uint16 // our index of the used ring when the driver was last to be called
	ever    bool   // it was
	pages   map[uint64]bool
}

// offer is a chain as the driver knows it.
type offer struct {
	head   uint16
	pieces [][2]int
}

func (m *model) run() {
	for len(m.src.B) > 0 && m.r.Err() == nil {
		switch op := m.src.Byte(); op % 8 {
		case 0, 1:
			m.add(1+int(op>>3)%4, op&0x80 != 0)
		case 2, 3:
			m.pop()
		case 4:
			m.unpop()
		case 5:
			m.use(1 + int(op>>3)%4)
		case 6:
			m.kicks(op&8 != 0)
		case 7:
			if op&8 != 0 {
				m.restart(op&16 != 0)
			} else {
				m.wishes(op)
			}
		}
	}
	for len(m.offered)+len(m.held) > 0 {
		m.pop()
		m.use(1)
	}
	if m.r.Err() != nil {
		m.t.Fatal(m.r.Err())
	}
	m.marked()
}

// add makes a chain of n pieces available. The ring may have to be told.
func (m *model) add(n int, large bool) {
	if len(m.free) < n {
		return
	}
	var o offer
	for range n {
		p := [2]int{bufferAt + int(m.src.Uint16())<<4, 1 + int(m.src.Byte())}
		if large {
			p[1] <<= 6
		}
		o.pieces = append(o.pieces, p)
	}
	old := m.idx
	o.head = m.offer(o.pieces...)
	m.offered = append(m.offered, o)
	kick := m.used()[0]&usedNoNotify == 0
	if m.s.EventIdx {
		kick = m.idx-load16(m.used(), ringHead+m.s.Size*usedEntry)-1 < m.idx-old
	}
	if m.waits && !kick {
		m.t.Fatal("a chain without a kick")
	}
	m.waits = false
}

func (m *model) pop() {
	var c Chain
	before := len(m.a.pieces)
	if !m.r.Pop(&c, m.a) {
		if before == 0 && len(m.offered) > 0 || len(m.a.pieces) != before {
			m.t.Fatalf("%d offered, none is taken: %v", len(m.offered), m.r.Err())
		}
		return
	}
	o := m.offered[0]
	m.offered = m.offered[1:]
	m.held, m.chains = append(m.held, o), append(m.chains, c)
	if c.head != o.head || len(c.Pieces) != len(o.pieces) {
		m.t.Fatalf("%d with %d pieces, offered was %+v", c.head, len(c.Pieces), o)
	}
	for i, p := range o.pieces {
		if b := c.Pieces[i]; len(b) != p[1] || &b[0] != &m.mem[p[0]] {
			m.t.Fatalf("piece %d of %d bytes, offered was %v", i, len(b), p)
		}
	}
}

func (m *model) unpop() {
	if last := len(m.held) - 1; last >= 0 {
		m.r.Unpop(&m.chains[last])
		m.offered = slices.Insert(m.offered, 0, m.held[last])
		m.held, m.chains = m.held[:last], m.chains[:last]
	}
	if len(m.held) == 0 {
		m.a.Reset()
	}
}

// use gives some chains back. The driver is called as it has asked to be.
func (m *model) use(n int) {
	n = min(n, len(m.held))
	written := make([]int, n)
	for i, o := range m.held[:n] {
		if m.s.Writable {
			written[i] = int(m.src.Uint16()) % (m.chains[i].Len + 1)
		}
		m.note(o, written[i])
		m.r.Use(&m.chains[i], written[i])
	}
	if m.seen != load16(m.used(), 2) {
		m.t.Fatal("chains are shown too early")
	}
	end := m.seen + uint16(n)
	wish := m.avail()[0]&availNoInterrupt == 0
	if m.s.EventIdx {
		event := load16(m.avail(), ringHead+m.s.Size*availEntry)
		wish = !m.ever || end-event-1 < end-m.called
	}
	if call := m.r.Publish(); call != (wish && n > 0) {
		m.t.Fatalf("call %v, wanted %v, of %d", call, wish, n)
	}
	if n > 0 {
		m.called, m.ever = end, true
	}
	for i, o := range m.held[:n] {
		if head, w, ok := m.take(); !ok || head != uint32(o.head) || w != uint32(written[i]) {
			m.t.Fatalf("%d is back with %d bytes, not %d with %d", head, w, o.head, written[i])
		}
	}
	m.held, m.chains = m.held[n:], m.chains[n:]
	if len(m.held) == 0 {
		m.a.Reset()
	}
}

// kicks has them enabled or disabled.
func (m *model) kicks(on bool) {
	if !on {
		m.r.DisableKicks()
		m.waits = false
		return
	}
	if more := m.r.EnableKicks(); !m.s.Writable && more != (len(m.offered) > 0) {
		m.t.Fatalf("more: %v, %d offered", more, len(m.offered))
	} else if m.waits = !more; m.s.Writable && m.waits && m.r.Waiting() != len(m.offered) {
		m.t.Fatalf("%d wait, %d offered, and no more is said", m.r.Waiting(), len(m.offered))
	}
}

// wishes is the driver, when it wants to be called.
func (m *model) wishes(op byte) {
	m.avail()[0] = op >> 4 & 1
	binary.LittleEndian.PutUint16(m.avail()[ringHead+m.s.Size*availEntry:], m.seen+uint16(op>>5))
}

// restart ends the device: killed, if its notes tell the next one what was in its hands, or in
// good order.
func (m *model) restart(killed bool) {
	if killed && m.s.Inflight != nil {
		m.offered = append(slices.Clone(m.held), m.offered...)
		m.held, m.chains = nil, nil
		m.s.Base = m.seen // all that a front end knows
	} else {
		for len(m.held) > 0 {
			m.unpop()
		}
		m.s.Base = m.r.Base()
	}
	m.a.Reset()
	m.r = Ring{}
	if err := m.r.Start(&m.m, &m.s); err != nil {
		m.t.Fatal(err)
	}
	m.waits, m.ever = false, false
}

// note remembers the pages that are written to.
func (m *model) note(o offer, written int) {
	for _, p := range o.pieces {
		n := min(written, p[1])
		for at := p[0] &^ (pageSize - 1); at < p[0]+n && n > 0; at += pageSize {
			m.pages[(guestBase+uint64(at))/pageSize] = true
		}
		written -= n
	}
}

// marked compares them with the log.
func (m *model) marked() {
	const ring = 7 // the page that the used ring is said to be in
	want := make([]byte, len(m.m.log))
	if len(want) == 0 {
		return
	}
	for page := range m.pages {
		want[page/8] |= 1 << (page % 8)
	}
	want[ring/8] |= m.m.log[ring/8] & (1 << (ring % 8))
	if !bytes.Equal(want, m.m.log) {
		m.t.Fatal("the log has other pages than were written to")
	}
}

// FuzzRing has a driver and a device pass chains to each other by a script, and
// compares all that the ring says with a model of both.
func FuzzRing(f *testing.F) {
	for mode := range byte(32) {
		for seed := range uint32(3) {
			f.Add(append([]byte{mode | byte(seed)<<6}, fuzz.Pattern(300, seed*64+uint32(mode))...))
		}
	}
	mem := sharedMemory(f)
	log := make([]byte, (guestBase+len(mem))/pageSize/8)
	f.Fuzz(func(t *testing.T, in []byte) {
		m := &model{src: fuzz.Source{B: in}, a: NewArena(MaxPieces), pages: map[uint64]bool{}}
		mode := m.src.Byte()
		clear(mem[:bufferAt])
		m.front = newFrontIn(t, mem, []int{1, 4, 32, 256}[mode>>6], mode&1 != 0, mode&2 != 0, mode&4 != 0)
		if mode&8 != 0 {
			m.s.Inflight = make([]byte, InflightSize(m.s.Size))
		}
		if mode&16 != 0 {
			clear(log)
			m.m.SetLog(log)
			m.s.LogUsed, m.s.LogAddr = true, 7*pageSize
		}
		m.restart(false)
		m.run()
	})
}

func sharedMemory(f *testing.F) []byte {
	mem, err := unix.Mmap(-1, 0, 4<<20, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANONYMOUS)
	if err != nil {
		f.Fatal(err)
	}
	f.Cleanup(func() { _ = unix.Munmap(mem) })
	return mem
}

// hostile is a guest that writes anything anywhere, also between two steps of ours.
// Its memory: a region of half of what there is, one behind it, and one behind a hole.
const (
	hostileSize = 32 << 10
	hostileHole = 0x10_0000
)

// FuzzHostileRing is memory of which nothing is right. Whatever it holds, pieces are in it, no
// more of them than may be, and nothing of it is written but what is ours: the used ring.
func FuzzHostileRing(f *testing.F) {
	for mode := range byte(64) {
		in := append([]byte{mode}, fuzz.Pattern(200, uint32(mode))...)
		f.Add(in)
		// Chains that make sense, and some that nearly do.
		in = []byte{mode}
		for i := range byte(8) {
			in = append(in, 0, 0, i*16, 16, 0, 0, 0, 0, 0, 0, i<<4, 0, 0, 64, 0, 0, 0, byte(mode>>1)&1*2|i&1, 0, i+1, 0)
		}
		in = append(in, 0, 2, 2, 4, 9, 0, 0, 0, 1, 1, 1, 2, 3, 4, 5, 1, 2, 3)
		f.Add(in)
	}
	mem := sharedMemory(f)[:hostileSize]
	log := make([]byte, 64)
	a := NewArena(2 * MaxPieces)
	f.Fuzz(func(t *testing.T, in []byte) {
		clear(mem)
		h := &hostile{t: t, mem: mem, src: fuzz.Source{B: in}, a: a}
		h.start(h.src.Byte(), log)
		for len(h.src.B) > 0 {
			h.step(h.src.Byte())
		}
	})
}

type hostile struct {
	t      *testing.T
	mem    []byte
	src    fuzz.Source
	m      Memory
	s      Setup
	r      Ring
	a      *Arena
	chains []Chain
}

func (h *hostile) start(mode byte, log []byte) {
	if err := h.m.Set([]Region{{0, 0, h.mem[:16<<10]}, {16 << 10, 16 << 10, h.mem[16<<10 : 24<<10]}, {hostileHole, hostileHole, h.mem[24<<10:]}}); err != nil {
		h.t.Fatal(err)
	}
	size := []int{8, 64}[mode&1]
	h.s = Setup{Size: size, Desc: 0, Avail: 2048, Used: 4096, Writable: mode&2 != 0, Indirect: mode&4 != 0, EventIdx: mode&8 != 0}
	if mode&16 != 0 {
		h.s.Inflight = make([]byte, InflightSize(size)) // not of the memory that is compared
		h.src.Fill(h.s.Inflight[:min(len(h.s.Inflight), len(h.src.B)/4)])
	}
	if mode&32 != 0 {
		clear(log)
		h.m.SetLog(log)
		h.s.LogUsed, h.s.LogAddr = true, uint64(h.src.Uint32())<<16
	}
	h.a.Reset()
	_ = h.r.Start(&h.m, &h.s)
}

// step is one of the guest's or one of ours.
func (h *hostile) step(op byte) {
	if op%8 < 3 {
		at := int(h.src.Uint16()) % len(h.mem)
		copy(h.mem[at:], h.src.Block())
		return
	}
	if op%8 == 3 { // what follows each other in the available ring
		binary.LittleEndian.PutUint16(h.mem[2048+2:], load16(h.mem[2048:], 2)+uint16(op>>3))
		return
	}
	before := bytes.Clone(h.mem)
	switch op % 8 {
	case 4, 5:
		h.pop()
	case 6:
		if last := len(h.chains) - 1; last >= 0 && op&8 != 0 {
			h.r.Unpop(&h.chains[last])
			h.chains = h.chains[:last]
		} else if last >= 0 {
			h.r.Use(&h.chains[0], h.chains[0].Len)
			h.chains = h.chains[1:]
		}
	case 7:
		h.r.Publish()
		if op&8 != 0 {
			h.r.EnableKicks()
		} else {
			h.r.DisableKicks()
		}
		if len(h.chains) == 0 {
			h.a.Reset()
		}
	}
	used := 4096 + ringHead + usedEntry*h.s.Size + 2
	if !bytes.Equal(before[:4096], h.mem[:4096]) || !bytes.Equal(before[used:], h.mem[used:]) {
		h.t.Fatalf("step %d writes what is not ours", op)
	}
	if n := h.r.Waiting(); n < 0 || n > 2*h.s.Size {
		h.t.Fatalf("%d wait", n)
	}
}

func (h *hostile) pop() {
	var c Chain
	if !h.r.Pop(&c, h.a) {
		return
	}
	sum := 0
	for _, p := range c.Pieces {
		sum += len(p)
		if len(p) == 0 || !inside(h.mem, p) {
			h.t.Fatalf("a piece of %d bytes that is not in memory", len(p))
		}
	}
	if sum != c.Len || len(c.Pieces) > MaxPieces || int(c.head) >= h.s.Size {
		h.t.Fatalf("chain %d: %d bytes in %d pieces, %d in all", c.head, sum, len(c.Pieces), c.Len)
	}
	h.chains = append(h.chains, c)
	if len(h.chains) > h.s.Size {
		h.t.Fatal("more chains than descriptors")
	}
}

// inside tells whether a piece lies in memory, and what it may grow to.
func inside(mem, piece []byte) bool {
	at := uintptr(unsafe.Pointer(&piece[0])) - uintptr(unsafe.Pointer(&mem[0]))
	return at < uintptr(len(mem)) && uintptr(cap(piece)) <= uintptr(len(mem))-at
}
