// SPDX-License-Identifier: Apache-2.0

// Package flowtest is a lane for tests of translators: a clock, sockets and a
// link that do what a test scripted, and remember what was done to them. It
// follows the kernel's rules where a translator depends on them, and is
// deterministic: nothing happens that no test called for.
package flowtest

import (
	"syscall"

	"aldente/ipc"
	"aldente/worker/flow"
	"aldente/worker/packet"
)

// Unlimited is no bound, for fields that count room.
const Unlimited = -1

// Frame is one frame that was sent to the guest.
type Frame struct {
	Offload packet.Offload // as given to Send
	Data    []byte         // headers and payload
}

// Host is what all translators ask of their lane. The zero value is not usable; see
// New.
type Host struct {
	Time int64 // nanoseconds, what Now returns

	Frames   []Frame // sent to the guest
	LinkRoom int     // frames the link takes until CanSend is false, or Unlimited

	Opens    []ipc.Open // asked of the broker
	OpenRoom int        // requests the broker's channel takes, or Unlimited

	WatchErr syscall.Errno // returned by Watch

	ByOthers int // bytes that others have written to sockets, as was told

	// Quiet keeps nothing of frames, writes and requests, but counts them, so
	// that a test can measure that a translator does not allocate.
	Quiet                          bool
	NumFrames, NumOpens, NumWrites int // with Quiet

	sockets map[int32]*Socket
	next    int32
}

var _ interface {
	flow.Clock
	flow.Link
	flow.Broker
	flow.Rewatcher
	flow.Streams
	flow.Datagrams
	flow.GatherWriter
	flow.Errors
	flow.Options
	flow.Names
} = (*Host)(nil)

// New returns a host without sockets, at one second, with all room there is.
func New() *Host {
	return &Host{
		Time: 1e9, LinkRoom: Unlimited, OpenRoom: Unlimited,
		sockets: make(map[int32]*Socket), next: 100,
	}
}

// Now implements flow.Clock.
func (h *Host) Now() int64 { return h.Time }

// Send implements flow.Link: it keeps a copy.
func (h *Host) Send(o *packet.Offload, headers, payload []byte) bool {
	if h.LinkRoom == 0 {
		return false
	}
	if h.LinkRoom > 0 {
		h.LinkRoom--
	}
	h.NumFrames++
	if !h.Quiet {
		f := Frame{Data: append(append([]byte(nil), headers...), payload...)}
		if o != nil {
			f.Offload = *o
		}
		h.Frames = append(h.Frames, f)
	}
	return true
}

// CanSend implements flow.Link.
func (h *Host) CanSend() bool { return h.LinkRoom != 0 }

// Open implements flow.Broker.
func (h *Host) Open(r *ipc.Open) bool {
	if h.OpenRoom == 0 {
		return false
	}
	if h.OpenRoom > 0 {
		h.OpenRoom--
	}
	h.NumOpens++
	if !h.Quiet {
		h.Opens = append(h.Opens, *r)
	}
	return true
}

// Watch implements flow.Watcher.
func (h *Host) Watch(fd int32, token uint64, events uint32) syscall.Errno {
	s := h.sockets[fd]
	if s == nil {
		return syscall.EBADF
	}
	if h.WatchErr == 0 {
		s.Watched, s.Token, s.Events = true, token, events
	}
	return h.WatchErr
}

// Rewatch implements flow.Rewatcher.
func (h *Host) Rewatch(fd int32, token uint64, events uint32) syscall.Errno {
	return h.Watch(fd, token, events)
}

// Close implements flow.Watcher. Closing twice is a fault that a test sees in
// Socket.Closes.
func (h *Host) Close(fd int32) {
	if s := h.sockets[fd]; s != nil {
		s.Closes++
		s.Watched = false
	}
}

// Abort implements flow.Streams.
func (h *Host) Abort(fd int32) { h.Close(fd) }

// TakeFrames returns the frames sent since the last call.
func (h *Host) TakeFrames() []Frame {
	f := h.Frames
	h.Frames = nil
	return f
}

// TakeOpens returns the requests made since the last call.
func (h *Host) TakeOpens() []ipc.Open {
	o := h.Opens
	h.Opens = nil
	return o
}

// Socket returns a new socket with a descriptor of its own.
func (h *Host) Socket() *Socket {
	s := &Socket{FD: h.next, Room: Unlimited, Options: make(map[flow.Option]int), quiet: &h.Quiet, writes: &h.NumWrites}
	h.sockets[h.next] = s
	h.next++
	return s
}

// OpenSockets is the number of sockets not yet closed, which a test compares with
// what it expects.
func (h *Host) OpenSockets() int {
	n := 0
	for _, s := range h.sockets {
		if s.Closes == 0 {
			n++
		}
	}
	return n
}

// at returns the socket for a call on it, nil if it is not open.
func (h *Host) at(fd int32) *Socket {
	if s := h.sockets[fd]; s != nil && s.Closes == 0 {
		return s
	}
	return nil
}
