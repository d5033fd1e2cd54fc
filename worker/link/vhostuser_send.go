// SPDX-License-Identifier: Apache-2.0

package link

import (
	"encoding/binary"

	"aldente/worker/packet"
	"aldente/worker/vhost"
	"aldente/worker/vhostuser"
)

// publishAt is from which size of a frame on the guest sees it at once, and may begin
// with it. Smaller ones it sees together.
const publishAt = 8 << 10

// looks is how often a ring is looked at to which buffers come one by one.
const looks = 4

// rxQueue takes frames to the guest, in buffers of which some were taken from the ring
// beforehand.
type rxQueue struct {
	queue
	*stash
	short   bool // a frame did not fit, and the guest kicks when there is more room
	waited  bool // for some time: since the last Expire
	stalled bool // for too long: what goes by other queues does not wait for this one
	most    int  // buffers that were here at a time
}

// lacking notes that a frame has not fitted. A queue that stays so is told of by Expire.
func (v *vhostUser) lacking(q *rxQueue) {
	if !q.short {
		q.short, q.waited, q.stalled = true, false, false
		if len(v.active) > 1 {
			v.watcher.Short()
		}
	}
}

// Expire implements Watched. Whoever offers no buffers for that long to one queue, and has
// another, is not waited for: what goes by that queue is lost.
func (v *vhostUser) Expire() (again, room bool) {
	before := v.CanSend()
	for _, i := range v.active {
		q := &v.rx[i]
		if !q.short || q.stalled {
			continue
		}
		q.stalled, q.waited = q.waited, true
		again = again || !q.stalled
	}
	return again, !before && v.CanSend()
}

// stash is buffers that were taken and not used yet: chains[next:n].
type stash struct {
	arena   *vhost.Arena
	chains  [rxChains]vhost.Chain
	next, n int
	left    int // bytes of them
}

func newStash() *stash { return &stash{arena: vhost.NewArena(rxPieces)} }

// unstash puts them back.
func (q *rxQueue) unstash() {
	if q.stash == nil {
		return
	}
	for q.n > q.next {
		q.n--
		q.Unpop(&q.chains[q.n])
	}
	q.next, q.n, q.left = 0, 0, 0
	q.arena.Reset()
}

// fill takes buffers until there are size bytes, as far as there are. It reports whether
// there are.
func (q *rxQueue) fill(size int) bool {
	if q.left >= size {
		return true
	}
	if q.next == q.n {
		q.next, q.n = 0, 0
		q.arena.Reset()
	}
	for again := true; q.left < size; {
		if q.n < len(q.chains) && q.Pop(&q.chains[q.n], q.arena) {
			q.left += q.chains[q.n].Len
			q.n++
			continue
		}
		if !again || q.next == 0 || q.Waiting() == 0 {
			return false
		}
		// The stash ends here: begin it anew.
		q.unstash()
		again = false
	}
	q.count()
	return true
}

// ensure tells whether there are buffers for total bytes. If there are too few, the
// guest is asked to kick when there are more.
func (v *vhostUser) ensure(q *rxQueue, total int) bool {
	merge := v.merges()
	if q.fits(total, merge) {
		return true
	}
	for range looks {
		if v.broken(&q.queue) || !merge && q.left > 0 {
			return false
		}
		if !q.EnableKicks() {
			if q.lacks() {
				v.lacking(q)
			}
			return false
		}
		if q.fits(total, merge) {
			q.DisableKicks()
			return true
		}
	}
	return false
}

// lacks tells whether the guest is going to offer buffers: it has more than half of those
// that were here at a time. Linux's driver, and others, keep up to half of a ring until
// they have more; there is no use in waiting for these.
func (q *rxQueue) lacks() bool {
	held := q.count()
	return 2*held < q.most || held == 0
}

// count is how many buffers are here.
func (q *rxQueue) count() int {
	held := q.n - q.next + q.Waiting()
	q.most = max(q.most, held)
	return held
}

