// SPDX-License-Identifier: Apache-2.0

package names

import (
	"errors"
	"fmt"
	"io"

	"golang.org/x/sys/unix"

	"aldente/ipc"
)

// The process may answer a guest before it has heard of us, once it knows what we would say
// (names/dns). It notes that for us first, in a channel of its own that nobody waits at: to be
// woken for it would cost the processor that the guest needs now, to connect. So what the
// guest has been told lies there when it connects, and before a connection is decided on,
// Settle takes it. Serve does whenever it is awake.

const (
	// settleMost is how many notes Settle takes at a time: more than a process of ours has
	// out that were not confirmed.
	settleMost = 64
	// mostOwed is how many answers to notes wait until Serve sends them, owedSoon how many
	// it is woken for.
	mostOwed, owedSoon = 256, 16
)

// Settle has the rules know of what the process has told the guest before Settle was called.
// It waits for nobody. It returns what it has handled counts for, which whoever asks for
// it answers for.
func (s *Server) Settle() (handled int) {
	s.turn.Lock()
	defer s.turn.Unlock()
	handled = s.settle()
	if s.bad != nil || len(s.owed) >= owedSoon {
		one := [8]byte{1}
		_, _ = unix.Write(s.wake, one[:]) // full is as good
	}
	return handled
}

// settle takes notes, and tells what they count for. The caller has the turn.
func (s *Server) settle() (handled int) {
	for range settleMost {
		if s.notes < 0 || s.bad != nil {
			break
		}
		n, fd, err := ipc.ReceiveNow(s.notes, s.looked[:])
		if fd >= 0 {
			unix.Close(fd)
		}
		if err != nil && !errors.Is(err, ipc.ErrMalformed) {
			break // nothing waits; or it is the end, which Serve finds in its own channel
		}
		handled++
		if err == nil {
			n, err = s.note(s.looked[:n], fd >= 0)
			handled += n
		}
		s.bad = err
	}
	return handled
}

// note handles one, and returns what it counts for besides one.
func (s *Server) note(rec []byte, with bool) (more int, err error) {
	if kind, err := ipc.FromNames.Check(rec, with, ipc.Running); err != nil || kind != ipc.NamesKindNamed {
		return 0, errors.Join(err, fmt.Errorf("%w: a note of kind %#x", ipc.ErrMalformed, uint16(kind)))
	}
	answer, more, err := s.hear(rec)
	if err == nil && len(s.owed) < mostOwed { // one too many is waited for in vain, as any that is late
		s.owed = append(s.owed, *answer)
	}
	return more, err
}

// settled is Settle for the process's own goroutine: answers are sent, and what counts as
// its end is returned.
func (s *Server) settled(control int) (handled int, err error) {
	s.turn.Lock()
	handled = s.settle()
	owed, bad := s.owed, s.bad
	s.owed = nil
	s.turn.Unlock()
	if bad != nil {
		return handled, bad
	}
	for len(owed) > 0 {
		rec := make([]byte, 0, ipc.MaxBatch*ipc.GrantedSize)
		for ; len(owed) > 0 && len(rec) < cap(rec); owed = owed[1:] {
			rec = append(rec, owed[0].Encode()...)
		}
		if err := ipc.Send(control, rec, -1); err != nil {
			return handled, ended(err)
		}
	}
	return handled, nil
}

// await returns when the process has said something, or Settle has.
func (s *Server) await() error {
	if err := s.set.Wait(); err != nil {
		return err
	}
	if s.set.Ready(s.wake) {
		var n [8]byte
		_, _ = unix.Read(s.wake, n[:])
	}
	return nil
}

// attend says whose notes Settle looks at: those of the process that Setup has begun with.
func (s *Server) attend() {
	s.mu.Lock()
	next := s.next
	s.next = -1
	s.mu.Unlock()
	s.turn.Lock()
	defer s.turn.Unlock()
	s.notes, s.bad = next, nil
}

// leave takes the last notes of a process that has ended: its guest has been told.
func (s *Server) leave() {
	s.turn.Lock()
	defer s.turn.Unlock()
	s.settle()
	if s.notes >= 0 {
		unix.Close(s.notes)
	}
	s.notes, s.owed = -1, nil
}

// ended makes the end of a channel io.EOF.
func ended(err error) error {
	if errors.Is(err, unix.EPIPE) || errors.Is(err, unix.ECONNRESET) {
		return io.EOF
	}
	return err
}

// offer makes the channel for the notes of a process that is about to start, and tells it
// that all else was said.
func (s *Server) offer(control int) error {
	ours, theirs, err := ipc.Pair()
	if err != nil {
		return err
	}
	defer unix.Close(theirs)
	if s.next >= 0 { // of one that has not come so far
		unix.Close(s.next)
	}
	s.next = ours
	if err := unix.SetNonblock(theirs, true); err != nil { // it waits for nobody, and cannot say so itself any more
		return err
	}
	return ipc.Send(control, ipc.Empty(ipc.NamesKindStart), theirs)
}
