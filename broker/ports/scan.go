// SPDX-License-Identifier: Apache-2.0

package ports

import (
	"errors"
	"fmt"

	"golang.org/x/sys/unix"

	"aldente/broker/rtnl"
	"aldente/ipc"
)

// Scanner lists the ports that are bound in the network namespace that it was
// opened in. It is not for concurrent use.
//
// A scan is four questions to the kernel, whose answers come in pieces. One Step
// reads one piece, so that the caller can do other things in between.
type Scanner struct {
	diag   *rtnl.SockDiag
	absent [len(questions)]bool // the kernel does not have the family

	sets  [2]*Set // of TCP and UDP, of the scan under way
	at    int     // the question under way
	asked bool
	lost  bool // the last scan did not end: there may be something left to read
}

// questions are what a scan consists of.
var questions = [...]rtnl.SockQuery{
	{Family: unix.AF_INET, Proto: ipc.ProtoTCP, States: 1 << rtnl.StateListen},
	{Family: unix.AF_INET6, Proto: ipc.ProtoTCP, States: 1 << rtnl.StateListen},
	{Family: unix.AF_INET, Proto: ipc.ProtoUDP, States: 1 << rtnl.StateClose},
	{Family: unix.AF_INET6, Proto: ipc.ProtoUDP, States: 1 << rtnl.StateClose},
}

// Open makes a scanner of the namespace of the calling thread.
func Open() (*Scanner, error) {
	d, err := rtnl.DialSockDiag()
	if err != nil {
		return nil, err
	}
	return &Scanner{diag: d}, nil
}

// Close closes the scanner's socket.
func (s *Scanner) Close() error { return s.diag.Close() }

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
		s.diag.Drain()
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
		if err := s.diag.List(&questions[s.at]); err != nil {
			return false, fmt.Errorf("sock_diag: %w", err)
		}
		s.asked = true
	}
	set := s.set()
	end, err := s.diag.Next(func(k rtnl.Sock) {
		if !holdsPort(k) {
			set.Add(k.Port())
		}
	})
	if errors.Is(err, unix.ENOENT) && questions[s.at].Family == unix.AF_INET6 {
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
	if questions[s.at].Proto == ipc.ProtoUDP {
		return s.sets[1]
	}
	return s.sets[0]
}

// holdsPort tells whether a socket is no service but holds a port for an
// instance's guest. Such a socket is not connected, and bound to the loopback
// interface. That is always the first of a namespace.
func holdsPort(k rtnl.Sock) bool {
	return k.State() == rtnl.StateClose && k.Device() == rtnl.Loopback
}
