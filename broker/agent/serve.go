// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"errors"
	"fmt"
	"os"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"aldente/broker/inet"
	"aldente/ipc"
	"aldente/ipc/sock"
)

// Numbers of unconnected sockets kept at hand, so that a connection into the
// namespace does not wait for the agent: fewer of UDP, whose flows last.
const (
	keepTCP = 32
	keepUDP = 8
)

// maxAsked bounds the requests that are unanswered: as many as fit the channel
// in either direction, a scan besides.
const maxAsked = 64

// sendAgain is after which time it is tried again to send what the channel had no room
// for, which is full while the agent is told of a long update, or does not read.
const sendAgain = 5 * time.Millisecond

// Sockets opens sockets in the namespace, for as long as the agent lives. It is
// for concurrent use and takes the channel of its Client over.
type Sockets struct {
	client *Client
	cookie uint64 // of our own namespace, zero: unknown

	mu      sync.Mutex
	err     error // why no more are opened
	id      uint32
	waiting map[uint32]request // asked
	queue   []request          // to be asked
	again   bool               // send is going to be called again: there was no room
	spare   [4]spare

	scanning scanning
	updating updating
	patience time.Duration // how long Bound waits

	updateTime time.Duration // how long Update waits
}

// request is one that the agent has not answered.
type request struct {
	open ipc.AgentOpen
	done func(fd int, err error)
}

// spare holds sockets of one protocol and family.
type spare struct {
	fds   []int
	asked int
	keep  int
}

// Sockets hands the channel over to a goroutine that reads it until the agent is
// gone, which calls ended. The client must not be used after that, except for
// Close.
func (c *Client) Sockets(ended func(error)) *Sockets {
	s := &Sockets{client: c, id: c.id, waiting: make(map[uint32]request)}
	s.patience, s.updateTime = scanTime, updateTime
	for k := range s.spare {
		s.spare[k].keep = keepTCP
		if k&spareUDP != 0 {
			s.spare[k].keep = keepUDP
		}
	}
	s.cookie = inet.OwnNamespace()
	go func() { ended(s.read()) }()
	return s
}

// Indices of Sockets.spare.
const (
	spareV4  = 1 << 0
	spareUDP = 1 << 1
)

func kind(proto uint8, v4 bool) int {
	k := 0
	if v4 {
		k |= spareV4
	}
	if proto == ipc.ProtoUDP {
		k |= spareUDP
	}
	return k
}

// Open asks for a socket and calls done when it is there, or with an error, once.
func (s *Sockets) Open(o ipc.AgentOpen, done func(fd int, err error)) {
	s.mu.Lock()
	err := s.err
	if err == nil {
		s.ask(o, done)
	}
	s.mu.Unlock()
	if err != nil {
		done(-1, err)
	}
}

// ask queues one request, and sends as many as may be under way. If the agent is
// gone, the reader sees it too and ends them all.
func (s *Sockets) ask(o ipc.AgentOpen, done func(fd int, err error)) {
	s.queue = append(s.queue, request{o, done})
	s.send()
}

// send asks for what is queued, in as few messages as may be. It never waits: an agent
// that does not read keeps nobody.
func (s *Sockets) send() {
	for len(s.queue) > 0 && len(s.waiting) < maxAsked {
		n := min(len(s.queue), maxAsked-len(s.waiting), ipc.MaxBatch)
		var message []byte
		for i := range s.queue[:n] {
			r := &s.queue[i]
			r.open.ID = s.id + uint32(i) + 1
			message = append(message, r.open.Encode()...)
		}
		if ipc.SendNow(s.client.channel, message, -1) == unix.EAGAIN {
			s.sendLater()
			return
		}
		for _, r := range s.queue[:n] {
			s.id++
			s.waiting[s.id] = r
		}
		s.queue = s.queue[n:]
	}
	if len(s.queue) == 0 {
		s.queue = nil
	}
}

// sendLater has what the channel had no room for tried again in a moment.
func (s *Sockets) sendLater() {
	if s.again || s.err != nil {
		return
	}
	s.again = true
	time.AfterFunc(sendAgain, func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		s.again = false
		s.send()
		s.sendScan()
	})
}

// Take returns a socket that is neither bound nor connected, or -1 if none is at
// hand; then some are asked for.
func (s *Sockets) Take(proto uint8, v4 bool) int {
	s.mu.Lock()
	defer s.mu.Unlock()
	p := &s.spare[kind(proto, v4)]
	fd := -1
	if n := len(p.fds); n > 0 {
		fd = p.fds[n-1]
		p.fds = p.fds[:n-1]
	}
	if len(p.fds)+p.asked <= p.keep/2 && s.err == nil {
		s.refill(p, proto, v4)
	}
	return fd
}

func (s *Sockets) refill(p *spare, proto uint8, v4 bool) {
	o := ipc.AgentOpen{Proto: proto}
	if v4 {
		o.Flags = ipc.AgentOpenIPv4
	}
	keep := func(fd int, err error) {
		s.mu.Lock()
		defer s.mu.Unlock()
		p.asked--
		if err == nil {
			p.fds = append(p.fds, fd)
		}
	}
	for len(p.fds)+p.asked < p.keep {
		p.asked++
		s.queue = append(s.queue, request{o, keep})
	}
	s.send()
}

