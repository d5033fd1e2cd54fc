// SPDX-License-Identifier: Apache-2.0

package guestsock

import (
	"errors"
	"fmt"
	"log/slog"

	"golang.org/x/sys/unix"

	"aldente/broker/tun"
	"aldente/ipc"
	"aldente/ipc/sock"
)

// types are the sockets that carry a kind of link, by ipc.Link*.
var types = [...]struct {
	number int // SOCK_*
	name   string
}{
	ipc.LinkStream:    {unix.SOCK_STREAM, "stream"},
	ipc.LinkVhostUser: {unix.SOCK_STREAM, "stream"},
	ipc.LinkDatagram:  {unix.SOCK_DGRAM, "datagram"},
	ipc.LinkSeqpacket: {unix.SOCK_SEQPACKET, "seqpacket"},
}

// Usable tells which kind of link a descriptor is that was passed on (-F), ipc.Link*. A
// negative one was not given: then it is the kind asked for. Only where that is
// LinkStream, as it is where nothing was asked for, other kinds are taken as well. The
// error says what has to be passed.
func Usable(fd int, kind uint8) (uint8, error) {
	if fd < 0 {
		return kind, nil
	}
	what := fmt.Sprintf("descriptor %d", fd)
	number, err := sock.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_TYPE)
	switch {
	case errors.Is(err, unix.EBADF):
		return 0, fmt.Errorf("%s: no such descriptor is open: whoever starts the program has to pass it on, without close-on-exec", what)
	case errors.Is(err, unix.ENOTSOCK):
		return tap(fd, what, kind)
	case err != nil:
		return 0, fmt.Errorf("%s: %w", what, err)
	}
	domain, err := sock.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_DOMAIN)
	if err != nil {
		return 0, fmt.Errorf("%s: %w", what, err)
	}
	if kind == ipc.LinkStream && domain == unix.AF_UNIX {
		for k, t := range types {
			if t.number == number && k != int(kind) && t.number != unix.SOCK_STREAM {
				kind = uint8(k)
			}
		}
	}
	if number != types[kind].number {
		return 0, fmt.Errorf("%s is not a %[2]s socket: one end of a connected UNIX %[2]s socket has to be passed on", what, types[kind].name)
	}
	if _, err := sock.Getpeername(fd); err != nil {
		return 0, fmt.Errorf("%s is not connected: %w; a socket to listen on is named with -s", what, err)
	}
	return kind, nil
}

// tap is Usable for what is no socket.
func tap(fd int, what string, kind uint8) (uint8, error) {
	flags, err := tun.Flags(fd)
	switch {
	case errors.Is(err, unix.EBADFD):
		return 0, fmt.Errorf("%s is a tap's clone device without an interface: whoever passes it on has to attach it first (TUNSETIFF)", what)
	case err != nil || kind != ipc.LinkStream:
		return 0, fmt.Errorf("%s is not a socket: one end of a connected UNIX %s socket has to be passed on", what, types[kind].name)
	case flags&unix.IFF_TAP == 0:
		return 0, fmt.Errorf("%s is a TUN device, of IP packets: a TAP device is needed, of Ethernet frames (IFF_TAP)", what)
	case flags&unix.IFF_NO_PI == 0:
		return 0, fmt.Errorf("%s is a tap with four bytes before each frame: it has to be made without (IFF_NO_PI)", what)
	case flags&unix.IFF_VNET_HDR == 0:
		return ipc.LinkPlainTap, nil
	}
	return ipc.LinkTap, nil
}

// Prepare makes a descriptor the link that Usable has found it to be.
func Prepare(fd int, kind uint8) (ipc.Link, error) {
	l := ipc.Link{Kind: kind}
	err := unix.SetNonblock(fd, true)
	unix.CloseOnExec(fd)
	switch {
	case err != nil:
	case kind == ipc.LinkTap:
		l.Offload, err = tun.SetUp(fd)
	case kind == ipc.LinkPlainTap:
		err = tun.SetPlain(fd)
	default:
		Enlarge(fd)
	}
	if err != nil {
		err = fmt.Errorf("descriptor %d: %w", fd, err)
	}
	return l, err
}

// Given is the server of -F: its one client is connected already, by a link of that
// kind, ipc.Link*.
func Given(kind uint8, log *slog.Logger) *Server {
	return &Server{log: log, fd: -1, kind: kind, given: true, client: -1, oneOff: true, busy: true, done: make(chan struct{})}
}

// bounded tells whether links of a kind keep the bounds of frames: whoever takes one over
// is never in the middle of one.
func bounded(kind uint8) bool {
	switch kind {
	case ipc.LinkTap, ipc.LinkPlainTap, ipc.LinkDatagram, ipc.LinkSeqpacket:
		return true
	}
	return false
}
