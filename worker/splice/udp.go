// SPDX-License-Identifier: Apache-2.0

package splice

import (
	"syscall"

	"aldente/ipc"
	"aldente/worker/flow"
	"aldente/worker/packet"
)

const (
	// readBatch is how many datagrams, each perhaps several that UDP_GRO
	// joined, are read with one call at most, firstBatch at first;
	// datagramSize holds any of them.
	readBatch    = 32
	firstBatch   = 2
	datagramSize = 64 << 10
	// turnRounds bounds the calls for one socket before others have a turn.
	turnRounds = 4

	// Seconds that a flow lives without traffic where the configuration does
	// not say, as conntrack has them: in one direction only, and in both.
	defaultIdle   = 30
	defaultStream = 120
	second        = int64(1_000_000_000)
	// refusedLife is how long a flow without a far end is remembered, so that
	// not every datagram asks for one.
	refusedLife = second
)

// dflow is one flow of datagrams: a peer that spoke to a listener, and where
// what it says goes to. Both sockets come from the broker.
type dflow struct {
	sides    [2]dside
	wanted   uint8 // answers of the broker still to come
	refused  bool  // the broker had no socket
	answered bool  // there was traffic in both directions
	busy     [2]bool
	queue    queue
	last     int64 // when it was used, in nanoseconds
}

type dside struct {
	fd      int32
	segment uint16 // UDP_SEGMENT as the socket has it
	batch   uint8  // datagrams to ask for: as many as came, and then some
}

// datagrams is the part of the translator that moves UDP.
type datagrams struct {
	wheel  *flow.Wheel
	timer  uint32
	pool   *flow.Pool
	flows  *flow.Table[dflow]
	ages   flow.Ages
	queued int

	busyUDP []uint64 // tokens of sockets whose turn was over before their data
	read    [readBatch]flow.Datagram
	vec     [][]byte
	sockErr flow.SocketError
}

func (d *datagrams) init(w *flow.Wheel, timerBase uint32, pool *flow.Pool, size int) {
	d.wheel, d.timer, d.pool = w, timerBase, pool
	d.flows = flow.NewTable[dflow](size)
	d.ages = flow.NewAges(size)
	d.busyUDP = make([]uint64, 0, 2*size)
	d.vec = make([][]byte, 0, maxSegments)
	mem := make([]byte, readBatch*datagramSize)
	for i := range d.read {
		d.read[i].Buf = mem[i*datagramSize : (i+1)*datagramSize : (i+1)*datagramSize]
	}
	d.sockErr.Buf = make([]byte, 512)
}

// Datagrams takes what one peer has sent to a listener with these flags, this
// identifier and this port.
func (t *Translator) Datagrams(listener uint32, flags uint8, port uint16, d []flow.Datagram) {
	peer, from, local := d[0].From, d[0].FromPort, d[0].To
	k := flow.MakeKey(&peer, &local, from, port)
	// Both namespaces have the same loopback addresses, whose first byte is
	// zero: it tells the two apart.
	k[16] = flags & ipc.ListenerNamespace
	i := t.flows.Find(&k)
	if i == flow.None {
		if i = t.openUDP(&k, listener, flags, port); i == flow.None {
			t.Stats.Dropped += uint64(len(d))
			return
		}
	}
	f := t.flows.At(i)
	switch {
	case f.refused:
		t.Stats.Dropped += uint64(len(d))
		return
	case f.wanted > 0:
		for k := range d {
			t.enqueue(f, &d[k])
		}
		return
	}
	t.touch(i, f)
	t.forward(f, far, d)
}

// openUDP makes a flow and asks for its two sockets: one that answers the peer
// from the listener's port, one that leads on.
func (t *Translator) openUDP(k *flow.Key, listener uint32, flags uint8, port uint16) uint32 {
	peer, from := k.Remote()
	local := packet.Addr(k[16:32])
	local[0] = 0
	to := t.farAddress(flags, &peer, &local)
	if from == 0 || to.IsUnspecified() || to.Is4() != peer.Is4() {
		return flow.None
	}
	if t.flows.Len() == t.flows.Cap() && t.ages.Oldest() != flow.None {
		t.Stats.Evicted++
		oldest := t.ages.Oldest()
		t.removeUDP(oldest, t.flows.At(oldest))
	}
	for !t.g.Shares.May(flow.ShareUDP, 2) && t.Evict() {
	}
	i := flow.None
	if t.g.Shares.May(flow.ShareUDP, 2) {
		i = t.flows.Insert(k)
	}
	if i == flow.None {
		t.Stats.NoRoom++
		return i
	}
	t.g.Shares.Take(flow.ShareUDP, 2)
	f := t.flows.At(i)
	f.sides[near].fd, f.sides[far].fd = -1, -1
	f.queue = queue{head: flow.None, tail: flow.None}
	f.last = t.env.Now()
	t.ages.Add(i)
	t.wheel.Set(t.timer+i, f.last+t.lifetime(f))
	gen := t.flows.Gen(i)
	for side, o := range [2]ipc.Open{
		near: {Src: local, Dst: peer, SrcPort: port, DstPort: from},
		far:  {Src: to, Dst: peer, DstPort: from, Flags: ipc.OpenSplice},
	} {
		o.Token, o.Proto, o.Listener = token(gen, i, side, indexUDP), ipc.ProtoUDP, listener
		t.open = o
		if !t.env.Open(&t.open) {
			t.Stats.NoRoom++
			t.removeUDP(i, f)
			return flow.None
		}
		f.wanted++
	}
	t.Stats.FlowsUDP++
	return i
}

