// SPDX-License-Identifier: Apache-2.0

// Package loop is the event loop of names: it carries records of the broker, messages
// of clients and resolvers to the engine that answers (names/dns), and back. One thread,
// one epoll, no locks.
package loop

import (
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"math"
	"time"

	"aldente/ipc"
	"aldente/ipc/domain"
	"aldente/names/dns"
	"aldente/names/kernel"
	"aldente/names/stage"
)

// Bounds of a turn: nobody has it for himself.
const (
	recordsATurn = 64 // of the broker
	readsATurn   = 8  // of one socket
)

// maxQueued is how many records may wait for room in the control channel. An engine has
// fewer questions under way; a broker that takes none for so long is none.
const maxQueued = 4096

// maxLasting is how many clients may take their time to read what they were sent last.
const maxLasting = 16

// countEvery is how often the broker is told what was counted, if there is anything. It
// looks at its notes then at the latest.
const countEvery = time.Second

// mostNotes is how many notes there are for the broker before something else is sent that
// wakes it: fewer than the engine has answers out that it has not confirmed.
const mostNotes = 16

// Loop is the process's one loop.
type Loop struct {
	control int
	notes   int // channel of what the broker need not be woken for; -1: none
	files   int // that there may be; zero: any number
	poll    kernel.Poller
	began   time.Time

	phase  ipc.Phase
	set    []domain.Rule // of rules, until it is complete
	engine *dns.Engine

	clients map[uint32]*conn // by the broker's numbers
	staged  *stage.Flows     // flows of the guest's that are looked at
	asked   map[uint32]*conn // sockets to resolvers, by the engine's; those that are on their way too

	lasting int // clients that are to be closed once they have taken what waits

	out     [][]byte // records that wait for room
	full    bool     // too many
	noted   int      // notes since something was sent
	counted dns.Figures
	toldAt  int64 // when the broker was told of these

	dials   []byte // records that are gathered in a turn
	dropped []int  // sockets to resolvers that are to be closed when the turn's answers are out

	buf [64 << 10]byte
	rec [ipc.MaxRecord]byte // of the broker, being handled
	// note is the one that is being written: garbage of that size would be another collection.
	note [ipc.NamedSize]byte
}

// Tokens of the poller: what a socket is for, and its number.
const (
	ofControl = iota
	ofClient
	ofResolver
	ofStage
)

func token(of int, id uint32) uint64 { return uint64(of)<<32 | uint64(id) }

// spare is how many descriptors are left for what are no clients of UDP: connections,
// sockets to resolvers, and what comes before others have gone.
const spare = 1024

// New reads the start-up records. A process may hold files descriptors, or any number
// if that is zero.
func New(control, files int) (*Loop, error) {
	l := &Loop{control: control, notes: -1, files: files, began: time.Now(), phase: ipc.First, clients: map[uint32]*conn{}, asked: map[uint32]*conn{}}
	l.staged = stage.New(stages{l})
	if err := l.poll.Open(); err != nil {
		return nil, err
	}
	if err := l.poll.Add(control, token(ofControl, 0), true, false); err != nil {
		return nil, fmt.Errorf("control channel: %w", err)
	}
	var seed [16]byte
	random(seed[:]) // the vDSO maps its state now
	for l.phase != ipc.Running {
		l.poll.Wait(-1, false)
		if err := l.receive(); err != nil {
			return nil, err
		}
	}
	return l, nil
}

// now is the time in nanoseconds, of a clock that nobody sets.
func (l *Loop) now() int64 { return int64(time.Since(l.began)) }

// Run answers until the broker is gone.
func (l *Loop) Run() error {
	l.send(ipc.Empty(ipc.NamesKindReady))
	l.engine.Start(l.now())
	for n := 0; ; {
		l.flushDials()
		n = l.poll.Wait(l.timeout(), n > 0)
		for i := range n {
			if err := l.event(l.poll.At(i)); err != nil {
				if errors.Is(err, io.EOF) {
					return nil
				}
				return err
			}
		}
		l.closeDropped()
		now := l.now()
		if now >= l.engine.Deadline() {
			l.engine.Tick(now)
		}
		l.count(now)
		if l.full {
			return errors.New("the broker takes no records")
		}
	}
}

// timeout is how long nothing is due.
func (l *Loop) timeout() time.Duration {
	due := l.engine.Deadline()
	if l.engine.Figures() != l.counted {
		due = min(due, l.toldAt+int64(countEvery))
	}
	if due == math.MaxInt64 {
		return -1
	}
	return time.Duration(max(due-l.now(), 0))
}

func (l *Loop) event(e kernel.Event) error {
	id := uint32(e.Token)
	switch e.Token >> 32 {
	case ofControl:
		if e.Writable {
			l.flush()
		}
		if e.Readable {
			return l.receive()
		}
	case ofClient:
		if c := l.clients[id]; c != nil {
			l.clientEvent(id, c, e)
		}
	case ofResolver:
		if c := l.asked[id]; c != nil && c.fd >= 0 {
			l.resolverEvent(id, c, e)
		}
	case ofStage:
		l.staged.Ready(id)
	}
	return nil
}

// count tells the broker what the engine has counted since it was told last: in a while,
// unless there are many notes.
func (l *Loop) count(now int64) {
	f, was := l.engine.Figures(), &l.counted
	if f == *was || now < l.toldAt+int64(countEvery) && l.noted < mostNotes {
		return
	}
	l.send((&ipc.Counted{
		Questions: f.Questions - was.Questions, Refused: f.Refused - was.Refused, Cached: f.Cached - was.Cached,
		Asked: f.Asked - was.Asked, Failed: f.Failed - was.Failed, Forged: f.Lies - was.Lies,
	}).Encode())
	l.counted, l.toldAt = f, now
}

// random fills b with what nobody can guess.
func random(b []byte) { _, _ = rand.Read(b) }
