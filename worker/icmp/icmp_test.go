// SPDX-License-Identifier: Apache-2.0

package icmp

import (
	"bytes"
	"encoding/binary"
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
	"aldente/worker/store"
)

// Requests before the socket came leave in order, then others at once; replies
// carry the guest's identifier.
func TestEcho(t *testing.T) {
	for _, remote := range []packet.Addr{remote4, remote6} {
		r := newRig(t)
		proto, request, answer := uint8(ipc.ProtoICMPv6), uint8(packet.ICMPv6EchoRequest), uint8(packet.ICMPv6EchoReply)
		if remote.Is4() {
			proto, request, answer = ipc.ProtoICMP, packet.ICMPEchoRequest, packet.ICMPEchoReply
		}
		r.ping(remote, 1, "one")
		r.ttl = 3
		r.ping(remote, 2, "")
		o := r.oneOpen()
		want := ipc.Open{Token: o.Token, Proto: proto, Src: guestOf(remote), Dst: remote, SrcPort: guestID}
		if diff := cmp.Diff(want, o); diff != "" {
			t.Errorf("request (-want +got):\n%s", diff)
		}
		s := r.answer(o)
		r.ping(remote, 3, "three")
		var got []echo
		for _, w := range s.Writes {
			var e packet.Echo
			if err := e.Decode(w.Data); err != nil {
				t.Fatal(err)
			}
			got = append(got, echo{typ: e.Type, seq: e.Seq, id: uint16(w.TTL + w.Hop), data: string(e.Payload)})
		}
		wants := []echo{{typ: request, seq: 1, data: "one"}, {typ: request, seq: 2, id: 3}, {typ: request, seq: 3, id: 3, data: "three"}}
		if diff := cmp.Diff(wants, got, cmp.AllowUnexported(echo{})); diff != "" {
			t.Errorf("sent, TTL as id (-want +got):\n%s", diff)
		}
		s.Receive(reply(remote, 1, "one"), 0)
		s.Receive(reply(remote, 3, ""), 0)
		r.Ready(o.Token, flow.Readable)
		wants = []echo{
			{remote, guestOf(remote), answer, guestID, 1, "one"},
			{remote, guestOf(remote), answer, guestID, 3, ""},
		}
		if diff := cmp.Diff(wants, r.received(), cmp.AllowUnexported(echo{})); diff != "" {
			t.Errorf("received (-want +got):\n%s", diff)
		}
		if n := r.queues.Used(); n != 0 {
			t.Errorf("%d chunks in use", n)
		}
	}
}

// Replies of any size reach the guest whole, with any MTU.
func TestLongReplies(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		r := newRig(t)
		r.guest.MTU = rapid.SampledFrom([]uint16{0, 576, 1280, 1500, 65520}).Draw(rt, "mtu")
		remote := rapid.SampledFrom([]packet.Addr{remote4, remote6}).Draw(rt, "remote")
		s, token := r.connect(remote)
		var want []string
		for k := range rapid.IntRange(1, 5).Draw(rt, "replies") {
			n := rapid.OneOf(rapid.IntRange(0, 3000), rapid.IntRange(0, 65507)).Draw(rt, "size")
			data := string(bytes.Repeat([]byte{byte(k), byte(n), 3}, n/3+1)[:n])
			want = append(want, data)
			s.Receive(reply(remote, uint16(k), data), 0)
		}
		r.Ready(token, flow.Readable)
		var got []string
		for _, e := range r.received() {
			got = append(got, e.data)
		}
		if !slices.Equal(got, want) {
			rt.Fatalf("%d replies, want %d", len(got), len(want))
		}
	})
}

