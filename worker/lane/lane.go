// SPDX-License-Identifier: Apache-2.0

// Package lane is the worker's event loop. A lane is one thread with its own
// epoll, link to the guest, flow tables, timers and buffers; nothing in it is
// global. Its system calls are those of the packages kernel and link; after New,
// none of them blocks but the wait for events, and nothing is allocated.
package lane

import (
	"errors"
	"fmt"
	"io"
	"runtime/debug"
	"syscall"
	"time"

	"aldente/ipc"
	"aldente/worker/bypass"
	"aldente/worker/flow"
	"aldente/worker/icmp"
	"aldente/worker/kernel"
	"aldente/worker/link"
	"aldente/worker/packet"
	"aldente/worker/store"
	"aldente/worker/tcp"
	"aldente/worker/udp"
)

// Sizes of the flow tables. Memory is touched as flows come.
const (
	maxTCP  = 128 << 10
	maxUDP  = 16 << 10
	maxICMP = 1 << 10

	// Flows of the bypass; of TCP, as many as there may be descriptors for.
	maxBypassUDP = 4 << 10

	// spareFDs are the descriptors that are not flows: channel, link, epoll,
	// listeners.
	spareFDs = 64

	// poolBytes is address space for data that wait; see package tcp.
	poolBytes    = 2 << 30
	udpPoolBytes = 128 << 20
)

// Timers of the lane itself.
const (
	timerRA = iota
	timerSolicit
	timerStats
	timerAnswer
	timerProbe
	timerPace
	timerShort
	timerGroups
	timerCarrier
	laneTimers
)

// Tokens of the lane's own descriptors.
var (
	tokenControl = flow.Token(flow.OwnerLane, 0, 0)
	tokenLink    = flow.Token(flow.OwnerLane, 0, 1)
)

// indexLive is the first index of the tokens of captures, behind those two; indexKicks
// that of what a link has beside its own descriptor.
const (
	indexLive  = 2
	indexKicks = 64
)

// Stats counts frames.
type Stats struct {
	Frames       uint64 // from the guest
	BadFrames    uint64 // of them: malformed, or with a datagram inside that is
	BadChecksums uint64 // of them: with a wrong checksum
	Ignored      uint64 // of them: of a protocol or for an address that nobody here serves
	Sent         uint64 // to the guest, taken by the link
	SendDropped  uint64 // to the guest, not taken
}

// Lane is one event loop and all it owns.
type Lane struct {
	kernel.Sockets
	poll       kernel.Poller
	channel    channel
	start      time.Time
	now        int64
	moved      int       // bytes, in this turn: what shows that there is bulk
	busy       bool      // the last wait was short
	conversing bool      // the last turn was short, its event came soon, and so may the next
	spins      spins     // whether they pay
	partners   [2]uint64 // tokens of the last conversation
	same       uint8     // events in a row that were its, up to regular

	guest     flow.Guest
	mtu       uint16 // as configured; that of the guest is less where the link says so
	link      link.Link
	direct    flow.Direct   // the same, if it is one
	watching  link.Watched  // the same, if it has several descriptors
	last      link.Link     // the one before, closed: its memory serves the next
	linksGone link.Counters // of all before this one
	readable  bool          // the link has frames, as an event said
	hungUp    bool          // or its end, as an event said too
	probed    uint64        // frames sent by it when it was last tried whether it is there
	more      bool          // the link may hold frames that no event announces
	blocked   bool          // the link had a backlog when last looked at
	batch     *link.Batch
	capture   *link.Capture
	live      *live    // captures that somebody looks at, nil: nobody does
	idle      *live    // what live was, for the next
	flows     *flowLog // nil unless debugging
	ends      *ends    // nil unless there is a flow log
	trace     *trace   // nil unless asked for
	mark      int32    // eventfd of the capture, -1: none
	faulted   bool     // the guest's memory is not there any more
	freed     bool     // a descriptor was closed since tcp was told
	shortage  shortage
	pace      *pace // nil: there is no limit on bytes
	acceptDue int64 // when connections go on that wait for a limit on new ones; zero: none does
	pkt       packet.Packet
	again     packet.Packet // a datagram put together from fragments
	seg       packet.TCP
	dgram     packet.UDP
	echo      packet.Echo
	out       []byte
	none      packet.Offload

	wheel             *store.Wheel
	reasm             *packet.Reassembler
	chunks, datagrams *store.Pool // tcp's, and the others'
	tcp               *tcp.Translator
	udp               *udp.Translator
	icmp              *icmp.Translator
	bypass            *bypass.Translator
	table             table
	timer             uint32 // first of laneTimers
	solicited         int    // announcements made so far
	fire              func(id uint32)
	take              func(rec []byte, fd int32)
	answer            ipc.Opened   // the broker's, being handled
	connection        ipc.Incoming // the same
	revoked           ipc.RevokeFlows
	switched          ipc.Switch // the same
	next              ipc.Config // the same
	gone              ipc.Gone   // the same
	lost              func(fd int32) bool
	leases            leases
	advertised        int // advertisements since the last change, up to advertiseAgain
	err               error

	figures figures
	stats   *statsLog // nil: not asked for
	Stats   Stats     // since New

	notePace  *flow.Pace                           // of answers to what nobody translates
	groupPace *flow.Pace                           // of questions for groups, beside those that are due
	wants     func(group packet.Addr, wanted bool) // takes which groups the guest wants
}

