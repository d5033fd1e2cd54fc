// SPDX-License-Identifier: Apache-2.0

package ports

import (
	"encoding/binary"
	"errors"
	"fmt"
	"math/rand/v2"

	"golang.org/x/sys/unix"

	"aldente/broker/hostnet/netlink"
	"aldente/ipc"
)

// Scanner lists the ports that are bound in the network namespace that it was
// opened in. It is not for concurrent use.
//
// A scan is four questions to the kernel, whose answers come in pieces: one Step
// reads one of them, so that who has other things to do can do them in between.
type Scanner struct {
	socket *netlink.Socket
	seq    uint32
	buf    []byte
	absent [len(questions)]bool // the kernel does not have the family

	sets  [2]*Set // of TCP and UDP, of the scan under way
	at    int     // the question under way
	asked bool
	lost  bool // the last scan did not end: there may be something left to read
}

// questions are what a scan consists of.
var questions = [...]struct{ family, proto uint8 }{
	{unix.AF_INET, ipc.ProtoTCP}, {unix.AF_INET6, ipc.ProtoTCP},
	{unix.AF_INET, ipc.ProtoUDP}, {unix.AF_INET6, ipc.ProtoUDP},
}

// Open makes a scanner of the namespace of the calling thread.
func Open() (*Scanner, error) {
	s, err := netlink.Dial(unix.NETLINK_SOCK_DIAG)
	if err != nil {
		return nil, fmt.Errorf("sock_diag: %w", err)
	}
	return &Scanner{socket: s, seq: rand.Uint32(), buf: make([]byte, 64<<10)}, nil
}

// Close closes the scanner's socket.
func (s *Scanner) Close() error { return s.socket.Close() }

// Scan adds to tcp the ports of TCP sockets that listen, and to udp those of UDP
// sockets that are bound and not connected, of any address.
func (s *Scanner) Scan(tcp, udp *Set) error {
	s.Begin(tcp, udp)
	for {
		if done, err := s.Step(); done || err != nil {
			return err
		}
	}
}

// Begin starts a scan like that of Scan.
func (s *Scanner) Begin(tcp, udp *Set) {
	if s.lost {
		s.socket.Drain()
	}
	s.sets, s.at, s.asked, s.lost = [2]*Set{tcp, udp}, 0, false, true
}

// Step goes on with a scan, which ends with done or an error.
func (s *Scanner) Step() (done bool, err error) {
	if !s.asked {
		for s.at < len(questions) && s.absent[s.at] {
			s.at++
		}
		if s.at == len(questions) {
			s.lost = false
			return true, nil
		}
		if err := s.ask(); err != nil {
			return false, fmt.Errorf("sock_diag: %w", err)
		}
		s.asked = true
	}
	end := false
	b, err := s.socket.Receive(s.buf)
	if err == nil {
		end, err = s.take(b, s.set())
	}
	if errors.Is(err, unix.ENOENT) && questions[s.at].family == unix.AF_INET6 {
		s.absent[s.at] = true
		err = nil
	}
	if err != nil {
		return false, fmt.Errorf("sock_diag: %w", err)
	}
	if end {
		s.at++
		s.asked = false
	}
	return false, nil
}

// set is where the answers to the question under way belong.
func (s *Scanner) set() *Set {
	if questions[s.at].proto == ipc.ProtoUDP {
		return s.sets[1]
	}
	return s.sets[0]
}

// Sizes and values of include/uapi/linux/inet_diag.h, sock_diag.h and
// net/tcp_states.h.
const (
	sockDiagByFamily = 20
	inetDiagReqLen   = 56
	inetDiagMsgLen   = 72
	inetDiagState    = 1 // offsets in the latter
	inetDiagSport    = 4 // and in both
	inetDiagIf       = 40
	stateClose       = 7
	stateListen      = 10
)

func (s *Scanner) ask() error {
	q := &questions[s.at]
	states := uint32(1 << stateListen)
	if q.proto == ipc.ProtoUDP {
		states = 1 << stateClose
	}
	s.seq++
	var req [unix.SizeofNlMsghdr + inetDiagReqLen]byte
	binary.NativeEndian.PutUint32(req[0:], uint32(len(req)))
	binary.NativeEndian.PutUint16(req[4:], sockDiagByFamily)
	binary.NativeEndian.PutUint16(req[6:], unix.NLM_F_REQUEST|unix.NLM_F_DUMP)
	binary.NativeEndian.PutUint32(req[8:], s.seq)
	body := req[unix.SizeofNlMsghdr:]
	body[0], body[1] = q.family, q.proto
	binary.NativeEndian.PutUint32(body[4:], states)
	return s.socket.Send(req[:])
}

// take reads one datagram of a dump. done tells that it was the last.
func (s *Scanner) take(b []byte, p *Set) (done bool, err error) {
	for len(b) >= unix.SizeofNlMsghdr {
		n := int(binary.NativeEndian.Uint32(b))
		if n < unix.SizeofNlMsghdr || n > len(b) {
			return true, unix.EBADMSG
		}
		typ, seq := binary.NativeEndian.Uint16(b[4:]), binary.NativeEndian.Uint32(b[8:])
		body := b[unix.SizeofNlMsghdr:n]
		b = b[min((n+3)&^3, len(b)):]
		switch {
		case seq != s.seq:
		case typ == unix.NLMSG_DONE:
			return true, nil
		case typ == unix.NLMSG_ERROR && len(body) >= 4:
			return true, unix.Errno(-int32(binary.NativeEndian.Uint32(body)))
		case typ == sockDiagByFamily && len(body) >= inetDiagMsgLen && holdsPort(body):
		case typ == sockDiagByFamily && len(body) >= inetDiagMsgLen:
			p.Add(binary.BigEndian.Uint16(body[inetDiagSport:]))
		}
	}
	return false, nil
}

// holdsPort tells whether a socket is one with which an instance holds a port for
// its guest, and which is no service: it is not connected, and on the loopback
// interface only. That is always the first of a namespace.
func holdsPort(body []byte) bool {
	return body[inetDiagState] == stateClose && binary.NativeEndian.Uint32(body[inetDiagIf:]) == 1
}
