// SPDX-License-Identifier: Apache-2.0

package tcp

import (
	"syscall"
	"testing"

	"aldente/ipc"
	"aldente/worker/flow"
	"aldente/worker/link"
	"aldente/worker/packet"
	"aldente/worker/store"
	"aldente/worker/tcp/tcptest"
)

var (
	guest4  = packet.AddrFrom4([4]byte{10, 0, 2, 15})
	our4    = packet.AddrFrom4([4]byte{10, 0, 2, 2})
	remote4 = packet.AddrFrom4([4]byte{198, 51, 100, 7})
	guest6  = packet.Addr{0: 0xfd, 15: 0x15}
	our6    = packet.Addr{0: 0xfd, 15: 0x02}
	remote6 = packet.Addr{0: 0x20, 1: 0x01, 2: 0x0d, 3: 0xb8, 15: 7}

	guestMAC = packet.MAC{2, 0, 0, 0, 0, 1}
	ourMAC   = packet.MAC{0x9a, 0x55, 0x9a, 0x55, 0x9a, 0x55}
)

const (
	guestPort  = 50000
	remotePort = 443
	firstFD    = 100
)

// frame is one packet as it leaves for the guest, cut to size.
type frame struct {
	src, dst packet.Addr
	tcp      packet.TCP
	icmp     []byte // an ICMP or ICMPv6 message instead of a segment
}

// env is a lane without a kernel: a clock that the test moves, sockets that it
// scripts, a link that can be made to take nothing.
type env struct {
	t     testing.TB
	now   int64
	tr    *Translator
	g     flow.Guest
	wheel *store.Wheel
	pool  *store.Pool

	socks  []*sock
	opens  []ipc.Open
	noOpen bool // the queue of requests is full

	limited int  // bytes to sockets that a limit counts
	room    int  // frames the link takes; -1: any number
	unaware bool // the link finds out that it is full when it is written to
	lost    int  // frames refused by the link
	frames  []frame
	onSend  func(i uint32, f *frame, whole int) // before the frame is queued

	noWatch syscall.Errno
	pkt     packet.Packet // scratch of Input
	check   packet.Packet // scratch of Send
	direct  direct
	batch   [][]byte // payloads to spoil at the end of the batch
	inputs  int      // segments given to the translator
}

type option func(*envConfig)

type envConfig struct {
	flags  uint64
	mtu    uint16
	link   uint8
	flows  int
	chunks int
	pool   []byte
}

func withoutPeekOff(c *envConfig) { c.flags &^= ipc.FlagPeekOff4 | ipc.FlagPeekOff6 }
func withMTU(n uint16) option     { return func(c *envConfig) { c.mtu = n } }
func withLink(kind uint8) option  { return func(c *envConfig) { c.link = kind } }
func withFlows(n int) option      { return func(c *envConfig) { c.flows = n } }
func withChunks(n int) option     { return func(c *envConfig) { c.chunks = n } }
func withPool(mem []byte) option  { return func(c *envConfig) { c.pool = mem } }

// tapReserve is mostReserve on a tap.
var tapReserve = mostReserve(&flow.Guest{Traits: link.TraitsOf(ipc.LinkTap)})

func newEnv(t testing.TB, opts ...option) *env {
	t.Helper()
	cfg := envConfig{
		flags: ipc.FlagIPv4 | ipc.FlagIPv6 | ipc.FlagTCP | ipc.FlagPeekOff4 | ipc.FlagPeekOff6,
		mtu:   1500, link: ipc.LinkTap, flows: 8, chunks: 512,
	}
	for _, o := range opts {
		o(&cfg)
	}
	if cfg.pool == nil {
		cfg.pool = make([]byte, cfg.chunks*store.ChunkSize)
	}
	e := &env{t: t, now: 1e9, room: -1}
	e.g.Config = ipc.Config{
		Flags: cfg.flags, OurMAC: ourMAC, MTU: cfg.mtu, LinkKind: cfg.link, Our4: our4, Our6: our6, SYNRetry: 6,
		Addr4: guest4, Addr6: guest6,
	}
	e.g.Traits = link.TraitsOf(cfg.link)
	e.g.MAC, e.g.Seen4, e.g.Seen6 = guestMAC, guest4, guest6
	e.wheel = store.NewWheel(cfg.flows, e.now)
	e.pool = store.NewPool(cfg.pool)
	e.tr = New(e, &e.g, e.wheel, 0, e.pool, cfg.flows)
	e.tr.isn0, e.tr.isn1 = 1, 2 // so that a failure can be repeated
	e.tr.quickReplies = 0       // so that every segment's acknowledgment is seen at once
	return e
}