// openedUDP takes one of a flow's two sockets. With the second, what has waited
// goes on its way.
func (t *Translator) openedUDP(i, gen uint32, side int, fd int32, o *ipc.Opened) {
	if !t.flows.Live(i, gen) {
		if fd >= 0 {
			t.env.Close(fd)
		}
		return
	}
	f := t.flows.At(i)
	f.wanted--
	if o.Errno != 0 || fd < 0 {
		f.refused = true
	} else {
		f.sides[side].fd = fd
	}
	if f.wanted > 0 {
		return
	}
	for k := range f.sides {
		if fd := f.sides[k].fd; !f.refused && t.env.Watch(fd, token(gen, i, k, indexUDP), flow.Readable) != 0 {
			f.refused = true
		}
	}
	if f.refused {
		t.Stats.Dropped += uint64(f.queue.count)
		t.dropQueue(&f.queue)
		t.closeSides(f)
		f.last = t.env.Now()
		t.wheel.Set(t.timer+i, f.last+refusedLife)
		return
	}
	t.sendQueue(f)
}

// readyUDP is called for events on one of a flow's sockets.
func (t *Translator) readyUDP(i, gen uint32, side int, events uint32) {
	if !t.flows.Live(i, gen) {
		return
	}
	f := t.flows.At(i)
	if f.sides[side].fd < 0 {
		return
	}
	if events&flow.Failed != 0 {
		t.drainErrors(f.sides[side].fd)
	}
	if events&flow.Readable != 0 && !f.busy[side] {
		t.receive(i, f, side)
	}
}

// receive passes on what a socket holds, for one turn.
func (t *Translator) receive(i uint32, f *dflow, side int) {
	s := &f.sides[side]
	for range turnRounds {
		asked := max(int(s.batch), firstBatch)
		n, e := t.env.RecvDatagrams(s.fd, t.read[:asked])
		if e == syscall.EAGAIN {
			return
		}
		if e != 0 { // an error that some datagram of ours has caused
			t.drainErrors(s.fd)
			continue
		}
		t.touch(i, f)
		if side == far {
			f.answered = true
		}
		t.forward(f, 1-side, t.read[:n])
		s.batch = uint8(min(2*n, readBatch))
		if n < asked {
			return // more would raise a new event
		}
	}
	f.busy[side] = true
	t.busyUDP = append(t.busyUDP, token(t.flows.Gen(i), i, side, indexUDP))
}

func (t *Translator) pendingUDP() bool { return len(t.busyUDP) > 0 }

func (t *Translator) pollUDP() {
	n := len(t.busyUDP)
	for _, tok := range t.busyUDP[:n] {
		_, gen, index := flow.SplitToken(tok)
		i, side := index&^indexUDP>>1, int(index&indexFar)
		if !t.flows.Live(i, gen) {
			continue // gone since
		}
		f := t.flows.At(i)
		f.busy[side] = false
		t.receive(i, f, side)
	}
	t.busyUDP = t.busyUDP[:copy(t.busyUDP, t.busyUDP[n:])]
}

// drainErrors empties a socket's error queue, which takes room from data.
// Nothing but a router could tell the peer of them.
func (t *Translator) drainErrors(fd int32) {
	for range flow.MaxErrors {
		if t.env.RecvError(fd, &t.sockErr) != 0 {
			break
		}
	}
	t.env.TakeError(fd)
}

// lifetime is how long a flow may go unused, in nanoseconds.
func (t *Translator) lifetime(f *dflow) int64 {
	idle, stream := t.g.UDPIdle, t.g.UDPStream
	if idle == 0 {
		idle = defaultIdle
	}
	if stream == 0 {
		stream = defaultStream
	}
	switch {
	case f.refused:
		return refusedLife
	case f.answered:
		return int64(stream) * second
	}
	return int64(idle) * second
}

// Timer is called when the timer with this id fires.
func (t *Translator) Timer(id uint32) {
	i := id - t.timer
	f := t.flows.At(i)
	if due := f.last + t.lifetime(f); due > t.env.Now() {
		t.wheel.Set(id, due)
		return
	}
	t.Stats.Expired++
	t.removeUDP(i, f)
}

// Evict closes the flow that was not used for longest, for want of
// descriptors. It reports false if there is none.
func (t *Translator) Evict() bool {
	for i := t.ages.Oldest(); i != flow.None; i = t.ages.Newer(i) {
		if f := t.flows.At(i); f.sides[near].fd >= 0 || f.sides[far].fd >= 0 {
			t.Stats.Evicted++
			t.removeUDP(i, f)
			return true
		}
	}
	return false
}

func (t *Translator) closeSides(f *dflow) {
	for k := range f.sides {
		if f.sides[k].fd >= 0 {
			t.env.Close(f.sides[k].fd)
			f.sides[k].fd = -1
		}
	}
}

func (t *Translator) removeUDP(i uint32, f *dflow) {
	t.dropQueue(&f.queue)
	t.closeSides(f)
	t.wheel.Cancel(t.timer + i)
	t.ages.Remove(i)
	t.g.Shares.Take(flow.ShareUDP, -2)
	t.flows.Remove(i)
}

func (t *Translator) closeUDP() {
	t.flows.Each(func(i uint32) { t.removeUDP(i, t.flows.At(i)) })
}

// touch notes that a flow is in use. Its timer stays where it is, and moves
// when it fires.
func (t *Translator) touch(i uint32, f *dflow) {
	f.last = t.env.Now()
	t.ages.Touch(i)
}