func TestStrangeMessages(t *testing.T) {
	for _, msg := range [][]byte{
		nil, {0}, message(packet.ICMPEchoRequest, 0, 1, 1, ""), message(packet.ICMPEchoReply, 1, 1, 1, ""),
		message(packet.ICMPv6EchoReply, 0, 1, 1, ""), reply(remote4, 1, string(make([]byte, 65508))),
	} {
		r := newRig(t)
		s, token := r.connect(remote4)
		s.Receive(msg, 0)
		r.Ready(token, flow.Readable)
		if len(r.host.Frames) != 0 || r.Stats.Strange != 1 {
			t.Errorf("message of %d bytes: stats %+v", len(msg), r.Stats)
		}
	}
}

func TestInputRefused(t *testing.T) {
	for _, dst := range []packet.Addr{
		packet.AddrFrom4([4]byte{127, 0, 0, 1}), packet.AddrFrom4([4]byte{224, 0, 0, 1}),
		packet.AddrFrom4([4]byte{255, 255, 255, 255}), {15: 1}, {0: 0xff, 1: 2, 15: 1},
	} {
		r := newRig(t)
		r.ping(dst, 1, "x")
		if r.Len() != 0 || r.Stats.Bad != 1 {
			t.Errorf("taken: to %v", dst)
		}
	}
	r := newRig(t)
	e := packet.Ends{Src: guest4, Dst: remote4, TTL: 64}
	b := make([]byte, 200)
	r.input(b[:packet.PutEcho(b, &e, false, 1, 1, nil)])
	if r.Len() != 0 || r.Stats.Bad != 1 {
		t.Error("taken: a reply from the guest")
	}
}

// icmpError is an error that the guest has received.
type icmpError struct {
	src, dst   packet.Addr
	typ, code  uint8
	info       uint32
	qsrc, qdst packet.Addr
	qid, qseq  uint16
	qtype      uint8
	qdata      string
}

func (r *rig) errors() []icmpError {
	r.Helper()
	var all []icmpError
	for _, f := range r.host.TakeFrames() {
		var p, q packet.Packet
		if err := p.Decode(f.Data); err != nil {
			r.Fatal(err)
		}
		if !p.ChecksumOK(&packet.Offload{}) {
			r.Error("bad checksum")
		}
		b := p.Payload()
		quoted := append(append([]byte(nil), f.Data[:14]...), b[8:]...)
		if err := q.Decode(append(quoted, make([]byte, 65536)...)); err != nil {
			r.Fatalf("quoted packet: %v", err)
		}
		var e packet.Echo
		if err := e.Decode(q.Payload()[:min(len(q.Payload()), len(b)-8-(q.L4-q.L3))]); err != nil {
			r.Fatal(err)
		}
		all = append(all, icmpError{p.Src, p.Dst, b[0], b[1], binary.BigEndian.Uint32(b[4:]),
			q.Src, q.Dst, e.ID, e.Seq, e.Type, string(e.Payload)})
	}
	return all
}

// The errors that traceroute -I lives by.
func TestErrorQueue(t *testing.T) {
	tests := []struct {
		name   string
		remote packet.Addr
		e      flow.SocketError
		want   icmpError
	}{
		{"time exceeded", remote4, flow.SocketError{Origin: flow.OriginICMP, Type: 11, Offender: router4},
			icmpError{src: router4, typ: 11, qtype: packet.ICMPEchoRequest}},
		{"time exceeded 6", remote6, flow.SocketError{Origin: flow.OriginICMP6, Type: 3, Offender: router6},
			icmpError{src: router6, typ: 3, qtype: packet.ICMPv6EchoRequest}},
		{"host unreachable", remote4, flow.SocketError{Origin: flow.OriginLocal, Errno: syscall.EHOSTUNREACH},
			icmpError{src: our4, typ: 3, code: 1, qtype: packet.ICMPEchoRequest}},
		{"packet too big", remote6, flow.SocketError{Origin: flow.OriginICMP6, Type: 2, Info: 1280, Offender: router6},
			icmpError{src: router6, typ: 2, info: 1280, qtype: packet.ICMPv6EchoRequest}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			r := newRig(t)
			s, token := r.connect(tt.remote)
			tt.e.Buf = message(tt.want.qtype, 0, hostID, 9, "payload")
			s.Errors = []flow.SocketError{tt.e}
			r.Ready(token, flow.Failed)
			w := tt.want
			w.dst, w.qsrc, w.qdst = guestOf(tt.remote), guestOf(tt.remote), tt.remote
			w.qid, w.qseq, w.qdata = guestID, 9, "payload"
			if diff := cmp.Diff([]icmpError{w}, r.errors(), cmp.AllowUnexported(icmpError{})); diff != "" {
				t.Errorf("errors (-want +got):\n%s", diff)
			}
		})
	}
}

