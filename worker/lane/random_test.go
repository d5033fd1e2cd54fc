// SPDX-License-Identifier: Apache-2.0

package lane

import (
	"cmp"
	"encoding/binary"
	cmdline "flag"
	"fmt"
	"hash/fnv"
	"math/rand/v2"
	"slices"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"aldente/fuzz"
	"aldente/ipc"
	"aldente/worker/packet"
	"aldente/worker/store"
	"aldente/worker/tcp/tcptest"
)

var (
	worlds = cmdline.Int("worlds", 0, "how many worlds TestRandomWorlds runs; 0: for as long as -span")
	seed   = cmdline.Uint64("seed", 1, "seed of the first of them")
	span   = cmdline.Duration("span", 2*time.Second, "how long TestRandomWorlds runs")
)

// ports of the guest and of remotes.
const (
	guestPort  = 50000
	remotePort = 443
	serverPort = 8080 // on the guest
)

// people fills a world with connections.
func (w *world) people() {
	r := w.r
	addrs := [2][2]packet.Addr{{remote4, guest4}, {remote6, guest6}}
	for k := range 1 + r.IntN(4) {
		a := addrs[r.IntN(2)]
		switch r.IntN(8) {
		default:
			c := w.newConn(a[0], a[1], remotePort, uint16(guestPort+k))
			c.g.Connect()
		case 0, 1: // from the host to the guest
			to, _ := w.offer(0, ipc.ProtoTCP, serverPort)
			total := mostly(r, 200000)
			e, port := w.callWith(to, total, func(port uint16) *conn {
				c := w.newConn(our4, guest4, port, serverPort)
				c.inbound, c.toGuest = true, total
				return c
			})
			w.find(store.MakeKey(&our4, &guest4, port, serverPort)).host = e
		case 2: // past the link
			to, _ := w.offer(ipc.ListenerMayBypass, ipc.ProtoTCP, serverPort+1)
			p := &pair{toNear: mostly(r, 1<<20)}
			w.pairs = append(w.pairs, p)
			p.near, p.port = w.call(to, mostly(r, 1<<20))
		case 3:
			w.newDatagrams(dgrams{guest: a[1], remote: a[0], guestPort: uint16(guestPort + k), remotePort: uint16(1000 + k), fd: -1})
		case 4:
			to, _ := w.offer(0, ipc.ProtoUDP, serverPort)
			for range 1 + r.IntN(2) { // peers that differ by their port only
				s := w.newDatagramSocket()
				port := uint16(s.addr.(*unix.SockaddrInet4).Port)
				w.newDatagrams(dgrams{guest: guest4, remote: our4, guestPort: serverPort, remotePort: port, fd: s.fd, to: to, fromListener: true})
			}
		case 5:
			w.newDatagrams(dgrams{guest: guest4, remote: remote4, guestPort: uint16(k), fd: -1, echo: true})
		}
	}
}

// trouble is what may happen to the link at any time.
func (w *world) trouble() {
	switch w.r.IntN(12) {
	case 0: // the guest does not read for a while
		w.stalled = true
	case 1:
		w.breakLink()
	case 2: // something that is not a frame
		b := make([]byte, 1+w.r.IntN(200))
		for k := range b {
			b[k] = byte(w.r.Uint32())
		}
		if w.kind == ipc.LinkStream && w.r.IntN(3) == 0 && w.peer >= 0 {
			w.tx = append(w.tx, 0xff, 0xff, 0xff, 0xff) // no length
			return
		}
		if w.kind != ipc.LinkStream || len(b) >= packet.EthernetLen {
			w.travel(&w.up, travelling{frame: b})
		}
	case 3: // more frames at a time than the lane takes
		b := make([]byte, 80)
		if w.hasHeader() {
			b = b[:packet.OffloadSize+packet.EthernetLen+46]
		}
		for range 100 + w.r.IntN(300) {
			w.up.queue = append(w.up.queue, travelling{at: w.now, frame: b})
		}
		slices.SortStableFunc(w.up.queue, func(a, b travelling) int { return cmp.Compare(a.at, b.at) })
	case 4:
		w.restart()
	}
}

