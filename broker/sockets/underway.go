// SPDX-License-Identifier: Apache-2.0

package sockets

import (
	"time"

	"golang.org/x/sys/unix"

	"aldente/ipc/sock"
)

// underWay are our copies of TCP sockets that are being connected, in the order
// in which that began.
type underWay struct {
	ep     int
	events []unix.EpollEvent
	slots  []waitingSlot // slot 0 is the list's head: next is the oldest
	free   int           // chain of unused slots, by next; 0: none
	n      int
	// done are descriptors to be closed once answers that may carry them are
	// sent, see closeDone.
	done []int
	// ended are those that somebody here waits for, see ledger.settle.
	ended []endedConnect
}

type endedConnect struct {
	fd   int
	then func(fd int)
}

type waitingSlot struct {
	fd         int
	flow       stood     // without destination: of no concern to a change of the egress rules
	since      time.Time // when it began
	prev, next int
	then       func(fd int) // waits for it, and has the socket then; nil: the worker
}

func (u *underWay) init() { u.ep, u.slots = -1, make([]waitingSlot, 1) }

// add keeps fd until sweep or endOldest. It reports false if it could not, and fd
// stays the caller's.
func (u *underWay) add(fd int, flow stood, then func(fd int)) bool {
	if u.ep < 0 {
		ep, err := unix.EpollCreate1(unix.EPOLL_CLOEXEC)
		if err != nil {
			return false
		}
		u.ep, u.events = ep, make([]unix.EpollEvent, 64)
	}
	i := u.free
	if i == 0 {
		i = len(u.slots)
		u.slots = append(u.slots, waitingSlot{})
	} else {
		u.free = u.slots[i].next
	}
	e := unix.EpollEvent{Events: unix.EPOLLOUT | unix.EPOLLET&0xffffffff, Fd: int32(i)}
	if unix.EpollCtl(u.ep, unix.EPOLL_CTL_ADD, fd, &e) != nil {
		u.slots[i].next, u.free = u.free, i
		return false
	}
	last := u.slots[0].prev
	u.slots[i] = waitingSlot{fd: fd, flow: flow, since: time.Now(), prev: last, then: then}
	u.slots[last].next, u.slots[0].prev = i, i
	u.n++
	return true
}

// drop lets go of our copy. The socket has to leave the epoll: it would stay
// there as long as the worker has its copy, and a slot's number serves again.
func (u *underWay) drop(i int) {
	s := &u.slots[i]
	_ = unix.EpollCtl(u.ep, unix.EPOLL_CTL_DEL, s.fd, nil)
	if s.then != nil {
		u.ended = append(u.ended, endedConnect{s.fd, s.then})
	} else {
		u.done = append(u.done, s.fd)
	}
	u.slots[s.prev].next, u.slots[s.next].prev = s.next, s.prev
	*s = waitingSlot{fd: -1, next: u.free}
	u.free = i
	u.n--
}

// closeDone closes what was dropped. A descriptor dropped while a message is
// handled may be that of an answer which was not sent yet, and its number must
// not be another socket's until then.
func (u *underWay) closeDone() {
	for _, fd := range u.done {
		sock.Close(fd)
	}
	u.done = u.done[:0]
}

// each calls f for all of them.
func (u *underWay) each(f func(s *waitingSlot)) {
	for i := u.slots[0].next; i != 0; i = u.slots[i].next {
		f(&u.slots[i])
	}
}

// sweep drops those whose connect has ended and tells of each whether the peer
// has answered.
func (u *underWay) sweep(done func(s *waitingSlot, answered bool)) {
	for u.n > 0 {
		n := readyNow(u.ep, u.events)
		for _, e := range u.events[:n] {
			i := int(e.Fd)
			done(&u.slots[i], answered(u.slots[i].fd))
			u.drop(i)
		}
		if n < len(u.events) {
			return
		}
	}
}

// endOldest ends the connect that began first: the worker's copy is that of a
// connection that was reset.
func (u *underWay) endOldest() {
	i := u.slots[0].next
	disconnect(u.slots[i].fd)
	u.drop(i)
}

// endAll ends all of them, and what was needed for them.
func (u *underWay) endAll() {
	for u.n > 0 {
		u.endOldest()
	}
	u.closeDone()
	if u.ep >= 0 {
		unix.Close(u.ep)
		u.ep = -1
	}
}
