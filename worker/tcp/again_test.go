// SPDX-License-Identifier: Apache-2.0

package tcp

import (
	"testing"

	"aldente/ipc"
	"aldente/worker/packet"
)

// doneUntaken has both sides end their streams, and the host take nothing of the
// last 3,000 bytes.
func (p *peer) doneUntaken() {
	p.s.txRoom = 0
	p.send(packet.FIN, 3000)
	p.s.fin()
	p.e.settle()
	p.acks(2, 0xffff)
	p.got()
	if !p.conn().guestDone() || p.s.txTotal != 0 {
		p.t.Fatalf("%d bytes to the host: %+v", p.s.txTotal, *p.conn())
	}
}

// takesAll has the host take what the guest said before it was done.
func (p *peer) takesAll() {
	p.t.Helper()
	p.s.free(1 << 20)
	p.e.settle()
	if p.s.txTotal != 3000 || !p.s.shut || p.s.closes != 1 || p.s.aborted {
		p.t.Errorf("%d bytes to the host, FIN %t, aborted %t", p.s.txTotal, p.s.shut, p.s.aborted)
	}
}

// A guest that is done may use its port again, while the host has still to take
// what it said.
func TestGuestPortAgain(t *testing.T) {
	e := newEnv(t)
	p := dial(e)
	p.doneUntaken()
	again := newPeer(e, guestPort)
	syn := again.syn()
	syn.Seq = p.seq + 100000
	again.raw(syn)
	if len(e.opens) != 2 {
		t.Fatalf("%d requests, to the guest: %+v", len(e.opens), e.take())
	}
	s := e.newSock()
	e.answer(1, ipc.Opened{}, s)
	e.settle()
	if f := e.take(); len(f) != 1 || f[0].tcp.Flags != packet.SYN|packet.ACK || f[0].tcp.Ack != syn.Seq+1 {
		t.Fatalf("to the guest: %+v", f)
	}
	e.advance(detachedIdle - second) // nobody asks the guest about the old one
	for _, f := range e.take() {
		if f.tcp.DstPort != guestPort || f.tcp.SrcPort != remotePort {
			t.Errorf("to the guest: %+v", f)
		}
	}
	p.takesAll()
	e.tr.Close()
	e.empty()
}

// A peer that takes nothing keeps what a guest is done with for detachedIdle, and
// from each byte that it takes for as long again.
func TestDetachedEnds(t *testing.T) {
	e := newEnv(t)
	p := dial(e)
	p.doneUntaken()
	p.raw(packet.TCP{Flags: packet.RST, Seq: p.seq})
	for range 3 {
		e.advance(detachedIdle - second)
		p.s.free(100)
		e.settle()
	}
	if p.s.txTotal != 300 || p.s.closes != 0 {
		t.Fatalf("%d bytes to the host, closed %d times, while it takes some", p.s.txTotal, p.s.closes)
	}
	e.advance(detachedIdle + 60*second) // the wheel may be an eighth late
	if !p.s.aborted {
		t.Error("kept for a host that takes nothing")
	}
	e.take()
	e.empty()
}

// Port zero is no way to a flow that is over for the guest, whose key has it.
func TestDetachedNotReached(t *testing.T) {
	e := newEnv(t)
	p := dial(e)
	p.doneUntaken()
	p.raw(packet.TCP{Flags: packet.RST, Seq: p.seq})
	e.advance(detachedIdle - 10*second)
	for i := range uint32(4) {
		var q packet.Packet
		q.IPVersion, q.Proto = 6, packet.ProtoTCP
		q.Src = packet.Addr{0: byte(i >> 24), 1: byte(i >> 16), 2: byte(i >> 8), 3: byte(i)}
		e.tr.Input(&q, &packet.TCP{Flags: packet.ACK, WScale: -1})
	}
	e.tr.Flush()
	e.take()
	e.advance(70 * second)
	if !p.s.aborted {
		t.Error("a frame without ports has kept it")
	}
	e.take()
	e.empty()
}

// An old SYN does not end the connection; and who is done may reset it, or the
// host may: what was said is still delivered, and the guest hears nothing of it.
func TestGuestDoneResets(t *testing.T) {
	e := newEnv(t)
	p := dial(e)
	p.doneUntaken()
	p.raw(packet.TCP{Flags: packet.SYN, Seq: p.seq - 10, Window: 1000, MSS: 1460, WScale: -1})
	if f := e.take(); len(f) != 1 || f[0].tcp.Flags != packet.ACK || len(e.opens) != 1 {
		t.Fatalf("to the guest: %+v", f)
	}
	p.raw(packet.TCP{Flags: packet.RST, Seq: p.seq})
	p.want()
	p.takesAll()
	e.empty()

	e = newEnv(t)
	p = dial(e)
	p.doneUntaken()
	p.raw(packet.TCP{Flags: packet.RST, Seq: p.seq})
	p.s.fail(104)
	e.settle()
	p.want()
	e.empty()
}

// A guest that gave up without a word asks anew from the same port: the same
// connection to the host serves that attempt.
func TestGuestAsksAgain(t *testing.T) {
	for _, late := range []bool{false, true} {
		e := newEnv(t)
		p := newPeer(e, guestPort)
		p.start(p.syn())
		p.s = e.newSock()
		p.s.connecting = true
		e.answer(0, ipc.Opened{Flags: ipc.OpenedInProgress}, p.s)
		if late {
			p.s.connected()
			e.settle()
			p.want("SA 0 ack 1 mss 1460 ws 7 sack true")
		}
		syn := p.syn()
		syn.Seq += 5000
		syn.SACKPermitted, syn.WScale, syn.MSS = false, -1, 1000
		p.raw(syn)
		if !late {
			p.want()
			p.s.connected()
			e.settle()
		}
		p.want("SA 0 ack 5001 mss 1460 ws -1 sack false")
		p.seq = syn.Seq + 1
		p.send(0, 10)
		if c := p.conn(); len(e.opens) != 1 || c == nil || c.state != stateOpen || p.s.txTotal != 10 || c.mss != 1000 || c.has(flagSACK) {
			t.Errorf("late %t: %d requests, %d bytes: %+v", late, len(e.opens), p.s.txTotal, c)
		}
		e.tr.Close()
		e.empty()
	}
}
