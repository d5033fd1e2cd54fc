// SPDX-License-Identifier: Apache-2.0

package lane

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"strings"
	"syscall"
	"time"

	"aldente/ipc"
	"aldente/worker/flow"
	"aldente/worker/link"
	"aldente/worker/packet"
)

// live is the captures that somebody looks at while they go on, and what is told of
// frames in them: why one was dropped, and what became of the flow that one is about.
// Counters tell the first: those of drops are compared before and after a frame was
// handled. It costs nothing where nobody looks: then the lane has none.
type live struct {
	l        *Lane
	captures [ipc.MaxLive]link.Live
	ids      [ipc.MaxLive]uint32
	tokens   [ipc.MaxLive]uint64
	until    [ipc.MaxLive]int64 // of those that end: when what nobody has read is given up
	gen      uint32             // of the last token

	reasons []reason
	before  []uint64    // the reasons' counters, before the frame in hand
	frame   *link.Frame // from the guest, in hand; nil: none
	written bool        // it is recorded already, before what was sent for it
	noted   bool        // with something to tell
	verdict link.Note   // why a flow ends, while it does: of what the guest is told of that
	pkt     packet.Packet
}

// lastWords is how long a capture that has ended waits for somebody to read what is
// left, in nanoseconds. After that, it goes with the next turn that there is.
const lastWords = 5_000_000_000

// reason is why a frame from the guest is dropped: that a counter grows.
type reason struct {
	count *uint64
	text  string
}

// reasons are all that a lane counts.
func (l *Lane) reasons() []reason {
	t, u, i := &l.tcp.Stats, &l.udp.Stats, &l.icmp.Stats
	return []reason{
		{&l.Stats.BadFrames, "dropped: malformed"},
		{&l.Stats.BadChecksums, "dropped: wrong checksum"},
		{&l.Stats.Ignored, "dropped: of a protocol or for an address that nobody here serves"},
		{&l.reasm.Stats.Overlapped, "dropped: fragments that contradict each other"},
		{&t.BadSegments, "dropped: an address or port that nobody can connect"},
		{&t.NoFlow, "dropped: of no connection"},
		{&t.NoMemory, "dropped: no room for one connection more"},
		{&t.OutOfWindow, "dropped, all or part of it: outside of the window"},
		{&t.Dropped, "dropped: before its turn, and no room for it"},
		{&u.BadSource, "dropped: source not unicast, or no port"},
		{&u.NotUnicast, "dropped: to a group or to everybody"},
		{&u.QueueFull, "dropped: too many before there is a socket"},
		{&u.NoRoom, "dropped: no room for one flow more"},
		{&i.Bad, "dropped: no echo request between unicast addresses"},
		{&i.QueueFull, "dropped: too many before there is a socket"},
		{&i.NoRoom, "dropped: no room for one flow more"},
		{&i.WriteFailed, "dropped: not taken by the socket"},
	}
}

// Notes on frames to the guest.
var (
	notTaken = link.Note{"dropped: not taken by the guest's link, all or part of it"}
	again    = link.Note{"refused, as the flow was that this is about"}
)

// lookAt begins a capture, or ends one.
func (l *Lane) lookAt(rec []byte, fd int32) error {
	var k ipc.Live
	if err := k.Decode(rec); err != nil {
		return fmt.Errorf("capture record: %w", err)
	}
	switch {
	case k.Flags&ipc.LiveEnd != 0 && fd >= 0:
		return fmt.Errorf("%w: the end of a capture with a descriptor", ipc.ErrMalformed)
	case k.Flags&ipc.LiveEnd == 0 && fd < 0:
		return nil // the descriptor did not fit into our table: who reads sees the end
	case k.Flags&ipc.LiveEnd == 0:
		if l.live == nil {
			l.live, l.idle = l.newLive(), nil
		}
		l.live.start(&k, fd)
	case l.live != nil:
		l.live.end(k.ID)
	}
	return nil
}

// newLive makes what there is but once, and takes it again.
func (l *Lane) newLive() *live {
	if l.idle != nil {
		return l.idle
	}
	v := &live{l: l, reasons: l.reasons()}
	v.before = make([]uint64, len(v.reasons))
	return v
}

// start begins a capture in a place that is free, or that has one which is over but for
// what nobody has read of it.
func (v *live) start(k *ipc.Live, fd int32) {
	at := -1
	for i := range v.captures {
		if c := &v.captures[i]; c.None() {
			at = i
			break
		} else if c.Ending() {
			at = i
		}
	}
	if at < 0 {
		v.l.Close(fd)
		return
	}
	v.drop(at)
	v.gen++
	token := flow.Token(flow.OwnerLane, v.gen, uint32(indexLive+at))
	if v.l.poll.Watch(fd, token, flow.Writable) != 0 {
		v.l.Close(fd)
		return
	}
	name, _, _ := bytes.Cut(k.Name[:], []byte{0})
	v.ids[at], v.tokens[at] = k.ID, token
	v.captures[at].Start(link.LiveTo{
		FD: fd, Filter: link.Filter{Proto: k.Proto, Addr: k.Addr, Port: k.Port},
		Drops: k.Flags&ipc.LiveDrops != 0, Snap: k.Snap, Name: string(name),
	})
}

// end has a capture write what it has, and no more.
func (v *live) end(id uint32) {
	for i := range v.captures {
		if v.ids[i] == id {
			v.captures[i].End()
			v.until[i] = v.l.now + lastWords
		}
	}
}

