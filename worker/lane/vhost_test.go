// SPDX-License-Identifier: Apache-2.0

package lane

import (
	"encoding/binary"
	"fmt"

	"golang.org/x/sys/unix"

	"aldente/ipc"
	"aldente/test/vhost/frontend"
	"aldente/worker/packet"
)

// machine is a virtual machine's side of a link by vhost-user.
type machine struct {
	*frontend.Frontend
	rx   [][]uint64 // buffers, by pair and head: where
	size int        // of each
	tx   [][]uint64 // by pair: what is free of them
	sent [][]uint64 // by pair and head: where
	part []byte     // of a frame of several buffers
	left int        // buffers that are still to come
}

// maxPairs is how many pairs of queues a machine may have.
const maxPairs = 3

// longest is what a frame takes at most, its header included.
const longest = 66 << 10

// connectMachine gives the lane a link to a new machine, whose driver has some features
// or others.
func (w *world) connectMachine() {
	conn, file, err := frontend.Pair()
	if err != nil {
		w.t.Fatal(err)
	}
	fd, err := unix.Dup(int(file.Fd()))
	if err != nil {
		w.t.Fatal(err)
	}
	file.Close()
	if w.peer, err = unix.Eventfd(0, unix.EFD_CLOEXEC); err != nil { // stands for it
		w.t.Fatal(err)
	}
	conn.Turn = w.takeAll
	w.told++
	w.handed = 0
	w.tell((&ipc.Link{Kind: w.kind}).Encode(), fd)
	r := w.r
	c := frontend.Config{
		Features: frontend.AllFeatures | frontend.FInOrder, Protocol: frontend.AllProtocol, Pairs: 1 + r.IntN(2)*r.IntN(maxPairs),
		Ring: uint16(16 << r.IntN(4)), Sizes: []uint64{4 << 20, 12 << 20}, Hole: uint64(r.IntN(2)) << 20,
	}
	for _, f := range []uint64{frontend.FEventIdx, frontend.FIndirectDesc, frontend.FMrgRxbuf, frontend.FInOrder, frontend.FVersion1} {
		if r.IntN(4) == 0 {
			c.Features &^= f
		}
	}
	switch r.IntN(4) {
	case 0:
		c.Features &^= frontend.Offloads &^ frontend.FCSUM
	case 1:
		c.Features &^= frontend.FGuestUSO4 | frontend.FGuestUSO6
	}
	m := &machine{}
	w.machine = m
	w.during(func() (err error) {
		if m.Frontend, err = frontend.New(conn, c); err == nil {
			err = m.begin(1500 + r.IntN(3)*1300)
		}
		if err == nil {
			err = m.Start()
		}
		return err
	})
	w.turn()
}

// begin puts buffers into the rings.
func (m *machine) begin(size int) error {
	if m.Features&frontend.FMrgRxbuf == 0 {
		size = longest
	}
	size = max(size, longest/int(m.Ring)) // else there are frames that never find room
	m.size = size
	for i, ring := range m.Rings {
		if i%2 == 1 {
			m.tx, m.sent = append(m.tx, nil), append(m.sent, make([]uint64, ring.Size))
			for range 4 {
				at, err := m.Mem.Alloc(longest, 64)
				if err != nil {
					return err
				}
				m.tx[i/2] = append(m.tx[i/2], at)
			}
			continue
		}
		m.rx = append(m.rx, make([]uint64, ring.Size))
		for range min(int(ring.Size), 1<<20/size) {
			at, err := m.Mem.Alloc(uint64(size), 64)
			if err != nil {
				return err
			}
			m.offer(i/2, at)
		}
		ring.Publish()
	}
	return nil
}

func (m *machine) offer(pair int, at uint64) {
	if head, ok := m.Rings[2*pair].Add([]frontend.Seg{{Addr: at, Len: uint32(m.size), Write: true}}, false); ok {
		m.rx[pair][head] = at
	}
}

// during has the machine's monitor say something that the lane answers.
func (w *world) during(f func() error) {
	defer func(was bool) { w.counting = was }(w.counting)
	w.counting = false // what the lane allocates for it, and the monitor
	if err := f(); err != nil {
		w.t.Fatal(err)
	}
	w.takeAll()
}

// takeAll has the lane take turns until it would sleep, of which nothing else is heard.
func (w *world) takeAll() {
	for n := 0; n < 2000 && w.awake(); n++ {
		w.take()
	}
}

// restart has the guest's driver stop and begin again.
func (w *world) restart() {
	m := w.machine
	if m == nil || w.l.link == nil {
		return
	}
	w.during(func() error {
		err := m.Stop()
		for i := range m.Rings {
			if err == nil {
				err = m.StartRing(i)
			}
		}
		return err
	})
}

