// SPDX-License-Identifier: Apache-2.0

// Package bypass moves loopback flows from socket to socket, past the guest's
// link: from the host's loopback into a namespace, and from the namespace's
// loopback to the host. It never sees a frame.
//
// Both ends of a flow are sockets. One is accepted from, or answers for, a
// listener; the other comes from the broker, which decides where it leads. TCP
// is moved by splice(2) through pipes, or copied where it comes in small pieces;
// UDP is copied in batches.
package bypass

import (
	"syscall"

	"aldente/ipc"
	"aldente/worker/datagram"
	"aldente/worker/flow"
	"aldente/worker/packet"
	"aldente/worker/store"
)

// Env is what the bypass asks of its lane.
type Env interface {
	flow.Clock
	flow.Broker
	flow.Rewatcher
	flow.Streams
	flow.Datagrams
	flow.GatherWriter
	flow.Errors
	flow.Options
	flow.Names
	flow.Paths
	// Read takes what a stream has.
	Read(fd int32, b []byte) (int, syscall.Errno)
	// Pipe makes a non-blocking pipe that holds size bytes, or what the kernel
	// grants.
	Pipe() (r, w int32, size int, err syscall.Errno)
	// Splice moves up to n bytes from one descriptor to another, of which one
	// is a pipe.
	Splice(from, to int32, n int) (int, syscall.Errno)
	// LowWater sets how many bytes a socket must have before it counts as
	// readable, SO_RCVLOWAT.
	LowWater(fd int32, n int) syscall.Errno
}

// Stats counts what happened. All counters only grow.
type Stats struct {
	Opened, Refused, Reset, Closed uint64 // TCP flows: connected, not connected, ended by RST, ended by FIN
	NoRoom                         uint64 // flows of both protocols that found the table full
	Spliced, Copied                uint64 // bytes of TCP
	Datagrams, Dropped             uint64 // datagrams written, and not
	FlowsUDP, Evicted, Expired     uint64 // flows of datagrams: begun, ended for another, ended unused
	Revoked                        uint64 // flows of both protocols that the egress rules refuse since they were changed
}

// Translator holds all flows of the bypass.
type Translator struct {
	env Env
	g   *flow.Guest

	streams streams
	pipes   pipes
	busy    []uint32 // streams whose turn was over before their data
	ended   []uint32 // streams that Sweep frees
	marked  []uint64 // tokens of sockets that wait for more than a byte
	buf     []byte   // what is copied
	open    ipc.Open

	datagrams

	// Ended hears of flows whose far socket is about to be closed. Nil: nobody asks.
	Ended func(fd int32, how ipc.How, t *flow.Traffic)

	Stats Stats // since New
}

// New makes a translator for up to maxStreams connections and maxUDP datagram
// flows; the latter use as many timer ids from timerBase on. What comes before
// a socket is there waits in chunks of pool.
func New(env Env, g *flow.Guest, w *store.Wheel, timerBase uint32, pool *store.Pool, maxStreams, maxUDP int) *Translator {
	t := &Translator{
		env: env, g: g,
		streams: newStreams(maxStreams),
		pipes:   newPipes(min(maxPipes, max(maxStreams/16, 4))),
		busy:    make([]uint32, 0, maxStreams),
		ended:   make([]uint32, 0, maxStreams),
		marked:  make([]uint64, 0, maxMarked),
		buf:     make([]byte, bufferSize),
	}
	t.datagrams.init(w, timerBase, pool, maxUDP)
	t.writer = datagram.NewWriter(env)
	return t
}

// Len is the number of connections, LenUDP that of datagram flows.
func (t *Translator) Len() int { return t.streams.count }

// LenUDP is the number of datagram flows.
func (t *Translator) LenUDP() int { return t.flows.Len() }

// Tokens carry, in the index, the flow, which of its sockets is meant, and
// whether it is one of datagrams.
const (
	indexFar = 1 << 0
	indexUDP = 1 << 31
)

func token(gen, i uint32, side int, udp uint32) uint64 {
	return flow.Token(flow.OwnerBypass, gen, i<<1|uint32(side)|udp)
}

// Ready is called for events on a flow's socket.
func (t *Translator) Ready(tok uint64, events uint32) {
	_, gen, index := flow.SplitToken(tok)
	i, side := index&^indexUDP>>1, int(index&indexFar)
	if index&indexUDP != 0 {
		t.readyUDP(i, gen, side, events)
		return
	}
	if s := t.streams.live(i, gen); s != nil {
		t.ready(i, s, side, events)
	}
}

