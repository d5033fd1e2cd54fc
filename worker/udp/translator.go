// SPDX-License-Identifier: Apache-2.0

// Package udp translates between the guest's UDP datagrams and sockets on the
// host. A flow is one connected socket: the guest's address and port on one
// side, a remote's on the other. Sockets come from the broker; what the guest
// sends until one is there waits in a queue.
//
// Datagrams of equal size travel together, in both directions, as the kernel's
// segmentation offload for UDP has it: one system call and one super-frame for
// up to 64 of them.
package udp

import (
	"cmp"
	"hash/maphash"

	"aldente/ipc"
	"aldente/worker/datagram"
	"aldente/worker/flow"
	"aldente/worker/packet"
	"aldente/worker/store"
)

// unansweredPart is which part of the table flows have that the guest has not
// answered: one in so many.
const unansweredPart = 4

// queuePoolPart is which part of the pool may be in queues: one in so many.
const queuePoolPart = 4

// state is where a flow is; zero is none.
type state uint8

const (
	stateOpening    state = 1 + iota // the broker was asked for a socket
	stateOpen                        // sock is that socket
	stateRefused                     // there is none; remembered for a while
	stateUnanswered                  // came by a listener, and the guest has not answered: no socket was asked for
	stateStaged                      // what the guest sends first is looked at: sock leads there
)

// conn is one flow.
type conn struct {
	state   state
	batch   uint8 // 1 + index of the batch that collects for it, 0: none
	ready   bool  // in Translator.ready
	bulk    bool  // has had several datagrams at a time
	inbound bool  // came by a listener
	names   bool  // leads to aldente-names, and its socket may be another's
	rests   bool  // in Translator.resting
	group   bool  // leads to more than one receiver
	// stateStaged: how many datagrams were written to who looks, and that no more are.
	copied    uint8
	notCopied bool
	in, out   uint8           // datagrams in each direction, up to 2
	how       ipc.How         // it ends; zero: another has its place
	sock      datagram.Socket // the socket
	refusal   flow.Refusal    // stateRefused: what the guest is told
	queue     datagram.Queue  // of the guest's datagrams, while the socket is on its way
	last      int64           // when it was used, in nanoseconds
	peer      packet.Addr     // where the socket is really connected to
	peerPort  uint16

	// Of flows that came by a listener: which one, where it is in listeners, and
	// what was spoken to; its number in Translator.inboundFlows, plus one.
	listener, place uint32
	local           packet.Addr // zero: sent to a group, and answered from any address
	scope           uint32      // index of the interface that a link-local peer is on
	byHost          uint32
	// answers is the descriptor for what is answered to a flow to a group, plus one;
	// zero: there is none.
	answers int32
	// localPort is the socket's port on the host: zero while it is not known.
	localPort uint16

	flow.Traffic
}

// Stats counts datagrams, where nothing else is said.
type Stats struct {
	ToHost, ToGuest uint64 // written to sockets, given to the link
	BadSource       uint64 // from the guest, source not unicast, or no port to go to
	NotUnicast      uint64 // from the guest to a group, to everybody, or to loopback
	QueueFull       uint64 // from the guest, too many before the socket came
	WriteFailed     uint64 // from the guest, not taken by the socket
	Strangers       uint64 // to a flow's socket, from somebody else, and for no listener
	Returned        uint64 // the same, for a listener
	Truncated       uint64 // to the guest, longer than any may be
	NoTarget        uint64 // to the guest, whose address is not known
	SendFailed      uint64 // frames to the guest, not taken by the link

	Opened, Refused, Inbound uint64 // flows
	NoRoom                   uint64 // flows that could not be made
	Expired, Evicted         uint64 // flows
	Revoked                  uint64 // flows that the egress rules refuse since they were asked
	Broken                   uint64 // flows closed for an error of the socket
	Errors                   uint64 // ICMP errors sent to the guest
}