// isnAt moves the clock, forward, so that the flow that is opened next under
// key k starts at iss on our side.
func (e *env) isnAt(k store.Key, iss uint32) {
	e.advance(int64(iss-e.tr.isn(&k)) << 12)
}

func (e *env) Now() int64    { return e.now }
func (e *env) CanSend() bool { return e.room != 0 || e.unaware }

func (e *env) Open(r *ipc.Open) bool {
	if e.noOpen {
		return false
	}
	e.opens = append(e.opens, *r)
	return true
}

// Send checks the frame as a careful receiver would and cuts a super-frame.
func (e *env) Send(o *packet.Offload, headers, payload []byte) bool {
	e.direct.reserved = nil
	if e.room == 0 {
		e.lost++
		e.unaware = false
		return false
	}
	if e.room > 0 {
		e.room--
	}
	whole := append(append(make([]byte, 0, len(headers)+len(payload)), headers...), payload...)
	p := &e.check
	if err := p.Decode(whole); err != nil {
		e.t.Fatalf("frame to the guest does not decode: %v", err)
	}
	if p.SrcMAC != ourMAC || p.DstMAC != e.g.MAC {
		e.t.Fatalf("frame from %x to %x", p.SrcMAC, p.DstMAC)
	}
	if p.Proto != packet.ProtoTCP {
		e.frames = append(e.frames, frame{src: p.Src, dst: p.Dst, icmp: p.Payload()})
		return true
	}
	f := frame{src: p.Src, dst: p.Dst}
	if err := f.tcp.Decode(p.Payload()); err != nil {
		e.t.Fatalf("segment to the guest does not decode: %v", err)
	}
	e.checkOffload(o, p, &f, whole)
	k := store.MakeKey(&f.src, &f.dst, f.tcp.SrcPort, f.tcp.DstPort)
	e.unheard(nil, &k, f.tcp.Flags)
	if e.onSend != nil {
		e.onSend(e.tr.flows.Find(&k), &f, len(f.tcp.Payload))
	}
	e.cut(&f, int(o.GSOSize))
	return true
}

func (e *env) checkOffload(o *packet.Offload, p *packet.Packet, f *frame, whole []byte) {
	n := len(f.tcp.Payload)
	mss := e.g.LinkMTU() - (p.L4 - p.L3) - 20
	switch {
	case o.Flags&packet.OffloadNeedsChecksum == 0:
		e.t.Fatal("segment without checksum offload")
	case o.GSOType == packet.GSONone:
		if n > mss {
			e.t.Fatalf("%d bytes without segmentation, link takes %d", n, mss)
		}
		packet.CompleteChecksum(whole, &packet.Offload{
			Flags: o.Flags, CsumStart: o.CsumStart, CsumOffset: o.CsumOffset, HdrLen: o.HdrLen})
		if !p.ChecksumOK(&packet.Offload{}) {
			e.t.Fatal("bad checksum")
		}
	case int(o.GSOSize) >= n || int(o.GSOSize) > mss:
		e.t.Fatalf("segments of %d from %d bytes, link takes %d", o.GSOSize, n, mss)
	}
}

