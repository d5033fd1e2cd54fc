// SPDX-License-Identifier: Apache-2.0

package udp

import (
	"bytes"
	"slices"
	"syscall"
	"testing"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"

	"aldente/ipc"
	"aldente/worker/datagram"
	"aldente/worker/flow"
	"aldente/worker/flow/flowtest"
	"aldente/worker/packet"
)

func texts(d []received) []string {
	var all []string
	for _, x := range d {
		all = append(all, x.data)
	}
	return all
}

// Whatever the socket holds, in whatever form, the guest gets the same
// datagrams: MTUs and links that stop taking frames change nothing.
func TestReceive(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		r := newRig(t)
		r.guest.MTU = rapid.SampledFrom([]uint16{0, 576, 1280, 1500, 9000, 65520}).Draw(rt, "mtu")
		remote := rapid.SampledFrom([]packet.Addr{remote4, remote6}).Draw(rt, "remote")
		s, token := r.connect(remote)
		longest := maxDatagram
		if remote.Is4() {
			longest = datagram.MaxWrite
		}
		sizes := rapid.SampledFrom([]int{0, 1, 100, 532, 548, 549, 1232, 1233, 1452, 1453, 1472, 1473, 8000, 40000, longest})
		var want []string
		for k := range rapid.IntRange(1, 100).Draw(rt, "datagrams") {
			size := sizes.Draw(rt, "size")
			n, seg := size, 0
			if size > 0 && rapid.Bool().Draw(rt, "joined") {
				n = rapid.IntRange(1, min(longest, 70*size)).Draw(rt, "bytes")
				seg = size
			}
			data := bytes.Repeat([]byte{byte(k), byte(k >> 8), 7}, n/3+1)[:n]
			s.Receive(data, seg)
			for first := true; first || len(data) > 0; first = false {
				one := data[:min(size, len(data))]
				data = data[len(one):]
				want = append(want, string(one))
			}
		}
		r.host.LinkRoom = rapid.SampledFrom([]int{0, flowtest.Unlimited}).Draw(rt, "room")
		r.Ready(token, flow.Readable)
		r.host.LinkRoom = flowtest.Unlimited
		for n := 0; r.Pending(); n++ {
			if n > 100 {
				rt.Fatalf("still pending")
			}
			r.Flush()
		}
		got := r.received()
		if !slices.Equal(texts(got), want) {
			rt.Fatalf("%d datagrams, want %d", len(got), len(want))
		}
		guest := guest6
		if remote.Is4() {
			guest = guest4
		}
		for _, d := range got {
			if d.src != remote || d.dst != guest || d.srcPort != 2000 || d.dstPort != 1000 {
				rt.Fatalf("datagram from %v:%d to %v:%d", d.src, d.srcPort, d.dst, d.dstPort)
			}
		}
		if r.Stats.ToGuest != uint64(len(want)) {
			rt.Fatalf("%d datagrams counted, want %d", r.Stats.ToGuest, len(want))
		}
	})
}

// What UDP_GRO joined, and what came as equal datagrams, is one frame.
func TestReceiveIsOneFrame(t *testing.T) {
	r := newRig(t)
	s, token := r.connect(remote4)
	s.Receive(make([]byte, 40*1400+3), 1400)
	r.Ready(token, flow.Readable)
	if n := len(r.host.Frames); n != 1 {
		t.Errorf("%d frames of what GRO joined", n)
	}
	r.host.Frames = nil
	for range 20 {
		s.Receive(make([]byte, 1400), 0)
	}
	r.Ready(token, flow.Readable)
	if n := len(r.host.Frames); n != 1 {
		t.Errorf("%d frames of equal datagrams", n)
	}
}

// One flow's turn is bounded, and the rest is not forgotten.
func TestReceiveTurn(t *testing.T) {
	r := newRig(t)
	s, token := r.connect(remote4)
	for range fewDatagrams {
		s.Receive([]byte("x"), 0)
	}
	r.Ready(token, flow.Readable) // it is known to send many now
	for range turnRounds*readBatch + 5 {
		s.Receive([]byte("x"), 0)
	}
	s.Receive(make([]byte, 100), 0) // ends the run of equal ones
	r.Ready(token, flow.Readable)
	if len(s.Datagrams) != 6 || !r.Pending() {
		t.Fatalf("%d left, pending %v", len(s.Datagrams), r.Pending())
	}
	r.host.LinkRoom = 0
	if r.Pending() {
		t.Error("pending though the link is full")
	}
	r.Ready(token, flow.Readable) // a new event changes nothing
	r.Resume()
	if len(s.Datagrams) != 6 {
		t.Errorf("%d left", len(s.Datagrams))
	}
	r.host.LinkRoom = flowtest.Unlimited
	r.Resume()
	if len(s.Datagrams) != 0 || r.Pending() {
		t.Errorf("%d left, pending %v", len(s.Datagrams), r.Pending())
	}
	r.check()
}

