// SPDX-License-Identifier: Apache-2.0

package netlink

import (
	"errors"
	"fmt"
	"os"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// Subscription hears what the kernel tells multicast groups. What anybody else
// sends to these, which takes CAP_NET_ADMIN, is passed over as on a Socket. It is
// not for concurrent use.
type Subscription struct {
	file *os.File
	raw  syscall.RawConn
}

// Subscribe opens a socket of the protocol (NETLINK_*) in the network namespace of
// the calling thread and has it join the groups (RTNLGRP_* for NETLINK_ROUTE).
func Subscribe(protocol int, groups ...int) (*Subscription, error) {
	s, err := Dial(protocol)
	if err != nil {
		return nil, err
	}
	for _, g := range groups {
		if err := s.Option(unix.NETLINK_ADD_MEMBERSHIP, g); err != nil {
			s.Close()
			return nil, fmt.Errorf("netlink socket: group %d: %w", g, err)
		}
	}
	// The runtime's poller waits for it: while nothing happens, no thread does.
	if err := unix.SetNonblock(s.fd, true); err != nil {
		s.Close()
		return nil, fmt.Errorf("netlink socket: %w", err)
	}
	f := os.NewFile(uintptr(s.fd), "netlink")
	raw, err := f.SyscallConn()
	if err == nil {
		err = f.SetReadDeadline(time.Time{}) // fails if it cannot be polled
	}
	if err != nil {
		f.Close()
		return nil, fmt.Errorf("netlink socket: %w", err)
	}
	return &Subscription{f, raw}, nil
}

// Receive waits for one datagram of the kernel's, reads it into buf and returns
// what it filled. ENOBUFS and ErrTruncated say that some was lost; with a deadline
// that has passed it is os.ErrDeadlineExceeded, after Close os.ErrClosed.
func (s *Subscription) Receive(buf []byte) (b []byte, err error) {
	e := s.raw.Read(func(fd uintptr) bool {
		b, err = receive(int(fd), buf, unix.MSG_DONTWAIT, true)
		return err != unix.EAGAIN
	})
	switch {
	case errors.Is(e, os.ErrDeadlineExceeded):
		return nil, os.ErrDeadlineExceeded
	case e != nil:
		return nil, os.ErrClosed
	}
	return b, err
}

// Waiting is Receive for a datagram that is there: unix.EAGAIN says that there is none.
func (s *Subscription) Waiting(buf []byte) (b []byte, err error) {
	e := s.raw.Read(func(fd uintptr) bool {
		b, err = receive(int(fd), buf, unix.MSG_DONTWAIT, true)
		return true
	})
	if e != nil { // closed, or a deadline has passed
		return nil, unix.EAGAIN
	}
	return b, err
}

// Deadline bounds how long Receive waits; the zero time is for ever.
func (s *Subscription) Deadline(t time.Time) error { return s.file.SetReadDeadline(t) }

// Close closes the socket, and ends a Receive.
func (s *Subscription) Close() error { return s.file.Close() }
