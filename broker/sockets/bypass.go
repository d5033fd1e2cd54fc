// SPDX-License-Identifier: Apache-2.0

package sockets

import (
	"fmt"
	"net/netip"
	"sync"

	"golang.org/x/sys/unix"

	"aldente/broker/inet"
	"aldente/broker/wait"
	"aldente/ipc"
	"aldente/ipc/sock"
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

	set *wait.Set // the factory's: what is waited for
	ep  int       // underWay.ep, if it is among them; -1: it is not
}

// begin counts a request that is answered later. It reports false if there
// are more than any worker of ours makes.
func (s *served) begin() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.waiting++
	return s.waiting <= ipc.MaxOutstanding
}

// answer sends one answer and closes our copy of its descriptor. tell is called before
// that, unless nobody is there any more who could have the socket.
func (s *served) answer(a *ipc.Opened, fd int, tell func()) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.waiting--
	taken := false
	if s.fd >= 0 {
		tell()
		var rec [ipc.OpenedSize]byte
		a.Encode(rec[:])
		if taken = ipc.Send(s.fd, rec[:], fd) == nil; !taken {
			// It is gone, or it does not read what it asked for: the next
			// answer is not to wait for it as long again.
			sock.Shutdown(s.fd, unix.SHUT_RDWR)
		}
	}
	if fd >= 0 {
		if !taken {
			disconnect(fd)
		}
		unix.Close(fd)
	}
}

// send sends what is no answer to a request that is counted. It reports false if nobody
// is there any more who would take it.
func (s *served) send(record func(channel int) error) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.fd < 0 {
		return false
	}
	if record(s.fd) != nil {
		sock.Shutdown(s.fd, unix.SHUT_RDWR) // as in answer
		return false
	}
	return true
}

func (s *served) end() {
	s.mu.Lock()
	s.fd = -1
	s.mu.Unlock()
}

// openHost opens the far end of the bypass on the host.
func (f *Factory) openHost(proto uint8, d *decision) outcome {
	if proto == ipc.ProtoUDP {
		o := f.flowSocket(&d.path, d.from, d.to, false)
		o.localPort = 0 // the worker sends by it and no more
		return o
	}
	c := inet.Connect{Path: d.inet(), To: d.to}
	return made(c.Dial(), 0)
}

// farEnd is a far end of the bypass in the namespace: a bare socket that was made
// there, once it is connected.
type farEnd struct {
	proto    uint8
	from, to netip.AddrPort
	scope    uint32
}

// by connects the socket. Of UDP it gets the peer's port where nobody has that: some
// protocols know their peers by it.
//
// It leads to the namespace itself. Where that does not have the address, or not any
// more, the kernel would send packets out to where the address may be, and nobody
// answers.
func (e *farEnd) by(fd int) outcome {
	path := inet.Path{Scope: e.scope}
	var r inet.Result
	if e.proto == ipc.ProtoTCP {
		c := inet.Connect{Path: path, To: e.to}
		r = c.DialBy(fd)
	} else {
		flow := inet.Flow{Path: path, From: e.from, To: e.to, Sharing: inet.Alone, AnyPort: true}
		r = flow.DialBy(fd)
	}
	if r.Err == nil && !e.to.Addr().IsLoopback() && !reachesItself(r.FD, e.to.Addr()) {
		unix.Close(r.FD)
		return nothing(unix.EADDRNOTAVAIL)
	}
	return made(r, 0)
}

// openNamespace opens the far end of the bypass in the namespace, with a socket
// made there: at once if one is at hand.
func (f *Factory) openNamespace(q *request, d *decision, s *served) (outcome, error) {
	if f.cfg().Namespace == nil {
		return nothing(unix.EOPNOTSUPP), nil
	}
	v4 := d.to.Addr().Is4()
	end := farEnd{proto: q.proto, from: d.from, to: d.to, scope: d.Scope}
	if fd := f.cfg().Namespace.Take(q.proto, v4); fd >= 0 {
		return end.by(fd), nil
	}
	req := ipc.AgentOpen{Proto: q.proto}
	if v4 {
		req.Flags |= ipc.AgentOpenIPv4
	}
	late := end // end itself is not to be kept: it would be allocated for each request
	return f.later(req, q, d, s, func(fd int) outcome { return late.by(fd) })
}

// openNamespaceReply opens the socket for answers to a datagram that came to a
// listener in the namespace: there it is bound, here connected.
func (f *Factory) openNamespaceReply(q *request, d *decision, s *served) (outcome, error) {
	if f.cfg().Namespace == nil {
		return nothing(unix.EACCES), nil
	}
	req := ipc.AgentOpen{
		Proto: ipc.ProtoUDP, Flags: ipc.AgentOpenBind | ipc.AgentOpenDevice,
		Local: d.from.Addr().As16(), LocalPort: d.from.Port(),
	}
	if d.from.Addr().Is4() {
		req.Flags |= ipc.AgentOpenIPv4
	}
	flow := inet.Flow{From: d.from, To: d.to, Sharing: inet.SharedAndOpen}
	return f.later(req, q, d, s, func(fd int) outcome { return made(flow.ConnectBy(fd), flow.From.Port()) })
}

// later asks the namespace for a socket and answers when it comes, by what use makes
// of it.
func (f *Factory) later(req ipc.AgentOpen, q *request, d *decision, s *served, use func(fd int) outcome) (outcome, error) {
	if !s.begin() {
		return outcome{fd: -1}, fmt.Errorf("%w: more than %d requests unanswered", ipc.ErrMalformed, ipc.MaxOutstanding)
	}
	token, proto, to := q.token, q.proto, d.to
	tell := func(*outcome) {}
	if f.cfg().Flows != nil {
		q, d := *q, *d // which would be allocated for each request otherwise
		tell = func(o *outcome) { f.tellFlow(&q, &d, o) }
	}
	f.cfg().Namespace.Open(req, func(fd int, err error) {
		var o outcome
		if err != nil {
			o = nothing(errno(err))
		} else {
			o = use(fd)
		}
		a := o.record(token, proto, to)
		s.answer(&a, o.fd, func() { tell(&o) })
	})
	return outcome{fd: -1, later: true}, nil
}