// Opened takes the broker's answer to the Open with this token.
func (t *Translator) Opened(tok uint64, fd int32, o *ipc.Opened) {
	_, gen, index := flow.SplitToken(tok)
	i := index &^ indexUDP >> 1
	if index&indexUDP != 0 {
		t.openedUDP(i, gen, int(index&indexFar), fd, o)
		return
	}
	s := t.streams.live(i, gen)
	if s == nil {
		if fd >= 0 {
			t.env.Close(fd)
		}
		return
	}
	t.opened(i, s, fd, o)
}

// RevokeFlow ends the flow whose request for a socket had this token.
func (t *Translator) RevokeFlow(tok uint64) {
	_, gen, index := flow.SplitToken(tok)
	i := index &^ indexUDP >> 1
	if index&indexUDP != 0 {
		if t.flows.Live(i, gen) {
			t.Stats.Revoked++
			f := t.flows.At(i)
			f.how = ipc.EndRevoked
			t.removeUDP(i, f)
		}
		return
	}
	if s := t.streams.live(i, gen); s != nil && s.sides[far].fd >= 0 {
		t.Stats.Revoked++
		s.ends(ipc.EndRevoked)
		t.abort(i, s)
	}
}

// Room tells whether there is room for one more connection that came by a listener
// with these flags, and for its other end.
func (t *Translator) Room(flags uint8) bool {
	return (len(t.streams.free) > 0 || int(t.streams.next) < len(t.streams.all)) && t.g.Shares.May(share(flags), 2)
}

// share is what the descriptors of such a connection count as.
func share(flags uint8) flow.Share {
	if flags&ipc.ListenerNamespace != 0 {
		return flow.ShareOut
	}
	return flow.ShareIn
}

// Pending tells whether Poll has work that no event will announce.
func (t *Translator) Pending() bool { return len(t.busy) > 0 || t.pendingUDP() }

// Flush needs nothing: no frame of the guest's comes here.
func (t *Translator) Flush() {}

// Resume needs nothing: no link is in the way.
func (t *Translator) Resume() {}

// Freed needs nothing: no flow waits for a descriptor.
func (t *Translator) Freed() {}

// Poll gives each flow that had more to move than its turn allowed another one.
func (t *Translator) Poll() {
	n := len(t.busy)
	for _, i := range t.busy[:n] {
		s := &t.streams.all[i]
		if !s.has(flagBusy) {
			continue // gone since
		}
		s.flags &^= flagBusy
		t.turn(i, s)
	}
	t.busy = t.busy[:copy(t.busy, t.busy[n:])]
	t.pollUDP()
}

// farAddress is where a flow leads that came by a listener. From the host it
// leads to the guest's own address, so that services of the guest's loopback
// stay private, or to its loopback where that was asked for. From the namespace
// it leads to the loopback address that was spoken to. A zero result refuses the
// flow.
func (t *Translator) farAddress(flags uint8, peer, local *packet.Addr) packet.Addr {
	if flags&ipc.ListenerNamespace != 0 {
		if peer.IsLoopback() && local.IsLoopback() {
			return *local
		}
		return packet.Addr{}
	}
	only := t.g.Has(ipc.FlagSpliceOnly)
	switch {
	case local.IsLoopback() && (only || t.g.Has(ipc.FlagLoToLo)):
		return *local
	case only && peer.Is4():
		return packet.AddrFrom4([4]byte{127, 0, 0, 1})
	case only:
		return packet.Addr{15: 1}
	}
	return t.g.InboundTarget(peer)
}

// far is where a flow leads that came by a listener, and as whose it is asked for: a
// peer of the same family. ok is false if it is refused.
func (t *Translator) far(flags uint8, peer, local *packet.Addr) (to, as packet.Addr, ok bool) {
	to, as = t.farAddress(flags, peer, local), *peer
	if to.IsUnspecified() && flags&ipc.ListenerNamespace == 0 {
		to, as = t.otherFar(peer.Is4())
	}
	return to, as, !to.IsUnspecified() && to.Is4() == as.Is4()
}

// otherFar is far for a flow into a guest that lacks the peer's family, IPv4 or IPv6:
// it goes by the other one.
func (t *Translator) otherFar(v4 bool) (to, as packet.Addr) {
	as = flow.OtherLoopback(v4)
	return t.farAddress(0, &as, &as), as
}

// asksLocal tells whether farAddress goes by the local address.
func (t *Translator) asksLocal(flags uint8) bool {
	return flags&ipc.ListenerNamespace != 0 || t.g.Has(ipc.FlagSpliceOnly) || t.g.Has(ipc.FlagLoToLo)
}

// Close ends all flows.
func (t *Translator) Close() {
	for i := range t.streams.all {
		if s := &t.streams.all[i]; s.state != 0 {
			t.abort(uint32(i), s)
		}
	}
	t.Sweep()
	t.closeUDP()
	t.pipes.close(t.env)
}