// Translator holds all UDP flows of a lane.
type Translator struct {
	env   Env
	g     *flow.Guest
	wheel *store.Wheel
	timer uint32 // first timer id
	flows *store.Table[conn]
	// inboundFlows finds flows by what a listener's datagrams carry: which of its
	// addresses was spoken to is not to be seen in what the guest is sent.
	inboundFlows *store.Table[uint32]

	ages store.LRU
	// outbound are those of them that hold a port of the host's: the broker grants
	// only so many.
	outbound store.LRU
	numOut   int
	maxOut   int
	// unanswered are the flows that the guest has not answered. Anybody can make those:
	// they are a share of the table, and give way to one another only.
	unanswered    store.LRU
	numUnanswered int
	maxUnanswered int
	seed          maphash.Seed // of source ports for flows that look like others

	queues datagram.Queues

	batches   [numBatches]batch
	nextBatch int

	// Bypass takes datagrams of one peer that do not go by the guest's link. It
	// must be set where listeners have a flag that says so.
	Bypass func(listener uint32, flags uint8, port uint16, d []flow.Datagram)

	// Ended hears of flows whose socket is about to be closed. Nil: nobody asks.
	Ended func(fd int32, how ipc.How, t *flow.Traffic)

	// KeepSockets has each flow keep the socket that the broker has sent for it, for those
	// who tell of flows by their sockets.
	KeepSockets bool

	listeners    []listener
	lastListener int      // behind the one that was looked for last
	unused       []uint32 // places in listeners
	ready        []uint32 // flows with more to read than one turn allows
	waiting      int      // listeners and members of which the same is true
	members      []member
	left         bool // a member has gone
	echoes       echoes

	datagrams [readBatch]flow.Datagram
	joined    []byte // several datagrams one after the other
	frame     []byte // a frame to be cut, or the packet that an error quotes
	hdr       [packet.MaxHeaders]byte
	offload   packet.Offload
	ends      packet.Ends
	ports     [2]uint16 // source and destination that go with ends
	frag      packet.Fragmenter
	fragID    uint32
	emit      func(headers, payload []byte)
	notices   datagram.Notices
	writer    datagram.Writer
	open      ipc.Open

	// resting are flows that lead to aldente-names and wait for nothing, and places where it
	// was found, for those to come: reuse.go.
	resting   store.LRU
	places    [4]packet.Addr
	nextPlace int

	Stats Stats // since New
}

// New makes a translator for up to maxFlows flows, which uses as many timer ids
// from timerBase on. Queues take their memory from pool.
func New(env Env, g *flow.Guest, w *store.Wheel, timerBase uint32, pool *store.Pool, maxFlows int) *Translator {
	t := &Translator{
		env: env, g: g, wheel: w, timer: timerBase,
		flows:      store.NewTable[conn](maxFlows),
		ages:       store.NewLRU(maxFlows),
		unanswered: store.NewLRU(maxFlows),
		maxOut:     maxFlows,
		seed:       maphash.MakeSeed(),
		queues:     datagram.NewQueues(pool, pool.Len()/queuePoolPart),

		outbound: store.NewLRU(maxFlows),
		resting:  store.NewLRU(maxFlows),
		ready:    make([]uint32, 0, maxFlows),
		joined:   make([]byte, datagram.BufferSize),
		frame:    make([]byte, datagram.BufferSize+packet.MaxHeaders),
	}
	if g.MaxUDP != 0 {
		t.maxOut = min(maxFlows, int(g.MaxUDP))
	}
	t.maxUnanswered = maxFlows / unansweredPart
	t.inboundFlows = store.NewTable[uint32](maxFlows)
	datagram.Buffers(t.datagrams[:])
	for i := range t.batches {
		t.batches[i].flow = store.None
	}
	t.notices = datagram.NewNotices(env, g, t.frame, quote, t.notice)
	t.writer = datagram.NewWriter(env)
	t.writer.Pending, t.writer.TooLong, t.writer.Failed = t.pending, t.notices.TooLong, t.failed
	t.writer.CutsLong = true
	t.emit = t.sendFragment
	t.newMembers()
	return t
}

// Len is the number of flows.
func (t *Translator) Len() int { return t.flows.Len() }

func (t *Translator) token(i uint32) uint64 {
	return flow.Token(flow.OwnerUDP, t.flows.Gen(i), i)
}