// New reads the start-up records from the broker's channel and makes the lane
// they describe. It opens nothing: all descriptors come with the records.
func New(control int) (*Lane, error) {
	l := &Lane{start: time.Now().Add(-time.Second), mark: -1, out: make([]byte, 4096)}
	l.channel.fd = int32(control)
	l.tick()
	if err := l.poll.Open(); err != nil {
		return nil, err
	}
	if err := kernel.SetNonblock(control); err != nil {
		return nil, fmt.Errorf("channel: %w", err)
	}
	if e := l.poll.Add(int32(control), tokenControl, flow.Readable); e != 0 {
		return nil, fmt.Errorf("channel: %w", e)
	}
	l.fire, l.take = l.table.timer, l.record
	if err := l.startUp(control); err != nil {
		kernel.Close(l.poll.FD())
		return nil, err
	}
	return l, nil
}

// startUp reads records until KindStart.
func (l *Lane) startUp(control int) error {
	buf := make([]byte, ipc.MaxRecord)
	for phase := ipc.First; ; {
		n, fd, err := ipc.Receive(control, buf, 0)
		if errors.Is(err, syscall.EAGAIN) {
			l.poll.Wait(-1, false)
			continue
		}
		if err != nil {
			return fmt.Errorf("start-up: %w", err)
		}
		kind, err := ipc.ToWorker.Check(buf[:n], fd >= 0, phase)
		switch {
		case err != nil:
		case kind == ipc.KindConfig:
			phase, err = ipc.Starting, l.configure(buf[:n])
		case kind == ipc.KindStart:
			return nil
		default:
			err = l.handle(kind, buf[:n], int32(fd))
		}
		if err != nil {
			return fmt.Errorf("start-up: %w", err)
		}
	}
}

