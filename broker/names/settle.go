// SPDX-License-Identifier: Apache-2.0

package names

import (
	"bytes"
	"errors"
	"io"

	"golang.org/x/sys/unix"

	"aldente/ipc"
)

// The process may answer a guest before it has heard of us, once it knows what we would say
// (names/dns). It tells us first, so what it has told lies in its channel when the guest
// connects. Before a connection is refused, Settle looks there: it takes what Serve has not
// taken yet, and keeps for that what is Serve's to handle. It waits for nobody.

const (
	// settleMost is how many records Settle takes: more than what a process of ours has
	// unanswered, with what comes between.
	settleMost = 128
	// mostKept is how many records are kept for Serve, and mostOwed how many answers that the
	// channel has no room for wait until it sends them.
	mostKept, mostOwed = 256, 256
)

// kept is a record that Settle has taken and Serve handles.
type kept struct {
	rec  []byte
	with bool // a descriptor came with it, which is closed
	err  error
}

// Settle has the rules know of what the process has told before it was called. It returns
// how many records it has taken, which whoever asks for it answers for.
func (s *Server) Settle() (taken int) {
	s.turn.Lock()
	defer s.turn.Unlock()
	had := len(s.kept)
	for taken < settleMost && len(s.kept) < mostKept && s.control >= 0 && s.wake >= 0 && s.settleOne() {
		taken++
	}
	if len(s.kept) > had || len(s.owed) > 0 {
		one := [8]byte{1}
		_, _ = unix.Write(s.wake, one[:]) // full is as good
	}
	return taken
}

// settleOne takes a record, and reports false if there is none. The caller has the turn.
func (s *Server) settleOne() bool {
	n, fd, err := ipc.Receive(s.control, s.looked[:], unix.MSG_DONTWAIT)
	if fd >= 0 {
		unix.Close(fd)
	}
	if err != nil && !errors.Is(err, ipc.ErrMalformed) {
		return false // nothing waits; or it is the channel's end, which Serve finds as well
	}
	if err == nil && fd < 0 {
		if answer := s.settled(s.looked[:n]); answer != nil {
			if len(s.owed) > 0 || ipc.SendNow(s.control, answer.Encode(), -1) == unix.EAGAIN {
				s.owe(answer)
			}
			return true
		}
	}
	s.kept = append(s.kept, kept{bytes.Clone(s.looked[:n]), fd >= 0, err})
	return true
}

// settled handles a record if it is a Named, and returns the answer.
func (s *Server) settled(rec []byte) *ipc.Granted {
	var r ipc.Named
	if kind, err := ipc.FromNames.Check(rec, false, ipc.Running); err != nil || kind != ipc.NamesKindNamed || r.Decode(rec) != nil {
		return nil
	}
	t, err := toldBy(&r)
	if err != nil {
		return nil
	}
	answer := s.grant(&r, &t)
	return &answer
}

// owe notes an answer for which there is no room. One too many is waited for in vain, as
// any that is late.
func (s *Server) owe(answer *ipc.Granted) {
	if len(s.owed) < mostOwed {
		s.owed = append(s.owed, *answer)
	}
}

// next is the next record of the process, which Settle has kept or which is received into
// buf; unix.EAGAIN: there is none. The caller has the turn.
func (s *Server) next(control int, buf []byte) (rec []byte, with bool, err error) {
	if len(s.kept) > 0 {
		k := s.kept[0]
		s.kept[0] = kept{}
		s.kept = s.kept[1:]
		return k.rec, k.with, k.err
	}
	n, fd, err := ipc.Receive(control, buf, unix.MSG_DONTWAIT)
	if fd >= 0 {
		unix.Close(fd)
	}
	return buf[:n], fd >= 0, err
}

// await sends the answers for which there was no room, and returns when there is something
// to be taken, or may be.
func (s *Server) await(control int) error {
	s.turn.Lock()
	owed, waits := s.owed, len(s.kept) > 0
	s.owed = nil
	s.turn.Unlock()
	for i := range owed {
		if err := ended(ipc.Send(control, owed[i].Encode(), -1)); err != nil {
			return err
		}
	}
	if waits {
		return nil
	}
	p := []unix.PollFd{{Fd: int32(control), Events: unix.POLLIN}, {Fd: int32(s.wake), Events: unix.POLLIN}}
	for {
		if _, err := unix.Poll(p, -1); err == nil {
			break
		} else if err != unix.EINTR {
			return err
		}
	}
	if p[1].Revents != 0 {
		var n [8]byte
		_, _ = unix.Read(s.wake, n[:])
	}
	return nil
}

// ended makes the end of a channel io.EOF.
func ended(err error) error {
	if errors.Is(err, unix.EPIPE) || errors.Is(err, unix.ECONNRESET) {
		return io.EOF
	}
	return err
}