// TestRevoke: the flow to a peer ends, and what the guest sends then is asked for
// anew.
func TestRevoke(t *testing.T) {
	r := newRig(t)
	s, _ := r.connect(remote4)
	peer := r.flows.At(0).peer
	r.Revoke(packet.Addr{15: 99})
	if s.Closes != 0 {
		t.Fatal("closed by the name of another")
	}
	r.Revoke(peer)
	if s.Closes != 1 || r.Len() != 0 || r.Stats.Revoked != 1 {
		t.Errorf("closed %d times, %d flows", s.Closes, r.Len())
	}
	r.ping(remote4, 2, "x")
	r.oneOpen()
}

func TestBrokenErrorQueue(t *testing.T) {
	r := newRig(t)
	s, token := r.connect(remote4)
	s.Errors = make([]flow.SocketError, flow.MaxErrors+1)
	r.Ready(token, flow.Failed|flow.Readable)
	if s.Closes != 1 || r.Len() != 0 || r.Stats.Broken != 1 {
		t.Errorf("closed %d times, stats %+v", s.Closes, r.Stats)
	}
}

func TestWriteErrors(t *testing.T) {
	r := newRig(t)
	s, _ := r.connect(remote4)
	s.WriteErrs = []syscall.Errno{syscall.EHOSTUNREACH} // of an earlier request
	s.Errors = []flow.SocketError{{Origin: flow.OriginICMP, Type: 3, Code: 1, Offender: router4, Buf: message(8, 0, hostID, 1, "")}}
	r.ping(remote4, 2, "x")
	if e := r.errors(); len(e) != 1 || e[0].qseq != 1 || len(s.Writes) != 1 {
		t.Errorf("errors %+v, %d writes", e, len(s.Writes))
	}
	s.WriteErrs = []syscall.Errno{syscall.ENETUNREACH, syscall.ENETUNREACH}
	r.ping(remote4, 3, "x")
	if e := r.errors(); len(e) != 1 || e[0].qseq != 3 || e[0].code != 0 || r.Stats.WriteFailed != 1 {
		t.Errorf("errors %+v", e)
	}
	s.WriteErrs = []syscall.Errno{syscall.EAGAIN}
	r.ping(remote4, 4, "x")
	if e := r.errors(); len(e) != 0 || r.Stats.WriteFailed != 2 {
		t.Errorf("errors %+v", e)
	}
}

func TestRefused(t *testing.T) {
	tests := []struct {
		name   string
		e      syscall.Errno
		flags  uint16
		code   uint8
		silent bool
	}{
		{"rules", syscall.EACCES, ipc.OpenedProhibited, packet.ICMPAdminProhibited, false},
		{"ping_group_range", syscall.EACCES, 0, 0, true},
		{"no route", syscall.ENETUNREACH, 0, packet.ICMPNetUnreachable, false},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			r := newRig(t)
			r.ping(remote4, 1, "a")
			r.ping(remote4, 2, "b")
			o := r.oneOpen()
			r.Opened(o.Token, -1, &ipc.Opened{Errno: uint16(tt.e), Flags: tt.flags})
			r.ping(remote4, 3, "c")
			var seqs []uint16
			for _, e := range r.errors() {
				seqs = append(seqs, e.qseq)
				if e.code != tt.code || e.typ != packet.ICMPDestUnreachable || e.src != our4 {
					t.Errorf("error %+v", e)
				}
			}
			want := []uint16{1, 2, 3}
			if tt.silent {
				want = nil
			}
			if diff := cmp.Diff(want, seqs); diff != "" {
				t.Errorf("sequence numbers (-want +got):\n%s", diff)
			}
			if len(r.host.TakeOpens()) != 0 || r.queues.Used() != 0 {
				t.Error("asked again at once, or chunks lost")
			}
			r.advance(1.5)
			r.ping(remote4, 4, "d")
			r.oneOpen()
		})
	}
	r := newRig(t)
	r.ping(remote4, 1, "a")
	r.Opened(r.oneOpen().Token, -1, &ipc.Opened{Errno: uint16(syscall.EMFILE)})
	if r.Len() != 0 || len(r.host.Frames) != 0 {
		t.Error("a lack of descriptors is remembered")
	}
}

