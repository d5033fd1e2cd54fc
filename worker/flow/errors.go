// SPDX-License-Identifier: Apache-2.0

package flow

import (
	"syscall"

	"aldente/worker/packet"
)

// Refusal is what there is to say to a guest in place of an error number, the
// reason for which there is no socket, or for which one does not work.
type Refusal struct {
	// Again: for want of something that may be there the next time. The guest is
	// told nothing, and asks again by itself.
	Again bool
	// Reset: a host would answer a SYN with RST, whatever it says of a datagram.
	Reset bool
	// Told: there is a message for it, an ICMP one, or with v4 false an ICMPv6 one.
	Told bool
	// Type and Code are that message's; zero: there is none.
	Type, Code uint8
}

// meaning is a row of the one table of error numbers. Codes are those of
// "destination unreachable", of ICMP and of ICMPv6; without told there are none.
type meaning struct {
	again, reset, told bool
	code4, code6       uint8
}

var (
	lacking    = meaning{again: true}
	prohibited = meaning{told: true, code4: packet.ICMPAdminProhibited, code6: packet.ICMPv6AdminProhibited}
	noNetwork  = meaning{told: true, code4: packet.ICMPNetUnreachable, code6: packet.ICMPv6NoRoute}
	noHost     = meaning{told: true, code4: packet.ICMPHostUnreachable, code6: packet.ICMPv6AddrUnreachable}
	other      = meaning{reset: true}
)

// meanings is what a router would say (RFC 792, RFC 1812 section 5.2.7.1, RFC
// 4443 section 3.1), or the host behind it.
var meanings = [...]meaning{
	syscall.EMFILE:  lacking,
	syscall.ENFILE:  lacking,
	syscall.ENOBUFS: lacking,
	syscall.ENOMEM:  lacking,
	syscall.EAGAIN:  {again: true, reset: true}, // too many at a time: a program that connects hears of it

	syscall.EACCES:        prohibited,
	syscall.EPERM:         prohibited,
	syscall.ECONNREFUSED:  {told: true, reset: true, code4: packet.ICMPPortUnreachable, code6: packet.ICMPv6PortUnreachable},
	syscall.ENETUNREACH:   noNetwork,
	syscall.ENETDOWN:      noNetwork,
	syscall.EAFNOSUPPORT:  noNetwork,
	syscall.EADDRNOTAVAIL: noNetwork,
	syscall.EHOSTUNREACH:  noHost,
	syscall.EHOSTDOWN:     noHost,
	syscall.ETIMEDOUT:     noHost,
}

// Refuse is what there is to say to the guest in place of error e, with v4 about
// something that it has sent by IPv4.
func Refuse(e syscall.Errno, v4 bool) Refusal {
	m := other
	if e < syscall.Errno(len(meanings)) && meanings[e] != (meaning{}) {
		m = meanings[e]
	}
	r := Refusal{Again: m.again, Reset: m.reset, Told: m.told}
	switch {
	case !m.told:
	case v4:
		r.Type, r.Code = packet.ICMPDestUnreachable, m.code4
	default:
		r.Type, r.Code = packet.ICMPv6DestUnreachable, m.code6
	}
	return r
}

// Unreachable is what a router would tell the guest in place of error e: type
// and code of an ICMP message, or with v4 false of an ICMPv6 one. It reports
// false if a router would say nothing.
func Unreachable(e syscall.Errno, v4 bool) (typ, code uint8, ok bool) {
	r := Refuse(e, v4)
	return r.Type, r.Code, r.Told
}

// Message is the ICMP error, or with v4 false ICMPv6 error, that stands for an
// entry of an error queue: its type, code and second word. It reports false
// for what is no error, or of no concern to the guest.
func (e *SocketError) Message(v4 bool) (typ, code uint8, info uint32, ok bool) {
	switch {
	case e.Origin == OriginICMP && v4:
		info, ok = e.info4()
		return e.Type, e.Code, info, ok
	case e.Origin == OriginICMP6 && !v4:
		switch e.Type {
		case packet.ICMPv6PacketTooBig, packet.ICMPv6ParamProblem:
			return e.Type, e.Code, e.Info, true
		case packet.ICMPv6DestUnreachable, packet.ICMPv6TimeExceeded:
			return e.Type, e.Code, 0, true
		}
	case e.Errno == syscall.EMSGSIZE && v4:
		return packet.ICMPDestUnreachable, packet.ICMPFragNeeded, e.Info & 0xffff, true
	case e.Errno == syscall.EMSGSIZE:
		return packet.ICMPv6PacketTooBig, 0, e.Info, true
	case e.Origin == OriginLocal:
		typ, code, ok = Unreachable(e.Errno, v4)
		return typ, code, 0, ok
	case e.Origin == OriginICMP, e.Origin == OriginICMP6:
		// The socket is of the other family, as that to a resolver may be.
		typ, code, ok = Unreachable(e.Errno, v4)
		return typ, code, 0, ok
	}
	return 0, 0, 0, false
}

