// SPDX-License-Identifier: Apache-2.0

package tcp

import (
	"bytes"
	"syscall"
	"time"

	"aldente/ipc"
	"aldente/worker/flow"
	"aldente/worker/packet"
)

// sock is a stream socket as Linux would have it, with the peer on the host's
// network scripted. Both streams are that of func stream, so that only
// positions are kept.
type sock struct {
	e       *env
	fd      int32
	handed  bool // the translator owns the descriptor
	closes  int
	watched bool
	rtt     time.Duration
	path    flow.Path
	bounded []int  // SO_RCVBUF, as it was set
	events  uint32 // given to Watch
	token   uint64
	edge    bool // something happened since readiness was last reported

	connecting bool
	err        syscall.Errno // SO_ERROR
	dead       bool          // reset

	// From the peer: [rxBase, rxHave) is in the receive queue, what follows up
	// to rxEnd waits for room in it.
	rxBase, rxHave, rxEnd int
	rcvBuf                int
	rxFIN                 bool
	peekOff               int // SO_PEEK_OFF, -1: off
	skips                 int // calls of RecvSkip
	peeks, inVain         int // calls of Recv, and those that found nothing

	// To the peer.
	txTotal   int
	txRoom    int // free send buffer; -1: no bound
	nospace   bool
	shut      bool
	aborted   bool
	keepAlive bool
	noDelay   bool
	writes    int
	shutdowns int

	// Listening sockets.
	listening bool
	backlog   []backlogEntry
	acceptErr syscall.Errno
	accepts   int
}

type backlogEntry struct {
	s    *sock
	peer packet.Addr
	port uint16
}

func (e *env) newSock() *sock {
	s := &sock{e: e, fd: int32(firstFD + len(e.socks)), peekOff: -1, rcvBuf: 1 << 20, txRoom: -1, edge: true}
	e.socks = append(e.socks, s)
	return s
}

func (e *env) sock(fd int32) *sock {
	s := e.lookUp(fd)
	e.unheard(s, nil, 0)
	return s
}

// lookUp is sock for the end of a flow.
func (e *env) lookUp(fd int32) *sock {
	if fd < firstFD || int(fd) >= firstFD+len(e.socks) {
		e.t.Fatalf("call on descriptor %d", fd)
	}
	s := e.socks[fd-firstFD]
	if s.closes > 0 {
		e.t.Fatalf("call on descriptor %d after it was closed", fd)
	}
	return s
}

func (s *sock) finArrived() bool { return s.rxFIN && s.rxHave == s.rxEnd }

// reported is what epoll_wait reports after an edge, zero: nothing.
func (s *sock) reported() uint32 {
	return s.level() & (s.events | flow.PeerClosed | flow.HungUp | flow.Failed)
}

// level is what poll(2) reports.
func (s *sock) level() uint32 {
	var m uint32
	if s.rxHave > s.rxBase || s.finArrived() || s.dead {
		m |= flow.Readable
	}
	if s.finArrived() || s.dead {
		m |= flow.PeerClosed
	}
	if !s.connecting && (s.txRoom != 0 || s.shut) || s.dead {
		m |= flow.Writable
	}
	if s.err != 0 {
		m |= flow.Failed
	}
	if s.dead || s.shut && s.finArrived() {
		m |= flow.HungUp
	}
	return m
}

// What the peer does.

func (s *sock) connected() {
	s.connecting = false
	s.edge = true
}

func (s *sock) fail(e syscall.Errno) {
	s.err, s.dead, s.connecting, s.edge = e, true, false, true
}

// say has the peer send n bytes more.
func (s *sock) say(n int) {
	s.rxEnd += n
	s.refill()
}

func (s *sock) refill() {
	if n := min(s.rxEnd-s.rxHave, s.rcvBuf-(s.rxHave-s.rxBase)); n > 0 && !s.dead {
		s.rxHave += n
		s.edge = true
	}
	if s.finArrived() {
		s.edge = true
	}
}

func (s *sock) fin() {
	s.rxFIN = true
	s.refill()
}

// free has the peer read n bytes: room in the send buffer.
func (s *sock) free(n int) {
	s.txRoom += n
	if s.nospace && s.txRoom > 0 {
		s.nospace = false
		s.edge = true
	}
}

// What the translator does.

func (e *env) Rewatch(fd int32, token uint64, events uint32) syscall.Errno {
	if s := e.sock(fd); !s.watched || s.token != token || s.events == events {
		e.t.Fatalf("descriptor %d: watched %v for %x under %x, changed to %x under %x", fd, s.watched, s.events, s.token, events, token)
	}
	return e.Watch(fd, token, events)
}

func (e *env) Watch(fd int32, token uint64, events uint32) syscall.Errno {
	s := e.sock(fd)
	s.handed = true
	if e.noWatch != 0 {
		return e.noWatch
	}
	s.watched, s.token, s.events, s.edge = true, token, events, true
	return 0
}

func (e *env) Close(fd int32) {
	s := e.lookUp(fd)
	s.handed = true
	s.closes++
	s.shut = true // as the kernel does, behind what is to be sent
	if !s.dead && s.rxHave != s.rxBase {
		e.t.Fatalf("descriptor %d closed with %d bytes not dequeued: the kernel would reset", fd, s.rxHave-s.rxBase)
	}
}

