// SPDX-License-Identifier: Apache-2.0

package tcp

import (
	cmdline "flag"
	"math/rand/v2"
	"sort"
	"syscall"
	"testing"

	"aldente/ipc"
	"aldente/worker/packet"
	"aldente/worker/store"
	"aldente/worker/tcp/tcptest"
)

var (
	seeds = cmdline.Int("seeds", 2000, "connections that TestRandomConnections simulates")
	first = cmdline.Uint64("seed", 1, "seed of the first of them")
)

// inFlight is a segment on its way.
type inFlight struct {
	at int64
	s  packet.TCP
}

// network loses, repeats and delays segments in one direction, until calm.
type network struct {
	queue []inFlight
	lost  int // in a row
}

// sim is one connection between the model of a guest and a scripted host, with
// the translator between them.
type sim struct {
	*env
	r    *rand.Rand
	g    *tcptest.Guest
	s    *sock
	down network // to the guest
	up   network

	loss, dup, late float64
	calm            bool
	packets         int

	// What the applications do, and when next.
	guestTotal, hostTotal int
	guestAt, hostAt       int64
	sndBuf                int
	slow                  float64 // of pauses of seconds
	stallAt, resumeAt     int64   // of the link
	resetAt, connectAt    int64
	look                  *sock // where the connection leads that is looked at, nil: none
	switchAt              int64
	answered              int // requests
	batchMax              int
	clean                 bool // nothing is lost, delayed or reset

	edge    uint32 // right edge of our window, as the guest may know it
	lastAck uint32
	started bool
}

var simPool = make([]byte, 96*store.ChunkSize)

// mostly returns small numbers often and large ones now and then.
func mostly(r *rand.Rand, n int) int {
	switch r.IntN(4) {
	case 0:
		return 0
	case 1:
		return r.IntN(n/100 + 2)
	case 2:
		return r.IntN(n/10 + 2)
	}
	return r.IntN(n)
}

func newSim(t testing.TB, seed uint64) *sim {
	r := rand.New(rand.NewPCG(seed, 1))
	mtu := []uint16{1500, 1500, 576, 9000, 65520}[r.IntN(5)]
	opts := []option{withMTU(mtu), withFlows(4), withPool(simPool)}
	if r.IntN(4) == 0 {
		opts = append(opts, withoutPeekOff)
	}
	w := &sim{env: newEnv(t, opts...), r: r, calm: r.IntN(4) == 0}
	w.loss, w.dup, w.late = r.Float64()*0.2, r.Float64()*0.1, r.Float64()*0.3
	w.slow = float64(r.IntN(2)) * 0.02
	w.guestTotal, w.hostTotal = mostly(r, 300000), mostly(r, 300000)
	w.batchMax = 1 + r.IntN(128)
	w.now += int64(r.Uint32()) << 12 // any initial sequence number
	w.wheel.Advance(w.now, nil)
	w.stallAt = never
	if r.IntN(3) == 0 {
		w.stallAt = w.now + int64(r.IntN(20))*ms
	}
	w.resumeAt, w.resetAt, w.connectAt, w.switchAt = never, never, never, never
	if r.IntN(8) == 0 {
		w.resetAt = w.now + int64(r.IntN(200))*ms
	}
	w.clean = w.calm && w.stallAt == never && w.resetAt == never
	w.g = &tcptest.Guest{T: t, Now: &w.now, Rand: r, MSS: int(mtu) - 40, Scale: int8(r.IntN(10)) - 1, WantSACK: r.IntN(4) > 0,
		ISS: r.Uint32(), TSO: r.IntN(2) == 0, Buf: []int{1000, 4000, 65536, 200000, 1 << 20}[r.IntN(5)]}
	w.g.Send = func(s packet.TCP) {
		s.SrcPort, s.DstPort = guestPort, remotePort
		w.travel(&w.up, s)
	}
	w.s = w.newSock()
	w.s.rcvBuf = []int{500, 5000, 70000, 1 << 20}[r.IntN(4)]
	w.sndBuf = []int{100, 3000, 16384, 200000, -1}[r.IntN(5)]
	w.s.txRoom = w.sndBuf
	w.guestAt, w.hostAt = w.now, w.now
	w.onSend = w.sees
	return w
}

