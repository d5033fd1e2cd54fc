// SPDX-License-Identifier: Apache-2.0

// Package control is how a running instance is looked at and changed: the socket of
// pesto's protocol (-c), and that of our own, by which the instance says how it fares
// and, with --control, is changed. It reads the requests of the instance's own user
// and of root, and nothing of the guest's.
package control

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
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
	*gate
	remover  *remover
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
	fd, r, err := bind(o.Path, "-c")
	if err != nil {
		return nil, err
	}
	s := &Server{gate: newGate(fd, o.Path, o.Users, o.Logger), remover: r, patience: patience}
	if o.Guest {
		if err = s.guarded(fd); err != nil {
			s.Close()
			return nil, blind("-c", err)
		}
	}
	return s, nil
}

// blind is the error where clients cannot be told from the guest's processes.
func blind(option string, err error) error {
	return fmt.Errorf("%s: this kernel cannot tell clients from the guest's processes (Linux 5.14 or later can): %w", option, err)
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
		v, ok := s.next()
		if !ok {
			return
		}
		client := os.NewFile(uintptr(v.fd), "control client")
		s.serve(client, rules)
		client.Close()
	}
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
