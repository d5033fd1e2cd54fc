// SPDX-License-Identifier: Apache-2.0

package tcp

import (
	"testing"
	"time"
	"unsafe"

	"aldente/ipc"
	"aldente/worker/flow"
	"aldente/worker/packet"
)

// described is what is known of the only flow.
func (e *env) described() (f ipc.Flow) {
	e.t.Helper()
	n := 0
	for i := range e.tr.Places() {
		if e.tr.Describe(i, &f) {
			n++
		}
	}
	if n != 1 {
		e.t.Fatalf("%d flows are described", n)
	}
	return f
}

// TestDescribed: what is told of a connection is what it has done, in both families
// and directions.
func TestDescribed(t *testing.T) {
	for name, open := range map[string]func(*env) *peer{
		"out": dial, "in": accept,
		"out, IPv6": func(e *env) *peer { p := newPeer6(e, guestPort); return p.dial(p.syn()) },
	} {
		t.Run(name, func(t *testing.T) {
			e := newEnv(t)
			began := e.now
			p := open(e)
			p.s.path = flow.Path{RTT: 30 * time.Millisecond, Retransmits: 3}
			handshake := e.described()
			e.advance(7 * ms)
			p.s.say(1000)
			e.settle()
			p.acks(1001, 0xffff)
			p.send(0, 10)
			p.s.txRoom = 60
			p.send(0, 100)
			got := e.described()
			e.take()
			want := ipc.Flow{
				Proto: ipc.ProtoTCP, Direction: ipc.FlowOut, State: ipc.FlowEstablished, Guest: p.guest, GuestPort: p.port,
				Remote: p.remote, RemotePort: remotePort, Age: uint64(e.now - began), Sent: 70, Received: 1000, Queued: 40,
				SentPackets: handshake.SentPackets + 3, ReceivedPackets: handshake.ReceivedPackets + 3, RTT: 30_000, Retransmits: 3,
			}
			if name == "in" {
				want.Direction, want.Listener = ipc.FlowIn, 1
			}
			want.Age = got.Age // checked below: a handshake takes none
			if got != want || got.Age < uint64(7*ms) || got.Age > uint64(e.now-began) {
				t.Errorf("%+v\nwant %+v", got, want)
			}
			e.advance(5 * second)
			if late := e.described(); late.Idle != uint64(5*second) || late.Age != got.Age+uint64(5*second) {
				t.Errorf("five seconds later idle for %d ns, of age %d", late.Idle, late.Age)
			}
			// What is sent again is no more than before, but counts.
			p.s.say(500)
			e.settle()
			e.advance(3 * second)
			if again := e.described(); again.Received != 1500 || again.Retransmits <= 3 {
				t.Errorf("%d bytes to the guest, %d segments again", again.Received, again.Retransmits)
			}
		})
	}
}

// TestDescribedStates: RFC 9293's names, whoever closes first, from the first segment
// to the last.
func TestDescribedStates(t *testing.T) {
	state := func(e *env, want ipc.FlowState) {
		t.Helper()
		if got := e.described().State; got != want {
			t.Errorf("state %d, want %d", got, want)
		}
	}
	e := newEnv(t)
	p := newPeer(e, guestPort)
	p.input(p.syn())
	state(e, ipc.FlowSynSent)
	e = newEnv(t)
	p = dial(e)
	state(e, ipc.FlowEstablished)
	p.send(packet.FIN, 0) // the guest first
	state(e, ipc.FlowCloseWait)
	p.s.fin()
	e.settle()
	state(e, ipc.FlowLastAck)

	e = newEnv(t)
	p = dial(e)
	p.s.fin() // the host first
	e.settle()
	state(e, ipc.FlowFinWait1)
	p.ack++
	p.acks(2, 0xffff)
	state(e, ipc.FlowFinWait2)
	p.send(packet.FIN, 0)
	state(e, ipc.FlowTimeWait)
	e.advance(3 * second)
	if f := (ipc.Flow{}); e.tr.Describe(0, &f) {
		t.Errorf("what is gone is described: %+v", f)
	}

	e = newEnv(t)
	p = dial(e)
	p.s.fin() // both at once
	e.settle()
	p.raw(packet.TCP{Flags: packet.FIN | packet.ACK, Seq: p.seq, Ack: p.ack, Window: 0xffff})
	state(e, ipc.FlowClosing)
}

// TestConnSize: what is counted does not cost a connection a cache line more.
func TestConnSize(t *testing.T) {
	if n := unsafe.Sizeof(conn{}); n > 256 {
		t.Errorf("a connection takes %d bytes", n)
	}
}