// travel puts a segment on its way.
func (w *sim) travel(n *network, s packet.TCP) {
	w.packets++
	if w.packets > 600 {
		w.calm = true
	}
	copies := 1
	if !w.calm {
		if w.r.Float64() < w.loss && n.lost < 3 {
			n.lost++
			return
		}
		if w.r.Float64() < w.dup {
			copies = 2
		}
	}
	n.lost = 0
	for range copies {
		at := w.now + 50_000
		if !w.calm && w.r.Float64() < w.late {
			at += int64(w.r.IntN(int(5 * ms)))
		}
		k := sort.Search(len(n.queue), func(k int) bool { return n.queue[k].at > at })
		n.queue = append(n.queue, inFlight{})
		copy(n.queue[k+1:], n.queue[k:])
		n.queue[k] = inFlight{at, s}
	}
}

func (n *network) next() int64 {
	if len(n.queue) == 0 {
		return never
	}
	return n.queue[0].at
}

func (n *network) take() packet.TCP {
	s := n.queue[0].s
	n.queue = n.queue[1:]
	return s
}

// sees checks each segment as it leaves the translator, before the network has
// its way with it.
func (w *sim) sees(i uint32, f *frame, n int) {
	s, g := &f.tcp, w.g
	if i == store.None || s.Flags&packet.RST != 0 || s.Flags&packet.ACK == 0 {
		return
	}
	c := w.tr.flows.At(i)
	if after(s.Ack, g.Max) {
		w.t.Fatalf("acknowledges %d, the guest has sent up to %d", s.Ack-g.ISS, g.Max-g.ISS)
	}
	right := s.Ack + uint32(s.Window)
	unit := uint32(1)
	if s.Flags&packet.SYN == 0 {
		right = s.Ack + uint32(s.Window)<<c.rcvScale
		unit <<= c.rcvScale
	}
	if w.started && c.state == stateOpen {
		if before(s.Ack, w.lastAck) {
			w.t.Fatalf("acknowledgment moved left, from %d to %d", w.lastAck-g.ISS, s.Ack-g.ISS)
		}
		if notAfter(right+unit, w.edge) {
			w.t.Fatalf("right edge moved left, from %d to %d", w.edge-g.ISS, right-g.ISS)
		}
	} else {
		w.edge = right
	}
	w.started, w.lastAck, w.edge = true, s.Ack, later(w.edge, right)
	for _, x := range s.SACK[:s.NumSACK] {
		if !after(x.Left, s.Ack) || !after(x.Right, x.Left) || after(x.Right, g.Max) {
			w.t.Fatalf("SACK [%d,%d) with ACK %d", x.Left-g.ISS, x.Right-g.ISS, s.Ack-g.ISS)
		}
	}
	if s.Flags&packet.SYN == 0 && after(s.Seq+uint32(n), g.RcvAdv) {
		w.t.Fatalf("sends up to %d, the guest's window ends at %d", s.Seq+uint32(n)-g.IRS, g.RcvAdv-g.IRS)
	}
}

// harvest hands to the network what the translator has sent.
func (w *sim) harvest() {
	for _, f := range w.take() {
		w.travel(&w.down, f.tcp)
	}
}

// step does what is due, and moves the clock to what comes next. It reports
// false when nothing will ever come.
func (w *sim) step() bool {
	w.script()
	w.broker()
	w.applications()
	for k := 0; w.up.next() <= w.now && k < w.batchMax; k++ {
		w.deliverUp(w.up.take())
	}
	w.flush()
	w.settle()
	w.harvest()
	for k := 0; w.down.next() <= w.now; k++ {
		s := w.down.take()
		w.g.Receive(&s)
		if k%8 == 7 {
			w.g.Acknowledge()
		}
	}
	w.g.Acknowledge()
	w.g.Expire()

	w.wake()
	next := min(w.up.next(), w.down.next(), w.g.Deadline(), w.wheel.Next(), w.guestAt, w.hostAt,
		w.stallAt, w.resumeAt, w.resetAt, w.connectAt, w.switchAt)
	if w.answered < len(w.opens) {
		next = w.now
	}
	if next == never {
		return false
	}
	w.now = max(w.now, next)
	w.wheel.Advance(w.now, w.tr.Timer)
	w.settle()
	w.harvest()
	return true
}

