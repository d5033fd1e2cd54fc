// SPDX-License-Identifier: Apache-2.0

package frontend

import (
	"encoding/binary"
	"fmt"
	"runtime"
	"unsafe"

	"golang.org/x/sys/unix"

	"aldente/test/merge"
	"aldente/worker/packet"
)

const (
	slotAlign = 64
	// kickEvery is how many frames are sent before the device is told, unless
	// there are no more.
	kickEvery = 16
	// downBatch is how many receive buffers are taken before they are given back.
	downBatch = 64
)

// up moves frames from a queue of the tap to a transmit ring.
type up struct {
	p     *pump
	tap   int
	r     *Ring
	free  []uint64 // buffers, the last one used on top: it is in the cache
	slots []uint64 // by head: buffer
	size  uint64   // of a buffer
	segs  []Seg
	sent  int // since the last kick
	chaos *chaos
	whole []byte // a super-frame that is to be cut
}

func newUp(p *pump, tap int, r *Ring) (*up, error) {
	u := &up{p: p, tap: tap, r: r, slots: make([]uint64, r.Size), size: maxFrame, whole: make([]byte, maxFrame), chaos: p.newChaos()}
	if p.cuts() {
		u.size = uint64(p.o.MTU + 14 + p.hdr)
	}
	u.size = (u.size + slotAlign - 1) &^ (slotAlign - 1)
	for range min(int(r.Size), 512) {
		a, err := p.f.Mem.Alloc(u.size, slotAlign)
		if err != nil {
			return nil, err
		}
		u.free = append(u.free, a)
	}
	return u, nil
}

// room tells whether any frame can be sent.
func (u *up) room() bool {
	pieces := 1
	if size := u.p.o.Piece; size > 0 {
		pieces = (int(u.size) + size - 1) / size
	}
	if u.p.o.Indirect && u.r.tables != 0 && pieces <= maxIndirect {
		pieces = 1
	}
	return len(u.free) > 0 && u.r.NumFree() >= min(pieces, int(u.r.Size))
}

func (u *up) run() error {
	runtime.LockOSThread()
	u.r.SuppressCalls()
	for {
		if err := u.reclaim(); err != nil {
			return err
		}
		idle := false
		for range kickEvery {
			if !u.room() {
				break
			}
			n, err := u.read()
			if err == unix.EAGAIN {
				idle = true
				break
			}
			if err != 0 {
				return fmt.Errorf("tap: %w", err)
			}
			if err := u.take(n); err != nil {
				return err
			}
		}
		u.kick()
		u.chaos.stall()
		if idle {
			wait(unix.POLLIN, u.tap)
		} else if !u.room() {
			if err := u.waitRoom(); err != nil {
				return err
			}
		}
	}
}

// read reads a frame into a buffer of the guest, or of ours if it may be one to cut.
func (u *up) read() (int, unix.Errno) {
	if u.p.cuts() {
		return call(unix.SYS_READ, u.tap, u.whole)
	}
	return call(unix.SYS_READ, u.tap, u.p.f.Mem.At(u.free[len(u.free)-1], u.size))
}

// take sends what was read.
func (u *up) take(n int) error {
	if n <= u.p.hdr {
		return nil
	}
	if !u.p.cuts() {
		a := u.free[len(u.free)-1]
		return u.send(a, n)
	}
	return u.cut(u.whole[:n])
}

// send sends a frame that lies in the buffer on top.
func (u *up) send(a uint64, n int) error {
	u.split(a, n)
	head, ok := u.r.Add(u.segs, u.p.o.Indirect)
	if !ok { // too many pieces for the ring: as one
		u.segs = append(u.segs[:0], Seg{Addr: a, Len: uint32(n)})
		if head, ok = u.r.Add(u.segs, false); !ok {
			return fmt.Errorf("no descriptor left of %d", u.r.Size)
		}
	}
	u.free = u.free[:len(u.free)-1]
	u.slots[head] = a
	u.chaos.watch(u.p.f.Mem.At(a, uint64(n)), u.p.hdr)
	u.r.Publish()
	u.sent++
	return nil
}

// split makes pieces of a frame.
func (u *up) split(a uint64, n int) {
	u.segs = u.segs[:0]
	for n > 0 {
		k := n
		if size := u.chaos.piece(u.p.o.Piece); size > 0 {
			k = min(k, size)
		}
		u.segs = append(u.segs, Seg{Addr: a, Len: uint32(k)})
		a, n = a+uint64(k), n-k
	}
}

