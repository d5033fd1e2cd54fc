// SPDX-License-Identifier: Apache-2.0

package packet

import (
	"bytes"
	"encoding/binary"
)

// Bounds on reassembly.
const (
	// MaxReassembly is how many datagrams may be incomplete at a time.
	MaxReassembly = 64
	// ReassemblyKept is how many datagrams may be completed before the frame
	// of an earlier one is overwritten. It is not less than the datagrams
	// that one batch of frames can complete.
	ReassemblyKept = 128

	reassemblyTimeout4 = 30_000_000_000 // RFC 791 section 3.2 leaves it open
	reassemblyTimeout6 = 60_000_000_000 // RFC 8200 section 4.5

	// In a buffer, data start at headroom, with the headers right before
	// them: Ethernet, and 60 bytes of IPv4 or what Decode takes of
	// IPv6 with extension headers.
	headroom     = 640
	maxDatagram  = 65535
	reassemblySz = headroom + maxDatagram + 1
)

// ReassemblyStats counts datagrams, complete or not.
type ReassemblyStats struct {
	Completed  uint64 // returned whole
	Overlapped uint64 // given up because fragments contradicted each other
	TimedOut   uint64 // given up since the rest did not come
	Evicted    uint64 // given up for a newer one
}

// Reassembler puts fragmented IPv4 (RFC 791) and IPv6 (RFC 8200) packets
// together. Its memory is allocated once and touched as needed.
//
// Fragments that overlap end their datagram, in both families: nothing that
// arrives of it until its time is over is used (RFC 5722). An exact duplicate
// is no overlap.
type Reassembler struct {
	Stats ReassemblyStats // since NewReassembler

	sets [MaxReassembly]reassembly
	mem  []byte
	// free are buffers that nobody uses, the last one first. Those from high on
	// were never used. done are those with a frame that was returned at doneAt,
	// oldest first: nobody may overwrite them before the batch is over.
	free   []uint16
	high   uint16
	done   []uint16
	doneAt int64
}

const numBuffers = MaxReassembly + ReassemblyKept

// NewReassembler allocates all it will ever use.
func NewReassembler() *Reassembler {
	return &Reassembler{
		mem:  make([]byte, numBuffers*reassemblySz),
		free: make([]uint16, 0, numBuffers),
		done: make([]uint16, 0, numBuffers),
	}
}

// fragmentKey tells fragments of one datagram: RFC 791 section 3.2, with proto
// zero RFC 8200 section 4.5.
type fragmentKey struct {
	src, dst Addr
	id       uint32
	proto    uint8
}

// bitmap has a bit for each unit of eight bytes that a datagram can have.
type bitmap [(maxDatagram/8 + 1 + 63) / 64]uint64

func (b *bitmap) has(i int) bool { return b[i/64]>>(i%64)&1 != 0 }
func (b *bitmap) set(i int)      { b[i/64] |= 1 << (i % 64) }

// reassembly is one datagram of which not all fragments have come.
type reassembly struct {
	key     fragmentKey
	used    bool
	spoiled bool // overlap: absorbs fragments until its time is over
	buf     uint16
	expires int64
	hlen    int // of Ethernet and IP headers of the first fragment, 0: not here yet
	total   int // bytes of data, -1: last fragment not here yet
	end     int // highest end of any fragment
	units   int // of eight bytes that are here
	have    bitmap
	starts  bitmap // first units of fragments
}

// Reassemble takes a fragment (p.Fragment is set) at the monotonic time now, in
// nanoseconds, which is constant within a batch. When it was the last that was
// missing, the result is the whole packet in a frame, to be decoded again. The
// frame stays as it is until ReassemblyKept more have been returned, or until
// Reassemble was called with a later now.
func (r *Reassembler) Reassemble(p *Packet, now int64) (frame []byte, ok bool) {
	if now != r.doneAt {
		r.free = append(r.free, r.done...)
		r.done = r.done[:0]
		r.doneAt = now
	}
	k := fragmentKey{src: p.Src, dst: p.Dst, id: p.FragID}
	if p.IPVersion == 4 {
		k.proto = p.Proto
	}
	s := r.find(&k, p.IPVersion, now)
	if s.spoiled {
		return nil, false
	}
	data := p.Payload()
	if len(data) == 0 || p.FragOffset+len(data) > maxDatagram {
		return nil, false // Decode lets none of these through
	}
	buf := r.bytes(s.buf)
	switch s.place(p.FragOffset, data, p.MoreFragments, buf) {
	case placeDuplicate:
		return nil, false
	case placeOverlap:
		r.spoil(s)
		return nil, false
	}
	copy(buf[headroom+p.FragOffset:], data)
	if p.FragOffset == 0 && !s.keepHeaders(p, buf) {
		r.spoil(s)
		return nil, false
	}
	if s.total < 0 || s.units != (s.total+7)/8 {
		return nil, false
	}
	return r.finish(s, p.IPVersion, buf)
}

