// SPDX-License-Identifier: Apache-2.0

package udp

import (
	"fmt"
	"syscall"
	"testing"

	"github.com/google/go-cmp/cmp"

	"aldente/ipc"
	"aldente/worker/flow"
	"aldente/worker/flow/flowtest"
	"aldente/worker/packet"
)

func (r *rig) listen(l ipc.Listener) *flowtest.Socket {
	s := r.host.Socket()
	r.AddListener(&l, s.FD)
	return s
}

func from(peer packet.Addr, port uint16, to packet.Addr, data string) flow.Datagram {
	return flow.Datagram{Buf: []byte(data), N: len(data), From: peer, FromPort: port, To: to}
}

// A datagram from outside reaches the guest at once; the guest's answers wait
// for the socket that is asked for, and leave by it.
func TestInbound(t *testing.T) {
	host4 := packet.AddrFrom4([4]byte{198, 51, 100, 7})
	host6 := packet.Addr{0: 0x20, 1: 1, 2: 0xd, 3: 0xb8, 4: 5, 15: 7}
	other4 := packet.AddrFrom4([4]byte{10, 0, 0, 77})
	tests := []struct {
		name     string
		target   packet.Addr
		peer, to packet.Addr
		seen     packet.Addr // the peer, as the guest sees it
		dst      packet.Addr
		src      packet.Addr // in the request
	}{
		{"IPv4", packet.Addr{}, remote4, host4, remote4, guest4, host4},
		{"IPv6", packet.Addr{}, remote6, host6, remote6, guest6, host6},
		{"loopback", packet.Addr{}, loop4, loop4, our4, guest4, loop4},
		{"target", other4, remote4, host4, remote4, other4, host4},
		{"no local address", packet.Addr{}, remote4, packet.Addr{}, remote4, guest4, packet.Addr{}},
		{"to everybody", packet.Addr{}, remote4, packet.AddrFrom4([4]byte{255, 255, 255, 255}), remote4, guest4, packet.Addr{}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			r := newRig(t)
			l := r.listen(ipc.Listener{ID: 3, Proto: ipc.ProtoUDP, HostPort: 5000, GuestPort: 53, Target: tt.target})
			l.Datagrams = []flow.Datagram{from(tt.peer, 2000, tt.to, "one"), from(tt.peer, 2000, tt.to, "two")}
			r.ListenerReady(l.Token, flow.Readable)
			want := []datagram{
				{src: tt.seen, dst: tt.dst, srcPort: 2000, dstPort: 53, data: "one"},
				{src: tt.seen, dst: tt.dst, srcPort: 2000, dstPort: 53, data: "two"},
			}
			if diff := cmp.Diff(want, r.received(), cmp.AllowUnexported(datagram{})); diff != "" {
				t.Errorf("received (-want +got):\n%s", diff)
			}
			o := r.oneOpen()
			wantOpen := ipc.Open{Token: o.Token, Proto: ipc.ProtoUDP, Listener: 3,
				Src: tt.src, Dst: tt.peer, SrcPort: 5000, DstPort: 2000}
			if diff := cmp.Diff(wantOpen, o); diff != "" {
				t.Errorf("request (-want +got):\n%s", diff)
			}
			if tt.dst == other4 {
				return // the helper below speaks for the guest's own address only
			}
			r.input(r.frame(tt.seen, 53, 2000, []byte("answer")), 0)
			r.Flush()
			s := r.answer(o)
			r.input(r.frame(tt.seen, 53, 2000, []byte("more")), 0)
			r.Flush()
			if diff := cmp.Diff([]string{"answer", "more"}, sent(s)); diff != "" {
				t.Errorf("sent (-want +got):\n%s", diff)
			}
			// From then on either way leads to the guest.
			s.Receive([]byte("by the socket"), 0)
			r.Ready(o.Token, flow.Readable)
			l.Datagrams = []flow.Datagram{from(tt.peer, 2000, tt.to, "by the listener")}
			r.ListenerReady(l.Token, flow.Readable)
			if diff := cmp.Diff([]string{"by the socket", "by the listener"}, texts(r.received())); diff != "" {
				t.Errorf("received (-want +got):\n%s", diff)
			}
			if n := len(r.host.TakeOpens()); n != 0 || r.Len() != 1 {
				t.Errorf("%d more requests, %d flows", n, r.Len())
			}
			r.check()
		})
	}
}

