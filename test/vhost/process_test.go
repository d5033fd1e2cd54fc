// SPDX-License-Identifier: Apache-2.0

package vhost

import (
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"slices"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"aldente/test/machine"
	"aldente/test/netlab"
	fe "aldente/test/vhost/frontend"
)

// TestOffers compares what is offered with what front-ends count on.
func TestOffers(t *testing.T) {
	machine.NeedOurs(t)
	p := start(t, netlab.New(t, netlab.Options{NoRemote: true}), "-m", "9000")
	f := p.connect(t, everything)
	const want = fe.FVersion1 | fe.FMrgRxbuf | fe.FIndirectDesc | fe.FEventIdx | fe.FMQ | fe.FMTU | fe.FLogAll | fe.FProtocolFeatures | fe.Offloads
	if f.Offered&want != want {
		t.Errorf("of the features %#x are missing", want&^f.Offered)
	}
	if f.Offered&fe.FRingReset != 0 {
		t.Error("resets of single rings are offered, of which QEMU tells nobody")
	}
	const protocol = fe.PMQ | fe.PLogShmFD | fe.PRARP | fe.PReplyAck | fe.PNetMTU | fe.PConfig | fe.PInflightShmFD |
		fe.PConfigureMemSlots | fe.PResetDevice | fe.PStatus
	if f.OfferedProtocol&protocol != protocol {
		t.Errorf("of the protocol's features %#x are missing", protocol&^f.OfferedProtocol)
	}
	if f.MaxPairs != 16 {
		t.Errorf("%d queue pairs, want 16", f.MaxPairs)
	}
	b, err := f.DeviceConfig(12)
	if err != nil {
		t.Fatal(err)
	}
	if pairs, mtu := binary.LittleEndian.Uint16(b[8:]), binary.LittleEndian.Uint16(b[10:]); pairs != 16 || mtu != 9000 {
		t.Errorf("the configuration has %d pairs and an MTU of %d", pairs, mtu)
	}
}

// TestSecondFrontEnd is turned away, and the first is unharmed.
func TestSecondFrontEnd(t *testing.T) {
	p := start(t, netlab.New(t, netlab.Options{NoRemote: true}))
	g := p.begin(t, everything)
	works(t, g)
	for range 3 {
		c, err := fe.Dial(p.Path)
		if err != nil {
			t.Fatal(err)
		}
		if !c.Ended(5 * time.Second) {
			t.Error("a second front-end is not turned away")
		}
		c.Close()
		works(t, g)
	}
	g.Close()
	p.nextWorks(t)
}

// TestReboots stops the rings, empties them and begins anew, as guests do that
// reboot or load their driver again; with other features now and then.
func TestReboots(t *testing.T) {
	machine.NeedOurs(t)
	p := start(t, netlab.New(t, netlab.Options{NoRemote: true}))
	for _, reset := range []bool{false, true} {
		t.Run(fmt.Sprintf("reset=%v", reset), func(t *testing.T) {
			f := p.connect(t, everything)
			var err error
			for i := range 20 {
				if i > 0 {
					f.Mem.Close() // the next driver has its rings elsewhere
					if f.Mem, err = fe.NewMemory(0, 16<<20, 16<<20); err != nil {
						t.Fatal(err)
					}
					f.Features = f.Offered & f.Config.Features
					if i%3 == 1 {
						f.Features &^= fe.Offloads
					}
					if i%3 == 2 {
						f.Features &^= fe.FEventIdx | fe.FIndirectDesc | fe.FMrgRxbuf
					}
					f.Protocol &^= fe.PConfigureMemSlots // a whole table replaces the last one
					for k := range f.Rings {
						f.Rings[k].Close()
						if f.Rings[k], err = fe.NewRing(f.Mem, f.Ring, f.Features); err != nil {
							t.Fatal(err)
						}
					}
				} else {
					f.Protocol &^= fe.PConfigureMemSlots
				}
				g, err := fe.NewGuest(f, 4096)
				if err == nil {
					err = f.Start()
				}
				if err != nil {
					t.Fatal(err)
				}
				works(t, g)
				if err := f.Stop(); err != nil {
					t.Fatal(err)
				}
				if reset {
					if err := f.Do(fe.ResetDevice, nil); err != nil {
						t.Fatal(err)
					}
				}
			}
		})
	}
}