// recover ends trouble.
func (w *world) recover() {
	if w.stalled {
		w.stalled = false
		w.receive()
		w.turn()
	}
	if w.l.link == nil {
		if w.peer >= 0 {
			unix.Close(w.peer) // the lane has hung up
			w.up.clear()
			w.down.clear()
		}
		w.connectLink()
		w.turn()
	}
}

// listeners withdraws all listeners.
func (w *world) listeners() {
	for id := uint32(1); id <= w.lastID; id++ {
		w.withdraw(id, ipc.ProtoTCP)
		w.withdraw(id, ipc.ProtoUDP)
	}
	w.lastID = 0
}

// live runs a world to its end.
func (w *world) live() {
	w.begins()
	sockets := countSockets(w.t)
	w.people()
	idle := 0
	for steps := 0; !w.over(); steps++ {
		moves := w.moves
		w.disturb()
		w.step()
		if idle++; w.moves != moves {
			idle = 0
			continue
		}
		next := w.next(w.troubleAt, w.recoverAt)
		if next == never && w.over() {
			break
		}
		// Sockets of the loopback interface have a time of their own, of which
		// some has to pass before much of ours does: acknowledgments may be
		// delayed by 40 ms, and a closed window is asked after 200.
		if next == never || next-w.now > 5*second && w.underWay() && w.patience > 0 {
			time.Sleep(time.Millisecond)
			w.patience--
			if idle > 3000 {
				if !w.giveUp() {
					w.t.Fatalf("nobody has anything to wait for: %s", w.state())
				}
				idle = 0 // who hung up has news for the rest
			}
			continue
		}
		w.forgotten()
		if next > w.now {
			w.sleep(next - w.now)
		}
		if w.now-w.begin > 6*3600*second || steps > 100000 {
			w.t.Fatalf("no end after %d s, %d steps: kind %d, %s", (w.now-w.begin)/second, steps, w.kind, w.state())
		}
	}
	w.judge()
	w.counting = false // lists of what was withdrawn may grow
	w.empty(sockets)
}

// begins decides what kind of world it is.
func (w *world) begins() {
	r := w.r
	w.skipped = skippedChallenges(w.t)
	w.loss, w.dup, w.late, w.flip = r.Float64()*0.2, r.Float64()*0.1, r.Float64()*0.3, r.Float64()*0.05
	w.calm = r.IntN(4) == 0
	w.turn()
	w.begin = w.now
	w.troubleAt, w.recoverAt, w.troubles = w.now+r.Int64N(50*ms), never, 1+r.IntN(20)
}

// disturb begins and ends trouble when it is time.
func (w *world) disturb() {
	if w.calm {
		w.troubleAt = never
	}
	if w.now >= w.troubleAt {
		w.trouble()
		w.troubleAt, w.recoverAt = w.now+w.r.Int64N(100*ms), w.now+w.r.Int64N(300*ms)
		if w.troubles--; w.troubles == 0 {
			w.troubleAt = never
		}
	}
	if w.now >= w.recoverAt || w.calm {
		w.recover()
		w.recoverAt = never
	}
}

// step does what is due.
func (w *world) step() {
	w.answer()
	w.turn()
	for _, c := range w.conns {
		w.guestActs(c)
	}
	for _, d := range w.dgrams {
		w.datagramsAct(d)
	}
	w.transmit()
	w.turn()
	for _, e := range w.ends {
		if e.fd >= 0 {
			e.act()
		}
	}
	w.turn()
	w.deliver()
	w.transmit()
	w.turn()
}

// next is when something is due.
func (w *world) next(times ...int64) int64 {
	at := min(w.up.next(), w.down.next(), w.nextOpen())
	if !w.quiet() {
		at = min(at, w.l.wheel.Next())
	}
	for _, t := range times {
		at = min(at, t)
	}
	for _, c := range w.conns {
		if c.at == never && c.g.State == tcptest.Open && (c.g.Unread > 0 || !c.g.Closed) {
			c.at = w.pause(c.slow)
		}
		at = min(at, c.g.Deadline(), c.at, c.abortAt)
	}
	for _, e := range w.ends {
		if e.fd < 0 {
			continue
		}
		if at = min(at, e.resetAt); !e.idle() {
			at = min(at, e.at)
		}
	}
	for _, d := range w.dgrams {
		at = min(at, d.at)
	}
	return at
}

