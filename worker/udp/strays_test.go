// SPDX-License-Identifier: Apache-2.0

package udp

import (
	"fmt"
	"testing"

	"github.com/google/go-cmp/cmp"

	"aldente/ipc"
	"aldente/worker/flow"
	"aldente/worker/flow/flowtest"
	"aldente/worker/packet"
)

// What strangers have sent to a socket before it was connected goes to the listener
// on its port: by their source, past the link or to the guest, whoever the socket
// answers.
func TestStrays(t *testing.T) {
	host4 := packet.AddrFrom4([4]byte{198, 51, 100, 7})
	other4 := packet.AddrFrom4([4]byte{192, 0, 2, 10})
	r := newRig(t)
	var bypassed []string
	r.Bypass = func(id uint32, _ uint8, port uint16, d []flow.Datagram) {
		bypassed = append(bypassed, fmt.Sprint(id, port, string(d[0].Buf[:d[0].N]), d[0].To == host4))
	}
	l := r.listen(ipc.Listener{ID: 3, Proto: ipc.ProtoUDP, HostPort: 5000, GuestPort: 53, Flags: ipc.ListenerMayBypass})
	l.Datagrams = []flow.Datagram{from(remote4, 2000, host4, "hello")}
	r.ListenerReady(l.Token, flow.Readable)
	r.input(r.frame(remote4, 53, 2000, []byte("answer")), 0)
	o := r.oneOpen()
	inbound := r.answer(o)
	// And one that the guest has begun, from the listener's port.
	r.input(r.frame(router4, 5000, 7, []byte("out")), 0)
	p := r.oneOpen()
	outbound := r.host.Socket()
	r.fds[p.Token] = outbound
	r.Opened(p.Token, outbound.FD, &ipc.Opened{Token: p.Token, Addr: p.Dst, LocalPort: 5000, PeerPort: 7})
	r.received()
	for token, s := range map[uint64]*flowtest.Socket{o.Token: inbound, p.Token: outbound} {
		s.Datagrams = []flow.Datagram{
			from(other4, 1, packet.Addr{}, "s1"), from(other4, 1, packet.Addr{}, "s2"), from(loop4, 9, packet.Addr{}, "lo"),
		}
		for k := range s.Datagrams {
			s.Datagrams[k].To = packet.Addr{}
			if s == outbound {
				s.Datagrams[k].To = host4
			}
		}
		bypassed = nil
		r.Ready(token, flow.Readable)
		r.Ready(token, flow.Readable)
		var got []string
		for _, d := range r.received() {
			if d.src != other4 || d.srcPort != 1 || d.dstPort != 53 {
				t.Errorf("%+v", d)
			}
			got = append(got, d.data)
		}
		if diff := cmp.Diff([]string{"s1", "s2"}, got); diff != "" {
			t.Errorf("to the guest (-want +got):\n%s", diff)
		}
		if diff := cmp.Diff([]string{"3 5000lotrue"}, bypassed); diff != "" {
			t.Errorf("past the link (-want +got):\n%s", diff)
		}
	}
	if r.Stats.Returned != 6 || r.Stats.Strangers != 0 {
		t.Errorf("stats %+v", r.Stats)
	}
	// Those to whom nobody listens are dropped.
	r.RemoveListener(3)
	inbound.Datagrams = []flow.Datagram{from(other4, 1, packet.Addr{}, "s3")}
	r.Ready(o.Token, flow.Readable)
	if r.Stats.Strangers != 1 || len(r.received()) != 0 {
		t.Errorf("stats %+v", r.Stats)
	}
	r.check()
}