// CanSend tells whether there is a ring that frames are sent by, and none is short of buffers
// but those that nobody waits for any more.
func (v *vhostUser) CanSend() bool {
	if v.err != nil {
		return false
	}
	any := false
	for _, i := range v.active {
		switch q := &v.rx[i]; {
		case !q.short:
			any = true
		case !q.stalled:
			return false
		}
	}
	return any
}

// Writable tells whether there is room.
func (v *vhostUser) Writable() bool { return v.CanSend() }

// roomAgain takes the kick of a queue, and tells whether there is room by all. What it was
// for, small frames may have taken already: whoever waits has to try again even so, since
// only that asks for the next kick.
func (v *vhostUser) roomAgain(q *rxQueue) bool {
	if q.short {
		q.count()
		q.short = false
		q.DisableKicks()
	}
	return v.CanSend()
}

// queueFor is the queue of a frame's flow, nil: the guest takes none.
func (v *vhostUser) queueFor(headers []byte) *rxQueue {
	switch len(v.active) {
	case 0:
		return nil
	case 1:
		return &v.rx[v.active[0]]
	}
	return v.pair(v.steer.find(headers))
}

// pair is the queue for what hashes to h, and by whose pair the guest has sent it.
func (v *vhostUser) pair(h uint32, learned int) *rxQueue {
	if learned >= 0 && v.rx[learned].started && v.rx[learned].enabled {
		return &v.rx[learned]
	}
	return &v.rx[v.active[h%uint32(len(v.active))]]
}

// Send copies a frame to the guest's memory, after doing what the guest cannot.
func (v *vhostUser) Send(o *packet.Offload, headers, payload []byte) bool {
	v.reserved = nil
	if o == nil {
		o = &v.none
	}
	size := len(headers) + len(payload)
	var q *rxQueue
	if v.err == nil && len(headers) >= MinFrame {
		q = v.queueFor(headers)
	}
	switch {
	case size < MinFrame || len(headers) < MinFrame:
		v.counters.Refused++
		return false
	case q == nil:
		v.counters.Dropped++
		return false
	case o.GSOType != packet.GSONone && (!v.takes(o, headers) || !q.fits(v.header+size, v.merges())):
		return v.sendCut(q, o, headers, payload)
	case o.Flags&packet.OffloadNeedsChecksum != 0 && !v.has(vhostuser.FeatureGuestCSum):
		if len(headers) > len(v.head)-vnetLen {
			return v.sendWhole(q, o, headers)
		}
		head := v.head[vnetLen : vnetLen+copy(v.head[vnetLen:], headers)]
		if !complete(head, payload, o) {
			v.counters.Refused++
			return false
		}
		return v.put(q, &v.none, head, payload)
	}
	return v.put(q, o, headers, payload)
}

// sendWhole completes the checksum of a frame that is all in headers, where it lies:
// whoever sends one like this has no use for it afterwards.
func (v *vhostUser) sendWhole(q *rxQueue, o *packet.Offload, frame []byte) bool {
	own := *o
	packet.CompleteChecksum(frame, &own)
	return v.put(q, &v.none, frame, nil)
}

// takes tells whether the guest does the cutting itself.
func (v *vhostUser) takes(o *packet.Offload, headers []byte) bool {
	v4 := binary.BigEndian.Uint16(headers[12:]) == packet.EtherTypeIPv4
	need := uint64(vhostuser.FeatureGuestCSum)
	switch kind := o.GSOType &^ packet.GSOECN; {
	case kind == packet.GSOTCPv4:
		need |= vhostuser.FeatureGuestTSO4
	case kind == packet.GSOTCPv6:
		need |= vhostuser.FeatureGuestTSO6
	case v4:
		need |= vhostuser.FeatureGuestUSO4
	default:
		need |= vhostuser.FeatureGuestUSO6
	}
	if o.GSOType&packet.GSOECN != 0 {
		need |= vhostuser.FeatureGuestECN
	}
	return v.has(need)
}