// underWay tells whether bytes are between a host's end and the lane's.
func (w *world) underWay() bool {
	for _, e := range w.ends {
		if e.fd < 0 {
			continue
		}
		n, err := unix.IoctlGetInt(e.fd, unix.SIOCOUTQ)
		if err != nil || n > 0 || e.fin && !e.eof {
			return true
		}
	}
	for _, c := range w.conns {
		if c.host != nil && c.host.left && c.g.State == tcptest.Open && !c.g.GotFIN {
			return true
		}
	}
	return false
}

// quiet tells whether the lane has nothing left.
func (w *world) quiet() bool {
	l := w.l
	return l.tcp.Len() == 0 && l.udp.Len() == 0 && l.icmp.Len() == 0 && l.bypass.Len() == 0 && l.bypass.LenUDP() == 0
}

// forgotten finds what nothing would ever wake the lane for.
func (w *world) forgotten() {
	l := w.l
	connecting := 0
	for _, c := range w.conns {
		if c.refused {
			connecting++ // no timer: the host's kernel gives up in its own time
		}
	}
	if l.tcp.Len()+l.udp.Len() > connecting && len(w.opens) == 0 && l.wheel.Next() == store.NoTimer && l.channel.n == 0 {
		w.t.Fatalf("flows and no timer: %s", w.state())
	}
	if l.more || l.tcp.Pending() || l.udp.Pending() || l.bypass.Pending() {
		w.t.Fatalf("the lane sleeps and has work to do: %s", w.why())
	}
	if l.link == nil || w.peer < 0 {
		return
	}
	if n := l.link.Counters(); n.Received+n.Malformed != w.handed {
		w.t.Fatalf("%d frames were taken of %d", n.Received+n.Malformed, w.handed)
	}
	if l.link.WantWrite() && !w.stalled {
		w.t.Fatal("frames wait for a link that takes them")
	}
}

// over tells whether everybody is done, or gone.
func (w *world) over() bool {
	if len(w.up.queue)+len(w.down.queue)+len(w.opens) > 0 || !w.quiet() || w.l.link == nil || w.stalled {
		return false
	}
	for _, c := range w.conns {
		if c.g.State == tcptest.SynSent || c.g.State == tcptest.SynRcvd {
			return false
		}
	}
	for _, e := range w.ends {
		if !e.over() {
			return false
		}
	}
	for _, d := range w.dgrams {
		if d.at != never {
			return false
		}
	}
	return true
}

// judge asks for the bytes of all connections that nobody has broken.
func (w *world) judge() {
	for _, c := range w.conns {
		h := c.host
		if c.refused || c.expected || h != nil && h.byUs || h == nil && c.inbound {
			continue
		}
		if h == nil {
			w.t.Fatalf("no socket was asked for: %s", w.state())
		}
		if h.received != c.toHost || !h.eof {
			w.t.Fatalf("%d of %d bytes to the host, FIN %t, %+v", h.received, c.toHost, h.eof, *c.g)
		}
		if c.g.Received != c.toGuest || !c.g.GotFIN {
			w.t.Fatalf("%d of %d bytes to the guest, FIN %t: %s", c.g.Received, c.toGuest, c.g.GotFIN, w.state())
		}
		if h.reset {
			w.t.Fatal("the host's side was reset")
		}
	}
	for _, p := range w.pairs {
		if p.refused || p.near.byUs || p.far != nil && p.far.byUs {
			continue
		}
		if p.far == nil || p.near.received != p.toNear || p.far.received != p.near.total || p.near.reset || p.far.reset {
			w.t.Fatalf("past the link: near %+v, far %+v", *p.near, p.far)
		}
	}
}

// empty is how everything ends: nothing held, no timer, no descriptor.
func (w *world) empty(sockets int) {
	w.listeners()
	l := w.l
	if !w.quiet() || l.chunks.Used() != 0 || l.datagrams.Used() != 0 || l.channel.n != 0 || l.channel.outstanding != 0 {
		w.t.Fatalf("left over: %s, %d and %d chunks, %d requests, %d outstanding", w.state(), l.chunks.Used(), l.datagrams.Used(),
			l.channel.n, l.channel.outstanding)
	}
	if w.hear(); len(w.living) != 0 {
		w.t.Fatalf("of flows %v no end was told", w.living)
	}
	if probes := l.link != nil && l.guest.SilentEnd; probes != l.wheel.Pending(l.timer+timerProbe) {
		w.t.Fatalf("the guest is looked after: %v, want %v", !probes, probes)
	}
	l.wheel.Cancel(l.timer + timerProbe)
	l.wheel.Cancel(l.timer + timerShort) // it would look once more
	if next := l.wheel.Next(); next != store.NoTimer {
		w.t.Fatalf("a timer is left over, due in %d ms", (next-w.now)/ms)
	}
	w.breakLink()
	w.hangUp()
	if n := countSockets(w.t); n > sockets-2 { // the link's two were there when we counted
		w.t.Fatalf("%d sockets, %d before", n, sockets-2)
	}
}

