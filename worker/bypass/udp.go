// SPDX-License-Identifier: Apache-2.0

package bypass

import (
	"syscall"

	"aldente/ipc"
	"aldente/worker/datagram"
	"aldente/worker/flow"
	"aldente/worker/packet"
	"aldente/worker/store"
)

const (
	// readBatch is how many datagrams, each perhaps several that UDP_GRO
	// joined, are read with one call at most, firstBatch at first.
	readBatch  = 32
	firstBatch = 2
	// turnRounds bounds the calls for one socket before others have a turn.
	turnRounds = 4
	// maxSegment is the largest datagram that travels with others, in bytes. Larger
	// ones gain nothing, and the kernel refuses them on links with a smaller MTU.
	maxSegment = 16 << 10
	// maxQueued is how many chunks may wait for sockets, of all flows.
	maxQueued = 3072
)

// dflow is one flow of datagrams: a peer that spoke to a listener, and where
// what it says goes to. Both sockets come from the broker: the far one with the
// first datagram, the near one, which answers, as a rule with the first answer.
type dflow struct {
	sides    [2]dside
	listener uint32
	opening  bool    // the far socket is on its way
	asked    bool    // the near socket was asked for
	refused  bool    // the broker had no socket
	how      ipc.How // it ends; zero: another has its place
	answered bool    // there was traffic in both directions
	other    bool    // the far socket was asked for by the family that the peer is not of
	busy     [2]bool
	queue    datagram.Queue // of the peer's first datagrams, while the far socket is on its way
	last     int64          // when it was used, in nanoseconds

	flow.Traffic // of a flow out of the namespace; of others the other way round

	// Where the far socket is connected to. The near one's peer is in the key.
	farAddr packet.Addr
	farPort uint16
}

// Anybody on a loopback interface can make flows that are never answered. They are
// one of so many flows at most, and give way to one another only.
const unansweredPart = 2

// maxPreopened is how many flows may wait for their first answer with a socket
// for it at hand. It spares the answer a question to the broker; beyond that,
// those that may never be answered have no socket on the listener's port.
const maxPreopened = 64

type dside struct {
	sock  datagram.Socket
	batch uint8 // datagrams to ask for: as many as came, and then some
}

// datagrams is the part of the translator that moves UDP.
type datagrams struct {
	wheel         *store.Wheel
	timer         uint32
	flows         *store.Table[dflow]
	ages          store.LRU // of flows that were answered
	unanswered    store.LRU // of the others
	numUnanswered int       // their number
	maxUnanswered int       // of those
	queues        datagram.Queues

	// Return takes what came to a socket that answers for a listener, and is not
	// from its peer, to that listener. It must be set where UDP listeners are.
	Return func(listener uint32, d []flow.Datagram)

	busyUDP []uint64 // tokens of sockets whose turn was over before their data
	read    [readBatch]flow.Datagram
	batch   datagram.Batch
	writer  datagram.Writer
	sockErr flow.SocketError
}

func (d *datagrams) init(w *store.Wheel, timerBase uint32, pool *store.Pool, size int) {
	d.wheel, d.timer = w, timerBase
	d.queues = datagram.NewQueues(pool, maxQueued)
	d.flows = store.NewTable[dflow](size)
	d.ages, d.unanswered = store.NewLRU(size), store.NewLRU(size)
	d.maxUnanswered = size / unansweredPart
	d.busyUDP = make([]uint64, 0, 2*size)
	datagram.Buffers(d.read[:])
	d.sockErr.Buf = make([]byte, 512)
}

// Datagrams takes what one peer has sent to a listener with these flags, this
// identifier and this port.
func (t *Translator) Datagrams(listener uint32, flags uint8, port uint16, d []flow.Datagram) {
	peer, from, local := d[0].From, d[0].FromPort, d[0].To
	k := store.MakeKey(&peer, &local, from, port)
	// Both namespaces have the same loopback addresses, whose first byte is
	// zero: it tells the two apart. No address that a datagram is sent to begins
	// with the flag.
	k[16] |= flags & ipc.ListenerNamespace
	i := t.flows.Find(&k)
	if i == store.None {
		if i = t.openUDP(&k, listener, flags); i == store.None {
			t.Stats.Dropped += uint64(len(d))
			return
		}
	}
	f := t.flows.At(i)
	f.listener = listener // of this name now, if there was another
	switch {
	case f.refused:
		t.Stats.Dropped += uint64(len(d))
		return
	case f.opening:
		for k := range d {
			t.await(f, &d[k])
		}
		return
	}
	t.touch(i, f)
	t.forward(f, far, d)
}

// await keeps a datagram until the far socket is there, or drops it if there is
// no room.
func (t *Translator) await(f *dflow, d *flow.Datagram) {
	if d.Truncated || !t.queues.Add(&f.queue, d.Buf[:d.N], datagram.Mark{Segment: uint16(d.Segment)}) {
		t.Stats.Dropped++
	}
}

