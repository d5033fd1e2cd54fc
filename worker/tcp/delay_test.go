// SPDX-License-Identifier: Apache-2.0

package tcp

import (
	"testing"

	"aldente/worker/flow"
	"aldente/worker/packet"
	"aldente/worker/store"
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
	for _, trust := range []uint8{0, New(nil, &flow.Guest{}, nil, 0, store.NewPool(nil), 1).quickReplies} {
		e := newEnv(t)
		e.tr.quickReplies = trust
		p := dial(e)
		for k := trust; k < maxQuickReplies; k++ {
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

// An acknowledgment that has left with an answer leaves no timer behind: it would be set for
// each sleep of the lane, and wake it.
func TestDelayedACKTimer(t *testing.T) {
	e, p := quickly(t)
	for range 3 {
		p.send(0, 100)
		if at := e.wheel.Next(); at > e.now+2*ackDelay {
			t.Fatalf("an acknowledgment waits, and the next timer is due in %d ns", at-e.now)
		}
		p.s.say(1)
		e.settle()
		if at := e.wheel.Next(); at <= e.now+2*ackDelay {
			t.Errorf("all is acknowledged, and a timer is due in %d ns", at-e.now)
		}
		e.take()
		p.acks(p.ack-p.irs+1, p.win)
	}
}

// A connection that waits for what may come late has no timer but the one that ends it: those
// of a thousand connections a second would be due at every sleep of the lane.
func TestTimeWaitTimer(t *testing.T) {
	e, p := quickly(t)
	p.send(0, 10)
	p.s.say(5)
	p.s.fin()
	e.settle()
	e.take()
	p.acks(p.ack-p.irs+6, p.win)
	p.send(packet.FIN, 0)
	if c := p.conn(); c == nil || c.state != stateTimeWait {
		t.Fatal("it does not wait")
	}
	if at := e.wheel.Next(); at < e.now+timeWait {
		t.Errorf("a timer is due in %d ns", at-e.now)
	}
	e.advance(2 * timeWait)
	p.gone()
}

// quickly makes a connection whose guest has asked and was answered at once.
func quickly(t *testing.T) (*env, *peer) {
	e := newEnv(t)
	p := dial(e)
	for range maxQuickReplies {
		p.ask(100, 0)
	}
	return e, p
}

// Where the host says the end too, its FIN carries the acknowledgment of the guest's.
// The guest's may come behind its last words, alone or with them.
func TestFINDelayed(t *testing.T) {
	for name, say := range map[string]func(p *peer){
		"alone":        func(p *peer) { p.send(packet.FIN, 0) },
		"with data":    func(p *peer) { p.send(packet.FIN, 10) },
		"behind data":  func(p *peer) { p.send(0, 10); p.send(packet.FIN, 0) },
		"in one batch": func(p *peer) { p.add(0, 10); p.add(packet.FIN, 0); p.end() },
	} {
		t.Run(name, func(t *testing.T) {
			e, p := quickly(t)
			say(p)
			p.want()
			if !p.s.shut {
				t.Error("the host does not hear of it")
			}
			e.advance(ackDelay / 2)
			p.s.fin()
			e.settle()
			if f := e.take(); len(f) != 1 || f[0].tcp.Flags&packet.FIN == 0 || f[0].tcp.Ack != p.seq {
				t.Fatalf("%d segments: %+v", len(f), f)
			}
			p.acks(p.ack-p.irs+1, p.win)
			p.want()
			p.gone()
		})
	}
	t.Run("host stays", func(t *testing.T) {
		e, p := quickly(t)
		p.send(0, 10)
		p.send(packet.FIN, 0)
		p.want()
		e.advance(2 * ackDelay)
		p.want("A 4 ack 312")
		p.s.say(1)
		e.settle()
		p.want("A 4+1 ack 312")
	})
	t.Run("seen again", func(t *testing.T) {
		_, p := quickly(t)
		p.send(packet.FIN, 10)
		p.want()
		p.raw(packet.TCP{Flags: packet.FIN | packet.ACK, Seq: p.seq - 1, Ack: p.ack, Window: p.win})
		p.want("A 4 ack 312")
	})
}

// A FIN is acknowledged at once where nothing will carry that, or nothing did before.
func TestFINNotDelayed(t *testing.T) {
	for name, say := range map[string]func(e *env, p *peer){
		"slow so far": func(e *env, p *peer) { p.ask(100, 2*ackDelay); e.take(); p.send(packet.FIN, 10) },
		"host is done": func(e *env, p *peer) {
			p.s.fin()
			e.settle()
			p.acks(p.ack-p.irs+1, p.win)
			e.take()
			p.send(packet.FIN, 10)
		},
		"both at once": func(e *env, p *peer) { p.s.fin(); e.settle(); e.take(); p.send(packet.FIN, 10) },
		"large":        func(_ *env, p *peer) { p.send(packet.FIN, smallQuery+1) },
	} {
		t.Run(name, func(t *testing.T) {
			e, p := quickly(t)
			say(e, p)
			if f := e.take(); len(f) != 1 || f[0].tcp.Ack != p.seq {
				t.Fatalf("%d segments", len(f))
			}
		})
	}
}

// Of a host that answers and closes at once, two reads tell both, and one segment tells
// the guest. When that closes last, the host hears it by the socket's end.
func TestLastWordsOnce(t *testing.T) {
	e, p := quickly(t)
	before := p.s.peeks
	p.send(0, 10)
	p.s.say(5)
	p.s.fin()
	e.settle()
	if f := p.want("FA 4+5 ack 311"); len(f) == 1 && f[0].tcp.Ack != p.seq {
		t.Errorf("acknowledges %d", f[0].tcp.Ack)
	}
	if n := p.s.peeks - before; n != 2 {
		t.Errorf("%d reads", n)
	}
	p.acks(p.ack-p.irs+6, p.win)
	p.send(packet.FIN, 0)
	p.want("A 10 ack 312")
	e.advance(2 * timeWait)
	if p.s.shutdowns != 0 || p.s.closes != 1 || p.s.aborted {
		t.Errorf("shut down %d times, closed %d times, aborted: %v", p.s.shutdowns, p.s.closes, p.s.aborted)
	}
	p.gone()
}

// However little the host says at a time, what the guest has acknowledged does not
// pile up in the socket, where each peek would walk past it.
func TestPiecesDequeued(t *testing.T) {
	e, p := quickly(t)
	most := 0
	for range 5 * dequeuePieces {
		p.ask(100, 0)
		most = max(most, p.s.rxHave-p.s.rxBase)
	}
	if most > dequeuePieces || most < dequeuePieces/2 {
		t.Errorf("up to %d pieces were queued", most)
	}
	e.take()
}

// Nobody waits for an acknowledgment longer than ackDelay, nor where there was
// no answer in that time, nor for that of every second segment, a large one, or an
// early one.
func TestACKNotDelayed(t *testing.T) {
	quick := quickly
	t.Run("no answer", func(t *testing.T) {
		e, p := quick(t)
		p.send(0, 100)
		p.want()
		e.advance(2 * ackDelay)
		p.want("A 4 ack 401")
		for range maxQuickReplies { // has to be earned again
			p.send(0, 100)
			if f := e.take(); len(f) != 1 || f[0].tcp.Ack != p.seq {
				t.Fatalf("%d segments", len(f))
			}
		}
	})
	t.Run("slow answers", func(t *testing.T) {
		e := newEnv(t)
		p := dial(e)
		for range 3 * maxQuickReplies {
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
	t.Run("seen again", func(t *testing.T) {
		_, p := quick(t)
		p.at(p.sent-100, 100, 0)
		p.want("A 4 ack 301")
	})
}

// inBulk makes a connection that has grown its window to as many chunks, and has
// just been acknowledged.
func inBulk(t *testing.T, reserve uint16) (*env, *peer) {
	e := newEnv(t)
	p := dial(e)
	for c := p.conn(); c.reserved < reserve; {
		p.send(0, 60_000)
		e.take()
	}
	for p.conn().has(flagAckLater) {
		p.send(0, 60_000)
		e.take()
	}
	return e, p
}

// Bulk is acknowledged half a megabyte at a time, without waiting for a timer.
func TestBulkACKs(t *testing.T) {
	e, p := inBulk(t, tapReserve)
	var acks []uint32
	for first := p.seq; p.seq-first < 8<<20; {
		p.send(0, 60_000)
		for _, f := range e.take() {
			if len(f.tcp.Payload) != 0 || f.tcp.Ack != p.seq {
				t.Fatalf("%+v", f.tcp)
			}
			acks = append(acks, p.seq)
			if int(f.tcp.Window)<<rcvScale < 2*bulkAck {
				t.Errorf("a window of %d", int(f.tcp.Window)<<rcvScale)
			}
		}
	}
	if n := len(acks); n < 14 || n > 17 {
		t.Errorf("%d acknowledgments for 8 MiB", n)
	}
	for k := range acks[1:] {
		if n := acks[k+1] - acks[k]; n > bulkAck+60_000 {
			t.Errorf("%d bytes at a time", n)
		}
	}
}

// vain has n acknowledgments wait in vain.
func (p *peer) vain(n int) {
	p.t.Helper()
	for range n {
		p.send(0, 60_000)
		p.send(0, 60_000)
		if n := len(p.e.take()); n != 0 {
			p.t.Fatal("not gathered")
		}
		p.e.advance(2 * ackDelay)
		if f := p.e.take(); len(f) != 1 || f[0].tcp.Ack != p.seq {
			p.t.Fatalf("%d segments in time", len(f))
		}
	}
}

// A guest that sends less than is acknowledged at a time waits for ackDelay, and
// not again and again.
func TestBulkACKInVain(t *testing.T) {
	e, p := inBulk(t, tapReserve)
	p.vain(maxLate)
	for range 100 {
		p.send(0, 60_000)
		if f := e.take(); len(f) != 1 || f[0].tcp.Ack != p.seq {
			t.Fatalf("%d segments at once", len(f))
		}
	}
}

// What was in vain is forgotten where there is bulk again, and small questions
// do not count.
func TestBulkACKTrusted(t *testing.T) {
	e, p := inBulk(t, tapReserve)
	for range 3 {
		p.vain(maxLate - 1)
		for len(e.take()) == 0 {
			p.send(0, 60_000)
		}
	}
	for range maxLate {
		for range maxQuickReplies {
			p.ask(100, 0)
		}
		p.send(0, 100)
		p.want()
		e.advance(2 * ackDelay)
		if n := len(e.take()); n != 1 {
			t.Fatalf("%d segments", n)
		}
	}
	p.vain(1)
}

// What tells of a loss, of the end or of too much is acknowledged at once in
// bulk too, and so is what comes while the socket takes nothing.
func TestBulkACKAtOnce(t *testing.T) {
	for name, send := range map[string]func(e *env, p *peer){
		"early":          func(_ *env, p *peer) { p.at(p.sent+2000, 2000, 0) },
		"old":            func(_ *env, p *peer) { p.at(p.sent-2000, 2000, 0) },
		"FIN":            func(_ *env, p *peer) { p.send(packet.FIN, 2000) },
		"small":          func(_ *env, p *peer) { p.send(0, 100) },
		"with what gaps": func(_ *env, p *peer) { p.at(p.sent+60_000, 2000, 0); p.e.take(); p.send(0, 2000) },
		"full": func(e *env, p *peer) {
			p.s.txRoom = 0
			for c := p.conn(); c.rcvEdge-c.rcvNxt > 2000; {
				p.send(0, min(int(c.rcvEdge-c.rcvNxt)-1000, 60_000))
			}
			e.take()
			p.send(0, 2000)
		},
	} {
		t.Run(name, func(t *testing.T) {
			e, p := inBulk(t, tapReserve)
			send(e, p)
			if n := len(e.take()); n != 1 {
				t.Errorf("%d segments", n)
			}
		})
	}
	t.Run("window", func(t *testing.T) {
		e, p := inBulk(t, 65)
		if limit := p.conn().windowLimit(); limit >= 2*bulkAck {
			t.Fatalf("a window of %d", limit)
		}
		p.send(0, 60_000)
		if n := len(e.take()); n != 1 {
			t.Errorf("%d segments", n)
		}
	})
}
