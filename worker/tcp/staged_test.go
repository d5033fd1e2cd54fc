// SPDX-License-Identifier: Apache-2.0

package tcp

import (
	"syscall"
	"testing"

	"aldente/ipc"
	"aldente/worker/flow"
	"aldente/worker/packet"
)

// staged opens a connection from the guest that is looked at. The socket to the
// destination is in p.s, not given yet; the other is returned.
func staged(e *env) (p *peer, look *sock) {
	e.t.Helper()
	p = newPeer(e, guestPort)
	p.start(p.syn())
	look = e.newSock()
	p.s = e.newSock()
	e.answer(len(e.opens)-1, ipc.Opened{Flags: ipc.OpenedStaged | ipc.OpenedLate}, look)
	e.settle()
	p.want("SA 0 ack 1 mss 1460 ws 7 sack true")
	p.send(0, 0)
	p.want()
	return p, look
}

// switchTo gives the connection its socket, to which so many bytes were written.
func (p *peer) switchTo(count int) {
	p.t.Helper()
	if p.s.txTotal, p.s.peekOff = count, 0; count < 0 {
		p.s.txTotal = 0
	}
	old := p.e.tr.Switch(p.s.fd, &ipc.Switch{Token: p.e.opens[0].Token, Count: uint32(count)})
	if old >= 0 {
		p.e.Close(old)
	}
	p.e.flush()
	p.e.settle()
}

// TestStaged: what the guest sends before the switch and after it reaches the host once,
// whoever has had how much of it; the host's answer comes once the switch is done.
func TestStaged(t *testing.T) {
	for _, passed := range []int{0, 1, 500, 517} {
		e := newEnv(t)
		p, look := staged(e)
		p.s.say(7) // a host that speaks first is not read before
		e.settle()
		p.want()
		p.send(packet.PSH, 517)
		p.want("A 1 ack 518")
		if look.txTotal != 517 || p.s.txTotal != 0 {
			t.Fatalf("%d bytes to who looks, %d to the host", look.txTotal, p.s.txTotal)
		}
		p.switchTo(passed)
		if look.closes != 1 || look.aborted || p.s.txTotal != 517 || p.conn().has(flagStaged) {
			t.Fatalf("after %d bytes: closed %d times, %d bytes to the host", passed, look.closes, p.s.txTotal)
		}
		p.want("A 1+7 ack 518")
		p.acks(8, 0xffff)
		p.send(0, 3000)
		p.want("A 8 ack 3518")
		if p.s.txTotal != 3517 || p.conn().qHead != ^uint32(0) {
			t.Fatalf("%d bytes to the host", p.s.txTotal)
		}
		if e.limited != 3517 { // whoever wrote them, once
			t.Fatalf("%d bytes are counted by a limit", e.limited)
		}
		p.s.fin()
		e.settle()
		p.want("FA 8 ack 3518")
		p.acks(9, 0xffff)
		p.send(packet.FIN, 0)
		e.advance(10 * second)
		p.got()
		p.gone()
	}
}

// TestStagedFull: more than is looked at, up to the last byte of the window, and what
// comes out of order: all of it waits.
func TestStagedFull(t *testing.T) {
	e := newEnv(t)
	p, look := staged(e)
	total := 65280
	p.at(1000, 1000, 0) // before its turn
	for p.sent < total {
		p.send(0, min(1460, total-p.sent))
	}
	if look.txTotal != ipc.MaxStaged {
		t.Fatalf("%d bytes to who looks", look.txTotal)
	}
	if c := p.conn(); c.rcvEdge-c.rcvNxt > roundingSlack || int(c.queued()) != total {
		t.Fatalf("%d bytes wait, window %d", c.queued(), c.rcvEdge-c.rcvNxt)
	}
	p.got()
	p.switchTo(ipc.MaxStaged)
	if p.s.txTotal != total {
		t.Fatalf("%d bytes to the host", p.s.txTotal)
	}
	if w := p.window(); w == 0 {
		t.Fatal("the window stays closed")
	}
}

// TestStagedFIN: a guest that says all and ends, before the switch.
func TestStagedFIN(t *testing.T) {
	for _, n := range []int{0, 300} {
		e := newEnv(t)
		p, look := staged(e)
		p.send(packet.FIN, n)
		p.got()
		if look.txTotal != n || !look.shut || look.shutdowns != 1 || p.conn().has(flagShutdown) {
			t.Fatalf("%d bytes to who looks, told of the end %d times", look.txTotal, look.shutdowns)
		}
		p.send(packet.FIN, 0)
		p.switchTo(n)
		if p.s.txTotal != n || !p.s.shut {
			t.Fatalf("%d bytes to the host, end %t", p.s.txTotal, p.s.shut)
		}
	}
}