// find returns the set of fragments with this key, a new one if there is none.
func (r *Reassembler) find(k *fragmentKey, version uint8, now int64) *reassembly {
	var spare *reassembly
	for i := range r.sets {
		s := &r.sets[i]
		if s.used && s.expires <= now {
			if !s.spoiled {
				r.Stats.TimedOut++
			}
			r.release(s)
		}
		switch {
		case s.used && s.key == *k:
			return s
		case spare == nil, !s.used && spare.used, s.used && spare.used && s.expires < spare.expires:
			spare = s
		}
	}
	if spare.used {
		if !spare.spoiled { // that one was counted
			r.Stats.Evicted++
		}
		r.release(spare)
	}
	timeout := int64(reassemblyTimeout6)
	if version == 4 {
		timeout = reassemblyTimeout4
	}
	*spare = reassembly{key: *k, used: true, expires: now + timeout, total: -1, buf: r.buffer()}
	return spare
}

// buffer takes one that is free. There always is one: at most MaxReassembly
// are in use by sets, the others are free, untouched or done.
func (r *Reassembler) buffer() uint16 {
	if n := len(r.free); n > 0 {
		b := r.free[n-1]
		r.free = r.free[:n-1]
		return b
	}
	if r.high < numBuffers {
		r.high++
		return r.high - 1
	}
	b := r.done[0]
	r.done = r.done[:copy(r.done, r.done[1:])]
	return b
}

func (r *Reassembler) bytes(b uint16) []byte {
	return r.mem[int(b)*reassemblySz : (int(b)+1)*reassemblySz]
}

func (r *Reassembler) release(s *reassembly) {
	if !s.spoiled {
		r.free = append(r.free, s.buf)
	}
	s.used = false
}

// spoil gives a datagram up, but remembers its key.
func (r *Reassembler) spoil(s *reassembly) {
	r.Stats.Overlapped++
	r.free = append(r.free, s.buf)
	s.spoiled = true
}

type placement uint8

const (
	placeNew placement = iota
	placeDuplicate
	placeOverlap
)

// place notes that a fragment covers its range, if nothing did before.
func (s *reassembly) place(off int, data []byte, more bool, buf []byte) placement {
	end := off + len(data)
	first, last := off/8, (end-1)/8
	covered, begun := 0, 0
	for u := first; u <= last; u++ {
		if s.have.has(u) {
			covered++
		}
		if s.starts.has(u) {
			begun++
		}
	}
	switch {
	case covered == 0:
	case s.isDuplicate(off, end, more, covered, begun) && bytes.Equal(buf[headroom+off:headroom+end], data):
		return placeDuplicate
	default:
		return placeOverlap
	}
	if s.total >= 0 && end > s.total || !more && s.end > end {
		return placeOverlap // there is data behind the last fragment
	}
	if !more {
		s.total = end
	}
	s.end = max(s.end, end)
	s.units += last - first + 1
	s.starts.set(first)
	for u := first; u <= last; u++ {
		s.have.set(u)
	}
	return placeNew
}

// isDuplicate tells whether a fragment of exactly this range has come. Then all
// of the range is covered, a fragment begins where it begins and none within it,
// and what is behind it belongs to another fragment or to none.
func (s *reassembly) isDuplicate(off, end int, more bool, covered, begun int) bool {
	first, last := off/8, (end-1)/8
	if covered != last-first+1 || begun != 1 || !s.starts.has(first) {
		return false
	}
	if !more {
		return s.total == end
	}
	return s.total != end && (!s.have.has(last+1) || s.starts.has(last+1))
}

// keepHeaders copies the headers of the first fragment before the data, as
// those of the whole packet but for its length. It reports false if they are
// too long.
func (s *reassembly) keepHeaders(p *Packet, buf []byte) bool {
	s.hlen = p.L4
	if p.IPVersion == 6 {
		s.hlen = p.L3 + p.FragUnfragLen
	}
	if s.hlen > headroom || s.hlen < p.L3+20 {
		return false
	}
	at := headroom - s.hlen
	copy(buf[at:headroom], p.Frame)
	if p.IPVersion == 6 {
		buf[at+p.FragNext] = p.Proto
	}
	return true
}

// finish makes the frame of a datagram that is complete.
func (r *Reassembler) finish(s *reassembly, version uint8, buf []byte) ([]byte, bool) {
	frame := buf[headroom-s.hlen : headroom+s.total : headroom+s.total]
	ip := frame[EthernetLen:s.hlen]
	length := len(ip) + s.total // IPv4: with the header
	if version == 6 {
		length -= 40 // IPv6: without the fixed part of it
	}
	if length > maxDatagram {
		r.spoil(s)
		return nil, false
	}
	if version == 4 {
		binary.BigEndian.PutUint16(ip[2:], uint16(length))
		binary.BigEndian.PutUint16(ip[6:], 0) // flags and offset
		binary.BigEndian.PutUint16(ip[10:], 0)
		binary.BigEndian.PutUint16(ip[10:], Checksum(ip))
	} else {
		binary.BigEndian.PutUint16(ip[4:], uint16(length))
	}
	r.Stats.Completed++
	r.done = append(r.done, s.buf)
	s.used = false
	return frame, true
}
