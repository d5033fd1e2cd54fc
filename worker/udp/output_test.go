// SPDX-License-Identifier: Apache-2.0

package udp

import (
	"bytes"
	"fmt"
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

func sent(s *flowtest.Socket) []string {
	var all []string
	for _, b := range s.Sent() {
		all = append(all, string(b))
	}
	return all
}

// The first datagram asks for a socket; everything sent before that came
// leaves in order, with its own TTL, empty datagrams too.
func TestOpenAndDrain(t *testing.T) {
	for _, remote := range []packet.Addr{remote4, remote6} {
		r := newRig(t)
		r.say(remote, "one")
		o := r.oneOpen()
		guest := guest6
		if remote.Is4() {
			guest = guest4
		}
		want := ipc.Open{Token: o.Token, Proto: ipc.ProtoUDP, Src: guest, Dst: remote, SrcPort: 1000, DstPort: 2000}
		if diff := cmp.Diff(want, o); diff != "" {
			t.Errorf("request (-want +got):\n%s", diff)
		}
		if owner, _, _ := flow.SplitToken(o.Token); owner != flow.OwnerUDP {
			t.Errorf("token of owner %d", owner)
		}
		r.ttl, r.tos = 1, 0xb8
		r.say(remote, "")
		r.ttl = 2
		r.say(remote, "three")
		r.Flush()
		if n := len(r.host.TakeOpens()); n != 0 {
			t.Errorf("%d more requests", n)
		}
		s := r.answer(o)
		if !s.Watched || s.Token != o.Token {
			t.Errorf("socket watched %v under %x, want %x", s.Watched, s.Token, o.Token)
		}
		r.say(remote, "four")
		r.Flush()
		if diff := cmp.Diff([]string{"one", "", "three", "four"}, sent(s)); diff != "" {
			t.Errorf("sent (-want +got):\n%s", diff)
		}
		var ttls []int
		for _, w := range s.Writes {
			ttls = append(ttls, w.TTL+w.Hop)
		}
		if diff := cmp.Diff([]int{0, 1, 2, 2}, ttls); diff != "" {
			t.Errorf("TTL (-want +got):\n%s", diff)
		}
		if tos := s.Writes[3].TOS; tos != 0xb8 {
			t.Errorf("traffic class %#x", tos)
		}
		r.check()
	}
}

// Whatever is queued arrives whole and in order, as long as it was taken; the
// pool gets all its chunks back.
func TestQueue(t *testing.T) {
	r := newRig(t)
	port := uint16(0)
	rapid.Check(t, func(rt *rapid.T) {
		port++
		full := r.Stats.QueueFull
		var want []string
		for k := range rapid.IntRange(1, 60).Draw(rt, "datagrams") {
			n := rapid.OneOf(rapid.IntRange(0, 40), rapid.IntRange(0, 20000), rapid.Just(65507)).Draw(rt, "size")
			data := bytes.Repeat([]byte{byte(k), byte(n), byte(n >> 8)}, n/3+1)[:n]
			r.input(r.frame(remote4, port, 2000, data), 0)
			if r.Stats.QueueFull == full {
				want = append(want, string(data))
			}
			full = r.Stats.QueueFull
		}
		o := r.oneOpen()
		s := r.answer(o)
		if got := sent(s); !slices.Equal(got, want) {
			rt.Fatalf("%d datagrams sent, want %d", len(got), len(want))
		}
		if r.pool.Used() != 0 {
			rt.Fatalf("%d chunks still in use", r.pool.Used())
		}
		r.check()
		r.Close()
	})
}

// A queue is bounded, whatever the guest sends, and so are all together.
func TestQueueBounds(t *testing.T) {
	r := newRig(t)
	for port := range uint16(rigOwn) {
		for range 40 {
			r.input(r.frame(remote4, 1+port, 2000, make([]byte, 16000)), 0)
		}
		if _, c := r.find(remote4, 1+port); c.queue.Chunks() > datagram.MaxQueue {
			t.Fatalf("%d chunks in one queue", c.queue.Chunks())
		}
	}
	if used := r.pool.Used(); used != rigChunks/queuePoolPart {
		t.Errorf("%d chunks used", used)
	}
	r.Close()
	if r.pool.Used() != 0 {
		t.Errorf("%d chunks lost", r.pool.Used())
	}
}

func (r *rig) find(remote packet.Addr, port uint16) (uint32, *conn) {
	g := guest4
	if !remote.Is4() {
		g = guest6
	}
	k := store.MakeKey(&remote, &g, 2000, port)
	i := r.flows.Find(&k)
	if i == store.None {
		r.Fatalf("no flow from port %d", port)
	}
	return i, r.flows.At(i)
}

// Batches never change what the far end receives: for each flow the same
// datagrams in the same order and with the same TTL, whatever path MTU the
// kernel finds, and never in a write that it would refuse.
func TestBatches(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		r := newRig(t)
		flows := rapid.IntRange(1, numBatches+4).Draw(rt, "flows")
		type sentAs struct {
			data string
			ttl  int
		}
		want := make([][]sentAs, flows)
		socks := make([]*flowtest.Socket, flows)
		path := rapid.SampledFrom([]int{0, 0, 100, 1400}).Draw(rt, "path")
		for f := range flows {
			r.input(r.frame(remote4, uint16(1+f), 2000, []byte("x")), 0)
			socks[f] = r.answer(r.oneOpen())
			socks[f].Writes, socks[f].Path = nil, path
			socks[f].Options[flow.OptionTTL] = 64
		}
		sizes := rapid.SampledFrom([]int{0, 1, 99, 100, 101, 1400, 1401, 9000, 65507})
		for k := range rapid.IntRange(1, 120).Draw(rt, "frames") {
			f := rapid.IntRange(0, flows-1).Draw(rt, "flow")
			size := sizes.Draw(rt, "size")
			r.ttl = rapid.SampledFrom([]uint8{64, 64, 64, 3}).Draw(rt, "ttl")
			n, gso := size, 0
			if size > 0 && size < 30000 && rapid.Bool().Draw(rt, "super-frame") {
				gso = size
				n = rapid.IntRange(1, min(65507, 100*size)).Draw(rt, "bytes")
			}
			data := bytes.Repeat([]byte(fmt.Sprintf("%d,", k)), n/2+1)[:n]
			r.input(r.frame(remote4, uint16(1+f), 2000, data), gso)
			for first := true; first || len(data) > 0; first = false {
				one := data[:min(size, len(data))]
				data = data[len(one):]
				want[f] = append(want[f], sentAs{string(one), int(r.ttl)})
			}
			if rapid.IntRange(0, 30).Draw(rt, "flush") == 0 {
				r.Flush()
			}
		}
		r.Flush()
		for f, s := range socks {
			var got []sentAs
			for _, w := range s.Writes {
				if w.Segment > 0 && len(w.Data) > w.Segment && len(w.Data) > datagram.MaxWrite {
					rt.Fatalf("a write of %d bytes", len(w.Data))
				}
				for _, d := range (&flowtest.Socket{Writes: []flowtest.Write{w}}).Sent() {
					got = append(got, sentAs{string(d), w.TTL})
				}
			}
			if !slices.Equal(got, want[f]) {
				rt.Fatalf("flow %d: %d datagrams, want %d; stats %+v", f, len(got), len(want[f]), r.Stats)
			}
		}
		r.check()
		r.Close()
	})
}

