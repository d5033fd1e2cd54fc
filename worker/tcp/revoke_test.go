// SPDX-License-Identifier: Apache-2.0

package tcp

import (
	"testing"

	"aldente/worker/packet"
)

// TestRevokeFlow: a connection that is not allowed any more is reset both ways, whatever
// it was in the middle of, and no other is.
func TestRevokeFlow(t *testing.T) {
	for name, tt := range map[string]struct {
		do   func(e *env, p *peer)
		want string
	}{
		"idle":           {func(*env, *peer) {}, "RA 1 ack 1"},
		"data in flight": {func(e *env, p *peer) { p.s.say(10); e.settle(); p.want("A 1+10 ack 1") }, "RA 11 ack 1"},
		"data queued":    {func(e *env, p *peer) { p.s.txRoom = 10; p.send(0, 100); p.want("A 1 ack 101") }, "RA 1 ack 101"},
		"half closed":    {func(e *env, p *peer) { p.send(packet.FIN, 0); p.want("A 1 ack 2") }, "RA 1 ack 2"},
	} {
		t.Run(name, func(t *testing.T) {
			e := newEnv(t)
			p := dial(e)
			tt.do(e, p)
			token := e.opens[0].Token
			e.tr.RevokeFlow(token + 1)     // another place
			e.tr.RevokeFlow(token ^ 1<<32) // who had the place before
			e.settle()
			p.want()
			if p.conn() == nil || e.tr.Stats.Revoked != 0 {
				t.Fatal("another's end is taken for its own")
			}
			e.tr.RevokeFlow(token)
			e.tr.RevokeFlow(token)
			e.settle()
			p.want(tt.want)
			if !p.s.aborted || e.tr.Stats.Revoked != 1 {
				t.Errorf("aborted %t, %d revoked", p.s.aborted, e.tr.Stats.Revoked)
			}
			p.gone()
		})
	}
}

// TestRevokeFlowEarly: one without a socket is left to the answer that it waits for.
func TestRevokeFlowEarly(t *testing.T) {
	e := newEnv(t)
	p := newPeer(e, guestPort)
	p.raw(p.syn())
	e.tr.RevokeFlow(e.opens[0].Token)
	e.settle()
	p.want()
	if p.conn() == nil || e.tr.Stats.Revoked != 0 {
		t.Error("ended before there was a socket")
	}
}

// TestGone: connections whose sockets have lost their address are reset, and no others.
func TestGone(t *testing.T) {
	e := newEnv(t)
	p := dial(e)
	e.tr.Gone(func(int32) bool { return false })
	e.settle()
	p.want()
	if p.conn() == nil {
		t.Fatal("ended, and its address is there")
	}
	fd := p.conn().fd
	e.tr.Gone(func(one int32) bool { return one == fd })
	e.settle()
	p.want("RA 1 ack 1")
	if !p.s.aborted || e.tr.Stats.Revoked != 0 {
		t.Errorf("aborted %t, %d revoked", p.s.aborted, e.tr.Stats.Revoked)
	}
	p.gone()
	q := newPeer(e, guestPort+1)
	q.raw(q.syn())
	e.tr.Gone(func(int32) bool { return true })
	if q.conn() == nil {
		t.Error("ended before there was a socket")
	}
}
