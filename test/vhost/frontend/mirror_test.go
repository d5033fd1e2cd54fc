// SPDX-License-Identifier: Apache-2.0

package frontend

import (
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"sync/atomic"
	"unsafe"

	"golang.org/x/sys/unix"
)

// mirror is a back-end that gives each sent frame back on the same queue pair. It
// follows the standards word by word, and no speed is looked for.
type mirror struct {
	*Conn
	offered  uint64
	discard  bool // give nothing back
	features uint64
	regions  []mirrorRegion
	rings    [32]mirrorRing
	stop     int // event descriptor
	done     chan error
	bytes    atomic.Int64 // sent by the guest
	holds    int          // used entries that are held back, and told by one: in order
}

type mirrorRegion struct {
	guest, size, user uint64
	mem               []byte
}

type mirrorRing struct {
	size              uint32
	desc, avail, used []byte
	kick, call        int
	next, told        uint16
	held              []uint32
	ready             bool
}

// newMirror returns the back-end's end of a pair at work, and ours.
func newMirror(offered uint64) (*mirror, *Conn, error) {
	c, file, err := Pair()
	if err != nil {
		return nil, nil, err
	}
	back, err := FileConn(file)
	if err != nil {
		return nil, nil, err
	}
	m := &mirror{Conn: back, offered: offered, done: make(chan error, 1)}
	m.stop, err = unix.Eventfd(0, unix.EFD_CLOEXEC|unix.EFD_NONBLOCK)
	for i := range m.rings {
		m.rings[i].kick, m.rings[i].call = -1, -1
	}
	return m, c, err
}

// serve answers until the front-end closes.
func (m *mirror) serve() error {
	m.Timeout = 1 << 40
	for {
		msg, err := m.Receive()
		if err != nil {
			return nil
		}
		reply, own, err := m.handle(msg)
		if err != nil {
			return fmt.Errorf("request %d: %w", msg.Request, err)
		}
		if !own && msg.Flags&FlagNeedReply == 0 {
			continue
		}
		if !own {
			reply = U64(0)
		}
		if err := m.Send(msg.Request, FlagReply, reply); err != nil {
			return err
		}
	}
}

func (m *mirror) handle(msg *Message) (reply []byte, own bool, err error) {
	ring := func() *mirrorRing { return &m.rings[msg.Payload[0]] }
	number := func() uint32 { return binary.LittleEndian.Uint32(msg.Payload[4:]) }
	switch msg.Request {
	case GetFeatures:
		return U64(m.offered), true, nil
	case SetFeatures:
		m.features = msg.U64()
	case GetProtocolFeatures:
		return U64(AllProtocol), true, nil
	case GetQueueNum:
		return U64(16), true, nil
	case AddMemReg:
		err = m.add(msg.Payload[8:], msg.FDs)
	case SetMemTable:
		for i := range binary.LittleEndian.Uint32(msg.Payload) {
			err = errors.Join(err, m.add(msg.Payload[8+32*i:], msg.FDs[i:]))
		}
	case SetVringNum:
		ring().size = number()
	case SetVringBase:
		ring().next, ring().told = uint16(number()), uint16(number())
	case SetVringAddr:
		r := ring()
		at := func(i int) []byte { return m.user(binary.LittleEndian.Uint64(msg.Payload[8+8*i:])) }
		r.desc, r.used, r.avail = at(0), at(1), at(2)
	case SetVringKick:
		ring().kick = msg.FDs[0]
	case SetVringCall:
		ring().call = msg.FDs[0]
	case SetVringEnable:
		if r := ring(); !r.ready {
			r.ready = true
			if msg.Payload[0]%2 == 1 {
				go func() { m.done <- m.work(&m.rings[msg.Payload[0]-1], r) }()
			}
		}
	case GetVringBase:
		return U32s(uint32(msg.Payload[0]), uint32(ring().next)), true, nil
	}
	return nil, false, err
}