func TestReceiveTruncated(t *testing.T) {
	r := newRig(t)
	s, token := r.connect(remote4)
	s.Datagrams = []flow.Datagram{{Buf: []byte("abc"), N: 3, Truncated: true}, {Buf: []byte("whole"), N: 5}}
	r.Ready(token, flow.Readable)
	if diff := cmp.Diff([]string{"whole"}, texts(r.received())); diff != "" {
		t.Errorf("received (-want +got):\n%s", diff)
	}
	if r.Stats.Truncated != 1 {
		t.Errorf("stats %+v", r.Stats)
	}
}

// Events and answers for a flow that is gone reach none that took its place.
func TestStaleTokens(t *testing.T) {
	r := newRig(t)
	r.say(remote4, "x")
	old := r.oneOpen()
	i, c := r.find(remote4, 1000)
	r.remove(i, c)
	r.say(remote6, "y")
	o := r.oneOpen()
	late := r.answer(old)
	if late.Closes != 1 {
		t.Errorf("late socket closed %d times", late.Closes)
	}
	s := r.answer(o)
	s.Receive([]byte("z"), 0)
	r.Ready(old.Token, flow.Readable)
	if len(r.host.Frames) != 0 {
		t.Error("an old token moved data")
	}
	again := r.host.Socket()
	r.Opened(o.Token, again.FD, &ipc.Opened{Token: o.Token})
	if again.Closes != 1 {
		t.Error("a second answer was taken")
	}
	r.check()
}

func TestErrorQueue(t *testing.T) {
	v4 := func(typ, code uint8, info uint32, by packet.Addr) flow.SocketError {
		return flow.SocketError{Errno: syscall.EHOSTUNREACH, Origin: flow.OriginICMP, Type: typ, Code: code, Info: info, Offender: by, Buf: []byte("question")}
	}
	v6 := func(typ, code uint8, info uint32, by packet.Addr) flow.SocketError {
		e := v4(typ, code, info, by)
		e.Origin = flow.OriginICMP6
		return e
	}
	local := func(e syscall.Errno, info uint32) flow.SocketError {
		return flow.SocketError{Errno: e, Origin: flow.OriginLocal, Info: info, Buf: []byte("question")}
	}
	tests := []struct {
		name   string
		remote packet.Addr
		e      flow.SocketError
		want   *icmpError
	}{
		{"port unreachable", remote4, v4(3, 3, 0, remote4), &icmpError{src: remote4, typ: 3, code: 3}},
		{"port unreachable 6", remote6, v6(1, 4, 0, remote6), &icmpError{src: remote6, typ: 1, code: 4}},
		{"time exceeded", remote4, v4(11, 0, 0, router4), &icmpError{src: router4, typ: 11}},
		{"time exceeded 6", remote6, v6(3, 0, 0, router6), &icmpError{src: router6, typ: 3}},
		{"from the host's loopback", remote4, v4(3, 3, 0, loop4), &icmpError{src: our4, typ: 3, code: 3}},
		{"from nobody", remote4, v4(3, 1, 0, packet.Addr{}), &icmpError{src: our4, typ: 3, code: 1}},
		{"fragmentation needed", remote4, v4(3, 4, 1400, router4), &icmpError{src: router4, typ: 3, code: 4, info: 1400}},
		{"packet too big", remote6, v6(2, 0, 1300, router6), &icmpError{src: router6, typ: 2, info: 1300}},
		{"parameter problem", remote4, v4(12, 0, 20, router4), &icmpError{src: router4, typ: 12, info: 20 << 24}},
		{"parameter problem 6", remote6, v6(4, 1, 40, router6), &icmpError{src: router6, typ: 4, code: 1, info: 40}},
		{"too big for the host's interface", remote4, local(syscall.EMSGSIZE, 1400), &icmpError{src: our4, typ: 3, code: 4, info: 1400}},
		{"too big for the host's interface 6", remote6, local(syscall.EMSGSIZE, 1400), &icmpError{src: our6, typ: 2, info: 1400}},
		{"no neighbour", remote4, local(syscall.EHOSTUNREACH, 0), &icmpError{src: our4, typ: 3, code: 1}},
		{"no neighbour 6", remote6, local(syscall.EHOSTUNREACH, 0), &icmpError{src: our6, typ: 1, code: 3}},
		{"source quench", remote4, v4(4, 0, 0, router4), nil},
		{"redirect", remote6, v6(137, 0, 0, router6), nil},
		{"other family", remote6, v4(3, 3, 0, router4), &icmpError{src: our6, typ: 1, code: 3}},
		{"time stamp", remote4, flow.SocketError{Origin: 4}, nil},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			r := newRig(t)
			s, token := r.connect(tt.remote)
			s.Errors = []flow.SocketError{tt.e}
			r.Ready(token, flow.Failed)
			var want []icmpError
			if w := tt.want; w != nil {
				w.dst, w.qsrc, w.qdst, w.qsrcPort, w.qdstPort, w.qdata = guest6, guest6, tt.remote, 1000, 2000, "question"
				if tt.remote.Is4() {
					w.dst, w.qsrc = guest4, guest4
				}
				want = append(want, *w)
			}
			if diff := cmp.Diff(want, r.errors(), cmp.AllowUnexported(icmpError{})); diff != "" {
				t.Errorf("errors (-want +got):\n%s", diff)
			}
			if r.Len() != 1 {
				t.Error("the flow is gone")
			}
		})
	}
}

