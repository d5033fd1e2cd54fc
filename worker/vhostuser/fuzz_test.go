// SPDX-License-Identifier: Apache-2.0

package vhostuser

import (
	"errors"
	"slices"
	"testing"

	"golang.org/x/sys/unix"

	"aldente/fuzz"
)

// palette are descriptors that a front end may pass: good ones, and what it has at
// hand besides.
type palette []int

func newPalette(tb testing.TB) palette {
	small, large := memfd(tb, 4096), memfd(tb, 1<<20)
	sealed, err := unix.MemfdCreate("sealed", unix.MFD_CLOEXEC|unix.MFD_ALLOW_SEALING)
	sealed = owned(tb, sealed, err)
	if err := unix.Ftruncate(sealed, 8192); err != nil {
		tb.Fatal(err)
	}
	if _, err := unix.FcntlInt(uintptr(sealed), unix.F_ADD_SEALS, unix.F_SEAL_FUTURE_WRITE); err != nil {
		tb.Fatal(err)
	}
	dir, err := unix.Open("/", unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	dir = owned(tb, dir, err)
	null, err := unix.Open("/dev/null", unix.O_RDWR|unix.O_CLOEXEC, 0)
	null = owned(tb, null, err)
	poll, err := unix.EpollCreate1(unix.EPOLL_CLOEXEC)
	poll = owned(tb, poll, err)
	var pipe, pair [2]int
	if err := unix.Pipe2(pipe[:], unix.O_CLOEXEC); err != nil {
		tb.Fatal(err)
	}
	pair, err = unix.Socketpair(unix.AF_UNIX, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	all := []int{event(tb), large, small, sealed, dir, null, poll, owned(tb, pair[0], err), pair[1], pipe[0], pipe[1]}
	tb.Cleanup(func() {
		for _, fd := range []int{pair[1], pipe[0], pipe[1]} {
			unix.Close(fd)
		}
	})
	return all
}

// script turns messages into an input of FuzzSession.
func script(messages ...[]byte) (b []byte) { return slices.Concat(messages...) }

// said is a message of a script: which descriptors of the palette come with it, in how
// many pieces it is sent, and what it is.
func said(request byte, payload []byte, fds ...byte) []byte {
	b := append([]byte{request, 9, 0, byte(len(fds))}, fds...)
	return slices.Concat(b, []byte{byte(len(payload) >> 8), byte(len(payload))}, payload)
}

// FuzzSession has a front end say anything, pass anything with it, and not read the
// answers. The device is told only what makes sense, which it checks; mappings are
// there for as long as it may use them; at the end nothing is left open.
func FuzzSession(f *testing.F) {
	addr := slices.Concat(words(1, 1), longs(1<<30, 1<<30+8192, 1<<30+4096, 0))
	begin := script(said(setProtocolFeatures, longs(0x1b21f)), said(setFeatures, longs(Features)))
	ring := script(said(setMemTable, table(), 1), said(setVringNum, words(1, 256)), said(setVringBase, words(1, 7)),
		said(setVringAddr, addr), said(setVringCall, longs(1), 0), said(setVringKick, longs(1), 0), said(setVringEnable, words(1, 1)))
	fuzz.Add(f, script(begin, ring))
	fuzz.Add(f, script(begin, ring, said(getVringBase, words(1, 0)), said(setVringKick, longs(1), 0), said(resetDevice, nil), ring))
	fuzz.Add(f, script(begin, ring, said(addMemReg, longs(0, 1<<32, 4096, 1<<40, 0), 2), said(remMemReg, longs(0, 1<<20, 1<<20, 1<<30, 0)), said(setStatus, longs(0))))
	fuzz.Add(f, script(begin, said(setLogBase, longs(4096, 0), 2), ring, said(getStatus, nil), said(setStatus, longs(15)), said(getConfig, slices.Concat(words(0, 8, 0), longs(0)))))
	fuzz.Add(f, script(begin, said(getInflightFD, inflightPayload(0, 2, 256)), said(setInflightFD, inflightPayload(1<<20, 2, 256), 1), ring))
	fuzz.Add(f, script(ring, said(setFeatures, longs(Features)), said(99, nil, 3, 4, 5), said(netSetMTU, longs(1500)), said(getMaxMemSlots, nil)))
	for fd := range byte(11) {
		fuzz.Add(f, script(begin, said(setMemTable, table(), fd)))
		fuzz.Add(f, script(begin, said(setVringKick, longs(0), fd)))
	}
	fuzz.Add(f, []byte("000000000")) // more descriptors than are closed at a time
	f.Fuzz(func(t *testing.T, b []byte) {
		if len(b) > 16<<10 {
			return
		}
		fds := newPalette(t)
		c := config()
		c.NewInflight = func(int, int, int, int) error { return nil }
		fe := connect(t, c)
		src := fuzz.Source{B: b}
		var err error
		for len(src.B) > 0 && err == nil {
			err = fe.fuzzed(&src, fds)
		}
		if err != nil && !errors.Is(err, ErrProtocol) {
			t.Fatal(err)
		}
		for i := range fe.s.queues {
			if q := &fe.s.queues[i]; q.Started != fe.dev.started[i] || q.Size > MaxRing {
				t.Fatalf("queue %d: %+v", i, *q)
			}
		}
	})
}

// fuzzed sends one message of the input and has it received.
func (f *frontEnd) fuzzed(src *fuzz.Source, p palette) error {
	request, flags, cut := uint32(src.Byte()), uint32(src.Byte()), int(src.Byte())
	var fds []int
	for range src.Byte() & 0x3f {
		fds = append(fds, p[int(src.Byte())%len(p)])
	}
	payload := src.LongBlock()
	b := slices.Concat(words(request, flags, uint32(len(payload))), payload)
	if flags&0x80 != 0 { // the length is another
		b = slices.Concat(words(request, flags&0xf, uint32(cut)), payload)
	}
	cut = min(cut, len(b))
	for _, piece := range [][]byte{b[:cut], b[cut:]} {
		if len(piece) == 0 {
			continue
		}
		var oob []byte
		if len(fds) > 0 {
			oob = unix.UnixRights(fds...)
		}
		if err := unix.Sendmsg(f.fd, piece, oob, nil, 0); err != nil {
			f.tb.Fatal(err)
		}
		fds = nil
		for more := true; more; {
			var err error
			if more, err = f.s.Receive(); err != nil {
				return err
			}
		}
		for _, r := range f.dev.regions {
			r.Mem[len(r.Mem)/2]++
		}
	}
	return nil
}
