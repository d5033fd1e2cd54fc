// SPDX-License-Identifier: Apache-2.0

package lane

import (
	"encoding/binary"
	"fmt"
	"math/rand/v2"
	"os"
	"runtime"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"aldente/ipc"
	"aldente/worker/packet"
)

const (
	ms     = int64(1_000_000)
	second = 1000 * ms
	never  = int64(1<<63 - 1)
)

var (
	guest4  = packet.AddrFrom4([4]byte{192, 0, 2, 2})
	our4    = packet.AddrFrom4([4]byte{192, 0, 2, 1})
	remote4 = packet.AddrFrom4([4]byte{198, 51, 100, 7})
	guest6  = packet.Addr{0: 0xfd, 15: 0x15}
	our6    = packet.Addr{0: 0xfd, 15: 0x02}
	remote6 = packet.Addr{0: 0x20, 1: 0x01, 2: 0x0d, 3: 0xb8, 15: 7}

	guestMAC = packet.MAC{2, 0, 0, 0, 0, 1}
	ourMAC   = packet.MAC{0x9a, 0x55, 0x9a, 0x55, 0x9a, 0x55}
)

// world is a lane in the hands of a test, which is its guest, its broker and
// its hosts. Sockets are the kernel's, on the loopback interface; the link is a
// socket pair. The lane's turns are taken by hand, whenever it would wake up
// by itself, and its clock is moved forward to whatever comes next, so that
// hours pass in milliseconds and what the lane forgets stays undone.
type world struct {
	t testing.TB
	r *rand.Rand
	fixture
	now     int64    // the lane's time, and everybody's
	peer    int      // the guest's end of the link; -1: there is none
	machine *machine // that is the guest, where the link is one of rings
	pair    int      // of its queues, whose frames are looked at

	up, down network // frames on their way to the lane and to the guest
	tx, rx   []byte  // a stream link's bytes: to be written, and read so far
	txEnds   []int   // where frames end, counted from the link's beginning
	txDone   int     // bytes written to it
	handed   uint64  // frames written to it
	stalled  bool    // the guest does not read

	conns   []*conn
	pairs   []*pair
	dgrams  []*dgrams
	opens   []open // requests of the lane that wait for an answer
	ends    []*end
	moves   int // things that happened, to see when nothing does
	calm    bool
	staging bool // some flows are looked at first
	packets int
	damaged bool // the frame just made

	watch   func(frame []byte) // sees each frame from the lane before it is understood
	answers int                // frames seen by watch

	counting bool   // allocations in the lane's turns
	allocs   uint64 // found
	told     int    // records with a link or a listener
	settled  int    // of them, what the lane has heard
	curious         // what it was asked

	skipped  string // TCPACKSkippedChallenge when it began
	patience int    // milliseconds that the kernel is given until bytes move

	loss, dup, late, flip float64
	begin                 int64
	troubleAt, recoverAt  int64
	troubles              int // that are still to come
	inbox                 [128 << 10]byte
	pkt                   packet.Packet
	seg                   packet.TCP
}

// fixture is a lane, which serves one world after the other: what one leaves
// behind, the next finds.
type fixture struct {
	l      *Lane
	broker int // our end of the channel
	kind   uint8
	peek   bool
	lastID uint32 // listeners
	reasm  *packet.Reassembler
	// Identifies fragments. The lane may still hold some of the last world, with
	// the same addresses.
	lastFragment uint32
	living       map[uint64]bool // by token: sockets that the lane has, and has not told the end of
}

var fixtures = map[string]*fixture{}

func init() { logFD = -1 }

