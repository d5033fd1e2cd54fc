// SPDX-License-Identifier: Apache-2.0

package vhost

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"aldente/test/machine"
	fe "aldente/test/vhost/frontend"
)

// TestHostileRegions sends regions that no memory has.
func TestHostileRegions(t *testing.T) {
	machine.NeedOurs(t)
	v := newVictim(t)
	fd, err := fe.Memfd(4 << 20)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { unix.Close(fd) })
	const m = 1 << 20
	whole := fe.DescribeRegion(0, m, 1<<40, 0)
	for _, tt := range []struct {
		name   string
		region []byte
	}{
		{"the same twice", whole},
		{"within the first", fe.DescribeRegion(4096, 4096, 1<<41, m)},
		{"around the first", fe.DescribeRegion(0, 2*m, 1<<41, m)},
		{"into the first's end", fe.DescribeRegion(m-4096, m, 1<<41, m)},
		{"the front-end's addresses overlap", fe.DescribeRegion(1<<32, m, 1<<40+4096, m)},
		{"no bytes", fe.DescribeRegion(1<<32, 0, 1<<41, m)},
		{"guest's addresses wrap", fe.DescribeRegion(1<<64-4096, m, 1<<41, m)},
		{"front-end's addresses wrap", fe.DescribeRegion(1<<32, m, 1<<64-4096, m)},
		{"offset wraps", fe.DescribeRegion(1<<32, m, 1<<41, 1<<64-4096)},
		{"offset and size wrap", fe.DescribeRegion(1<<32, 1<<63, 1<<41, 1<<63)},
		{"longer than the file", fe.DescribeRegion(1<<32, 4*m+4096, 1<<41, 0)},
		{"offset behind the file", fe.DescribeRegion(1<<32, m, 1<<41, 4*m)},
		{"a huge size", fe.DescribeRegion(1<<32, 1<<62, 1<<41, 0)},
		{"offset within a page", fe.DescribeRegion(1<<32, 4096, 1<<41, 100)},
	} {
		for _, slots := range []bool{false, true} {
			t.Run(fmt.Sprintf("%s/slots=%v", tt.name, slots), func(t *testing.T) {
				since := len(v.Output())
				f := v.connect(t, small)
				a := attack{want: either, req: fe.SetMemTable, load: slices.Concat(fe.U32s(2, 0), whole, tt.region), fds: []int{fd, fd}}
				if slots {
					if err := f.Tell(fe.AddMemReg, slices.Concat(fe.U64(0), whole), fd); err != nil {
						t.Fatal(err)
					}
					a.req, a.load, a.fds = fe.AddMemReg, slices.Concat(fe.U64(0), tt.region), []int{fd}
				}
				if err := f.Send(a.req, fe.FlagNeedReply, a.load, a.fds...); err != nil {
					t.Fatal(err)
				}
				check(t, f, a, v, since)
				f.Close()
				v.unharmed(t)
			})
		}
	}
}

// TestThousandRegions adds more regions than any machine has: those beyond what the
// back-end says it takes are refused, and nothing breaks.
func TestThousandRegions(t *testing.T) {
	machine.NeedOurs(t)
	v := newVictim(t)
	fd, err := fe.Memfd(4096)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(fd)
	f := v.connect(t, small)
	m, err := f.Ask(fe.GetMaxMemSlots, nil)
	if err != nil {
		t.Fatal(err)
	}
	most := m.U64()
	for i := range uint64(1000) {
		err := f.Tell(fe.AddMemReg, slices.Concat(fe.U64(0), fe.DescribeRegion(i<<20, 4096, 1<<40+i<<20, 0)), fd)
		if want := i < most; want != (err == nil) {
			if errors.Is(err, fe.ErrRefused) || want {
				t.Fatalf("region %d of %d: %v", i, most, err)
			}
			break // the connection has ended
		}
	}
	f.Close()
	v.unharmed(t)
}

// TestRegionsComeAndGo adds and removes regions while the guest works, as memory is
// plugged in.
func TestRegionsComeAndGo(t *testing.T) {
	machine.NeedOurs(t)
	v := newVictim(t)
	g := v.begin(t, fe.Config{Features: fe.AllFeatures, Protocol: fe.AllProtocol, Sizes: []uint64{8 << 20}})
	fd, err := fe.Memfd(1 << 20)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(fd)
	for i := range uint64(300) {
		b := slices.Concat(fe.U64(0), fe.DescribeRegion(1<<40+i<<20, 1<<20, 1<<41, 0))
		if err := g.Tell(fe.AddMemReg, b, fd); err != nil {
			t.Fatalf("region %d: %v", i, err)
		}
		if i%50 == 0 {
			works(t, g)
		}
		if err := g.Tell(fe.RemMemReg, b); err != nil {
			t.Fatalf("region %d: %v", i, err)
		}
	}
	works(t, g)
	g.Close()
	v.unharmed(t)
}

