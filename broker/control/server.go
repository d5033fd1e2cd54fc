// SPDX-License-Identifier: Apache-2.0

// Package control is the socket by which the port rules of a running instance are
// looked at and changed (-c). It reads the requests of the instance's own user and of
// root, and nothing of the guest's.
package control

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"slices"
	"time"

	"golang.org/x/sys/unix"

	"aldente/broker/control/wire"
)

// Bounds on a client.
const (
	// patience is how long a client may take altogether. Meanwhile others wait, since
	// what it sends back is what it was shown, changed.
	patience = 5 * time.Second
	// refusalPause follows each client that is refused, so that a guest that connects
	// over and over costs next to nothing.
	refusalPause = time.Millisecond
	// acceptPause is how long to wait for descriptors or memory.
	acceptPause = 100 * time.Millisecond
	// refusalsTold is how often the log tells of clients that were refused.
	refusalsTold = time.Second
)

// Rules are what clients change. Tables is called, and after that Change at most once,
// for one client after the other.
type Rules interface {
	// Tables returns the tables in force.
	Tables() []wire.Table
	// Change puts other tables in force, all of them or none. A table that is not
	// among them stays as it is.
	Change([]wire.Table) error
}

// Server has one client at a time.
type Server struct {
	log      *slog.Logger
	listener *os.File
	remover  *remover
	users    []uint32 // who may connect
	cookie   uint64   // of our network namespace; zero: any may be the client's
	told     time.Time
	untold   int // refusals since
	patience time.Duration
}

// Options says who may connect.
type Options struct {
	Path  string   // of the socket
	Users []uint32 // besides root
	// Guest is set where the guest is processes of this system: clients must be in
	// our own network namespace, which is not the guest's.
	Guest  bool
	Logger *slog.Logger // required
}

// Listen binds the socket. It must be called before the process is confined, and
// starts a process that removes the socket when this one ends.
func Listen(o Options) (*Server, error) {
	fd, r, err := bind(o.Path)
	if err != nil {
		return nil, err
	}
	s := &Server{
		log: o.Logger, listener: os.NewFile(uintptr(fd), o.Path), remover: r,
		users: append([]uint32{0}, o.Users...), patience: patience,
	}
	if o.Guest {
		if s.cookie, err = unix.GetsockoptUint64(fd, unix.SOL_SOCKET, unix.SO_NETNS_COOKIE); err != nil || s.cookie == 0 {
			s.Close()
			return nil, fmt.Errorf("-c: this kernel cannot tell clients from the guest's processes (Linux 5.14 or later can): %w", err)
		}
	}
	return s, nil
}

// Close ends the server and removes its socket, which otherwise happens when this
// process ends.
func (s *Server) Close() {
	s.listener.Close()
	s.remover.remove()
}

// Serve has one client after the other, until Close.
func (s *Server) Serve(rules Rules) {
	for {
		fd, err := s.accept()
		switch {
		case errors.Is(err, unix.EMFILE), errors.Is(err, unix.ENFILE), errors.Is(err, unix.ENOBUFS), errors.Is(err, unix.ENOMEM):
			time.Sleep(acceptPause)
			continue
		case errors.Is(err, os.ErrClosed):
			return
		case err != nil:
			s.log.Error("control socket: no further client can be had", "error", err)
			return
		}
		client := os.NewFile(uintptr(fd), "control client")
		if why := s.stranger(fd); why != "" {
			client.Close()
			s.refused(why)
			time.Sleep(refusalPause)
			continue
		}
		s.serve(client, rules)
		client.Close()
	}
}

// accept waits for a client by way of the runtime's poller.
func (s *Server) accept() (fd int, err error) {
	conn, err := s.listener.SyscallConn()
	if err != nil {
		return -1, err
	}
	failed := conn.Read(func(l uintptr) bool {
		for {
			fd, _, err = unix.Accept4(int(l), unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK)
			if err != unix.EINTR && err != unix.ECONNABORTED {
				return err != unix.EAGAIN
			}
		}
	})
	if failed != nil {
		return -1, os.ErrClosed
	}
	return fd, err
}

// stranger returns why a client may not be one, or "".
//
// The namespace is that in which the client made its socket: the kernel makes ours
// for it in the same. That is settled before the socket is connected, and no process
// gets into a network namespace without privileges over it. So it does not matter
// what has become of the client since, nor which file it has found: a process of the
// guest's is not where this one is.
func (s *Server) stranger(fd int) string {
	cred, err := unix.GetsockoptUcred(fd, unix.SOL_SOCKET, unix.SO_PEERCRED)
	if err != nil {
		return "no credentials"
	}
	who := fmt.Sprintf("process %d of user %d", cred.Pid, cred.Uid)
	if !slices.Contains(s.users, cred.Uid) {
		return who + " is neither this instance's user nor root"
	}
	if s.cookie == 0 {
		return ""
	}
	if cookie, err := unix.GetsockoptUint64(fd, unix.SOL_SOCKET, unix.SO_NETNS_COOKIE); err != nil || cookie != s.cookie {
		return who + " is in another network namespace than this instance, as the guest is"
	}
	return ""
}

// refused tells of a client that was refused, once in a while.
func (s *Server) refused(why string) {
	now := time.Now()
	if now.Sub(s.told) < refusalsTold {
		s.untold++
		return
	}
	args := []any{"reason", why}
	if s.untold > 0 {
		args = append(args, "more", s.untold)
	}
	s.told, s.untold = now, 0
	s.log.Warn("control client refused", args...)
}

// serve is one client's turn.
func (s *Server) serve(client *os.File, rules Rules) {
	if err := client.SetDeadline(time.Now().Add(s.patience)); err != nil {
		s.log.Error("control socket", "error", err)
		return
	}
	if _, err := client.Write(wire.AppendHello(nil, rules.Tables())); err != nil {
		s.gone(err)
		return
	}
	tables, err := wire.ReadTables(bufio.NewReader(client))
	switch {
	case errors.Is(err, io.EOF), errors.Is(err, unix.ECONNRESET), errors.Is(err, unix.EPIPE):
		return // it wanted to know, and no more
	case errors.Is(err, wire.ErrMalformed):
		s.log.Error("port rules stay as they are", "error", err)
	case err != nil:
		s.gone(err)
		return
	default:
		if err = rules.Change(tables); err != nil {
			s.log.Error("port rules stay as they are", "error", err)
		}
	}
	// Binding may have taken long: the answer has a time of its own. Whoever does not
	// wait for it has closed.
	_ = client.SetDeadline(time.Now().Add(s.patience))
	_, _ = client.Write(wire.AppendAnswer(nil, err))
}

// gone tells of a client that did not come to its end.
func (s *Server) gone(err error) {
	switch {
	case errors.Is(err, os.ErrDeadlineExceeded):
		s.log.Warn("control client is too slow: port rules stay as they are", "seconds", s.patience.Seconds())
	case errors.Is(err, unix.EPIPE), errors.Is(err, unix.ECONNRESET):
	default:
		s.log.Warn("control client has gone amid what it said: port rules stay as they are", "error", err)
	}
}