// cut queues f as segments of at most size bytes; flags that end a super-frame
// are on the last only.
func (e *env) cut(f *frame, size int) {
	b := f.tcp.Payload
	if size == 0 {
		size = len(b) + 1
	}
	for {
		part := *f
		n := min(size, len(b))
		part.tcp.Payload = b[:n]
		b = b[n:]
		if len(b) > 0 {
			part.tcp.Flags &^= packet.FIN | packet.PSH
		}
		e.frames = append(e.frames, part)
		if len(b) == 0 {
			return
		}
		f.tcp.Seq += uint32(n)
	}
}

// input gives the translator one segment. Its payload is spoiled after the
// batch, as the lane's buffer would be.
func (e *env) input(src, dst packet.Addr, s packet.TCP) {
	if len(s.Payload) > 0 {
		s.Payload = append([]byte(nil), s.Payload...)
		e.batch = append(e.batch, s.Payload)
	}
	e.split(&s)
	e.pkt = packet.Packet{SrcMAC: guestMAC, DstMAC: ourMAC, IPVersion: 6, Proto: packet.ProtoTCP, Src: src, Dst: dst}
	if src.Is4() {
		e.pkt.IPVersion = 4
	}
	e.tr.Input(&e.pkt, &s)
	e.pkt = packet.Packet{}
}

// split has the payload of every other segment lie in up to four pieces.
func (e *env) split(s *packet.TCP) {
	if e.inputs++; e.inputs%2 == 0 {
		return
	}
	b := s.Payload
	n := e.inputs * 7919 % (len(b) + 1)
	s.Payload, b = b[:n:n], b[n:]
	s.Beyond = len(b)
	for range e.inputs / 2 % 4 {
		n = e.inputs * 7907 % (len(b) + 1)
		s.More = append(s.More, b[:n:n])
		b = b[n:]
	}
	s.More = append(s.More, append(b[:len(b):len(b)], "padding"...))
}

// flush ends the batch.
func (e *env) flush() {
	e.tr.Flush()
	for _, b := range e.batch {
		clear(b)
	}
	e.batch = e.batch[:0]
}

// take returns what was sent to the guest since the last call.
func (e *env) take() []frame {
	f := e.frames
	e.frames = nil
	return f
}

// advance moves the clock and fires what is due on the way, in order.
func (e *env) advance(d int64) {
	end := e.now + d
	for {
		next := e.wheel.Next()
		if next > end {
			break
		}
		e.now = max(e.now, next)
		e.wheel.Advance(e.now, e.tr.Timer)
		e.settle()
	}
	e.now = end
	e.wheel.Advance(e.now, e.tr.Timer)
	e.settle()
}

// settle reports socket events and polls, as the lane's loop does, until
// nothing is left to do.
func (e *env) settle() {
	for range 1000 {
		busy := e.deliver()
		if e.tr.Pending() {
			e.tr.Poll()
			busy = true
		}
		e.tr.Sweep()
		if e.g.Shares.Returned() {
			e.tr.Freed()
		}
		if !busy && !e.tr.Pending() {
			e.verify()
			return
		}
	}
	e.t.Fatal("the translator always has work pending")
}

// unheard checks that nobody speaks for a flow that has ended: neither to the
// guest, but for what answers a segment of no flow, nor to its socket.
func (e *env) unheard(s *sock, k *store.Key, flags uint8) {
	for _, i := range e.tr.marked {
		c := e.tr.flows.At(i)
		if c.state != stateEnded {
			continue
		}
		if s != nil && c.fd == s.fd && s.closes == 0 {
			e.t.Fatalf("a call on the socket of flow %d, which has ended", i)
		}
		if k != nil && *e.tr.flows.Key(i) == *k && e.tr.flows.Find(k) == store.None && flags&packet.RST == 0 {
			e.t.Fatalf("a segment of flow %d, which has ended", i)
		}
	}
}

