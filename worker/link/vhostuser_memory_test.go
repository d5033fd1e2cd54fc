// SPDX-License-Identifier: Apache-2.0

package link

import (
	"bytes"
	"fmt"
	"runtime/debug"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"aldente/test/vhost/frontend"
	"aldente/worker/packet"
	"aldente/worker/vhostuser"
)

// small is a frame that is not shown to the guest before the turn ends, of a flow by port.
func small(port uint16) []byte {
	b := make([]byte, packet.MaxHeaders)
	var o packet.Offload
	n := packet.PutTCP(b, testEnds(true), &packet.TCPFields{SrcPort: 443, DstPort: port, Flags: packet.ACK, WScale: -1}, 0, &o)
	return b[:max(n, minWire)]
}

// TestVhostUserMemoryTakenAway has the memory go under rings in which frames lie that the guest
// was not told of: whichever ring is found to be gone first, none is written to.
func TestVhostUserMemoryTakenAway(t *testing.T) {
	r := newRig(t, frontend.Config{Features: all, Pairs: 4}, 4096)
	for port := range uint16(100) {
		if !r.v.Send(nil, small(port), nil) {
			t.Fatal("not sent")
		}
	}
	fd, err := frontend.Memfd(1 << 20)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(fd)
	elsewhere := append(frontend.U32s(1, 0), frontend.DescribeRegion(0, 1<<20, 1<<40, 0)...)
	if err := r.g.Conn.Send(frontend.SetMemTable, 0, elsewhere, fd); err != nil {
		t.Fatal(err)
	}
	defer debug.SetPanicOnFault(debug.SetPanicOnFault(true))
	defer func() {
		if fault := recover(); fault != nil {
			t.Fatalf("memory is used that is not there any more: %v", fault)
		}
	}()
	r.events()
	if _, err := r.v.Receive(r.b); err == nil || fmt.Sprint(err) == ErrClosed.Error() {
		t.Errorf("rings outside the memory: %v", err)
	}
	r.v.Flush()
	for i := range 2 * vhostuser.MaxPairs {
		if q := r.v.queueAt(i); q.started && q.Err() == nil {
			t.Errorf("ring %d is in use", i)
		}
	}
	r.v.Close()
}

// TestVhostUserRingMoves tells of the addresses of a ring once more while it runs, as QEMU
// does where a machine is about to move: frames that the guest was not told of before
// come all the same, and no buffer is lost.
func TestVhostUserRingMoves(t *testing.T) {
	r := newRig(t, frontend.Config{Features: all, Ring: 16}, 4096)
	ring := r.g.Rings[0]
	addr := frontend.VringAddr(0, 0, r.g.Mem.User(ring.Desc), r.g.Mem.User(ring.Used), r.g.Mem.User(ring.Avail), 0)
	for round := range uint16(20) {
		for port := range uint16(3) {
			if !r.v.Send(nil, small(100*round+port), nil) {
				t.Fatalf("round %d: not sent", round)
			}
		}
		if err := r.g.Conn.Send(frontend.SetVringAddr, 0, addr); err != nil {
			t.Fatal(err)
		}
		r.events()
		if _, err := r.v.Receive(r.b); err != nil {
			t.Fatal(err)
		}
		for port := range uint16(3) {
			if _, got := r.got(0); !bytes.Equal(got, small(100*round+port)) {
				t.Fatalf("round %d: frame %d is lost", round, port)
			}
		}
	}
}

// TestVhostUserFeaturesAgain: however often a front end says what its guest can do, that takes
// no memory. The collector is off in a worker.
func TestVhostUserFeaturesAgain(t *testing.T) {
	r := newRig(t, frontend.Config{Features: old}, 4096)
	if n := testing.AllocsPerRun(20, func() {
		r.v.SetFeatures(old)
		r.v.SetFeatures(0)
	}); n != 0 {
		t.Errorf("%v allocations", n)
	}
	before := &r.v.bounce[0]
	conn, file, err := frontend.Pair()
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	fd, err := unix.Dup(int(file.Fd()))
	if err != nil {
		t.Fatal(err)
	}
	file.Close()
	r.v.Close()
	next := NewVhostUser(r.v, int32(fd), 1500).(*vhostUser)
	if next.SetFeatures(old); &next.bounce[0] != before {
		t.Error("the next link takes memory of its own")
	}
	next.Close()
	fd, err = unix.Dup(0) // of the rig, for it to close
	if err != nil {
		t.Fatal(err)
	}
	*r.v = *NewVhostUser(nil, int32(fd), 1500).(*vhostUser)
}

// unwatched is a Watcher that has no room.
type unwatched struct{ Watcher }

func (unwatched) WatchLink(int32, uint32) syscall.Errno { return syscall.ENOSPC }

