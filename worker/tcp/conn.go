// SPDX-License-Identifier: Apache-2.0

// Package tcp translates between the guest's TCP segments and connected TCP
// sockets on the host (RFC 9293). Towards the guest it is a TCP endpoint of
// its own; towards the host, the kernel is.
//
// Two rules shape it. A byte inside the window that was advertised to the
// guest is never dropped: what the host's socket refuses waits in pooled
// chunks that were set aside when the window was granted. And the host's
// receive buffer is the retransmission buffer: data are peeked at, sent, and
// dequeued when the guest acknowledges them.
package tcp

import (
	"aldente/ipc"
	"aldente/worker/flow"
	"aldente/worker/packet"
)

type state uint8

const (
	stateOpening    state = iota + 1 // SYN from the guest; the broker was asked for a socket
	stateConnecting                  // the host's connect is under way
	stateSynAckSent                  // the host connected; SYN-ACK sent to the guest
	stateSynSent                     // connection accepted on the host; SYN sent to the guest
	stateOpen                        // established, or closing
	stateTimeWait                    // both directions done; answers a FIN seen again
	stateEnded                       // over; what it holds is freed when the turn ends
)

// flag marks what has happened on a connection.
type flag uint32

const (
	flagReadable    flag = 1 << iota // the socket may have more to peek at
	flagWritable                     // the socket has not refused data since EPOLLOUT
	flagDirty                        // in Translator.dirty
	flagReady                        // in Translator.ready
	flagAckNow                       // an ACK is owed
	flagAckLater                     // one is owed at ackAt
	flagGuestFIN                     // FIN from the guest taken, in order
	flagShutdown                     // FIN passed on to the host
	flagHostEOF                      // the host's FIN was read: finSeq is known
	flagFINSent                      // FIN sent to the guest at least once
	flagSACK                         // both sides may use SACK
	flagRecovery                     // fast recovery until recover is acknowledged
	flagKeepAlive                    // SO_KEEPALIVE set because the guest probes
	flagTimedRTT                     // rttSeq is being timed
	flagHostFirst                    // the host closed first: we owe TIME-WAIT
	flagHostClosed                   // the host's FIN has arrived, maybe behind data
	flagEnd                          // the last peek was at the end of the host's stream
	flagPeekOff                      // the socket has SO_PEEK_OFF
	flagEarlyFIN                     // a FIN at earlyFIN waits for what comes before it
	flagAwaitRoom                    // the lane reports when the socket is writable
	flagBounded                      // bound was called
	flagOut                          // the guest has asked for it
	flagShare                        // holds a part of the lane's descriptors
	flagHalfOpen                     // in Translator.halfOpen
	flagUrgent                       // urgent data were reported: reads may end before the data do
	flagDetached                     // the guest is done with it, and its ports may be another flow's
	flagSYNRepeated                  // our SYN was sent again at once
	flagMarked                       // in Translator.marked
	flagAbort                        // the host's side is to be reset
	flagBulk                         // the last peek brought as much as is worth a place of its own
	flagHeld                         // a limit holds what goes to the socket; the lane tells when it goes on
	flagStaged                       // what the guest sends first is looked at: fd leads there
)