// deliverUp gives the translator one segment and checks that what is in order
// and in the window is taken.
func (w *sim) deliverUp(s packet.TCP) {
	k := store.MakeKey(&remote4, &guest4, remotePort, guestPort)
	i := w.tr.flows.Find(&k)
	open := i != store.None && w.tr.flows.At(i).state == stateOpen
	var nxt, edge uint32
	var c *conn
	if open {
		c = w.tr.flows.At(i)
		nxt, edge = c.rcvNxt, c.rcvEdge
		open = !c.has(flagGuestFIN) && s.Flags&(packet.SYN|packet.RST) == 0 && notAfter(s.Seq, nxt)
	}
	w.input(guest4, remote4, s)
	if end := s.Seq + uint32(len(s.Payload)); open && c.state == stateOpen && after(end, nxt) {
		if after(end, edge) {
			end = edge
		}
		if before(c.rcvNxt, end) {
			w.t.Fatalf("bytes up to %d in the window, taken up to %d", end-w.g.ISS, c.rcvNxt-w.g.ISS)
		}
	}
}

// script has the link stall and the connection reset.
func (w *sim) script() {
	if w.now >= w.stallAt {
		w.room, w.unaware = w.r.IntN(3), w.r.IntN(2) == 0
		w.stallAt, w.resumeAt = never, w.now+int64(w.r.IntN(30))*ms
	}
	if w.now >= w.resumeAt {
		w.resumeAt = never
		if w.r.IntN(3) > 0 && !w.calm {
			w.stallAt = w.now + int64(w.r.IntN(20))*ms
		}
		w.open(-1)
	}
	if w.now >= w.resetAt {
		w.resetAt = never
		if w.r.IntN(2) == 0 {
			w.g.Abort()
		} else if w.s.closes == 0 {
			w.s.fail(syscall.ECONNRESET)
			w.g.ResetBy = "host"
		}
	}
}

// pause is when an application acts next.
func (w *sim) pause() int64 {
	if w.r.Float64() < w.slow {
		return w.now + int64(w.r.IntN(int(4*second)))
	}
	return w.now + int64(w.r.IntN(int(2*ms)))
}

func (w *sim) applications() {
	g, s := w.g, w.s
	if w.now >= w.guestAt {
		n := min(w.guestTotal-g.Total, 1+w.r.IntN(60000))
		if g.State == tcptest.Open && !g.Closed {
			g.Write(n, g.Total+n == w.guestTotal)
		}
		g.Read(1 + w.r.IntN(100000))
		w.guestAt = w.pause()
		if g.State == tcptest.Reset || g.Closed && g.Unread == 0 {
			w.guestAt = never
		}
	}
	if w.now >= w.hostAt {
		w.hostAt = w.pause()
		if s.closes > 0 || s.dead {
			w.hostAt = never
			return
		}
		if s.connecting {
			return
		}
		if n := min(w.hostTotal-s.rxEnd, w.r.IntN(60000)); n > 0 {
			s.say(n)
		}
		if s.rxEnd == w.hostTotal && !s.rxFIN && w.r.IntN(3) == 0 {
			s.fin()
		}
		if w.sndBuf >= 0 {
			if n := min(w.sndBuf-s.txRoom, 1+w.r.IntN(50000)); n > 0 {
				s.free(n)
			}
		}
		if s.rxFIN && (w.sndBuf < 0 || s.txRoom == w.sndBuf) {
			w.hostAt = never
		}
	}
}

// wake has an application that had nothing to do look again.
func (w *sim) wake() {
	if w.guestAt == never && w.g.Unread > 0 && w.g.State == tcptest.Open {
		w.guestAt = w.pause()
	}
	if w.hostAt == never && w.s.closes == 0 && !w.s.dead && w.s.txRoom < w.sndBuf {
		w.hostAt = w.pause()
	}
}