// sendQueue forwards what has waited. It must not be called from within forward,
// whose buffers it uses.
func (t *Translator) sendQueue(f *dflow) {
	for f.queue.Len() > 0 {
		d := &t.read[0]
		n, m := t.queues.Next(&f.queue, d.Buf)
		d.N, d.Segment, d.Truncated = n, int(m.Segment), false
		t.forward(f, far, t.read[:1])
	}
	t.queues.Clear(&f.queue)
}

// openUDP makes a flow and asks for the socket that leads on.
func (t *Translator) openUDP(k *store.Key, listener uint32, flags uint8) uint32 {
	peer, from := k.Remote()
	local := nearAddr(k)
	to, as, ok := t.far(flags, &peer, &local)
	if from == 0 || !ok {
		return store.None
	}
	if t.numUnanswered == t.maxUnanswered {
		t.evict(t.unanswered.Oldest())
	}
	for !t.g.Shares.May(flow.ShareBypass, 2) && t.Evict() {
	}
	i := store.None
	if t.g.Shares.May(flow.ShareBypass, 2) {
		i = t.flows.Insert(k)
	}
	if i == store.None {
		t.Stats.NoRoom++
		return i
	}
	t.g.Shares.Take(flow.ShareBypass, 2)
	f := t.flows.At(i)
	f.sides[near].sock.FD, f.sides[far].sock.FD = -1, -1
	f.listener = listener
	f.last = t.env.Now()
	f.Born = f.last
	t.unanswered.Add(i)
	t.numUnanswered++
	t.wheel.Set(t.timer+i, f.last+t.lifetime(f))
	f.other = as != peer
	if !t.openFarUDP(i, f, to, as, from) {
		t.Stats.NoRoom++
		t.removeUDP(i, f)
		return store.None
	}
	t.Stats.FlowsUDP++
	return i
}

// openFarUDP asks for the socket that leads on. It reports false if that is not
// possible now.
func (t *Translator) openFarUDP(i uint32, f *dflow, to, as packet.Addr, from uint16) bool {
	t.open = ipc.Open{
		Token: token(t.flows.Gen(i), i, far, indexUDP), Proto: ipc.ProtoUDP, Listener: f.listener,
		Flags: ipc.OpenBypass, Src: to, Dst: as, DstPort: from,
	}
	f.opening = t.env.Open(&t.open)
	return f.opening
}

// openOtherUDP is openOther for datagrams.
func (t *Translator) openOtherUDP(i uint32, f *dflow, o *ipc.Opened) bool {
	k := t.flows.Key(i)
	if f.other || outOfNamespace(k) || !flow.LacksFamily(syscall.Errno(o.Errno)) {
		return false
	}
	f.other = true
	peer, from := k.Remote()
	to, as := t.otherFar(peer.Is4())
	return !to.IsUnspecified() && to.Is4() == as.Is4() && t.openFarUDP(i, f, to, as, from)
}

// outOfNamespace tells whether a flow came by a listener in the namespace.
func outOfNamespace(k *store.Key) bool { return k[16]&ipc.ListenerNamespace != 0 && k[17] == 0 }

// nearAddr is the address that a flow's peer spoke to.
func nearAddr(k *store.Key) packet.Addr {
	local := packet.Addr(k[16:32])
	if local[0] == ipc.ListenerNamespace {
		local[0] = 0
	}
	return local
}

// openNear asks for the socket that answers the peer from the listener's port. It
// reports false if that is not possible now.
func (t *Translator) openNear(i uint32, f *dflow) bool {
	k := t.flows.Key(i)
	peer, from := k.Remote()
	_, port := k.Guest()
	local := nearAddr(k)
	if local.IsMulticast() || local.IsBroadcast() {
		local = packet.Addr{} // answered from any address
	}
	t.open = ipc.Open{
		Token: token(t.flows.Gen(i), i, near, indexUDP), Proto: ipc.ProtoUDP, Listener: f.listener,
		Src: local, Dst: peer, SrcPort: port, DstPort: from,
	}
	f.asked = t.env.Open(&t.open)
	return f.asked
}

// openedUDP takes one of a flow's two sockets. With the far one, what has waited
// goes on its way; with the near one, what the far one holds already.
func (t *Translator) openedUDP(i, gen uint32, side int, fd int32, o *ipc.Opened) {
	if !t.flows.Live(i, gen) {
		if fd >= 0 {
			t.env.Close(fd)
		}
		return
	}
	f := t.flows.At(i)
	if side == far {
		f.opening = false
		if t.openOtherUDP(i, f, o) {
			return
		}
	}
	if o.Errno == 0 && fd >= 0 {
		f.sides[side].sock = datagram.NewSocket(fd, maxSegment)
		f.refused = f.refused || t.env.Watch(fd, token(gen, i, side, indexUDP), flow.Readable) != 0
	} else {
		f.refused = true
	}
	switch {
	case f.refused:
		t.Stats.Dropped += uint64(f.queue.Len())
		t.queues.Clear(&f.queue)
		f.how = ipc.EndRefused
		t.closeSides(i, f)
		f.last = t.env.Now()
		t.wheel.Set(t.timer+i, f.last+datagram.RefusedLife)
	case side == far:
		f.farAddr, f.farPort = o.Addr, o.PeerPort
		if t.numUnanswered <= maxPreopened {
			t.openNear(i, f)
		}
		t.sendQueue(f)
	case !f.busy[far]:
		t.receive(i, f, far)
	}
}

