// SPDX-License-Identifier: Apache-2.0

package link

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"slices"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"aldente/test/vhost/frontend"
	"aldente/worker/packet"
	"aldente/worker/vhostuser"
)

const (
	old     = frontend.FProtocolFeatures
	modern  = old | frontend.FVersion1
	all     = frontend.AllFeatures | frontend.FInOrder
	sumOnly = modern | frontend.FCSUM | frontend.FGuestCSUM
)

// TestVhostUserReceive takes frames in pieces of all sizes. Of what is long and TCP the
// payload stays where it is.
func TestVhostUserReceive(t *testing.T) {
	long, udp := tcpSuper(false, packet.ACK, 0, random(60000), 1448), udpSuper(true, random(30000), 1400)
	for _, features := range []uint64{old, modern, all} {
		for _, piece := range []int{0, 1, 11, 97, 4096} {
			for _, whole := range []bool{false, true} {
				r := newRig(t, frontend.Config{Features: features, Ring: 1024}, 4096)
				r.b.Whole = whole
				r.g.Piece, r.g.Indirect = piece, features&frontend.FIndirectDesc != 0
				if piece > 0 && piece < 97 {
					long.payload, udp.payload = long.payload[:900*piece], udp.payload[:900*piece]
				}
				for name, s := range map[string]*super{"long": long, "UDP": udp} {
					header := make([]byte, vnetLen)
					encodeVirtio(header, &s.o, 0)
					sent := make(chan error, 1)
					frame := slices.Concat(s.headers, s.payload)
					go func() { sent <- r.g.Send(0, header, frame) }()
					got, split := r.receive(sent)
					if len(got) != 1 || !bytes.Equal(got[0], frame) {
						t.Errorf("%s, pieces of %d: %d frames", name, piece, len(got))
					}
					if want := name == "long" && !whole && len(frame) >= splitLeast; split != want {
						t.Errorf("%s, pieces of %d: in pieces: %t", name, piece, split)
					}
				}
			}
		}
	}
}

// receive takes frames until the guest has its buffers back, and tells whether there was
// one that did not come whole.
func (r *rig) receive(sent chan error) (all [][]byte, split bool) {
	r.t.Helper()
	for {
		select {
		case err := <-sent:
			if err != nil {
				r.t.Error(err)
			}
			return all, split
		default:
		}
		for more := r.events() || r.v.Sleep(); more; more = more || r.v.Sleep() {
			more, _ = r.v.Receive(r.b)
			for _, f := range r.b.Frames {
				all = append(all, slices.Concat(append([][]byte{f.Data}, f.More...)...))
				split = split || f.More != nil
			}
		}
		r.v.Flush()
		time.Sleep(20 * time.Microsecond)
	}
}

// TestVhostUserHeadersAreCopied: what the guest writes to its memory while a frame is in
// our hands changes no header of it.
func TestVhostUserHeadersAreCopied(t *testing.T) {
	r := newRig(t, frontend.Config{Features: all}, 4096)
	s := tcpSuper(true, packet.ACK, 3, random(9000), 1448)
	header := make([]byte, vnetLen)
	encodeVirtio(header, &s.o, 0)
	sent := make(chan error, 1)
	go func() { sent <- r.g.Send(0, header, slices.Concat(s.headers, s.payload)) }()
	for deadline := time.Now().Add(5 * time.Second); len(r.b.Frames) == 0 && time.Now().Before(deadline); {
		if r.events() {
			r.v.Receive(r.b)
		}
	}
	if len(r.b.Frames) != 1 || r.b.Frames[0].More == nil {
		t.Fatalf("%d frames", len(r.b.Frames))
	}
	f := r.b.Frames[0]
	before := slices.Clone(f.Data)
	for _, m := range r.g.Mem.Regions {
		clear(r.g.Mem.At(m.Guest, m.Size)[1<<20:]) // buffers, not rings
	}
	for _, p := range f.More {
		clear(p)
	}
	if !bytes.Equal(f.Data, before) || f.Offload.CsumStart != s.o.CsumStart || len(f.Data) < len(s.headers) {
		t.Error("a header has changed")
	}
	r.v.Flush()
	if err := <-sent; err != nil {
		t.Error(err)
	}
}

