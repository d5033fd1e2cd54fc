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
	"aldente/worker/store"
)

func (r *rig) listen(l ipc.Listener) *flowtest.Socket {
	s := r.host.Socket()
	r.AddListener(&l, s.FD)
	return s
}

func from(peer packet.Addr, port uint16, to packet.Addr, data string) flow.Datagram {
	return flow.Datagram{Buf: []byte(data), N: len(data), From: peer, FromPort: port, To: to}
}

// A datagram from outside reaches the guest at once; the guest's first answer asks
// for the socket that it and the next ones wait for, and leave by.
func TestInbound(t *testing.T) {
	host4 := packet.AddrFrom4([4]byte{198, 51, 100, 7})
	host6 := packet.Addr{0: 0x20, 1: 1, 2: 0xd, 3: 0xb8, 4: 5, 15: 7}
	other4 := packet.AddrFrom4([4]byte{10, 0, 0, 77})
	other6, global6 := packet.Addr{0: 0xfd, 1: 9, 15: 0x77}, packet.Addr{0: 0xfc, 15: 1}
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
		{"target, IPv6 loopback", other6, packet.Addr{15: 1}, packet.Addr{15: 1}, global6, other6, packet.Addr{15: 1}},
		{"no local address", packet.Addr{}, remote4, packet.Addr{}, remote4, guest4, packet.Addr{}},
		{"to everybody", packet.Addr{}, remote4, packet.AddrFrom4([4]byte{255, 255, 255, 255}), remote4, guest4, packet.Addr{}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			r := newRig(t)
			r.guest.OurLL6, r.guest.Our6 = our6, global6
			l := r.listen(ipc.Listener{ID: 3, Proto: ipc.ProtoUDP, HostPort: 5000, GuestPort: 53, Target: tt.target})
			l.Datagrams = []flow.Datagram{from(tt.peer, 2000, tt.to, "one"), from(tt.peer, 2000, tt.to, "two")}
			r.ListenerReady(l.Token, flow.Readable)
			want := []received{
				{src: tt.seen, dst: tt.dst, srcPort: 2000, dstPort: 53, data: "one"},
				{src: tt.seen, dst: tt.dst, srcPort: 2000, dstPort: 53, data: "two"},
			}
			if diff := cmp.Diff(want, r.received(), cmp.AllowUnexported(received{})); diff != "" {
				t.Errorf("received (-want +got):\n%s", diff)
			}
			if n := len(r.host.TakeOpens()); n != 0 {
				t.Errorf("%d requests before the guest has answered", n)
			}
			if tt.dst == tt.target {
				return // the helper below speaks for the guest's own address only
			}
			r.input(r.frame(tt.seen, 53, 2000, []byte("answer")), 0)
			r.Flush()
			o := r.oneOpen()
			wantOpen := ipc.Open{Token: o.Token, Proto: ipc.ProtoUDP, Listener: 3,
				Src: tt.src, Dst: tt.peer, SrcPort: 5000, DstPort: 2000}
			if diff := cmp.Diff(wantOpen, o); diff != "" {
				t.Errorf("request (-want +got):\n%s", diff)
			}
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

// A guest that has sent nothing yet when somebody asks by [::1] may turn out to have IPv4
// only, or to have IPv6 after all. Once it has answered, the flow keeps to that.
func TestInboundEitherFamily(t *testing.T) {
	r := newRig(t)
	r.guest.OurLL6, r.guest.Our6 = our6, packet.Addr{0: 0xfc, 15: 1}
	l := r.listen(ipc.Listener{ID: 3, Proto: ipc.ProtoUDP, HostPort: 5000, GuestPort: 53})
	lo6 := packet.Addr{15: 1}
	asks := func(want packet.Addr) packet.Addr {
		t.Helper()
		l.Datagrams = []flow.Datagram{from(lo6, 2000, lo6, "ask")}
		r.ListenerReady(l.Token, flow.Readable)
		got := r.received()
		if len(got) != 1 || got[0].dst != want || got[0].src.Is4() != want.Is4() || r.Len() != 1 {
			t.Fatalf("%d flows, received %v", r.Len(), got)
		}
		return got[0].src
	}
	hears := func(version uint8) {
		r.guest.Learn(&packet.Packet{IPVersion: version, SrcMAC: r.guest.MAC})
	}
	asks(guest6)
	hears(4)
	asks(guest4)
	hears(6)
	source := asks(guest6)
	r.input(r.frame(source, 53, 2000, []byte("answer")), 0)
	r.Flush()
	if o := r.oneOpen(); o.Dst != lo6 || o.Src != lo6 || o.Listener != 3 {
		t.Errorf("answers from %v to %v", o.Src, o.Dst)
	}
	r.check()
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
	if r.Len() != 6 || len(r.host.TakeOpens()) != 0 {
		t.Errorf("%d flows", r.Len())
	}
}

// Flows that would look the same to the guest differ in the source port: two peers
// of which it sees one address, one peer that speaks to two addresses of the host,
// or to two of its ports. Each is answered from where it has asked.
func TestInboundAlike(t *testing.T) {
	a4, b4 := packet.AddrFrom4([4]byte{198, 51, 100, 7}), packet.AddrFrom4([4]byte{198, 51, 100, 8})
	type one struct {
		listener  int
		peer, to  packet.Addr
		wantPort  uint16
		wantLocal packet.Addr
	}
	for name, two := range map[string][2]one{
		"two peers":     {{0, loop4, loop4, 5000, loop4}, {0, guest4, guest4, 5000, guest4}},
		"two addresses": {{0, remote4, a4, 5000, a4}, {0, remote4, b4, 5000, b4}},
		"two ports":     {{0, remote4, a4, 5000, a4}, {1, remote4, a4, 5001, a4}},
	} {
		t.Run(name, func(t *testing.T) {
			r := newRig(t)
			ls := [2]*flowtest.Socket{
				r.listen(ipc.Listener{ID: 3, Proto: ipc.ProtoUDP, HostPort: 5000, GuestPort: 53}),
				r.listen(ipc.Listener{ID: 4, Proto: ipc.ProtoUDP, HostPort: 5001, GuestPort: 53}),
			}
			var heard [2]received
			for round := range 2 {
				for k, o := range two {
					l := ls[o.listener]
					l.Datagrams = []flow.Datagram{from(o.peer, 2000, o.to, fmt.Sprint(k))}
					r.ListenerReady(l.Token, flow.Readable)
					got := r.received()
					if len(got) != 1 || got[0].data != fmt.Sprint(k) || round > 0 && got[0] != heard[k] {
						t.Fatalf("round %d: %+v after %+v", round, got, heard[k])
					}
					heard[k] = got[0]
				}
			}
			if heard[0].srcPort != 2000 || heard[1].srcPort == 2000 || heard[1].src != heard[0].src {
				t.Fatalf("%+v and %+v", heard[0], heard[1])
			}
			for k, o := range two {
				r.input(r.frame(heard[k].src, 53, heard[k].srcPort, []byte("answer")), 0)
				r.Flush()
				got := r.oneOpen()
				want := ipc.Open{Token: got.Token, Proto: ipc.ProtoUDP, Listener: 3 + uint32(o.listener),
					Src: o.wantLocal, Dst: o.peer, SrcPort: o.wantPort, DstPort: 2000}
				if diff := cmp.Diff(want, got); diff != "" {
					t.Errorf("request (-want +got):\n%s", diff)
				}
				s := r.answer(got)
				s.Datagrams = []flow.Datagram{from(o.peer, 2000, packet.Addr{}, "more")}
				r.Ready(got.Token, flow.Readable)
				if more := r.received(); len(more) != 1 || more[0].srcPort != heard[k].srcPort || r.Stats.Strangers+r.Stats.Returned != 0 {
					t.Errorf("%+v, stats %+v", more, r.Stats)
				}
			}
			r.check()
		})
	}
}

// A port that a flow has towards the guest in place of its own may be that of another
// peer of the same address: neither is taken for the other, and the real one gets its
// port as soon as nobody waits for an answer to it.
func TestInboundAliasTaken(t *testing.T) {
	a4, b4 := packet.AddrFrom4([4]byte{198, 51, 100, 7}), packet.AddrFrom4([4]byte{198, 51, 100, 8})
	for _, port := range []uint16{2000, 200} {
		r := newRig(t)
		l := r.listen(ipc.Listener{ID: 3, Proto: ipc.ProtoUDP, HostPort: 5000, GuestPort: 53})
		hear := func(port uint16, to packet.Addr, data string) received {
			t.Helper()
			l.Datagrams = []flow.Datagram{from(remote4, port, to, data)}
			r.ListenerReady(l.Token, flow.Readable)
			got := r.received()
			if len(got) != 1 || got[0].data != data || got[0].src != remote4 {
				t.Fatalf("%+v for %s", got, data)
			}
			return got[0]
		}
		answer := func(heard received, local packet.Addr, port uint16) {
			t.Helper()
			r.input(r.frame(heard.src, 53, heard.srcPort, []byte("to "+heard.data)), 0)
			r.Flush()
			o := r.oneOpen()
			if o.Src != local || o.DstPort != port {
				t.Errorf("answer to %q: %+v", heard.data, o)
			}
			if got := sent(r.answer(o)); len(got) != 1 || got[0] != "to "+heard.data {
				t.Errorf("sent %q", got)
			}
		}
		hear(port, a4, "first")
		alias := hear(port, b4, "second")
		if (alias.srcPort < 1024) != (port < 1024) || alias.srcPort == port {
			t.Errorf("port %d for %d", alias.srcPort, port)
		}
		// Not answered yet, but perhaps about to be.
		r.advance(1)
		hidden := hear(alias.srcPort, a4, "real")
		if hidden.srcPort == alias.srcPort {
			t.Fatal("two look the same")
		}
		answer(alias, b4, port)
		answer(hidden, a4, alias.srcPort)
		if got := hear(port, b4, "second again"); got.srcPort != alias.srcPort {
			t.Errorf("port %d, then %d", alias.srcPort, got.srcPort)
		}
		// While it is answered it stays; forgotten, it gets the same port again.
		r.advance(200)
		if n := r.Len(); n != 0 {
			t.Fatalf("%d flows", n)
		}
		hear(port, a4, "first")
		if got := hear(port, b4, "second"); got.srcPort != alias.srcPort {
			t.Errorf("port %d, then %d", alias.srcPort, got.srcPort)
		}
		// One that the guest does not answer gives way.
		r.advance(float64(aliasWait) / 1e9)
		real := hear(alias.srcPort, a4, "real")
		if real.srcPort != alias.srcPort {
			t.Errorf("port %d of %d", real.srcPort, alias.srcPort)
		}
		if got := hear(port, b4, "second"); got.srcPort == port || got.srcPort == alias.srcPort {
			t.Errorf("port %d", got.srcPort)
		}
		answer(real, a4, alias.srcPort)
		r.check()
	}
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
	if n := len(r.received()); n != 1 {
		t.Errorf("%d frames", n)
	}
	r.input(r.frame(remote4, 53, 2000, []byte("answer")), 0)
	r.refuse(r.oneOpen(), syscall.EACCES, ipc.OpenedProhibited)
	if e := r.errors(); len(e) != 1 || e[0].code != packet.ICMPAdminProhibited {
		t.Errorf("errors %+v", e)
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
		for i := r.unanswered.Oldest(); i != store.None; i = r.unanswered.Oldest() {
			r.remove(i, r.flows.At(i))
		}
	}); n != 0 {
		t.Errorf("%v allocations", n)
	}
	if r.Stats.Inbound == 0 {
		t.Errorf("stats %+v", r.Stats)
	}
}

// TestRetargetListener: what comes from now on is for another port, by the same socket;
// a flow that there is goes on, and other listeners are not concerned.
func TestRetargetListener(t *testing.T) {
	other4 := packet.AddrFrom4([4]byte{10, 0, 0, 77})
	r := newRig(t)
	l := r.listen(ipc.Listener{ID: 3, Proto: ipc.ProtoUDP, HostPort: 5000, GuestPort: 53})
	m := r.listen(ipc.Listener{ID: 4, Proto: ipc.ProtoUDP, HostPort: 5001, GuestPort: 53})
	r.RetargetListener(&ipc.Listener{ID: 3, Proto: ipc.ProtoUDP, HostPort: 5000, GuestPort: 54, Target: other4})
	r.RetargetListener(&ipc.Listener{ID: 9, Proto: ipc.ProtoUDP, GuestPort: 99}) // gone since
	l.Datagrams = []flow.Datagram{from(remote4, 2000, our4, "one")}
	m.Datagrams = []flow.Datagram{from(remote4, 2001, our4, "two")}
	r.ListenerReady(l.Token, flow.Readable)
	r.ListenerReady(m.Token, flow.Readable)
	want := []received{
		{src: remote4, dst: other4, srcPort: 2000, dstPort: 54, data: "one"},
		{src: remote4, dst: guest4, srcPort: 2001, dstPort: 53, data: "two"},
	}
	if diff := cmp.Diff(want, r.received(), cmp.AllowUnexported(received{})); diff != "" {
		t.Errorf("received (-want +got):\n%s", diff)
	}
	for _, id := range []uint32{4, 3, 3} { // the other way round than they came
		r.RemoveListener(id)
	}
	if r.Len() != 2 {
		t.Errorf("%d flows", r.Len())
	}
}

// TestInboundScopes: two peers may have one link-local address, each on a link of its own.
// To the guest the second comes from another port, and answers leave by the right link.
func TestInboundScopes(t *testing.T) {
	peer := packet.Addr{0: 0xfe, 1: 0x80, 15: 0x77}
	to := packet.Addr{0: 0xfe, 1: 0x80, 15: 2}
	r := newRig(t)
	l := r.listen(ipc.Listener{ID: 3, Proto: ipc.ProtoUDP, HostPort: 5000, GuestPort: 53})
	for _, scope := range []uint32{3, 4, 3} {
		d := from(peer, 2000, to, fmt.Sprint(scope))
		d.Scope = scope
		l.Datagrams = append(l.Datagrams, d)
	}
	r.ListenerReady(l.Token, flow.Readable)
	ports := map[uint16]uint32{}
	for i, one := range r.received() {
		scope := []uint32{3, 4, 3}[i]
		if was, ok := ports[one.srcPort]; one.src != peer || ok && was != scope || one.data != fmt.Sprint(scope) {
			t.Errorf("%+v", one)
		}
		ports[one.srcPort] = scope
	}
	if len(ports) != 2 || ports[2000] != 3 {
		t.Fatalf("they come from ports %v", ports)
	}
	for port, scope := range ports {
		r.input(r.frame(peer, 53, port, []byte("answer")), 0)
		r.Flush()
		if o := r.oneOpen(); o.Scope != scope || o.Dst != peer || o.DstPort != 2000 || o.Src != to {
			t.Errorf("port %d: %+v, want link %d", port, o, scope)
		}
	}
}