// Datagrams of several peers, read together, stay apart.
func TestInboundPeers(t *testing.T) {
	r := newRig(t)
	l := r.listen(ipc.Listener{ID: 3, Proto: ipc.ProtoUDP, HostPort: 5000, GuestPort: 53})
	for k := range 10 {
		peer := packet.AddrFrom4([4]byte{192, 0, 2, byte(k % 3)})
		l.Datagrams = append(l.Datagrams, from(peer, 2000+uint16(k%2), our4, fmt.Sprint(k%3, k%2)))
	}
	r.ListenerReady(l.Token, flow.Readable)
	for _, d := range r.received() {
		if a := d.src.As4(); d.data != fmt.Sprint(a[3], d.srcPort-2000) {
			t.Errorf("%q from %v port %d", d.data, a, d.srcPort)
		}
	}
	if r.Len() != 6 || len(r.host.TakeOpens()) != 6 {
		t.Errorf("%d flows", r.Len())
	}
}

// Two peers that look alike to the guest: the answers go to the later one.
func TestInboundAlias(t *testing.T) {
	r := newRig(t)
	l := r.listen(ipc.Listener{ID: 3, Proto: ipc.ProtoUDP, HostPort: 5000, GuestPort: 53})
	own := guest4 // the host's own use of that address
	l.Datagrams = []flow.Datagram{from(loop4, 2000, loop4, "a")}
	r.ListenerReady(l.Token, flow.Readable)
	first := r.answer(r.oneOpen())
	l.Datagrams = []flow.Datagram{from(own, 2000, own, "b")}
	r.ListenerReady(l.Token, flow.Readable)
	second := r.answer(r.oneOpen())
	r.input(r.frame(our4, 53, 2000, []byte("answer")), 0)
	r.Flush()
	if len(first.Writes) != 0 || first.Closes != 1 || len(second.Writes) != 1 {
		t.Errorf("%d writes to the first, %d to the second", len(first.Writes), len(second.Writes))
	}
	r.check()
}

func TestInboundWithoutGuest(t *testing.T) {
	r := newRig(t)
	r.guest.Seen6, r.guest.SeenLL6 = packet.Addr{}, packet.Addr{}
	l := r.listen(ipc.Listener{ID: 3, Proto: ipc.ProtoUDP, HostPort: 5000, GuestPort: 53})
	l.Datagrams = []flow.Datagram{from(remote6, 2000, guest6, "x"), from(remote6, 2000, guest6, "x")}
	r.ListenerReady(l.Token, flow.Readable)
	if r.Len() != 0 || r.Stats.NoTarget != 2 || len(r.host.Frames) != 0 {
		t.Errorf("stats %+v", r.Stats)
	}
	// Of the other family than the target.
	l = r.listen(ipc.Listener{ID: 4, Proto: ipc.ProtoUDP, HostPort: 5001, GuestPort: 53, Target: guest6})
	l.Datagrams = []flow.Datagram{from(remote4, 2000, our4, "x")}
	r.ListenerReady(l.Token, flow.Readable)
	if r.Len() != 0 || r.Stats.NoTarget != 3 {
		t.Errorf("stats %+v", r.Stats)
	}
}

func TestListenerTurn(t *testing.T) {
	r := newRig(t)
	l := r.listen(ipc.Listener{ID: 3, Proto: ipc.ProtoUDP, HostPort: 5000, GuestPort: 53})
	for range turnRounds*readBatch + 7 {
		l.Datagrams = append(l.Datagrams, from(remote4, 2000, our4, "x"))
	}
	r.host.LinkRoom = 0
	r.ListenerReady(l.Token, flow.Readable)
	if len(l.Datagrams) != turnRounds*readBatch+7 || r.Pending() {
		t.Fatalf("%d left, pending %v", len(l.Datagrams), r.Pending())
	}
	r.host.LinkRoom = flowtest.Unlimited
	r.Resume()
	if len(l.Datagrams) != 7 || !r.Pending() {
		t.Fatalf("%d left, pending %v", len(l.Datagrams), r.Pending())
	}
	r.Flush()
	if len(l.Datagrams) != 0 || r.Pending() {
		t.Fatalf("%d left, pending %v", len(l.Datagrams), r.Pending())
	}
	if n := len(r.received()); n != turnRounds*readBatch+7 {
		t.Errorf("%d received", n)
	}
}

