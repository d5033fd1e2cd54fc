// SPDX-License-Identifier: Apache-2.0

package lane

import (
	"math"
	"math/rand/v2"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"aldente/ipc"
	"aldente/worker/flow"
	"aldente/worker/link"
)

// turnOf has the lane look at the events of one turn.
func (l *Lane) turnOf(tokens ...uint64) bool {
	return l.oneConversation(len(tokens), tokens[0])
}

func TestLone(t *testing.T) {
	a, b, c := flow.Token(flow.OwnerTCP, 1, 1), flow.Token(flow.OwnerBypass, 7, 3), flow.Token(flow.OwnerUDP, 1, 1)
	l := new(Lane)
	for k := range regular {
		if l.turnOf(a) || l.turnOf(tokenLink) {
			t.Fatalf("a conversation after %d events", k)
		}
	}
	l.turnOf(a)
	if !l.turnOf(a) || !l.turnOf(tokenLink) {
		t.Error("no conversation of the guest and a socket")
	}
	if l.turnOf(a, tokenLink) {
		t.Error("two events at a time")
	}
	if l.turnOf(b) || l.turnOf(tokenLink) {
		t.Error("another socket")
	}
	for range regular {
		l.turnOf(c)
		l.turnOf(b)
	}
	if !l.turnOf(c) || !l.turnOf(b) {
		t.Error("no conversation of two sockets")
	}
	for range 100 {
		for _, token := range []uint64{a, b, c} {
			if l.turnOf(token) {
				t.Fatal("three sockets")
			}
		}
	}
}

// A flow of bulk has small pieces now and then, and would spin after each.
func TestSmallPieceOfBulk(t *testing.T) {
	l := new(Lane)
	token := flow.Token(flow.OwnerBypass, 1, 1)
	talk := func() (soon bool) {
		for range regular + 1 {
			soon = l.turnOf(token)
			l.moved = conversationBytes
			l.small()
		}
		return soon
	}
	if !talk() {
		t.Fatal("no conversation")
	}
	l.turnOf(token)
	if l.moved = conversationBytes + 1; l.small() {
		t.Error("bulk is small")
	}
	if l.turnOf(token) {
		t.Error("a conversation right after bulk")
	}
	if !talk() {
		t.Error("no conversation any more")
	}
}

// Spinning ends after its time, or with an event.
func TestSpinEnds(t *testing.T) {
	l := new(Lane)
	if err := l.poll.Open(); err != nil {
		t.Fatal(err)
	}
	defer unix.Close(int(l.poll.FD()))
	l.start = time.Now()
	l.tick()
	before := l.now
	if n := l.spin(); n != 0 {
		t.Errorf("%d events", n)
	}
	if d := l.now - before; d < spinTime {
		t.Errorf("looked for %d ns", d)
	}
	var p [2]int
	if err := unix.Pipe2(p[:], unix.O_CLOEXEC); err != nil {
		t.Fatal(err)
	}
	defer unix.Close(p[0])
	defer unix.Close(p[1])
	l.poll.Add(int32(p[0]), 5, flow.Readable)
	if _, err := unix.Write(p[1], []byte{0}); err != nil {
		t.Fatal(err)
	}
	if n := l.spin(); n != 1 {
		t.Errorf("%d events", n)
	}
}

// TestSpinsPay: who has spun for nothing does not soon do so again; who finds something does.
func TestSpinsPay(t *testing.T) {
	var s spins
	tries := func(n int, found bool) (spun int) {
		for range n {
			if s.pay() {
				spun++
				s.done(found)
			}
		}
		return spun
	}
	if n := tries(100, true); n != 100 {
		t.Errorf("%d spins of 100 that find something", n)
	}
	if n := tries(1000, false); n > 6+1000/mostSkipped || n < 1000/(mostSkipped+1) {
		t.Errorf("%d spins for nothing", n)
	}
	tries(mostSkipped+1, true)
	if n := tries(100, true); n != 100 {
		t.Errorf("%d spins of 100 after one that has found something", n)
	}
}

// lookedAt is a link to whose guest there is something after so many looks.
type lookedAt struct {
	link.Watched
	looks int
}

func (w *lookedAt) Waiting() bool {
	w.looks--
	return w.looks < 0
}

// TestSpinFindsFrames: frames of a guest that does not tell of them are found as long as the
// lane does not sleep, and belong to the conversation.
func TestSpinFindsFrames(t *testing.T) {
	l := &Lane{watching: &lookedAt{looks: 3}}
	if err := l.poll.Open(); err != nil {
		t.Fatal(err)
	}
	defer unix.Close(int(l.poll.FD()))
	l.start = time.Now()
	l.tick()
	if n := l.spin(); n != 0 || !l.more {
		t.Errorf("%d events, frames: %t", n, l.more)
	}
	if l.oneConversation(0, 0) {
		t.Error("a conversation of nobody")
	}
	for range regular + 1 {
		l.turnOf(flow.Token(flow.OwnerTCP, 1, 1))
	}
	if !l.oneConversation(0, 0) {
		t.Error("what the guest answers is no conversation")
	}
	if l.more = false; l.oneConversation(0, 0) {
		t.Error("nothing has happened")
	}
}

// TestSpinsLongerBehindMemory: behind a machine's memory the way to the partner and back is longer.
func TestSpinsLongerBehindMemory(t *testing.T) {
	l := &Lane{watching: &lookedAt{looks: math.MaxInt}}
	if err := l.poll.Open(); err != nil {
		t.Fatal(err)
	}
	defer unix.Close(int(l.poll.FD()))
	l.start = time.Now()
	l.tick()
	before := l.now
	if n := l.spin(); n != 0 || l.more || l.now-before < spinTimeWatched {
		t.Errorf("%d events, frames: %t, after %d ns", n, l.more, l.now-before)
	}
}

// sleepless is a link to whose guest something has come before it was asked to tell.
type sleepless struct{ link.Watched }

func (sleepless) Sleep() bool { return true }

// TestRestsBeforeItSleeps: before it waits for events the lane has the guest tell of frames, and
// takes what has come before that.
func TestRestsBeforeItSleeps(t *testing.T) {
	w := newWorld(t, rand.New(rand.NewPCG(1, 1)), ipc.LinkVhostUser, 1500, true)
	w.turn()
	real := w.l.watching
	defer func() { w.l.watching = real }()
	w.l.watching = sleepless{real}
	w.l.wait() // or it is for ever
	if !w.l.more {
		t.Error("what has come is not taken")
	}
}
