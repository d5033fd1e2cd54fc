// SPDX-License-Identifier: Apache-2.0

package datagram

import (
	"syscall"

	"aldente/worker/flow"
	"aldente/worker/packet"
)

// Socket is a connected socket, as datagrams leave by it. It holds no pointers.
type Socket struct {
	FD      int32  // -1: there is none
	segment uint16 // UDP_SEGMENT as the socket has it
	single  uint16 // datagrams from this size on go alone; zero: none
	ttl     uint8  // as the socket has it, as class
	class   uint8
	cut     mayCut // as the socket has it
	v4      bool   // with cut: its family
	group   bool   // it leads to a group, whose time to live is another option
}

// mayCut says what the socket has the kernel do of what is longer than a path takes.
type mayCut uint8

const (
	asMade mayCut = iota // it cuts it, and has others not cut the rest
	cut                  // all may cut all
	notCut               // nobody cuts anything
)

// What is no longer than this is never cut, in bytes of payload, a header of ICMP's
// included: it makes no difference whether it may be. Linux takes no path of IPv4 for
// narrower than 552 bytes (net.ipv4.route.min_pmtu), and of IPv6 none is narrower than
// 1,280 (RFC 8200 section 5).
const (
	alwaysWhole4 = 512
	alwaysWhole6 = 1220
)

// What is longer than this, in bytes of UDP's payload, no Ethernet takes whole (1,500
// bytes with IPv4's or IPv6's header and UDP's).
const (
	ethernet4 = 1472
	ethernet6 = 1452
)

// NewSocket is a socket as the broker gives it. Datagrams of more than together bytes
// go alone, with zero those that a write has shown to need it.
func NewSocket(fd int32, together uint16) Socket {
	o := Socket{FD: fd, ttl: packet.DefaultTTL}
	if together != 0 {
		o.single = together + 1
	}
	return o
}

// groupTTL is the time to live of what is sent to a group, unless another is set.
const groupTTL = 1

// Group tells that the socket leads to an address of more than one receiver.
func (o *Socket) Group(to *packet.Addr) {
	if o.group = to.IsMulticast(); o.group {
		o.ttl = groupTTL
	}
}

// Cut is what may be written at once of data, datagrams of size bytes each, the
// last may be shorter: what one write takes, or a single one that goes alone.
func (o *Socket) Cut(data []byte, size int) (part []byte, alone bool) {
	if len(data) == 0 || size > MaxWrite || o.single != 0 && size >= int(o.single) {
		return data[:min(size, len(data))], true
	}
	return data[:min(len(data), size*min(MaxSegments, MaxWrite/size))], false
}

// WriterEnv is what a Writer asks of the lane.
type WriterEnv interface {
	flow.GatherWriter
	flow.Options
}

// Writer writes datagrams to the sockets of flows.
type Writer struct {
	env WriterEnv
	// Pending takes the errors off a flow's socket that earlier datagrams have
	// caused: a write that fails with one is tried again. Where the flow ends by
	// that, it sets Socket.FD to -1. Nil: nobody is to be told.
	Pending func(i uint32)
	// TooLong tells whether that has found a datagram that was too long for its path:
	// the one which fails with EMSGSIZE was that, and is not tried again. Nil where
	// Pending is.
	TooLong func() bool
	// CutsLong has the host cut what is too long for its path, though nobody may, if
	// no Ethernet takes it whole. The link of a guest takes 65,520 bytes, so its kernel
	// marks what it would cut itself behind another link, and the program never knows:
	// what is lost then would have arrived there. Who looks for the path's MTU is told
	// all the same, and asks for no more than Ethernet's in the first place.
	CutsLong bool
	// Failed is called for a datagram that could not be sent. Nil: nobody is to
	// be told.
	Failed func(i uint32, e syscall.Errno, data []byte)

	one [1][]byte
}

// NewWriter makes a writer.
func NewWriter(env WriterEnv) Writer { return Writer{env: env} }

// SetHeader gives a socket, with v4 one of IPv4, the time to live and traffic class
// of the datagrams that follow.
func (w *Writer) SetHeader(o *Socket, v4 bool, ttl, class uint8) {
	if o.ttl == ttl && o.class == class {
		return
	}
	optTTL, optClass := flow.OptionHopLimit, flow.OptionTrafficClass
	switch {
	case v4 && o.group:
		optTTL, optClass = flow.OptionGroupTTL, flow.OptionTOS
	case v4:
		optTTL, optClass = flow.OptionTTL, flow.OptionTOS
	case o.group:
		optTTL = flow.OptionGroupHops
	}
	if o.ttl != ttl {
		w.env.Option(o.FD, optTTL, int(ttl))
		o.ttl = ttl
	}
	if o.class != class {
		w.env.Option(o.FD, optClass, int(class))
		o.class = class
	}
}

