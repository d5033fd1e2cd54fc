// SPDX-License-Identifier: Apache-2.0

package vhost

import (
	"errors"
	"fmt"
	"slices"
	"testing"
	"time"

	"aldente/test/machine"
	"aldente/test/netlab"
	fe "aldente/test/vhost/frontend"
)

// ringAttack does something to a ring at work. i is its index: even ones receive.
type ringAttack struct {
	name string
	do   func(g *fe.Guest, r *fe.Ring, i int)
	only int // 1: receive rings only, 2: transmit rings only
}

// publish makes a descriptor available as if it were a head.
func publish(r *fe.Ring, head uint16) {
	r.MakeAvailable(head)
	r.Publish()
	r.ForceKick()
}

// chain returns an attack of descriptors, from number 100 on.
func chain(name string, descs ...desc) ringAttack {
	return ringAttack{name: name, do: func(g *fe.Guest, r *fe.Ring, i int) {
		good, _ := g.Mem.Alloc(4096, 64)
		for k, d := range descs {
			if d.addr < 4096 {
				d.addr += good
			}
			if i%2 == 0 && d.flags&fe.DescIndirect == 0 {
				d.flags ^= fe.DescWrite
			}
			r.SetDesc(uint16(100+k), d.addr, d.length, d.flags, d.next)
		}
		publish(r, 100)
	}}
}

// desc is a descriptor. An address below 4096 is within a good buffer.
type desc struct {
	addr   uint64
	length uint32
	flags  uint16
	next   uint16
}

// table is chain through an indirect table of so many bytes.
func table(name string, size uint32, descs ...desc) ringAttack {
	return ringAttack{name: "indirect: " + name, do: func(g *fe.Guest, r *fe.Ring, i int) {
		good, _ := g.Mem.Alloc(4096, 64)
		at, _ := g.Mem.Alloc(1<<16, 64)
		b := g.Mem.At(at, 1<<16)
		for k, d := range descs {
			if d.addr < 4096 {
				d.addr += good
			}
			if i%2 == 0 {
				d.flags ^= fe.DescWrite
			}
			if d.flags&fe.DescIndirect != 0 {
				d.addr = at
			}
			copy(b[16*k:], fe.U64(d.addr))
			copy(b[16*k+8:], fe.U32s(d.length, uint32(d.flags)|uint32(d.next)<<16))
		}
		r.SetDesc(100, at, size, fe.DescIndirect, 0)
		publish(r, 100)
	}}
}

const (
	next  = fe.DescNext
	write = fe.DescWrite
	far   = 1 << 40 // where no memory is
)