// TestDisabledRing has a receive ring disabled: nothing comes by it until it is
// enabled, and a transmit ring's frames are taken, virtio-net's drivers wait for that.
func TestDisabledRing(t *testing.T) {
	machine.NeedOurs(t)
	p := start(t, netlab.New(t, netlab.Options{NoRemote: true}))
	g := p.begin(t, everything)
	works(t, g)
	if err := g.EnableRing(0, false); err != nil {
		t.Fatal(err)
	}
	if err := g.Resolve(0, mac, host, gw, 300*time.Millisecond); !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("an answer through a disabled ring: %v", err)
	}
	if err := g.EnableRing(0, true); err != nil {
		t.Fatal(err)
	}
	works(t, g)
}

// TestBases stops a ring and starts it again where it stood.
func TestBases(t *testing.T) {
	p := start(t, netlab.New(t, netlab.Options{NoRemote: true}))
	g := p.begin(t, everything)
	for range 20 {
		works(t, g)
		for i, r := range g.Rings {
			base, err := g.StopRing(i)
			if err != nil {
				t.Fatal(err)
			}
			if base != r.UsedIndex() || i == 1 && base != r.Index() {
				t.Fatalf("ring %d stands at %d, used %d of %d", i, base, r.UsedIndex(), r.Index())
			}
			if err := errors.Join(g.StartRing(i), g.EnableRing(i, true)); err != nil {
				t.Fatal(err)
			}
		}
	}
}

// TestWorkerKilled connects again after the worker was killed, with the same memory
// and rings: nothing that the guest had made available is lost to it.
func TestWorkerKilled(t *testing.T) {
	machine.NeedOurs(t)
	p := start(t, netlab.New(t, netlab.Options{NoRemote: true}))
	g := p.begin(t, everything)
	for range 5 {
		works(t, g)
		if err := syscall.Kill(p.Worker(t), syscall.SIGKILL); err != nil {
			t.Fatal(err)
		}
		if !g.Ended(10 * time.Second) {
			t.Fatal("the front-end is not told")
		}
		c, err := fe.Dial(p.Path)
		if err != nil {
			t.Fatal(err)
		}
		if err := g.Reconnect(c); err != nil {
			t.Fatalf("%v\n%s", err, p.Output())
		}
	}
	works(t, g)
}

// TestGuestGoesOn has a front-end with a kernel behind it that connects again by
// itself.
func TestGuestGoesOn(t *testing.T) {
	machine.NeedOurs(t)
	lab := netlab.New(t, netlab.Options{})
	p := start(t, lab)
	g := p.join(t, fe.Options{Config: everything, Connect: true}, 1500)
	addr := families[0].remote + ":5005"
	ln := lab.Remote.Listen("tcp", addr)
	go netlab.Echo(ln)
	for i := range 4 {
		var err error
		for range 40 {
			if _, err = netlab.Ask(g.NS, "tcp", addr, "hello"); err == nil {
				break
			}
			time.Sleep(100 * time.Millisecond)
		}
		if err != nil {
			t.Fatalf("after %d workers: %v\n%s", i, err, p.Output())
		}
		if err := syscall.Kill(p.Worker(t), syscall.SIGKILL); err != nil {
			t.Fatal(err)
		}
	}
}

// TestFrontEndsComeAndGo kills the front-end and starts it again, with memory of its
// own each time.
func TestFrontEndsComeAndGo(t *testing.T) {
	machine.NeedOurs(t)
	v := newVictim(t)
	for i := range 30 {
		c := everything
		c.Sizes = slices.Repeat([]uint64{4 << 20}, 1+i%4)
		g := v.begin(t, c)
		works(t, g)
		g.Close()
	}
	v.unharmed(t)
}

// given is a passt that was given one end of a pair of sockets, and a front-end's guest
// at the other.
func given(t *testing.T, config fe.Config) (cmd *exec.Cmd, g *fe.Guest) {
	t.Helper()
	lab := netlab.New(t, netlab.Options{NoRemote: true})
	c, theirs, err := fe.Pair()
	if err != nil {
		t.Fatal(err)
	}
	p := start(t, lab) // for the path of the program
	cmd = exec.Command(p.Args[0], "-f", "--vhost-user", "--fd", "3")
	cmd.ExtraFiles = []*os.File{theirs}
	if !netlab.Nested() {
		cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL, Credential: &syscall.Credential{Uid: netlab.Nobody.UID, Gid: netlab.Nobody.GID}}
	}
	if err := lab.Host.Do(cmd.Start); err != nil {
		t.Fatal(err)
	}
	theirs.Close()
	f, err := fe.New(c, config)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(f.Close)
	g, err = fe.NewGuest(f, 4096)
	if err == nil {
		err = f.Start()
	}
	if err != nil {
		t.Fatal(err)
	}
	works(t, g)
	return cmd, g
}

