// SPDX-License-Identifier: Apache-2.0

// Package guestsock is the UNIX domain socket to which virtual machines connect:
// bound, clients judged by who they are, and handed to the worker one at a time.
package guestsock

import (
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"aldente/broker/output"
	"aldente/ipc"
	"aldente/ipc/sock"
)

// Default socket paths, as many as the original tries.
const (
	defaultSocketPath = "/tmp/passt_%d.socket"
	defaultSockets    = 64
)

// Worker takes a client over, see supervise.Supervisor.
type Worker interface {
	Send(record []byte, fd int) error // fails where no worker runs
	Renew()                           // the next one knows nothing of this one's clients
}

// acceptPause is how long to wait for descriptors or memory.
const acceptPause = 100 * time.Millisecond

// Server waits for virtual machines on a UNIX domain socket, one at a time, and
// hands the connected socket to the worker.
type Server struct {
	log  *slog.Logger
	fd   int
	path string
	kind uint8 // of the clients' links, ipc.Link*

	mu     sync.Mutex
	given  bool // there is no socket to listen on, and one client
	busy   bool
	client int           // ours of the connected socket while busy, to see its end; -1: none
	freed  chan struct{} // closed when the client is gone
	last   client        // the one that the worker knows, if it knows one
	ended  bool
	oneOff bool
	passed bool          // the service manager has the socket too, and goes on to listen
	done   chan struct{} // see Done
}

// streamBuffer is the send buffer, in bytes, that is asked for on a client's
// socket. It has room for several super-frames, so that a guest that is busy for
// a moment does not stop us. The kernel doubles it, and grants no more than
// sysctl net.core.wmem_max.
const streamBuffer = 4 << 20

// Enlarge asks for it. Without, everything works a little slower.
func Enlarge(fd int) { _ = sock.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_SNDBUF, streamBuffer) }

// handOver is how long the next client waits for the worker to notice that the
// last one is gone, or for a worker to be there.
const handOver = time.Second

// renewal is how long it waits for a worker of its own.
const renewal = 5 * time.Second

// client is who a client of the socket is, as far as its flows are concerned.
type client struct {
	known bool
	pid   int32
	uid   uint32
	left  time.Time // when it hung up
}

// comeBack is how long a client may be away and find its flows again: machines
// try to connect every five seconds, as their documentation has it. Within that
// time no other process gets the number of one that has ended.
const comeBack = time.Minute

// is tells whether a client with these credentials is the same. One whose number
// we cannot see is nobody we know.
func (c *client) is(cred *unix.Ucred, now time.Time) bool {
	return cred.Pid != 0 && c.pid == cred.Pid && c.uid == cred.Uid && now.Sub(c.left) < comeBack
}

// Listen binds the socket: at path, or at the first default path that is
// free. A socket that nobody listens on is left over and replaced.
func Listen(path string, kind uint8, oneOff bool, log *slog.Logger) (*Server, error) {
	s := &Server{log: log, kind: kind, client: -1, oneOff: oneOff, done: make(chan struct{})}
	if path != "" {
		return s, s.bind(path)
	}
	for i := 1; i <= defaultSockets; i++ {
		if err := s.bind(fmt.Sprintf(defaultSocketPath, i)); err == nil {
			return s, nil
		}
	}
	return nil, fmt.Errorf("no free socket path from %s on: give one with -s", fmt.Sprintf(defaultSocketPath, 1))
}

func (s *Server) bind(path string) error {
	if inUse(path) {
		return fmt.Errorf("socket path %s is already in use", path)
	}
	var st unix.Stat_t
	if unix.Lstat(path, &st) == nil && st.Mode&unix.S_IFMT == unix.S_IFSOCK {
		unix.Unlink(path)
	}
	fd, err := sock.Socket(unix.AF_UNIX, types[s.kind].number|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("socket: %w", err)
	}
	old := unix.Umask(0o177)
	err = sock.Bind(fd, &unix.SockaddrUnix{Name: path})
	unix.Umask(old)
	if err == nil {
		err = s.listen(fd)
	}
	if err != nil {
		unix.Close(fd)
		return fmt.Errorf("cannot bind socket %s: %w%s", path, err, socketHint(err))
	}
	s.fd, s.path = fd, path
	return nil
}