// Data that wait behind errors are read, and an error queue that cannot be
// read ends the flow.
func TestErrorsThenData(t *testing.T) {
	r := newRig(t)
	s, token := r.connect(remote4)
	for range 3 {
		s.Errors = append(s.Errors, flow.SocketError{Origin: flow.OriginICMP, Type: 3, Code: 3, Offender: remote4})
	}
	s.Receive([]byte("data"), 0)
	r.Ready(token, flow.Failed|flow.Readable)
	if len(s.Errors) != 0 || r.Stats.Errors != 3 || r.Stats.ToGuest != 1 {
		t.Errorf("%d errors left, stats %+v", len(s.Errors), r.Stats)
	}
	r.host.Frames = nil
	s.Pending = syscall.ECONNREFUSED
	r.Ready(token, flow.Failed)
	if e := r.errors(); len(e) != 1 || e[0].typ != 3 || e[0].code != 3 || e[0].qdata != "" {
		t.Errorf("errors %+v", e)
	}
	s.Errors = make([]flow.SocketError, flow.MaxErrors+1)
	r.Ready(token, flow.Failed)
	if s.Closes != 1 || r.Len() != 0 || r.Stats.Broken != 1 {
		t.Errorf("closed %d times, stats %+v", s.Closes, r.Stats)
	}
}

func TestReceiveAllocs(t *testing.T) {
	r := newRig(t)
	s, token := r.connect(remote4)
	r.host.Quiet = true
	big, small := make([]byte, 40*1400), make([]byte, 1400)
	huge := make([]byte, 60000)
	load := make([]flow.Datagram, 0, 16)
	quote := []flow.SocketError{{Origin: flow.OriginICMP, Type: 11, Offender: router4, Buf: small}}
	if n := testing.AllocsPerRun(100, func() {
		load = append(load[:0], flow.Datagram{Buf: big, N: len(big), Segment: 1400},
			flow.Datagram{Buf: small, N: 1400}, flow.Datagram{Buf: small, N: 1400}, flow.Datagram{Buf: huge, N: 60000})
		s.Datagrams = load
		s.Errors = quote
		r.Ready(token, flow.Failed|flow.Readable)
	}); n != 0 {
		t.Errorf("%v allocations", n)
	}
	if r.Stats.ToGuest == 0 || r.Stats.Errors == 0 {
		t.Errorf("stats %+v", r.Stats)
	}
}

// A flow of single datagrams has the kernel's buffers; one that sends many at a
// time gets larger ones, once.
func TestBulkBuffers(t *testing.T) {
	r := newRig(t)
	s, token := r.connect(remote4)
	for range 3 {
		s.Receive([]byte("x"), 0)
		r.Ready(token, flow.Readable)
	}
	if s.SetCalls != 0 {
		t.Errorf("%d options set for single datagrams", s.SetCalls)
	}
	for range 3 {
		for range 10 {
			s.Receive([]byte("x"), 0)
		}
		r.Ready(token, flow.Readable)
		if len(s.Datagrams) != 0 {
			t.Fatalf("%d left", len(s.Datagrams))
		}
	}
	if s.SetCalls != 2 || s.Options[flow.OptionRecvBuffer] != bulkBuffer || s.Options[flow.OptionSendBuffer] != bulkBuffer {
		t.Errorf("%d options set: %v", s.SetCalls, s.Options)
	}
}

// What came to the port before the socket was connected is nobody's.
func TestStranger(t *testing.T) {
	r := newRig(t)
	s, token := r.connect(remote4)
	_, port := r.flows.Key(0).Remote()
	peer := r.flows.At(0).peer
	s.Datagrams = []flow.Datagram{
		{Buf: []byte("s1"), N: 2, From: router4, FromPort: port},
		{Buf: []byte("p1"), N: 2, From: peer, FromPort: port},
		{Buf: []byte("s2"), N: 2, From: peer, FromPort: port + 1},
		{Buf: []byte("p2!"), N: 3, From: peer, FromPort: port},
	}
	r.Ready(token, flow.Readable)
	if r.Stats.Strangers != 2 || r.Stats.ToGuest != 2 {
		t.Errorf("stats %+v", r.Stats)
	}
}
