// SPDX-License-Identifier: Apache-2.0

// Package flow is what the translators share: the guest they serve, tokens of
// flows, and the calls they may ask of the lane that owns them.
package flow

import (
	"syscall"

	"aldente/ipc"
	"aldente/worker/packet"
)

// What a translator may ask of its lane comes in pieces; a translator's own Env has
// those that it uses. The lane makes them of system calls, tests of a scripted host
// and a clock of their own (flowtest). No call blocks. Those on a descriptor
// return zero or the error number, and what they count; EINTR is retried inside.

// Clock tells the time.
type Clock interface {
	// Now is the monotonic time in nanoseconds, constant within a batch.
	Now() int64
}

// Link leads to the guest.
type Link interface {
	// Send passes one frame to the guest: headers, then payload, which may
	// be empty. Both are free for reuse when it returns. It reports false if
	// the frame was dropped because the link is closed or full.
	Send(o *packet.Offload, headers, payload []byte) bool
	// CanSend tells whether a frame sent now would be taken. A translator
	// that holds data elsewhere asks before it reads them; when the link can
	// be written again, the lane calls its Resume.
	CanSend() bool
}

// Direct is a link whose guest's memory is within reach: what is sent need not be
// copied to it.
type Direct interface {
	// Reserve offers memory of the guest's for n bytes of payload of a packet between
	// e, from port src to dst, behind headers of this length: pieces in order, for use
	// in system calls, which may have room for fewer. Nothing is sent or promised by
	// it, and the next Send ends it. Nil: send in the ordinary way.
	Reserve(e *packet.Ends, src, dst uint16, headers, n int) [][]byte
	// SendReserved is Send with a payload of n bytes, above zero, that stand in what
	// was reserved, behind headers of that length.
	SendReserved(o *packet.Offload, headers []byte, n int) bool
}

// Broker has the sockets.
type Broker interface {
	// Open asks the broker for a socket; the answer comes to the
	// translator's Opened with the same token. It reports false if no more
	// requests fit now: try again when Opened was called for another one.
	Open(r *ipc.Open) bool
}

// Watcher reports what happens to sockets, until they are closed.
type Watcher interface {
	// Watch has the lane report to the translator, under token, when a socket
	// becomes Readable, Writable or both, as events says, edge-triggered. Its
	// peer's end and errors are always reported, urgent data where Readable is.
	// Who watches for Writable without need is woken for nothing: where it is
	// watched, whatever else happens to the socket reports it too.
	Watch(fd int32, token uint64, events uint32) syscall.Errno
	// Close closes a descriptor, which ends its watch.
	Close(fd int32)
}

// Rewatcher is a Watcher whose mind can be changed.
type Rewatcher interface {
	Watcher
	// Rewatch changes what is reported of a watched socket. What it is ready
	// for now is reported again.
	Rewatch(fd int32, token uint64, events uint32) syscall.Errno
}

// Writer writes to sockets and pipes.
type Writer interface {
	// Write is write(2): of bytes, or of one datagram.
	Write(fd int32, b []byte) (int, syscall.Errno)
}

// GatherWriter writes what lies in several places, too.
type GatherWriter interface {
	Writer
	// Writev is writev(2), of at most 1,024 buffers: of bytes, or of one datagram.
	Writev(fd int32, bufs [][]byte) (int, syscall.Errno)
}

// Receiver reads sockets.
type Receiver interface {
	// Recv is recv(2): flags as MSG_PEEK, MSG_TRUNC, MSG_DONTWAIT. Of a stream,
	// as other calls that read one: a read that ends at an urgent byte is short
	// although more is behind it. One that begins there may fail with EAGAIN
	// where a signal is about to be delivered. Urgent was reported then, or is
	// about to be.
	Recv(fd int32, b []byte, flags int) (int, syscall.Errno)
}

// Streams are stream sockets: what is read of them beside Recv, and their ends.
type Streams interface {
	Receiver
	// Discard dequeues n bytes (MSG_TRUNC).
	Discard(fd int32, n int) (int, syscall.Errno)
	// ShutdownWrite sends FIN.
	ShutdownWrite(fd int32) syscall.Errno
	// Abort closes a socket and has its peer told by RST (RFC 9293
	// section 3.10.5), what is queued in both directions being forgotten. Where
	// the peer is past taking one, it gets what was written to its end.
	Abort(fd int32)
}

// Datagrams are sockets for datagrams.
type Datagrams interface {
	// RecvDatagrams takes up to len(d) datagrams (recvmmsg).
	RecvDatagrams(fd int32, d []Datagram) (int, syscall.Errno)
}

// Failures are the errors that wait on sockets.
type Failures interface {
	// TakeError is SO_ERROR: the pending error, cleared.
	TakeError(fd int32) syscall.Errno
}