// wrongKinds opens descriptors of all kinds that are no memory of a guest, and no
// event descriptors.
func wrongKinds(t *testing.T) map[string]int {
	t.Helper()
	all := map[string]int{}
	add := func(name string, fd int, err error) {
		t.Helper()
		if err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		all[name] = fd
		t.Cleanup(func() { unix.Close(fd) })
	}
	dir := t.TempDir()
	open := func(path string, flags int) (int, error) { return unix.Open(path, flags|unix.O_CLOEXEC, 0) }
	fd, err := open(dir, unix.O_RDONLY|unix.O_DIRECTORY)
	add("folder", fd, err)
	fd, err = open(dir, unix.O_PATH)
	add("path only", fd, err)
	fd, err = unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	add("socket", fd, err)
	pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	add("connected socket", pair[0], err)
	t.Cleanup(func() { unix.Close(pair[1]) })
	var pipe [2]int
	err = unix.Pipe2(pipe[:], unix.O_CLOEXEC)
	add("pipe to read from", pipe[0], err)
	add("full pipe that blocks", pipe[1], err)
	fill(t, pipe[1])
	fd, err = open("/dev/null", unix.O_RDWR)
	add("/dev/null", fd, err)
	fd, err = open("/dev/zero", unix.O_RDWR)
	add("/dev/zero", fd, err)
	fd, err = unix.EpollCreate1(unix.EPOLL_CLOEXEC)
	add("epoll", fd, err)
	path := filepath.Join(dir, "file")
	if err := os.WriteFile(path, make([]byte, 1<<20), 0o600); err != nil {
		t.Fatal(err)
	}
	fd, err = open(path, unix.O_RDONLY)
	add("file to read", fd, err)
	fd, err = open(path, unix.O_WRONLY)
	add("file to write", fd, err)
	fd, err = fe.Memfd(0)
	add("empty memfd", fd, err)
	fd, err = unix.MemfdCreate("sealed", unix.MFD_CLOEXEC|unix.MFD_ALLOW_SEALING)
	if err == nil {
		err = unix.Ftruncate(fd, 1<<20)
	}
	if err == nil {
		_, err = unix.FcntlInt(uintptr(fd), unix.F_ADD_SEALS, unix.F_SEAL_WRITE)
	}
	add("memfd that must not be written", fd, err)
	return all
}

// fill writes until nothing more goes into a pipe, which blocks from then on.
func fill(t *testing.T, fd int) {
	t.Helper()
	if err := unix.SetNonblock(fd, true); err != nil {
		t.Fatal(err)
	}
	for {
		if _, err := unix.Write(fd, make([]byte, 4096)); err != nil {
			break
		}
	}
	if err := unix.SetNonblock(fd, false); err != nil {
		t.Fatal(err)
	}
}

// TestWrongDescriptors gives descriptors of wrong kinds for memory, logs and
// in-flight regions.
func TestWrongDescriptors(t *testing.T) {
	machine.NeedOurs(t)
	v := newVictim(t)
	kinds := wrongKinds(t)
	for name, fd := range kinds {
		for _, a := range []attack{
			{name: "memory", req: fe.SetMemTable, load: slices.Concat(fe.U32s(1, 0), fe.DescribeRegion(0, 1<<20, 1<<40, 0))},
			{name: "slot", req: fe.AddMemReg, load: slices.Concat(fe.U64(0), fe.DescribeRegion(0, 1<<20, 1<<40, 0))},
			{name: "in flight", req: fe.SetInflightFD, load: slices.Concat(fe.U64(1<<20), fe.U64(0), []byte{2, 0, 0, 1})},
		} {
			t.Run(name+"/"+a.name, func(t *testing.T) {
				a.want, a.fds = either, []int{fd}
				since := len(v.Output())
				f := v.connect(t, small)
				if err := f.Send(a.req, fe.FlagNeedReply, a.load, a.fds...); err != nil {
					t.Fatal(err)
				}
				check(t, f, a, v, since)
				f.Close()
				v.unharmed(t)
			})
		}
	}
}

