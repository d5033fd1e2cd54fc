// SPDX-License-Identifier: Apache-2.0

package tcp

import (
	"syscall"
	"testing"
	"time"

	"aldente/ipc"
	"aldente/worker/packet"
)

const ms = int64(time.Millisecond)

func TestGuestClosesFirst(t *testing.T) {
	for _, open := range []func(*env) *peer{dial, accept} {
		e := newEnv(t)
		p := open(e)
		p.send(packet.FIN, 100)
		p.want("A 1 ack 102")
		if p.s.txTotal != 100 || !p.s.shut {
			t.Fatalf("%d bytes, FIN %t", p.s.txTotal, p.s.shut)
		}
		p.s.say(50) // the other direction stays open
		e.settle()
		p.want("A 1+50 ack 102")
		p.acks(51, 0xffff)
		p.want()
		p.s.fin()
		e.settle()
		p.want("FA 51 ack 102")
		p.acks(52, 0xffff)
		p.want()
		e.tr.RemoveListener(1)
		p.gone() // the guest is the one that waits
		p.raw(packet.TCP{Flags: packet.FIN | packet.ACK, Seq: p.seq - 1, Ack: p.ack})
		p.want("R 52")
	}
}

func TestHostClosesFirst(t *testing.T) {
	for _, open := range []func(*env) *peer{dial, accept} {
		e := newEnv(t)
		p := open(e)
		p.s.say(10)
		p.s.fin()
		e.settle()
		p.want("FA 1+10 ack 1")
		p.acks(12, 0xffff)
		p.send(0, 100) // the other direction stays open
		p.want("A 12 ack 101")
		if p.s.txTotal != 100 || p.s.closes != 0 {
			t.Fatal("the guest's direction is closed")
		}
		p.send(packet.FIN, 0)
		p.want("A 12 ack 102")
		if p.s.closes != 1 || p.conn().state != stateTimeWait {
			t.Fatal("not in TIME-WAIT")
		}
		e.tr.RemoveListener(1)
		// The guest has not seen our ACK.
		e.advance(1500 * ms)
		p.raw(packet.TCP{Flags: packet.FIN | packet.ACK, Seq: p.seq - 1, Ack: p.ack})
		p.want("A 12 ack 102")
		e.advance(1500 * ms) // starts again, RFC 9293 section 3.10.7.4
		p.raw(packet.TCP{Flags: packet.FIN | packet.ACK, Seq: p.seq - 1, Ack: p.ack})
		p.want("A 12 ack 102")
		p.acks(12, 0xffff)
		p.want()
		e.advance(3 * second)
		p.want()
		p.gone()
	}
}

// The FIN that goes with the last data may also go alone: when it comes later,
// and when the window ends with the data.
func TestHostFINAlone(t *testing.T) {
	e := newEnv(t)
	p := dial(e)
	p.s.say(10)
	e.settle()
	p.want("A 1+10 ack 1")
	p.s.fin()
	e.settle()
	p.want("FA 11 ack 1")
}

func TestSimultaneousClose(t *testing.T) {
	e := newEnv(t)
	p := dial(e)
	p.s.fin()
	e.settle()
	p.want("FA 1 ack 1")
	p.send(packet.FIN, 0) // has not seen ours
	p.want("A 2 ack 2")
	p.acks(2, 0xffff)
	p.want()
	if c := p.conn(); c == nil || c.state != stateTimeWait {
		t.Fatal("not in TIME-WAIT")
	}
	e.advance(3 * second)
	p.gone()
}

func TestFINRetransmitted(t *testing.T) {
	e := newEnv(t)
	p := dial(e)
	p.s.say(10)
	p.s.fin()
	e.settle()
	p.want("FA 1+10 ack 1")
	e.advance(1200 * ms)
	p.want("FA 1+10 ack 1")
	p.acks(11, 0xffff) // the data came, the FIN did not
	p.want()
	e.advance(1200 * ms)
	p.want("FA 11 ack 1")
	p.acks(12, 0xffff)
	e.advance(100 * second)
	p.want()
	p.send(packet.FIN, 0)
	p.want("A 12 ack 2")
	p.send(packet.FIN, 0)
	e.advance(3 * second)
	p.gone()
}

func TestGuestFINAgain(t *testing.T) {
	e := newEnv(t)
	p := dial(e)
	p.send(packet.FIN, 5)
	p.want("A 1 ack 7")
	p.raw(packet.TCP{Flags: packet.FIN | packet.ACK, Seq: p.seq - 6, Ack: p.ack, Window: p.win, Payload: stream(0, 5)})
	p.want("A 1 ack 7")
	// Nothing may follow a FIN.
	p.raw(packet.TCP{Flags: packet.ACK, Seq: p.seq, Ack: p.ack, Window: p.win, Payload: stream(5, 5)})
	p.want("A 1 ack 7")
	if p.s.txTotal != 5 || p.s.closes != 0 {
		t.Error("taken twice")
	}
}

