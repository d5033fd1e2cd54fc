// SPDX-License-Identifier: Apache-2.0

package sockets

import (
	"errors"
	"fmt"
	"sync"

	"golang.org/x/sys/unix"

	"aldente/ipc"
)

// Namespace is the guest's namespace, as far as sockets are opened there.
type Namespace interface {
	// Take returns a socket of the protocol and family that is neither bound
	// nor connected, or -1 if none is at hand.
	Take(proto uint8, v4 bool) int
	// Open asks for a socket and calls done with it or an error, once, from
	// another goroutine or before it returns.
	Open(o ipc.AgentOpen, done func(fd int, err error))
}

// served is a worker's channel while its requests are served. Answers that had
// to wait for the namespace come to it at any time; once the worker is gone they
// go nowhere.
type served struct {
	mu      sync.Mutex
	fd      int // -1: gone
	waiting int

	refusals int // requests of the last message that got nothing
}

// begin counts a request that is answered later. It reports false if there
// are more than any worker of ours makes.
func (s *served) begin() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.waiting++
	return s.waiting <= ipc.MaxOutstanding
}

// answer sends one answer and closes our copy of its descriptor.
func (s *served) answer(o *ipc.Opened, fd int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.waiting--
	if s.fd >= 0 {
		var rec [ipc.OpenedSize]byte
		o.Encode(rec[:])
		if ipc.Send(s.fd, rec[:], fd) != nil {
			// It is gone, or it does not read what it asked for: the next
			// answer is not to wait for it as long again.
			unix.Shutdown(s.fd, unix.SHUT_RDWR)
		}
	}
	if fd >= 0 {
		unix.Close(fd)
	}
}

func (s *served) end() {
	s.mu.Lock()
	s.fd = -1
	s.mu.Unlock()
}

// openHost opens the far end of the bypass on the host.
func (f *Factory) openHost(proto uint8, d *decision, answer *ipc.Opened) int {
	if proto == ipc.ProtoUDP {
		fd, _, err := f.flowSocket(&d.path, d.from, d.to, false)
		if err != nil {
			answer.Errno = errno(err)
			return -1
		}
		return fd
	}
	return finish(newSocket(d.to.Addr(), unix.SOCK_STREAM, 0), proto, d, answer)
}

// openNamespace opens the far end of the bypass in the namespace, with a socket
// made there: at once if one is at hand.
func (f *Factory) openNamespace(proto uint8, d *decision, answer *ipc.Opened, s *served) (fd int, later bool, err error) {
	if f.cfg.Namespace == nil {
		answer.Errno = uint16(unix.EOPNOTSUPP)
		return -1, false, nil
	}
	v4 := d.to.Addr().Is4()
	if fd := f.cfg.Namespace.Take(proto, v4); fd >= 0 {
		return finish(&opening{fd: fd}, proto, d, answer), false, nil
	}
	req := ipc.AgentOpen{Proto: proto}
	if v4 {
		req.Flags |= ipc.AgentOpenIPv4
	}
	to := *d // d itself is not to be kept: it would be allocated for each request
	return f.later(req, *answer, s, func(o *opening, a *ipc.Opened) int { return finish(o, proto, &to, a) })
}

// openNamespaceReply opens the socket for answers to a datagram that came to a
// listener in the namespace.
func (f *Factory) openNamespaceReply(d *decision, answer *ipc.Opened, s *served) (fd int, later bool, err error) {
	if f.cfg.Namespace == nil {
		answer.Errno = uint16(unix.EACCES)
		return -1, false, nil
	}
	req := ipc.AgentOpen{
		Proto: ipc.ProtoUDP, Flags: ipc.AgentOpenBind | ipc.AgentOpenDevice,
		Local: d.from.Addr().As16(), LocalPort: d.from.Port(),
	}
	if d.from.Addr().Is4() {
		req.Flags |= ipc.AgentOpenIPv4
	}
	answer.LocalPort = d.from.Port()
	to := d.to
	return f.later(req, *answer, s, func(o *opening, a *ipc.Opened) int {
		o.connect(to, 0)
		return o.answer(a)
	})
}

// later asks the namespace for a socket and answers when it comes.
func (f *Factory) later(req ipc.AgentOpen, a ipc.Opened, s *served, use func(*opening, *ipc.Opened) int) (int, bool, error) {
	if !s.begin() {
		return -1, false, fmt.Errorf("%w: more than %d requests unanswered", ipc.ErrMalformed, ipc.MaxOutstanding)
	}
	f.cfg.Namespace.Open(req, func(fd int, err error) {
		if err != nil {
			a.Errno = errno(err)
			s.answer(&a, -1)
			return
		}
		fd = use(&opening{fd: fd}, &a)
		s.answer(&a, fd)
	})
	return -1, true, nil
}

// finish connects a socket of the host's, or one of either protocol that was made
// in the namespace, and returns it or -1.
func finish(o *opening, proto uint8, d *decision, answer *ipc.Opened) int {
	if proto == ipc.ProtoTCP {
		o.streamOptions()
		o.connect(d.to, d.Scope)
		if errors.Is(o.err, unix.EINPROGRESS) {
			o.err = nil
			answer.Flags |= ipc.OpenedInProgress
		}
		return o.answer(answer)
	}
	// The peer's port where nobody has it: some protocols know their peers by it.
	// Between bind and connect the socket would hear anybody.
	o.deafen()
	o.bind(d.from, 0)
	if errors.Is(o.err, unix.EADDRINUSE) || errors.Is(o.err, unix.EACCES) {
		o.err = nil
	}
	o.connect(d.to, d.Scope)
	o.hear()
	return o.answer(answer)
}

// answer ends the opening: it returns the descriptor, or -1 with the error in a.
func (o *opening) answer(a *ipc.Opened) int {
	fd, err := o.done()
	if err != nil {
		a.Errno = errno(err)
		return -1
	}
	return fd
}

// datagramOptions sets what all connected UDP sockets have.
func (o *opening) datagramOptions(v4 bool) {
	if v4 {
		o.try(unix.IPPROTO_IP, unix.IP_RECVERR, 1)
	} else {
		o.try(unix.IPPROTO_IPV6, unix.IPV6_RECVERR, 1)
		o.try(unix.IPPROTO_IPV6, unix.IPV6_V6ONLY, 1)
	}
	o.try(unix.IPPROTO_UDP, unix.UDP_GRO, 1)
}