// SetDF has the kernel treat a datagram of size bytes that follows as the guest has
// marked it: as one that nobody may cut, or that anybody may. It costs a call where a
// long one is marked otherwise than the one before, and nothing for short ones.
func (w *Writer) SetDF(o *Socket, v4, df bool, size int) {
	want, value := cut, flow.DiscoverNot
	if df {
		want, value = notCut, flow.DiscoverDo
	}
	option, short := flow.OptionDiscover6, alwaysWhole6
	if v4 {
		option, short = flow.OptionDiscover4, alwaysWhole4
	}
	if o.cut != want && size > short {
		w.env.Option(o.FD, option, value)
		o.cut, o.v4 = want, v4
	}
}

// ethernet is the longest datagram of the socket's family that Ethernet takes.
func (o *Socket) ethernet() int {
	if o.v4 {
		return ethernet4
	}
	return ethernet6
}

// Write writes what a batch holds to the socket of flow i, and empties it. It
// returns how many datagrams have left.
func (w *Writer) Write(i uint32, o *Socket, b *Batch) (sent int) {
	bufs, size, count := b.bufs[:b.n], b.size, b.count
	b.Reset()
	if count <= 1 {
		if count == 1 && w.WriteOne(i, o, bufs[0]) {
			return 1
		}
		return 0
	}
	e := syscall.EINVAL
	if w.setSegment(o, size) {
		e = w.write(i, o, bufs)
	}
	switch e {
	case 0:
		return count
	case syscall.EINVAL, syscall.EMSGSIZE, syscall.EIO:
		// Larger than the path's MTU, or a device that cannot: from now on
		// datagrams of this size go alone.
		if o.FD >= 0 {
			o.single = uint16(size)
			w.setSegment(o, 0)
		}
		return w.writeEach(i, o, bufs, size)
	}
	return 0
}

// writeEach writes datagram by datagram.
func (w *Writer) writeEach(i uint32, o *Socket, bufs [][]byte, size int) (sent int) {
	for _, b := range bufs {
		for len(b) > 0 && o.FD >= 0 {
			one := b[:min(size, len(b))]
			b = b[len(one):]
			if w.WriteOne(i, o, one) {
				sent++
			}
		}
	}
	return sent
}

// WriteOne writes one datagram to the socket of flow i. It reports whether it has
// left.
func (w *Writer) WriteOne(i uint32, o *Socket, data []byte) bool {
	if o.segment != 0 && len(data) > int(o.segment) {
		w.setSegment(o, 0) // or it would be cut
	}
	w.one[0] = data
	e := w.write(i, o, w.one[:])
	if (e == syscall.EINVAL || e == syscall.EMSGSIZE) && o.segment != 0 && o.FD >= 0 {
		// It would pass alone, or what is wrong with it is said only then: the kernel
		// has looked at the size of several.
		w.setSegment(o, 0)
		e = w.write(i, o, w.one[:])
	}
	if e == syscall.EMSGSIZE && w.CutsLong && o.cut == notCut && o.FD >= 0 && len(data) > o.ethernet() {
		w.SetDF(o, o.v4, false, len(data))
		e = w.write(i, o, w.one[:])
	}
	if e != 0 && o.FD >= 0 && w.Failed != nil {
		w.Failed(i, e, data)
	}
	return e == 0
}

// write writes one datagram or one batch. An error that an earlier datagram has
// caused is no reason not to send this one.
func (w *Writer) write(i uint32, o *Socket, bufs [][]byte) syscall.Errno {
	for again := true; ; again = false {
		var e syscall.Errno
		if len(bufs) == 1 { // writev would not send an empty datagram
			_, e = w.env.Write(o.FD, bufs[0])
		} else {
			_, e = w.env.Writev(o.FD, bufs)
		}
		switch e {
		case 0, syscall.EAGAIN, syscall.ENOBUFS, syscall.ENOMEM, syscall.EINVAL, syscall.EPERM:
			return e
		}
		if !again {
			return e
		}
		if w.Pending != nil {
			w.Pending(i)
		}
		if o.FD < 0 {
			return e
		}
		if e == syscall.EMSGSIZE && w.TooLong != nil && w.TooLong() {
			return e // it is this one, and would fail again
		}
	}
}

// setSegment sets UDP_SEGMENT, if it is not what it should be already.
func (w *Writer) setSegment(o *Socket, size int) bool {
	if int(o.segment) == size {
		return true
	}
	if w.env.Option(o.FD, flow.OptionUDPSegment, size) != 0 {
		return false
	}
	o.segment = uint16(size)
	return true
}