// transmit sends a frame behind the header that a tap has. It reports whether there was
// room for it.
func (m *machine) transmit(w *world, b []byte) bool {
	pair := w.r.IntN(len(m.tx))
	ring := m.Rings[2*pair+1]
	m.reclaim(w, pair)
	if len(m.tx[pair]) == 0 {
		return false
	}
	at := m.tx[pair][0]
	n := m.HeaderLen()
	whole := m.Mem.At(at, longest)
	clear(whole[:n])
	if len(b) > packet.OffloadSize {
		whole[0], whole[1] = b[0], b[1]
		for k := 2; k < packet.OffloadSize; k += 2 {
			binary.LittleEndian.PutUint16(whole[k:], binary.NativeEndian.Uint16(b[k:]))
		}
		b = b[packet.OffloadSize:]
	}
	size := n + copy(whole[n:], b)
	var segs []frontend.Seg
	for done := 0; done < size; {
		k := min(size-done, 1+w.r.IntN(1<<w.r.IntN(17)))
		if len(segs) == 8 {
			k = size - done
		}
		segs = append(segs, frontend.Seg{Addr: at + uint64(done), Len: uint32(k)})
		done += k
	}
	head, ok := ring.Add(segs, w.r.IntN(2) == 0)
	if !ok {
		return false
	}
	m.tx[pair], m.sent[pair][head] = m.tx[pair][1:], at
	ring.Publish()
	ring.Kick()
	return true
}

// reclaim takes back what was sent, and writes something else there.
func (m *machine) reclaim(w *world, pair int) {
	for {
		head, _, ok, err := m.Rings[2*pair+1].TakeUsed()
		if err != nil {
			w.t.Fatal(err)
		}
		if !ok {
			return
		}
		at := m.sent[pair][head]
		clear(m.Mem.At(at, 1000))
		m.tx[pair] = append(m.tx[pair], at)
	}
}

// receive takes what the lane has put into the machine's memory.
func (m *machine) receive(w *world) {
	defer func() { w.pair = 0 }()
	for pair := range m.tx {
		w.pair = pair
		ring := m.Rings[2*pair]
		for {
			head, n, ok, err := ring.TakeUsed()
			if err != nil {
				w.t.Fatal(err)
			}
			if !ok {
				break
			}
			w.moves++
			at := m.rx[pair][head]
			m.part = append(m.part, m.Mem.At(at, uint64(n))...)
			m.offer(pair, at)
			m.whole(w)
		}
		ring.Publish()
		ring.Kick()
	}
}

// whole looks whether a frame is complete.
func (m *machine) whole(w *world) {
	n := m.HeaderLen()
	if m.left == 0 {
		if len(m.part) < n+60 {
			w.t.Fatalf("a buffer of %d bytes to the guest, pair %d features %#x size %d ring %d: %x", len(m.part), m.Pairs, m.Features, m.size, m.Ring, m.part)
		}
		m.left = 1
		if m.Features&frontend.FMrgRxbuf != 0 {
			m.left = int(binary.LittleEndian.Uint16(m.part[10:]))
		}
	}
	if m.left--; m.left > 0 {
		return
	}
	b := m.part
	m.part = m.part[:0]
	o := packet.Offload{Flags: b[0], GSOType: b[1], HdrLen: binary.LittleEndian.Uint16(b[2:]), GSOSize: binary.LittleEndian.Uint16(b[4:]),
		CsumStart: binary.LittleEndian.Uint16(b[6:]), CsumOffset: binary.LittleEndian.Uint16(b[8:])}
	if o.Flags != 0 && m.Features&frontend.FGuestCSUM == 0 || o.GSOType != packet.GSONone && m.Features&frontend.FGuestTSO4 == 0 {
		w.t.Fatalf("%+v, of which the guest knows nothing", o)
	}
	w.arrives(b[n:], &o)
}

// gone ends the machine.
func (m *machine) gone() {
	if m.Frontend != nil {
		m.Close()
	}
}

func (m *machine) state() string {
	s := fmt.Sprintf("\nmachine: features %#x, buffers of %d, a frame lacks %d", m.Features, m.size, m.left)
	for i, r := range m.Rings {
		s += fmt.Sprintf("\n  ring %d of %d: %d free, available %d, used %d, outstanding %d, kicks %d, suppressed %d", i, r.Size, r.NumFree(), r.Index(), r.UsedIndex(),
			r.Outstanding(), r.Kicks, r.Suppressed)
	}
	return s
}
