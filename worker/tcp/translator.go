// SPDX-License-Identifier: Apache-2.0

package tcp

import (
	"crypto/rand"
	"encoding/binary"

	"github.com/dchest/siphash"

	"aldente/ipc"
	"aldente/worker/flow"
	"aldente/worker/packet"
	"aldente/worker/store"
)

// maxPayload is the most one super-frame carries: an IP packet of 65,535
// bytes less the largest headers without options.
const maxPayload = 65535 - 60 - 20

// softwarePayload is the same for large segments that package link cuts and the
// kernel copies from where they lie. It takes fewer system calls, and the reader
// at the other end is woken less often. Small ones are copied once more, and had
// better stay in the cache.
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
	env   Env
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

	// Held tells whether it is for a limit that a socket takes no more. Then its flow
	// hears of flow.Released when more may go. Nil: there is no limit.
	Held func(token uint64) bool
	// Accepted hears of connections that come by a listener and go by the guest's
	// link. Nil: nobody asks.
	Accepted func(fd int32, token uint64, listener uint32, peer packet.Addr, port uint16)
	// Ended hears of connections whose socket is about to be closed. Nil: nobody asks.
	Ended func(fd int32, how ipc.How, t *flow.Traffic)
	// BypassRoom tells whether there is room for one more of those, nil: there is.
	BypassRoom func(flags uint8) bool

	listeners    []listener
	unused       []uint32 // places in listeners
	lastListener int      // behind the one that was looked for last
	paused       bool     // listeners wait for another turn
	starved      bool     // listeners, or connections from them, wait for a flow to end
	lots         [ways]lot

	// made are the flows of each direction, and least what of the table is kept for
	// it, by ShareOut and ShareIn.
	made, least [2]int
	// places are made and those that have nothing left but their place: TIME-WAIT.
	places [2]int

	// halfOpen are the connections that the guest asks for and that are not made
	// yet, in the order in which it did. The oldest makes room where there is none.
	halfOpen store.LRU

	dirty  []uint32 // flows to look at when the batch ends
	ready  []uint32 // flows with data for the guest and room for it
	marked []uint32 // flows of which Sweep has something to free
	batch  batch

	pushed   int   // bytes of data sent to the guest since Poll, or in it
	most     int   // of them in Poll
	polling  bool  // those go on that have waited for their turn
	besideAt int64 // when somebody has last had little to say

	reserved     int    // chunks set aside for windows
	mostReserve  uint16 // of them for one flow
	quickReplies uint8  // quick ones that a new connection is taken to have had
	isn0, isn1   uint64
	buf          []byte       // what was peeked at
	into         [][]byte     // where else it is written to, see reserve; nil: nowhere
	part         [1024][]byte // pieces of that
	hdr          [packet.MaxHeaders]byte
	offload      packet.Offload
	ends         packet.Ends
	fields       packet.TCPFields
	sackBuf      [4]packet.SACKBlock
	vec          [64][]byte
	open         ipc.Open

	Stats Stats // since New
}

// New makes a translator for up to maxFlows connections, which uses timer ids
// from timerBase on.
func New(env Env, g *flow.Guest, w *store.Wheel, timerBase uint32, pool *store.Pool, maxFlows int) *Translator {
	t := &Translator{
		env: env, g: g, wheel: w, timer: timerBase, pool: pool,
		flows:        store.NewTable[conn](maxFlows),
		sets:         make([]ranges, min(maxFlows, 2048)),
		halfOpen:     store.NewLRU(maxFlows),
		dirty:        make([]uint32, 0, maxFlows+256), // one that ended in a batch may be on it again
		ready:        make([]uint32, 0, maxFlows),
		marked:       make([]uint32, 0, maxFlows),
		batch:        newBatch(),
		quickReplies: maxQuickReplies,
		mostReserve:  mostReserve(g),
		most:         bulkTurn,
		buf:          make([]byte, bufferSize(g)),
		freeSets:     make([]uint32, 0, min(maxFlows, 2048)),
	}
	for k := range t.lots {
		t.lots[k].ring = make([]parked, mostParked)
	}
	// As in flow.NewShares; of the chunks, half.
	all := min(maxFlows, pool.Len()/(2*minReserve))
	t.least = [2]int{flow.ShareOut: all / 4, flow.ShareIn: all * 3 / 32}
	for i := range t.sets {
		t.freeSets = append(t.freeSets, uint32(len(t.sets)-i)) // index+1, lowest on top
	}
	var key [16]byte
	rand.Read(key[:])
	t.isn0 = binary.LittleEndian.Uint64(key[:8])
	t.isn1 = binary.LittleEndian.Uint64(key[8:])
	return t
}

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
func (t *Translator) Write() { t.writeBatch() }

// Flush ends a batch of frames from the guest: what they carried goes to the
// sockets, what they acknowledged is dequeued, what is owed to the guest is
// sent.
func (t *Translator) Flush() {
	t.writeBatch()
	for n := 0; n < len(t.dirty); n++ {
		i := t.dirty[n]
		c := t.flows.At(i)
		if !c.has(flagDirty) {
			continue // freed since
		}
		c.clear(flagDirty)
		t.finishBatch(i, c)
	}
	t.dirty = t.dirty[:0]
}

// finishBatch does what a batch left for one flow.
func (t *Translator) finishBatch(i uint32, c *conn) {
	if c.state != stateOpen {
		if c.state == stateTimeWait && c.has(flagAckNow) {
			t.sendAck(i, c)
		}
		return
	}
	t.dequeue(c, dequeueLazily)
	if c.has(flagReadable) || t.owesFIN(c) || before(c.sndNxt, c.sndMax) {
		t.push(i, c)
	}
	switch {
	case c.has(flagAckNow):
		t.sendAck(i, c)
	case c.has(flagAckLater) && c.ackAt == 0:
		c.ackAt = t.env.Now() + ackDelay
	}
	t.arm(i, c)
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

// Evict reports that no connection gives way for want of descriptors.
func (t *Translator) Evict() bool { return false }

// Freed tells that there may be room: a flow has ended, or a descriptor was closed
// elsewhere.
func (t *Translator) Freed() {
	if t.starved {
		t.starved, t.paused = false, true
	}
}

// Close ends all connections, resetting them on the host.
func (t *Translator) Close() {
	for k := range t.lots {
		for q := &t.lots[k]; q.n > 0; {
			p := q.get()
			t.g.Shares.Take(flow.ShareIn, -1)
			t.env.Abort(p.fd)
		}
	}
	t.flows.Each(func(i uint32) { t.abort(i, t.flows.At(i)) })
	t.Sweep()
}
