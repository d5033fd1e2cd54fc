// SPDX-License-Identifier: Apache-2.0

package bypass

import (
	"syscall"

	"aldente/ipc"
	"aldente/worker/flow"
	"aldente/worker/packet"
)

type state uint8

const (
	stateOpening    state = iota + 1 // the broker was asked for the far end
	stateConnecting                  // its connect is under way
	stateOpen
	stateEnded // over; what it holds is freed when the turn ends
)

// Flags of a stream.
const (
	flagBusy  = 1 << iota // in Translator.busy
	flagOut               // from the namespace
	flagAbort             // both peers are to be told by RST
	flagPeer4             // the peer is one of IPv4
	flagOther             // the far end was asked for by the family that the peer is not of
)

// Flags of a side.
const (
	readable    = 1 << iota // may have more than was read
	writable                // has not refused data since it was ready for them
	finished                // its peer has closed: short reads are not the last
	ended                   // read up to the end
	shut                    // told the end of the other side
	bulky                   // comes in large pieces
	lowWaterSet             // in Translator.marked: has a low-water mark
	urgent                  // has had urgent data: reads may end before the data do, splice(2) does not pass them
)

// near is the side that came by a listener, far the other.
const (
	near = 0
	far  = 1
)

// side is one socket of a flow, and what of its data is on the way.
type side struct {
	fd     int32
	held   int32  // bytes in pipe, which the other side has not taken
	pipe   uint32 // number of the pipe that holds them
	flags  uint8
	seen   uint8 // what the lane reports: flow.Readable, flow.Writable
	steady steadiness
	passed uint64 // bytes that the other side has taken
}

func (s *side) has(f uint8) bool { return s.flags&f != 0 }

// stream is one connection. It holds no pointers.
type stream struct {
	sides [2]side
	gen   uint32
	state state
	flags uint8
	how   ipc.How // it has ended; zero: not yet

	// Who asks for the far end: for the second attempt.
	port     uint16
	listener uint32

	// For whoever asks which flows there are.
	farPort    uint16
	born, last int64       // when it began, and when something moved, in nanoseconds
	peer, to   packet.Addr // of the near end, and of the far one
}

func (s *stream) has(f uint8) bool { return s.flags&f != 0 }

func (s *stream) share() flow.Share {
	if s.has(flagOut) {
		return flow.ShareOut
	}
	return flow.ShareIn
}

// streams is the table of all connections. Nothing looks them up by address.
type streams struct {
	all   []stream
	free  []uint32
	next  uint32
	count int
}

func newStreams(size int) streams {
	return streams{all: make([]stream, size), free: make([]uint32, 0, size)}
}

func (t *streams) insert() (uint32, *stream) {
	var i uint32
	switch {
	case len(t.free) > 0:
		i = t.free[len(t.free)-1]
		t.free = t.free[:len(t.free)-1]
	case int(t.next) < len(t.all):
		i = t.next
		t.next++
	default:
		return 0, nil
	}
	t.count++
	s := &t.all[i]
	*s = stream{gen: s.gen + 1, state: stateOpening}
	s.sides[near].fd, s.sides[far].fd = -1, -1
	return i, s
}

func (t *streams) remove(i uint32) {
	s := &t.all[i]
	*s = stream{gen: s.gen + 1}
	t.count--
	t.free = append(t.free, i)
}

// live returns the stream of a token, nil if it has ended.
func (t *streams) live(i, gen uint32) *stream {
	if i >= t.next || t.all[i].state == 0 || t.all[i].state == stateEnded || t.all[i].gen&0xffffff != gen {
		return nil
	}
	return &t.all[i]
}

// Accepted takes over a connection that came by a listener with these flags and
// identifier. It has TCP_NODELAY from there.
func (t *Translator) Accepted(listener uint32, flags uint8, fd int32, peer packet.Addr, port uint16) {
	var local packet.Addr
	if t.asksLocal(flags) {
		var e syscall.Errno
		if local, _, e = t.env.LocalAddr(fd); e != 0 {
			t.refuse(fd)
			return
		}
	}
	to, as, ok := t.far(flags, &peer, &local)
	if !ok {
		t.refuse(fd)
		return
	}
	i, s := t.streams.insert()
	if s == nil {
		t.Stats.NoRoom++
		t.refuse(fd)
		return
	}
	s.sides[near].fd = fd
	if share(flags) == flow.ShareOut {
		s.flags |= flagOut
	}
	t.g.Shares.Take(s.share(), 2)
	s.port, s.listener, s.peer = port, listener, peer
	s.born = t.env.Now()
	s.last = s.born
	if peer.Is4() {
		s.flags |= flagPeer4
	}
	if as != peer {
		s.flags |= flagOther
	}
	if !t.openFar(i, s, to, as) {
		t.Stats.NoRoom++
		t.abort(i, s)
	}
}

// openFar asks for the far end. It reports false if that is not possible now.
func (t *Translator) openFar(i uint32, s *stream, to, as packet.Addr) bool {
	s.to = to
	t.open = ipc.Open{
		Token: token(s.gen, i, far, 0), Proto: ipc.ProtoTCP, Flags: ipc.OpenBypass, Listener: s.listener,
		Src: to, Dst: as, SrcPort: 0, DstPort: s.port,
	}
	return t.env.Open(&t.open)
}

