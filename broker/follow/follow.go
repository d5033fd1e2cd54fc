// SPDX-License-Identifier: Apache-2.0

// Package follow notices what changes on the host, for those whom it concerns: links,
// addresses, routes, rules, and the files that name resolvers. It says that something
// has changed, and not what: whoever wants to know reads it anew.
package follow

import (
	"errors"
	"os"
	"sync"
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
	// most is how long changes are gathered that do not end.
	most time.Duration
}

var usual = pace{pause: 100 * time.Millisecond, retry: 500 * time.Millisecond, most: time.Second}

// rest is for how many times as long changes are gathered as those who were told
// of the last took. So however often routes change, and however much there is to
// look at, it takes a twentieth of a processor.
const rest = 20

// restNetwork is the same for those who read the whole network, which is more work and
// is done less often.
const restNetwork = 5

// mostRead is how many messages are read between two pauses. What a routing daemon
// tells meanwhile waits, and where it does not fit the kernel says that there was
// something.
const mostRead = 256

// groups are what the kernel tells of. Every address has its local route, anycast
// addresses have one too. Routes that end with their interface end in silence, and of routes
// by a nexthop object that has changed nothing is told with net.ipv4.nexthop_compat_mode=0.
var groups = []int{
	unix.RTNLGRP_LINK, unix.RTNLGRP_IPV4_ROUTE, unix.RTNLGRP_IPV4_RULE, unix.RTNLGRP_IPV6_ROUTE, unix.RTNLGRP_IPV6_RULE,
	unix.RTNLGRP_IPV4_IFADDR, unix.RTNLGRP_IPV6_IFADDR, unix.RTNLGRP_NEXTHOP,
}

// Watcher hears of the host's network.
type Watcher struct {
	s    *rtnl.Subscription
	buf  []byte
	pace pace
	read int // messages since the last pause

	mu    sync.Mutex
	ended bool
	file  *os.File      // inotify, nil: none
	dirty chan struct{} // something may have changed; closed with the Watcher
}

// New begins to listen, in the network namespace of the calling thread. It must be
// called before this process confines itself, and before routes are looked up that
// count: what changes after New will be told.
func New() (*Watcher, error) {
	s, err := rtnl.Subscribe(groups...)
	if err != nil {
		return nil, err
	}
	return &Watcher{s: s, buf: make([]byte, 32<<10), pace: usual, dirty: make(chan struct{}, 1)}, nil
}

// Close ends Run.
func (w *Watcher) Close() error {
	w.mu.Lock()
	defer w.mu.Unlock()
	if !w.ended {
		w.ended = true
		close(w.dirty)
		if w.file != nil {
			w.file.Close()
		}
	}
	return w.s.Close()
}

// Mark has Network called as if the kernel had told of a change.
func (w *Watcher) Mark() {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.ended {
		return
	}
	select {
	case w.dirty <- struct{}{}:
	default:
	}
}

// Listener is told of changes. Either may be nil. They are called by goroutines of
// their own, never twice at a time.
type Listener struct {
	// Owns is called when a destination may lead to the host that did not before: at once
	// after the first such change, then for all that came meanwhile, and a little later
	// once more, for what was decided just before and done just after. It is called again
	// as long as it asks for that.
	Owns func() (again bool)
	// Network is called when anything may have changed, once no more changes come or some
	// time has passed; later again if it asks for that.
	Network func() (again bool)
}

// Run tells l of changes. It returns after Close.
//
// What is not read in time waits in the socket, and of what does not fit there the
// kernel tells that there was something. Nothing grows.
func (w *Watcher) Run(l Listener) error {
	if l.Network != nil {
		go w.gather(l.Network)
	}
	for waiting := false; ; {
		news, ok := waiting, true
		if !waiting {
			if news, ok = w.await(); !ok {
				return os.ErrClosed
			}
		}
		start, again := time.Now(), false
		if l.Owns != nil {
			again = l.Owns()
		}
		w.pause(rest * time.Since(start))
		waiting = w.drain()
		var until time.Time
		if l.Owns != nil && (again || news) {
			until = time.Now().Add(w.pace.retry)
		}
		if w.s.Deadline(until) != nil {
			return os.ErrClosed
		}
	}
}

func (w *Watcher) pause(least time.Duration) {
	time.Sleep(max(w.pace.pause, least))
	w.read = 0
}

// gather calls changed for what was marked.
func (w *Watcher) gather(changed func() (again bool)) {
	for range w.dirty {
		start := time.Now()
		for quiet := false; !quiet && time.Since(start) < w.pace.most; {
			time.Sleep(w.pace.pause)
			select {
			case _, ok := <-w.dirty:
				if !ok {
					return
				}
			default:
				quiet = true
			}
		}
		began := time.Now()
		again := changed()
		took := time.Since(began)
		if again {
			time.AfterFunc(max(w.pace.retry, restNetwork*took), w.Mark)
		}
		time.Sleep(restNetwork * took)
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
		}
		w.Mark()
		if err != nil || matters(b) { // or some was lost
			return true, true
		}
		if w.read++; w.read == mostRead {
			w.pause(0)
		}
	}
}

// drain takes what has come meanwhile, and tells whether any of it is news.
func (w *Watcher) drain() (news bool) {
	for range mostRead {
		b, err := w.s.Waiting(w.buf)
		if err == unix.EAGAIN {
			break
		}
		w.Mark()
		news = news || err != nil || matters(b)
	}
	return news
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
// those; neither does a nexthop that leads out, or an interface that is up. Of an address
// its local route tells.
func concerns(m rtnl.Message) bool {
	switch m.Type {
	case unix.RTM_NEWROUTE:
		if r, ok := m.Route(); ok && r.Type() == unix.RTN_UNICAST {
			oif, ok := r.Out()
			return !ok || oif == rtnl.Loopback
		}
	case unix.RTM_NEWNEXTHOP:
		if h, ok := m.Nexthop(); ok {
			oif, ok := h.Out()
			return !ok || oif == rtnl.Loopback // of a group, one that is may be new
		}
	case unix.RTM_NEWLINK:
		if l, ok := m.Link(); ok {
			return l.Flags()&linkAlive != linkAlive
		}
	case unix.RTM_NEWADDR, unix.RTM_DELADDR:
		return false
	}
	return true
}
