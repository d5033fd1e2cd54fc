// SPDX-License-Identifier: Apache-2.0

package icmp

import (
	"syscall"
	"testing"

	"aldente/ipc"
	"aldente/worker/flow"
	"aldente/worker/packet"
)

// TestDescribed: what is told of a flow is what it has moved, headers of echo
// included, and what became of it.
func TestDescribed(t *testing.T) {
	for _, remote := range []packet.Addr{remote4, remote6} {
		r := newRig(t)
		if r.Places() != 0 {
			t.Error("there are flows already")
		}
		r.ping(remote, 1, "0123456789")
		want := ipc.Flow{Proto: ipc.ProtoICMPv6, State: ipc.FlowOpening, Guest: guestOf(remote), GuestPort: guestID, Remote: remote,
			Sent: 18, SentPackets: 1, Queued: 18}
		if remote.Is4() {
			want.Proto = ipc.ProtoICMP
		}
		check := func() {
			t.Helper()
			var got ipc.Flow
			if !r.Describe(0, &got) || got != want {
				t.Errorf("%+v\nwant %+v", got, want)
			}
		}
		check()
		s := r.answer(r.oneOpen())
		r.advance(2)
		r.ping(remote, 2, "0123456789")
		s.Datagrams = []flow.Datagram{{Buf: reply(remote, 1, "0123456789"), N: 18}}
		r.Ready(s.Token, flow.Readable)
		r.advance(3)
		want.State, want.Queued, want.Sent, want.SentPackets, want.Received, want.ReceivedPackets = ipc.FlowOpen, 0, 36, 2, 18, 1
		want.Age, want.Idle = 5e9, 3e9
		check()
		r.advance(1000)
		if f := (ipc.Flow{}); r.Describe(0, &f) {
			t.Errorf("what is gone is described: %+v", f)
		}
		r.ping(remote, 1, "x")
		o := r.oneOpen()
		r.Opened(o.Token, -1, &ipc.Opened{Token: o.Token, Errno: uint16(syscall.ENETUNREACH)})
		if f := (ipc.Flow{}); !r.Describe(0, &f) || f.State != ipc.FlowRefused || f.Queued != 0 {
			t.Errorf("refused: %+v", f)
		}
	}
}