// insert makes a flow in state opening or unanswered; if there are as many of those as
// may be, in place of the one that was not used for longest.
func (t *Translator) insert(k *store.Key, as state) (uint32, *conn) {
	if as == stateUnanswered && t.numUnanswered == t.maxUnanswered {
		t.evict(t.unanswered.Oldest())
	}
	if as != stateUnanswered {
		if t.numOut >= t.maxOut {
			t.evict(t.outbound.Oldest())
		}
		if !t.makeRoom() {
			t.Stats.NoRoom++
			return store.None, nil
		}
	}
	i := t.flows.Insert(k)
	if i == store.None {
		t.Stats.NoRoom++
		return i, nil
	}
	c := t.flows.At(i)
	c.state = as
	c.sock = datagram.NewSocket(-1, 0)
	_, c.peerPort = k.Remote()
	c.last = t.env.Now()
	c.Born = c.last
	if as == stateUnanswered {
		t.unanswered.Add(i)
		t.numUnanswered++
	} else {
		t.enlist(i)
		t.outbound.Add(i)
		t.numOut++
	}
	t.wheel.Set(t.timer+i, c.last+t.lifetime(c))
	return i, c
}

// makeRoom makes room for a flow that the guest wants. It reports false if there
// is none, and nothing that might make some.
func (t *Translator) makeRoom() bool {
	for t.flows.Len()-t.numUnanswered >= t.flows.Cap()-t.maxUnanswered || !t.g.Shares.May(flow.ShareUDP, 1) {
		if t.ages.Oldest() == store.None {
			return false
		}
		t.evict(t.ages.Oldest())
	}
	return true
}

// enlist puts a flow on the list of those that have a socket, or will have one.
func (t *Translator) enlist(i uint32) {
	t.ages.Add(i)
	t.g.Shares.Take(flow.ShareUDP, 1)
}

// unlist takes a flow out of its list.
func (t *Translator) unlist(i uint32, c *conn) {
	if c.state == stateUnanswered {
		t.unanswered.Remove(i)
		t.numUnanswered--
		return
	}
	t.ages.Remove(i)
	t.g.Shares.Take(flow.ShareUDP, -1)
	if !c.inbound {
		t.outbound.Remove(i)
		t.numOut--
	}
}

// remove ends a flow and frees all it holds.
func (t *Translator) remove(i uint32, c *conn) {
	if c.batch != 0 {
		t.batches[c.batch-1].reset()
	}
	t.queues.Clear(&c.queue)
	if c.sock.FD >= 0 {
		if t.Ended != nil {
			t.Ended(c.sock.FD, cmp.Or(c.how, ipc.EndEvicted), &c.Traffic)
		}
		t.env.Close(c.sock.FD)
	}
	t.closeAnswers(c)
	if c.ready {
		t.unready(i)
	}
	if c.byHost != 0 {
		t.inboundFlows.Remove(c.byHost - 1)
	}
	if l := t.listenerOf(c); l != nil && c.state != stateUnanswered {
		l.replies--
	}
	t.rouse(i, c)
	t.wheel.Cancel(t.timer + i)
	t.unlist(i, c)
	*c = conn{sock: datagram.NewSocket(-1, 0)}
	t.flows.Remove(i)
}

// touch notes that a flow is in use. Its timer stays where it is, and moves
// when it fires.
func (t *Translator) touch(i uint32, c *conn) {
	c.last = t.env.Now()
	if c.state == stateUnanswered {
		t.unanswered.Touch(i)
	} else {
		t.ages.Touch(i)
		if !c.inbound {
			t.outbound.Touch(i)
		}
	}
}

// lifetime is how long a flow may go unused, in nanoseconds. Traffic in both
// directions, and more than a question and its answer, makes it a stream.
func (t *Translator) lifetime(c *conn) int64 {
	if c.state == stateRefused {
		return datagram.RefusedLife
	}
	return datagram.Lifetime(t.g, c.in > 0 && c.out > 0 && c.in+c.out > 2)
}

// Timer is called when the timer with this id fires.
func (t *Translator) Timer(id uint32) {
	i := id - t.timer
	c := t.flows.At(i)
	if c.state == 0 {
		return
	}
	if due := c.last + t.lifetime(c); due > t.env.Now() {
		t.wheel.Set(id, due)
		return
	}
	t.Stats.Expired++
	c.how = ipc.EndIdle
	t.remove(i, c)
}

