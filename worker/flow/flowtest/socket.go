// SPDX-License-Identifier: Apache-2.0

package flowtest

import (
	"syscall"
	"time"

	"aldente/worker/flow"
	"aldente/worker/packet"
)

// Write is one write to a socket.
type Write struct {
	Data          []byte // what was written
	Segment       int    // UDP_SEGMENT when it was written, 0: off
	TTL, TOS, Hop int    // options when it was written, 0: never set
}

// Conn is a connection that waits to be accepted.
type Conn struct {
	Socket *Socket     // what Accept returns
	Peer   packet.Addr // its address
	Port   uint16      // its port
}

// Socket is a scripted socket. A test fills what the host has received and
// reads what was written.
type Socket struct {
	FD      int32  // its number, above zero
	Watched bool   // Watch was called
	Token   uint64 // given to Watch
	Events  uint32 // given to Watch
	Closes  int    // how often it was closed: anything above one is a fault

	// Stream sockets.
	In         []byte        // received and not yet dequeued
	EOF        bool          // the peer sent FIN behind In
	ReadErr    syscall.Errno // returned instead of what is in In
	PeekOffset int           // SO_PEEK_OFF as it moves, once it is set
	WriteShut  bool          // ShutdownWrite was called
	Accepts    []Conn        // of a listener: what waits

	// Datagram sockets. Datagrams are received in order; Buf holds N bytes.
	Datagrams []flow.Datagram
	Errors    []flow.SocketError // the error queue, Buf as above

	// Writes fail with WriteErrs first, one each, zero meaning none. Then
	// Room bytes are taken; a stream write may be cut short by it.
	Writes    []Write
	WriteErrs []syscall.Errno // see above
	Room      int             // see above; Unlimited: all
	Path      int             // UDP_SEGMENT beyond it fails, as beyond a path's MTU; 0: none does

	Options   map[flow.Option]int // as set last
	OptionErr syscall.Errno       // returned by Option
	SetCalls  int                 // calls of Option
	Pending   syscall.Errno       // SO_ERROR

	RTT  time.Duration // the least round-trip time
	Peer flow.Path     // what is known of the way to the peer

	Local     packet.Addr // what LocalAddr returns
	LocalPort uint16      // likewise

	quiet    *bool
	writes   *int
	peekOffs bool
}

// Sent is everything that was written, as datagrams: cut where UDP_SEGMENT had
// the kernel cut them.
func (s *Socket) Sent() [][]byte {
	var all [][]byte
	for _, w := range s.Writes {
		for w.Segment > 0 && len(w.Data) > w.Segment {
			all = append(all, w.Data[:w.Segment])
			w.Data = w.Data[w.Segment:]
		}
		all = append(all, w.Data)
	}
	return all
}

// Output is everything that was written, one after the other.
func (s *Socket) Output() []byte {
	var b []byte
	for _, w := range s.Writes {
		b = append(b, w.Data...)
	}
	return b
}

// Receive queues one datagram, or with segment several that UDP_GRO joined.
func (s *Socket) Receive(data []byte, segment int) {
	s.Datagrams = append(s.Datagrams, flow.Datagram{Buf: data, N: len(data), Segment: segment})
}

// Recv implements flow.Receiver, for streams, or for datagrams if there is one.
func (h *Host) Recv(fd int32, b []byte, flags int) (int, syscall.Errno) {
	s := h.at(fd)
	switch {
	case s == nil:
		return 0, syscall.EBADF
	case len(s.Datagrams) > 0:
		n := copy(b, s.Datagrams[0].Buf)
		s.Datagrams = s.Datagrams[1:]
		return n, 0
	case s.ReadErr != 0:
		return 0, s.ReadErr
	}
	from := 0
	if flags&flow.MsgPeek != 0 && s.peekOffs {
		from = s.PeekOffset
	}
	if from >= len(s.In) {
		if s.EOF {
			return 0, 0
		}
		return 0, syscall.EAGAIN
	}
	n := min(len(b), len(s.In)-from)
	if flags&flow.MsgTrunc == 0 || flags&flow.MsgPeek != 0 {
		copy(b, s.In[from:from+n])
	}
	if flags&flow.MsgPeek == 0 {
		s.dequeue(n)
	} else if s.peekOffs {
		s.PeekOffset += n
	}
	return n, 0
}

