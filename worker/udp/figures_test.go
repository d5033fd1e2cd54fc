// SPDX-License-Identifier: Apache-2.0

package udp

import (
	"syscall"
	"testing"

	"aldente/ipc"
	"aldente/worker/flow"
	"aldente/worker/packet"
)

// described is what is known of the only flow.
func (r *rig) described() (f ipc.Flow) {
	r.Helper()
	n := 0
	for i := range r.Places() {
		if r.Describe(i, &f) {
			n++
		}
	}
	if n != 1 {
		r.Fatalf("%d flows are described", n)
	}
	return f
}

// TestDescribed: what is told of a flow is what it has moved: in super-datagrams and
// others, while they wait and after, and what became of it.
func TestDescribed(t *testing.T) {
	for _, remote := range []packet.Addr{remote4, remote6} {
		r := newRig(t)
		r.say(remote, "hello")
		want := ipc.Flow{Proto: ipc.ProtoUDP, State: ipc.FlowOpening, Guest: guest4, GuestPort: 1000, Remote: remote, RemotePort: 2000,
			Sent: 5, SentPackets: 1, Queued: 5}
		if remote == remote6 {
			want.Guest = guest6
		}
		if got := r.described(); got != want {
			t.Errorf("%+v\nwant %+v", got, want)
		}
		s := r.answer(r.oneOpen())
		r.advance(2)
		r.input(r.frame(remote, 1000, 2000, make([]byte, 2500)), 1000) // three datagrams
		r.Flush()
		s.Datagrams = []flow.Datagram{{Buf: make([]byte, 700), N: 700, Segment: 200}, {Buf: make([]byte, 9), N: 9}, {Buf: make([]byte, 9), N: 9}}
		r.Ready(s.Token, flow.Readable)
		want.State, want.Queued, want.Sent, want.SentPackets, want.Received, want.ReceivedPackets = ipc.FlowOpen, 0, 2505, 4, 718, 6
		r.advance(3)
		want.Age, want.Idle = 5e9, 3e9
		if got := r.described(); got != want {
			t.Errorf("%+v\nwant %+v", got, want)
		}
		r.advance(1000)
		if f := (ipc.Flow{}); r.Describe(0, &f) {
			t.Errorf("what is gone is described: %+v", f)
		}
	}
}

// TestDescribedStates: from outside, and refused.
func TestDescribedStates(t *testing.T) {
	r := newRig(t)
	l := r.listen(ipc.Listener{ID: 3, Proto: ipc.ProtoUDP, HostPort: 5000, GuestPort: 53})
	l.Datagrams = []flow.Datagram{from(remote4, 2000, our4, "one")}
	r.ListenerReady(l.Token, flow.Readable)
	want := ipc.Flow{Proto: ipc.ProtoUDP, Direction: ipc.FlowIn, State: ipc.FlowUnanswered, Guest: guest4, GuestPort: 53, Remote: remote4,
		RemotePort: 2000, Received: 3, ReceivedPackets: 1, Listener: 3}
	if got := r.described(); got != want {
		t.Errorf("%+v\nwant %+v", got, want)
	}
	r = newRig(t)
	r.say(remote4, "hello")
	r.refuse(r.oneOpen(), syscall.ECONNREFUSED, 0)
	if got := r.described(); got.State != ipc.FlowRefused || got.Queued != 0 {
		t.Errorf("refused: %+v", got)
	}
}
