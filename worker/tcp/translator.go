// SPDX-License-Identifier: Apache-2.0

package tcp

import (
	"crypto/rand"
	"encoding/binary"
	"slices"

	"github.com/dchest/siphash"

	"aldente/ipc"
	"aldente/worker/flow"
	"aldente/worker/packet"
	"aldente/worker/store"
)

// maxPayload is the most one super-frame carries: an IP packet of 65,535
// bytes less the largest headers without options.
const maxPayload = 65535 - 60 - 20

// softwarePayload is the same for large segments where package link cuts them
// and the kernel copies them from where they lie: fewer system calls, and fewer
// times that the reader at the other end is woken. Small ones are copied once
// more, and had better stay in the cache.
const (
	softwarePayload = 256 << 10
	largeSegment    = 8 << 10
)

// mostReserve is how many chunks one flow sets aside for the link's window.
func mostReserve(g *flow.Guest) uint16 { return uint16(1 + g.Window/store.ChunkSize) }

func bufferSize(g *flow.Guest) int {
	if g.SoftwareGSO {
		return softwarePayload
	}
	return maxPayload
}

// superPayload is the most that one super-frame of c carries, in whole
// segments.
func (t *Translator) superPayload(c *conn) uint32 {
	n := uint32(maxPayload)
	if c.mss >= largeSegment {
		n = uint32(len(t.buf))
	}
	return n - n%uint32(c.mss)
}

// Translator holds all TCP connections of a lane.
type Translator struct {
	env   flow.Env
	g     *flow.Guest
	wheel *store.Wheel
	timer uint32 // first timer id
	pool  *store.Pool
	flows *store.Table[conn]

	sets     []ranges // for flows in recovery
	freeSets []uint32

	// Bypass takes connections that do not go by the guest's link. It must be
	// set where listeners have a flag that says so.
	Bypass func(listener uint32, flags uint8, fd int32, peer packet.Addr, port uint16)

	// BypassRoom tells whether there is room for one more of those, nil: there is.
	BypassRoom func(flags uint8) bool

	listeners []listener
	unused    []uint32 // places in listeners
	paused    bool     // listeners wait for another turn, or for room
	starved   bool     // listeners wait for a descriptor to be closed

	// halfOpen are the connections that the guest asks for and that are not made
	// yet, in the order in which it did. The oldest makes room where there is none.
	halfOpen store.Ages

	dirty   []uint32 // flows to look at when the batch ends
	ready   []uint32 // flows with data for the guest and room for it
	pending [][]byte // payloads in order of flow pendFlow, not yet written
	pendLen int
	pendOf  uint32
	pushed  int // bytes of data sent to the guest since Poll

	reserved    int    // chunks set aside for windows
	mostReserve uint16 // of them for one flow
	answers     uint8  // quick ones that a new connection is taken to have had
	isn0, isn1  uint64
	buf         []byte // what was peeked at
	hdr         [packet.MaxHeaders]byte
	offload     packet.Offload
	ends        packet.Ends
	fields      packet.TCPFields
	sackBuf     [4]packet.SACKBlock
	vec         [64][]byte
	open        ipc.Open

	Stats Stats // since New
}

// New makes a translator for up to maxFlows connections, which uses timer ids
// from timerBase on.
func New(env flow.Env, g *flow.Guest, w *store.Wheel, timerBase uint32, pool *store.Pool, maxFlows int) *Translator {
	t := &Translator{
		env: env, g: g, wheel: w, timer: timerBase, pool: pool,
		flows:       store.NewTable[conn](maxFlows),
		sets:        make([]ranges, min(maxFlows, 2048)),
		halfOpen:    store.NewAges(maxFlows),
		dirty:       make([]uint32, 0, maxFlows+256), // one that ended in a batch may be on it again
		ready:       make([]uint32, 0, maxFlows),
		pending:     make([][]byte, 0, 256),
		pendOf:      store.None,
		answers:     quickEnough,
		mostReserve: mostReserve(g),
		buf:         make([]byte, bufferSize(g)),
		freeSets:    make([]uint32, 0, min(maxFlows, 2048)),
	}
	for i := range t.sets {
		t.freeSets = append(t.freeSets, uint32(len(t.sets)-i)) // index+1, lowest on top
	}
	var key [16]byte
	rand.Read(key[:])
	t.isn0 = binary.LittleEndian.Uint64(key[:8])
	t.isn1 = binary.LittleEndian.Uint64(key[8:])
	return t
}

// Timers is the number of connections that fit, and of timer ids used.
func (t *Translator) Timers() int { return t.flows.Cap() }

// Len is the number of connections.
func (t *Translator) Len() int { return t.flows.Len() }

// isn chooses an initial sequence number, RFC 6528 section 3: a clock of 4
// microseconds and a keyed hash of the connection.
func (t *Translator) isn(k *store.Key) uint32 {
	return uint32(siphash.Hash(t.isn0, t.isn1, k[:])) + uint32(t.env.Now()>>12)
}