func (u *up) kick() {
	if u.sent == 0 {
		return
	}
	u.sent = 0
	u.chaos.late()
	u.r.Kick()
}

// reclaim takes back what the device has sent.
func (u *up) reclaim() error {
	for {
		head, _, ok, err := u.r.TakeUsed()
		if !ok {
			return err
		}
		u.free = append(u.free, u.slots[head])
	}
}

// waitRoom waits until most of what is outstanding was sent.
func (u *up) waitRoom() error {
	for {
		if err := u.reclaim(); err != nil || u.room() {
			return err
		}
		if !u.r.EnableCalls(max(u.r.Outstanding()*3/4, 1)) {
			wait(unix.POLLIN, u.r.CallFD)
			u.r.TakeCall()
		}
		u.r.SuppressCalls()
	}
}

// cut sends a frame, which may be a super-frame, without offloads: what the guest's
// kernel would do, here for less than its tap takes.
func (u *up) cut(b []byte) error {
	o, frame := offload(b), b[u.p.hdr:]
	if o.GSOType == packet.GSONone {
		if o.Flags&packet.OffloadNeedsChecksum != 0 && u.p.f.Features&FCSUM == 0 {
			packet.CompleteChecksum(frame, &o)
			clear(b[:u.p.hdr])
		}
		return u.copied(b[:u.p.hdr], frame, nil)
	}
	s := newSegments(&o, frame)
	if s == nil {
		return nil
	}
	clear(b[:u.p.hdr])
	for payload := s.next(); payload != nil; payload = s.next() {
		if err := u.copied(b[:u.p.hdr], s.headers, payload); err != nil {
			return err
		}
	}
	return nil
}

// copied sends a frame out of three parts.
func (u *up) copied(header, frame, payload []byte) error {
	if len(header)+len(frame)+len(payload) > int(u.size) {
		return nil // longer than the MTU
	}
	if !u.room() {
		u.kick()
		if err := u.waitRoom(); err != nil {
			return err
		}
	}
	a := u.free[len(u.free)-1]
	to := u.p.f.Mem.At(a, u.size)
	n := copy(to, header)
	n += copy(to[n:], frame)
	n += copy(to[n:], payload)
	return u.send(a, n)
}

// down moves frames from a receive ring to a queue of the tap.
type down struct {
	p     *pump
	tap   int
	r     *Ring
	slots [][]Seg // by head: buffer
	held  [][]Seg // to be given back
	iov   []unix.Iovec
	m     *merge.Merger // where the device cannot
	chaos *chaos
}

func newDown(p *pump, tap int, r *Ring) (*down, error) {
	d := &down{p: p, tap: tap, r: r, slots: make([][]Seg, r.Size), chaos: p.newChaos()}
	if p.merges() {
		d.m = merge.New(tap, p.hdr)
	}
	mrg := p.f.Features&FMrgRxbuf != 0
	for {
		size := uint64(p.o.RxBuffer)
		switch {
		case !mrg && (p.o.MTU == 0 || p.f.Features&(FGuestTSO4|FGuestTSO6|FGuestUSO4|FGuestUSO6) != 0):
			size = maxFrame
		case !mrg:
			size = uint64(p.o.MTU + 14 + p.hdr)
		default:
			size = d.chaos.buffer(size)
		}
		segs, err := p.rxSegs(size, mrg)
		if err != nil {
			return nil, err
		}
		if !d.offer(segs) {
			break
		}
	}
	r.Publish()
	return d, nil
}

// rxSegs allocates a receive buffer: in pages, if it is not mergeable.
func (p *pump) rxSegs(size uint64, mrg bool) (segs []Seg, err error) {
	for size > 0 {
		n := size
		if !mrg {
			n = min(n, page)
		}
		a, err := p.f.Mem.Alloc(n, slotAlign)
		if err != nil {
			return nil, err
		}
		segs = append(segs, Seg{a, uint32(n), true})
		size -= n
	}
	return segs, nil
}

func (d *down) offer(segs []Seg) bool {
	head, ok := d.r.Add(segs, len(segs) > 1 && d.p.o.Indirect)
	if ok {
		d.slots[head] = segs
	}
	return ok
}

func (d *down) run() error {
	runtime.LockOSThread()
	d.r.ForceKick()
	for {
		d.chaos.stall()
		n, err := d.batch()
		if err != nil {
			return err
		}
		if n == 0 && !d.r.EnableCalls(1) {
			wait(unix.POLLIN, d.r.CallFD)
			d.r.TakeCall()
			d.r.SuppressCalls()
		}
	}
}

