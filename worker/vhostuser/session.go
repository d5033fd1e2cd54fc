// SPDX-License-Identifier: Apache-2.0

package vhostuser

// Session is a connection of a front end.
type Session struct {
	fd     int32
	dev    Device
	config Config
}

// New begins a session on a connected, non-blocking UNIX stream socket, which stays
// the caller's.
func New(fd int32, c Config, dev Device) *Session { return &Session{fd: fd, dev: dev, config: c} }

// Receive takes what messages there are, a bounded number of them: more says that
// there may be others. It is to be called when the socket is readable. An error wraps ErrClosed or ErrProtocol;
// then the session is to be closed, and nothing more is received.
func (s *Session) Receive() (more bool, err error) { return false, nil }

// Queue is what is known of queue i.
func (s *Session) Queue(i int) *Queue { return nil }

// Close stops all rings, tells the device that there is neither memory, log nor in-flight memory, and
// closes and unmaps everything but the socket.
func (s *Session) Close() {}