// TestVhostUserUnwatched: a ring whose kicks cannot be watched is looked at in every turn.
func TestVhostUserUnwatched(t *testing.T) {
	r := newRig(t, frontend.Config{Features: all}, 4096)
	r.during(r.g.Stop)
	r.v.watcher = unwatched{r}
	defer func() { r.v.watcher = r }()
	r.g.Conn.Turn = nil // turns are taken here
	done := make(chan error, 1)
	frame := small(1)
	go func() {
		if err := restart(r.g.Frontend, 1); err != nil {
			done <- err
		}
		done <- r.g.Send(0, nil, frame)
	}()
	n := 0
	for end := time.Now().Add(10 * time.Second); time.Now().Before(end); r.v.Flush() {
		r.v.Ready(0)
		more, err := r.v.Receive(r.b)
		if err != nil {
			t.Fatal(err)
		}
		if r.v.tx[0].started && !more {
			t.Fatal("no turn follows")
		}
		if n += len(r.b.Frames); len(r.b.Frames) > 0 && !bytes.Equal(r.b.Frames[0].Data, frame) {
			t.Error("another frame")
		}
		select {
		case err := <-done:
			if err != nil || n != 1 {
				t.Errorf("%d frames, %v", n, err)
			}
			return
		default:
		}
	}
	t.Error("the frame is not taken")
}

// TestVhostUserKickForNothing: what a kick was for, small frames have taken already. The guest
// is to kick again all the same, with an index of events too.
func TestVhostUserKickForNothing(t *testing.T) {
	for _, features := range []uint64{all, all &^ frontend.FEventIdx} {
		r := newRig(t, frontend.Config{Features: features, Ring: 16}, 2048)
		for port := range uint16(16) {
			if !r.v.Send(nil, small(port), nil) {
				t.Fatal("not sent")
			}
		}
		if r.v.Reserve(testEnds(true), 1, 2, 74, 20000) != nil || r.v.CanSend() {
			t.Fatal("a full ring has room")
		}
		r.got(0) // one buffer is offered again
		if !r.v.Send(nil, small(1), nil) {
			t.Fatal("one buffer is none")
		}
		tries := 0
		for end := time.Now().Add(5 * time.Second); time.Now().Before(end); time.Sleep(100 * time.Microsecond) {
			if r.events(); !r.v.CanSend() {
				continue
			}
			if r.v.Reserve(testEnds(true), 1, 2, 74, 20000) != nil {
				break // who waits goes on
			}
			if tries++; tries > 1 {
				t.Fatalf("features %#x: no room twice", features)
			}
			for range 16 {
				r.got(0)
			}
		}
		if !r.v.CanSend() {
			t.Errorf("features %#x: nobody hears of the room that there is", features)
		}
	}
}

// TestVhostUserHalfARing: a driver may keep half of its ring's buffers until it has more. Who
// asks for room for more than there is then, and sends nothing, does not wait for it.
func TestVhostUserHalfARing(t *testing.T) {
	r := newRig(t, frontend.Config{Features: all, Ring: 16}, 2048)
	for port := range uint16(7) {
		if !r.v.Send(nil, small(port), nil) {
			t.Fatal("not sent")
		}
	}
	if room := r.v.Reserve(testEnds(true), 1, 2, 74, 60000); room == nil || !r.v.CanSend() {
		t.Fatalf("room for %d pieces, can send %t", len(room), r.v.CanSend())
	}
	segments := newRig(t, frontend.Config{Features: modern, Ring: 16}, 2048)
	for port := range uint16(7) {
		if !segments.v.Send(nil, small(port), nil) {
			t.Fatal("not sent")
		}
	}
	s := tcpSuper(true, packet.ACK, 0, random(15000), 1000)
	if segments.v.Send(&s.o, s.headers, s.payload) || !segments.v.CanSend() || segments.v.counters.Sent != 16 {
		t.Errorf("can send %t, %d sent", segments.v.CanSend(), segments.v.counters.Sent)
	}
}

// TestVhostUserLateBuffers: a driver offers buffers after its ring has begun. A frame that fits into
// more of them than are left waits for these.
func TestVhostUserLateBuffers(t *testing.T) {
	r := newRig(t, frontend.Config{Features: all, Ring: 16}, 2048)
	r.v.rx[0].most = 0 // as it is where the ring was empty
	for port := range uint16(14) {
		if !r.v.Send(nil, small(port), nil) {
			t.Fatal("not sent")
		}
	}
	long := append(small(99), random(7000)...)
	if r.v.Send(nil, long, nil) || r.v.CanSend() || r.v.counters.Refused != 0 {
		t.Fatalf("can send %t, %+v", r.v.CanSend(), r.v.counters)
	}
	for range 14 {
		r.got(0)
	}
	for range 100 {
		if r.events(); r.v.CanSend() {
			break
		}
		time.Sleep(time.Millisecond)
	}
	if !r.v.Send(nil, long, nil) {
		t.Error("not sent with room")
	}
}
