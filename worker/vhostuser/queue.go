// SPDX-License-Identifier: Apache-2.0

package vhostuser

import "encoding/binary"

// none stands where there is no descriptor.
const none = -1

// queue is a Queue, and what is still to come before it can start.
type queue struct {
	Queue
	addressed bool // its addresses are known
	kicked    bool // it is known how the guest tells of new chains
}

// Bits of the number that comes with a descriptor.
const (
	indexMask = 0xff
	noFD      = 1 << 8
)

// logUsed is the flag of SET_VRING_ADDR.
const logUsed = 1

// state decodes a payload of two numbers, the first of which is a queue's index.
func (s *Session) state(b []byte) (i int, q *queue, num uint32, err error) {
	if u32(b) >= MaxQueues {
		return 0, nil, 0, malformed("queue %d", u32(b))
	}
	i = int(u32(b))
	return i, &s.queues[i], u32(b[4:]), nil
}

func (s *Session) setVringNum(b []byte) error {
	i, q, n, err := s.state(b)
	switch {
	case err != nil:
		return err
	case n == 0 || n > MaxRing || n&(n-1) != 0:
		return malformed("queue %d of %d descriptors", i, n)
	case q.Started && int(n) != q.Size:
		return malformed("queue %d gets another size while it runs", i)
	}
	q.Size = int(n)
	return s.start(i)
}

func (s *Session) setVringBase(b []byte) error {
	i, q, n, err := s.state(b)
	switch {
	case err != nil:
		return err
	case n > 0xffff:
		return malformed("queue %d goes on at %d", i, n)
	case q.Started:
		return malformed("queue %d gets another base while it runs", i)
	}
	q.Base = uint16(n)
	return nil
}

func (s *Session) setVringAddr(b []byte) error {
	i, q, flags, err := s.state(b)
	switch {
	case err != nil:
		return err
	case flags&^logUsed != 0:
		return malformed("queue %d: flags %#x", i, flags)
	}
	for at := 8; at < 32; at += 8 {
		if !s.has(u64(b[at:])) {
			return malformed("queue %d: %#x is in no memory", i, u64(b[at:]))
		}
	}
	q.LogUsed = flags&logUsed != 0
	q.Desc, q.Used, q.Avail, q.LogAddr = u64(b[8:]), u64(b[16:]), u64(b[24:]), u64(b[32:])
	q.addressed = true
	if q.Started {
		return s.restart(i)
	}
	return s.start(i)
}

// has tells whether there is memory at an address of the front end's.
func (s *Session) has(user uint64) bool {
	for i := range s.memory {
		if user-s.memory[i].user < s.memory[i].size {
			return true
		}
	}
	return false
}

// getVringBase ends a ring. The descriptor for calls stays: not every monitor
// passes it again.
func (s *Session) getVringBase(b []byte) error {
	i, q, _, err := s.state(b)
	if err != nil {
		return err
	}
	s.stop(i)
	binary.NativeEndian.PutUint32(b[4:], uint32(q.Base))
	return s.reply(b)
}

func (s *Session) setVringEnable(b []byte) error {
	i, _, n, err := s.state(b)
	switch {
	case err != nil:
		return err
	case n > 1:
		return malformed("queue %d is enabled %d times", i, n)
	}
	s.enable(i, n == 1)
	return nil
}

func (s *Session) enable(i int, on bool) {
	q := &s.queues[i]
	if q.Enabled != on {
		q.Enabled = on
		s.dev.Enabled(i, &q.Queue)
	}
}

// eventFD takes the descriptor that comes with the index of a queue.
func (s *Session) eventFD(b []byte) (i, fd int, err error) {
	v := u64(b)
	i = int(v & indexMask)
	switch {
	case v&^(indexMask|noFD) != 0 || i >= MaxQueues:
		return 0, none, malformed("queue %#x", v)
	case (v&noFD == 0) != (len(s.fds) == 1):
		return 0, none, malformed("queue %d: %d descriptors with %#x", i, len(s.fds), v)
	case v&noFD != 0:
		return i, none, nil
	}
	if !isEvent(s.fds[0]) {
		return 0, none, malformed("queue %d: the descriptor is no eventfd", i)
	}
	return i, s.takeFD(), nil
}

// notify puts a descriptor in the place of another.
func (s *Session) notify(i int, at *int32, fd int) {
	old := *at
	*at = int32(fd)
	s.dev.Notify(i, &s.queues[i].Queue)
	if old != none {
		closeFD(int(old))
	}
}

func (s *Session) setVringKick(b []byte) error {
	i, fd, err := s.eventFD(b)
	if err != nil {
		return err
	}
	q := &s.queues[i]
	s.notify(i, &q.Kick, fd)
	q.kicked = true
	return s.start(i)
}

func (s *Session) setVringCall(b []byte) error {
	i, fd, err := s.eventFD(b)
	if err == nil {
		s.notify(i, &s.queues[i].Call, fd)
	}
	return err
}

func (s *Session) setVringErr(b []byte) error {
	i, fd, err := s.eventFD(b)
	if err == nil {
		s.notify(i, &s.queues[i].Err, fd)
	}
	return err
}

// start lets a ring run if it is known where it is and how its guest tells of
// chains.
func (s *Session) start(i int) error {
	q := &s.queues[i]
	if q.Started || q.Size == 0 || !q.addressed || !q.kicked || len(s.memory) == 0 {
		return nil
	}
	if err := s.dev.Start(i, &q.Queue); err != nil {
		return malformed("queue %d cannot start: %v", i, err)
	}
	q.Started = true
	return nil
}

func (s *Session) startAll() error {
	for i := range s.queues {
		if err := s.start(i); err != nil {
			return err
		}
	}
	return nil
}

// restart tells of other addresses of a ring that runs.
func (s *Session) restart(i int) error {
	if err := s.dev.Start(i, &s.queues[i].Queue); err != nil {
		s.stop(i)
		return malformed("queue %d: %v", i, err)
	}
	return nil
}

// stop ends a ring. It starts again when a descriptor for kicks has come.
func (s *Session) stop(i int) {
	q := &s.queues[i]
	if q.Started {
		q.Started = false
		q.Base = s.dev.Stop(i)
	}
	q.kicked = false
	if q.Kick != none {
		s.notify(i, &q.Kick, none)
	}
}

// forget brings a queue that has stopped to where it was in the beginning.
func (s *Session) forget(i int) {
	q := &s.queues[i]
	s.enable(i, false)
	for _, at := range []*int32{&q.Call, &q.Err} {
		if *at != none {
			s.notify(i, at, none)
		}
	}
	*q = queue{Queue: Queue{Kick: none, Call: none, Err: none}}
}
