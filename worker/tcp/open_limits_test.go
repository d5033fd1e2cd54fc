// SPDX-License-Identifier: Apache-2.0

package tcp

import (
	"syscall"
	"testing"

	"aldente/ipc"
	"aldente/worker/flow"
	"aldente/worker/packet"
)

func TestDialTableFull(t *testing.T) {
	e := newEnv(t, withFlows(4))
	for port := range uint16(6) {
		newPeer(e, 1000+port).raw(newPeer(e, 1).syn())
	}
	// The oldest that nobody has answered make room, and the guest hears of it.
	frames := e.take()
	if len(e.opens) != 6 || e.tr.Len() != 4 || e.tr.Stats.Evicted != 2 || len(frames) != 2 {
		t.Fatalf("%d requests, %d connections, %d evicted, %d frames", len(e.opens), e.tr.Len(), e.tr.Stats.Evicted, len(frames))
	}
	for k, f := range frames {
		if f.tcp.Flags&packet.RST == 0 || f.tcp.DstPort != uint16(1000+k) {
			t.Errorf("%+v", f.tcp)
		}
	}
	e.tr.Close()
	e.empty()
}

// TestStormOfSYN: a guest that asks for ever more connections which nobody answers
// can still open one that is answered, and keeps those that it has.
func TestStormOfSYN(t *testing.T) {
	e := newEnv(t, withFlows(8))
	first := dial(e)
	for port := range uint16(500) {
		newPeer(e, 1000+port).raw(newPeer(e, 1).syn())
		if s := e.newSock(); port%2 == 0 {
			s.connecting = true
			e.answer(len(e.opens)-1, ipc.Opened{Flags: ipc.OpenedInProgress}, s)
		}
	}
	e.settle()
	e.take()
	p := newPeer(e, guestPort+1)
	p.start(p.syn())
	p.s = e.newSock()
	e.answer(len(e.opens)-1, ipc.Opened{}, p.s)
	e.settle()
	if _, got := p.got(); len(got) == 0 || got[len(got)-1][:2] != "SA" {
		t.Errorf("not opened: %q", got)
	}
	if first.s.closes != 0 || e.tr.Stats.Evicted < 490 {
		t.Errorf("the first connection closed %d times, %d others evicted", first.s.closes, e.tr.Stats.Evicted)
	}
	e.tr.Close()
	e.empty()
}

// TestDialWaits: without a descriptor for it, a connection waits, as those to the
// guest do: the guest asks again.
func TestDialWaits(t *testing.T) {
	e := newEnv(t)
	p := newPeer(e, guestPort)
	p.start(p.syn())
	e.answer(0, ipc.Opened{Errno: uint16(syscall.EMFILE)}, nil)
	e.settle()
	if n := len(e.take()); n != 0 || e.tr.Len() != 0 {
		t.Errorf("%d frames, %d connections", n, e.tr.Len())
	}
	e.empty()
}

// TestDescriptorShares: neither direction takes all of the lane's descriptors.
func TestDescriptorShares(t *testing.T) {
	e := newEnv(t, withFlows(256), withChunks(4096))
	e.g.Shares = flow.NewShares(64)
	l := e.listen(1, 80)
	for k := range 64 {
		l.arrive(e.newSock(), remote4, uint16(1000+k))
	}
	e.settle()
	inbound := e.tr.Len()
	if len(l.backlog) == 0 || e.tr.Pending() {
		t.Fatalf("%d connections taken, %d wait, pending %t", inbound, len(l.backlog), e.tr.Pending())
	}
	opened := 0
	for port := range uint16(64) {
		p := newPeer(e, 2000+port)
		p.start(p.syn())
		if len(e.opens) == opened {
			break
		}
		opened++
		p.s = e.newSock()
		e.answer(len(e.opens)-1, ipc.Opened{}, p.s)
		p.raw(packet.TCP{Flags: packet.ACK, Seq: p.seq, Ack: e.issOf(2000+port, remotePort) + 1})
		e.settle()
	}
	if opened < 64/4 || inbound < 64/8 || opened+inbound > 64 {
		t.Errorf("%d inbound, then %d outbound", inbound, opened)
	}
	e.tr.Close()
	if e.g.Shares.Used(flow.ShareIn) != 0 || e.g.Shares.Used(flow.ShareOut) != 0 {
		t.Error("shares left behind")
	}
}

func TestDialPoolFull(t *testing.T) {
	e := newEnv(t, withChunks(16), withFlows(32))
	for port := range uint16(32) {
		newPeer(e, 1000+port).raw(newPeer(e, 1).syn())
	}
	if e.tr.reserved > 16 || e.tr.Len() < 4 {
		t.Errorf("%d chunks set aside for %d flows", e.tr.reserved, e.tr.Len())
	}
	e.tr.Close()
	e.empty()
}

// A late event of a dead flow's socket means nothing to its successor.
func TestReadyLate(t *testing.T) {
	e := newEnv(t)
	p := dial(e)
	token := p.s.token
	p.raw(packet.TCP{Flags: packet.RST, Seq: p.seq})
	q := newPeer(e, guestPort+1)
	q.start(q.syn())
	q.s = e.newSock()
	q.s.connecting = true
	e.answer(1, ipc.Opened{Flags: ipc.OpenedInProgress}, q.s)
	e.settle()
	e.tr.Ready(token, flow.Writable|flow.Readable)
	e.tr.Ready(flow.Token(flow.OwnerTCP, 1, 1<<20), flow.Writable)
	q.want()
	if q.conn().state != stateConnecting {
		t.Error("taken for its own")
	}
}

func TestOpenedTwice(t *testing.T) {
	e := newEnv(t)
	p := dial(e)
	s := e.newSock()
	e.tr.Opened(e.opens[0].Token, s.fd, &ipc.Opened{})
	e.tr.Opened(flow.Token(flow.OwnerTCP, 99, 7), -1, &ipc.Opened{})
	e.tr.Opened(flow.Token(flow.OwnerTCP, 1, 1<<31), -1, &ipc.Opened{})
	if s.closes != 1 || p.s.closes != 0 {
		t.Error("descriptor not closed, or the wrong one")
	}
}