// Equal datagrams really leave together, and the option is set only once.
func TestBatchIsOneWrite(t *testing.T) {
	r := newRig(t)
	a, _ := r.connect(remote4)
	b, _ := r.connect(remote6)
	for range 10 {
		r.say(remote4, string(make([]byte, 1200)))
		r.say(remote6, string(make([]byte, 1300)))
	}
	r.say(remote4, "last")
	r.Flush()
	if len(a.Writes) != 1 || a.Writes[0].Segment != 1200 || len(a.Writes[0].Data) != 12004 {
		t.Errorf("%d writes", len(a.Writes))
	}
	if len(b.Writes) != 1 || b.Writes[0].Segment != 1300 {
		t.Errorf("%d writes", len(b.Writes))
	}
	for range 100 {
		r.say(remote4, string(make([]byte, 1200)))
	}
	r.say(remote4, "alone")
	r.Flush()
	if len(a.Writes) != 3 || a.SetCalls != 4 {
		t.Errorf("%d writes, %d options set", len(a.Writes), a.SetCalls)
	}
	a.Writes = nil
	for range 2 * datagram.MaxSegments {
		r.say(remote4, "short")
	}
	r.Flush()
	if len(a.Writes) != 2 || a.SetCalls != 5 {
		t.Errorf("%d writes of short datagrams, %d options set", len(a.Writes), a.SetCalls)
	}
	if r.Stats.ToHost != 2+21+101+2*datagram.MaxSegments {
		t.Errorf("%d datagrams counted", r.Stats.ToHost)
	}
}

