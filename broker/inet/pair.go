// SPDX-License-Identifier: Apache-2.0

package inet

import (
	"net/netip"
	"os"
	"time"

	"golang.org/x/sys/unix"

	"aldente/ipc"
	"aldente/ipc/sock"
)

// pairPatience bounds how long the two ends of a connection on loopback may take to find
// each other. They need a few microseconds, unless somebody floods the port.
const pairPatience = time.Second

// PairAddr is the address of the host's loopback that pairs have, and nothing else: 53 is
// the port of names.
var PairAddr = netip.AddrFrom4([4]byte{127, 53, 53, 53})

// Pair makes two sockets of UDP or TCP on the host's loopback that are connected to each
// other, and to nobody else at any time: what anybody else has sent to either is lost. The
// first is as a flow's is, see Flow and Connect, for who peeks; the second has nothing that
// its reader has to know of. The first is connected to PairAddr and a port.
func Pair(proto uint8) (flow, other int, port uint16, err error) {
	if proto == ipc.ProtoTCP {
		flow, other, err = pairTCP()
	} else {
		flow, other, err = pairUDP()
	}
	if err == nil {
		port = LocalPort(other)
	}
	return flow, other, port, err
}

func pairAt(port uint16) netip.AddrPort { return netip.AddrPortFrom(PairAddr, port) }

// pairUDP binds both ends before either is connected, and drains them when both are.
func pairUDP() (int, int, error) {
	a, b := bare(ipc.ProtoUDP, true), bare(ipc.ProtoUDP, true)
	a.bindFlow(&Flow{From: pairAt(0)})
	b.bind(pairAt(0), 0)
	if a.err == nil && b.err == nil {
		a.connect(pairAt(LocalPort(b.fd)), 0)
		b.connect(pairAt(LocalPort(a.fd)), 0)
	}
	if a.err == nil && b.err == nil {
		a.drainFlow()
		b.drainFlow()
	}
	// Both, or none.
	if a.err == nil {
		a.err = b.err
	}
	b.err = a.err
	ra, rb := a.result(), b.result()
	return ra.FD, rb.FD, ra.Err
}

// pairTCP listens, connects, and accepts whoever comes until it is the one that was
// connected.
func pairTCP() (int, int, error) {
	l := bare(ipc.ProtoTCP, true)
	l.urgentInline()
	l.try(unix.IPPROTO_TCP, unix.TCP_NODELAY, 1) // what is accepted inherits it
	l.bind(pairAt(0), 0)
	if l.err == nil {
		l.err = ListenAgain(l.fd)
	}
	if r := l.result(); r.Err != nil {
		return -1, -1, r.Err
	}
	defer unix.Close(l.fd)
	c := Connect{Source: PairAddr, To: pairAt(LocalPort(l.fd)), Peeks: true}
	r := c.Dial()
	if r.Err != nil {
		return -1, -1, r.Err
	}
	fd, err := acceptFrom(l.fd, LocalPort(r.FD))
	if err != nil {
		unix.Close(r.FD)
		return -1, -1, err
	}
	return r.FD, fd, nil
}

// acceptFrom accepts the connection that comes from a port, which is ours, and closes
// others.
func acceptFrom(listener int, port uint16) (int, error) {
	for end := time.Now().Add(pairPatience); ; {
		fd, from, err := sock.Accept4(listener, unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC)
		switch {
		case err == nil && portOf(from) == port:
			return fd, nil
		case err == nil:
			unix.Close(fd)
		case err != unix.EAGAIN && err != unix.EINTR && err != unix.ECONNABORTED:
			return -1, os.NewSyscallError("accept4", err)
		}
		left := time.Until(end)
		if left <= 0 {
			return -1, os.NewSyscallError("accept4", unix.ETIMEDOUT)
		}
		if err == unix.EAGAIN {
			_, _ = unix.Poll([]unix.PollFd{{Fd: int32(listener), Events: unix.POLLIN}}, int(left/time.Millisecond)+1)
		}
	}
}

// Question says which socket is to be made by which a resolver is asked one question.
type Question struct {
	Path
	Source netip.Addr     // zero: the kernel's choice
	To     netip.AddrPort // the resolver
}

// Dial makes it, of UDP. It has a port that the kernel chooses by chance, and receives
// nothing from anybody else, at no time.
func (q *Question) Dial() Result {
	v4 := q.To.Addr().Is4()
	s := bare(ipc.ProtoUDP, v4)
	if v4 {
		s.try(unix.IPPROTO_IP, unix.IP_RECVERR, 1)
	} else {
		s.try(unix.IPPROTO_IPV6, unix.IPV6_RECVERR, 1)
	}
	s.freebind(&q.Path)
	s.by(&q.Path)
	if q.Source.IsValid() {
		s.bind(netip.AddrPortFrom(q.Source, 0), q.Scope)
	}
	s.connect(q.To, q.Scope)
	s.drain()
	return s.result()
}

// drainMost is how many datagrams drain throws away: more than can come in the time that
// connect takes.
const drainMost = 64

// drain throws away what strangers have sent before a socket was connected. A filter
// would keep it out, but to attach one, a program that the kernel compiles, costs more than all
// else of a socket: too much for what lives for one question. No byte of what they have sent is read.
func (s *socket) drain() {
	failed := false // an error was waiting: a socket's that had the port before, or of somebody's making
	for n := 0; s.err == nil; n++ {
		_, _, _, _, err := sock.Recvmsg(s.fd, nil, nil, unix.MSG_DONTWAIT)
		switch {
		case err == unix.EAGAIN:
			return
		case n == drainMost:
			s.err = os.NewSyscallError("recvmsg", unix.EBUSY)
		case err == nil || err == unix.EINTR:
		case failed:
			s.err = os.NewSyscallError("recvmsg", err)
		default:
			failed = true // and is gone, read
		}
	}
}
