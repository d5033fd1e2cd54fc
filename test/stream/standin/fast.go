// SPDX-License-Identifier: Apache-2.0

package standin

import (
	"encoding/binary"
	"fmt"
	"runtime"
	"unsafe"

	"golang.org/x/sys/unix"

	"aldente/worker/link"
	"aldente/worker/packet"
)

// What the tap of a fast stand-in takes over from the guest's kernel, and does
// as a virtual machine's kernel does it in software: segments are cut and
// checksums computed here, verified and put together here.
const (
	tapFlags   = unix.IFF_TAP | unix.IFF_NO_PI | unix.IFF_VNET_HDR
	tapOffload = unix.TUN_F_CSUM | unix.TUN_F_TSO4 | unix.TUN_F_TSO6
)

// fastUpward cuts what the guest's kernel left whole.
func fastUpward(tap, stream, mtu int) error {
	runtime.LockOSThread()
	from, to := link.NewTap(int32(tap), tapOffload), link.NewStream(int32(stream), mtu)
	b := link.NewBatch()
	for {
		more, err := from.Receive(b)
		if err != nil {
			return fmt.Errorf("tap: %w", err)
		}
		for i := range b.Frames {
			f := &b.Frames[i]
			n := headers(f)
			to.Send(&f.Offload, f.Data[:n], f.Data[n:])
			if err := drain(to); err != nil {
				return err
			}
		}
		if err := to.Flush(); err != nil {
			return fmt.Errorf("stream: %w", err)
		}
		if err := drain(to); err != nil {
			return err
		}
		if !more && len(b.Frames) == 0 {
			wait(tap, unix.POLLIN)
		}
	}
}

// headers is the length of the headers of a TCP segment that is to be summed,
// or that of the whole frame: what comes behind is not copied.
func headers(f *link.Frame) int {
	o := &f.Offload
	at := int(o.CsumStart) + 12 // data offset, RFC 9293 section 3.1
	if o.Flags&packet.OffloadNeedsChecksum == 0 || o.CsumOffset != 16 || at >= len(f.Data) {
		return len(f.Data)
	}
	return min(int(o.CsumStart)+int(f.Data[at]>>4)*4, len(f.Data))
}

// drain waits until the stream has taken everything.
func drain(to link.Link) error {
	for to.WantWrite() {
		wait(int(to.FD()), unix.POLLOUT)
		to.Writable()
	}
	if err := to.Flush(); err != nil {
		return fmt.Errorf("stream: %w", err)
	}
	return nil
}

func wait(fd int, events int16) {
	_, _ = unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: events}}, -1)
}

// maxMerged bounds the segments of a super-frame.
const maxMerged = 64

// merger puts TCP segments that follow one another into super-frames for a
// tap, as the kernel's GRO does for network cards.
type merger struct {
	tap     int
	plain   bool // the tap takes no header, and nothing is merged
	pkt     packet.Packet
	seg     packet.TCP
	vnet    [packet.OffloadSize]byte
	head    [packet.MaxHeaders]byte
	iov     [2 + maxMerged]unix.Iovec
	parts   int    // segments held
	size    int    // payload of each but the last
	total   int    // payload held
	hlen    int    // of all headers
	l3, l4  int    // offsets of headers
	next    uint32 // sequence number that would follow
	src     packet.Addr
	dst     packet.Addr
	closed  bool // nothing may follow
	version uint8
}

// take sends the frame, or holds it for those that follow. Held payload stays
// where it is until flush.
func (m *merger) take(frame []byte) {
	p := &m.pkt
	if p.Decode(frame) != nil || p.Proto != packet.ProtoTCP || p.Fragment || m.seg.Decode(p.Payload()) != nil || !p.ChecksumOK(nil) {
		m.flush()
		m.write(frame) // the guest's kernel may judge it
		return
	}
	s := &m.seg
	if len(s.Payload) == 0 || s.Flags&^(packet.ACK|packet.PSH) != 0 {
		m.flush()
		m.vnet[0] = packet.OffloadDataValid
		m.write(frame)
		return
	}
	hlen := p.End - len(s.Payload)
	if m.parts > 0 && !m.follows(frame, hlen) {
		m.flush()
	}
	if m.parts == 0 {
		copy(m.head[:], frame[:hlen])
		m.hlen, m.l3, m.l4, m.size, m.total = hlen, p.L3, p.L4, len(s.Payload), 0
		m.version, m.src, m.dst = p.IPVersion, p.Src, p.Dst
	}
	m.head[m.l4+13] |= s.Flags & packet.PSH
	m.closed = len(s.Payload) < m.size || s.Flags&packet.PSH != 0
	m.total += len(s.Payload)
	m.next = s.Seq + uint32(len(s.Payload))
	v := &m.iov[2+m.parts]
	v.Base = unsafe.SliceData(s.Payload)
	v.SetLen(len(s.Payload))
	m.parts++
}

