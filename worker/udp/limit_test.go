// SPDX-License-Identifier: Apache-2.0

package udp

import (
	"testing"

	"aldente/ipc"
	"aldente/worker/flow"
)

// TestLimitOfFlows: of as many flows as the instance may have, the one that was not
// used for longest gives way.
func TestLimitOfFlows(t *testing.T) {
	r := newRig(t)
	r.guest.MaxUDP = 3
	r.Translator = New(r.host, &r.guest, r.wheel, timerBase, r.pool, rigFlows)
	for port := uint16(1000); port < 1005; port++ {
		r.input(r.frame(remote4, port, 2000, []byte("x")), 0)
		if s := r.answer(r.oneOpen()); len(s.Sent()) != 1 {
			t.Errorf("port %d: %d sent", port, len(s.Sent()))
		}
	}
	if r.Len() != 3 || r.Stats.Evicted != 2 || r.host.OpenSockets() != 3 {
		t.Errorf("%d flows, %d evicted, %d sockets", r.Len(), r.Stats.Evicted, r.host.OpenSockets())
	}
}

// TestListenerFails: an error of a listener is taken from it, and it goes on. A
// late event of one that is gone is nobody's.
func TestListenerFails(t *testing.T) {
	r := newRig(t)
	l := r.listen(ipc.Listener{ID: 3, Proto: ipc.ProtoUDP, HostPort: 5000, GuestPort: 53})
	l.Pending = 111
	l.Datagrams = []flow.Datagram{from(remote4, 2000, our4, "x")}
	r.ListenerReady(l.Token, flow.Failed|flow.Readable)
	if got := r.received(); len(got) != 1 || l.Pending != 0 {
		t.Errorf("%+v, pending %v", got, l.Pending)
	}
	r.ListenerReady(flow.Token(flow.OwnerUDPListener, 3, 99), flow.Readable)
}

// TestNoAnswerPossible: a guest whose answer finds no room at the broker is heard
// again as soon as it says the next.
func TestNoAnswerPossible(t *testing.T) {
	r := newRig(t)
	l := r.listen(ipc.Listener{ID: 3, Proto: ipc.ProtoUDP, HostPort: 5000, GuestPort: 53})
	l.Datagrams = []flow.Datagram{from(remote4, 2000, our4, "question")}
	r.ListenerReady(l.Token, flow.Readable)
	r.host.OpenRoom = 0
	answer := r.frame(remote4, 53, 2000, []byte("answer"))
	r.input(answer, 0)
	if r.Stats.NoRoom != 1 || len(r.host.TakeOpens()) != 0 {
		t.Errorf("stats %+v", r.Stats)
	}
	r.host.OpenRoom = 1
	r.input(answer, 0)
	if got := r.answer(r.oneOpen()).Sent(); len(got) != 1 || string(got[0]) != "answer" {
		t.Errorf("sent %q", got)
	}
}

// TestReturn: what is given back to a listener reaches the guest; a listener that is
// not there has none.
func TestReturn(t *testing.T) {
	r := newRig(t)
	r.listen(ipc.Listener{ID: 3, Proto: ipc.ProtoUDP, HostPort: 5000, GuestPort: 53})
	r.Return(3, []flow.Datagram{from(remote4, 2001, our4, "y")})
	r.Return(4, []flow.Datagram{from(remote4, 2002, our4, "z")})
	r.Return(0, []flow.Datagram{from(remote4, 2003, our4, "z")})
	if got := r.received(); len(got) != 1 || got[0].dstPort != 53 || got[0].data != "y" {
		t.Errorf("%+v", got)
	}
	if r.Stats.Returned != 1 || r.Stats.Strangers != 2 {
		t.Errorf("stats %+v", r.Stats)
	}
}