func newWorld(t testing.TB, r *rand.Rand, kind uint8, mtu uint16, peek bool) *world {
	name := fmt.Sprint(kind, mtu, peek)
	f := fixtures[name]
	if f == nil {
		f = newFixture(t, kind, mtu, peek)
		fixtures[name] = f
	}
	w := &world{t: t, r: r, fixture: *f, peer: -1}
	t.Cleanup(func() {
		if t.Failed() {
			delete(fixtures, name) // there is no telling in which state it is
		} else {
			w.breakLink()
			f.lastID, f.lastFragment = w.lastID, w.lastFragment
		}
		w.hangUp()
	})
	w.clock()
	w.listening()
	w.connectLink()
	return w
}

func newFixture(t testing.TB, kind uint8, mtu uint16, peek bool) *fixture {
	return newFixtureFor(t, kind, mtu, peek, 0)
}

// newFixtureFor makes one that may hold so many descriptors.
func newFixtureFor(t testing.TB, kind uint8, mtu uint16, peek bool, descriptors uint32) *fixture {
	return newFixtureWith(t, kind, mtu, peek, func(c *ipc.Config) { c.MaxFlows = descriptors })
}

// newFixtureWith makes one whose configuration edit changes.
func newFixtureWith(t testing.TB, kind uint8, mtu uint16, peek bool, edit func(*ipc.Config)) *fixture {
	ours, theirs, err := ipc.Pair()
	if err != nil {
		t.Fatal(err)
	}
	cfg := ipc.Config{
		Flags:  ipc.FlagIPv4 | ipc.FlagIPv6 | ipc.FlagTCP | ipc.FlagUDP | ipc.FlagICMP | ipc.FlagDHCP | ipc.FlagNDP | ipc.FlagLoToLo,
		OurMAC: ourMAC, GuestMAC: guestMAC, MTU: mtu, LinkKind: kind, SYNRetry: 6,
		Addr4: guest4, Prefix4: 24, Our4: our4, Addr6: guest6, Prefix6: 64, Our6: our6,
	}
	if peek {
		cfg.Flags |= ipc.FlagPeekOff4 | ipc.FlagPeekOff6
	}
	edit(&cfg)
	send(t, ours, cfg.Encode(), -1)
	send(t, ours, ipc.Empty(ipc.KindStart), -1)
	l, err := New(theirs)
	if err != nil {
		t.Fatal(err)
	}
	if err := unix.SetNonblock(ours, true); err != nil {
		t.Fatal(err)
	}
	l.tellEnds(1 << 16)
	return &fixture{l: l, broker: ours, kind: kind, peek: peek, reasm: packet.NewReassembler(), living: map[uint64]bool{}}
}

func send(t testing.TB, conn int, rec []byte, fd int) {
	t.Helper()
	if err := ipc.Send(conn, rec, fd); err != nil {
		t.Fatalf("to the lane: %v", err)
	}
	if fd >= 0 {
		unix.Close(fd)
	}
}

// tell sends the lane a record, with a descriptor that is the lane's from then
// on.
func (w *world) tell(rec []byte, fd int) {
	var o ipc.Opened
	if o.Decode(rec) == nil && fd >= 0 {
		w.flowBegins(o.Token)
	}
	send(w.t, w.broker, rec, fd)
}

// flowBegins takes note of a socket of the lane's.
func (w *world) flowBegins(token uint64) {
	if w.living[token] {
		w.t.Fatalf("flow %x begins again", token)
	}
	w.living[token] = true
}

// clock notes what time it is for the lane.
func (w *world) clock() { w.now = int64(time.Since(w.l.start)) }

// sleep moves time.
func (w *world) sleep(d int64) {
	w.l.start = w.l.start.Add(-time.Duration(d))
	w.clock()
}

// awake tells whether the lane would wake up now.
func (w *world) awake() bool {
	w.l.tick()
	if w.l.timeout() == 0 || w.l.bypass.MarkTimeout() > 0 {
		return true
	}
	return ready(int(w.l.poll.FD()), unix.POLLIN, 0) || w.l.rest() // before it sleeps
}

