// SPDX-License-Identifier: Apache-2.0

package vhost

import (
	"bytes"
	"fmt"
	"slices"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"aldente/test/machine"
	fe "aldente/test/vhost/frontend"
)

// outcome is what an attack may lead to.
type outcome int

const (
	ends    outcome = iota // the connection is closed, with a reason in the log
	refused                // an error is answered, and the connection goes on
	either                 // one of these, or both
	lives                  // nothing is answered, or a success, and the connection goes on
)

// attack is a message, or some bytes, on a connection that has negotiated.
type attack struct {
	name  string
	want  outcome
	bytes []byte // if set, as they are
	req   uint32
	load  []byte
	fds   []int
}

// TestHostileMessages sends one bad message on each of many connections.
func TestHostileMessages(t *testing.T) {
	machine.NeedOurs(t)
	all := slices.Concat(framing(t), shapes(t), numbers(), unknown())
	for some := range slices.Chunk(all, attacksInRow/2) {
		hostileMessages(t, some)
	}
}

// attacksInRow is how many lines one instance's worker may log without waiting.
const attacksInRow = 80

// hostileMessages has one victim.
func hostileMessages(t *testing.T, attacks []attack) {
	t.Helper()
	v := newVictim(t)
	for _, a := range attacks {
		t.Run(a.name, func(t *testing.T) {
			since := len(v.Output())
			f := v.connect(t, small)
			if a.bytes != nil {
				if err := f.WriteRaw(a.bytes, a.fds...); err != nil {
					t.Fatal(err)
				}
			} else if err := f.Send(a.req, fe.FlagNeedReply, a.load, a.fds...); err != nil {
				t.Fatal(err)
			}
			check(t, f, a, v, since)
			f.Close()
			v.unharmed(t)
		})
	}
}

// small is a front-end whose making costs little.
var small = fe.Config{Features: fe.AllFeatures, Protocol: fe.AllProtocol, Sizes: []uint64{4 << 20}}

// check looks at what became of an attack.
func check(t *testing.T, f *fe.Frontend, a attack, v *victim, since int) {
	t.Helper()
	f.Timeout = 5 * time.Second
	if a.want == ends {
		if !f.Ended(5 * time.Second) {
			t.Error("the connection stays open")
		}
		v.said(t, since, "link closed: ")
		return
	}
	m, err := f.Receive()
	if err != nil {
		if a.want != either {
			t.Fatalf("no answer: %v\n%s", err, v.Output()[since:])
		}
		v.said(t, since, "link closed: ")
		return
	}
	if a.want != lives && (len(m.Payload) != 8 || m.U64() == 0) {
		t.Errorf("answer: %x, want an error", m.Payload)
	}
	if _, err := f.Ask(fe.GetFeatures, nil); err != nil {
		if a.want != either {
			t.Errorf("the next request: %v", err)
		}
		v.said(t, since, "link closed: ")
	}
}

// framing are messages that are no messages.
func framing(t *testing.T) (all []attack) {
	t.Helper()
	for _, size := range []uint32{1 << 13, 1 << 16, 1 << 20, 1 << 31, 1<<32 - 1} {
		all = append(all, attack{name: fmt.Sprintf("length %d", size), bytes: fe.Encode(fe.SetFeatures, fe.FlagVersion, size, make([]byte, 64))})
	}
	for _, flags := range []uint32{0, 2, 3, fe.FlagVersion | fe.FlagReply, 1<<32 - 1} {
		all = append(all, attack{name: fmt.Sprintf("flags %#x", flags), bytes: fe.Encode(fe.GetFeatures, flags, 0, nil)})
	}
	return append(all, attack{name: "zeros", bytes: make([]byte, 4096)}, attack{name: "ones", bytes: bytes.Repeat([]byte{255}, 4096)})
}

// shapes are requests with too much or too little of something.
func shapes(t *testing.T) (all []attack) {
	t.Helper()
	fd, err := fe.Memfd(1 << 20)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { unix.Close(fd) })
	many := func(n int) (fds []int) { return slices.Repeat([]int{fd}, n) }
	for _, r := range []uint32{fe.GetFeatures, fe.SetFeatures, fe.SetMemTable, fe.SetLogBase, fe.SetVringNum, fe.SetVringAddr, fe.SetVringBase, fe.GetVringBase,
		fe.SetVringKick, fe.SetVringCall, fe.GetProtocolFeatures, fe.SetProtocolFeatures, fe.GetQueueNum, fe.SetVringEnable, fe.NetSetMTU, fe.GetConfig,
		fe.GetInflightFD, fe.SetInflightFD, fe.GetMaxMemSlots, fe.AddMemReg, fe.RemMemReg} {
		all = append(all, attack{name: fmt.Sprintf("request %d of 3 bytes", r), want: either, req: r, load: make([]byte, 3)},
			attack{name: fmt.Sprintf("request %d of 600 bytes", r), want: either, req: r, load: bytes.Repeat([]byte{1}, 600)},
			attack{name: fmt.Sprintf("request %d with 30 descriptors", r), want: either, req: r, load: make([]byte, 8), fds: many(30)})
	}
	region := func(i uint64) []byte { return fe.DescribeRegion(i<<20, 1<<20, i<<32, 0) }
	for _, n := range []int{0, 1, 2, 8, 9, 253} {
		if n == 1 {
			continue
		}
		all = append(all, attack{name: fmt.Sprintf("memory of one region with %d descriptors", n), want: either, req: fe.SetMemTable,
			load: slices.Concat(fe.U32s(1, 0), region(0)), fds: many(n)})
	}
	for _, n := range []uint32{0, 2, 9, 1 << 16, 1<<32 - 1} {
		all = append(all, attack{name: fmt.Sprintf("memory of one region that says %d", n), want: either, req: fe.SetMemTable,
			load: slices.Concat(fe.U32s(n, 0), region(0)), fds: many(1)})
	}
	return append(all,
		attack{name: "slot without a descriptor", want: either, req: fe.AddMemReg, load: slices.Concat(fe.U64(0), region(0))},
		attack{name: "slot with two", want: either, req: fe.AddMemReg, load: slices.Concat(fe.U64(0), region(0)), fds: many(2)},
		attack{name: "slot that is not there", want: either, req: fe.RemMemReg, load: slices.Concat(fe.U64(0), region(0))},
		attack{name: "kick without a descriptor", want: either, req: fe.SetVringKick, load: fe.U64(0)},
		attack{name: "kick without, but with one", want: either, req: fe.SetVringKick, load: fe.U64(0x100), fds: many(1)},
		attack{name: "call with two descriptors", want: either, req: fe.SetVringCall, load: fe.U64(0), fds: many(2)})
}

