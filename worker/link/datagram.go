// SPDX-License-Identifier: Apache-2.0

package link

import (
	"encoding/binary"

	"golang.org/x/sys/unix"

	"aldente/worker/packet"
)

const (
	// maxMessages is how many messages are asked for at a time at most. Each has
	// memory for the longest frame, which is touched only as far as it is used.
	maxMessages = 64
	minMessages = 4
	messageSlot = (maxReceived + 4096) &^ 4095 // more than the longest: what is cut off shows
	// manyBytes and fewBytes of one call are a reason to ask for fewer, or for more:
	// a turn is to take as much as of other links, and no more.
	manyBytes = 256 << 10
	fewBytes  = 64 << 10
)

// hello is what vfkit and libkrun may send before the first frame, so that whoever
// waits on an unconnected socket learns their address.
const hello = "VFKT"

// datagram is a connected UNIX socket, SOCK_DGRAM or SOCK_SEQPACKET, of which each
// message is a frame, without offload metadata.
//
// Messages are received many at a time. Each is sent by a call of its own: sendmmsg
// would spare calls, but it also names destinations, and so our list of system calls
// has it not. Once the kernel takes no more (blocked), frames wait in the backlog, as
// long as they fit.
type datagram struct {
	fd       int32
	mtu      int
	blocked  bool
	err      error // once set, nothing is read or written any more
	counters Counters
	none     packet.Offload
	backlog
	cut     cutter
	iov     [3]unix.Iovec
	scratch []byte // headers of what is sent, where their checksum is filled in

	ask   int    // messages to ask for
	empty uint64 // empty messages of the last call: where it is the end, they are none
	slots []byte
	vecs  [maxMessages]unix.Iovec
	msgs  [maxMessages]message
}

// message is struct mmsghdr.
type message struct {
	unix.Msghdr
	n uint32
}

var padding [minWire]byte

// NewDatagram returns the link of a connected UNIX socket that keeps the bounds of
// messages. mtu is that of the guest's interface, in bytes of IP packet; TCP
// super-frames are cut to it. last is the link before, closed, whose memory may serve
// this one; or nil.
func NewDatagram(last Link, fd int32, mtu int) Link {
	s, ok := last.(*datagram)
	if !ok {
		s = &datagram{backlog: newBacklog(), scratch: make([]byte, MaxFrame), slots: make([]byte, maxMessages*messageSlot)}
		for k := range s.msgs {
			iovec(&s.vecs[k], s.slot(k))
			s.msgs[k].Iov = &s.vecs[k]
			s.msgs[k].SetIovlen(1)
		}
	}
	s.fd, s.mtu, s.blocked, s.err, s.counters = fd, mtu, false, nil, Counters{}
	s.backlog, s.ask, s.empty = s.emptied(), minMessages, 0
	return s
}

func (s *datagram) slot(k int) []byte   { return s.slots[k*messageSlot:][:messageSlot:messageSlot] }
func (s *datagram) FD() int32           { return s.fd }
func (s *datagram) CanSend() bool       { return !s.blocked && s.err == nil }
func (s *datagram) WantWrite() bool     { return s.blocked && s.err == nil }
func (s *datagram) Counters() *Counters { return &s.counters }
func (s *datagram) Flush() error        { return s.err }
func (s *datagram) Writable() bool      { return s.err == nil && s.drain() }

func (s *datagram) Close() {
	if s.err == nil {
		s.err = ErrClosed
	}
	closeFD(s.fd)
}

// Receive takes as many messages as there are, within bounds.
func (s *datagram) Receive(b *Batch) (more bool, err error) {
	b.reset()
	if s.err != nil {
		return false, s.err
	}
	s.counters.Malformed += s.empty
	s.empty = 0
	n, e := recvmmsg(s.fd, s.msgs[:s.ask])
	switch e {
	case 0:
	case unix.EAGAIN, unix.ENOMEM, unix.ENOBUFS:
		return false, nil
	default:
		s.err = ended(e)
		return false, s.err
	}
	bytes := 0
	for k := range n {
		m := &s.msgs[k]
		bytes += int(m.n)
		s.accept(b, s.slot(k)[:min(int(m.n), messageSlot)], m.Flags&unix.MSG_TRUNC != 0)
	}
	// At the end of a SOCK_SEQPACKET each message is empty, and there is always one
	// more. The descriptor says so, too.
	all := n == s.ask && s.msgs[n-1].n > 0
	switch {
	case bytes > manyBytes:
		s.ask = max(s.ask/2, minMessages)
	case all && bytes < fewBytes:
		s.ask = min(s.ask*2, maxMessages)
	}
	return all, nil
}

