// SPDX-License-Identifier: Apache-2.0

// Package netlink is a netlink socket that hears the kernel and nobody else.
//
// A netlink socket has an address, its port identifier, and whoever has
// CAP_NET_ADMIN over its network namespace may send to it: root of a guest to a
// socket in the guest's. The kernel's own address is zero. A socket that is
// connected to it refuses all other senders; they get ECONNREFUSED. What reached
// it in the moment before is thrown away, and the sender of each message is
// looked at besides.
package netlink

import (
	"errors"
	"fmt"
	"time"

	"golang.org/x/sys/unix"

	"aldente/ipc/sock"
)

// Errors of Receive that are not the kernel's.
var (
	ErrForeign   = errors.New("netlink: too many messages that are not the kernel's")
	ErrTruncated = errors.New("netlink: message longer than the buffer")
)

// maxForeign bounds the messages of others that are passed over. Once the socket
// is connected there are none; before, its receive buffer bounds them.
const maxForeign = 1 << 14

// answerTime is how long an answer may take. The kernel has it ready when the
// request has been sent.
const answerTime = 5 * time.Second

// Socket is a netlink socket in the network namespace of the thread that made
// it, in no multicast group. It is not for concurrent use.
type Socket struct {
	fd int
	// It is of sock_diag, where the answer is there when the request has been sent, and
	// nothing is waited for: Go's scheduler need not hear of such calls. Others wait for
	// whoever changes the network at that moment.
	prompt bool
}

// Dial opens a socket of the protocol (NETLINK_*).
func Dial(protocol int) (*Socket, error) {
	fd, err := sock.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC, protocol)
	if err != nil {
		return nil, fmt.Errorf("netlink socket: %w", err)
	}
	s, err := connect(fd)
	if err != nil {
		unix.Close(fd)
		return nil, err
	}
	s.prompt = protocol == unix.NETLINK_SOCK_DIAG
	return s, nil
}

// connect makes a Socket of a descriptor that nothing was asked on yet.
func connect(fd int) (*Socket, error) {
	if err := sock.Connect(fd, &unix.SockaddrNetlink{Family: unix.AF_NETLINK}); err != nil {
		return nil, fmt.Errorf("netlink socket: connect: %w", err)
	}
	tv := unix.NsecToTimeval(answerTime.Nanoseconds())
	if err := sock.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &tv); err != nil {
		return nil, fmt.Errorf("netlink socket: SO_RCVTIMEO: %w", err)
	}
	s := &Socket{fd: fd}
	s.Drain() // it had an address before it was connected
	return s, nil
}

// Close closes the socket.
func (s *Socket) Close() error { return unix.Close(s.fd) }

// Option sets a socket option of level SOL_NETLINK.
func (s *Socket) Option(name, value int) error {
	return sock.SetsockoptInt(s.fd, unix.SOL_NETLINK, name, value)
}

// Send sends one datagram to the kernel. It is a write(2), so that no filter has
// to permit sending to other addresses.
func (s *Socket) Send(b []byte) error {
	for {
		err := s.write(b)
		if err != unix.EINTR {
			return err
		}
	}
}

func (s *Socket) write(b []byte) error {
	if s.prompt {
		return sock.Write(s.fd, b)
	}
	_, err := unix.Write(s.fd, b)
	return err
}

// Receive reads one datagram of the kernel's into buf and returns what it filled.
// ENOBUFS says that some were lost: ask again, after Drain.
func (s *Socket) Receive(buf []byte) ([]byte, error) {
	if s.prompt {
		if b, err := receive(s.fd, buf, unix.MSG_DONTWAIT, false); err != unix.EAGAIN {
			return b, err
		}
	}
	return receive(s.fd, buf, 0, false)
}

// Drain throws away all that can be read now, what is left of a dump included.
func (s *Socket) Drain() {
	var b [1]byte
	for range maxForeign {
		if _, err := receive(s.fd, b[:], unix.MSG_DONTWAIT, false); errors.Is(err, unix.EAGAIN) {
			return
		}
	}
}

// receive reads one datagram of the kernel's: an answer, or with groups what it
// tells all.
func receive(fd int, buf []byte, flags int, groups bool) ([]byte, error) {
	for range maxForeign {
		n, _, got, from, err := sock.Recvmsg(fd, buf, nil, flags)
		switch sender, _ := from.(*unix.SockaddrNetlink); {
		case err == unix.EINTR:
		case err != nil:
			return nil, err
		case sender == nil || sender.Pid != 0 || sender.Groups != 0 && !groups:
		case got&unix.MSG_TRUNC != 0:
			return nil, ErrTruncated
		default:
			return buf[:n], nil
		}
	}
	return nil, ErrForeign
}