// deliver reports edges.
func (e *env) deliver() bool {
	any := false
	for _, s := range e.socks {
		if s.edge && s.watched && s.closes == 0 {
			s.edge = false
			if o, _, _ := flow.SplitToken(s.token); o == flow.OwnerTCPListener {
				e.tr.ListenerReady(s.token, flow.Readable)
				any = true
			} else if o == flow.OwnerTCPStaged {
				e.tr.StagedReady(s.token, s.reported())
				any = true
			} else if events := s.reported(); events != 0 {
				e.tr.Ready(s.token, events)
				any = true
			}
		}
	}
	return any
}

// open lets the link take frames again.
func (e *env) open(frames int) {
	e.room = frames
	if e.CanSend() {
		e.tr.Resume()
	}
}

// answer is the broker's reply to the n-th request.
func (e *env) answer(n int, o ipc.Opened, s *sock) {
	o.Token = e.opens[n].Token
	fd := int32(-1)
	if s != nil {
		fd = s.fd
		if s.peekOff < 0 && e.g.Has(ipc.FlagPeekOff4) {
			s.peekOff = 0 // the broker's part
		}
	}
	e.tr.Opened(o.Token, fd, &o)
}

// verify holds at any time between two calls from the lane.
func (e *env) verify() {
	tr := e.tr
	reserved, sets := 0, 0
	tr.flows.Each(func(i uint32) {
		c := tr.flows.At(i)
		reserved += int(c.reserved)
		for _, ref := range []uint32{c.held, c.sacked} {
			if ref != 0 {
				sets++
			}
		}
		e.verifyFlow(i, c)
	})
	if reserved != tr.reserved {
		e.t.Fatalf("flows have %d chunks set aside, translator says %d", reserved, tr.reserved)
	}
	if tr.pool.Used() > tr.reserved {
		e.t.Fatalf("%d chunks in use, %d set aside", tr.pool.Used(), tr.reserved)
	}
	if sets+len(tr.freeSets) != len(tr.sets) {
		e.t.Fatalf("%d sets in use, %d free, of %d", sets, len(tr.freeSets), len(tr.sets))
	}
	if len(e.batch) == 0 && (!tr.batch.empty() || len(tr.batch.bufs) != 0) {
		e.t.Fatal("payloads kept beyond their batch")
	}
}

func (e *env) verifyFlow(i uint32, c *conn) {
	used := 0
	for ch := c.qHead; ch != store.None; ch = e.pool.Next(ch) {
		used++
	}
	if used > int(c.reserved) {
		e.t.Fatalf("flow %d: %d chunks used, %d set aside", i, used, c.reserved)
	}
	switch c.state {
	case stateSynAckSent, stateSynSent, stateTimeWait:
		if c.rtoAt == 0 {
			e.t.Fatalf("flow %d: state %d without a timer", i, c.state)
		}
	case stateOpen:
		e.verifyOpen(i, c)
	}
	if c.state != stateOpening && c.state != stateConnecting && !e.wheel.Pending(e.tr.timer+i) {
		e.t.Fatalf("flow %d: state %d: no timer set", i, c.state)
	}
}

