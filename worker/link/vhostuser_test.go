// SPDX-License-Identifier: Apache-2.0

package link

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"slices"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"aldente/ipc"
	"aldente/test/vhost/frontend"
	"aldente/worker/packet"
)

// rig is a link of rings, and a front end with a guest at the other end of them. The
// descriptors that the link asks for are looked at here, as the lane would.
type rig struct {
	t     testing.TB
	v     *vhostUser
	g     *frontend.Guest
	b     *Batch
	kicks map[int32]uint32
	mtu   int // that was told
}

func (r *rig) WatchLink(fd int32, sub uint32) syscall.Errno {
	if _, is := r.kicks[fd]; is {
		r.t.Errorf("descriptor %d is watched already", fd)
	}
	r.kicks[fd] = sub
	return 0
}

func (r *rig) UnwatchLink(fd int32) {
	if _, is := r.kicks[fd]; !is {
		r.t.Errorf("descriptor %d is not watched", fd)
	}
	delete(r.kicks, fd)
}

// NewInflight is the broker's to do.
func (r *rig) NewInflight(int, int, int, int) error { return syscall.ENOSYS }

// SetMTU notes it.
func (r *rig) SetMTU(mtu int) { r.mtu = mtu }

// newRig negotiates. Buffers for frames to the guest have size bytes.
func newRig(t testing.TB, c frontend.Config, size int) *rig {
	t.Helper()
	conn, file, err := frontend.Pair()
	if err != nil {
		t.Fatal(err)
	}
	fd, err := unix.Dup(int(file.Fd()))
	if err != nil {
		t.Fatal(err)
	}
	file.Close()
	unix.SetNonblock(fd, true)
	r := &rig{t: t, v: New(&ipc.Link{Kind: ipc.LinkVhostUser}, int32(fd), 1500, nil).(*vhostUser), b: NewBatch(), kicks: map[int32]uint32{}}
	r.v.Attach(r)
	if c.Protocol == 0 {
		c.Protocol = frontend.AllProtocol
	}
	var f *frontend.Frontend
	r.during(func() (err error) {
		if f, err = frontend.New(conn, c); err != nil {
			return err
		}
		if r.g, err = frontend.NewGuest(f, size); err != nil {
			return err
		}
		return f.Start()
	})
	t.Cleanup(func() {
		r.v.Close()
		f.Close()
		if len(r.kicks) != 0 {
			t.Errorf("%d descriptors are watched for ever", len(r.kicks))
		}
	})
	r.turn()
	return r
}

// during has the front end do something that it is answered for.
func (r *rig) during(f func() error) {
	r.t.Helper()
	done := make(chan error, 1)
	go func() { done <- f() }()
	for {
		select {
		case err := <-done:
			if err != nil {
				r.t.Fatal(err)
			}
			return
		default:
			r.turn()
			time.Sleep(50 * time.Microsecond)
		}
	}
}

// turn takes what there is, and returns copies of the frames.
func (r *rig) turn() (all [][]byte) {
	receive := r.events()
	for more := receive; more; {
		var err error
		if more, err = r.v.Receive(r.b); err != nil {
			r.t.Logf("the link ends: %v", err)
			break
		}
		for _, f := range r.b.Frames {
			all = append(all, slices.Concat(append([][]byte{f.Data}, f.More...)...))
		}
	}
	r.v.Flush()
	return all
}

// events gives the link what has happened.
func (r *rig) events() (receive bool) {
	fds := []unix.PollFd{{Fd: r.v.fd, Events: unix.POLLIN}}
	subs := []uint32{0}
	for fd, sub := range r.kicks {
		fds, subs = append(fds, unix.PollFd{Fd: fd, Events: unix.POLLIN}), append(subs, sub)
	}
	unix.Poll(fds, 0)
	for i := range fds {
		if fds[i].Revents == 0 {
			continue
		}
		if i > 0 {
			unix.Read(int(fds[i].Fd), make([]byte, 8))
		}
		got, _ := r.v.Ready(subs[i])
		receive = receive || got
	}
	return receive
}

// got is the next frame that the guest has received; nil: there is none.
func (r *rig) got(pair int) (header, frame []byte) {
	r.t.Helper()
	r.v.Flush()
	header, frame, err := r.g.Receive(pair, time.Millisecond)
	if err != nil && !os.IsTimeout(err) {
		r.t.Fatal(err)
	}
	return header, frame
}

const (
	old     = frontend.FProtocolFeatures
	modern  = old | frontend.FVersion1
	all     = frontend.AllFeatures | frontend.FInOrder
	sumOnly = modern | frontend.FCSUM | frontend.FGuestCSUM
)