// TooLong tells whether the host itself has found a datagram too long for its path, and
// did not send it.
func (e *SocketError) TooLong() bool { return e.Origin == OriginLocal && e.Errno == syscall.EMSGSIZE }

// info4 is the second word of an ICMP error, as far as the kernel knows it.
func (e *SocketError) info4() (info uint32, ok bool) {
	switch {
	case e.Type == packet.ICMPDestUnreachable && e.Code == packet.ICMPFragNeeded:
		return e.Info & 0xffff, true // RFC 1191 section 4
	case e.Type == packet.ICMPParamProblem:
		return e.Info << 24, true // the pointer is the first byte, RFC 792
	case e.Type == packet.ICMPDestUnreachable, e.Type == packet.ICMPTimeExceeded:
		return 0, true
	}
	return 0, false
}

// Own is our address on the link, of one family. It is zero if there is none.
func (g *Guest) Own(v4 bool) packet.Addr {
	a := packet.Addr(g.Our6)
	if v4 {
		a = g.Our4
	}
	if a.IsUnspecified() || a.Is4() != v4 {
		return packet.Addr{}
	}
	return a
}

// Offender is the source, as the guest sees it, of an ICMP error about what the
// guest has sent to remote. On the host, that is really peer, and by is who
// sent the error, zero if it was the host itself.
func (g *Guest) Offender(by, peer, remote packet.Addr) packet.Addr {
	v4 := remote.Is4()
	if by == peer && !by.IsUnspecified() {
		return remote
	}
	if !by.IsUnspecified() {
		if a := g.InboundSource(by); !a.IsUnspecified() && a.Is4() == v4 {
			return a
		}
	}
	own := g.Own(v4)
	switch {
	case own.IsZero():
		return remote
	case !v4 && remote.IsLinkLocal():
		return g.linkLocal()
	}
	return own
}

// ICMPError is what the guest is told of something that it has sent: an ICMP or
// ICMPv6 message from Src, with Info as second word.
type ICMPError struct {
	Type, Code uint8       // of ICMP or ICMPv6, by the family of Src
	Info       uint32      // in host byte order: an MTU, a pointer, else zero
	Src        packet.Addr // whom the message seems to come from
}

// Error is the message for an error number, if it is one that routers have a
// message for. The guest has sent to remote, which is peer on the host.
func (g *Guest) Error(e syscall.Errno, peer, remote packet.Addr) (m ICMPError, ok bool) {
	m.Type, m.Code, ok = Unreachable(e, remote.Is4())
	m.Src = g.Offender(packet.Addr{}, peer, remote)
	return m, ok
}

// MaxErrors bounds the errors read at a time. A socket's buffer holds fewer.
const MaxErrors = 4096

// ErrorQueue reads sockets' error queues. Its Buf holds what came back of a
// datagram.
type ErrorQueue struct{ SocketError }

// Drain empties the error queue of a socket. The guest calls the socket's peer
// remote; on the host it is peer. tell is called for what the guest has to know,
// with as much as came back of the payload that it is about. Drain reports false
// if the queue cannot be emptied.
func (q *ErrorQueue) Drain(env Errors, fd int32, g *Guest, peer, remote packet.Addr, tell func(m ICMPError, quote []byte)) bool {
	for n := range MaxErrors {
		switch errno := env.RecvError(fd, &q.SocketError); errno {
		case 0:
			if m, ok := q.message(g, peer, remote); ok {
				tell(m, q.Buf[:min(q.N, len(q.Buf))])
			}
		case syscall.EAGAIN:
			// What is left is an error without details.
			if m, ok := g.Error(env.TakeError(fd), peer, remote); ok && n == 0 {
				tell(m, nil)
			}
			return true
		default:
			return false
		}
	}
	return false
}

// Lengths of the headers of IPv4 and IPv6, in bytes.
const (
	headers4 = 20
	headers6 = 40
)

func (e *SocketError) message(g *Guest, peer, remote packet.Addr) (m ICMPError, ok bool) {
	m.Type, m.Code, m.Info, ok = e.Message(remote.Is4())
	switch v4 := peer.Is4(); { // an MTU is that of the socket's family, with its headers
	case e.Errno != syscall.EMSGSIZE || v4 == remote.Is4():
	case v4:
		m.Info += headers6 - headers4
	default:
		m.Info -= min(m.Info, headers6-headers4)
	}
	by := e.Offender
	if e.Origin == OriginLocal {
		by = packet.Addr{}
	}
	m.Src = g.Offender(by, peer, remote)
	return m, ok
}