func (e *env) Abort(fd int32) {
	s := e.lookUp(fd)
	s.handed, s.aborted = true, true
	s.closes++
}

func (e *env) Recv(fd int32, b []byte, flags int) (int, syscall.Errno) {
	s := e.sock(fd)
	if flags != flow.MsgPeek|flow.MsgDontWait || s.peekOff < 0 {
		e.t.Fatalf("recv with flags %#x, peek offset %d", flags, s.peekOff)
	}
	n, errno := s.peek(s.peekOff, b)
	s.peeks++
	if errno == syscall.EAGAIN {
		s.inVain++
	}
	s.peekOff += n
	return n, errno
}

func (e *env) RecvSkip(fd int32, skip int, b []byte) (int, syscall.Errno) {
	s := e.sock(fd)
	s.skips++
	return s.peek(skip, b)
}

func (s *sock) peek(off int, b []byte) (int, syscall.Errno) {
	n := min(s.rxHave-s.rxBase-off, len(b))
	switch {
	case n > 0:
		for k := 0; k < n; k += 1 << 16 {
			copy(b[k:n], stream(s.rxBase+off+k, min(n-k, 1<<16)))
		}
		return n, 0
	case s.dead:
		e := s.err
		s.err = 0
		return 0, e
	case s.finArrived():
		return 0, 0
	}
	return 0, syscall.EAGAIN
}

func (e *env) Discard(fd int32, n int) (int, syscall.Errno) {
	s := e.sock(fd)
	n = min(n, s.rxHave-s.rxBase)
	if n == 0 {
		return 0, syscall.EAGAIN
	}
	s.rxBase += n
	if s.peekOff >= 0 {
		s.peekOff = max(s.peekOff-n, 0)
	}
	s.refill()
	return n, 0
}

func (e *env) Write(fd int32, b []byte) (int, syscall.Errno) {
	return e.Writev(fd, [][]byte{b})
}

// Copyv is Writev of what a limit does not count.
func (e *env) Copyv(fd int32, bufs [][]byte) (int, syscall.Errno) {
	n, errno := e.Writev(fd, bufs)
	e.limited -= n
	return n, errno
}

func (e *env) Wrote(n int) { e.limited += n }

// Writev checks that the bytes are those that come next.
func (e *env) Writev(fd int32, bufs [][]byte) (wrote int, _ syscall.Errno) {
	defer func() { e.limited += wrote }()
	s := e.sock(fd)
	s.writes++
	switch {
	case s.dead:
		errno := s.err
		if s.err = 0; errno == 0 {
			errno = syscall.EPIPE
		}
		return 0, errno
	case s.shut:
		e.t.Fatalf("descriptor %d written after shutdown", fd)
	}
	n := 0
	for _, b := range bufs {
		if len(b) == 0 {
			e.t.Fatal("empty write")
		}
		k := len(b)
		if s.txRoom >= 0 {
			k = min(k, s.txRoom-n)
		}
		for at := 0; at < k; at += 1 << 16 {
			m := min(k-at, 1<<16)
			if !bytes.Equal(b[at:at+m], stream(s.txTotal+n+at, m)) {
				e.t.Fatalf("descriptor %d: wrong bytes written at %d", fd, s.txTotal+n+at)
			}
		}
		n += k
		if k < len(b) {
			s.nospace = true
			break
		}
	}
	if n == 0 {
		return 0, syscall.EAGAIN
	}
	s.txTotal += n
	if s.txRoom >= 0 {
		s.txRoom -= n
	}
	return n, 0
}

func (e *env) Accept(fd int32) (int32, packet.Addr, uint16, syscall.Errno) {
	s := e.sock(fd)
	s.accepts++
	if s.acceptErr != 0 {
		return -1, packet.Addr{}, 0, s.acceptErr
	}
	if len(s.backlog) == 0 {
		return -1, packet.Addr{}, 0, syscall.EAGAIN
	}
	b := s.backlog[0]
	s.backlog = s.backlog[1:]
	b.s.handed = true
	b.s.noDelay = s.noDelay
	return b.s.fd, b.peer, b.port, 0
}

func (e *env) ShutdownWrite(fd int32) syscall.Errno {
	s := e.sock(fd)
	if s.shut {
		e.t.Fatalf("descriptor %d shut down twice", fd)
	}
	s.shut = true
	s.shutdowns++
	return 0
}

func (e *env) Option(fd int32, o flow.Option, v int) syscall.Errno {
	s := e.sock(fd)
	switch o {
	case flow.OptionPeekOff:
		if !e.g.Has(ipc.FlagPeekOff4) {
			e.t.Fatal("SO_PEEK_OFF on a kernel without it")
		}
		s.peekOff = v
	case flow.OptionKeepAlive:
		s.keepAlive = true
	case flow.OptionRecvBuffer, flow.OptionWindowClamp:
		s.bounded = append(s.bounded, v)
	case flow.OptionNoDelay:
		s.noDelay = v != 0
	default:
		e.t.Fatalf("option %d set", o)
	}
	return 0
}

func (e *env) RTT(fd int32) (time.Duration, syscall.Errno) { return e.sock(fd).rtt, 0 }

func (e *env) Path(fd int32) (flow.Path, syscall.Errno) { return e.sock(fd).path, 0 }

func (e *env) TakeError(fd int32) syscall.Errno {
	s := e.sock(fd)
	errno := s.err
	s.err = 0
	return errno
}