func TestRemoveListener(t *testing.T) {
	r := newRig(t)
	l := r.listen(ipc.Listener{ID: 0x1000003, Proto: ipc.ProtoUDP, HostPort: 5000, GuestPort: 53})
	l.Datagrams = []flow.Datagram{from(remote4, 2000, our4, "x")}
	r.ListenerReady(l.Token, flow.Readable)
	if r.Len() != 1 {
		t.Fatal("an identifier of more than 24 bits is not recognised")
	}
	r.host.LinkRoom = 0
	l.Datagrams = []flow.Datagram{from(remote4, 2000, our4, "x")}
	r.ListenerReady(l.Token, flow.Readable)
	r.RemoveListener(0x1000003)
	r.host.LinkRoom = flowtest.Unlimited
	if l.Closes != 1 || r.Pending() || r.Len() != 1 {
		t.Errorf("closed %d times, pending %v, %d flows", l.Closes, r.Pending(), r.Len())
	}
	r.ListenerReady(l.Token, flow.Readable) // late
	// Its place is taken by the next.
	n := r.listen(ipc.Listener{ID: 4, Proto: ipc.ProtoUDP, HostPort: 5001, GuestPort: 54})
	r.ListenerReady(l.Token, flow.Readable)
	if len(r.listeners) != 1 || n.Closes != 0 {
		t.Errorf("%d listeners", len(r.listeners))
	}
	r.host.WatchErr = syscall.ENOSPC
	if s := r.listen(ipc.Listener{ID: 5, Proto: ipc.ProtoUDP}); s.Closes != 1 {
		t.Errorf("closed %d times", s.Closes)
	}
}

// Without a socket for answers the guest still hears, and is told when it
// answers.
func TestInboundRefused(t *testing.T) {
	r := newRig(t)
	l := r.listen(ipc.Listener{ID: 3, Proto: ipc.ProtoUDP, HostPort: 5000, GuestPort: 53})
	l.Datagrams = []flow.Datagram{from(remote4, 2000, our4, "x")}
	r.ListenerReady(l.Token, flow.Readable)
	r.refuse(r.oneOpen(), syscall.EACCES, ipc.OpenedProhibited)
	if n := len(r.received()); n != 1 {
		t.Errorf("%d frames", n)
	}
	r.input(r.frame(remote4, 53, 2000, []byte("answer")), 0)
	if e := r.errors(); len(e) != 1 || e[0].code != packet.ICMPAdminProhibited {
		t.Errorf("errors %+v", e)
	}
	l.Datagrams = []flow.Datagram{from(remote4, 2000, our4, "y")}
	r.ListenerReady(l.Token, flow.Readable)
	if n := len(r.received()); n != 1 {
		t.Errorf("%d frames", n)
	}
	r.check()
}

func TestInboundAllocs(t *testing.T) {
	r := newRig(t)
	l := r.listen(ipc.Listener{ID: 3, Proto: ipc.ProtoUDP, HostPort: 5000, GuestPort: 53})
	r.host.Quiet = true
	load := []flow.Datagram{from(remote4, 2000, our4, "x"), from(remote4, 2001, our4, "x")}
	if n := testing.AllocsPerRun(100, func() {
		l.Datagrams = load
		r.ListenerReady(l.Token, flow.Readable)
		for i := r.ages.Oldest(); i != flow.None; i = r.ages.Oldest() {
			r.remove(i, r.flows.At(i))
		}
	}); n != 0 {
		t.Errorf("%v allocations", n)
	}
	if r.Stats.Inbound == 0 {
		t.Errorf("stats %+v", r.Stats)
	}
}