// Errors are the failures of sockets with an error queue.
type Errors interface {
	Failures
	// RecvError takes one entry of the error queue (MSG_ERRQUEUE).
	RecvError(fd int32, e *SocketError) syscall.Errno
}

// Options are those of sockets.
type Options interface {
	// Option sets an integer socket option; the worker's filter allows only
	// those listed in Option* below.
	Option(fd int32, o Option, v int) syscall.Errno
}

// Names are the addresses of sockets.
type Names interface {
	// LocalAddr is getsockname(2).
	LocalAddr(fd int32) (packet.Addr, uint16, syscall.Errno)
}

// Option names the socket options a translator may set.
type Option uint8

const (
	OptionPeekOff      Option = iota // SO_PEEK_OFF
	OptionKeepAlive                  // SO_KEEPALIVE
	OptionTTL                        // IP_TTL
	OptionHopLimit                   // IPV6_UNICAST_HOPS
	OptionUDPSegment                 // UDP_SEGMENT: cut what is written at v bytes, 0 for off
	OptionNoDelay                    // TCP_NODELAY
	OptionSendBuffer                 // SO_SNDBUF
	OptionRecvBuffer                 // SO_RCVBUF
	OptionWindowClamp                // TCP_WINDOW_CLAMP
	OptionTOS                        // IP_TOS
	OptionTrafficClass               // IPV6_TCLASS
	OptionGroupTTL                   // IP_MULTICAST_TTL
	OptionGroupHops                  // IPV6_MULTICAST_HOPS
	OptionDiscover4                  // IP_MTU_DISCOVER: Discover*
	OptionDiscover6                  // IPV6_MTU_DISCOVER: the same
)

// Values of OptionDiscover4 and OptionDiscover6, include/uapi/linux/in.h and in6.h.
const (
	DiscoverNot = 0 // whoever has to may cut what is sent, the host too
	DiscoverDo  = 2 // nobody may: what is longer than the path takes fails
)

// Datagram is one result of RecvDatagrams. Buf is given by the caller.
type Datagram struct {
	Buf       []byte      // the caller's
	N         int         // bytes received
	Segment   int         // UDP_GRO: N holds datagrams of this size, the last may be shorter; 0: one datagram
	Truncated bool        // more than len(Buf) had arrived
	From      packet.Addr // sender, zero on connected sockets
	FromPort  uint16      // sender's, zero on connected sockets
	Scope     uint32      // index of the interface that a link-local sender is on, else zero
	To        packet.Addr // local address (IP_PKTINFO), zero if not asked for
}

// SocketError is one entry of a socket's error queue, struct
// sock_extended_err of include/uapi/linux/errqueue.h.
type SocketError struct {
	Errno    syscall.Errno // what the call on the socket would return
	Origin   uint8         // SO_EE_ORIGIN_*
	Type     uint8         // ICMP or ICMPv6 type
	Code     uint8         // ICMP or ICMPv6 code
	Info     uint32        // MTU, where the type says so
	Offender packet.Addr   // who sent the ICMP error
	Buf      []byte        // the caller's; holds the datagram's payload as sent
	N        int           // bytes of Buf that were filled
}

// Values of SocketError.Origin.
const (
	OriginLocal = 1
	OriginICMP  = 2
	OriginICMP6 = 3
)

// Owner says which part of the worker a token or timer belongs to.
type Owner uint8

const (
	OwnerLane        Owner = iota // the lane's own descriptors: link, channel
	OwnerTCP                      // index: of a connection
	OwnerUDP                      // index: of a flow of datagrams
	OwnerICMP                     // index: of an echo flow
	OwnerTCPListener              // index: of a listening socket, generation: of its identifier
	OwnerUDPListener              // the same for a bound one
	OwnerBypass                   // index: of a flow past the link, and which of its two sockets
	OwnerTCPStaged                // index: of a connection that is looked at; the socket is where

	Owners // how many there are
)

// Token packs an owner, the index of one of its flows and that flow's
// generation, which tells a late event of a dead flow from one of its
// successor.
func Token(o Owner, gen uint32, index uint32) uint64 {
	return uint64(o)<<56 | uint64(gen&0xffffff)<<32 | uint64(index)
}

// SplitToken is the inverse of Token.
func SplitToken(t uint64) (o Owner, gen uint32, index uint32) {
	return Owner(t >> 56), uint32(t>>32) & 0xffffff, uint32(t)
}

// Readiness bits as epoll(7) reports them, include/uapi/linux/eventpoll.h.
const (
	Readable   = 0x1
	Urgent     = 0x2      // an urgent byte is in the receive queue
	Released   = 0x100000 // a limit of the lane's lets more go; no event of a socket's
	Writable   = 0x4
	Failed     = 0x8
	HungUp     = 0x10
	PeerClosed = 0x2000
)

// Flags of Recv, include/linux/socket.h.
const (
	MsgPeek     = 0x2
	MsgTrunc    = 0x20
	MsgDontWait = 0x40
)