func TestGuestFINOutOfOrder(t *testing.T) {
	e := newEnv(t)
	p := dial(e)
	p.at(100, 50, packet.FIN)
	p.want("A 1 ack 1 [101,151)")
	if p.s.shut {
		t.Fatal("shut before all data")
	}
	p.send(0, 100)
	p.want("A 1 ack 152")
	if p.s.txTotal != 150 || !p.s.shut {
		t.Errorf("%d bytes, FIN %t", p.s.txTotal, p.s.shut)
	}

	e = newEnv(t)
	p = dial(e)
	p.at(100, 0, packet.FIN) // the FIN alone came early
	p.want("A 1 ack 1")
	p.send(0, 100)
	p.want("A 1 ack 102")
	if p.s.txTotal != 100 || !p.s.shut {
		t.Errorf("%d bytes, FIN %t", p.s.txTotal, p.s.shut)
	}
}

// With the socket full, FIN waits for what the queue holds.
func TestGuestFINBehindQueue(t *testing.T) {
	e := newEnv(t)
	p := dial(e)
	p.s.txRoom = 1000
	p.send(0, 1400)
	p.send(packet.FIN, 1400)
	p.want("A 1 ack 1401", "A 1 ack 2802")
	if p.s.shut || p.s.txTotal != 1000 {
		t.Fatal("shut before all data")
	}
	p.s.free(1799)
	e.settle()
	if p.s.shut {
		t.Fatal("shut before the last byte")
	}
	p.s.free(1)
	e.settle()
	if !p.s.shut || p.s.txTotal != 2800 || e.pool.Used() != 0 {
		t.Fatal("FIN not passed on")
	}
}

func TestTimeWaitNewSYN(t *testing.T) {
	timeWaiting := func() (*env, *peer) {
		e := newEnv(t)
		p := dial(e)
		p.s.fin()
		e.settle()
		p.want("FA 1 ack 1")
		p.acks(2, 0xffff)
		p.send(packet.FIN, 0)
		p.want("A 2 ack 2")
		return e, p
	}
	t.Run("later number", func(t *testing.T) {
		e, p := timeWaiting()
		syn := p.syn()
		syn.Seq = p.seq + 1000
		p.raw(syn)
		if len(e.opens) != 2 || p.conn().state != stateOpening {
			t.Error("no new connection")
		}
	})
	t.Run("earlier number", func(t *testing.T) {
		e, p := timeWaiting()
		p.raw(p.syn())
		p.want("A 2 ack 2")
		// A guest that means it did not expect that.
		p.raw(packet.TCP{Flags: packet.RST, Seq: p.seq})
		p.gone()
		p.raw(p.syn())
		if len(e.opens) != 2 {
			t.Error("no new connection")
		}
	})
	t.Run("wrong RST", func(t *testing.T) {
		_, p := timeWaiting()
		p.raw(packet.TCP{Flags: packet.RST, Seq: p.seq - 1})
		p.want()
		if p.conn() == nil {
			t.Error("TIME-WAIT ended")
		}
	})
	t.Run("from the host", func(t *testing.T) {
		e, p := timeWaiting()
		l := e.listen(1, guestPort)
		l.arrive(e.newSock(), remote4, remotePort)
		e.settle()
		if c := p.conn(); c == nil || c.state != stateSynSent {
			t.Error("no new connection")
		}
	})
}

func TestRSTFromGuest(t *testing.T) {
	for _, tt := range []struct {
		name  string
		off   uint32 // from the next number
		ends  bool
		reply []string
	}{
		{"exact", 0, true, nil},
		{"in the window", 1, false, []string{"A 1 ack 1"}},
		{"at the window's end", 65280, false, []string{"A 1 ack 1"}},
		{"behind the window", 65281, false, nil},
		{"before the window", ^uint32(0), false, nil},
	} {
		t.Run(tt.name, func(t *testing.T) {
			e := newEnv(t)
			p := dial(e)
			p.raw(packet.TCP{Flags: packet.RST, Seq: p.seq + tt.off})
			p.want(tt.reply...)
			if tt.ends != (p.conn() == nil) || tt.ends != p.s.aborted {
				t.Fatalf("ended: %t", p.conn() == nil)
			}
			if tt.ends {
				p.gone()
			}
		})
	}
}

