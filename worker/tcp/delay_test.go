// SPDX-License-Identifier: Apache-2.0

package tcp

import (
	"testing"

	"aldente/worker/flow"
	"aldente/worker/packet"
)

// ask sends n bytes and has the host answer with one after d nanoseconds; the
// guest acknowledges the answer. It returns what the guest was sent.
func (p *peer) ask(n int, d int64) []frame {
	p.t.Helper()
	p.send(0, n)
	p.e.advance(d)
	p.s.say(1)
	p.e.settle()
	f := p.e.take()
	p.acks(p.ack-p.irs+1, p.win)
	return f
}

// A guest that is answered at once gets its acknowledgments with the answers.
func TestDelayedACK(t *testing.T) {
	for _, trust := range []uint8{0, New(nil, &flow.Guest{}, nil, 0, nil, 1).answers} {
		e := newEnv(t)
		e.tr.answers = trust
		p := dial(e)
		for k := trust; k < quickEnough; k++ {
			if n := len(p.ask(100, ackDelay/2)); n != 2 {
				t.Fatalf("%d segments for a question and its answer", n)
			}
		}
		for range 5 {
			f := p.ask(100, ackDelay/2)
			if len(f) != 1 || len(f[0].tcp.Payload) != 1 || f[0].tcp.Ack != p.seq {
				t.Fatalf("answered by %d segments", len(f))
			}
		}
		if trust > 0 {
			return
		}
	}
	t.Error("a new connection is not trusted")
}

// Nobody waits for an acknowledgment longer than ackDelay, nor where there was
// no answer in that time, nor for that of every second segment, a large one, an
// early one, or a FIN.
func TestACKNotDelayed(t *testing.T) {
	quick := func(t *testing.T) (*env, *peer) {
		e := newEnv(t)
		p := dial(e)
		for range quickEnough {
			p.ask(100, 0)
		}
		return e, p
	}
	t.Run("no answer", func(t *testing.T) {
		e, p := quick(t)
		p.send(0, 100)
		p.want()
		e.advance(2 * ackDelay)
		p.want("A 4 ack 401")
		for range quickEnough { // has to be earned again
			p.send(0, 100)
			if f := e.take(); len(f) != 1 || f[0].tcp.Ack != p.seq {
				t.Fatalf("%d segments", len(f))
			}
		}
	})
	t.Run("slow answers", func(t *testing.T) {
		e := newEnv(t)
		p := dial(e)
		for range 3 * quickEnough {
			if n := len(p.ask(100, 2*ackDelay)); n != 2 {
				t.Fatalf("%d segments", n)
			}
		}
	})
	t.Run("second segment", func(t *testing.T) {
		_, p := quick(t)
		p.send(0, 100)
		p.want()
		p.send(0, 100)
		p.want("A 4 ack 501")
	})
	t.Run("large", func(t *testing.T) {
		_, p := quick(t)
		p.send(0, smallQuery+1)
		p.want("A 4 ack 1326")
	})
	t.Run("early", func(t *testing.T) {
		e, p := quick(t)
		p.at(p.sent+10, 10, 0)
		if f := e.take(); len(f) != 1 || len(f[0].tcp.SACK) == 0 && f[0].tcp.NumSACK == 0 {
			t.Fatalf("%d segments", len(f))
		}
		p.at(p.sent, 5, 0)
		if f := e.take(); len(f) != 1 {
			t.Fatalf("%d segments", len(f))
		}
	})
	t.Run("FIN", func(t *testing.T) {
		_, p := quick(t)
		p.send(packet.FIN, 10)
		p.want("A 4 ack 312")
	})
	t.Run("seen again", func(t *testing.T) {
		_, p := quick(t)
		p.at(p.sent-100, 100, 0)
		p.want("A 4 ack 301")
	})
}
