// SPDX-License-Identifier: Apache-2.0

package lane

import (
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"aldente/worker/flow"
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