// Evict closes the socket that was not used for longest, for want of
// descriptors. It reports false if there is none.
func (t *Translator) Evict() bool {
	for i := t.ages.Oldest(); i != store.None; i = t.ages.Newer(i) {
		if t.flows.At(i).sock.FD >= 0 {
			t.evict(i)
			return true
		}
	}
	return false
}

// evict removes a flow in favour of another, after sending what it has.
func (t *Translator) evict(i uint32) {
	t.Stats.Evicted++
	c := t.flows.At(i)
	if c.batch != 0 {
		t.flushBatch(&t.batches[c.batch-1])
	}
	if c.state != 0 {
		t.remove(i, c)
	}
}

// Revoke ends the flows whose sockets are connected to a peer; port zero means any. What
// they have collected is not sent: that would be what was revoked.
func (t *Translator) Revoke(peer packet.Addr, port uint16) {
	if port == 0 {
		t.displace()
	}
	t.flows.Each(func(i uint32) {
		if c := t.flows.At(i); (c.state == stateOpen || c.state == stateStaged) && c.peer == peer && (port == 0 || c.peerPort == port) {
			t.revoke(i, c)
		}
	})
}

// RevokeFlow is Revoke for the flow whose request had this token.
func (t *Translator) RevokeFlow(token uint64) {
	_, gen, i := flow.SplitToken(token)
	if !t.flows.Live(i, gen) {
		return
	}
	if c := t.flows.At(i); c.state == stateOpen || c.state == stateStaged {
		t.revoke(i, c)
	}
}

// Gone ends the flows whose sockets have lost their address, as gone tells: what the guest
// sends next gets another.
func (t *Translator) Gone(gone func(fd int32) bool) {
	t.flows.Each(func(i uint32) {
		if c := t.flows.At(i); (c.state == stateOpen || c.state == stateStaged) && c.sock.FD >= 0 && gone(c.sock.FD) {
			c.how = ipc.EndGone
			t.remove(i, c)
		}
	})
}

func (t *Translator) revoke(i uint32, c *conn) {
	t.Stats.Revoked++
	c.how = ipc.EndRevoked
	t.remove(i, c)
}

// Flush ends a batch of frames from the guest: what they carried goes to the
// sockets. It also goes on as Poll does.
func (t *Translator) Flush() {
	for b := range t.batches {
		t.flushBatch(&t.batches[b])
	}
	t.Poll()
}

// Pending tells whether there is something to be read that no event will
// announce, and that the link has room for.
func (t *Translator) Pending() bool {
	return (len(t.ready) > 0 || t.waiting > 0) && t.env.CanSend()
}

// Resume is called when the link takes frames again.
func (t *Translator) Resume() { t.Poll() }

// Sweep needs nothing: a flow is freed as it ends.
func (t *Translator) Sweep() {}

// Freed needs nothing: no datagram waits for a descriptor.
func (t *Translator) Freed() {}

// Poll gives each flow and listener with more to read a turn.
func (t *Translator) Poll() {
	for n := len(t.ready); n > 0 && len(t.ready) > 0 && t.env.CanSend(); n-- {
		i := t.ready[0]
		c := t.flows.At(i)
		t.unready(i)
		c.ready = false
		t.receive(i, c)
	}
	if t.waiting > 0 {
		t.pollListeners()
		t.pollMembers()
	}
}

func (t *Translator) makeReady(i uint32, c *conn) {
	if !c.ready {
		c.ready = true
		t.ready = append(t.ready, i)
	}
}

func (t *Translator) unready(i uint32) {
	for k := range t.ready {
		if t.ready[k] == i {
			t.ready = t.ready[:k+copy(t.ready[k:], t.ready[k+1:])]
			return
		}
	}
}

// Close ends all flows and listeners.
func (t *Translator) Close() {
	t.flows.Each(func(i uint32) { t.remove(i, t.flows.At(i)) })
	for k := range t.listeners {
		t.closeListener(k)
	}
	for n := range t.members {
		t.leave(&t.members[n])
	}
}