// Requests that wait are bounded: of one flow, and of all.
func TestWaitingBounds(t *testing.T) {
	r := newRig(t)
	for seq := range uint16(10) {
		r.ping(remote4, seq, "x")
	}
	s := r.answer(r.oneOpen())
	if len(s.Writes) != maxWaiting || r.Stats.QueueFull != 10-maxWaiting {
		t.Errorf("%d writes, stats %+v", len(s.Writes), r.Stats)
	}
	r.Close()
	r.queues = datagram.NewQueues(store.NewPool(make([]byte, 8*store.ChunkSize)), 3)
	full := r.Stats.QueueFull
	for id := range uint16(5) {
		r.input(r.frame(remote4, id, 1, "x"))
	}
	if n := r.Stats.QueueFull - full; n != 2 || r.queues.Used() != 3 {
		t.Errorf("%d requests dropped, %d chunks used", n, r.queues.Used())
	}
	r.Close()
	if r.queues.Used() != 0 {
		t.Errorf("%d chunks lost", r.queues.Used())
	}
}

// As many of the longest requests as may wait do, whole.
func TestLongestWait(t *testing.T) {
	r := newRig(t)
	long := string(bytes.Repeat([]byte("long"), (65535-20-8)/4))
	for seq := range uint16(maxWaiting) {
		r.ping(remote4, seq, long)
	}
	s := r.answer(r.oneOpen())
	if len(s.Writes) != maxWaiting || r.Stats.QueueFull != 0 {
		t.Fatalf("%d writes, stats %+v", len(s.Writes), r.Stats)
	}
	for k, w := range s.Writes {
		if string(w.Data[headerLen:]) != long || w.Data[7] != byte(k) {
			t.Errorf("request %d: %d bytes", k, len(w.Data))
		}
	}
}

func TestLifetime(t *testing.T) {
	r := newRig(t)
	s, token := r.connect(remote4)
	for range 10 {
		r.advance(50)
		r.ping(remote4, 1, "x")
	}
	for range 10 {
		r.advance(50)
		s.Receive(reply(remote4, 1, "x"), 0)
		r.Ready(token, flow.Readable)
	}
	if r.Len() != 1 {
		t.Fatal("ended while in use")
	}
	r.advance(59)
	if r.Len() != 1 {
		t.Error("ended early")
	}
	r.advance(10)
	if r.Len() != 0 || s.Closes != 1 || r.Stats.Expired != 1 {
		t.Errorf("lives on: stats %+v", r.Stats)
	}
	r.Ready(token, flow.Readable)
}

