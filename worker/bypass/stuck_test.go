// SPDX-License-Identifier: Apache-2.0

package bypass

import (
	"fmt"
	"testing"
)

// TestPatience sends more than gives a stream a low-water mark, and then less than its
// mark: that must not be stuck.
func TestPatience(t *testing.T) {
	l := newLane(t)
	c := l.connect("127.0.0.1")
	defer c.close()
	got := make(chan int, 1)
	const total = 8*firstSteady + 17
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
	marked := false
	n := 0
	l.until("all", func() bool {
		marked = marked || l.t.MarkTimeout() > 0
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
	if !marked {
		t.Log("the sender was never ahead: no mark was set")
	}
	l.until("no mark left", func() bool { return l.t.MarkTimeout() == 0 })
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
	s.sides[near].steady.moved = maxSteady
	if l.t.drained(0, s, near); l.t.MarkTimeout() == 0 {
		t.Fatal("no mark was set")
	}
	l.until("no mark left", func() bool { return l.t.MarkTimeout() == 0 })
	disconnect(t, c.client)
	<-r
}