// TestVhostUserSend sends super-frames and others to guests that can do more or less:
// what a guest cannot do is done for it.
func TestVhostUserSend(t *testing.T) {
	frames := map[string]*super{
		"TCP, IPv4": tcpSuper(false, packet.ACK|packet.PSH|packet.FIN, 0, random(60001), 1448),
		"TCP, IPv6": tcpSuper(true, packet.ACK|packet.CWR, 2, random(50000), 1400),
		"UDP, IPv4": udpSuper(false, random(40001), 1472), "UDP, IPv6": udpSuper(true, random(3000), 1000),
		"one": tcpSuper(false, packet.ACK, 0, random(1001), 1448), "empty": tcpSuper(true, packet.ACK, 1, nil, 1448),
	}
	for name, features := range map[string]uint64{
		"none": old, "version 1": modern, "sums": sumOnly, "merged": modern | frontend.FMrgRxbuf, "all": all,
		"no event index": all &^ frontend.FEventIdx, "no USO": all &^ (frontend.FGuestUSO4 | frontend.FGuestUSO6),
		"unmerged": all &^ frontend.FMrgRxbuf,
	} {
		t.Run(name, func(t *testing.T) {
			for _, size := range []int{2048, 4096, 1 << 16} {
				r := newRig(t, frontend.Config{Features: features, Ring: 128}, size)
				for kind, s := range frames {
					if small := 14 * int(s.o.GSOSize); len(s.payload) > small && (size == 1<<16 || r.g.Features&frontend.FMrgRxbuf == 0) {
						less := *s // there are but 16 buffers
						s = &less
						s.payload = s.payload[:small+1]
					}
					r.check(kind, s)
				}
			}
		})
	}
}