// merges tells whether a frame may fill several buffers.
func (v *vhostUser) merges() bool { return v.has(vhostuser.FeatureMrgRxBuf) }

// sendCut cuts a super-frame that the guest does not take, or has no room for.
func (v *vhostUser) sendCut(q *rxQueue, o *packet.Offload, headers, payload []byte) bool {
	if !v.cut.start(o, headers, payload, MaxFrame) {
		v.counters.Refused++
		return false
	}
	first := v.header + max(v.cut.hlen+min(v.cut.size, len(v.cut.payload)), minWire)
	if !v.ensure(q, first) {
		v.counters.Dropped += uint64(v.cut.segments())
		return false
	}
	if !q.holds(v.cut.segments(), first) && q.lacks() && !q.EnableKicks() {
		v.lacking(q) // none, rather than the first ones again and again
		v.counters.Dropped += uint64(v.cut.segments())
		return false
	}
	for v.cut.more() {
		size := v.header + max(v.cut.hlen+min(v.cut.size, len(v.cut.payload)), minWire)
		if !q.fits(size, v.merges()) { // nor would it, were the guest waited for
			v.counters.Dropped += uint64(v.cut.segments())
			return false
		}
		segment := v.cut.next(v.head[vnetLen:])
		v.put(q, &v.none, v.head[vnetLen:vnetLen+v.cut.hlen], segment)
	}
	return true
}

// holds takes buffers for so many segments of size bytes, as far as the first one tells.
// It reports whether there are as many.
func (q *rxQueue) holds(segments, size int) bool {
	each := max(q.chains[q.next].Len, 1)
	need := segments * ((size + each - 1) / each)
	for q.n-q.next < need && q.fill(q.left+1) {
	}
	return q.n-q.next >= need
}

// fits tells whether there are buffers for size bytes; for one buffer, unless they are
// merged.
func (q *rxQueue) fits(size int, merge bool) bool {
	return merge && q.fill(size) || !merge && q.fill(1) && q.chains[q.next].Len >= size
}

// put fills buffers with a frame.
func (v *vhostUser) put(q *rxQueue, o *packet.Offload, headers, payload []byte) bool {
	size := len(headers) + len(payload)
	pad := v.pad[:max(minWire-size, 0)]
	total := v.header + size + len(pad)
	if !v.ensure(q, total) {
		if q.short {
			v.counters.Dropped++
		} else {
			v.counters.Refused++ // too long for the guest's buffers
		}
		return false
	}
	var vnet [vnetLen]byte
	encodeVirtio(vnet[:], o, q.buffers(total))
	w := writer{q: q}
	w.write(vnet[:v.header])
	w.write(headers)
	w.write(payload)
	w.write(pad)
	v.sent(q, total, size)
	return true
}

// sent gives the guest the buffers that total bytes, a frame of size bytes among them,
// were written to.
func (v *vhostUser) sent(q *rxQueue, total, size int) {
	for total > 0 {
		c := &q.chains[q.next]
		n := min(total, c.Len)
		q.Use(c, n)
		q.next++
		q.left -= c.Len
		total -= n
	}
	if size >= publishAt {
		q.publish()
	}
	v.counters.Sent++
	v.counters.SentBytes += uint64(size)
}

// buffers is how many of them n bytes take.
func (q *rxQueue) buffers(n int) int {
	k := q.next
	for ; n > 0; k++ {
		n -= q.chains[k].Len
	}
	return k - q.next
}

// writer fills the buffers of a queue, piece by piece.
type writer struct {
	q           *rxQueue
	chain, part int // of the stash, from next on; of that
	at          int // within the piece
}