var ringAttacks = []ringAttack{
	{name: "index beyond the ring", do: func(_ *fe.Guest, r *fe.Ring, _ int) { r.PublishIndex(r.Index() + r.Size + 1); r.ForceKick() }},
	{name: "index half around", do: func(_ *fe.Guest, r *fe.Ring, _ int) { r.PublishIndex(r.Index() + 32768); r.ForceKick() }},
	{name: "index moves back", do: func(_ *fe.Guest, r *fe.Ring, _ int) { r.PublishIndex(r.UsedIndex() - 1); r.ForceKick() }},
	{name: "head is the size", do: func(_ *fe.Guest, r *fe.Ring, _ int) { publish(r, r.Size) }},
	{name: "head is 65535", do: func(_ *fe.Guest, r *fe.Ring, _ int) { publish(r, 65535) }},
	{name: "the same head often", do: func(g *fe.Guest, r *fe.Ring, _ int) {
		good, _ := g.Mem.Alloc(4096, 64)
		r.SetDesc(100, good, 2000, 0, 0)
		for range 50 {
			publish(r, 100)
		}
	}},
	{name: "a thousand kicks for nothing", do: func(_ *fe.Guest, r *fe.Ring, _ int) {
		for range 1000 {
			r.ForceKick()
		}
	}},
	chain("next is the size", desc{0, 100, next, 256}),
	chain("next is 65535", desc{0, 100, next, 65535}),
	chain("a loop of one", desc{0, 100, next, 100}),
	chain("a loop of two", desc{0, 100, next, 101}, desc{0, 100, next, 100}),
	chain("a loop of nothing", desc{0, 0, next, 101}, desc{0, 0, next, 100}),
	chain("outside of memory", desc{far, 100, 0, 0}),
	chain("into what is outside", desc{0, 100 << 20, 0, 0}),
	chain("the address wraps", desc{1<<64 - 50, 100, 0, 0}),
	chain("4 GiB", desc{0, 1<<32 - 1, 0, 0}),
	chain("no bytes", desc{0, 0, 0, 0}),
	chain("one byte", desc{0, 1, 0, 0}),
	chain("less than a header", desc{0, 11, 0, 0}),
	chain("just a header", desc{0, 12, 0, 0}),
	chain("a header and a byte", desc{0, 13, 0, 0}),
	chain("a header in pieces", desc{0, 1, next, 101}, desc{1, 5, next, 102}, desc{6, 6, next, 103}, desc{12, 60, 0, 0}),
	chain("the wrong way", desc{0, 2000, write, 0}),
	chain("both ways", desc{0, 100, next, 101}, desc{0, 2000, write, 0}),
	chain("all flags", desc{0, 2000, 0xffff, 101}, desc{0, 2000, 0, 0}),
	chain("unknown flags", desc{0, 2000, 0xfff8, 0}),
	table("no bytes", 0, desc{0, 2000, 0, 0}),
	table("15 bytes", 15, desc{0, 2000, 0, 0}),
	table("17 bytes", 17, desc{0, 2000, 0, 0}),
	table("4 GiB", 1<<32-1, desc{0, 2000, 0, 0}),
	table("next beyond it", 32, desc{0, 100, next, 2}, desc{0, 100, 0, 0}),
	table("next is 65535", 32, desc{0, 100, next, 65535}, desc{0, 100, 0, 0}),
	table("a loop", 32, desc{0, 100, next, 1}, desc{0, 100, next, 0}),
	table("nested", 32, desc{0, 32, fe.DescIndirect, 0}, desc{0, 100, 0, 0}),
	table("outside", 16, desc{far, 100, 0, 0}),
	chain("indirect: the table is outside", desc{far, 32, fe.DescIndirect, 0}),
	chain("indirect: the address wraps", desc{1<<64 - 16, 32, fe.DescIndirect, 0}),
	chain("indirect: with next", desc{0, 32, fe.DescIndirect | next, 101}, desc{0, 100, 0, 0}),
	chain("indirect: at the end of a chain", desc{0, 100, next, 101}, desc{0, 32, fe.DescIndirect, 0}),
	{name: "a frame of a megabyte", only: 2, do: func(g *fe.Guest, r *fe.Ring, _ int) {
		a, _ := g.Mem.Alloc(1<<20, 64)
		r.SetDesc(100, a, 1<<20, 0, 0)
		publish(r, 100)
	}},
	{name: "a gigabyte of the same", only: 2, do: func(g *fe.Guest, r *fe.Ring, _ int) {
		a, _ := g.Mem.Alloc(1<<20, 64)
		at, _ := g.Mem.Alloc(1<<16, 64)
		b := g.Mem.At(at, 1<<16)
		for k := range 1024 {
			copy(b[16*k:], fe.U64(a))
			copy(b[16*k+8:], fe.U32s(1<<20, next|uint32(k+1)<<16))
		}
		r.SetDesc(100, at, 1024*16, fe.DescIndirect, 0)
		publish(r, 100)
	}},
	{name: "a table of 4,096", only: 2, do: func(g *fe.Guest, r *fe.Ring, _ int) {
		a, _ := g.Mem.Alloc(1<<20, 64)
		at, _ := g.Mem.Alloc(1<<16, 64)
		b := g.Mem.At(at, 1<<16)
		for k := range 4096 {
			copy(b[16*k:], fe.U64(a))
			copy(b[16*k+8:], fe.U32s(1, next|uint32(k+1)<<16))
		}
		copy(b[16*4095+8:], fe.U32s(1, 0))
		r.SetDesc(100, at, 4096*16, fe.DescIndirect, 0)
		publish(r, 100)
	}},
}

// TestHostileRings does to rings at work what no driver does. It ends the
// connection with a reason in the log, or is of no consequence; never the worker.
func TestHostileRings(t *testing.T) {
	machine.NeedOurs(t)
	for some := range slices.Chunk(ringAttacks, attacksInRow/4) {
		hostileRings(t, some)
	}
}