func ready(fd int, events int16, wait int) bool {
	p := []unix.PollFd{{Fd: int32(fd), Events: events}}
	for {
		if n, err := unix.Poll(p, wait); err != unix.EINTR {
			return err == nil && n > 0
		}
	}
}

// turn has the lane take turns until it would sleep.
func (w *world) turn() {
	w.askAgain()
	for k := 0; w.awake(); k++ {
		w.take()
		if w.l.err != nil {
			w.t.Fatalf("the lane ended: %v", w.l.err)
		}
		w.moves++
		w.hear()
		w.receive()
		if k > 2000 {
			if !w.stalled {
				w.t.Fatalf("the lane never sleeps: %s, %s", w.why(), w.state())
			}
			return
		}
	}
	w.clock()
}

// why tells what keeps the lane awake.
func (w *world) why() string {
	l := w.l
	s := fmt.Sprintf("time-out %d, patience %d, pending TCP %t, UDP %t, bypass %t", l.timeout(), l.bypass.MarkTimeout(), l.tcp.Pending(),
		l.udp.Pending(), l.bypass.Pending())
	for k := range l.poll.Wait(0, false) {
		events, token := l.poll.At(k)
		s += fmt.Sprintf(", events %#x for %#x", events, token)
	}
	return s
}

// take is one turn of the lane, in which it may not allocate anything: the few
// that change its link or its listeners excepted.
func (w *world) take() {
	defer w.splitFrames()
	if !w.counting {
		w.l.turn()
		return
	}
	var before, after runtime.MemStats
	link, told := w.l.link, w.told
	runtime.ReadMemStats(&before)
	w.l.turn()
	runtime.ReadMemStats(&after)
	if n := after.Mallocs - before.Mallocs; n > 0 && w.l.link == link && told == w.settled {
		w.allocs += n
	}
	w.settled = told
}

// connectLink gives the lane a new link.
func (w *world) connectLink() {
	w.machineGone()
	if w.kind == ipc.LinkVhostUser {
		w.connectMachine()
		return
	}
	typ := unix.SOCK_STREAM
	switch w.kind {
	case ipc.LinkTap, ipc.LinkPlainTap, ipc.LinkSeqpacket:
		typ = unix.SOCK_SEQPACKET // a descriptor that takes and gives whole frames
	case ipc.LinkDatagram:
		typ = unix.SOCK_DGRAM
	}
	fds, err := unix.Socketpair(unix.AF_UNIX, typ|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		w.t.Fatal(err)
	}
	if w.isTap() {
		unix.SetsockoptInt(fds[0], unix.SOL_SOCKET, unix.SO_SNDBUFFORCE, 8<<20)
	} else if w.kind != ipc.LinkStream {
		unix.SetsockoptInt(fds[0], unix.SOL_SOCKET, unix.SO_SNDBUF, []int{70 << 10, 1 << 20}[w.r.IntN(2)]) // takes each frame, if not many
	} else if n := []int{0, 8 << 10, 64 << 10}[w.r.IntN(3)]; n > 0 {
		unix.SetsockoptInt(fds[0], unix.SOL_SOCKET, unix.SO_SNDBUF, n) // writes end in the middle of frames
	}
	w.peer = fds[1]
	w.told++
	w.tx, w.rx, w.txEnds, w.txDone, w.handed = nil, nil, nil, 0, 0
	w.tell((&ipc.Link{Kind: w.kind, Offload: unix.TUN_F_CSUM | unix.TUN_F_TSO4 | unix.TUN_F_TSO6 | unix.TUN_F_USO4 | unix.TUN_F_USO6}).Encode(), fds[0])
}

// isTap tells whether the link is a tap, with a header before each frame or without.
func (w *world) isTap() bool { return w.kind == ipc.LinkTap || w.kind == ipc.LinkPlainTap }

// hasHeader tells whether there is a header before each frame.
func (w *world) hasHeader() bool { return w.kind == ipc.LinkTap || w.kind == ipc.LinkVhostUser }