// drop ends a capture at once, if there is one.
func (v *live) drop(i int) {
	if c := &v.captures[i]; !c.None() {
		c.Drop()
		v.settle(i)
	}
}

// settle closes the pipe of a capture that is over.
func (v *live) settle(i int) {
	if c := &v.captures[i]; c.Over() {
		v.l.poll.Remove(c.FD())
		v.l.Close(c.FD())
		c.Gone()
	}
}

// flush ends a turn. Without captures, the lane has no live any more.
func (v *live) flush() {
	v.verdict = link.Note{}
	none := true
	for i := range v.captures {
		c := &v.captures[i]
		c.Flush()
		if c.Ending() && v.l.now >= v.until[i] {
			c.Drop()
		}
		v.settle(i)
		none = none && c.None()
	}
	if none {
		v.l.live, v.l.idle = nil, v
	}
}

// liveReady takes what happens to a capture's pipe: there is room again, for which
// the turn's end looks, or nobody reads it any more.
func (l *Lane) liveReady(token uint64, events uint32) {
	if l.live == nil || events&(flow.Failed|flow.HungUp) == 0 {
		return
	}
	for i, t := range l.live.tokens {
		if t == token {
			l.live.drop(i)
		}
	}
}

// take has a frame from the guest handled, and records it: before what is sent for it,
// but not before it is known whether it was dropped.
func (v *live) take(f *link.Frame) {
	for i := range v.reasons {
		v.before[i] = *v.reasons[i].count
	}
	v.frame, v.written, v.noted, v.verdict = f, false, false, link.Note{}
	v.l.translate(f)
	v.arrived()
	v.frame, v.verdict = nil, link.Note{}
}

// arrived records the frame in hand, once. If it turns out to be dropped after
// something was sent for it, those hear of it that want to hear of nothing else.
func (v *live) arrived() {
	n := v.why()
	if !v.written {
		v.record(link.FromGuest, &n, &v.frame.Offload, v.frame.Data, nil)
		v.written, v.noted = true, n[0] != ""
		return
	}
	if n[0] == "" || v.noted {
		return
	}
	v.noted = true
	for i := range v.captures {
		if c := &v.captures[i]; c.WantsLate(v.frame.Data) {
			c.Frame(time.Now().UnixNano(), link.FromGuest, &n, &v.frame.Offload, v.frame.Data, nil)
		}
	}
}

// why tells why the frame in hand was dropped, if it was.
func (v *live) why() (n link.Note) {
	for i := range v.reasons {
		if *v.reasons[i].count == v.before[i] {
			continue
		}
		n[0] = v.reasons[i].text
		if v.reasons[i].count == &v.l.Stats.BadFrames {
			if err := v.pkt.Decode(v.frame.Data); err != nil {
				n[1], n[2] = ": ", strings.TrimPrefix(err.Error(), "packet: ")
			}
		}
		break
	}
	return n
}

// sent records a frame to the guest.
func (v *live) sent(o *packet.Offload, headers, payload []byte, ok bool) {
	if v.frame != nil {
		v.arrived()
	}
	var n link.Note
	switch bad, prohibited := tellsOfError(headers); {
	case !ok:
		n = notTaken
	case bad && v.verdict[0] != "":
		n = v.verdict
	case prohibited && v.frame != nil:
		n = again
	}
	v.record(link.ToGuest, &n, o, headers, payload)
}

func (v *live) record(way link.Way, n *link.Note, o *packet.Offload, headers, payload []byte) {
	now := int64(0)
	for i := range v.captures {
		if c := &v.captures[i]; c.Wants(headers, n[0] != "") {
			if now == 0 {
				now = time.Now().UnixNano()
			}
			c.Frame(now, way, n, o, headers, payload)
		}
	}
}

// verdictOf is what the broker has said of a flow that it refuses.
func verdictOf(o *ipc.Opened) (n link.Note) {
	switch {
	case o.Flags&ipc.OpenedProhibited != 0:
		n[0] = "refused by the egress rules"
	case o.Errno != 0:
		n[0], n[1] = "refused: ", syscall.Errno(o.Errno).Error()
	}
	return n
}

// tellsOfError tells whether a frame of ours is an ICMP error or a reset, and whether
// it says that something is prohibited. Ours have neither IP options nor extension
// headers.
func tellsOfError(frame []byte) (is, prohibited bool) {
	const at4, at6 = packet.EthernetLen + 20, packet.EthernetLen + 40
	if len(frame) < at4+20 {
		return false, false
	}
	switch binary.BigEndian.Uint16(frame[12:]) {
	case packet.EtherTypeIPv4:
		switch typ, code := frame[at4], frame[at4+1]; frame[packet.EthernetLen+9] {
		case packet.ProtoTCP:
			is = frame[at4+13]&packet.RST != 0
		case packet.ProtoICMP:
			is = typ == packet.ICMPDestUnreachable || typ == packet.ICMPTimeExceeded || typ == packet.ICMPParamProblem
			prohibited = typ == packet.ICMPDestUnreachable && code == packet.ICMPAdminProhibited
		}
	case packet.EtherTypeIPv6:
		if len(frame) < at6+20 {
			return false, false
		}
		switch typ, code := frame[at6], frame[at6+1]; frame[packet.EthernetLen+6] {
		case packet.ProtoTCP:
			is = frame[at6+13]&packet.RST != 0
		case packet.ProtoICMPv6:
			is = typ < packet.ICMPv6EchoRequest
			prohibited = typ == packet.ICMPv6DestUnreachable && code == packet.ICMPv6AdminProhibited
		}
	}
	return is, prohibited
}