// accept adds a message to the batch if it is a frame.
func (s *datagram) accept(b *Batch, data []byte, cut bool) {
	switch {
	case len(data) == 0:
		s.empty++
	case string(data) == hello:
	case len(data) < MinFrame || len(data) > maxReceived || cut:
		s.counters.Malformed++
	default:
		b.add(data[:len(data):len(data)]).Offload.Flags = packet.OffloadUntold
		s.counters.Received++
		s.counters.ReceivedBytes += uint64(len(data))
	}
}

// Send sends the frame at once, or keeps it for a peer that takes no more now.
func (s *datagram) Send(o *packet.Offload, headers, payload []byte) bool {
	if s.err != nil {
		s.counters.Dropped++
		return false
	}
	if o == nil {
		o = &s.none
	}
	if o.GSOType != packet.GSONone {
		return s.sendSuper(o, headers, payload)
	}
	if size := len(headers) + len(payload); size < MinFrame || size > MaxFrame {
		s.counters.Refused++
		return false
	}
	if o.Flags&packet.OffloadNeedsChecksum != 0 {
		headers = s.scratch[:copy(s.scratch, headers)]
		if !complete(headers, payload, o) {
			s.counters.Refused++
			return false
		}
	}
	return s.put(headers, payload)
}

// sendSuper cuts a super-frame. When the peer does not read, either all segments fit
// the queue or none is sent.
func (s *datagram) sendSuper(o *packet.Offload, headers, payload []byte) bool {
	c := &s.cut
	if !c.start(o, headers, payload, s.mtu) {
		s.counters.Refused++
		return false
	}
	if s.blocked && c.wireSize(prefixLen) > queueSize-(s.tail-s.head) {
		s.counters.Dropped += uint64(c.segments())
		return false
	}
	ok := true
	for c.more() {
		payload := c.next(s.scratch)
		ok = s.put(s.scratch[:c.hlen], payload) && ok
		if s.err != nil {
			s.counters.Dropped += uint64(c.segments())
			return false
		}
	}
	return ok
}

// put sends a frame whose checksum is complete. It reports false if it is lost.
func (s *datagram) put(headers, payload []byte) bool {
	size := len(headers) + len(payload)
	if !s.blocked {
		n := 2
		iovec(&s.iov[0], headers)
		iovec(&s.iov[1], payload)
		if size < minWire {
			iovec(&s.iov[2], padding[size:])
			n++
		}
		_, e := writev(s.fd, s.iov[:n])
		if e == 0 {
			s.counters.Sent++
			s.counters.SentBytes += uint64(size)
			return true
		}
		if !s.waits(e) {
			if s.err == nil {
				s.counters.Refused++ // longer than the send buffer
			} else {
				s.counters.Dropped++
			}
			return false
		}
		s.blocked = true
	}
	b := s.frame(size, &s.counters)
	if b == nil {
		return false
	}
	copy(b[copy(b, headers):], payload)
	return true
}

// waits tells whether a frame that was not sent for e can be later. If it cannot, and
// the link has not ended, it is longer than the send buffer.
func (s *datagram) waits(e unix.Errno) bool {
	switch e {
	case unix.EAGAIN, unix.ENOBUFS, unix.ENOMEM:
		return true
	case unix.EMSGSIZE:
		return false
	}
	s.err = ended(e)
	s.backlog = s.emptied()
	return false
}

// drain sends what waits. It reports true if nothing is left.
func (s *datagram) drain() bool {
	for s.tail > s.head {
		size := int(binary.BigEndian.Uint32(s.queue[s.head:]))
		frame := s.queue[s.head+prefixLen:][:size]
		if _, e := write(s.fd, frame); e != 0 {
			if s.waits(e) || s.err != nil {
				return false
			}
			s.counters.Sent--
			s.counters.SentBytes -= uint64(size)
			s.counters.Refused++
		}
		s.head += prefixLen + size
	}
	s.backlog, s.blocked = s.emptied(), false
	return true
}