// Once the kernel has refused to cut to a size, it is not asked again.
func TestSegmentRefused(t *testing.T) {
	r := newRig(t)
	s, _ := r.connect(remote4)
	s.Path = 1000
	for range 3 {
		for range 4 {
			r.say(remote4, string(make([]byte, 1400)))
		}
		r.Flush()
	}
	if len(s.Writes) != 12 {
		t.Errorf("%d writes", len(s.Writes))
	}
	if s.SetCalls != 5 { // to 1400 and back, buffers, and that they may be cut
		t.Errorf("%d options set", s.SetCalls)
	}
	for range 4 {
		r.say(remote4, string(make([]byte, 500)))
	}
	r.Flush()
	if len(s.Writes) != 13 {
		t.Errorf("%d writes after smaller datagrams", len(s.Writes))
	}
}

func TestWriteErrors(t *testing.T) {
	refused := flow.SocketError{Errno: syscall.ECONNREFUSED, Origin: flow.OriginICMP,
		Type: packet.ICMPDestUnreachable, Code: packet.ICMPPortUnreachable, Offender: remote4, Buf: []byte("first")}
	tests := []struct {
		name    string
		errs    []syscall.Errno
		queue   []flow.SocketError
		sent    int
		failed  uint64
		reports int
	}{
		{"none", nil, nil, 1, 0, 0},
		{"full", []syscall.Errno{syscall.EAGAIN}, nil, 0, 1, 0},
		{"pending error", []syscall.Errno{syscall.ECONNREFUSED}, []flow.SocketError{refused}, 1, 0, 1},
		{"pending error, no details", []syscall.Errno{syscall.EHOSTUNREACH}, nil, 1, 0, 0},
		{"no route", []syscall.Errno{syscall.ENETUNREACH, syscall.ENETUNREACH}, nil, 0, 1, 1},
		{"forbidden by the host", []syscall.Errno{syscall.EPERM}, nil, 0, 1, 1},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			r := newRig(t)
			s, _ := r.connect(remote4)
			s.WriteErrs, s.Errors = tt.errs, tt.queue
			r.say(remote4, "second")
			r.Flush()
			if len(s.Writes) != tt.sent || r.Stats.WriteFailed != tt.failed {
				t.Errorf("%d writes, %d failed", len(s.Writes), r.Stats.WriteFailed)
			}
			if n := len(r.errors()); n != tt.reports {
				t.Errorf("%d errors to the guest, want %d", n, tt.reports)
			}
		})
	}
}

func TestInputDropped(t *testing.T) {
	a4 := func(a, b, c, d byte) packet.Addr { return packet.AddrFrom4([4]byte{a, b, c, d}) }
	tests := []struct {
		name string
		dst  packet.Addr
		port uint16
		ttl  uint8
		want Stats
	}{
		{"loopback", a4(127, 1, 2, 3), 2000, 64, Stats{NotUnicast: 1}},
		{"loopback 6", packet.Addr{15: 1}, 2000, 64, Stats{NotUnicast: 1}},
		{"unspecified", a4(0, 0, 0, 0), 2000, 64, Stats{NotUnicast: 1}},
		{"multicast", a4(224, 0, 0, 251), 5353, 64, Stats{NotUnicast: 1}},
		{"multicast 6", packet.Addr{0: 0xff, 1: 2, 15: 1}, 5353, 64, Stats{NotUnicast: 1}},
		{"broadcast", a4(255, 255, 255, 255), 2000, 64, Stats{NotUnicast: 1}},
		{"directed broadcast", a4(10, 0, 0, 255), 2000, 64, Stats{NotUnicast: 1}},
		{"port zero", remote4, 0, 64, Stats{BadSource: 1}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			r := newRig(t)
			r.ttl = tt.ttl
			r.input(r.frame(tt.dst, 1000, tt.port, []byte("x")), 0)
			r.Flush()
			if r.Len() != 0 || len(r.host.Opens) != 0 || len(r.host.Frames) != 0 {
				t.Errorf("%d flows, %d requests, %d frames", r.Len(), len(r.host.Opens), len(r.host.Frames))
			}
			if diff := cmp.Diff(tt.want, r.Stats); diff != "" {
				t.Errorf("stats (-want +got):\n%s", diff)
			}
		})
	}
	// Sources.
	for _, src := range []packet.Addr{a4(127, 0, 0, 1), a4(224, 0, 0, 1), a4(255, 255, 255, 255), a4(0, 0, 0, 0)} {
		r := newRig(t)
		p := packet.Packet{IPVersion: 4, TTL: 64, Src: src, Dst: remote4, Proto: packet.ProtoUDP}
		r.Input(&p, nil, &packet.UDP{SrcPort: 1, DstPort: 2})
		if r.Len() != 0 || r.Stats.BadSource != 1 {
			t.Errorf("source %v taken", src)
		}
	}
}