// A stranger whose datagram came to a flow's socket, which has an address of its own
// (-o) and so is not told where datagrams were sent to, is the same as the one whose
// next datagram comes by the listener.
func TestStrayToSource(t *testing.T) {
	host4 := packet.AddrFrom4([4]byte{198, 51, 100, 7})
	other4 := packet.AddrFrom4([4]byte{192, 0, 2, 10})
	r := newRig(t)
	l := r.listen(ipc.Listener{ID: 3, Proto: ipc.ProtoUDP, HostPort: 5000, GuestPort: 5000})
	r.input(r.frame(router4, 5000, 7, []byte("out")), 0)
	o := r.oneOpen()
	s := r.host.Socket()
	s.Local, s.LocalPort = host4, 5000
	r.fds[o.Token] = s
	r.Opened(o.Token, s.FD, &ipc.Opened{Token: o.Token, Addr: o.Dst, LocalPort: 5000, PeerPort: 7})
	s.Datagrams = []flow.Datagram{from(other4, 1, packet.Addr{}, "stray")}
	r.Ready(o.Token, flow.Readable)
	l.Datagrams = []flow.Datagram{from(other4, 1, host4, "next")}
	r.ListenerReady(l.Token, flow.Readable)
	want := []received{
		{src: other4, dst: guest4, srcPort: 1, dstPort: 5000, data: "stray"},
		{src: other4, dst: guest4, srcPort: 1, dstPort: 5000, data: "next"},
	}
	if diff := cmp.Diff(want, r.received(), cmp.AllowUnexported(received{})); diff != "" || r.Len() != 2 {
		t.Errorf("%d flows, received (-want +got):\n%s", r.Len(), diff)
	}
	// It is answered from the address that it has spoken to.
	r.input(r.frame(other4, 5000, 1, []byte("answer")), 0)
	if a := r.oneOpen(); a.Src != host4 || a.Listener != 3 {
		t.Errorf("answered by %+v", a)
	}
	r.check()
}

// Sources without number reach the guest, cost no socket, and push out nobody but
// one another: neither what the guest has begun nor whom it has answered.
func TestForgedSources(t *testing.T) {
	r := newRig(t)
	l := r.listen(ipc.Listener{ID: 3, Proto: ipc.ProtoUDP, HostPort: 5000, GuestPort: 53})
	l.Datagrams = []flow.Datagram{from(remote4, 2000, our4, "hello")}
	r.ListenerReady(l.Token, flow.Readable)
	r.input(r.frame(remote4, 53, 2000, []byte("answer")), 0)
	r.answer(r.oneOpen())
	r.connect(router4)
	r.received()
	for n := range 10_000 {
		l.Datagrams = []flow.Datagram{from(packet.AddrFrom4([4]byte{10, 9, byte(n >> 8), byte(n)}), 7, our4, "x")}
		r.ListenerReady(l.Token, flow.Readable)
	}
	if n := len(r.received()); n != 10_000 {
		t.Errorf("%d of 10,000 reached the guest", n)
	}
	r.check()
	if n := len(r.host.TakeOpens()); n != 0 || r.host.OpenSockets() != 3 {
		t.Errorf("%d requests, %d sockets", n, r.host.OpenSockets())
	}
	// The last ones can be answered, and the table does not overflow.
	for n := 9_995; n < 10_000; n++ {
		r.input(r.frame(packet.AddrFrom4([4]byte{10, 9, byte(n >> 8), byte(n)}), 53, 7, []byte("answer")), 0)
		r.answer(r.oneOpen())
	}
	if r.Len() != 2+5+rigFlows/unansweredPart-5 {
		t.Errorf("%d flows", r.Len())
	}
	r.check()
}

// A peer whose answer overtakes our connect is the one that the guest has called.
func TestAnswerOvertakes(t *testing.T) {
	r := newRig(t)
	l := r.listen(ipc.Listener{ID: 3, Proto: ipc.ProtoUDP, HostPort: 1000, GuestPort: 1000})
	r.say(remote4, "call")
	o := r.oneOpen()
	hear := func() {
		t.Helper()
		l.Datagrams = []flow.Datagram{from(remote4, 2000, our4, "back")}
		r.ListenerReady(l.Token, flow.Readable)
		if got := r.received(); len(got) != 1 || got[0].srcPort != 2000 || r.Len() != 1 {
			t.Fatalf("%+v, %d flows", got, r.Len())
		}
	}
	hear()
	s := r.host.Socket()
	r.fds[o.Token] = s
	s.Local, s.LocalPort = our4, 1000
	r.Opened(o.Token, s.FD, &ipc.Opened{Token: o.Token, Addr: o.Dst, LocalPort: 1000, PeerPort: 2000})
	hear()
	r.check()
}