// A turn is bounded; the timer goes on, or Resume when the link was full.
func TestReceiveTurn(t *testing.T) {
	r := newRig(t)
	s, token := r.connect(remote4)
	for k := range uint16(turnReplies + 5) {
		s.Receive(reply(remote4, k, "x"), 0)
	}
	r.Ready(token, flow.Readable)
	if len(s.Datagrams) != 5 {
		t.Fatalf("%d left", len(s.Datagrams))
	}
	r.advance(0.002)
	if len(s.Datagrams) != 0 || r.more != 0 {
		t.Fatalf("%d left", len(s.Datagrams))
	}
	r.host.LinkRoom = 0
	s.Receive(reply(remote4, 1, "x"), 0)
	r.Ready(token, flow.Readable)
	if len(s.Datagrams) != 1 {
		t.Fatal("read though the link is full")
	}
	r.Resume()
	r.host.LinkRoom = flowtest.Unlimited
	r.Resume()
	if len(s.Datagrams) != 0 || r.more != 0 || r.Stats.ToGuest != turnReplies+6 {
		t.Errorf("%d left, stats %+v", len(s.Datagrams), r.Stats)
	}
	r.advance(61)
	r.advance(10)
	if r.Len() != 0 {
		t.Error("the flow's timer is lost")
	}
}

func TestFullAndClose(t *testing.T) {
	r := newRig(t)
	for id := range uint16(rigFlows + 1) {
		r.input(r.frame(remote4, id, 1, "x"))
	}
	if r.Len() != rigFlows || r.Stats.NoRoom != 1 {
		t.Errorf("%d flows, stats %+v", r.Len(), r.Stats)
	}
	opens := r.host.TakeOpens()
	r.answer(opens[0])
	r.host.WatchErr = syscall.ENOSPC
	r.answer(opens[1])
	r.Close()
	late := r.answer(opens[2])
	if r.Len() != 0 || r.host.OpenSockets() != 0 || late.Closes != 1 || r.queues.Used() != 0 {
		t.Errorf("%d flows, %d sockets", r.Len(), r.host.OpenSockets())
	}
	for id := range uint32(timerBase + rigFlows) {
		if r.wheel.Pending(id) {
			t.Errorf("timer %d is set", id)
		}
	}
	r.host.OpenRoom = 0
	r.ping(remote4, 1, "x")
	if r.Len() != 0 {
		t.Error("a flow that nobody will open")
	}
}

func TestAllocs(t *testing.T) {
	r := newRig(t)
	s, token := r.connect(remote4)
	r.host.Quiet = true
	frame := r.frame(remote4, guestID, 1, "some data")
	fresh := r.frame(remote4, 1, 1, "some data")
	long := reply(remote4, 1, string(make([]byte, 5000)))
	load := make([]flow.Datagram, 1)
	errs := []flow.SocketError{{Origin: flow.OriginICMP, Type: 11, Offender: router4, Buf: message(8, 0, 1, 1, "x")}}
	var p, q packet.Packet
	var e, f packet.Echo
	p.Decode(frame)
	e.Decode(p.Payload())
	q.Decode(fresh)
	f.Decode(q.Payload())
	k := store.MakeKey(&remote4, &guest4, 1, 1)
	if n := testing.AllocsPerRun(100, func() {
		r.Input(&p, nil, &e)
		load[0] = flow.Datagram{Buf: long, N: len(long)}
		s.Datagrams, s.Errors = load, errs
		r.Ready(token, flow.Readable|flow.Failed)
		r.Input(&q, nil, &f)
		i := r.flows.Find(&k)
		r.remove(i, r.flows.At(i))
	}); n != 0 {
		t.Errorf("%v allocations", n)
	}
	if r.Stats.ToGuest == 0 || r.Stats.Errors == 0 {
		t.Errorf("stats %+v", r.Stats)
	}
}

// TestGone: flows whose sockets have lost their address end, and no others.
func TestGone(t *testing.T) {
	r := newRig(t)
	s, _ := r.connect(remote4)
	r.Gone(func(fd int32) bool { return fd != s.FD })
	if s.Closes != 0 {
		t.Fatal("closed, and its address is there")
	}
	r.Gone(func(fd int32) bool { return fd == s.FD })
	if s.Closes != 1 || r.Len() != 0 || r.Stats.Revoked != 0 {
		t.Errorf("closed %d times, %d flows", s.Closes, r.Len())
	}
	r.ping(remote4, 2, "x")
	r.oneOpen()
}