// TestWrongEvents gives descriptors of wrong kinds for kicks and calls, to rings at
// work. Whether they are refused, or of no use, the next front-end is served.
func TestWrongEvents(t *testing.T) {
	machine.NeedOurs(t)
	v := newVictim(t)
	kinds := wrongKinds(t)
	for _, req := range []uint32{fe.SetVringKick, fe.SetVringCall, fe.SetVringErr} {
		for name, fd := range kinds {
			t.Run(fmt.Sprintf("%d/%s", req, name), func(t *testing.T) {
				g := v.begin(t, small)
				works(t, g)
				for i := range uint64(2) {
					if err := g.Conn.Send(req, fe.FlagNeedReply, fe.U64(i), fd); err != nil {
						break
					}
				}
				g.Timeout = 5 * time.Second
				_, _ = g.Conn.Receive()
				_ = g.Resolve(0, mac, host, gw, 100*time.Millisecond)
				g.Close()
				v.unharmed(t)
			})
		}
	}
}

// blockCalls has the back-end wait in a write: event descriptors for calls are full.
func blockCalls(t *testing.T, g *fe.Guest) {
	t.Helper()
	buffer, err := g.Mem.Alloc(4096, 64)
	if err != nil {
		t.Fatal(err)
	}
	for _, r := range g.Rings {
		r.TakeCall()
		if _, err := unix.Write(r.CallFD, []byte{0xfe, 255, 255, 255, 255, 255, 255, 255}); err != nil {
			t.Fatal(err)
		}
		if err := unix.SetNonblock(r.CallFD, false); err != nil {
			t.Fatal(err)
		}
	}
	tx := g.Rings[1]
	tx.EnableCalls(1)
	tx.Add([]fe.Seg{{Addr: buffer, Len: 100}}, false)
	tx.Publish()
	tx.ForceKick()
	time.Sleep(200 * time.Millisecond)
}

// TestCallsBlock gives event descriptors for calls that would block who writes to
// them: the next front-end is served all the same.
func TestCallsBlock(t *testing.T) {
	machine.NeedOurs(t)
	v := newVictim(t)
	g := v.begin(t, small)
	works(t, g)
	blockCalls(t, g)
	g.Close()
	// Whoever comes before the worker has been found out is a second client.
	for begin := time.Now(); ; time.Sleep(100 * time.Millisecond) {
		c, err := fe.Dial(v.Path)
		if err != nil {
			t.Fatal(err)
		}
		f, err := fe.New(c, small)
		if err == nil {
			f.Close()
			break
		}
		if time.Since(begin) > 20*time.Second {
			t.Fatalf("nobody is served any more: %v\n%s", err, v.Output())
		}
	}
	v.nextWorks(t)
}

// TestMemoryShrinks takes memory away from under the back-end. That may cost the
// worker, which says so and is replaced; the next front-end is served.
func TestMemoryShrinks(t *testing.T) {
	machine.NeedOurs(t)
	for _, tt := range []struct {
		name  string
		rings bool // the rings' region shrinks, else that of the buffers
		big   bool // of a frame only what is behind its headers is in that region
	}{{"rings", true, false}, {"buffers", false, false}, {"rest of a frame", false, true}} {
		t.Run(tt.name, func(t *testing.T) {
			v := newVictim(t)
			since := len(v.Output())
			f := v.connect(t, fe.Config{Features: fe.AllFeatures, Protocol: fe.AllProtocol, Sizes: []uint64{8 << 20, 8 << 20}})
			if err := f.Start(); err != nil {
				t.Fatal(err)
			}
			near, err1 := f.Mem.AllocIn(0, 4096, 64)
			far, err2 := f.Mem.AllocIn(1, 1<<17, 64)
			if err := errors.Join(err1, err2); err != nil {
				t.Fatal(err)
			}
			tx := f.Rings[1]
			segs := []fe.Seg{{Addr: far, Len: 600}}
			if tt.big {
				copy(f.Mem.At(near, 4096)[12:], make([]byte, 600))
				segs = []fe.Seg{{Addr: near, Len: 600}, {Addr: far, Len: 40_000}}
			}
			if _, ok := tx.Add(segs, false); !ok {
				t.Fatal("no room")
			}
			tx.Publish()
			for i, r := range f.Mem.Regions {
				if (i == 0) == tt.rings {
					if err := unix.Ftruncate(r.FD, 0); err != nil {
						t.Fatal(err)
					}
				}
			}
			tx.ForceKick()
			if !f.Ended(10 * time.Second) {
				t.Error("the connection stays open")
			}
			f.Conn.Close()
			v.said(t, since, "memory")
			v.nextWorks(t)
		})
	}
}
