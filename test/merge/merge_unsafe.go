// SPDX-License-Identifier: Apache-2.0

// Package merge puts TCP segments that follow one another into super-frames for a
// tap, as the kernel's GRO does for network cards: for stand-ins whose guest is the
// kernel behind that tap.
package merge

import (
	"encoding/binary"
	"unsafe"

	"golang.org/x/sys/unix"

	"aldente/worker/packet"
)

// maxFrame bounds a super-frame, in bytes.
const maxFrame = 65535

// maxHeader is the longest header before a frame of a tap.
const maxHeader = 12

// maxMerged bounds the segments of a super-frame.
const maxMerged = 64

// Merger holds segments until one comes that does not follow.
type Merger struct {
	tap     int
	pkt     packet.Packet
	seg     packet.TCP
	vnet    [maxHeader]byte
	hdr     int // bytes of vnet that the tap takes
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
	valid   bool // not verified here
	version uint8
}

// New returns one for a tap with so many bytes of header before each frame.
func New(tap, header int) *Merger { return &Merger{tap: tap, hdr: header} }

// Take sends the frame, or holds it for those that follow. Held payload stays
// where it is until Flush. valid says that the checksum need not be verified.
func (m *Merger) Take(frame []byte, valid bool) {
	p := &m.pkt
	if p.Decode(frame) != nil || p.Proto != packet.ProtoTCP || p.Fragment || m.seg.Decode(p.Payload()) != nil || !valid && !p.ChecksumOK(nil) {
		m.Flush()
		m.vouch(valid)
		m.write(frame) // otherwise the guest's kernel may judge it
		return
	}
	s := &m.seg
	if len(s.Payload) == 0 || s.Flags&^(packet.ACK|packet.PSH) != 0 {
		m.Flush()
		m.vouch(valid)
		m.write(frame)
		return
	}
	hlen := p.End - len(s.Payload)
	if m.parts > 0 && !m.follows(frame, hlen) {
		m.Flush()
	}
	if m.parts == 0 {
		copy(m.head[:], frame[:hlen])
		m.hlen, m.l3, m.l4, m.size, m.total = hlen, p.L3, p.L4, len(s.Payload), 0
		m.version, m.src, m.dst = p.IPVersion, p.Src, p.Dst
	}
	m.head[m.l4+13] |= s.Flags & packet.PSH
	m.valid = valid
	m.closed = len(s.Payload) < m.size || s.Flags&packet.PSH != 0
	m.total += len(s.Payload)
	m.next = s.Seq + uint32(len(s.Payload))
	v := &m.iov[2+m.parts]
	v.Base = unsafe.SliceData(s.Payload)
	v.SetLen(len(s.Payload))
	m.parts++
}

// vouch says of a segment with a right checksum that it is so. Of one that was not
// verified it says that the checksum is to be computed: a tap does not take
// another's word, but believes its own kernel.
func (m *Merger) vouch(valid bool) {
	if !valid {
		m.vnet[0] = packet.OffloadDataValid
		return
	}
	field := uint16(16) // of TCP
	switch {
	case m.pkt.Fragment || m.pkt.Proto != packet.ProtoTCP && m.pkt.Proto != packet.ProtoUDP:
		return
	case m.pkt.Proto == packet.ProtoUDP:
		field = 6
	}
	m.vnet[0] = packet.OffloadNeedsChecksum
	binary.NativeEndian.PutUint16(m.vnet[6:], uint16(m.pkt.L4))
	binary.NativeEndian.PutUint16(m.vnet[8:], field)
}

// follows tells whether a segment belongs to those held: same headers but for
// what counts up.
func (m *Merger) follows(frame []byte, hlen int) bool {
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

// Flush writes what is held.
func (m *Merger) Flush() {
	if m.parts == 0 {
		return
	}
	h := m.head[:m.hlen]
	if m.parts == 1 {
		m.pkt.L4, m.pkt.Proto = m.l4, packet.ProtoTCP // of the one that is held
		m.vouch(m.valid)
	} else {
		m.describe(h)
	}
	m.iov[1].Base = unsafe.SliceData(h)
	m.iov[1].SetLen(len(h))
	m.writev(2 + m.parts)
	m.parts = 0
}

// describe makes the headers those of a super-frame.
func (m *Merger) describe(h []byte) {
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

// write sends one frame behind the header in vnet.
func (m *Merger) write(frame []byte) {
	m.iov[1].Base = unsafe.SliceData(frame)
	m.iov[1].SetLen(len(frame))
	m.writev(2)
}

func (m *Merger) writev(n int) {
	m.iov[0].Base = &m.vnet[0]
	m.iov[0].SetLen(m.hdr)
	// A frame that the tap refuses is a lost one.
	_, _, _ = unix.RawSyscall(unix.SYS_WRITEV, uintptr(m.tap), uintptr(unsafe.Pointer(&m.iov)), uintptr(n))
	m.vnet = [maxHeader]byte{}
}
