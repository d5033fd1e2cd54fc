// SPDX-License-Identifier: Apache-2.0

package bypass

import (
	"errors"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"aldente/worker/flow"
)

// A connection that ends keeps its sockets until the turn does, and nothing moves
// it meanwhile; then both peers are told, and nothing is left.
func TestEndedUntilSweep(t *testing.T) {
	before := descriptors(t)
	l := newLane(t)
	c := l.connect("127.0.0.1")
	open := descriptors(t)
	s := &l.t.streams.all[0]
	if _, err := fd(c.client).Write([]byte("lost")); err != nil {
		t.Fatal(err)
	}
	s.sides[near].flags |= readable
	l.t.abort(0, s)
	reset := l.t.Stats.Reset
	l.t.Ready(token(s.gen, 0, near, 0), flow.Readable|flow.Writable)
	l.t.turn(0, s)
	l.t.watch(0, s, near, 0)
	l.t.abort(0, s)
	l.t.end(0, s)
	if l.t.live(s.gen) || l.t.Stats.Reset != reset || l.t.Stats.Copied != 0 || descriptors(t) != open || l.t.Len() != 1 {
		t.Errorf("%d descriptors of %d, %d flows: %+v", descriptors(t), open, l.t.Len(), l.t.Stats)
	}
	l.t.Sweep()
	for name, peer := range map[string]int{"client": c.client, "server": c.server} {
		if _, err := fd(peer).Read(make([]byte, 1)); !errors.Is(err, unix.ECONNRESET) {
			t.Errorf("%s: read: %v", name, err)
		}
	}
	c.close()
	l.t.Close()
	if n := descriptors(t); l.t.Len() != 0 || n != before+1 { // epoll's
		t.Errorf("%d flows, %d descriptors more", l.t.Len(), n-before)
	}
}

// live tells whether the first stream is one that a token of this generation finds.
func (t *Translator) live(gen uint32) bool { return t.streams.live(0, gen) != nil }

// failing is a lane on which reports cannot be changed, as without memory.
type failing struct {
	*lane
	errno syscall.Errno
}

func (l *failing) Rewatch(fd int32, token uint64, events uint32) syscall.Errno {
	if l.errno != 0 {
		return l.errno
	}
	return l.lane.Rewatch(fd, token, events)
}

// Whatever change of reports fails, it ends the connection once, and no event that
// would have told of the rest is waited for.
func TestReportsFail(t *testing.T) {
	l := newLane(t)
	env := &failing{lane: l}
	l.t.env = env
	for name, step := range map[string]func(c connection, s *stream){
		"data nobody takes": func(c connection, s *stream) {
			s.sides[near].flags |= readable
			s.sides[far].flags &^= writable
			l.t.Ready(token(s.gen, 0, near, 0), flow.Readable)
		},
		"room nobody awaits": func(c connection, s *stream) {
			s.sides[far].seen |= flow.Writable
			s.sides[far].flags |= writable
			l.t.Ready(token(s.gen, 0, far, 0), flow.Writable)
		},
		"dry": func(c connection, s *stream) {
			s.sides[near].seen, s.sides[near].flags = 0, s.sides[near].flags&^readable
			l.t.Ready(token(s.gen, 0, far, 0), flow.Readable)
		},
		"full": func(c connection, s *stream) {
			s.sides[near].seen, s.sides[far].seen = flow.Readable, flow.Readable
			s.sides[far].flags &^= writable
			l.t.Ready(token(s.gen, 0, far, 0), flow.Readable)
		},
	} {
		t.Run(name, func(t *testing.T) {
			env.errno = 0
			c := l.connect("127.0.0.1")
			defer c.close()
			reset := l.t.Stats.Reset
			env.errno = syscall.ENOMEM
			step(c, &l.t.streams.all[0])
			l.t.Sweep()
			if l.t.Len() != 0 || l.t.Stats.Reset != reset+1 {
				t.Errorf("%d flows, %+v", l.t.Len(), l.t.Stats)
			}
		})
	}
}