// check sends a frame and looks at what becomes of it.
func (r *rig) check(kind string, s *super) {
	r.t.Helper()
	o := s.o
	whole := len(s.payload) <= int(o.GSOSize)
	if whole {
		o.GSOType, o.GSOSize = packet.GSONone, 0
	}
	if !r.v.Send(&o, slices.Clone(s.headers), s.payload) {
		r.t.Errorf("%s: not sent: %+v", kind, r.v.counters)
		return
	}
	frame := slices.Concat(s.headers, s.payload)
	frame = append(frame, make([]byte, max(0, minWire-len(frame)))...)
	f := r.g.Features
	takes := map[uint8]uint64{
		packet.GSOTCPv4: frontend.FGuestTSO4, packet.GSOTCPv6: frontend.FGuestTSO6,
		packet.GSOUDPL4: frontend.FGuestUSO4 | frontend.FGuestUSO6,
	}[o.GSOType]
	want := [][]byte{frame}
	flags := uint8(packet.OffloadNeedsChecksum)
	switch {
	case f&frontend.FGuestCSUM == 0 && whole:
		own := o
		packet.CompleteChecksum(frame[:len(s.headers)+len(s.payload)], &own)
		flags = 0
	case !whole && f&(takes|frontend.FGuestCSUM) != takes|frontend.FGuestCSUM:
		want, flags = cutAll(r.t, s, MaxFrame), 0
	}
	for k, w := range want {
		header, got := r.got(0)
		if header == nil {
			r.t.Errorf("%s: frame %d of %d is not there", kind, k, len(want))
			return
		}
		w = append(w, make([]byte, max(0, minWire-len(w)))...)
		var h packet.Offload
		decodeVirtio(header, &h)
		if h.Flags != flags || flags != 0 && (h.GSOType != o.GSOType || h.CsumStart != o.CsumStart || h.CsumOffset != o.CsumOffset || h.GSOSize != o.GSOSize) {
			r.t.Errorf("%s: header %+v, of %+v", kind, h, o)
		}
		if !bytes.Equal(got, w) {
			r.t.Errorf("%s: frame %d of %d: %d bytes, want %d", kind, k, len(want), len(got), len(w))
		}
		if f&frontend.FMrgRxbuf == 0 && len(header) == vnetLen && binary.LittleEndian.Uint16(header[10:]) != 1 {
			r.t.Errorf("%s: header %x", kind, header)
		}
	}
	if header, _ := r.got(0); header != nil {
		r.t.Errorf("%s: one frame too many", kind)
	}
}

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
		for more := r.events(); more; {
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

// TestVhostUserReserve has payload written to where the guest finds it.
func TestVhostUserReserve(t *testing.T) {
	for _, size := range []int{1 << 16, 4096, 1500, 400} {
		r := newRig(t, frontend.Config{Features: all, Ring: 1024}, size)
		for round := range 50 {
			s := tcpSuper(round%2 == 0, packet.ACK, 0, random(1+round*1300%65000), 1448)
			ends := testEnds(round%2 == 0)
			room := r.v.Reserve(ends, 40000, 50000, len(s.headers), len(s.payload))
			left := s.payload
			for _, b := range room {
				left = left[copy(b, left):]
			}
			if len(left) > 0 {
				t.Fatalf("buffers of %d: %d bytes have no room, of %d", size, len(left), len(s.payload))
			}
			switch round % 5 {
			case 3: // nothing comes of it
				continue
			case 4: // another frame is sent in between
				r.check("between", tcpSuper(true, packet.ACK, 0, random(100), 1448))
				if r.v.SendReserved(&s.o, s.headers, 1) {
					t.Error("what was reserved before another frame is sent")
				}
				continue
			}
			n := len(s.payload) - round%3*(len(s.payload)/7)
			if !r.v.SendReserved(&s.o, s.headers, n) {
				t.Fatal("not sent")
			}
			want := slices.Concat(s.headers, s.payload[:n])
			if _, got := r.got(0); !bytes.Equal(got, append(want, make([]byte, max(0, minWire-len(want)))...)) {
				t.Errorf("buffers of %d: %d bytes, want %d", size, len(got), len(s.headers)+n)
			}
		}
	}
}

// TestVhostUserReserveCopies: to a guest that takes segments, as many are sent as it has
// buffers for.
func TestVhostUserReserveCopies(t *testing.T) {
	for _, features := range []uint64{old, modern, sumOnly, modern | frontend.FMrgRxbuf, all &^ frontend.FGuestTSO6} {
		for _, size := range []int{800, 2000, 4096} {
			r := newRig(t, frontend.Config{Features: features}, size)
			for round := range 60 {
				s := tcpSuper(true, packet.ACK, 0, random(9000+3000*(round%20)), 1440)
				room := r.v.Reserve(testEnds(true), 40000, 50000, len(s.headers), len(s.payload))
				if len(room) != 1 || len(room[0]) < 1440 {
					t.Fatalf("features %#x: room for %d pieces", features, len(room))
				}
				n := copy(room[0], s.payload)
				if n < len(s.payload) {
					n -= n % 1440
				}
				s.payload = s.payload[:n]
				if !r.v.SendReserved(&s.o, s.headers, n) {
					t.Fatalf("features %#x, buffers of %d: %d bytes not sent: %+v", features, size, n, r.v.counters)
				}
				whole := cutAll(t, s, MaxFrame)
				for k, w := range whole {
					if _, got := r.got(0); !bytes.Equal(got, w) {
						t.Fatalf("features %#x: segment %d of %d: %d bytes", features, k, len(whole), len(got))
					}
				}
			}
		}
	}
}

// TestVhostUserFull: a guest that takes nothing is not sent more than it has buffers
// for, and says by a kick that it has more.
func TestVhostUserFull(t *testing.T) {
	for _, features := range []uint64{modern, all, all &^ frontend.FEventIdx, all &^ frontend.FMrgRxbuf} {
		r := newRig(t, frontend.Config{Features: features, Ring: 8}, 4096)
		s := tcpSuper(false, packet.ACK, 0, random(1000), 1448)
		s.o.GSOType = packet.GSONone
		n := 0
		for n < 100 && r.v.Send(&s.o, slices.Clone(s.headers), s.payload) {
			n++
		}
		if n != 8 || r.v.CanSend() || r.v.counters.Dropped != 1 || r.v.counters.Sent != 8 {
			t.Fatalf("features %#x: %d frames, can send %t, %+v", features, n, r.v.CanSend(), r.v.counters)
		}
		if room := r.v.Reserve(testEnds(false), 1, 2, 54, 9000); room != nil {
			t.Fatalf("features %#x: room for %d pieces", features, len(room))
		}
		for range 3 {
			r.got(0)
		}
		for range 100 {
			if r.events(); r.v.CanSend() {
				break
			}
			time.Sleep(time.Millisecond)
		}
		if !r.v.CanSend() {
			t.Fatalf("features %#x: the guest's kick is not heard", features)
		}
		for n = 0; n < 100 && r.v.Send(&s.o, slices.Clone(s.headers), s.payload); n++ {
		}
		if n != 3 {
			t.Errorf("features %#x: %d frames into 3 buffers", features, n)
		}
	}
}

// TestVhostUserQueues: a flow is answered on the pair that it came by last, and what
// the guest has not spoken of is spread.
func TestVhostUserQueues(t *testing.T) {
	r := newRig(t, frontend.Config{Features: all, Pairs: 4}, 4096)
	frame := func(v6 bool, fromGuest bool, port uint16) []byte {
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
	where := func(v6 bool, port uint16) int {
		b := frame(v6, false, port)
		if !r.v.Send(nil, b, nil) {
			t.Fatal("not sent")
		}
		for pair := range 4 {
			if _, got := r.got(pair); got != nil {
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
	for port := range uint16(200) {
		spread[where(port%2 == 0, 1000+port)]++
	}
	if len(spread) != 4 || spread[0] > 100 {
		t.Errorf("spread over queues: %v", spread)
	}
	for round := range 40 {
		pair, v6 := round*7%4, round%2 == 0
		sent := make(chan error, 1)
		go func() { sent <- r.g.Send(pair, nil, frame(v6, true, 50000)) }()
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

// restart has a ring go on that has stopped. The descriptor for calls is the one before.
func restart(f *frontend.Frontend, i int) error {
	r, index := f.Rings[i], uint32(i)
	return errors.Join(
		f.Do(frontend.SetVringNum, frontend.U32s(index, uint32(r.Size))),
		f.Do(frontend.SetVringBase, frontend.U32s(index, uint32(r.UsedIndex()))),
		f.Do(frontend.SetVringAddr, frontend.VringAddr(index, 0, f.Mem.User(r.Desc), f.Mem.User(r.Used), f.Mem.User(r.Avail), 0)),
		f.Do(frontend.SetVringKick, frontend.U64(uint64(index)), r.KickFD),
	)
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