// flowFrame is a frame of a flow that a port tells from others.
func flowFrame(v6 bool, fromGuest bool, port uint16) []byte {
	e, f := *testEnds(v6), packet.TCPFields{SrcPort: 443, DstPort: port, Flags: packet.ACK, WScale: -1}
	if fromGuest {
		e.Src, e.Dst = e.Dst, e.Src
		f.SrcPort, f.DstPort = f.DstPort, f.SrcPort
	}
	b := make([]byte, packet.MaxHeaders)
	var o packet.Offload
	n := packet.PutTCP(b, &e, &f, 0, &o)
	return b[:max(n, minWire)]
}

// TestVhostUserQueues: a flow is answered on the pair that it came by last, and what
// the guest has not spoken of is spread.
func TestVhostUserQueues(t *testing.T) {
	for _, pairs := range []int{4, vhostuser.MaxPairs} {
		t.Run(fmt.Sprint(pairs), func(t *testing.T) { testQueues(t, pairs) })
	}
}

func testQueues(t *testing.T, pairs int) {
	r := newRig(t, frontend.Config{Features: all, Pairs: pairs}, 4096)
	where := func(v6 bool, port uint16) int {
		b := flowFrame(v6, false, port)
		if !r.v.Send(nil, b, nil) {
			t.Fatal("not sent")
		}
		r.v.Flush()
		for pair := range pairs {
			if _, got, _ := r.g.Receive(pair, 0); got != nil {
				if !bytes.Equal(got, b) {
					t.Error("another frame")
				}
				return pair
			}
		}
		t.Fatal("nobody has got it")
		return 0
	}
	spread := map[int]int{}
	for port := range uint16(500) {
		spread[where(port%2 == 0, 1000+port)]++
	}
	if len(spread) != pairs || spread[0] > 250 {
		t.Errorf("spread over queues: %v", spread)
	}
	for round := range 40 {
		pair, v6 := round*7%pairs, round%2 == 0
		sent := make(chan error, 1)
		go func() { sent <- r.g.Send(pair, nil, flowFrame(v6, true, 50000)) }()
		r.receive(sent)
		if got := where(v6, 50000); got != pair {
			t.Fatalf("answered on pair %d, came by %d", got, pair)
		}
		e := testEnds(v6)
		if room := r.v.Reserve(e, 443, 50000, 54, 100); room == nil || r.v.reserved != &r.v.rx[pair] {
			t.Fatal("room is offered on another pair")
		}
	}
	r.during(func() error { return r.g.EnableRing(6, false) })
	for port := range uint16(100) {
		if pair := where(true, 1000+port); pair == 3 {
			t.Fatal("sent to a ring that is not enabled")
		}
	}
}

// TestVhostUserStops: what is in our hands goes back before a ring stops, so that it
// goes on without a gap, and with a frame neither lost nor twice there.
func TestVhostUserStops(t *testing.T) {
	r := newRig(t, frontend.Config{Features: all, Ring: 64}, 4096)
	s := tcpSuper(false, packet.ACK, 0, random(20000), 1448)
	r.v.Up()
	for range 30 {
		r.check("before", s)
		if r.v.Reserve(testEnds(false), 1, 2, 54, 30000) == nil {
			t.Fatal("no room")
		}
		r.during(r.g.Stop)
		if r.v.CanSend() || r.v.Send(nil, make([]byte, 100), nil) {
			t.Fatal("sent to a ring that has stopped")
		}
		r.during(func() error {
			for i := range r.g.Rings {
				if err := r.g.StartRing(i); err != nil {
					return err
				}
			}
			return nil
		})
		if !r.v.Up() || r.v.Up() {
			t.Fatal("that the guest is up is not told once")
		}
	}
}

