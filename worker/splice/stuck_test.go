// SPDX-License-Identifier: Apache-2.0

package splice

import (
	"fmt"
	"testing"

	"golang.org/x/sys/unix"
)

// TestPatience sends more than makes a stream patient, and then less than its
// mark: that must not be stuck.
func TestPatience(t *testing.T) {
	l := newLane(t)
	c := l.connect("127.0.0.1")
	defer c.close()
	got := make(chan int, 1)
	const total = 8*firstRush + 17
	go func() {
		n, b := 0, make([]byte, 1<<20)
		for n < total {
			k, err := fd(c.server).Read(b)
			if err != nil {
				break
			}
			n += k
		}
		got <- n
	}()
	go func() {
		b := make([]byte, 1<<20)
		for n := 0; n < total; n += len(b) {
			b = b[:min(len(b), total-n)]
			if _, err := fd(c.client).Write(b); err != nil {
				return
			}
		}
	}()
	patient := false
	n := 0
	l.until("all", func() bool {
		patient = patient || l.t.Patience() > 0
		select {
		case n = <-got:
			return true
		default:
			return false
		}
	})
	if n != total {
		t.Errorf("%d of %d bytes", n, total)
	}
	if !patient {
		t.Log("the sender was never ahead: no mark was set")
	}
	l.until("no mark left", func() bool { return l.t.Patience() == 0 })
}

// plenty is more than sockets and pipe hold.
const plenty = 32 << 20

// stall sends from a connection's one end what nobody reads at the other, until
// nothing moves any more.
func (l *lane) stall(from int, size int64) <-chan result {
	r := send(from, size, 1<<20, 1)
	sent, idle := uint64(0), 0
	l.until("stuck", func() bool {
		if now := l.t.Stats.Spliced + l.t.Stats.Copied; now != sent {
			sent, idle = now, 0
		}
		idle++
		return idle > 100
	})
	return r
}

// TestStuckBothWays fills both directions, and then has one peer read, and the
// other after that: neither direction may wait for the other.
func TestStuckBothWays(t *testing.T) {
	for _, pipes := range []bool{true, false} {
		for _, first := range []string{"client", "server"} {
			t.Run(fmt.Sprintf("%s/pipes=%v", first, pipes), func(t *testing.T) {
				l := newLane(t)
				l.noPipe = !pipes
				c := l.connect("127.0.0.1")
				defer c.close()
				up := l.stall(c.client, plenty)
				down := l.stall(c.server, plenty)
				readers := []int{c.client, c.server}
				sent := []<-chan result{down, up}
				if first == "server" {
					readers[0], readers[1] = readers[1], readers[0]
					sent[0], sent[1] = sent[1], sent[0]
				}
				for k := range readers {
					r := receive(readers[k])
					var was, got result
					l.until("sent", func() bool { return poll(sent[k], &was) })
					l.until("received", func() bool { return poll(r, &got) })
					if was.err != nil || got.err != nil || was.sum != got.sum {
						t.Errorf("sent %d bytes, %v; received %d, %v", was.n, was.err, got.n, got.err)
					}
				}
				l.until("closed", func() bool { return l.t.Stats.Closed == 1 })
			})
		}
	}
}

// TestStuckPatience has a stream with a mark get stuck: the lane is not to look
// after it for ever.
func TestStuckPatience(t *testing.T) {
	l := newLane(t)
	c := l.connect("127.0.0.1")
	defer c.close()
	r := l.stall(c.client, 1<<40)
	s := &l.t.streams.all[0]
	s.sides[near].rush.moved = lastRush
	if l.t.drained(0, s, near); l.t.Patience() == 0 {
		t.Fatal("no mark was set")
	}
	l.until("no mark left", func() bool { return l.t.Patience() == 0 })
	disconnect(t, c.client)
	<-r
}

// TestResetAfterEnd has one peer send all, and then reset the connection because
// it does not want what the other has sent, which has closed as well. What was
// sent in full arrives, slow as the other may be.
func TestResetAfterEnd(t *testing.T) {
	l := newLane(t)
	c := l.connect("127.0.0.1")
	defer unix.Close(c.server)
	for _, fd := range []int{c.client, c.server} {
		must(t, unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUF, 4096))
	}
	// What is unwanted fills the pipe, and its end stays behind it.
	far, near := &l.t.streams.all[0].sides[far], &l.t.streams.all[0].sides[near]
	must(t, unix.SetsockoptInt(int(near.fd), unix.SOL_SOCKET, unix.SO_SNDBUF, 4096))
	const unwanted, size = 60_000, 80_000
	back := send(c.server, unwanted, 1<<16, 1)
	var r result
	l.until("the unwanted is on its way", func() bool { return poll(back, &r) })
	l.until("its end has come", func() bool { return far.has(finished) })
	sent := send(c.client, size, 1<<16, 2)
	l.until("the end is told", func() bool { return far.has(shut) })
	want := <-sent
	l.until("nothing more to read", func() bool { return unread(l) == 0 })
	disconnect(t, c.client)
	l.until("over", func() bool { return l.t.Len() == 0 })
	got := <-receive(c.server)
	if got.err != nil || got.n != size || got.sum != want.sum {
		t.Errorf("%d of %d bytes, %v", got.n, size, got.err)
	}
}

// unread is what the far socket of the first flow has that was not read.
func unread(l *lane) int {
	n, err := unix.IoctlGetInt(int(l.t.streams.all[0].sides[far].fd), unix.TIOCINQ)
	must(l.tb, err)
	return n
}
