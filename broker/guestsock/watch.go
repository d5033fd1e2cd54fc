// SPDX-License-Identifier: Apache-2.0

package guestsock

import (
	"time"

	"golang.org/x/sys/unix"

	"aldente/ipc"
)

// letGo is how long a worker may take to let go of a client that has hung up.
const letGo = 2 * time.Second

// Watch is to be called once for the client of Given, whose socket is fd: see watch.
func (s *Server) Watch(fd int, worker Worker) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if !s.ended {
		s.freed = make(chan struct{})
		s.watchClient(fd, worker)
	}
}

// watchClient begins to watch the client. Preconditions: mu is locked.
func (s *Server) watchClient(fd int, worker Worker) {
	if s.kind != ipc.LinkVhostUser {
		return
	}
	if own, err := unix.FcntlInt(uintptr(fd), unix.F_DUPFD_CLOEXEC, 0); err == nil {
		go s.watch(own, s.freed, worker)
	}
}

// watch waits for a client's end, and replaces a worker that does not notice: a front
// end of vhost-user can have it wait in a write to an event that is full. fd is a copy of
// the client's socket, which it closes.
func (s *Server) watch(fd int, freed <-chan struct{}, worker Worker) {
	p := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLRDHUP}}
	for {
		if n, err := unix.Poll(p, -1); err != unix.EINTR && n != 0 {
			break
		}
	}
	unix.Close(fd)
	select {
	case <-freed:
	case <-time.After(letGo):
		s.log.Warn("the worker does not let go of a client that is gone: it is replaced")
		worker.Renew()
	}
}