// dequeue moves the peek offset back as the kernel does.
func (s *Socket) dequeue(n int) {
	s.In = s.In[n:]
	if s.peekOffs {
		s.PeekOffset = max(s.PeekOffset-n, 0)
	}
}

// RecvSkip implements tcp.Env.
func (h *Host) RecvSkip(fd int32, skip int, b []byte) (int, syscall.Errno) {
	s := h.at(fd)
	switch {
	case s == nil:
		return 0, syscall.EBADF
	case s.ReadErr != 0:
		return 0, s.ReadErr
	case skip < len(s.In):
		return copy(b, s.In[skip:]), 0
	case s.EOF:
		return 0, 0
	}
	return 0, syscall.EAGAIN
}

// Discard implements flow.Streams.
func (h *Host) Discard(fd int32, n int) (int, syscall.Errno) {
	s := h.at(fd)
	if s == nil {
		return 0, syscall.EBADF
	}
	if len(s.In) == 0 {
		return 0, syscall.EAGAIN
	}
	n = min(n, len(s.In))
	s.dequeue(n)
	return n, 0
}

// RecvDatagrams implements flow.Datagrams.
func (h *Host) RecvDatagrams(fd int32, d []flow.Datagram) (int, syscall.Errno) {
	s := h.at(fd)
	switch {
	case s == nil:
		return 0, syscall.EBADF
	case len(s.Datagrams) == 0:
		return 0, syscall.EAGAIN
	}
	n := min(len(d), len(s.Datagrams))
	for i := range n {
		from := &s.Datagrams[i]
		buf := d[i].Buf
		d[i] = *from
		d[i].Buf = buf
		d[i].N = copy(buf, from.Buf[:from.N])
		d[i].Truncated = from.Truncated || from.N > len(buf)
	}
	s.Datagrams = s.Datagrams[n:]
	return n, 0
}

// RecvError implements flow.Errors.
func (h *Host) RecvError(fd int32, e *flow.SocketError) syscall.Errno {
	s := h.at(fd)
	switch {
	case s == nil:
		return syscall.EBADF
	case len(s.Errors) == 0:
		return syscall.EAGAIN
	}
	buf := e.Buf
	*e = s.Errors[0]
	e.Buf = buf
	e.N = copy(buf, s.Errors[0].Buf)
	s.Errors = s.Errors[1:]
	return 0
}

// Write implements flow.Writer.
func (h *Host) Write(fd int32, b []byte) (int, syscall.Errno) {
	one := [1][]byte{b}
	return h.write(fd, one[:])
}

// Copy implements udp.Copier.
func (h *Host) Copy(fd int32, b []byte) (int, syscall.Errno) { return h.Write(fd, b) }

// Wrote implements udp.Copier and tcp.Env.
func (h *Host) Wrote(n int) { h.ByOthers += n }

// Writev implements flow.GatherWriter. Like the kernel's, it does nothing if there
// is not one byte.
func (h *Host) Writev(fd int32, bufs [][]byte) (int, syscall.Errno) {
	if total(bufs) == 0 {
		return 0, 0
	}
	return h.write(fd, bufs)
}