// listen has a socket that is bound hear of clients.
func (s *Server) listen(fd int) error {
	if types[s.kind].number != unix.SOCK_DGRAM {
		return sock.Listen(fd, 128)
	}
	if err := sock.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_PASSCRED, 1); err != nil {
		return err
	}
	Enlarge(fd)
	return unix.SetNonblock(fd, true)
}

// Passed is Listen with a socket that is bound to path already, of a type, SOCK_*. Others
// may have it as well, and it stays where it is and listens when the server ends.
func Passed(fd int, path string, number int, kind uint8, oneOff bool, log *slog.Logger) (*Server, error) {
	if t := types[kind]; number != t.number {
		return nil, fmt.Errorf("%s is not a %s socket, which the link is by: see --socket-type", path, t.name)
	}
	s := &Server{log: log, fd: fd, path: path, kind: kind, client: -1, oneOff: oneOff, passed: true, done: make(chan struct{})}
	unix.CloseOnExec(fd)
	// Whoever listens here waits; a manager may have had it not wait.
	if err := unix.SetNonblock(fd, false); err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	if err := s.listen(fd); err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	return s, nil
}

// socketHint says what to do about a path that cannot be bound.
func socketHint(err error) string {
	if errors.Is(err, unix.EADDRINUSE) {
		return " (a file of that name is in the way: remove it, or name another path with -s)"
	}
	return output.Hint(err)
}

// inUse tells whether a socket at path belongs to a living process. The probe is
// a socket of another type, which cannot be connected to a stream socket. So
// whoever listens there does not take it for a client, and is found even before
// it listens.
func inUse(path string) bool {
	fd, err := sock.Socket(unix.AF_UNIX, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return false
	}
	defer unix.Close(fd)
	switch err := sock.Connect(fd, &unix.SockaddrUnix{Name: path}); {
	case errors.Is(err, unix.ENOENT), errors.Is(err, unix.ECONNREFUSED), errors.Is(err, unix.EACCES):
		return false
	}
	return true
}

// Path is where the socket is, empty for the server of Given.
func (s *Server) Path() string { return s.path }

// Connected tells whether a virtual machine is connected.
func (s *Server) Connected() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.busy && !s.ended
}

// Done is closed when the only client of --one-off is gone.
func (s *Server) Done() <-chan struct{} { return s.done }

// Serve accepts clients for as long as the process lives. While one is
// connected, further ones are closed at once.
func (s *Server) Serve(worker Worker) {
	if types[s.kind].number == unix.SOCK_DGRAM {
		s.serveDatagrams(worker)
		return
	}
	for {
		if s.passed && s.spent() {
			return // the next client is the next instance's
		}
		fd, _, err := sock.Accept4(s.fd, unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK)
		if err == unix.EINTR || err == unix.ECONNABORTED {
			continue
		}
		if err != nil && s.spent() {
			return
		}
		switch err {
		case unix.EMFILE, unix.ENFILE, unix.ENOBUFS, unix.ENOMEM: // for now
			time.Sleep(acceptPause)
			continue
		}
		if err != nil {
			s.log.Error("cannot accept on the guest's socket", "error", err)
			return
		}
		s.accepted(fd, worker)
	}
}

// spent tells whether the only client of --one-off has come.
func (s *Server) spent() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.oneOff && s.busy
}

func (s *Server) accepted(fd int, worker Worker) {
	if !s.handedOver(fd, worker) {
		unix.Close(fd)
	}
}

