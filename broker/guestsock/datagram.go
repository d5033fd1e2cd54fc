// SPDX-License-Identifier: Apache-2.0

package guestsock

import (
	"errors"
	"time"

	"golang.org/x/sys/unix"

	"aldente/ipc/sock"
)

// Nobody connects to a datagram socket in a way that its owner is told of. The first
// datagram says who the client is. From then on the socket is connected to it: the
// kernel refuses what others send, and the worker may answer without a name. What is in
// a datagram only the worker reads.
//
// When the client has gone, the socket is disconnected, and waits for the next. It is the
// same socket that the worker has, which could go on reading from it. So each client gets
// a worker of its own, and the last one has ended before the next client is heard.

// complaintEvery is how often at most the log is told of a client that cannot be served.
const complaintEvery = 10 * time.Second

// maxQueued bounds the datagrams that are looked at, of a client that goes on sending.
const maxQueued = 1 << 12

// Answers tells whether the server connects to its clients' own sockets, as nobody
// connects to a datagram socket.
func (s *Server) Answers() bool { return !s.given && types[s.kind].number == unix.SOCK_DGRAM }

// serveDatagrams serves one client after the other.
func (s *Server) serveDatagrams(worker Worker) {
	var complained time.Time
	for !s.spent() {
		from, cred, err := s.sender()
		if errors.Is(err, errShutDown) {
			s.log.Error("the guest's socket is of no use any more", "error", err)
			return
		}
		if err == nil {
			err = s.meet(from)
		}
		if err != nil {
			if now := time.Now(); now.Sub(complained) > complaintEvery {
				complained = now
				s.log.Warn("a datagram on the guest's socket cannot be answered"+datagramHint(err), "error", err)
			}
			s.drop()
			continue
		}
		if s.offer(s.fd, cred, worker) {
			s.awaitGone()
			s.renew(worker)
		}
		s.part()
	}
}

// renew ends the worker that has the socket, unless it has ended by itself.
func (s *Server) renew(worker Worker) {
	if s.spent() {
		return
	}
	for deadline := time.Now().Add(renewal); s.known() && time.Now().Before(deadline); time.Sleep(time.Millisecond) {
		worker.Renew()
	}
}

// known tells whether the worker runs that has got the last client.
func (s *Server) known() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.last.known
}

// errNameless is why a client cannot be answered that has no path; errShutDown why
// nobody is heard any more: whoever has the socket, a worker too, can do that.
var (
	errNameless = errors.New("its sender has no path")
	errShutDown = errors.New("it was shut down")
)

// datagramHint says what to do.
func datagramHint(err error) string {
	switch {
	case errors.Is(err, errNameless):
		return " (it has to bind its socket to a path of its own)"
	case errors.Is(err, unix.EACCES), errors.Is(err, unix.EPERM):
		return " (passt has to run as the virtual machine's user: --runas)"
	}
	return ""
}

// sender waits for a datagram and says whose it is, without taking it or reading any of it.
func (s *Server) sender() (*unix.SockaddrUnix, *unix.Ucred, error) {
	for {
		_, from, cred, err := s.look()
		switch err {
		case unix.EAGAIN:
			p := []unix.PollFd{{Fd: int32(s.fd), Events: unix.POLLIN | unix.POLLRDHUP}}
			if _, err := unix.Poll(p, -1); err == nil && p[0].Revents&(unix.POLLRDHUP|unix.POLLHUP|unix.POLLNVAL) != 0 {
				return nil, nil, errShutDown
			}
			continue
		case unix.EINTR:
			continue
		case nil:
			return from, cred, nil
		}
		time.Sleep(acceptPause) // for want of memory, for now
		return nil, nil, err
	}
}

// look looks at the next datagram, as SO_PEEK_OFF has it, and returns its size.
func (s *Server) look() (size int, from *unix.SockaddrUnix, cred *unix.Ucred, err error) {
	oob := make([]byte, unix.CmsgSpace(unix.SizeofUcred))
	size, oobn, _, sa, err := sock.Recvmsg(s.fd, nil, oob, unix.MSG_PEEK|unix.MSG_TRUNC|unix.MSG_DONTWAIT)
	if err != nil {
		return 0, nil, nil, err
	}
	from, _ = sa.(*unix.SockaddrUnix)
	cred = &unix.Ucred{}
	if messages, err := unix.ParseSocketControlMessage(oob[:oobn]); err == nil && len(messages) == 1 {
		if c, err := unix.ParseUnixCredentials(&messages[0]); err == nil {
			cred = c
		}
	}
	return size, from, cred, nil
}

// drop takes the next datagram, unread.
func (s *Server) drop() bool {
	_, _, _, _, err := sock.Recvmsg(s.fd, nil, nil, unix.MSG_DONTWAIT)
	return err == nil
}

// meet connects to a client. What others have sent meanwhile goes, and so does all that
// is behind it.
func (s *Server) meet(from *unix.SockaddrUnix) error {
	if from == nil || from.Name == "" || from.Name[0] == '@' {
		return errNameless // an abstract one is out of a confined process's reach
	}
	if err := sock.Connect(s.fd, from); err != nil {
		return err
	}
	if s.others(from.Name) {
		for s.drop() {
		}
		s.log.Info("two clients on the guest's socket at once: what they have sent is dropped")
	}
	return nil
}

// others tells whether somebody else than this client has sent something that still waits.
func (s *Server) others(name string) bool {
	at := 0
	defer sock.SetsockoptInt(s.fd, unix.SOL_SOCKET, unix.SO_PEEK_OFF, -1)
	for range maxQueued {
		if sock.SetsockoptInt(s.fd, unix.SOL_SOCKET, unix.SO_PEEK_OFF, at) != nil {
			return false
		}
		size, from, _, err := s.look()
		switch {
		case err != nil:
			return false
		case from == nil || from.Name != name:
			return true
		}
		at += size
	}
	return true
}