// What only looks like the broadcast address of the guest's network is none.
func TestDirectedBroadcastOnlyThat(t *testing.T) {
	r := newRig(t)
	r.say(packet.AddrFrom4([4]byte{10, 0, 0, 254}), "x")
	r.say(packet.AddrFrom4([4]byte{10, 0, 1, 255}), "x")
	if r.Len() != 2 {
		t.Errorf("%d flows", r.Len())
	}
}

func TestNoRoomAtBroker(t *testing.T) {
	r := newRig(t)
	r.host.OpenRoom = 0
	r.say(remote4, "x")
	if r.Len() != 0 || r.Stats.NoRoom != 1 {
		t.Errorf("%d flows", r.Len())
	}
	r.host.OpenRoom = 1
	r.say(remote4, "x")
	if r.Len() != 1 {
		t.Errorf("%d flows", r.Len())
	}
}

func TestOutputAllocs(t *testing.T) {
	r := newRig(t)
	s, _ := r.connect(remote4)
	_ = s
	r.host.Quiet = true
	var p packet.Packet
	var u packet.UDP
	var o packet.Offload
	frame := r.frame(remote4, 1000, 2000, make([]byte, 1200))
	fresh := r.frame(remote4, 1001, 2000, make([]byte, 1200))
	p.Decode(frame)
	u.Decode(p.Payload())
	if n := testing.AllocsPerRun(200, func() {
		for range 70 {
			r.Input(&p, &o, &u)
		}
		r.Flush()
	}); n != 0 {
		t.Errorf("%v allocations for datagrams to a socket", n)
	}
	p.Decode(fresh)
	u.Decode(p.Payload())
	if n := testing.AllocsPerRun(200, func() {
		for range 70 {
			r.Input(&p, &o, &u)
		}
		r.Flush()
		i, c := r.find(remote4, 1001)
		r.remove(i, c)
	}); n != 0 {
		t.Errorf("%v allocations for new flows", n)
	}
}

// A flow that ends while its datagrams are written takes nothing more: neither what
// was to be collected behind them nor what is alone.
func TestEndsWhileWritten(t *testing.T) {
	for name, next := range map[string]string{"another size": string(make([]byte, 300)), "alone": ""} {
		r := newRig(t)
		s, _ := r.connect(remote4)
		for range 3 {
			r.say(remote4, string(make([]byte, 200)))
		}
		s.WriteErrs = []syscall.Errno{syscall.ECONNREFUSED}
		s.Errors = make([]flow.SocketError, flow.MaxErrors+1) // cannot be emptied
		r.say(remote4, next)
		r.Flush()
		if r.Len() != 0 || s.Closes != 1 || len(s.Writes) != 0 || r.Stats.Broken != 1 || r.Stats.WriteFailed != 3 {
			t.Errorf("%s: %d flows, %d writes: %+v", name, r.Len(), len(s.Writes), r.Stats)
		}
		r.check()
		r.Sweep()
	}
}

// A datagram that goes alone and finds no room is counted as lost.
func TestAloneLost(t *testing.T) {
	r := newRig(t)
	s, _ := r.connect(remote4)
	s.WriteErrs = []syscall.Errno{syscall.EAGAIN}
	r.say(remote4, "")
	r.say(remote4, "")
	r.Flush()
	if len(s.Writes) != 1 || r.Stats.WriteFailed != 1 {
		t.Errorf("%d writes: %+v", len(s.Writes), r.Stats)
	}
}