// conn is one connection. It holds no pointers; ranges and chunks are indices
// into pools.
type conn struct {
	fd       int32
	state    state
	flags    flag
	listener uint32 // that it came by, zero: none

	// Guest to host. Chunks hold [qBase, …); what lies between hostSeq and
	// rcvNxt is in order and waits for the socket.
	rcvNxt   uint32 // next sequence number expected from the guest
	rcvEdge  uint32 // right edge of the window advertised; never moves left
	hostSeq  uint32 // first byte that the socket has not taken
	qBase    uint32 // sequence number of the first byte of chunk qHead
	qHead    uint32 // chunks, store.None if there are none
	qTail    uint32 // last chunk of the list
	qTailSeq uint32 // sequence number of the first byte of qTail
	held     uint32 // ranges beyond rcvNxt that arrived early, index+1 in Translator.sets
	taken    uint32 // bytes the socket has taken since the window last grew
	copied   uint32 // bytes from hostSeq on that were written to who looks, with flagStaged
	earlyFIN uint32 // sequence number of the guest's FIN, with flagEarlyFIN

	// Host to guest.
	iss      uint32
	sndUna   uint32 // oldest byte not acknowledged
	sndNxt   uint32 // next byte to send
	sndMax   uint32 // highest byte ever sent
	sndWnd   uint32 // the guest's window in bytes, from sndUna
	maxWnd   uint32 // the largest window the guest has offered
	sndWl1   uint32 // segment's sequence number at the last window update
	sndWl2   uint32 // segment's acknowledgment number at the last window update
	deqSeq   uint32 // first byte still in the socket's receive queue
	peekSeq  uint32 // byte that the socket's SO_PEEK_OFF stands at
	finSeq   uint32 // sequence number of our FIN, with flagHostEOF
	recover  uint32 // recovery ends when this is acknowledged
	rexNxt   uint32 // next hole to retransmit in recovery
	cwnd     uint32 // bytes in flight allowed; noCwnd unless recovering from loss
	sacked   uint32 // what the guest has beyond sndUna, index+1 in Translator.sets
	reserved uint16 // chunks set aside for the window, from the guest to the host
	mss      uint16 // payload of the largest segment the guest takes
	sndScale uint8  // shift of the guest's window
	rcvScale uint8  // shift of ours
	dupAcks  uint8
	how      ipc.How // it has ended; zero: not yet

	// Timers. Times are nanoseconds, zero: off.
	retries      uint8
	probes       uint8  // keep-alive probes since the last segment of the guest
	quickReplies uint8  // replies in a row that came quickly, up to maxQuickReplies
	pieces       uint8  // acknowledgments of the guest's since the socket was last dequeued, up to dequeuePieces
	copiedEnd    bool   // with flagStaged: who looks was told that the guest says no more
	either       bool   // the peer is [::1], and the guest may be spoken to by IPv4 as well
	late         uint8  // acknowledgments of bulk in a row that waited for nothing, up to maxLate
	srtt         uint32 // microseconds, RFC 6298
	rttvar       uint32
	rttSeq       uint32
	retransmits  uint32 // segments sent to the guest once more
	load         uint32 // bytes sent to the guest of late, as of loadAt
	loadAt       uint32 // in units of loadUnit
	rttStart     int64
	rtoAt        int64
	ackAt        int64 // a delayed ACK is due
	queryAt      int64 // when the guest last sent a small segment, until it is answered
	deqAt        int64 // acknowledged bytes leave the receive queue by then
	seenAt       int64 // last segment from the guest
	timerAt      int64 // what the wheel is set to

	// Bytes from the guest count once the socket has them, those to the guest when
	// they are sent first.
	flow.Traffic
}

const noCwnd = ^uint32(0)

func (c *conn) has(f flag) bool { return c.flags&f != 0 }
func (c *conn) set(f flag)      { c.flags |= f }
func (c *conn) clear(f flag)    { c.flags &^= f }

// over tells, by the order of states, whether the flow has no use for its socket any more.
func (c *conn) over() bool { return c.state >= stateTimeWait }

// inFlight is how many bytes are sent and not acknowledged.
func (c *conn) inFlight() uint32 { return c.sndNxt - c.sndUna }

// dataEnd is the end of the data received in order, without a FIN.
func (c *conn) dataEnd() uint32 {
	if c.has(flagGuestFIN) {
		return c.rcvNxt - 1
	}
	return c.rcvNxt
}

// queued is how many bytes in order the socket has not taken.
func (c *conn) queued() uint32 { return c.dataEnd() - c.hostSeq }

// Stats counts what happened. All counters only grow.
type Stats struct {
	Opened      uint64 // connections of the guest's whose connect succeeded
	Accepted    uint64 // connections that came by a listener
	Refused     uint64 // connections of the guest's that were not to be had
	Reset       uint64 // connections reset towards the host
	NoFlow      uint64 // segments of no connection
	NoMemory    uint64 // connections for which there was no room
	BadSegments uint64 // SYNs with addresses or ports that nobody can connect
	Retransmits uint64 // segments sent to the guest once more
	Timeouts    uint64 // of the retransmission timer
	OutOfOrder  uint64 // segments that came before their turn
	OutOfWindow uint64 // segments that lie beyond the window, or end there
	Dropped     uint64 // segments before their turn that found no place
	Challenges  uint64 // ACKs that question a segment, RFC 5961
	Evicted     uint64 // half-open connections, for others
	Revoked     uint64 // connections that the egress rules refuse since they were changed
}

// guestDone tells whether the guest has said all and has got all: it may forget
// the connection, while the host still has to take what it said. Whether it has
// seen our FIN it alone knows.
func (c *conn) guestDone() bool {
	return c.has(flagGuestFIN) && c.has(flagFINSent) && atLeast(c.sndUna, c.finSeq)
}

// listener is a listening socket the broker passed.
type listener struct {
	id        uint32
	fd        int32
	flags     uint8 // ipc.Listener*
	guestPort uint16
	target    packet.Addr
	waiting   bool // connections may wait that no event will announce
}

func (l *listener) used() bool { return l.id != 0 }

// guestEnds fills e for a segment to the guest of flow i.
func (t *Translator) guestEnds(i uint32, e *packet.Ends) (remotePort, guestPort uint16) {
	k := t.flows.Key(i)
	e.SrcMAC, e.DstMAC = t.g.OurMAC, t.g.MAC
	e.TTL, e.DF = 255, true
	e.Src, remotePort = k.Remote()
	e.Dst, guestPort = k.Guest()
	return
}
