// SPDX-License-Identifier: Apache-2.0

// Package ipc is what broker, worker, agent and names say to each other: fixed-size
// records on SOCK_SEQPACKET sockets, at most one descriptor with each.
//
// Every record starts with an eight-byte header: kind, size, and nothing that
// the receiver would have to trust. A record whose size is not exactly that of
// its kind is malformed, and a malformed record ends the process that sent it.
// Integers are little-endian; all processes run on one machine, so the order
// only has to be fixed.
package ipc

import (
	"encoding/binary"
	"errors"
	"fmt"
)

// Kind says what a record is, on all channels: a record on the wrong one is
// malformed. Zero is never valid.
type Kind uint16

const (
	kindInvalid Kind = iota

	// Broker to worker, while starting.
	KindConfig   // Config
	KindLink     // Link, with the tap or the connected socket
	KindListener // Listener, with a listening TCP or a bound UDP socket
	KindCapture  // Capture, with the pcap file
	KindStart    // Empty: start-up is over

	// Broker to worker, while running.
	KindOpened   // Opened, with the socket if Errno is zero
	KindUnlisten // Listener: stop using and close this listener
	KindRevoke   // Revoke: end the flows that it names
	KindRetarget // Listener: what comes by it from now on is for another port or address
	KindLive     // Live, with a pipe unless it ends one: a capture that is looked at while it goes on

	// Worker to broker.
	KindReady    // Empty: confined, start-up records read, translating
	KindOpen     // Open
	KindEvent    // Event
	KindAccepted // Accepted
	KindEnded    // Ended
)

// HeaderSize is the length of the header of each record, in bytes.
const HeaderSize = 8

// MaxRecord bounds every record, header included.
const MaxRecord = 8192

// MaxOutstanding is how many Open requests may be unanswered at a time. The
// worker keeps to it by waiting; a worker that exceeds it is not ours any more.
const MaxOutstanding = 256

// MaxBatch is how many Open records the worker may put into one message, and
// AgentOpen records the broker. They come in arrays, so that a burst of connections
// costs who receives them one wake-up.
const MaxBatch = 32

// ErrMalformed is returned for any record that is not exactly what its kind
// demands. The sender is to be ended.
var ErrMalformed = errors.New("malformed record")

func putHeader(b []byte, k Kind, size int) {
	binary.LittleEndian.PutUint16(b[0:], uint16(k))
	binary.LittleEndian.PutUint16(b[2:], uint16(size))
	binary.LittleEndian.PutUint32(b[4:], 0)
}

// KindOf is the kind that a message begins with, zero if it is too short for one.
// Nothing else of it was checked: see Check.
func KindOf(b []byte) Kind {
	if len(b) < HeaderSize {
		return kindInvalid
	}
	return Kind(binary.LittleEndian.Uint16(b))
}

// Empty encodes a record that is only its kind.
func Empty(k Kind) []byte {
	b := make([]byte, HeaderSize)
	putHeader(b, k, HeaderSize)
	return b
}

// Protocol numbers as in IANA's registry; the only ones the broker opens.
const (
	ProtoICMP   = 1
	ProtoTCP    = 6
	ProtoUDP    = 17
	ProtoICMPv6 = 58
)

// Open asks for one connected socket.
//
// Addresses are those the guest used: the broker translates them, applies the
// egress rules to what comes out, and connects there. The worker has no say in what
// an address means.
type Open struct {
	Token    uint64   // returned in Opened; means nothing to the broker
	Proto    uint8    // ProtoTCP, ProtoUDP, ProtoICMP or ProtoICMPv6
	Flags    uint8    // Open*
	Listener uint32   // 0, or the listener on whose behalf (Listener.ID): UDP, or with OpenBypass
	Src      [16]byte // guest's address; with Listener: local address that was spoken to
	Dst      [16]byte // destination as the guest sees it; with Listener: the remote peer
	SrcPort  uint16   // guest's port, or echo identifier
	DstPort  uint16   // zero for echo
	Scope    uint32   // with Listener: index of the interface that a link-local peer is on, zero: unknown
}

// OpenBypass in Open.Flags asks for the far end of the loopback bypass: a
// socket on the other side, host or namespace, of the listener named. Without
// it, a UDP listener is named to ask for a socket that answers from its port.
const OpenBypass = 1 << 0

// OpenMember in Open.Flags asks for what comes to a port of a group, Dst, which the
// host joins: a socket that is connected to nobody and sends nothing. Source and
// destination are the same.
const OpenMember = 1 << 1

// OpenSize is the encoded size of Open, header included.
const OpenSize = HeaderSize + 8 + 1 + 1 + 2 + 4 + 16 + 16 + 2 + 2 + 4