// verifyOpen is the rule against stalls: whatever is left to do has a timer or
// an event that is sure to come.
func (e *env) verifyOpen(i uint32, c *conn) {
	s := e.sock(c.fd)
	if before(c.sndNxt, c.sndUna) || after(c.sndNxt, c.sndMax) || after(c.deqSeq, c.sndUna) ||
		after(c.hostSeq, c.dataEnd()) || after(c.rcvNxt, c.rcvEdge+1) {
		e.t.Fatalf("flow %d: impossible numbers: %+v", i, *c)
	}
	if c.rtoAt != 0 && c.rtoAt < c.timerAt {
		e.t.Fatalf("flow %d: the timer is set too late", i)
	}
	waits := c.rtoAt != 0 || c.has(flagReady) || s.edge
	if c.sndUna != c.sndMax && !waits {
		e.t.Fatalf("flow %d: bytes in flight and nothing to wait for: %+v", i, *c)
	}
	if c.has(flagStaged) {
		e.verifyStaged(i, c, s)
		return
	}
	inQueue := c.deqSeq + uint32(s.rxHave-s.rxBase)
	unsent := after(inQueue, c.sndNxt) || s.finArrived() && !(c.has(flagHostEOF) && after(c.sndMax, c.finSeq))
	if unsent && !waits {
		e.t.Fatalf("flow %d: the socket holds more, and nothing to wait for: %+v", i, *c)
	}
	if c.queued() > 0 && c.has(flagWritable) || c.queued() > 0 && !s.nospace && !s.edge {
		e.t.Fatalf("flow %d: %d bytes queued for a socket that takes more", i, c.queued())
	}
	if room := s.events&flow.Writable != 0; c.queued() > 0 && !room || room != c.has(flagAwaitRoom) {
		e.t.Fatalf("flow %d: %d bytes queued, reports of room: %v", i, c.queued(), room)
	}
	if c.has(flagGuestFIN) && !(c.has(flagShutdown) && s.shut) && c.queued() == 0 {
		e.t.Fatalf("flow %d: the guest's FIN was not passed on", i)
	}
	if c.has(flagAckNow) && !c.has(flagReady) {
		e.t.Fatalf("flow %d: an ACK is owed", i)
	}
	if !c.has(flagGuestFIN) && c.queued() == 0 && c.rcvEdge-c.rcvNxt < c.step() && !waits {
		e.t.Fatalf("flow %d: window of %d with nothing queued", i, c.rcvEdge-c.rcvNxt)
	}
	if unread := c.sndUna - c.deqSeq; s.rxEnd > s.rxHave && unread > 0 && c.timerAt > e.now+int64(1e9) {
		e.t.Fatalf("flow %d: %d acknowledged bytes keep the host from sending", i, unread)
	}
}

// verifyStaged is the same for a flow that is looked at: who looks has all that it may
// have, or there is no room, and is told of the end.
func (e *env) verifyStaged(i uint32, c *conn, s *sock) {
	most := min(c.queued(), ipc.MaxStaged)
	room := s.watched
	switch {
	case c.copied > most, int(c.copied) != s.txTotal, c.has(flagWritable), room != c.has(flagAwaitRoom), room && s.events != flow.Writable:
		e.t.Fatalf("flow %d: %d bytes to who looks, %d there, %d queued, reports of room: %v", i, c.copied, s.txTotal, c.queued(), room)
	case c.copied < most && !s.dead && !(s.nospace && room) && !s.edge:
		e.t.Fatalf("flow %d: %d of %d bytes to who looks", i, c.copied, most)
	case !s.dead && s.shut != (c.has(flagGuestFIN) && c.copied == c.queued()) && !s.edge:
		e.t.Fatalf("flow %d: told of the end: %v", i, s.shut)
	case c.has(flagAckNow) && !c.has(flagReady):
		e.t.Fatalf("flow %d: an ACK is owed", i)
	}
}

// empty is how everything ends.
func (e *env) empty() {
	e.t.Helper()
	tr := e.tr
	if tr.Len() != 0 || tr.pool.Used() != 0 || tr.reserved != 0 || len(tr.freeSets) != len(tr.sets) {
		e.t.Fatalf("left over: %d flows, %d chunks, %d set aside, %d sets",
			tr.Len(), tr.pool.Used(), tr.reserved, len(tr.sets)-len(tr.freeSets))
	}
	if e.wheel.Next() != store.NoTimer {
		e.t.Fatal("a timer is left over")
	}
	for _, s := range e.socks {
		if !s.listening && s.handed && s.closes != 1 {
			e.t.Fatalf("descriptor %d closed %d times", s.fd, s.closes)
		}
	}
}

// stream is n bytes, at most 65536, of the test stream from offset off.
func stream(off, n int) []byte { return tcptest.Stream(off, n) }

const never = tcptest.Never
