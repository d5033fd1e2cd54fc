// SPDX-License-Identifier: Apache-2.0

package guestsock

import (
	"time"

	"golang.org/x/sys/unix"
)

// letGo is how long a worker may take to let go of a client that has hung up.
const letGo = 2 * time.Second

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