// TestStagedRefused: an end instead of a socket resets the guest's side, and so does a
// count of what was never there.
func TestStagedRefused(t *testing.T) {
	for name, end := range map[string]func(p *peer){
		"refused": func(p *peer) {
			p.e.tr.Switch(-1, &ipc.Switch{Token: p.e.opens[0].Token, Errno: uint16(syscall.EACCES)})
			p.s.closes = 1
		},
		"no descriptor": func(p *peer) {
			p.e.tr.Switch(-1, &ipc.Switch{Token: p.e.opens[0].Token})
			p.s.closes = 1
		},
		"too much": func(p *peer) { p.e.tr.Switch(p.s.fd, &ipc.Switch{Token: p.e.opens[0].Token, Count: 101}) },
		"cannot be watched": func(p *peer) {
			p.e.noWatch = syscall.ENOMEM
			p.switchTo(100)
		},
	} {
		e := newEnv(t)
		p, look := staged(e)
		p.send(0, 100)
		p.got()
		end(p)
		e.flush()
		e.settle()
		if _, got := p.got(); len(got) != 1 || got[0][:2] != "RA" {
			t.Errorf("%s: %q", name, got)
		}
		if look.closes != 1 || p.s.closes != 1 {
			t.Errorf("%s: closed %d and %d times", name, look.closes, p.s.closes)
		}
		p.gone()
	}
}

// TestStagedLate: a socket that comes for a connection which is gone, or is no such one,
// is closed.
func TestStagedLate(t *testing.T) {
	e := newEnv(t)
	p, look := staged(e)
	p.send(0, 100)
	p.got()
	p.send(packet.RST, 0)
	p.switchTo(100)
	if p.s.closes != 1 || look.closes != 1 {
		t.Errorf("closed %d and %d times", p.s.closes, look.closes)
	}
	p.gone()

	e = newEnv(t)
	p = dial(e)
	first, second := p.s, e.newSock()
	if old := e.tr.Switch(second.fd, &ipc.Switch{Token: e.opens[0].Token}); old >= 0 || second.closes != 1 || first.closes != 0 {
		t.Errorf("a connection that was not looked at has another socket")
	}
}

// TestStagedLookerGone: whoever looks may be done, or dead, before the broker says what
// becomes of the connection: that is no end.
func TestStagedLookerGone(t *testing.T) {
	e := newEnv(t)
	p, look := staged(e)
	p.send(0, 100)
	look.fin()
	look.fail(syscall.ECONNRESET)
	e.settle()
	p.want("A 1 ack 101")
	p.send(0, 100)
	p.want("A 1 ack 201")
	p.switchTo(100)
	if p.s.txTotal != 200 || p.conn() == nil {
		t.Fatalf("%d bytes to the host", p.s.txTotal)
	}
}

// TestStagedRoom: who looks may be slow. What is reported of its socket when the
// connection has another one already is not about that.
func TestStagedRoom(t *testing.T) {
	e := newEnv(t)
	p, look := staged(e)
	look.txRoom = 1000
	p.send(0, 1400)
	if owner, _, _ := flow.SplitToken(look.token); owner != flow.OwnerTCPStaged || look.txTotal != 1000 {
		t.Fatalf("%d bytes to who looks, watched for %d", look.txTotal, owner)
	}
	look.free(300)
	e.settle()
	look.free(1000)
	e.settle()
	if look.txTotal != 1400 {
		t.Fatalf("%d bytes to who looks", look.txTotal)
	}
	p.switchTo(700)
	e.tr.StagedReady(look.token, flow.Writable|flow.HungUp|flow.PeerClosed|flow.Failed)
	e.settle()
	if c := p.conn(); c == nil || c.has(flagHostClosed|flagReadable) || p.s.txTotal != 1400 {
		t.Fatalf("what happened to the first socket is taken for the second's: %+v", c)
	}

	e = newEnv(t)
	p, look = staged(e)
	look.txRoom, e.noWatch = 10, syscall.ENOMEM
	p.send(0, 20)
	p.s.closes = 1
	if _, got := p.got(); len(got) != 1 || got[0][:2] != "RA" {
		t.Errorf("%q", got)
	}
	p.gone()
}