// source gives random numbers as bytes say, and goes on by itself when there
// are no more.
type source struct {
	in   []byte
	then *rand.PCG
}

func newSource(in []byte) *source {
	h := fnv.New64a()
	h.Write(in)
	return &source{in, rand.NewPCG(h.Sum64(), 1)}
}

// Uint64 implements rand.Source; two bytes decide what matters of it.
func (s *source) Uint64() uint64 {
	x := s.then.Uint64()
	if len(s.in) >= 2 {
		x = uint64(binary.BigEndian.Uint16(s.in))<<48 | x>>16
		s.in = s.in[2:]
	}
	return x
}

// kinds are all links.
var kinds = []uint8{ipc.LinkTap, ipc.LinkStream, ipc.LinkDatagram, ipc.LinkSeqpacket, ipc.LinkPlainTap, ipc.LinkVhostUser}

func randomWorld(t testing.TB, src rand.Source) *world {
	r := rand.New(src)
	kind := kinds[r.IntN(len(kinds))]
	w := newWorld(t, r, kind, []uint16{1500, 65520}[r.IntN(2)], r.IntN(4) > 0)
	w.staging = true
	return w
}

func runWorld(t testing.TB, src rand.Source) { randomWorld(t, src).live() }

// FuzzLane runs the world that a string of bytes describes.
func FuzzLane(f *testing.F) {
	fuzz.Add(f, []byte{})
	fuzz.Add(f, []byte("\x80\x00\x00\x00\x80\x00\x80\x00"))
	f.Fuzz(func(t *testing.T, in []byte) {
		if len(in) < 1<<14 {
			runWorld(t, newSource(in))
		}
	})
}

// TestRandomWorlds runs one world after the other. A failure names its seed:
// -seed N -worlds 1 repeats it, as far as the kernel's sockets allow.
func TestRandomWorlds(t *testing.T) {
	end := time.Now().Add(*span)
	n := 0
	for ; *worlds == 0 && time.Now().Before(end) || n < *worlds; n++ {
		s := *seed + uint64(n)
		if !t.Run("", func(t *testing.T) { runWorld(t, rand.NewPCG(s, 7)) }) {
			t.Fatalf("seed %d", s)
		}
	}
	if n > 100 && (splits == 0 || direct == 0) {
		t.Error("no frame in pieces")
	}
	t.Logf("%d worlds, %d frames in pieces, %d from reserved memory", n, splits, direct)
}

// state describes a world that went wrong.
func (w *world) state() string {
	l := w.l
	s := fmt.Sprintf("at %d ms: %d TCP, %d UDP, %d echo, %d and %d flows of the bypass", w.now/ms, l.tcp.Len(), l.udp.Len(), l.icmp.Len(), l.bypass.Len(), l.bypass.LenUDP())
	for _, c := range w.conns {
		s += fmt.Sprintf("\nconnection: inbound %t, refused %t, guest %+v", c.inbound, c.refused, *c.g)
		if c.host != nil {
			s += fmt.Sprintf("\n  host: %s", c.host)
		}
	}
	for _, p := range w.pairs {
		s += fmt.Sprintf("\npast the link: %s, %s", p.near, p.far)
	}
	if w.machine != nil {
		s += w.machine.state()
	}
	return s + fmt.Sprintf("\ncan send %t, peek offset %t, tcp %+v\n", l.CanSend(), w.peek, l.tcp.Stats)
}

func (e *end) String() string {
	if e == nil {
		return "none"
	}
	return fmt.Sprintf("descriptor %d, sent %d of %d, FIN %t, received %d, FIN %t, reset %t", e.fd, e.sent, e.total, e.fin, e.received, e.eof, e.reset)
}