// batch writes what has come to the tap, and gives the buffers back.
func (d *down) batch() (n int, err error) {
	for n < downBatch {
		k, err := d.frame()
		if err != nil {
			return n, err
		}
		if k == 0 {
			break
		}
		n += k
	}
	if d.m != nil {
		d.m.Flush()
	}
	for i, segs := range d.held {
		if d.held[i] = nil; !d.offer(segs) {
			return n, fmt.Errorf("no descriptor left of %d", d.r.Size)
		}
	}
	d.held = d.held[:0]
	if n > 0 {
		d.r.Publish()
		d.chaos.late()
		d.r.Kick()
	}
	return n, nil
}

// frame writes one frame to the tap and returns the number of its buffers.
func (d *down) frame() (int, error) {
	head, length, ok, err := d.r.TakeUsed()
	if !ok {
		return 0, err
	}
	d.iov = d.iov[:0]
	d.hold(head, length)
	first := unsafe.Slice(d.iov[0].Base, d.iov[0].Len)
	if len(first) < d.p.hdr {
		return 0, fmt.Errorf("%d bytes are no frame", length)
	}
	n := 1
	if d.p.f.Features&FMrgRxbuf != 0 {
		n = int(binary.LittleEndian.Uint16(first[10:]))
	}
	for i := 1; i < n; {
		head, length, ok, err := d.r.TakeUsed()
		if err != nil {
			return 0, err
		}
		if !ok { // the device must publish them together
			return 0, fmt.Errorf("of a frame in %d buffers %d are there", n, i)
		}
		d.hold(head, length)
		i++
	}
	d.write(first)
	return max(n, 1), nil
}

// hold adds a buffer to the parts of the frame.
func (d *down) hold(head uint16, length uint32) {
	for _, s := range d.slots[head] {
		n := min(s.Len, length)
		if length -= n; n == 0 && len(d.iov) > 0 {
			break
		}
		v := unix.Iovec{Base: &d.p.f.Mem.base[s.Addr]}
		v.SetLen(int(n))
		d.iov = append(d.iov, v)
	}
	d.held = append(d.held, d.slots[head])
}

// write gives the frame to the tap, or to who puts it together with others.
func (d *down) write(first []byte) {
	valid := first[0]&(packet.OffloadDataValid|packet.OffloadNeedsChecksum) != 0
	if d.m != nil && len(d.iov) == 1 && first[1] == packet.GSONone {
		d.m.Take(first[d.p.hdr:], valid)
		return
	}
	if d.m != nil {
		d.m.Flush()
	}
	if first[0]&(packet.OffloadDataValid|packet.OffloadNeedsChecksum) == packet.OffloadDataValid {
		vouch(first, d.p.hdr)
	}
	// A frame that the tap refuses is a lost one.
	_, _, _ = unix.RawSyscall(unix.SYS_WRITEV, uintptr(d.tap), uintptr(unsafe.Pointer(unsafe.SliceData(d.iov))), uintptr(len(d.iov)))
}

// vouch says of a frame whose checksum need not be verified that it is to be
// computed: a tap does not take the device's word, but believes its own kernel.
func vouch(b []byte, hdr int) {
	frame := b[hdr:]
	start, field := 0, 0
	proto := byte(0)
	switch {
	case len(frame) >= 54 && frame[12] == 8 && frame[13] == 0:
		start, proto = 14+int(frame[14]&15)*4, frame[23]
	case len(frame) >= 54 && frame[12] == 0x86 && frame[13] == 0xdd:
		start, proto = 54, frame[20]
	}
	switch proto {
	case packet.ProtoTCP:
		field = 16
	case packet.ProtoUDP:
		field = 6
	default:
		return
	}
	b[0] = packet.OffloadNeedsChecksum
	binary.NativeEndian.PutUint16(b[6:], uint16(start))
	binary.NativeEndian.PutUint16(b[8:], uint16(field))
}

// offload is the header as it lies before a frame.
func offload(b []byte) packet.Offload {
	return packet.Offload{Flags: b[0], GSOType: b[1], HdrLen: binary.NativeEndian.Uint16(b[2:]), GSOSize: binary.NativeEndian.Uint16(b[4:]),
		CsumStart: binary.NativeEndian.Uint16(b[6:]), CsumOffset: binary.NativeEndian.Uint16(b[8:])}
}

func wait(events int16, fd int) {
	p := unix.PollFd{Fd: int32(fd), Events: events}
	_, _, _ = unix.RawSyscall6(unix.SYS_PPOLL, uintptr(unsafe.Pointer(&p)), 1, 0, 0, 0, 0)
}
