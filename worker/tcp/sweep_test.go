// SPDX-License-Identifier: Apache-2.0

package tcp

import (
	"syscall"
	"testing"

	"aldente/ipc"
	"aldente/worker/flow"
	"aldente/worker/packet"
)

// A flow that ends in the middle of a batch is not found any more, and keeps what
// it holds until the turn ends: no other flow gets its place before.
func TestEndedUntilSweep(t *testing.T) {
	e := newEnv(t)
	p := dial(e)
	k := p.key()
	i := e.tr.flows.Find(&k)
	c, token := e.tr.flows.At(i), p.s.token
	p.add(0, 100)
	p.input(packet.TCP{Flags: packet.RST, Seq: p.seq})
	if p.conn() != nil || c.state != stateEnded || p.s.closes != 0 || p.s.txTotal != 0 {
		t.Fatalf("state %d, closed %d times, %d bytes to the host", c.state, p.s.closes, p.s.txTotal)
	}
	// Nothing wakes it up.
	e.tr.Ready(token, flow.Readable|flow.Writable|flow.Failed)
	e.tr.Timer(i)
	e.tr.abort(i, c)
	e.tr.end(i, c)
	e.tr.hostReset(i, c)
	e.tr.detach(i, c)
	e.tr.finishBatch(i, c)
	e.tr.push(i, c)
	e.tr.drain(i, c)
	e.tr.expire(i, c)
	e.tr.noRoomAwaited(i, c)
	e.tr.sendAck(i, c)
	p.want()
	// Its ports are free, its place is not.
	p.input(packet.TCP{Flags: packet.ACK, Seq: p.seq, Ack: p.ack, Payload: stream(0, 10)})
	p.want("R 1")
	syn := p.syn()
	syn.Seq = p.seq + 1000
	p.input(syn)
	if j := e.tr.flows.Find(&k); j == i || len(e.opens) != 2 || e.tr.Len() != 2 {
		t.Fatalf("flow %d in place of %d, %d requests", j, i, len(e.opens))
	}
	p.end()
	if !p.s.aborted || p.s.closes != 1 || c.state != 0 || e.tr.Len() != 1 || e.tr.Stats.Reset != 1 {
		t.Errorf("aborted %t, closed %d times, state %d: %+v", p.s.aborted, p.s.closes, c.state, e.tr.Stats)
	}
	e.tr.Close()
	e.empty()
}

// What the host's socket fails with in the middle of a batch is one reset,
// whatever else is in the batch.
func TestHostErrorInBatch(t *testing.T) {
	for name, rest := range map[string]func(p *peer){
		"data": func(p *peer) { p.add(0, 100) },
		"FIN":  func(p *peer) { p.add(packet.FIN, 100) },
		"early": func(p *peer) {
			p.input(packet.TCP{Flags: packet.ACK, Seq: p.seq + 100, Ack: p.ack, Payload: stream(p.sent+100, 10)})
		},
	} {
		t.Run(name, func(t *testing.T) {
			e := newEnv(t)
			p := dial(e)
			p.s.say(100)
			for range maxBatch {
				p.add(0, 10)
			}
			p.s.fail(syscall.EPIPE)
			rest(p)
			p.add(0, 10)
			p.end()
			_, got := p.got()
			resets := 0
			for n, s := range got {
				if s[0] == 'R' {
					resets++
				} else if resets > 0 {
					t.Errorf("segment %d behind the reset: %q", n, s)
				}
			}
			if resets == 0 {
				t.Errorf("segments %q", got)
			}
			p.gone()
		})
	}
}

// A connection between the ports of one that is done with the end of what is
// before it in the same batch.
func TestPortAgainInBatch(t *testing.T) {
	e := newEnv(t)
	p := dial(e)
	p.s.fin()
	e.settle()
	p.acks(2, 0xffff)
	p.got()
	p.add(packet.FIN, 100)
	syn := p.syn()
	syn.Seq = p.seq + 1000
	p.input(syn)
	p.end()
	if len(e.opens) != 2 || p.s.txTotal != 100 || !p.s.shut || p.s.closes != 1 || p.s.aborted {
		t.Fatalf("%d requests, %d bytes to the host, FIN %t, closed %d times", len(e.opens), p.s.txTotal, p.s.shut, p.s.closes)
	}
	again := e.newSock()
	e.answer(1, ipc.Opened{}, again)
	e.settle()
	f := e.take()
	last := &f[len(f)-1].tcp
	if last.Flags != packet.SYN|packet.ACK || last.Ack != syn.Seq+1 {
		t.Fatalf("to the guest: %+v", f)
	}
	p.raw(packet.TCP{Flags: packet.ACK, Seq: syn.Seq + 1, Ack: last.Seq + 1, Window: 0xffff, Payload: stream(0, 50)})
	if again.txTotal != 50 || e.tr.Len() != 1 {
		t.Errorf("%d bytes to the host, %d flows", again.txTotal, e.tr.Len())
	}
	e.take()
	e.tr.Close()
	e.empty()
}

// A full table has room for whoever asks behind the end of another in one batch;
// those that have ended go before those that wait.
func TestSweepMakesRoom(t *testing.T) {
	e := newEnv(t, withFlows(2))
	p, q := dial(e), newPeer(e, guestPort+1)
	q.start(q.syn())
	p.input(packet.TCP{Flags: packet.RST, Seq: p.seq})
	r := newPeer(e, guestPort+2)
	r.input(r.syn())
	p.end()
	if len(e.opens) != 3 || e.tr.Stats.Evicted != 0 || q.conn() == nil || r.conn() == nil {
		t.Errorf("%d requests, %+v", len(e.opens), e.tr.Stats)
	}
	e.tr.Close()
	e.empty()
}