func (h *Host) write(fd int32, bufs [][]byte) (int, syscall.Errno) {
	s := h.at(fd)
	if s == nil {
		return 0, syscall.EBADF
	}
	if len(s.WriteErrs) > 0 {
		e := s.WriteErrs[0]
		s.WriteErrs = s.WriteErrs[1:]
		if e != 0 {
			return 0, e
		}
	}
	n := total(bufs)
	if e := s.segmentError(n); e != 0 {
		return 0, e
	}
	if s.WriteShut {
		return 0, syscall.EPIPE
	}
	if s.Room >= 0 {
		if s.Room == 0 && n > 0 {
			return 0, syscall.EAGAIN
		}
		n = min(n, s.Room)
		s.Room -= n
	}
	*s.writes++
	if !*s.quiet {
		s.keep(bufs, n)
	}
	return n, 0
}

// segmentError is what udp_send_skb of net/ipv4/udp.c finds wrong with a write
// of n bytes while UDP_SEGMENT is set.
func (s *Socket) segmentError(n int) syscall.Errno {
	size := s.Options[flow.OptionUDPSegment]
	switch {
	case size == 0:
		return 0
	case s.Path > 0 && size > s.Path, n > 64*size:
		return syscall.EINVAL
	case n > 65507:
		return syscall.EMSGSIZE
	}
	return 0
}

func (s *Socket) keep(bufs [][]byte, n int) {
	w := Write{
		Data: make([]byte, 0, n), Segment: s.Options[flow.OptionUDPSegment], TTL: s.Options[flow.OptionTTL],
		Hop: s.Options[flow.OptionHopLimit], TOS: s.Options[flow.OptionTOS] + s.Options[flow.OptionTrafficClass],
	}
	for _, b := range bufs {
		w.Data = append(w.Data, b[:min(len(b), n-len(w.Data))]...)
	}
	s.Writes = append(s.Writes, w)
}

func total(bufs [][]byte) int {
	n := 0
	for _, b := range bufs {
		n += len(b)
	}
	return n
}

// Accept implements tcp.Env.
func (h *Host) Accept(fd int32) (int32, packet.Addr, uint16, syscall.Errno) {
	s := h.at(fd)
	switch {
	case s == nil:
		return -1, packet.Addr{}, 0, syscall.EBADF
	case len(s.Accepts) == 0:
		return -1, packet.Addr{}, 0, syscall.EAGAIN
	}
	c := s.Accepts[0]
	s.Accepts = s.Accepts[1:]
	return c.Socket.FD, c.Peer, c.Port, 0
}

// LocalAddr implements flow.Names.
func (h *Host) LocalAddr(fd int32) (packet.Addr, uint16, syscall.Errno) {
	s := h.at(fd)
	if s == nil {
		return packet.Addr{}, 0, syscall.EBADF
	}
	return s.Local, s.LocalPort, 0
}

// ShutdownWrite implements flow.Streams.
func (h *Host) ShutdownWrite(fd int32) syscall.Errno {
	s := h.at(fd)
	if s == nil {
		return syscall.EBADF
	}
	s.WriteShut = true
	return 0
}

// Option implements flow.Options.
func (h *Host) Option(fd int32, o flow.Option, v int) syscall.Errno {
	s := h.at(fd)
	if s == nil {
		return syscall.EBADF
	}
	s.SetCalls++
	if s.OptionErr != 0 {
		return s.OptionErr
	}
	s.Options[o] = v
	if o == flow.OptionPeekOff {
		s.peekOffs = v >= 0
		s.PeekOffset = v
	}
	return 0
}

// RTT implements tcp.Env.
func (h *Host) RTT(fd int32) (time.Duration, syscall.Errno) {
	s := h.at(fd)
	if s == nil {
		return 0, syscall.EBADF
	}
	return s.RTT, 0
}

// Path implements flow.Paths.
func (h *Host) Path(fd int32) (flow.Path, syscall.Errno) {
	s := h.at(fd)
	if s == nil {
		return flow.Path{}, syscall.EBADF
	}
	return s.Peer, 0
}

// TakeError implements flow.Failures.
func (h *Host) TakeError(fd int32) syscall.Errno {
	s := h.at(fd)
	if s == nil {
		return syscall.EBADF
	}
	e := s.Pending
	s.Pending = 0
	return e
}
