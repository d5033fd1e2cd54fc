// SPDX-License-Identifier: Apache-2.0

package ipc

import (
	"fmt"
	"io"

	"golang.org/x/sys/unix"

	"aldente/ipc/sock"
)

// Pair returns the two ends of a new channel, close-on-exec.
func Pair() (a, b int, err error) {
	fds, err := sock.Socketpair(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return -1, -1, fmt.Errorf("socketpair: %w", err)
	}
	return fds[0], fds[1], nil
}

// Send writes one message, with a descriptor if fd is not negative. It is for
// the broker and the agent: the others may not call sendmsg and write their
// records with write(2).
func Send(conn int, rec []byte, fd int) error {
	if err := SendNow(conn, rec, fd); err != unix.EAGAIN { // hardly ever: the scheduler need not hear of it
		return err
	}
	return send(conn, rec, fd, 0)
}

// SendNow is Send without waiting for room: then it fails.
func SendNow(conn int, rec []byte, fd int) error { return send(conn, rec, fd, unix.MSG_DONTWAIT) }

func send(conn int, rec []byte, fd, flags int) error {
	var oob []byte
	if fd >= 0 {
		oob = unix.UnixRights(fd)
	}
	for {
		err := sock.Sendmsg(conn, rec, oob, nil, unix.MSG_NOSIGNAL|flags)
		if err != unix.EINTR {
			return err
		}
	}
}

// Receive reads one message into buf and the descriptor that came with it, or
// -1. At the end of the channel it returns io.EOF. A message that is longer
// than buf, or that brings more than one descriptor, is malformed; whatever
// descriptors it brought are closed.
func Receive(conn int, buf []byte, flags int) (n, fd int, err error) {
	// Room for two, so that a second one is seen and refused.
	var oob [64]byte
	var oobn, rflags int
	for {
		n, oobn, rflags, _, err = sock.Recvmsg(conn, buf, oob[:], flags|unix.MSG_CMSG_CLOEXEC)
		if err != unix.EINTR {
			break
		}
	}
	if err != nil {
		return 0, -1, err
	}
	fds := rights(oob[:oobn])
	switch {
	case n == 0 && len(fds) == 0:
		return 0, -1, io.EOF
	case rflags&(unix.MSG_TRUNC|unix.MSG_CTRUNC) != 0 || len(fds) > 1:
		closeAll(fds)
		return 0, -1, fmt.Errorf("%w: truncated, or %d descriptors", ErrMalformed, len(fds))
	case len(fds) == 1:
		return n, fds[0], nil
	}
	return n, -1, nil
}

// ReceiveNow is Receive without waiting for a message: where there is none, it is unix.EAGAIN.
func ReceiveNow(conn int, buf []byte) (n, fd int, err error) {
	return Receive(conn, buf, unix.MSG_DONTWAIT)
}

// rights returns every descriptor in oob; malformed control data cannot come
// from the kernel and yields none.
func rights(oob []byte) []int {
	if len(oob) == 0 {
		return nil
	}
	msgs, err := unix.ParseSocketControlMessage(oob)
	if err != nil {
		return nil
	}
	var all []int
	for i := range msgs {
		if fds, err := unix.ParseUnixRights(&msgs[i]); err == nil {
			all = append(all, fds...)
		}
	}
	return all
}

func closeAll(fds []int) {
	for _, fd := range fds {
		unix.Close(fd)
	}
}
