// SPDX-License-Identifier: Apache-2.0

package inet

import (
	"net/netip"
	"os"

	"golang.org/x/sys/unix"

	"aldente/ipc"
	"aldente/ipc/sock"
)

// backlog is how many connections may wait to be accepted; the kernel bounds
// it by net.core.somaxconn.
const backlog = 4096

// Connect says which TCP connection is to be made.
type Connect struct {
	Path
	Source netip.Addr     // zero: the kernel's choice
	To     netip.AddrPort // the peer
	Peeks  bool           // who reads it peeks, by SO_PEEK_OFF where the kernel has that
}

// Dial starts a connection and does not wait for its end, which whoever has the
// socket sees, though it could not have begun it.
func (c *Connect) Dial() Result {
	s := bare(ipc.ProtoTCP, c.To.Addr().Is4())
	return s.dial(c)
}

// DialBy is Dial with a socket of Bare's, which it owns from then on.
func (c *Connect) DialBy(fd int) Result {
	s := socket{fd: fd}
	return s.dial(c)
}

func (s *socket) dial(c *Connect) Result {
	s.urgentInline()
	s.try(unix.IPPROTO_TCP, unix.TCP_NODELAY, 1) // the guest's own Nagle has done its work
	if c.Peeks {
		s.try(unix.SOL_SOCKET, unix.SO_PEEK_OFF, 0)
	}
	s.by(&c.Path)
	if c.Source.IsValid() {
		s.try(unix.IPPROTO_IP, unix.IP_BIND_ADDRESS_NO_PORT, 1)
		s.bind(netip.AddrPortFrom(c.Source, 0), c.Scope)
	}
	s.begin(c.To, c.Scope)
	return s.result()
}

// urgentInline: urgent data are bytes as others are. Out of line, the kernel would
// take them out of the stream, and what was counted before would be counted wrongly
// (RFC 6093 section 4). The sockets that a listener accepts inherit it.
func (s *socket) urgentInline() { s.must(unix.SOL_SOCKET, unix.SO_OOBINLINE, 1) }

// Listener says what is to be listened on.
type Listener struct {
	Path
	At     netip.AddrPort // what it is bound to; port zero: the kernel's choice
	Dual   bool           // At is IPv6's unspecified address and stands for IPv4's, too
	Beside bool           // there are sockets of ours on the port; of TCP they must share it, see ShareTCP
	Filter Filter         // of UDP: what it hears
}

// ListenTCP makes a listening socket. Sockets of TCP that listen exclude each other
// in any case; SO_REUSEADDR lets them have ports of connections that are closed.
func (l *Listener) ListenTCP() (int, error) {
	s := bare(ipc.ProtoTCP, l.At.Addr().Is4())
	s.must(unix.SOL_SOCKET, unix.SO_REUSEADDR, 1)
	s.families(l)
	s.freebind(&l.Path)
	s.urgentInline()
	s.by(&l.Path)
	if l.Beside {
		s.must(unix.SOL_SOCKET, unix.SO_REUSEPORT, 1)
	}
	s.bind(l.At, l.Scope)
	if s.err == nil {
		s.err = ListenAgain(s.fd)
	}
	if l.Beside {
		s.must(unix.SOL_SOCKET, unix.SO_REUSEPORT, 0)
	}
	r := s.result()
	return r.FD, r.Err
}

// TakeTCP makes a socket that listens already, and that somebody else has made, such as
// ListenTCP makes them. What they had bound it with stays.
func TakeTCP(fd int) error {
	s := socket{fd: fd}
	s.must(unix.SOL_SOCKET, unix.SO_REUSEADDR, 1)
	s.urgentInline()
	if s.err == nil {
		s.err = os.NewSyscallError("O_NONBLOCK", unix.SetNonblock(fd, true))
	}
	if s.err == nil {
		s.err = ListenAgain(fd)
	}
	return s.err
}

// ShareTCP lets another socket of the same user listen beside one that listens, or
// ends that. What listens already goes on.
func ShareTCP(fd int, share bool) error {
	return os.NewSyscallError("setsockopt", sock.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_REUSEPORT, boolInt(share)))
}

// ListenAgain has a TCP socket listen that is bound, whether it listens or not.
func ListenAgain(fd int) error { return os.NewSyscallError("listen", sock.Listen(fd, backlog)) }

// families says which families a listener hears.
func (s *socket) families(l *Listener) {
	if !l.At.Addr().Is4() {
		s.must(unix.IPPROTO_IPV6, unix.IPV6_V6ONLY, boolInt(!l.Dual))
	}
}

// NoDelay has the connections that a listener accepts not wait for acknowledgments with
// what is said in small pieces.
func NoDelay(fd int) { _ = sock.SetsockoptInt(fd, unix.IPPROTO_TCP, unix.TCP_NODELAY, 1) }