// run simulates one connection to its end.
func (w *sim) run() {
	if w.r.IntN(2) == 0 {
		w.g.Connect()
	} else {
		w.listener()
	}
	begin := w.now
	for steps := 0; ; steps++ {
		if !w.step() {
			break
		}
		over := w.tr.Len() == 0 && w.g.State != tcptest.SynSent
		if over && len(w.down.queue)+len(w.up.queue) == 0 {
			break
		}
		if w.now-begin > 4*3600*second || steps > 200000 {
			w.t.Fatalf("no end after %d s, %d steps: %+v", (w.now-begin)/second, steps, *w.g)
		}
		if w.g.ResetBy == "" && w.now-begin > 1200*second {
			w.t.Fatalf("no end after %d s: guest %+v", (w.now-begin)/second, *w.g)
		}
	}
	if w.g.ResetBy == "" || w.g.ResetBy == "translator" {
		if w.s.txTotal != w.guestTotal || !w.s.shut {
			w.t.Fatalf("%d of %d bytes to the host, FIN %t, reset by %q", w.s.txTotal, w.guestTotal, w.s.shut, w.g.ResetBy)
		}
		if w.g.Received != w.hostTotal || !w.g.GotFIN {
			w.t.Fatalf("%d of %d bytes to the guest, FIN %t, reset by %q", w.g.Received, w.hostTotal, w.g.GotFIN, w.g.ResetBy)
		}
		if w.s.aborted {
			w.t.Fatal("the host's side was reset")
		}
	}
	if w.clean && (w.tr.Stats.Retransmits != 0 || w.tr.Stats.Timeouts != 0 || w.g.Timeouts != 0) {
		w.t.Fatalf("sent again over a clean link: %+v, the guest %d times", w.tr.Stats, w.g.Timeouts)
	}
	for _, s := range w.socks {
		if s.listening {
			w.tr.RemoveListener(1)
		}
	}
	w.empty()
}

// broker answers requests after a while: the first with the socket, others,
// which come of segments that were late, with a refusal.
func (w *sim) broker() {
	for ; w.answered < len(w.opens); w.answered++ {
		if w.answered > 0 || w.s.dead {
			w.answer(w.answered, ipc.Opened{Errno: uint16(syscall.ECONNREFUSED)}, nil)
			continue
		}
		if w.r.IntN(4) == 0 {
			w.look = w.newSock()
			w.look.txRoom = []int{-1, 3000}[w.r.IntN(2)]
			w.switchAt = w.now + int64(w.r.IntN(int(2*second)))
			w.answer(0, ipc.Opened{Flags: ipc.OpenedStaged}, w.look)
			continue
		}
		if w.r.IntN(2) == 0 {
			w.answer(0, ipc.Opened{}, w.s)
			continue
		}
		w.s.connecting = true
		w.connectAt = w.now + int64(w.r.IntN(int(2*second)))
		w.answer(0, ipc.Opened{Flags: ipc.OpenedInProgress}, w.s)
	}
	if w.now >= w.switchAt {
		w.switchOver()
	}
	if w.now >= w.connectAt {
		w.connectAt = never
		if !w.s.dead {
			w.s.connected()
		}
	}
}

// switchOver has who looks read, and in the end gives the connection its socket, to which
// as much was written as was read.
func (w *sim) switchOver() {
	if n := 3000 - w.look.txRoom; w.look.txRoom >= 0 && n > 0 && w.look.closes == 0 && w.r.IntN(3) > 0 {
		w.look.free(1 + w.r.IntN(n))
		w.switchAt = w.now + int64(w.r.IntN(int(5*ms)))
		return
	}
	w.switchAt = never
	w.s.txTotal = w.r.IntN(w.look.txTotal + 1)
	if w.g.State == tcptest.Reset {
		w.s.txTotal = 0
	}
	if w.s.peekOff < 0 && w.env.g.Has(ipc.FlagPeekOff4) {
		w.s.peekOff = 0 // the broker's part
	}
	s := ipc.Switch{Token: w.opens[0].Token, Count: uint32(w.s.txTotal)}
	if old := w.tr.Switch(w.s.fd, &s); old >= 0 {
		w.Close(old)
	}
}

// listener has a client on the host connect.
func (w *sim) listener() {
	l := w.listen(1, guestPort)
	if w.r.IntN(2) == 0 {
		w.s.say(min(w.hostTotal, 10))
	}
	l.arrive(w.s, remote4, remotePort)
	w.settle()
	w.harvest()
}

// TestRandomConnections runs many connections over a bad link between slow
// applications. A failure names its seed: -seed N -seeds 1 repeats it.
func TestRandomConnections(t *testing.T) {
	for seed := *first; seed < *first+uint64(*seeds); seed++ {
		if !oneSeed(t, seed) {
			t.Fatalf("seed %d", seed)
		}
	}
}

func oneSeed(t *testing.T, seed uint64) bool {
	defer func() {
		if t.Failed() {
			t.Logf("seed %d", seed)
		}
	}()
	newSim(t, seed).run()
	return !t.Failed()
}