// numbers are requests with numbers out of range.
func numbers() (all []attack) {
	for _, i := range []uint32{32, 33, 255, 256, 1 << 16, 1<<32 - 1} {
		all = append(all,
			attack{name: fmt.Sprintf("size of ring %d", i), want: either, req: fe.SetVringNum, load: fe.U32s(i, 256)},
			attack{name: fmt.Sprintf("base of ring %d", i), want: either, req: fe.SetVringBase, load: fe.U32s(i, 0)},
			attack{name: fmt.Sprintf("stop of ring %d", i), want: ends, req: fe.GetVringBase, load: fe.U32s(i, 0)},
			attack{name: fmt.Sprintf("addresses of ring %d", i), want: either, req: fe.SetVringAddr, load: fe.VringAddr(i, 0, 0, 0, 0, 0)},
			attack{name: fmt.Sprintf("ring %d enabled", i), want: either, req: fe.SetVringEnable, load: fe.U32s(i, 1)})
	}
	for _, n := range []uint32{0, 3, 100, 32769, 65536, 1 << 31, 1<<32 - 1} {
		all = append(all, attack{name: fmt.Sprintf("ring of %d", n), want: either, req: fe.SetVringNum, load: fe.U32s(0, n)})
	}
	for _, n := range []uint32{65536, 1 << 31, 1<<32 - 1} {
		all = append(all, attack{name: fmt.Sprintf("ring that begins at %d", n), want: either, req: fe.SetVringBase, load: fe.U32s(0, n)})
	}
	for _, a := range []uint64{0, 1, 1 << 32, 1<<64 - 16, 1<<64 - 1} {
		all = append(all, attack{name: fmt.Sprintf("ring at %#x", a), want: either, req: fe.SetVringAddr, load: fe.VringAddr(0, 0, a, a, a, a)})
	}
	return append(all,
		attack{name: "features not offered", want: either, req: fe.SetFeatures, load: fe.U64(1<<64 - 1)},
		attack{name: "protocol features not offered", want: either, req: fe.SetProtocolFeatures, load: fe.U64(1<<64 - 1)},
		attack{name: "log of no bytes", want: either, req: fe.SetLogBase, load: slices.Concat(fe.U64(0), fe.U64(0))},
		attack{name: "enabled by 7", want: either, req: fe.SetVringEnable, load: fe.U32s(0, 7)},
		attack{name: "MTU of 0", want: either, req: fe.NetSetMTU, load: fe.U64(0)},
		attack{name: "MTU of 2^40", want: either, req: fe.NetSetMTU, load: fe.U64(1 << 40)})
}

// unknown are requests that nobody has made up yet, or that are not for us.
func unknown() (all []attack) {
	for _, r := range []uint32{0, 22, 26, 28, 33, 44, 45, 99, 1 << 16, 1<<32 - 1} {
		all = append(all, attack{name: fmt.Sprintf("request %d", r), want: refused, req: r, load: fe.U64(0)})
	}
	return all
}

// TestHalfMessages ends the connection at each byte of a message.
func TestHalfMessages(t *testing.T) {
	machine.NeedOurs(t)
	v := newVictim(t)
	b := fe.Encode(fe.SetFeatures, fe.FlagVersion, 8, fe.U64(0))
	for n := range b {
		f := v.connect(t, small)
		if err := f.WriteRaw(b[:n]); n > 0 && err != nil {
			t.Fatal(err)
		}
		f.Close()
	}
	v.unharmed(t)
}

// TestMessagesInPieces sends a conversation byte by byte.
func TestMessagesInPieces(t *testing.T) {
	machine.NeedOurs(t)
	v := newVictim(t)
	f := v.connect(t, small)
	for range 3 {
		for _, b := range fe.Encode(fe.GetFeatures, fe.FlagVersion, 0, nil) {
			if err := f.WriteRaw([]byte{b}); err != nil {
				t.Fatal(err)
			}
			time.Sleep(time.Millisecond)
		}
		if m, err := f.Receive(); err != nil || m.U64() != f.Offered {
			t.Fatalf("answer %+v: %v", m, err)
		}
	}
	f.Close()
	v.unharmed(t)
}