// Encode writes the record to b, which must hold OpenSize bytes.
func (o *Open) Encode(b []byte) {
	_ = b[OpenSize-1]
	putHeader(b, KindOpen, OpenSize)
	p := b[HeaderSize:]
	binary.LittleEndian.PutUint64(p[0:], o.Token)
	p[8] = o.Proto
	p[9] = o.Flags
	p[10], p[11] = 0, 0
	binary.LittleEndian.PutUint32(p[12:], o.Listener)
	copy(p[16:32], o.Src[:])
	copy(p[32:48], o.Dst[:])
	binary.LittleEndian.PutUint16(p[48:], o.SrcPort)
	binary.LittleEndian.PutUint16(p[50:], o.DstPort)
	binary.LittleEndian.PutUint32(p[52:], o.Scope)
}

// Decode reads exactly one record.
func (o *Open) Decode(b []byte) error {
	if err := expect(b, KindOpen, OpenSize); err != nil {
		return err
	}
	p := b[HeaderSize:]
	if p[10] != 0 || p[11] != 0 || p[9]&^(OpenBypass|OpenMember) != 0 {
		return fmt.Errorf("%w: reserved bits set", ErrMalformed)
	}
	o.Token = binary.LittleEndian.Uint64(p[0:])
	o.Proto = p[8]
	o.Flags = p[9]
	o.Listener = binary.LittleEndian.Uint32(p[12:])
	copy(o.Src[:], p[16:32])
	copy(o.Dst[:], p[32:48])
	o.SrcPort = binary.LittleEndian.Uint16(p[48:])
	o.DstPort = binary.LittleEndian.Uint16(p[50:])
	o.Scope = binary.LittleEndian.Uint32(p[52:])
	switch o.Proto {
	case ProtoTCP, ProtoUDP:
	case ProtoICMP, ProtoICMPv6:
		if o.DstPort != 0 {
			return fmt.Errorf("%w: echo with a port", ErrMalformed)
		}
	default:
		return fmt.Errorf("%w: protocol %d", ErrMalformed, o.Proto)
	}
	if o.Flags&OpenMember != 0 && (o.Flags != OpenMember || o.Proto != ProtoUDP || o.Listener != 0 || o.Src != o.Dst || o.SrcPort != o.DstPort) {
		return fmt.Errorf("%w: a group with protocol %d, flags %#x", ErrMalformed, o.Proto, o.Flags)
	}
	bypass := o.Flags&OpenBypass != 0
	if o.Scope != 0 && (o.Listener == 0 || bypass) {
		return fmt.Errorf("%w: an interface for what is no answer", ErrMalformed)
	}
	transport := o.Proto == ProtoTCP || o.Proto == ProtoUDP
	if o.Listener != 0 && !(o.Proto == ProtoUDP || bypass && transport) || o.Listener == 0 && bypass {
		return fmt.Errorf("%w: listener %d with protocol %d, flags %#x", ErrMalformed, o.Listener, o.Proto, o.Flags)
	}
	return nil
}

// Opened answers Open.
type Opened struct {
	Token     uint64   // as in Open
	Errno     uint16   // zero: the descriptor comes with this record
	Flags     uint16   // Opened*
	LocalPort uint16   // port or echo identifier that the socket has, 0 if unknown
	PeerPort  uint16   // port that the socket is connected to, 0 if unknown
	Addr      [16]byte // where the socket is really connected, after translation
}

// Flags of Opened.
const (
	OpenedInProgress = 1 << 0 // TCP: connect is under way, EPOLLOUT tells its end
	OpenedProhibited = 1 << 1 // refused by the egress rules
	OpenedStaged     = 1 << 2 // what the guest sends first is looked at, see Switch
	OpenedWait       = 1 << 3 // nothing is known yet: another answer comes, with OpenedLate
	OpenedLate       = 1 << 4 // follows one with OpenedWait, or is not the answer that counts
	OpenedAnswers    = 1 << 5 // the socket hears answers to what is sent to a group; with OpenedLate, and before the answer

	OpenedNames = 1 << 15 // UDP: it leads to aldente-names, as any flow to there does

	openedFlags = OpenedAnswers<<1 - 1 | OpenedNames
)

// OpenedSize is the encoded size of Opened, header included.
const OpenedSize = HeaderSize + 8 + 2 + 2 + 2 + 2 + 16