func (w *world) machineGone() {
	if w.machine != nil {
		w.machine.gone()
		w.machine = nil
	}
}

// untold tells whether the guest may leave checksums and cutting to hardware, and nobody
// is told.
func (w *world) untold() bool { return !w.isTap() && w.kind != ipc.LinkVhostUser }

// breakLink ends the guest's side. What was on its way is lost.
func (w *world) breakLink() {
	if w.peer < 0 {
		return
	}
	if w.l.link == nil {
		w.turn() // it has yet to hear of this one
	}
	unix.Close(w.peer)
	w.peer = -1
	w.machineGone()
	w.up.clear()
	w.down.clear()
	if w.isTap() {
		w.l.linkGone(unix.EBADFD) // a socket pair does not end as a tap does
	}
	if w.l.guest.SilentEnd && w.l.link != nil {
		w.l.probed = w.l.link.Counters().Sent
		w.l.probe() // whose time would be far away
		w.l.finish()
	}
	w.turn()
	if w.l.link != nil {
		w.t.Fatal("the link's end went unnoticed")
	}
}

// hear takes what the lane tells its broker.
func (w *world) hear() {
	for {
		n, _, err := unix.Recvfrom(w.broker, w.inbox[:], unix.MSG_DONTWAIT)
		if err == unix.EAGAIN {
			return
		}
		if err != nil || n == 0 {
			w.t.Fatalf("the lane's channel: %d, %v", n, err)
		}
		w.moves++
		b := w.inbox[:n]
		kind, err := ipc.FromWorker.Check(b, false, ipc.Running)
		if err != nil {
			w.t.Fatal(err)
		}
		size := int(binary.LittleEndian.Uint16(b[2:])) // several of a kind may be in a message
		for ; len(b) > 0; b = b[size:] {
			w.heard(kind, b[:size])
		}
	}
}

func (w *world) heard(kind ipc.Kind, rec []byte) {
	switch kind {
	case ipc.KindOpen:
		var o ipc.Open
		if err := o.Decode(rec); err != nil {
			w.t.Fatal(err)
		}
		at := w.now
		if w.r.IntN(3) == 0 {
			at += w.r.Int64N(200 * ms)
		}
		w.opens = append(w.opens, open{at: at, Open: o})
	case ipc.KindEvent:
		var e ipc.Event
		if err := e.Decode(rec); err != nil {
			w.t.Fatal(err)
		}
	case ipc.KindFlow, ipc.KindFigures, ipc.KindAnswered:
		w.answerHeard(kind, rec)
	case ipc.KindAccepted:
		var a ipc.Accepted
		if err := a.Decode(rec); err != nil {
			w.t.Fatal(err)
		}
		w.flowBegins(a.Token)
	case ipc.KindEnded:
		var e ipc.Ended
		if err := e.Decode(rec); err != nil {
			w.t.Fatal(err)
		}
		if !w.living[e.Token] {
			w.t.Fatalf("flow %x ends, which has not begun or has ended: %+v", e.Token, e)
		}
		delete(w.living, e.Token)
	default:
		w.t.Fatalf("the lane sends a record of kind %d", kind)
	}
}

// hangUp closes what is left open of the others' ends.
func (w *world) hangUp() {
	for _, e := range w.ends {
		e.close()
	}
	for _, d := range w.dgrams {
		if d.fd >= 0 {
			unix.Close(d.fd)
			d.fd = -1
		}
	}
	if w.peer >= 0 {
		unix.Close(w.peer)
		w.peer = -1
	}
	w.machineGone()
}

// countSockets counts the process's sockets.
func countSockets(t testing.TB) int {
	dir, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	n := 0
	for _, e := range dir {
		if l, _ := os.Readlink("/proc/self/fd/" + e.Name()); strings.HasPrefix(l, "socket:") {
			n++
		}
	}
	return n
}