// handedOver gives the client to the worker. It reports false if the client is
// refused.
func (s *Server) handedOver(fd int, worker Worker) bool {
	cred, err := sock.GetsockoptUcred(fd, unix.SOL_SOCKET, unix.SO_PEERCRED)
	if err != nil {
		s.log.Warn("client without credentials refused", "error", err)
		return false
	}
	Enlarge(fd)
	s.awaitEnd()
	return s.offer(fd, cred, worker)
}

// offer gives a client to the worker, or to a new one if it is another than the last. It
// reports false if the client is refused.
func (s *Server) offer(fd int, cred *unix.Ucred, worker Worker) bool {
	patience := handOver
	if s.another(cred) {
		// What the worker holds and has learned is the last client's.
		worker.Renew()
		patience = renewal
	}
	for deadline := time.Now().Add(patience); ; time.Sleep(handOver / 100) {
		given, err := s.give(fd, cred, worker)
		switch {
		case given:
			s.log.Info("client connected", "pid", cred.Pid, "uid", cred.Uid)
			return true
		case err == nil:
			s.log.Info("second client refused", "pid", cred.Pid, "uid", cred.Uid)
			return false
		case time.Now().After(deadline):
			s.log.Warn("client came while no worker was running", "error", err)
			return false
		}
	}
}

// another tells whether a client comes after one that was somebody else, to a
// worker that knows that one.
func (s *Server) another(cred *unix.Ucred) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return !s.busy && s.last.known && !s.last.is(cred, time.Now())
}

// give sends the client to the worker, unless that has one. An error means
// that no worker is running, perhaps because the last one died a moment ago.
func (s *Server) give(fd int, cred *unix.Ucred, worker Worker) (bool, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.busy {
		return false, nil
	}
	k := ipc.Link{Kind: s.kind}
	if err := worker.Send(k.Encode(), fd); err != nil {
		return false, err
	}
	s.busy, s.freed = true, make(chan struct{})
	if fd != s.fd {
		s.client = fd
	}
	s.watchClient(fd, worker)
	s.last = client{known: true, pid: cred.Pid, uid: cred.Uid}
	if s.oneOff && fd != s.fd && !s.passed {
		sock.Shutdown(s.fd, unix.SHUT_RDWR) // no other is ever served
	}
	return true, nil
}

// awaitEnd waits for the worker to let go of a client that has hung up: the
// next one may connect at once, and is not to be refused for that.
func (s *Server) awaitEnd() {
	s.mu.Lock()
	freed := s.freed
	p := []unix.PollFd{{Fd: int32(s.client), Events: unix.POLLRDHUP}}
	hungUp := s.busy && s.client >= 0
	if hungUp {
		n, err := unix.Poll(p, 0)
		hungUp = err == nil && n > 0
	}
	s.mu.Unlock()
	if !hungUp {
		return
	}
	select {
	case <-freed:
	case <-time.After(handOver):
	}
}

// awaitGone waits for the client's end.
func (s *Server) awaitGone() {
	s.mu.Lock()
	freed := s.freed
	s.mu.Unlock()
	if freed != nil {
		<-freed
	}
}

// WorkerGone notes that nobody knows the last client's flows any more. A stream's client
// goes with the worker, since nobody knows how far into a frame it was. What was given to
// us and keeps the bounds of frames the next worker gets.
func (s *Server) WorkerGone() {
	s.mu.Lock()
	s.last.known = false
	stays := s.given && bounded(s.kind)
	s.mu.Unlock()
	if !stays {
		s.Closed()
	}
}

// Closed notes that the client is gone.
func (s *Server) Closed() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.client >= 0 {
		sock.Shutdown(s.client, unix.SHUT_RDWR) // watch has it, too
		unix.Close(s.client)
		s.client = -1
	}
	if s.busy && s.freed != nil {
		close(s.freed)
		s.freed = nil
	}
	switch {
	case !s.busy || s.ended:
		return
	case s.oneOff:
		s.ended = true
		close(s.done)
		return
	}
	s.busy = false
	s.last.left = time.Now()
	s.log.Info("client gone, waiting for the next")
}
