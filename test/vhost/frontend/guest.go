// SPDX-License-Identifier: Apache-2.0

package frontend

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"time"

	"golang.org/x/sys/unix"
)

// Guest sends and receives frames of a test's own, one at a time.
type Guest struct {
	*Frontend
	Indirect bool // send by indirect tables
	Piece    int  // most bytes of a descriptor of a sent frame, 0: any number
	RxBuffer int  // bytes of a receive buffer

	slots [][]uint64 // by ring and head: address of the receive buffer
	tx    []uint64   // by transmit ring: where frames are put
}

// maxFrame is the most that a frame takes, its header included.
const maxFrame = 12 + 14 + 65535 + 3

// NewGuest puts receive buffers into all rings of f, up to a MiB each: of size bytes,
// or of what any frame fits into without mergeable buffers.
func NewGuest(f *Frontend, size int) (*Guest, error) {
	if f.Features&FMrgRxbuf == 0 {
		size = maxFrame
	}
	g := &Guest{Frontend: f, RxBuffer: size}
	for i, r := range f.Rings {
		g.slots = append(g.slots, make([]uint64, r.Size))
		if i%2 == 1 {
			a, err := f.Mem.Alloc(maxFrame, 64)
			if err != nil {
				return nil, err
			}
			g.tx = append(g.tx, a)
			continue
		}
		for range min(int(r.Size), max(16, (1<<20)/size)) {
			a, err := f.Mem.Alloc(uint64(size), 64)
			if err != nil {
				return nil, err
			}
			g.offer(i, a)
		}
		r.Publish()
	}
	return g, nil
}

func (g *Guest) offer(ring int, a uint64) {
	if head, ok := g.Rings[ring].Add([]Seg{{a, uint32(g.RxBuffer), true}}, false); ok {
		g.slots[ring][head] = a
	}
}

// Send sends a frame behind a virtio header, or zeros if that is nil, on a queue
// pair, and waits until the device has given the buffer back.
func (g *Guest) Send(pair int, header, frame []byte) error {
	if err := g.Put(pair, header, frame); err != nil {
		return err
	}
	return g.Sent(pair, 5*time.Second)
}

// Put is Send without waiting.
func (g *Guest) Put(pair int, header, frame []byte) error {
	r, at := g.Rings[2*pair+1], g.tx[pair]
	n := g.HeaderLen()
	b := g.Mem.At(at, maxFrame)
	clear(b[:n])
	copy(b[:n], header)
	total := n + copy(b[n:], frame)
	piece := g.Piece
	if piece == 0 {
		piece = total
	}
	var segs []Seg
	for done := 0; done < total; done += piece {
		segs = append(segs, Seg{Addr: at + uint64(done), Len: uint32(min(piece, total-done))})
	}
	if _, ok := r.Add(segs, g.Indirect); !ok {
		return fmt.Errorf("%d descriptors do not fit into the ring", len(segs))
	}
	r.Publish()
	r.Kick()
	return nil
}

// Sent waits until everything sent on a queue pair was given back.
func (g *Guest) Sent(pair int, wait time.Duration) error {
	r := g.Rings[2*pair+1]
	deadline := time.Now().Add(wait)
	for r.Outstanding() > 0 {
		_, _, ok, err := r.TakeUsed()
		if err != nil {
			return err
		}
		if ok || r.EnableCalls(1) {
			continue
		}
		if err := g.wait(r, deadline); err != nil {
			return fmt.Errorf("%d sent buffers are not given back: %w", r.Outstanding(), err)
		}
	}
	return nil
}

// wait waits for a call.
func (g *Guest) wait(r *Ring, deadline time.Time) error {
	left := time.Until(deadline)
	if left <= 0 {
		return os.ErrDeadlineExceeded
	}
	fds := []unix.PollFd{{Fd: int32(r.CallFD), Events: unix.POLLIN}}
	if _, err := unix.Poll(fds, int(left/time.Millisecond)+1); err != nil && err != unix.EINTR {
		return err
	}
	r.TakeCall()
	return nil
}

// Receive waits for the next frame on a queue pair and returns it with its header.
func (g *Guest) Receive(pair int, wait time.Duration) (header, frame []byte, err error) {
	r, n := g.Rings[2*pair], g.HeaderLen()
	deadline := time.Now().Add(wait)
	var b []byte
	left := 1
	for left > 0 {
		head, length, ok, err := r.TakeUsed()
		if err != nil {
			return nil, nil, err
		}
		if !ok {
			if !r.EnableCalls(1) {
				if err := g.wait(r, deadline); err != nil {
					return nil, nil, err
				}
			}
			continue
		}
		a := g.slots[2*pair][head]
		if length > uint32(g.RxBuffer) {
			return nil, nil, fmt.Errorf("%d bytes in a buffer of %d", length, g.RxBuffer)
		}
		first := b == nil
		b = append(b, g.Mem.At(a, uint64(length))...)
		g.offer(2*pair, a)
		left--
		if first {
			if len(b) < n+14 {
				return nil, nil, fmt.Errorf("%d bytes are no frame", len(b))
			}
			if n == 12 && g.Features&FMrgRxbuf != 0 {
				left = int(binary.LittleEndian.Uint16(b[10:])) - 1
			}
			if left < 0 {
				return nil, nil, errors.New("a frame in no buffer")
			}
		}
	}
	r.Publish()
	r.Kick()
	return b[:n], b[n:], nil
}

// ReceiveAny is Receive for a frame that is wanted, on any queue pair. Others are
// dropped.
func (g *Guest) ReceiveAny(wait time.Duration, wanted func(frame []byte) bool) (pair int, frame []byte, err error) {
	deadline := time.Now().Add(wait)
	for time.Now().Before(deadline) {
		var fds []unix.PollFd
		for i := range g.Pairs {
			r := g.Rings[2*i]
			r.TakeCall()
			if r.EnableCalls(1) {
				_, frame, err := g.Receive(i, time.Until(deadline))
				if err != nil || wanted(frame) {
					return i, frame, err
				}
				fds = nil
				break
			}
			fds = append(fds, unix.PollFd{Fd: int32(r.CallFD), Events: unix.POLLIN})
		}
		if len(fds) > 0 {
			_, _ = unix.Poll(fds, int(time.Until(deadline)/time.Millisecond)+1)
		}
	}
	return 0, nil, os.ErrDeadlineExceeded
}

// Resolve asks for the hardware address of an IPv4 address by ARP on a queue pair.
// mac and from are the guest's.
func (g *Guest) Resolve(pair int, mac [6]byte, from, whom [4]byte, wait time.Duration) error {
	frame := bytes.Repeat([]byte{0xff}, 6)
	frame = append(frame, mac[:]...)
	frame = append(frame, 8, 6, 0, 1, 8, 0, 6, 4, 0, 1)
	frame = append(append(frame, mac[:]...), from[:]...)
	frame = append(append(frame, 0, 0, 0, 0, 0, 0), whom[:]...)
	if err := g.Put(pair, nil, frame); err != nil {
		return err
	}
	if err := g.Sent(pair, wait); err != nil {
		return err
	}
	_, _, err := g.ReceiveAny(wait, func(f []byte) bool {
		return len(f) >= 42 && f[12] == 8 && f[13] == 6 && f[21] == 2 && bytes.Equal(f[28:32], whom[:])
	})
	if err != nil {
		return fmt.Errorf("no answer by ARP: %w", err)
	}
	return nil
}