// TestVhostUserCallsAgain: a descriptor to call by that is new is called by once, and
// that of a ring that goes on, since nobody knows who has heard the calls before.
func TestVhostUserCallsAgain(t *testing.T) {
	r := newRig(t, frontend.Config{Features: all}, 4096)
	called := func(fd int) bool {
		_, err := unix.Read(fd, make([]byte, 8))
		return err == nil
	}
	var fds []int
	for i := range r.g.Rings {
		fd, err := unix.Eventfd(0, unix.EFD_NONBLOCK|unix.EFD_CLOEXEC)
		if err != nil {
			t.Fatal(err)
		}
		defer unix.Close(fd)
		fds = append(fds, fd)
		called(r.g.Rings[i].CallFD)
		r.during(func() error { return r.g.Do(frontend.SetVringCall, frontend.U64(uint64(i)), fd) })
		r.turn()
		if !called(fd) {
			t.Errorf("ring %d: the new descriptor is not called by", i)
		}
		r.turn()
		if called(fd) {
			t.Errorf("ring %d: called by without a reason", i)
		}
	}
	r.during(r.g.Stop)
	for i := range r.g.Rings {
		called(fds[i])
		r.during(func() error { return restart(r.g.Frontend, i) })
		r.turn()
		if !called(fds[i]) {
			t.Errorf("ring %d goes on without a call", i)
		}
	}
}

// TestVhostUserBroken: a ring that holds what cannot be ends the link with a reason.
func TestVhostUserBroken(t *testing.T) {
	for _, ring := range []int{0, 1} {
		r := newRig(t, frontend.Config{Features: all, Ring: 64}, 4096)
		r.g.Rings[ring].PublishIndex(r.g.Rings[ring].Index() + 100)
		r.g.Rings[ring].ForceKick()
		var err error
		for range 100 {
			r.events()
			r.v.Send(nil, make([]byte, 100), nil)
			if _, err = r.v.Receive(r.b); err != nil {
				break
			}
		}
		if err == nil || r.v.Flush() == nil || r.v.CanSend() {
			t.Errorf("ring %d: %v", ring, err)
		} else if fmt.Sprint(err) == ErrClosed.Error() {
			t.Errorf("ring %d: ends without a reason", ring)
		}
	}
}

// TestVhostUserAllocs: nothing is allocated while frames go both ways.
func TestVhostUserAllocs(t *testing.T) {
	r := newRig(t, frontend.Config{Features: all, Pairs: 2}, 4096)
	s := tcpSuper(false, packet.ACK, 0, random(30000), 1448)
	ends := testEnds(false)
	header := make([]byte, vnetLen)
	encodeVirtio(header, &s.o, 0)
	frame := slices.Concat(s.headers, s.payload)
	for round := range 20 {
		sent := make(chan error, 1)
		go func() { sent <- r.g.Send(round%2, header, frame) }()
		time.Sleep(time.Millisecond)
		r.events()
		if n := testing.AllocsPerRun(1, func() {
			for more := true; more; {
				more, _ = r.v.Receive(r.b)
			}
			r.v.Send(&s.o, s.headers, s.payload[:1000])
			if r.v.Reserve(ends, 40000, 50000, len(s.headers), 20000) != nil {
				r.v.SendReserved(&s.o, s.headers, 20000)
			}
			r.v.Flush()
		}); n != 0 {
			t.Fatalf("%v allocations", n)
		}
		r.receive(sent)
		for _, pair := range []int{0, 1} {
			for header := header; header != nil; {
				header, _ = r.got(pair)
			}
		}
	}
}

// TestVhostMTU: the MTU that a guest is told reaches who makes its frames.
func TestVhostMTU(t *testing.T) {
	r := newRig(t, frontend.Config{Features: frontend.AllFeatures}, 2048)
	r.during(func() error { return r.g.Do(frontend.NetSetMTU, frontend.U64(1400)) })
	if r.mtu != 1400 {
		t.Errorf("told %d", r.mtu)
	}
}