// follows tells whether a segment belongs to those held: same headers but for
// what counts up.
func (m *merger) follows(frame []byte, hlen int) bool {
	s := &m.seg
	if m.closed || m.parts == maxMerged || hlen != m.hlen || s.Seq != m.next || len(s.Payload) > m.size ||
		m.hlen+m.total+len(s.Payload) > maxFrame {
		return false
	}
	a, b := m.head[:m.hlen], frame[:hlen]
	l4 := m.l4
	// Addresses; ports; acknowledgment; window and options.
	if string(a[:14]) != string(b[:14]) || string(a[l4:l4+4]) != string(b[l4:l4+4]) ||
		string(a[l4+8:l4+12]) != string(b[l4+8:l4+12]) || string(a[l4+14:l4+16]) != string(b[l4+14:l4+16]) ||
		string(a[l4+20:]) != string(b[l4+20:]) {
		return false
	}
	if m.version == 4 {
		return string(a[m.l3+12:l4]) == string(b[m.l3+12:l4])
	}
	return string(a[m.l3+8:l4]) == string(b[m.l3+8:l4])
}

// flush writes what is held.
func (m *merger) flush() {
	if m.parts == 0 {
		return
	}
	h := m.head[:m.hlen]
	if m.parts == 1 {
		m.vnet[0] = packet.OffloadDataValid
	} else {
		m.describe(h)
	}
	m.iov[1].Base = unsafe.SliceData(h)
	m.iov[1].SetLen(len(h))
	m.writev(2 + m.parts)
	m.parts = 0
}

// describe makes the headers those of a super-frame.
func (m *merger) describe(h []byte) {
	kind := uint8(packet.GSOTCPv6)
	if m.version == 4 {
		kind = packet.GSOTCPv4
		binary.BigEndian.PutUint16(h[m.l3+2:], uint16(m.hlen-m.l3+m.total))
		binary.BigEndian.PutUint16(h[m.l3+10:], 0)
		binary.BigEndian.PutUint16(h[m.l3+10:], packet.Checksum(h[m.l3:m.l4]))
	} else {
		binary.BigEndian.PutUint16(h[m.l3+4:], uint16(m.hlen-m.l3-40+m.total))
	}
	binary.BigEndian.PutUint16(h[m.l4+16:], packet.Fold(packet.PseudoSum(&m.src, &m.dst, packet.ProtoTCP, m.hlen-m.l4+m.total)))
	m.vnet[0], m.vnet[1] = packet.OffloadNeedsChecksum, kind
	for i, v := range []int{m.hlen, m.size, m.l4, 16} {
		binary.NativeEndian.PutUint16(m.vnet[2+2*i:], uint16(v))
	}
}

// write sends one frame, behind the header in vnet where the tap has one.
func (m *merger) write(frame []byte) {
	if m.plain {
		_, _ = call(unix.SYS_WRITE, m.tap, frame) // a refused frame is a lost one
		return
	}
	m.iov[1].Base = unsafe.SliceData(frame)
	m.iov[1].SetLen(len(frame))
	m.writev(2)
}

func (m *merger) writev(n int) {
	m.iov[0].Base = &m.vnet[0]
	m.iov[0].SetLen(len(m.vnet))
	// A frame that the tap refuses is a lost one.
	_, _, _ = unix.RawSyscall(unix.SYS_WRITEV, uintptr(m.tap), uintptr(unsafe.Pointer(&m.iov)), uintptr(n))
	m.vnet = [packet.OffloadSize]byte{}
}
