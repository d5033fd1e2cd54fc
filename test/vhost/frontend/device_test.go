// SPDX-License-Identifier: Apache-2.0

package frontend

import (
	"encoding/binary"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"testing"

	"golang.org/x/sys/unix"

	"aldente/worker/vhost"
)

// TestRings has the driver's side of a ring here and the worker's device's side work
// at the same time, each waiting for the other's kicks and calls only: none may be
// missing, and every byte must arrive once, in order.
func TestRings(t *testing.T) {
	const buffers = 20_000
	for _, features := range []uint64{0, FEventIdx, FIndirectDesc, FEventIdx | FIndirectDesc, FEventIdx | FInOrder, FEventIdx | FIndirectDesc | FInOrder} {
		for _, size := range []uint16{2, 64, 256} {
			for _, writable := range []bool{false, true} {
				t.Run(fmt.Sprintf("%#x/%d/%v", features, size, writable), func(t *testing.T) {
					t.Parallel()
					m, err := NewMemory(0, 4<<20, 4<<20)
					if err != nil {
						t.Fatal(err)
					}
					r, err := NewRing(m, size, features)
					if err != nil {
						t.Fatal(err)
					}
					d := &deviceEnd{r: r, writable: writable, want: buffers, seen: make(chan error, 1)}
					if err := d.start(m, features); err != nil {
						t.Fatal(err)
					}
					go func() { d.seen <- d.run() }()
					err = driverEnd(m, r, writable, buffers)
					if err := errors.Join(err, <-d.seen); err != nil {
						t.Error(err)
					}
					r.Close()
					m.Close()
				})
			}
		}
	}
}

// driverEnd makes buffers available, each with its number in its first eight bytes,
// or empty, and takes them back.
func driverEnd(m *Memory, r *Ring, writable bool, n int) error {
	rnd := rand.New(rand.NewPCG(1, 2))
	room := make([]uint64, r.Size)
	for i := range room {
		var err error
		if room[i], err = m.Alloc(2048, 8); err != nil {
			return err
		}
	}
	free := append([]uint64(nil), room...)
	at := make([]uint64, r.Size)
	for made, back := 0, 0; back < n; {
		for range 1 + rnd.IntN(int(r.Size)) {
			if made == n || len(free) == 0 {
				break
			}
			a := free[len(free)-1]
			segs := pieces(a, 8+rnd.IntN(2000), writable, rnd, int(r.Size))
			if !writable {
				binary.LittleEndian.PutUint64(m.At(a, 8), uint64(made))
			}
			head, ok := r.Add(segs, rnd.IntN(4) > 0)
			if !ok {
				break
			}
			free, at[head] = free[:len(free)-1], a
			made++
			if rnd.IntN(3) == 0 {
				r.Publish()
				r.Kick()
			}
		}
		r.Publish()
		r.Kick()
		for {
			head, length, ok, err := r.TakeUsed()
			if err != nil {
				return err
			}
			if !ok {
				break
			}
			if number := binary.LittleEndian.Uint64(m.At(at[head], 8)); writable && (number != uint64(back) || length < 8) {
				return fmt.Errorf("buffer %d came with %d bytes, number %d", back, length, number)
			}
			back++
			free = append(free, at[head])
		}
		if back == n || made < n && len(free) == len(room) {
			continue
		}
		if !r.EnableCalls(1 + uint16(rnd.IntN(int(r.Outstanding())))) {
			if err := await(r.CallFD); err != nil {
				return fmt.Errorf("%d of %d buffers came back: no call: %w", back, made, err)
			}
		}
		r.SuppressCalls()
	}
	return nil
}

// pieces cuts a buffer into descriptors.
func pieces(a uint64, n int, writable bool, rnd *rand.Rand, most int) (segs []Seg) {
	for n > 0 {
		k := n
		if len(segs) < min(most, 20)-1 && rnd.IntN(2) == 0 {
			k = 1 + rnd.IntN(n)
		}
		segs = append(segs, Seg{a, uint32(k), writable})
		a, n = a+uint64(k), n-k
	}
	return segs
}

// await waits for an event.
func await(fd int) error {
	fds := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}
	for {
		n, err := unix.Poll(fds, 20_000)
		if err == unix.EINTR {
			continue
		}
		if n == 0 {
			return os.ErrDeadlineExceeded
		}
		var b [8]byte
		_, _ = unix.Read(fd, b[:])
		return err
	}
}

// deviceEnd is the worker's side.
type deviceEnd struct {
	r        *Ring
	ring     vhost.Ring
	writable bool
	want     int
	seen     chan error
}

func (d *deviceEnd) start(m *Memory, features uint64) error {
	mem := &vhost.Memory{}
	var regions []vhost.Region
	for _, r := range m.Regions {
		regions = append(regions, vhost.Region{Guest: r.Guest, User: m.User(r.Guest), Mem: m.At(r.Guest, r.Size)})
	}
	if err := mem.Set(regions); err != nil {
		return err
	}
	r := d.r
	return d.ring.Start(mem, &vhost.Setup{Size: int(r.Size), Desc: m.User(r.Desc), Avail: m.User(r.Avail), Used: m.User(r.Used),
		Writable: d.writable, Indirect: features&FIndirectDesc != 0, EventIdx: features&FEventIdx != 0})
}

func (d *deviceEnd) run() error {
	rnd := rand.New(rand.NewPCG(3, 4))
	arena := vhost.NewArena(2 * vhost.MaxPieces)
	var held []vhost.Chain
	for n := 0; n < d.want; {
		arena.Reset()
		held = held[:0]
		for range 1 + rnd.IntN(16) {
			var c vhost.Chain
			if !d.ring.Pop(&c, arena) {
				break
			}
			held = append(held, c)
		}
		if err := d.ring.Err(); err != nil {
			return err
		}
		for i := range held {
			if err := d.number(&held[i], n); err != nil {
				return err
			}
			n++
			d.ring.Use(&held[i], min(held[i].Len, 100))
		}
		if d.ring.Publish() {
			_, _ = unix.Write(d.r.CallFD, one)
		}
		if len(held) > 0 {
			continue
		}
		if !d.ring.EnableKicks() {
			if err := await(d.r.KickFD); err != nil {
				return fmt.Errorf("%d of %d buffers came: no kick: %w", n, d.want, err)
			}
		}
		d.ring.DisableKicks()
	}
	return nil
}

// number reads or writes the number of a buffer, byte by byte of its pieces.
func (d *deviceEnd) number(c *vhost.Chain, n int) error {
	var b [8]byte
	binary.LittleEndian.PutUint64(b[:], uint64(n))
	k := 0
	for _, p := range c.Pieces {
		for i := range p {
			if k == len(b) {
				return nil
			}
			if d.writable {
				p[i] = b[k]
			} else if p[i] != b[k] {
				return fmt.Errorf("buffer %d holds another number", n)
			}
			k++
		}
	}
	return nil
}