// endsWith waits for the end of a passt whose only client is gone.
func endsWith(t *testing.T, cmd *exec.Cmd) {
	t.Helper()
	ended := make(chan error, 1)
	go func() { ended <- cmd.Wait() }()
	select {
	case err := <-ended:
		if err != nil {
			t.Errorf("passt: %v", err)
		}
	case <-time.After(20 * time.Second):
		_ = cmd.Process.Kill()
		t.Error("passt stays after its only client")
	}
}

// TestGivenDescriptor is QEMU's way: it gives an end of a pair of sockets.
func TestGivenDescriptor(t *testing.T) {
	machine.NeedOurs(t)
	cmd, g := given(t, everything)
	g.Close()
	endsWith(t, cmd)
}

// TestGivenCallsBlock: a passt to which the socket was given ends with its client, even if
// that has its worker wait in a write.
func TestGivenCallsBlock(t *testing.T) {
	machine.NeedOurs(t)
	cmd, g := given(t, small)
	blockCalls(t, g)
	g.Close()
	endsWith(t, cmd)
}

// TestDirtyLog finds every page that was written to in the log.
func TestDirtyLog(t *testing.T) {
	p := start(t, netlab.New(t, netlab.Options{NoRemote: true}))
	c := everything
	c.Features |= fe.FLogAll
	c.Sizes, c.Hole = []uint64{8 << 20, 8 << 20}, 1<<30
	f := p.connect(t, c)
	g, err := fe.NewGuest(f, 4096)
	if err == nil {
		f.Features &^= fe.FLogAll
		err = f.Start()
	}
	if err != nil {
		t.Fatal(err)
	}
	works(t, g)
	before := image(f.Mem)
	f.Features |= fe.FLogAll
	log, err := f.LogDirty()
	if err != nil {
		t.Fatal(err)
	}
	for i, r := range f.Rings { // as QEMU does
		addr := fe.VringAddr(uint32(i), 1, f.Mem.User(r.Desc), f.Mem.User(r.Used), f.Mem.User(r.Avail), r.Used)
		if err := f.Do(fe.SetVringAddr, addr); err != nil {
			t.Fatal(err)
		}
	}
	for range 10 {
		works(t, g)
	}
	changed, missing := 0, 0
	for n, r := range f.Mem.Regions {
		now := f.Mem.At(r.Guest, r.Size)
		for at := uint64(0); at < r.Size; at += 4096 {
			if string(now[at:at+4096]) == string(before[n][at:at+4096]) || ownPage(f, r.Guest+at) {
				continue
			}
			changed++
			if bit := (r.Guest + at) / 4096; log[bit/8]>>(bit%8)&1 == 0 {
				missing++
				t.Errorf("the page at %#x was written to", r.Guest+at)
			}
		}
	}
	if changed == 0 {
		t.Error("nothing was written to")
	}
	t.Logf("%d pages were written to, %d are not in the log", changed, missing)
	_ = unix.Munmap(log)
}

// image copies a guest's memory.
func image(m *fe.Memory) (all [][]byte) {
	for _, r := range m.Regions {
		all = append(all, slices.Clone(m.At(r.Guest, r.Size)))
	}
	return all
}

// ownPage tells whether the driver itself writes to a page: descriptors, available
// rings, and what it sends.
func ownPage(f *fe.Frontend, page uint64) bool {
	for _, r := range f.Rings {
		for _, part := range [][2]uint64{{r.Desc, 16 * uint64(r.Size)}, {r.Avail, 8 + 2*uint64(r.Size)}} {
			if page+4096 > part[0] && page < part[0]+part[1] {
				// Unless the used ring, or a buffer, is there as well.
				return page+4096 <= r.Used || page >= r.Used+8+8*uint64(r.Size)
			}
		}
	}
	return false
}