// configure makes everything whose size the configuration decides.
func (l *Lane) configure(rec []byte) error {
	g := &l.guest
	if err := g.Config.Decode(rec); err != nil {
		return err
	}
	if g.Has(ipc.FlagTrace) {
		l.trace = new(trace)
	}
	if g.Has(ipc.FlagDebug) {
		l.flows = newFlowLog()
	}
	l.mtu = g.MTU
	g.MAC = g.GuestMAC
	g.Seen4, g.Seen6 = g.Addr4, g.Addr6
	if g.GuestMAC != (packet.MAC{}) && g.Has(ipc.FlagIPv6) {
		g.SeenLL6 = packet.LinkLocal(g.GuestMAC) // which its kernel, or our agent, makes of it
	}
	g.Traits = link.TraitsOf(g.LinkKind)
	fds := max(int(g.MaxFlows)-spareFDs-g.Descriptors, 64)
	nTCP := min(maxTCP, fds)
	nUDP := min(maxUDP, max(fds/2, 32))
	nICMP := min(maxICMP, max(fds/4, 16))
	g.Shares = flow.NewShares(fds - fds/16) // but for pipes
	g.Shares.Bound(int(g.MaxConns))
	g.Accept = flow.NewPace(int(g.NewConns))
	l.pace = newPace(g.Bytes, l.now)
	l.notePace, l.groupPace = flow.NewPace(unservedNotices), flow.NewPace(1)
	nBypass, nBypassUDP := fds/2, min(maxBypassUDP, max(fds/4, 16))
	pool, err := kernel.Reserve(poolBytes)
	if err != nil {
		return err
	}
	// TCP's windows are promises on all of its pool; UDP has one of its own.
	l.chunks, l.datagrams = store.NewPool(pool[udpPoolBytes:]), store.NewPool(pool[:udpPoolBytes])
	l.reasm = packet.NewReassembler()
	t := &l.table
	bypassTimers, tcpTimers := t.reserve(flow.OwnerBypass, nBypassUDP), t.reserve(flow.OwnerTCP, nTCP)
	udpTimers, icmpTimers := t.reserve(flow.OwnerUDP, nUDP), t.reserve(flow.OwnerICMP, nICMP)
	l.timer = t.reserve(flow.OwnerLane, laneTimers)
	l.wheel = store.NewWheel(t.timers(), l.now)
	l.bypass = bypass.New(l, g, l.wheel, bypassTimers, l.datagrams, nBypass, nBypassUDP)
	t.add(flow.OwnerBypass, l.bypass)
	l.tcp = tcp.New(l.streams(), g, l.wheel, tcpTimers, l.chunks, nTCP)
	t.add(flow.OwnerTCP, l.tcp)
	l.udp = udp.New(l.datagramEnv(), g, l.wheel, udpTimers, l.datagrams, nUDP)
	t.add(flow.OwnerUDP, l.udp)
	l.wants = l.udp.Wants
	l.icmp = icmp.New(l.datagramEnv(), g, l.wheel, icmpTimers, l.datagrams, nICMP)
	t.add(flow.OwnerICMP, l.icmp)
	t.ready[flow.OwnerTCPListener], t.ready[flow.OwnerUDPListener] = l.tcp.ListenerReady, l.udp.ListenerReady
	t.ready[flow.OwnerTCPStaged] = l.tcp.StagedReady
	t.ready[flow.OwnerLane], t.fire[flow.OwnerLane] = l.ready, l.expire
	l.newFigures(nTCP, nUDP, nICMP, nBypass, nBypassUDP)
	if g.Stats != 0 {
		l.stats = newStatsLog(l, g.Stats)
		l.wheel.Set(l.timer+timerStats, l.now+l.stats.period)
	}
	l.tcp.BypassRoom = l.bypass.Room
	if l.pace != nil {
		l.tcp.Held = l.pace.hold
	}
	l.tcp.Bypass, l.udp.Bypass = l.bypass.Accepted, l.bypass.Datagrams
	l.bypass.Return = l.udp.Return
	if g.Has(ipc.FlagFlowLog) {
		l.tellEnds(int(g.MaxFlows))
	}
	l.udp.KeepSockets = l.flows != nil || l.ends != nil
	l.lost, l.advertised = l.hasLost, advertiseAgain
	l.batch = link.NewBatch()
	return nil
}

// Run says that the lane is ready and translates until the broker is gone, or the
// memory that a guest shares with us.
func (l *Lane) Run() (err error) {
	if l.guest.SharedMemory {
		defer debug.SetPanicOnFault(debug.SetPanicOnFault(true))
		defer func() {
			if fault := recover(); fault != nil {
				err = memoryFault(fault)
			}
		}()
	}
	if e := l.channel.send(ipc.Empty(ipc.KindReady)); e != 0 {
		return fmt.Errorf("channel: %w", e)
	}
	for l.err == nil {
		l.turn()
	}
	if errors.Is(l.err, io.EOF) {
		return nil
	}
	return l.err
}

// errFault means that the file of a guest's memory has shrunk.
var errFault = errors.New("the guest's memory is not there any more")

