// SPDX-License-Identifier: Apache-2.0

// Package follow notices what changes on the host, for those whom it concerns:
// so far, when an address may have become the host's own.
package follow

import (
	"errors"
	"os"
	"time"

	"golang.org/x/sys/unix"

	"aldente/broker/rtnl"
)

// pace is how often a Watcher tells.
type pace struct {
	// pause is how long changes are gathered after one was told, at least.
	pause time.Duration
	// retry is when those who were told want to be told again.
	retry time.Duration
}

var usual = pace{pause: 100 * time.Millisecond, retry: 500 * time.Millisecond}

// rest is for how many times as long changes are gathered as those who were told
// of the last took. So however often routes change, and however much there is to
// look at, it takes a twentieth of a processor.
const rest = 20

// groups are what the kernel tells of. Every address has its local route, anycast
// addresses have one too. Routes that end with their interface end in silence.
var groups = []int{
	unix.RTNLGRP_LINK, unix.RTNLGRP_IPV4_ROUTE, unix.RTNLGRP_IPV4_RULE, unix.RTNLGRP_IPV6_ROUTE, unix.RTNLGRP_IPV6_RULE,
}

// Watcher hears of routes.
type Watcher struct {
	s    *rtnl.Subscription
	buf  []byte
	pace pace
}

// New begins to listen, in the network namespace of the calling thread. It must be
// called before this process confines itself, and before routes are looked up that
// count: what changes after New will be told.
func New() (*Watcher, error) {
	s, err := rtnl.Subscribe(groups...)
	if err != nil {
		return nil, err
	}
	return &Watcher{s, make([]byte, 32<<10), usual}, nil
}

// Close ends Run.
func (w *Watcher) Close() error { return w.s.Close() }

// Run calls changed when a destination may lead to the host that did not before:
// at once after the first such change, then for all that came meanwhile. A little
// later it calls once more, for what was decided just before and done just after,
// and goes on with that as long as changed asks for it. It returns after Close.
//
// What is not read in time waits in the socket, and of what does not fit there the
// kernel tells that there was something. Nothing grows.
func (w *Watcher) Run(changed func() (again bool)) error {
	for {
		news, ok := w.await()
		if !ok {
			return os.ErrClosed
		}
		start := time.Now()
		again := changed()
		time.Sleep(max(w.pace.pause, rest*time.Since(start)))
		var until time.Time
		if again || news {
			until = time.Now().Add(w.pace.retry)
		}
		if w.s.Deadline(until) != nil {
			return os.ErrClosed
		}
	}
}

// await returns when there is news, or the deadline has passed. ok is false if there
// is no socket any more.
func (w *Watcher) await() (news, ok bool) {
	for {
		b, err := w.s.Receive(w.buf)
		switch {
		case errors.Is(err, os.ErrClosed):
			return false, false
		case errors.Is(err, os.ErrDeadlineExceeded):
			return false, true
		case err != nil, matters(b): // or some was lost
			return true, true
		}
	}
}

// matters tells whether one of the messages of a datagram is of a change that can
// have made the host of what was not.
func matters(b []byte) bool {
	for len(b) > 0 {
		m, rest, ok := rtnl.Next(b)
		if !ok || concerns(m) {
			return true
		}
		b = rest
	}
	return false
}

// linkAlive are the flags of an interface that is up.
const linkAlive = unix.IFF_UP | unix.IFF_LOWER_UP

// concerns is matters for one message. A new route that leads out by an interface
// makes nothing the host's, and hosts that speak to other routers get many of
// those; neither does an interface that is up.
func concerns(m rtnl.Message) bool {
	switch m.Type {
	case unix.RTM_NEWROUTE:
		if r, ok := m.Route(); ok && r.Type() == unix.RTN_UNICAST {
			oif, ok := r.Out()
			return !ok || oif == rtnl.Loopback
		}
	case unix.RTM_NEWLINK:
		if l, ok := m.Link(); ok {
			return l.Flags()&linkAlive != linkAlive
		}
	}
	return true
}