func (w *writer) write(b []byte) {
	for len(b) > 0 {
		c := &w.q.chains[w.q.next+w.chain]
		if w.part == len(c.Pieces) {
			w.chain, w.part = w.chain+1, 0
			continue
		}
		n := copy(c.Pieces[w.part][w.at:], b)
		b = b[n:]
		if w.at += n; w.at == len(c.Pieces[w.part]) {
			w.part, w.at = w.part+1, 0
		}
	}
}

// skip leaves n bytes as they are.
func (w *writer) skip(n int) {
	for n > 0 {
		c := &w.q.chains[w.q.next+w.chain]
		if w.part == len(c.Pieces) {
			w.chain, w.part = w.chain+1, 0
			continue
		}
		k := min(n, len(c.Pieces[w.part])-w.at)
		n -= k
		if w.at += k; w.at == len(c.Pieces[w.part]) {
			w.part, w.at = w.part+1, 0
		}
	}
}

// Reserve implements flow.Direct. For a guest that has to be helped with what it takes
// it is memory of ours, as much as there will be room for.
func (v *vhostUser) Reserve(e *packet.Ends, src, dst uint16, headers, n int) [][]byte {
	v.reserved = nil
	if v.err != nil || len(v.active) == 0 {
		return nil
	}
	q := &v.rx[v.active[0]]
	if len(v.active) > 1 {
		q = v.pair(v.steer.findEnds(e, src, dst))
	}
	if v.bounce != nil {
		return v.reserveCopy(q, n)
	}
	skip := v.header + headers
	if !v.ensure(q, skip+n) && (!v.merges() || v.err != nil) {
		return nil
	}
	room := v.room[:0]
	for k := q.next; k < q.n && n > 0; k++ {
		for _, b := range q.chains[k].Pieces {
			if cut := min(skip, len(b)); cut > 0 {
				skip -= cut
				b = b[cut:]
			}
			if b = b[:min(n, len(b))]; len(b) > 0 && len(room) < cap(room) {
				room = append(room, b)
				n -= len(b)
			}
		}
	}
	if len(room) == 0 {
		return nil
	}
	v.reserved = q
	return room
}

// reserveCopy is Reserve for a guest that gets segments, each by itself and complete.
func (v *vhostUser) reserveCopy(q *rxQueue, n int) [][]byte {
	longest := packet.EthernetLen + v.mtu
	if !v.ensure(q, v.header+longest) {
		return nil
	}
	each := max(q.chains[q.next].Len, 1)
	most := (v.header + longest + each - 1) / each // of one segment
	for most *= n/(v.mtu-60) + 1; q.n-q.next < most && q.fill(q.left+1); {
	}
	room := 0
	for k := q.next; k < q.n && room < n; k++ {
		for size := v.header + longest; k < q.n && size > 0; k++ {
			if size -= q.chains[k].Len; !v.merges() {
				size = 0
			}
			if size <= 0 {
				room += v.mtu - 60
				break
			}
		}
	}
	v.reserved = q
	v.room[0] = v.bounce[:min(n, room, len(v.bounce))]
	return v.room[:1]
}

// SendReserved implements flow.Direct.
func (v *vhostUser) SendReserved(o *packet.Offload, headers []byte, n int) bool {
	q := v.reserved
	v.reserved = nil
	if q == nil {
		v.counters.Refused++
		return false
	}
	if v.bounce != nil {
		return v.Send(o, headers, v.bounce[:n])
	}
	size := len(headers) + n
	pad := v.pad[:max(minWire-size, 0)]
	total := v.header + size + len(pad)
	if q.left < total { // as little as that fits always, but where next to nothing was reserved
		v.counters.Dropped++
		return false
	}
	var vnet [vnetLen]byte
	encodeVirtio(vnet[:], o, q.buffers(total))
	w := writer{q: q}
	w.write(vnet[:v.header])
	w.write(headers)
	if len(pad) > 0 {
		w.skip(n)
		w.write(pad)
	}
	v.sent(q, total, size)
	return true
}