func TestChallenges(t *testing.T) {
	for _, tt := range []struct {
		name  string
		s     packet.TCP
		reply []string
	}{
		{"SYN in the window", packet.TCP{Flags: packet.SYN, Seq: guestISN + 1}, []string{"A 1 ack 1"}},
		{"SYN before the window", packet.TCP{Flags: packet.SYN, Seq: guestISN}, []string{"A 1 ack 1"}},
		{"SYN of a new guest", packet.TCP{Flags: packet.SYN, Seq: guestISN - 1e9}, []string{"A 1 ack 1"}},
		{"ACK of what was not sent", packet.TCP{Flags: packet.ACK, Seq: guestISN + 1, Ack: ourISN + 2, Payload: []byte{1}}, []string{"A 1 ack 1"}},
		{"ACK of long ago", packet.TCP{Flags: packet.ACK, Seq: guestISN + 1, Ack: ourISN - 1<<30 - 1, Payload: []byte{1}}, []string{"A 1 ack 1"}},
		{"no ACK", packet.TCP{Flags: 0, Seq: guestISN + 1, Payload: []byte{1}}, nil},
		{"behind the window", packet.TCP{Flags: packet.ACK, Seq: 65281 - 100, Ack: ourISN + 1, Payload: []byte{1}}, []string{"A 1 ack 1"}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			e := newEnv(t)
			p := dial(e)
			tt.s.WScale = -1
			p.raw(tt.s)
			p.want(tt.reply...)
			if p.conn() == nil || p.s.txTotal != 0 {
				t.Fatal("taken")
			}
			// A challenge makes the genuine peer go on, or reset.
			p.send(0, 10)
			p.want("A 1 ack 11")
			p.raw(packet.TCP{Flags: packet.RST, Seq: p.seq})
			p.gone()
		})
	}
}

func TestRSTFromHost(t *testing.T) {
	for _, tt := range []struct {
		name string
		do   func(e *env, p *peer)
		want string
	}{
		{"event", func(e *env, p *peer) { p.s.fail(syscall.ECONNRESET) }, "RA 1 ack 1"},
		{"timed out", func(e *env, p *peer) { p.s.fail(syscall.ETIMEDOUT) }, "RA 1 ack 1"},
		{"seen by write", func(e *env, p *peer) { p.s.dead = true; p.send(0, 10) }, "RA 1 ack 11"},
		{"seen by write of several", func(e *env, p *peer) { p.s.dead = true; p.add(0, 10); p.send(0, 10) }, "RA 1 ack 21"},
		{"seen by peek", func(e *env, p *peer) {
			p.s.fail(syscall.ECONNRESET)
			p.s.level()
			p.e.tr.Ready(p.s.token, 1)
			p.s.edge = false
		}, "RA 1 ack 1"},
		{"with data queued", func(e *env, p *peer) {
			p.s.txRoom = 10
			p.send(0, 100)
			p.want("A 1 ack 101")
			p.s.dead = true
			p.s.nospace = false
			e.tr.Ready(p.s.token, 4)
		}, "RA 1 ack 101"},
		{"with data in flight", func(e *env, p *peer) {
			p.s.say(10)
			e.settle()
			p.want("A 1+10 ack 1")
			p.s.fail(syscall.ECONNRESET)
		}, "RA 11 ack 1"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			e := newEnv(t)
			p := dial(e)
			tt.do(e, p)
			e.settle()
			p.want(tt.want)
			p.gone()
		})
	}
}

// What is behind a reset in the same batch meets no flow any more.
func TestWriteFailsAmidBatch(t *testing.T) {
	for _, n := range []int{2, 64, 65, 66, 128, 200} {
		e := newEnv(t)
		p := dial(e)
		p.s.fail(syscall.ECONNRESET)
		for range n {
			p.add(0, 100)
		}
		p.end()
		frames, got := p.got()
		if len(frames) == 0 || frames[0].tcp.Flags&packet.RST == 0 {
			t.Fatalf("%d segments: %q", n, got)
		}
		p.gone()
	}
}

func TestNoFlow(t *testing.T) {
	for _, tt := range []struct {
		name string
		s    packet.TCP
		want []string
	}{
		{"ACK", packet.TCP{Flags: packet.ACK, Seq: 5, Ack: 77}, []string{"R 77"}},
		{"SYN-ACK", packet.TCP{Flags: packet.SYN | packet.ACK, Seq: 5, Ack: 77, WScale: -1}, []string{"R 77"}},
		{"data without ACK", packet.TCP{Seq: guestISN, Payload: make([]byte, 10)}, []string{"RA 0 ack 10"}},
		{"FIN without ACK", packet.TCP{Flags: packet.FIN, Seq: guestISN, Payload: make([]byte, 10)}, []string{"RA 0 ack 11"}},
		{"SYN and FIN", packet.TCP{Flags: packet.SYN | packet.FIN, Seq: guestISN, WScale: -1}, []string{"RA 0 ack 2"}},
		{"RST", packet.TCP{Flags: packet.RST, Seq: 5}, nil},
		{"RST with ACK", packet.TCP{Flags: packet.RST | packet.ACK, Seq: 5, Ack: 77}, nil},
	} {
		t.Run(tt.name, func(t *testing.T) {
			for _, p := range []*peer{newPeer(newEnv(t), 1), newPeer6(newEnv(t), 1)} {
				p.raw(tt.s)
				p.want(tt.want...)
				p.gone()
			}
		})
	}
}

func TestTranslatorClose(t *testing.T) {
	e := newEnv(t)
	p := dial(e)
	q := newPeer(e, guestPort+1)
	q.start(q.syn())
	e.tr.Close()
	if !p.s.aborted {
		t.Error("not reset")
	}
	e.answer(1, ipc.Opened{}, e.newSock())
	p.gone()
}