func (m *mirror) add(b []byte, fds []int) error {
	r := mirrorRegion{guest: binary.LittleEndian.Uint64(b), size: binary.LittleEndian.Uint64(b[8:]), user: binary.LittleEndian.Uint64(b[16:])}
	var err error
	r.mem, err = unix.Mmap(fds[0], int64(binary.LittleEndian.Uint64(b[24:])), int(r.size), unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	m.regions = append(m.regions, r)
	return err
}

func (m *mirror) user(a uint64) []byte {
	for _, r := range m.regions {
		if a >= r.user && a-r.user < r.size {
			return r.mem[a-r.user:]
		}
	}
	return nil
}

// guest is memory at a guest's address, up to n bytes of it.
func (m *mirror) guest(a, n uint64) []byte {
	for _, r := range m.regions {
		if a >= r.guest && a-r.guest < r.size {
			return r.mem[a-r.guest : min(a-r.guest+n, r.size)]
		}
	}
	return nil
}

func word(b []byte) *uint32 { return (*uint32)(unsafe.Pointer(&b[0])) }

// pop takes the next chain.
func (m *mirror) pop(r *mirrorRing) (head uint32, parts [][]byte, ok bool) {
	if uint16(atomic.LoadUint32(word(r.avail))>>16) == r.next {
		return 0, nil, false
	}
	head = uint32(binary.LittleEndian.Uint16(r.avail[4+2*(uint32(r.next)%r.size):]))
	r.next++
	table, at := r.desc, head
	for {
		d := table[16*at:]
		a, n, flags := binary.LittleEndian.Uint64(d), uint64(binary.LittleEndian.Uint32(d[8:])), binary.LittleEndian.Uint16(d[12:])
		if flags&DescIndirect != 0 {
			table, at = m.guest(a, n), 0
			continue
		}
		for n > 0 { // a buffer may cross into the next region
			b := m.guest(a, n)
			parts = append(parts, b)
			a, n = a+uint64(len(b)), n-uint64(len(b))
		}
		if flags&DescNext == 0 {
			return head, parts, true
		}
		at = uint32(binary.LittleEndian.Uint16(d[14:]))
	}
}

// use gives chains back, and calls if that is wanted.
func (m *mirror) use(r *mirrorRing, lengths []uint32, heads []uint32) {
	old := uint16(atomic.LoadUint32(word(r.used)) >> 16)
	at := old
	for i, h := range heads {
		e := r.used[4+8*(uint32(at)%r.size):]
		binary.LittleEndian.PutUint32(e, h)
		binary.LittleEndian.PutUint32(e[4:], lengths[i])
		at++
	}
	atomic.StoreUint32(word(r.used), uint32(at)<<16)
	m.call(r, old, at)
}

func (m *mirror) call(r *mirrorRing, old, at uint16) {
	if m.features&FEventIdx != 0 {
		event := uint16(atomic.LoadUint32(word(r.avail[4+2*r.size:])))
		if at-event-1 >= at-old {
			return
		}
	} else if atomic.LoadUint32(word(r.avail))&noInterrupt != 0 {
		return
	}
	_, _ = unix.Write(r.call, one)
}

// useBatch gives a transmit chain back: with holds, several by one entry.
func (m *mirror) useBatch(r *mirrorRing, head uint32) {
	if m.features&FInOrder == 0 || m.holds == 0 {
		m.use(r, []uint32{0}, []uint32{head})
		return
	}
	if r.held = append(r.held, head); len(r.held) <= m.holds && uint16(atomic.LoadUint32(word(r.avail))>>16) != r.next {
		return
	}
	old := uint16(atomic.LoadUint32(word(r.used)) >> 16)
	e := r.used[4+8*(uint32(old)%r.size):]
	binary.LittleEndian.PutUint32(e, head)
	at := old + uint16(len(r.held))
	r.held = r.held[:0]
	atomic.StoreUint32(word(r.used), uint32(at)<<16)
	m.call(r, old, at)
}

// work serves one queue pair until stop.
func (m *mirror) work(rx, tx *mirrorRing) error {
	for {
		head, parts, ok := m.pop(tx)
		if !ok {
			if stopped, err := m.sleep(tx); stopped || err != nil {
				return err
			}
			continue
		}
		var frame []byte
		for _, p := range parts {
			m.bytes.Add(int64(len(p)))
			if !m.discard {
				frame = append(frame, p...)
			}
		}
		m.useBatch(tx, head)
		if !m.discard {
			if stopped, err := m.give(rx, frame); stopped || err != nil {
				return err
			}
		}
	}
}

// give puts a frame into receive buffers.
func (m *mirror) give(rx *mirrorRing, frame []byte) (stopped bool, err error) {
	var heads, lengths []uint32
	var count []byte
	for len(frame) > 0 {
		head, parts, ok := m.pop(rx)
		if !ok {
			if stopped, err := m.sleep(rx); stopped || err != nil {
				return stopped, err
			}
			continue
		}
		if count == nil {
			count = parts[0][10:]
		}
		n := 0
		for _, p := range parts {
			k := copy(p, frame)
			frame, n = frame[k:], n+k
		}
		heads, lengths = append(heads, head), append(lengths, uint32(n))
		if len(frame) > 0 && m.features&FMrgRxbuf == 0 {
			return false, fmt.Errorf("%d bytes do not fit", len(frame))
		}
	}
	binary.LittleEndian.PutUint16(count, uint16(len(heads)))
	m.use(rx, lengths, heads)
	return false, nil
}

// sleep waits for a kick, which it asks for.
func (m *mirror) sleep(r *mirrorRing) (stopped bool, err error) {
	if m.features&FEventIdx != 0 {
		atomic.StoreUint32(word(r.used[4+8*r.size:]), uint32(r.next))
		if uint16(atomic.LoadUint32(word(r.avail))>>16) != r.next {
			return false, nil
		}
	}
	fds := []unix.PollFd{{Fd: int32(r.kick), Events: unix.POLLIN}, {Fd: int32(m.stop), Events: unix.POLLIN}}
	n, err := unix.Poll(fds, 10_000)
	if n == 0 && err == nil {
		return false, os.ErrDeadlineExceeded
	}
	var b [8]byte
	_, _ = unix.Read(r.kick, b[:])
	return fds[1].Revents != 0, nil
}
