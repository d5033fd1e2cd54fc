// SPDX-License-Identifier: Apache-2.0

package sockets

import (
	"encoding/binary"
	"errors"
	"fmt"
	"iter"
	"math/bits"

	"golang.org/x/sys/unix"

	"aldente/ipc"
)

// Ports is a set of port numbers.
type Ports [1 << 16 / 64]uint64

// Add adds a port.
func (p *Ports) Add(port uint16) { p[port/64] |= 1 << (port % 64) }

// Has tells whether port is in the set.
func (p *Ports) Has(port uint16) bool { return p[port/64]>>(port%64)&1 != 0 }

// Clear takes a port away.
func (p *Ports) Clear(port uint16) { p[port/64] &^= 1 << (port % 64) }

// Merge adds all ports of q.
func (p *Ports) Merge(q *Ports) {
	for i := range p {
		p[i] |= q[i]
	}
}

// All yields the ports in order.
func (p *Ports) All() iter.Seq[uint16] {
	return func(yield func(uint16) bool) {
		for i, w := range p {
			for ; w != 0; w &= w - 1 {
				if !yield(uint16(i*64 + bits.TrailingZeros64(w))) {
					return
				}
			}
		}
	}
}

// Scanner lists the ports that are bound in the network namespace in which its
// NETLINK_SOCK_DIAG socket was made.
type Scanner struct {
	fd   int
	seq  uint32
	buf  []byte
	skip [2]bool // families that the kernel does not have
}

// NewScanner makes a scanner of the socket, which becomes its own.
func NewScanner(fd int) *Scanner { return &Scanner{fd: fd, buf: make([]byte, 64<<10)} }

// OpenScanner makes a scanner of our own namespace.
func OpenScanner() (*Scanner, error) {
	fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.NETLINK_SOCK_DIAG)
	if err != nil {
		return nil, fmt.Errorf("sock_diag socket: %w", err)
	}
	return NewScanner(fd), nil
}

// Sizes and values of include/uapi/linux/inet_diag.h, sock_diag.h and
// net/tcp_states.h.
const (
	sockDiagByFamily = 20
	inetDiagReqLen   = 56
	inetDiagMsgLen   = 72
	inetDiagSport    = 4 // offset in both
	stateClose       = 7
	stateListen      = 10
)

// Bound adds to p the ports of TCP sockets that listen, or of UDP sockets that
// are bound and not connected, of any address.
func (s *Scanner) Bound(proto uint8, p *Ports) error {
	states := uint32(1 << stateListen)
	if proto == ipc.ProtoUDP {
		states = 1 << stateClose
	}
	for k, family := range [...]uint8{unix.AF_INET, unix.AF_INET6} {
		if s.skip[k] {
			continue
		}
		err := s.dump(family, proto, states, p)
		if errors.Is(err, unix.ENOENT) && family == unix.AF_INET6 {
			s.skip[k] = true
			continue
		}
		if err != nil {
			return fmt.Errorf("sock_diag: %w", err)
		}
	}
	return nil
}

func (s *Scanner) dump(family, proto uint8, states uint32, p *Ports) error {
	s.seq++
	var req [unix.SizeofNlMsghdr + inetDiagReqLen]byte
	binary.NativeEndian.PutUint32(req[0:], uint32(len(req)))
	binary.NativeEndian.PutUint16(req[4:], sockDiagByFamily)
	binary.NativeEndian.PutUint16(req[6:], unix.NLM_F_REQUEST|unix.NLM_F_DUMP)
	binary.NativeEndian.PutUint32(req[8:], s.seq)
	body := req[unix.SizeofNlMsghdr:]
	body[0], body[1] = family, proto
	binary.NativeEndian.PutUint32(body[4:], states)
	if err := unix.Sendto(s.fd, req[:], 0, &unix.SockaddrNetlink{Family: unix.AF_NETLINK}); err != nil {
		return err
	}
	for {
		n, err := unix.Read(s.fd, s.buf)
		if err == unix.EINTR {
			continue
		}
		if err != nil {
			return err
		}
		done, err := s.take(s.buf[:n], p)
		if done || err != nil {
			return err
		}
	}
}

// take reads one datagram of a dump. done tells that it was the last.
func (s *Scanner) take(b []byte, p *Ports) (done bool, err error) {
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
		case typ == sockDiagByFamily && len(body) >= inetDiagMsgLen:
			p.Add(binary.BigEndian.Uint16(body[inetDiagSport:]))
		}
	}
	return false, nil
}
