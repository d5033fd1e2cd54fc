// SPDX-License-Identifier: Apache-2.0

package inet

import (
	"errors"
	"net/netip"

	"golang.org/x/sys/unix"

	"aldente/ipc"
)

// Sharing is how a UDP socket comes by its port, and whether it receives from
// anybody before it is connected.
type Sharing int

const (
	Alone                Sharing = iota // nobody else has the port, now and later; receives nothing until connected
	AloneUntilBound                     // nobody else has it, but sockets of ours may from then on; receives nothing until connected
	SharedUntilConnected                // others of ours have it; receives nothing until connected
	SharedAndOpen                       // a listener of ours has it: what comes is for that, and its reader passes it on
)

// Flow says which two ends a UDP socket is to have.
type Flow struct {
	Path
	From, To netip.AddrPort // From's port may be zero: the kernel's choice
	Sharing  Sharing        // of From's port
	AnyPort  bool           // another port is better than none
	Filter   Filter         // of what is SharedAndOpen, until it is connected: that of the listener which has the port
}

// Dial makes a socket between the two ends.
func (f *Flow) Dial() Result {
	s := bare(ipc.ProtoUDP, f.To.Addr().Is4())
	return s.flow(f)
}

// DialBy is Dial with a socket of Bare's, which it owns from then on.
func (f *Flow) DialBy(fd int) Result {
	s := socket{fd: fd}
	return s.flow(f)
}

// Bind does the first half of Dial. Only a socket that is SharedAndOpen may be
// left like that: the others would receive nothing for ever.
func (f *Flow) Bind() Result {
	s := bare(ipc.ProtoUDP, f.From.Addr().Is4())
	s.bindFlow(f)
	return s.result()
}

// ConnectBy does the second half, with a socket of Bind's, which it owns from then
// on.
func (f *Flow) ConnectBy(fd int) Result {
	s := socket{fd: fd}
	s.connectFlow(f)
	return s.result()
}

func (s *socket) flow(f *Flow) Result {
	s.bindFlow(f)
	s.connectFlow(f)
	return s.result()
}

// bindFlow binds. Between bind and connect a socket takes datagrams from anybody.
// Where the port is its own, they are thrown away once it is connected; beside
// others of ours a filter keeps them out, unless they are for somebody. To attach one
// costs more than all else of a socket: the kernel compiles a program.
func (s *socket) bindFlow(f *Flow) {
	v4 := f.From.Addr().Is4()
	switch f.Sharing {
	case SharedUntilConnected:
		s.dropInput()
	case SharedAndOpen:
		s.filter(f.Filter)
	}
	if f.Sharing == SharedUntilConnected || f.Sharing == SharedAndOpen {
		s.must(unix.SOL_SOCKET, unix.SO_REUSEPORT, 1)
	}
	if v4 {
		s.try(unix.IPPROTO_IP, unix.IP_RECVERR, 1)
	} else {
		s.try(unix.IPPROTO_IPV6, unix.IPV6_RECVERR, 1)
		s.try(unix.IPPROTO_IPV6, unix.IPV6_V6ONLY, 1)
	}
	s.try(unix.IPPROTO_UDP, unix.UDP_GRO, 1)
	if f.Sharing == SharedAndOpen && f.From.Addr().IsUnspecified() {
		s.destinations(v4, !v4)
	}
	s.freebind(&f.Path)
	s.by(&f.Path)
	s.bind(f.From, f.Scope)
	if f.AnyPort {
		s.forgive(unix.EADDRINUSE, unix.EACCES)
	}
	if f.Sharing == AloneUntilBound {
		s.try(unix.SOL_SOCKET, unix.SO_REUSEPORT, 1)
	}
}

func (s *socket) connectFlow(f *Flow) {
	s.connect(f.To, f.Scope)
	switch {
	case f.Sharing == Alone || f.Sharing == AloneUntilBound:
		s.drainFlow()
	case f.Sharing == SharedUntilConnected || f.Filter != nil:
		s.acceptInput()
	}
}

// drainFlow is drain for a socket that may be in the middle of a flood: a filter keeps
// that out, its peer's datagrams too, while the socket is drained.
func (s *socket) drainFlow() {
	s.drain()
	if !errors.Is(s.err, unix.EBUSY) {
		return
	}
	s.err = nil
	s.dropInput()
	for s.drain(); errors.Is(s.err, unix.EBUSY); s.drain() {
		s.err = nil
	}
	s.acceptInput()
}

// ListenUDP makes a socket that hears everybody. A port is taken exclusively, or not
// at all, unless it is to be beside sockets of ours.
func (l *Listener) ListenUDP() (int, error) {
	v4 := l.At.Addr().Is4()
	s := bare(ipc.ProtoUDP, v4)
	if l.Beside {
		s.must(unix.SOL_SOCKET, unix.SO_REUSEPORT, 1)
	}
	s.families(l)
	s.freebind(&l.Path)
	s.try(unix.IPPROTO_UDP, unix.UDP_GRO, 1)
	s.destinations(v4 || l.Dual, !v4)
	s.filter(l.Filter)
	s.by(&l.Path)
	s.bind(l.At, l.Scope)
	// Only now: the sockets that answer are on the same port. The kernel wants them
	// to be of the same user.
	s.must(unix.SOL_SOCKET, unix.SO_REUSEPORT, 1)
	r := s.result()
	return r.FD, r.Err
}

// Anchor makes a socket that keeps a port of ours while flows on it come and go.
// It is not connected and receives nothing. It is bound to one interface, so
// that whoever lists the host's services does not take it for one, and nothing
// from elsewhere is lost in it.
func Anchor(device string, v4 bool, port uint16) (int, error) {
	a := netip.IPv6Unspecified()
	if v4 {
		a = netip.IPv4Unspecified()
	}
	s := bare(ipc.ProtoUDP, v4)
	s.dropInput()
	if !v4 {
		s.must(unix.IPPROTO_IPV6, unix.IPV6_V6ONLY, 1)
	}
	s.must(unix.SOL_SOCKET, unix.SO_REUSEPORT, 1)
	s.by(&Path{Device: device})
	s.bind(netip.AddrPortFrom(a, port), 0)
	r := s.result()
	return r.FD, r.Err
}

// destinations has a socket tell where each datagram was sent to.
func (s *socket) destinations(v4, v6 bool) {
	if v4 {
		s.try(unix.IPPROTO_IP, unix.IP_PKTINFO, 1)
	}
	if v6 {
		s.try(unix.IPPROTO_IPV6, unix.IPV6_RECVPKTINFO, 1)
	}
}

// dropInput attaches a socket filter that accepts nothing; acceptInput takes it away.
func (s *socket) dropInput() { s.filter(Nothing) }

func (s *socket) acceptInput() { s.must(unix.SOL_SOCKET, unix.SO_DETACH_FILTER, 0) }