// openOther asks for a far end of the other family, once, where the guest lacks the
// one that the peer has used. It reports false if there is nothing to ask for.
func (t *Translator) openOther(i uint32, s *stream, o *ipc.Opened) bool {
	if s.state != stateOpening || s.has(flagOther|flagOut) || !flow.LacksFamily(syscall.Errno(o.Errno)) {
		return false
	}
	s.flags |= flagOther
	to, as := t.otherFar(s.has(flagPeer4))
	return !to.IsUnspecified() && to.Is4() == as.Is4() && t.openFar(i, s, to, as)
}

func (t *Translator) refuse(fd int32) {
	t.Stats.Refused++
	t.env.Abort(fd)
}

// opened takes the far end.
func (t *Translator) opened(i uint32, s *stream, fd int32, o *ipc.Opened) {
	if t.openOther(i, s, o) {
		return
	}
	if o.Errno != 0 || fd < 0 || s.state != stateOpening {
		if fd >= 0 {
			t.env.Close(fd)
		}
		t.Stats.Refused++
		t.abort(i, s)
		return
	}
	s.sides[far].fd = fd
	s.farPort = o.PeerPort
	s.state = stateConnecting
	s.sides[near].flags |= writable
	s.sides[near].seen, s.sides[far].seen = flow.Readable, flow.Readable|flow.Writable
	for k := range s.sides {
		if e := t.env.Watch(s.sides[k].fd, token(s.gen, i, k, 0), uint32(s.sides[k].seen)); e != 0 {
			t.abort(i, s)
			return
		}
	}
}

// ready notes what a socket is ready for, and moves what can be moved.
func (t *Translator) ready(i uint32, s *stream, k int, events uint32) {
	d := &s.sides[k]
	if events&flow.Failed != 0 {
		if e := t.env.TakeError(d.fd); e != 0 {
			if s.state == stateConnecting {
				t.Stats.Refused++
				s.ends(ipc.EndRefused)
			}
			t.abort(i, s)
			return
		}
	}
	if events&(flow.PeerClosed|flow.HungUp) != 0 {
		d.flags |= readable | finished
	}
	if events&flow.Urgent != 0 {
		d.flags = d.flags&^bulky | urgent | readable
	}
	if events&flow.Readable != 0 {
		// Known to have more than the other side takes: each packet would wake us.
		if d.has(readable) && !s.sides[1-k].has(writable) {
			t.watch(i, s, k, d.seen&^flow.Readable)
		}
		d.flags |= readable
	}
	if events&flow.Writable != 0 {
		d.flags |= writable
		if k == far && s.state == stateConnecting {
			s.state = stateOpen
			t.Stats.Opened++
			events = 0
		}
	}
	// Room that nobody waits for any more is not worth an event. That of a
	// connection that was just made is left: it may be over soon.
	if s.state != stateOpen {
		return
	}
	t.turn(i, s)
	if events == flow.Writable && d.has(writable) {
		t.watch(i, s, k, d.seen&^flow.Writable)
	}
}

// watch changes what is reported of a socket. What came in between raises an
// event, since a change looks at the socket anew.
func (t *Translator) watch(i uint32, s *stream, k int, events uint8) {
	d := &s.sides[k]
	if s.state == stateEnded || d.seen == events {
		return
	}
	d.seen = events
	if t.env.Rewatch(d.fd, token(s.gen, i, k, 0), uint32(events)) != 0 {
		t.abort(i, s)
	}
}

// ends notes how a flow has ended, unless that is known.
func (s *stream) ends(how ipc.How) {
	if s.how == 0 {
		s.how = how
	}
}

// traffic is what a flow has moved.
func (s *stream) traffic() flow.Traffic {
	guest, remote := near, far
	if !s.has(flagOut) {
		guest, remote = far, near
	}
	return flow.Traffic{Born: s.born, Sent: s.sides[guest].passed, Received: s.sides[remote].passed}
}

// end marks a flow that is over: nothing is moved or reported any more. What it
// holds is freed when the turn ends, so that whoever has it in hand may touch it.
func (t *Translator) end(i uint32, s *stream) {
	if s.state != stateEnded {
		s.ends(ipc.EndClosed)
		s.state = stateEnded
		t.ended = append(t.ended, i)
	}
}

// abort ends a flow for both peers, with RST.
func (t *Translator) abort(i uint32, s *stream) {
	if s.state != stateEnded {
		t.Stats.Reset++
		s.ends(ipc.EndReset)
		s.flags |= flagAbort
		t.end(i, s)
	}
}

// Sweep ends a turn: it frees the flows that have ended. Nobody has one of them
// in hand.
func (t *Translator) Sweep() {
	for _, i := range t.ended {
		t.free(i, &t.streams.all[i])
	}
	t.ended = t.ended[:0]
}

func (t *Translator) free(i uint32, s *stream) {
	if fd := s.sides[far].fd; fd >= 0 && t.Ended != nil {
		moved := s.traffic()
		t.Ended(fd, s.how, &moved)
	}
	for k := range s.sides {
		d := &s.sides[k]
		if d.pipe != 0 {
			t.pipes.discard(t.env, d.pipe)
		}
		switch {
		case d.fd < 0:
		case s.has(flagAbort):
			t.env.Abort(d.fd)
		default:
			t.env.Close(d.fd)
		}
	}
	t.g.Shares.Take(s.share(), -2)
	t.streams.remove(i)
}
