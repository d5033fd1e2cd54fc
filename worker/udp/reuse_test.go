// SPDX-License-Identifier: Apache-2.0

package udp

import (
	"testing"

	"aldente/ipc"
	"aldente/worker/flow"
	"aldente/worker/flow/flowtest"
	"aldente/worker/packet"
)

// pairAt is where sockets to aldente-names are connected to.
var pairAt = packet.AddrFrom4([4]byte{127, 53, 53, 53})

// question is a datagram to port 53 from a port of the guest's.
func (r *rig) question(remote packet.Addr, from uint16, payload string) {
	r.Helper()
	r.input(r.frame(remote, from, portDNS, []byte(payload)), 0)
	r.Flush()
}

// named answers a request with a socket to aldente-names.
func (r *rig) named(o ipc.Open) *flowtest.Socket {
	s := r.host.Socket()
	r.fds[o.Token] = s
	r.Opened(o.Token, s.FD, &ipc.Opened{Token: o.Token, Addr: pairAt, PeerPort: 4000 + uint16(s.FD), Flags: ipc.OpenedNames})
	return s
}

// reply has a socket receive from its peer.
func (r *rig) reply(s *flowtest.Socket, payload string) {
	s.Datagrams = append(s.Datagrams, flow.Datagram{Buf: []byte(payload), N: len(payload), From: pairAt, FromPort: 4000 + uint16(s.FD)})
	r.Ready(s.Token, flow.Readable)
}

// resting is a rig with one flow to aldente-names that has had its answer.
func resting(t *testing.T, keep bool) (*rig, *flowtest.Socket) {
	t.Helper()
	r := newRig(t)
	r.KeepSockets = keep
	r.question(remote4, 1000, "first?")
	s := r.named(r.oneOpen())
	r.reply(s, "first!")
	r.received()
	return r, s
}

// TestSocketReused: a question from another port takes the socket of a flow that rests, at
// once and without a word of the broker's, and its answer reaches that port. Who is robbed is
// a new flow.
func TestSocketReused(t *testing.T) {
	r, s := resting(t, false)
	r.advance(0.2)
	r.question(remote4, 1001, "second?")
	if n := len(r.host.TakeOpens()); n != 0 || s.Closes != 0 || r.Len() != 1 {
		t.Fatalf("%d requests, closed %d times, %d flows", n, s.Closes, r.Len())
	}
	if sent := s.Sent(); len(sent) != 2 || string(sent[1]) != "second?" {
		t.Fatalf("%q", sent)
	}
	r.reply(s, "second!")
	if got := r.received(); len(got) != 1 || got[0].dstPort != 1001 || got[0].srcPort != portDNS || got[0].src != remote4 || got[0].data != "second!" {
		t.Errorf("%+v", got)
	}
	r.check()
	r.question(remote4, 1000, "again?")
	r.named(r.oneOpen())
	if r.Len() != 2 || s.Closes != 0 {
		t.Errorf("%d flows, closed %d times", r.Len(), s.Closes)
	}
	r.check()
	r.advance(200)
	if r.Len() != 0 || r.host.OpenSockets() != 0 {
		t.Errorf("%d flows and %d sockets left", r.Len(), r.host.OpenSockets())
	}
}

// TestSocketNotReused: not of a flow that may have something to come, not for what leads
// elsewhere, and not where flows are told of by their sockets.
func TestSocketNotReused(t *testing.T) {
	for name, tt := range map[string]struct {
		before func(r *rig, s *flowtest.Socket)
		ask    func(r *rig)
		keep   bool
		after  float64
	}{
		"at once":    {after: 0.01},
		"unanswered": {before: func(r *rig, s *flowtest.Socket) { r.question(remote4, 1000, "more?") }},
		"one of two unanswered": {before: func(r *rig, s *flowtest.Socket) {
			r.question(remote4, 1000, "more?")
			r.question(remote4, 1000, "and more?")
			r.reply(s, "more!")
			r.received()
		}},
		"another resolver": {ask: func(r *rig) { r.question(our4, 1001, "second?") }},
		"another port":     {ask: func(r *rig) { r.input(r.frame(remote4, 1001, 54, []byte("x")), 0) }},
		"another family":   {ask: func(r *rig) { r.question(remote6, 1001, "second?") }},
		"revoked":          {before: func(r *rig, s *flowtest.Socket) { r.Revoke(pairAt, 4000+uint16(s.FD)) }},
		"names is gone":    {before: func(r *rig, s *flowtest.Socket) { r.Revoke(pairAt, 0) }},
		"no watching":      {before: func(r *rig, s *flowtest.Socket) { r.host.WatchErr = 12 }},
		"told of":          {keep: true},
		"leads elsewhere": {before: func(r *rig, s *flowtest.Socket) {
			r.displace()
		}},
	} {
		r, s := resting(t, tt.keep)
		if tt.before != nil {
			tt.before(r, s)
		}
		if tt.after == 0 {
			tt.after = 0.2
		}
		r.advance(tt.after)
		if tt.ask == nil {
			tt.ask = func(r *rig) { r.question(remote4, 1001, "second?") }
		}
		tt.ask(r)
		if n := len(r.host.TakeOpens()); n != 1 {
			t.Errorf("%s: %d requests", name, n)
		}
		r.host.WatchErr = 0
		r.check()
	}
}

// TestSocketReusedInOrder: the socket that has rested for longest is taken, however many
// wait for answers.
func TestSocketReusedInOrder(t *testing.T) {
	r := newRig(t)
	var all []*flowtest.Socket
	for i := range 8 {
		r.question(remote4, 1000+uint16(i), "?")
		all = append(all, r.named(r.oneOpen()))
	}
	for _, i := range []int{5, 3, 6} {
		r.reply(all[i], "!")
		r.advance(0.01)
	}
	r.question(remote4, 1003, "more?")
	r.advance(0.3)
	for k, want := range []int{5, 6, -1} {
		r.question(remote4, 2000+uint16(k), "new?")
		if n := len(r.host.TakeOpens()); n != map[bool]int{true: 1}[want < 0] {
			t.Errorf("%d: %d requests", k, n)
		}
		if want >= 0 {
			if sent := all[want].Sent(); string(sent[len(sent)-1]) != "new?" {
				t.Errorf("%d: %q", k, sent)
			}
		}
		r.check()
	}
}