// Encode writes the record to b, which must hold OpenedSize bytes.
func (o *Opened) Encode(b []byte) {
	_ = b[OpenedSize-1]
	putHeader(b, KindOpened, OpenedSize)
	p := b[HeaderSize:]
	binary.LittleEndian.PutUint64(p[0:], o.Token)
	binary.LittleEndian.PutUint16(p[8:], o.Errno)
	binary.LittleEndian.PutUint16(p[10:], o.Flags)
	binary.LittleEndian.PutUint16(p[12:], o.LocalPort)
	binary.LittleEndian.PutUint16(p[14:], o.PeerPort)
	copy(p[16:32], o.Addr[:])
}

// Decode reads exactly one record.
func (o *Opened) Decode(b []byte) error {
	if err := expect(b, KindOpened, OpenedSize); err != nil {
		return err
	}
	p := b[HeaderSize:]
	if flags := binary.LittleEndian.Uint16(p[10:]); flags&^openedFlags != 0 || flags&OpenedWait != 0 && flags != OpenedWait {
		return fmt.Errorf("%w: reserved bits set", ErrMalformed)
	}
	o.Token = binary.LittleEndian.Uint64(p[0:])
	o.Errno = binary.LittleEndian.Uint16(p[8:])
	o.Flags = binary.LittleEndian.Uint16(p[10:])
	o.LocalPort = binary.LittleEndian.Uint16(p[12:])
	o.PeerPort = binary.LittleEndian.Uint16(p[14:])
	copy(o.Addr[:], p[16:32])
	return nil
}

// Event tells the broker what only the worker can know. It is information for
// the log and the supervisor, never authority.
type Event struct {
	Code uint32 // Event*
}

// Codes of Event.
const (
	EventLinkClosed = 1 // the socket's peer is gone
	EventLinkFailed = 2 // the tap is gone
)

// EventSize is the encoded size of Event, header included.
const EventSize = HeaderSize + 4

// Encode writes the record to b, which must hold EventSize bytes.
func (e *Event) Encode(b []byte) {
	putHeader(b, KindEvent, EventSize)
	binary.LittleEndian.PutUint32(b[HeaderSize:], e.Code)
}

// Decode reads exactly one record.
func (e *Event) Decode(b []byte) error {
	if err := expect(b, KindEvent, EventSize); err != nil {
		return err
	}
	e.Code = binary.LittleEndian.Uint32(b[HeaderSize:])
	if e.Code != EventLinkClosed && e.Code != EventLinkFailed {
		return fmt.Errorf("%w: event %d", ErrMalformed, e.Code)
	}
	return nil
}

// Revoke ends flows that the egress rules have allowed and refuses now: those of a
// protocol whose sockets are connected to an address and port. The guest is not
// told; what it sends next is asked for anew.
type Revoke struct {
	Proto uint8    // ProtoUDP, ProtoICMP or ProtoICMPv6
	Port  uint16   // as in Opened, zero: any; zero for echo
	Addr  [16]byte // as in Opened
}

// RevokeSize is the encoded size of Revoke, header included.
const RevokeSize = HeaderSize + 1 + 1 + 2 + 16

// Encode writes the record to b, which must hold RevokeSize bytes.
func (r *Revoke) Encode(b []byte) {
	_ = b[RevokeSize-1]
	putHeader(b, KindRevoke, RevokeSize)
	p := b[HeaderSize:]
	p[0], p[1] = r.Proto, 0
	binary.LittleEndian.PutUint16(p[2:], r.Port)
	copy(p[4:20], r.Addr[:])
}

// Decode reads exactly one record.
func (r *Revoke) Decode(b []byte) error {
	if err := expect(b, KindRevoke, RevokeSize); err != nil {
		return err
	}
	p := b[HeaderSize:]
	if p[1] != 0 {
		return fmt.Errorf("%w: reserved bits set", ErrMalformed)
	}
	r.Proto = p[0]
	r.Port = binary.LittleEndian.Uint16(p[2:])
	copy(r.Addr[:], p[4:20])
	echo := r.Proto == ProtoICMP || r.Proto == ProtoICMPv6
	if !echo && r.Proto != ProtoUDP || echo && r.Port != 0 {
		return fmt.Errorf("%w: protocol %d with port %d", ErrMalformed, r.Proto, r.Port)
	}
	return nil
}

// expect checks that b is exactly one record of the kind and size.
func expect(b []byte, k Kind, size int) error {
	if len(b) != size || size > MaxRecord || KindOf(b) != k ||
		int(binary.LittleEndian.Uint16(b[2:])) != size || binary.LittleEndian.Uint32(b[4:]) != 0 {
		return fmt.Errorf("%w: kind %#x with %d bytes, wanted kind %#x with %d", ErrMalformed, uint16(KindOf(b)), len(b), uint16(k), size)
	}
	return nil
}