// readyUDP is called for events on one of a flow's sockets.
func (t *Translator) readyUDP(i, gen uint32, side int, events uint32) {
	if !t.flows.Live(i, gen) {
		return
	}
	f := t.flows.At(i)
	if f.sides[side].sock.FD < 0 {
		return
	}
	if events&flow.Failed != 0 {
		datagram.Discard(t.env, f.sides[side].sock.FD, &t.sockErr)
	}
	if events&flow.Readable != 0 && !f.busy[side] {
		t.receive(i, f, side)
	}
}

// receive passes on what a socket holds, for one turn. An answer waits where it is
// until there is a socket that it may leave by.
func (t *Translator) receive(i uint32, f *dflow, side int) {
	s := &f.sides[side]
	if f.sides[near].sock.FD < 0 {
		if !f.asked && !t.openNear(i, f) {
			t.again(i, f, side)
		}
		return
	}
	for range turnRounds {
		asked := max(int(s.batch), firstBatch)
		n, e := t.env.RecvDatagrams(s.sock.FD, t.read[:asked])
		if e == syscall.EAGAIN {
			return
		}
		if e != 0 { // an error that some datagram of ours has caused
			datagram.Discard(t.env, s.sock.FD, &t.sockErr)
			continue
		}
		t.touch(i, f)
		if d := t.fromPeer(i, f, side, t.read[:n]); len(d) > 0 && s.sock.FD >= 0 {
			if side == far && !f.answered {
				t.answer(i, f)
			}
			t.forward(f, 1-side, d)
		}
		s.batch = uint8(min(2*n, readBatch))
		if n < asked || s.sock.FD < 0 {
			return // more would raise a new event
		}
	}
	t.again(i, f, side)
}

// again has a socket read in the next turn.
func (t *Translator) again(i uint32, f *dflow, side int) {
	f.busy[side] = true
	t.busyUDP = append(t.busyUDP, token(t.flows.Gen(i), i, side, indexUDP))
}

// fromPeer leaves out what somebody else has sent: on its way to the listener, or to
// nobody, when the socket was bound and not connected yet. The listener gets it.
func (t *Translator) fromPeer(i uint32, f *dflow, side int, d []flow.Datagram) []flow.Datagram {
	peer, port := f.farAddr, f.farPort
	if side == near {
		peer, port = t.flows.Key(i).Remote()
	}
	own, others := datagram.FromPeer(d, peer, port)
	for k := range others {
		t.stray(i, f, side, others[k:k+1])
	}
	return own
}

func (t *Translator) stray(i uint32, f *dflow, side int, d []flow.Datagram) {
	if side == far {
		t.Stats.Dropped++
		return
	}
	if d[0].To.IsZero() {
		d[0].To = nearAddr(t.flows.Key(i))
	}
	t.Return(f.listener, d)
}

// forward writes datagrams to one of a flow's sockets, those of equal size
// together. What a socket has no room for is lost, as it would be on a link.
func (t *Translator) forward(f *dflow, side int, d []flow.Datagram) {
	to := &f.sides[side].sock
	for k := range d {
		if d[k].Truncated {
			t.Stats.Dropped++
			continue
		}
		if side == far {
			f.Out(d[k].N, flow.Packets(d[k].N, d[k].Segment))
		} else {
			f.In(d[k].N, flow.Packets(d[k].N, d[k].Segment))
		}
		data, size := d[k].Buf[:d[k].N], d[k].N
		if d[k].Segment > 0 {
			size = min(size, d[k].Segment)
		}
		for more := true; more; more = len(data) > 0 {
			part, alone := to.Cut(data, size)
			data = data[len(part):]
			if !alone && t.batch.Add(part, size) {
				continue
			}
			t.flush(to)
			if !alone {
				t.batch.Add(part, size)
			} else if t.writer.WriteOne(0, to, part) {
				t.Stats.Datagrams++
			} else {
				t.Stats.Dropped++
			}
		}
	}
	t.flush(to)
}

// flush writes what was collected.
func (t *Translator) flush(to *datagram.Socket) {
	n := t.batch.Count()
	sent := t.writer.Write(0, to, &t.batch)
	t.Stats.Datagrams += uint64(sent)
	t.Stats.Dropped += uint64(n - sent)
}

// answer notes that a flow has been answered.
func (t *Translator) answer(i uint32, f *dflow) {
	if t.flows.Len()-t.numUnanswered >= t.flows.Cap()-t.maxUnanswered {
		t.evict(t.ages.Oldest())
	}
	t.unlist(i, f)
	f.answered = true
	t.ages.Add(i)
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