func (t *Translator) touch(i uint32, c *conn) {
	if !c.has(flagDirty) {
		c.set(flagDirty)
		t.dirty = append(t.dirty, i)
	}
}

func (t *Translator) makeReady(i uint32, c *conn) {
	if !c.has(flagReady) {
		c.set(flagReady)
		t.ready = append(t.ready, i)
	}
}

// Write gives the sockets what frames from the guest carried. The frames'
// memory is free for reuse then.
func (t *Translator) Write() { t.writePending() }

// Flush ends a batch of frames from the guest: what they carried goes to the
// sockets, what they acknowledged is dequeued, what is owed to the guest is
// sent.
func (t *Translator) Flush() {
	t.writePending()
	for n := 0; n < len(t.dirty); n++ {
		i := t.dirty[n]
		c := t.flows.At(i)
		if !c.has(flagDirty) {
			continue // removed since
		}
		c.clear(flagDirty)
		t.settle(i, c)
	}
	t.dirty = t.dirty[:0]
}

// settle does what a batch left for one flow.
func (t *Translator) settle(i uint32, c *conn) {
	if c.state != stateOpen {
		if c.state == stateTimeWait && c.has(flagAckNow) {
			t.sendAck(i, c)
		}
		return
	}
	t.dequeue(c, dequeueLazily)
	if c.has(flagReadable) || t.owesFIN(c) || before(c.sndNxt, c.sndMax) {
		t.push(i, c)
		if t.flows.At(i).state != stateOpen {
			return
		}
	}
	switch {
	case c.has(flagAckNow):
		t.sendAck(i, c)
	case c.has(flagAckLater) && c.ackAt == 0:
		c.ackAt = t.env.Now() + ackDelay
	}
	t.arm(i, c)
}

// Pending tells whether Poll has work that no event will announce.
func (t *Translator) Pending() bool {
	return len(t.ready) > 0 && t.env.CanSend() || t.paused && t.hasRoom(flow.ShareIn)
}

// Poll goes on with flows that were ready before, in their order. What it sends
// is bounded, as is what events of the same turn have: other traffic need not
// wait for long, however many flows are ready.
func (t *Translator) Poll() {
	if t.paused && t.hasRoom(flow.ShareIn) {
		t.acceptAll()
	}
	n, k := len(t.ready), 0
	for t.pushed = 0; k < n && t.pushed < turnBytes && t.env.CanSend(); k++ {
		i := t.ready[k]
		c := t.flows.At(i)
		if !c.has(flagReady) {
			continue // removed since
		}
		c.clear(flagReady)
		t.settle(i, c)
	}
	t.ready = t.ready[:copy(t.ready, t.ready[k:])]
	t.pushed = 0
}

// Resume is called when the link takes frames again.
func (t *Translator) Resume() { t.Poll() }

// getSet takes a set of ranges from the pool; nil when there is none left.
func (t *Translator) getSet(ref *uint32) *ranges {
	if *ref == 0 {
		n := len(t.freeSets)
		if n == 0 {
			return nil
		}
		*ref = t.freeSets[n-1]
		t.freeSets = t.freeSets[:n-1]
		t.sets[*ref-1].reset()
	}
	return &t.sets[*ref-1]
}

func (t *Translator) putSet(ref *uint32) {
	if *ref != 0 {
		t.freeSets = append(t.freeSets, *ref)
		*ref = 0
	}
}

// remove ends a flow on our side and frees all it holds. What is in the
// socket's send buffer is still delivered.
func (t *Translator) remove(i uint32, c *conn) {
	if c.fd >= 0 {
		t.close(c.fd)
		c.fd = -1
	}
	if t.pendOf == i {
		t.dropPending()
	}
	if c.has(flagReady) {
		// With the link stalled, the list must not grow by flows that end.
		k := slices.Index(t.ready, i)
		t.ready = slices.Delete(t.ready, k, k+1)
	}
	t.dropQueue(c)
	t.putSet(&c.held)
	t.putSet(&c.sacked)
	t.reserved -= int(c.reserved)
	c.reserved = 0
	t.wheel.Cancel(t.timer + i)
	t.madeOrGone(i, c)
	t.giveBack(c)
	c.flags = 0
	c.state = 0
	t.flows.Remove(i)
}

// close closes a connection's descriptor, which may be what a listener waits
// for.
func (t *Translator) close(fd int32) {
	t.env.Close(fd)
	t.Freed()
}

// Evict reports that no connection gives way for want of descriptors.
func (t *Translator) Evict() bool { return false }

// Freed tells that a descriptor was closed elsewhere.
func (t *Translator) Freed() {
	if t.starved {
		t.starved, t.paused = false, true
	}
}

// abort resets the host's side and forgets the flow.
func (t *Translator) abort(i uint32, c *conn) {
	t.Stats.Reset++
	if c.fd >= 0 {
		t.env.Abort(c.fd)
		t.Freed()
		c.fd = -1
	}
	t.remove(i, c)
}

// Close ends all connections, resetting them on the host.
func (t *Translator) Close() {
	t.flows.Each(func(i uint32) { t.abort(i, t.flows.At(i)) })
}