// memoryFault returns errFault for a fault in memory that was mapped, and goes on with
// any other panic.
func memoryFault(fault any) error {
	if e, ok := fault.(interface{ Addr() uintptr }); ok {
		return fmt.Errorf("%w: address %#x", errFault, e.Addr())
	}
	panic(fault)
}

// tick reads the clock.
func (l *Lane) tick() { l.now = int64(time.Since(l.start)) }

// Now implements flow.Clock.
func (l *Lane) Now() int64 { return l.now }

// Send implements flow.Link.
func (l *Lane) Send(o *packet.Offload, headers, payload []byte) bool {
	if l.link == nil {
		return false
	}
	l.moved += len(payload)
	l.pace.sent(len(payload))
	if l.trace != nil {
		l.trace.frame("to guest: ", headers, payload)
	}
	if l.capture != nil {
		l.capture.Frame(time.Now(), o, headers, payload)
	}
	ok := l.link.Send(o, headers, payload)
	if l.live != nil {
		l.live.sent(o, headers, payload, ok)
	}
	if !ok {
		l.Stats.SendDropped++
		return false
	}
	l.Stats.Sent++
	return true
}

// Reserve implements flow.Direct. Whoever looks at frames sees them whole.
func (l *Lane) Reserve(e *packet.Ends, src, dst uint16, headers, n int) [][]byte {
	if l.direct == nil || l.watched() {
		return nil
	}
	return l.direct.Reserve(e, src, dst, headers, n)
}

// SendReserved implements flow.Direct.
func (l *Lane) SendReserved(o *packet.Offload, headers []byte, n int) bool {
	l.moved += n
	l.pace.sent(n)
	if !l.direct.SendReserved(o, headers, n) {
		l.Stats.SendDropped++
		return false
	}
	l.Stats.Sent++
	return true
}

// WatchLink implements link.Watcher.
func (l *Lane) WatchLink(fd int32, sub uint32) syscall.Errno {
	return l.poll.Watch(fd, flow.Token(flow.OwnerLane, 0, indexKicks+sub), flow.Readable)
}

// UnwatchLink implements link.Watcher.
func (l *Lane) UnwatchLink(fd int32) { l.poll.Remove(fd) }

// SetMTU implements link.Watcher: no packet to the guest is longer, and it is told of no
// greater MTU.
func (l *Lane) SetMTU(mtu int) {
	if l.guest.MTU = l.mtu; mtu < l.guest.LinkMTU() {
		l.guest.MTU = uint16(mtu)
	}
}

// Short implements link.Watcher.
func (l *Lane) Short() {
	if !l.wheel.Pending(l.timer + timerShort) {
		l.wheel.Set(l.timer+timerShort, l.now+link.ShortFor)
	}
}

// short asks whether the guest still lacks buffers.
func (l *Lane) short() {
	if l.watching == nil {
		return
	}
	again, room := l.watching.Expire()
	if again {
		l.Short()
	}
	if room {
		l.table.resume()
	}
}

// Unknown implements link.Watcher.
func (l *Lane) Unknown(request uint32) {
	logf(levelInfo, "the virtual machine's monitor asks for what is not known, and was refused it request=%d", request)
}

// NewInflight implements link.Watcher: the broker answers.
func (l *Lane) NewInflight(bytes, queues, ring, payload int) error {
	var rec [ipc.InflightSize]byte
	(&ipc.Inflight{Bytes: uint32(bytes), Queues: uint16(queues), Ring: uint16(ring), Payload: uint32(payload)}).Encode(rec[:])
	if e := l.channel.send(rec[:]); e != 0 {
		return e
	}
	return nil
}

// watched tells whether anybody looks at frames.
func (l *Lane) watched() bool { return l.capture != nil || l.live != nil || l.trace != nil }

// CanSend implements flow.Link.
func (l *Lane) CanSend() bool {
	if l.link == nil {
		return l.guest.Has(ipc.FlagSpliceOnly) // nothing is ever sent, and nothing waits
	}
	return l.link.CanSend() && l.pace.maySend(l.now)
}