// TestVhostUserKicks: as long as the link is looked at, the guest need not kick; before
// anybody sleeps, it is asked to, and what has come meanwhile is found.
func TestVhostUserKicks(t *testing.T) {
	for name, features := range map[string]uint64{"event index": all, "flags": all &^ frontend.FEventIdx} {
		t.Run(name, func(t *testing.T) {
			r := newRig(t, frontend.Config{Features: features}, 4096)
			ring := r.g.Rings[1]
			sent := func(kicks uint64, waiting bool) {
				t.Helper()
				before := ring.Kicks
				if err := r.g.Put(0, nil, random(100)); err != nil {
					t.Fatal(err)
				}
				if n := ring.Kicks - before; n != kicks || r.v.Waiting() != waiting {
					t.Errorf("%d kicks, want %d; waiting: %t", n, kicks, !waiting)
				}
			}
			taken := func() {
				t.Helper()
				r.events()
				if _, err := r.v.Receive(r.b); err != nil || len(r.b.Frames) != 1 {
					t.Fatalf("%d frames, %v", len(r.b.Frames), err)
				}
				r.v.Flush()
				if err := r.g.Sent(0, 10*time.Second); err != nil {
					t.Fatal(err)
				}
			}
			sent(1, false)
			taken()
			sent(0, true)
			taken()
			if r.v.Waiting() || r.v.Sleep() || r.v.Sleep() {
				t.Error("there is nothing")
			}
			sent(1, false)
			taken()
			sent(0, true)
			if !r.v.Sleep() {
				t.Error("what has come before the link sleeps is not found")
			}
			taken()
		})
	}
}

// TestVhostUserStalledQueue: a queue for which the guest has no buffers holds up what goes by
// others for a moment only. When it has some, that queue is used again.
func TestVhostUserStalledQueue(t *testing.T) {
	r := newRig(t, frontend.Config{Features: all, Pairs: 2, Ring: 8}, 4096)
	for pair := range 2 { // it is answered where it asks
		sent := make(chan error, 1)
		go func() { sent <- r.g.Send(pair, nil, flowFrame(true, true, uint16(1000+pair))) }()
		r.receive(sent)
	}
	send := func(pair int) bool { return r.v.Send(nil, flowFrame(true, false, uint16(1000+pair)), nil) }
	for range 8 {
		if !send(0) {
			t.Fatal("there is room")
		}
	}
	if send(0) || r.v.CanSend() || r.short != 1 {
		t.Fatalf("room %t, told %d times", r.v.CanSend(), r.short)
	}
	if again, room := r.v.Expire(); !again || room || r.v.CanSend() {
		t.Fatalf("again %t, room %t, can send %t", again, room, r.v.CanSend())
	}
	if again, room := r.v.Expire(); again || !room || !r.v.CanSend() {
		t.Fatalf("again %t, room %t, can send %t", again, room, r.v.CanSend())
	}
	if !send(1) || send(0) || !r.v.CanSend() {
		t.Error("the other queue is held up")
	}
	for range 8 {
		r.got(0)
	}
	for n := 0; n < 1000 && r.v.rx[0].short; n++ {
		r.events()
		time.Sleep(time.Millisecond)
	}
	if !send(0) || !r.v.CanSend() || r.v.rx[0].short {
		t.Error("the guest's kick is not heard")
	}
	// Where all are without, there is nobody to be held up.
	for pair := range 2 {
		for send(pair) {
		}
	}
	r.v.Expire()
	if again, room := r.v.Expire(); again || room || r.v.CanSend() {
		t.Errorf("again %t, room %t, can send %t", again, room, r.v.CanSend())
	}
}

// TestVhostUserKicksAgain: where a ring begins again, its guest is asked to kick, whatever whoever
// was before us has asked for.
func TestVhostUserKicksAgain(t *testing.T) {
	r := newRig(t, frontend.Config{Features: all}, 4096)
	ring := r.g.Rings[1]
	r.during(func() error { _, err := r.g.StopRing(1); return err })
	event := r.g.Mem.At(ring.Used+4+8*uint64(ring.Size), 2)
	binary.LittleEndian.PutUint16(event, ring.Index()+100)
	r.during(func() error { return restart(r.g.Frontend, 1) })
	before := ring.Kicks
	if err := r.g.Put(0, nil, random(100)); err != nil || ring.Kicks != before+1 {
		t.Errorf("%d kicks, %v", ring.Kicks-before, err)
	}
}