func hostileRings(t *testing.T, attacks []ringAttack) {
	t.Helper()
	v := newVictim(t)
	for _, a := range attacks {
		for i := range 2 {
			if a.only != 0 && a.only != i+1 {
				continue
			}
			t.Run(fmt.Sprintf("%s/ring %d", a.name, i), func(t *testing.T) {
				since := len(v.Output())
				g := v.begin(t, fe.Config{Features: fe.AllFeatures, Protocol: fe.AllProtocol, Sizes: []uint64{8 << 20}})
				works(t, g)
				a.do(g, g.Rings[i], i)
				// What is received fills the buffers that were made up.
				stop := make(chan struct{})
				go func() { defer close(stop); _ = g.Resolve(0, mac, host, gw, 100*time.Millisecond) }()
				<-stop
				g.Timeout = 10 * time.Second
				if _, err := g.Ask(fe.GetFeatures, nil); err != nil {
					v.said(t, since, "link closed: ")
				}
				g.Close()
				v.unharmed(t)
			})
		}
	}
}

// TestRingPlaces puts the parts of rings where they overlap, at the ends of memory
// and outside of it.
func TestRingPlaces(t *testing.T) {
	machine.NeedOurs(t)
	v := newVictim(t)
	for _, tt := range []struct {
		name  string
		place func(f *fe.Frontend) (desc, used, avail uint64)
	}{
		{"all in one place", func(f *fe.Frontend) (uint64, uint64, uint64) { a := f.Mem.User(8192); return a, a, a }},
		{"the last bytes", func(f *fe.Frontend) (uint64, uint64, uint64) {
			end := f.Mem.User(f.Mem.Regions[0].Size)
			return end - 16, end - 4, end - 4
		}},
		{"just outside", func(f *fe.Frontend) (uint64, uint64, uint64) {
			end := f.Mem.User(f.Mem.Regions[0].Size)
			return end, end, end
		}},
		{"odd addresses", func(f *fe.Frontend) (uint64, uint64, uint64) {
			a := f.Mem.User(8192)
			return a + 1, a + 8193, a + 16385
		}},
		{"the guest's addresses", func(*fe.Frontend) (uint64, uint64, uint64) { return 8192, 16384, 24576 }},
	} {
		t.Run(tt.name, func(t *testing.T) {
			since := len(v.Output())
			f := v.connect(t, small)
			if err := errors.Join(f.Do(fe.SetFeatures, fe.U64(f.Features)), f.ShareMemory()); err != nil {
				t.Fatal(err)
			}
			desc, used, avail := tt.place(f)
			err := errors.Join(f.Do(fe.SetVringNum, fe.U32s(1, 256)), f.Do(fe.SetVringBase, fe.U32s(1, 0)),
				f.Do(fe.SetVringAddr, fe.VringAddr(1, 0, desc, used, avail, 0)), f.Do(fe.SetVringKick, fe.U64(1), f.Rings[1].KickFD),
				f.Do(fe.SetVringCall, fe.U64(1), f.Rings[1].CallFD), f.Do(fe.SetVringEnable, fe.U32s(1, 1)))
			f.Rings[1].ForceKick()
			if err != nil && !errors.Is(err, fe.ErrRefused) {
				v.said(t, since, "link closed: ")
			}
			f.Close()
			v.unharmed(t)
		})
	}
}

// TestRingSizes has rings of every size, and sends often enough for indexes to wrap.
func TestRingSizes(t *testing.T) {
	machine.NeedOurs(t)
	p := start(t, netlab.New(t, netlab.Options{NoRemote: true}))
	for _, size := range []uint16{2, 4, 16, 64, 256, 1024, 4096, 32768} {
		t.Run(fmt.Sprint(size), func(t *testing.T) {
			g := p.begin(t, fe.Config{Features: fe.AllFeatures, Protocol: fe.AllProtocol, Ring: size, Sizes: []uint64{96 << 20}})
			for range 3 * min(int(size), 1024) {
				works(t, g)
			}
			g.Close()
		})
	}
}

// TestIndexesWrap sends more than 65,536 frames.
func TestIndexesWrap(t *testing.T) {
	p := start(t, netlab.New(t, netlab.Options{NoRemote: true}))
	g := p.begin(t, fe.Config{Features: fe.AllFeatures, Protocol: fe.AllProtocol, Ring: 256})
	frame := make([]byte, 60)
	for i := range 70_000 {
		if err := g.Send(0, nil, frame); err != nil {
			t.Fatalf("frame %d: %v", i, err)
		}
	}
	works(t, g)
}