// read takes answers until the channel ends. An error is the agent's fault.
func (s *Sockets) read() error {
	buf := make([]byte, ipc.MaxRecord)
	receive, done := s.receiver(buf)
	defer done()
	for {
		n, fd, err := receive()
		if err == nil {
			err = s.take(buf[:n], fd)
		}
		if err != nil {
			if errors.Is(err, ipc.ErrMalformed) {
				s.client.process.Kill() // it is not ours any more
			}
			err = s.client.died(err)
			s.fail(err)
			return err
		}
	}
}

// receiver returns what receives from the channel by way of the runtime's
// poller. A thread that waits in a system call would have the runtime's monitor
// look after it for ten milliseconds, each time that it waits.
func (s *Sockets) receiver(buf []byte) (receive func() (n, fd int, err error), done func()) {
	channel := s.client.channel
	plain := func() (n, fd int, err error) { return ipc.Receive(channel, buf, 0) }
	own, err := unix.FcntlInt(uintptr(channel), unix.F_DUPFD_CLOEXEC, 0)
	if err != nil || unix.SetNonblock(own, true) != nil {
		return plain, func() {}
	}
	f := os.NewFile(uintptr(own), "agent")
	conn, err := f.SyscallConn()
	if err != nil {
		f.Close()
		return plain, func() {}
	}
	return func() (n, fd int, err error) {
		failed := conn.Read(func(c uintptr) bool {
			n, fd, err = ipc.Receive(int(c), buf, unix.MSG_DONTWAIT)
			return !errors.Is(err, unix.EAGAIN)
		})
		if failed != nil {
			return 0, -1, failed
		}
		return n, fd, err
	}, func() { f.Close() }
}

// take takes one record, with a descriptor or -1.
func (s *Sockets) take(b []byte, fd int) error {
	switch kind, err := ipc.FromAgent.Check(b, fd >= 0, ipc.Running); kind {
	case ipc.AgentKindOpened:
		return s.answered(b, fd)
	case ipc.AgentKindPorts:
		return s.takePorts(b)
	case ipc.AgentKindDone, ipc.AgentKindReport:
		return s.updated(kind, b)
	default:
		if fd >= 0 {
			unix.Close(fd)
		}
		if err == nil {
			err = fmt.Errorf("%w: nobody takes kind %#x", ipc.ErrMalformed, uint16(kind))
		}
		return err
	}
}

// answered matches an answer with its request.
func (s *Sockets) answered(b []byte, fd int) error {
	var a ipc.AgentOpened
	err := a.Decode(b)
	s.mu.Lock()
	r, ok := s.waiting[a.ID]
	delete(s.waiting, a.ID)
	s.send()
	s.mu.Unlock()
	if err == nil && (!ok || (a.Errno == 0) != (fd >= 0)) {
		err = fmt.Errorf("%w: answer to request %d", ipc.ErrMalformed, a.ID)
	}
	if err == nil && fd >= 0 {
		err = s.check(&r.open, fd)
	}
	switch {
	case err != nil:
		if fd >= 0 {
			unix.Close(fd)
		}
		if ok {
			r.done(-1, err)
		}
		return err
	case a.Errno != 0:
		r.done(-1, unix.Errno(a.Errno))
	default:
		r.done(fd, nil)
	}
	return nil
}

// check makes sure that a socket is what was asked for, and not one of our own
// namespace: what it is connected to is not subject to the egress rules.
func (s *Sockets) check(o *ipc.AgentOpen, fd int) error {
	domain, typ, proto := unix.AF_INET6, unix.SOCK_STREAM, int(o.Proto)
	if o.Flags&ipc.AgentOpenIPv4 != 0 {
		domain = unix.AF_INET
	}
	if o.Proto == ipc.ProtoUDP {
		typ = unix.SOCK_DGRAM
	}
	for _, o := range [...]struct{ name, want int }{{unix.SO_DOMAIN, domain}, {unix.SO_TYPE, typ}, {unix.SO_PROTOCOL, proto}} {
		if got, err := sock.GetsockoptInt(fd, unix.SOL_SOCKET, o.name); err != nil || got != o.want {
			return fmt.Errorf("%w: a socket of another kind", ipc.ErrMalformed)
		}
	}
	// We connect some of them, and wait for none.
	flags, err := unix.FcntlInt(uintptr(fd), unix.F_GETFL, 0)
	if err != nil || flags&unix.O_NONBLOCK == 0 {
		return fmt.Errorf("%w: a socket that blocks", ipc.ErrMalformed)
	}
	if s.cookie != 0 {
		if c, err := sock.GetsockoptUint64(fd, unix.SOL_SOCKET, unix.SO_NETNS_COOKIE); err != nil || c == s.cookie {
			return fmt.Errorf("%w: a socket of another namespace", ipc.ErrMalformed)
		}
	}
	return nil
}

// fail ends all requests, now and later.
func (s *Sockets) fail(err error) {
	s.mu.Lock()
	s.err = errors.Join(unix.EPIPE, err)
	rest := s.queue
	for _, r := range s.waiting {
		rest = append(rest, r)
	}
	s.queue, s.waiting = nil, nil
	s.scanning.fail(s.err)
	s.endUpdate(s.err)
	s.mu.Unlock()
	for _, r := range rest {
		r.done(-1, s.err)
	}
}
