// SPDX-License-Identifier: Apache-2.0

package main

import (
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"aldente/broker/supervise"
	"aldente/ipc"
)

// Default socket paths, as many as the original tries.
const (
	defaultSocketPath = "/tmp/passt_%d.socket"
	defaultSockets    = 64
)

// streamServer waits for virtual machines on a UNIX domain socket, one at a
// time, and hands the connected socket to the worker.
type streamServer struct {
	log  *slog.Logger
	fd   int
	path string

	mu     sync.Mutex
	busy   bool
	client int           // ours of the connected socket while busy, to see its end; -1: none
	freed  chan struct{} // closed when the client is gone
	last   client        // the one that the worker knows, if it knows one
	ended  bool
	oneOff bool
	done   chan struct{} // closed when the only client of --one-off is gone
}

// streamBuffer is the send buffer that is asked for on a client's socket, in
// bytes: room for several super-frames, so that a guest that is busy for a
// moment does not stop us. The kernel doubles it, and grants no more than
// sysctl net.core.wmem_max.
const streamBuffer = 4 << 20

// enlarge asks for it. Without, everything works a little slower.
func enlarge(fd int) { _ = unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_SNDBUF, streamBuffer) }

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

// givenStream is the server of -F: its one client is connected already.
func givenStream(log *slog.Logger) *streamServer {
	return &streamServer{log: log, fd: -1, client: -1, oneOff: true, busy: true, done: make(chan struct{})}
}

// listenStream binds the socket: at path, or at the first default path that is
// free. A socket that nobody listens on is left over and replaced.
func listenStream(path string, oneOff bool, log *slog.Logger) (*streamServer, error) {
	s := &streamServer{log: log, client: -1, oneOff: oneOff, done: make(chan struct{})}
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

func (s *streamServer) bind(path string) error {
	if inUse(path) {
		return fmt.Errorf("socket path %s is already in use", path)
	}
	var st unix.Stat_t
	if unix.Lstat(path, &st) == nil && st.Mode&unix.S_IFMT == unix.S_IFSOCK {
		unix.Unlink(path)
	}
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("socket: %w", err)
	}
	old := unix.Umask(0o177)
	err = unix.Bind(fd, &unix.SockaddrUnix{Name: path})
	unix.Umask(old)
	if err == nil {
		err = unix.Listen(fd, 128)
	}
	if err != nil {
		unix.Close(fd)
		return fmt.Errorf("cannot bind socket %s: %w%s", path, err, socketHint(err))
	}
	s.fd, s.path = fd, path
	return nil
}

// socketHint says what to do about a path that cannot be bound.
func socketHint(err error) string {
	if errors.Is(err, unix.EADDRINUSE) {
		return " (a file of that name is in the way: remove it, or name another path with -s)"
	}
	return outputHint(err)
}

// inUse tells whether a socket at path belongs to a living process. The probe
// is of a type that no stream socket can be connected from, so that whoever
// listens there does not take it for a client, and has been found already while
// not listening yet.
func inUse(path string) bool {
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return false
	}
	defer unix.Close(fd)
	switch err := unix.Connect(fd, &unix.SockaddrUnix{Name: path}); {
	case errors.Is(err, unix.ENOENT), errors.Is(err, unix.ECONNREFUSED), errors.Is(err, unix.EACCES):
		return false
	}
	return true
}

// serve accepts clients for as long as the process lives. While one is
// connected, further ones are closed at once.
func (s *streamServer) serve(worker *supervise.Supervisor) {
	for {
		fd, _, err := unix.Accept4(s.fd, unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK)
		if err == unix.EINTR || err == unix.ECONNABORTED {
			continue
		}
		if err != nil && s.spent() {
			return
		}
		if err != nil {
			s.log.Error("cannot accept on the guest's socket", "error", err)
			return
		}
		s.accepted(fd, worker)
	}
}

// spent tells whether the only client of --one-off has come.
func (s *streamServer) spent() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.oneOff && s.busy
}

func (s *streamServer) accepted(fd int, worker *supervise.Supervisor) {
	if !s.handedOver(fd, worker) {
		unix.Close(fd)
	}
}

// handedOver gives the client to the worker. It reports false if the client is
// refused.
func (s *streamServer) handedOver(fd int, worker *supervise.Supervisor) bool {
	cred, err := unix.GetsockoptUcred(fd, unix.SOL_SOCKET, unix.SO_PEERCRED)
	if err != nil {
		s.log.Warn("client without credentials refused", "error", err)
		return false
	}
	enlarge(fd)
	s.awaitEnd()
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
func (s *streamServer) another(cred *unix.Ucred) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return !s.busy && s.last.known && !s.last.is(cred, time.Now())
}

// give sends the client to the worker, unless that has one. An error means
// that no worker is running, perhaps because the last one died a moment ago.
func (s *streamServer) give(fd int, cred *unix.Ucred, worker *supervise.Supervisor) (bool, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.busy {
		return false, nil
	}
	k := ipc.Link{Kind: ipc.LinkStream}
	if err := worker.Send(k.Encode(), fd); err != nil {
		return false, err
	}
	s.busy, s.client, s.freed = true, fd, make(chan struct{})
	s.last = client{known: true, pid: cred.Pid, uid: cred.Uid}
	if s.oneOff {
		unix.Shutdown(s.fd, unix.SHUT_RDWR) // no other is ever served
	}
	return true, nil
}

// awaitEnd waits for the worker to let go of a client that has hung up: the
// next one may connect at once, and is not to be refused for that.
func (s *streamServer) awaitEnd() {
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

// workerGone notes that nobody knows the last client's flows any more.
func (s *streamServer) workerGone() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.last.known = false
}

// closed notes that the client is gone.
func (s *streamServer) closed() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.client >= 0 {
		unix.Close(s.client)
		close(s.freed)
		s.client = -1
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
