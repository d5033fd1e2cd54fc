// SPDX-License-Identifier: Apache-2.0

package rtnl

import (
	"encoding/binary"
	"fmt"
	"math/rand/v2"
	"net/netip"

	"golang.org/x/sys/unix"

	"aldente/broker/hostnet/netlink"
)

// Sizes and values of include/uapi/linux/inet_diag.h, sock_diag.h and
// net/tcp_states.h.
const (
	sockDiagByFamily = 20
	diagReqSize      = 56 // struct inet_diag_req_v2
	diagMsgSize      = 72 // struct inet_diag_msg
	diagIDSize       = 48 // struct inet_diag_sockid, in both
	skV6Only         = 11 // INET_DIAG_SKV6ONLY, told of sockets that are not connected

	StateEstablished = 1 // TCP_ESTABLISHED: of UDP, connected
	StateClose       = 7 // TCP_CLOSE: of UDP, bound or less
	StateListen      = 10
)

// Offsets in struct inet_diag_req_v2.
const (
	reqFamily = 0
	reqProto  = 1
	reqStates = 4
	reqID     = 8
)

// Offsets in struct inet_diag_msg.
const (
	msgFamily = 0
	msgState  = 1
	msgID     = 4
	msgUID    = 64
	msgInode  = 68
)

// Offsets in struct inet_diag_sockid. Ports and addresses are in network order.
const (
	idSport  = 0
	idDport  = 2
	idSrc    = 4
	idDst    = 20
	idIf     = 36
	idCookie = 40
)

// SockQuery is a question about sockets.
type SockQuery struct {
	Family uint8  // AF_INET or AF_INET6
	Proto  uint8  // IPPROTO_TCP or IPPROTO_UDP
	States uint32 // those that count: one bit, 1 << State…, for each
	// The sockets' ports, zero for any; of Lookup, both ends of the one.
	Local, Peer netip.AddrPort
}

// PortOnly is an end of which the address is of no concern.
func PortOnly(port uint16) netip.AddrPort { return netip.AddrPortFrom(netip.Addr{}, port) }

func (q *SockQuery) encode(b []byte) {
	b[reqFamily], b[reqProto] = q.Family, q.Proto
	binary.NativeEndian.PutUint32(b[reqStates:], q.States)
	id := b[reqID : reqID+diagIDSize]
	putEnd(id[idSport:], id[idSrc:], q.Local)
	putEnd(id[idDport:], id[idDst:], q.Peer)
}

func putEnd(port, addr []byte, a netip.AddrPort) {
	binary.BigEndian.PutUint16(port, a.Port())
	copy(addr[:16], a.Addr().AsSlice())
}

// Sock is a socket: struct inet_diag_msg and attributes, in place. Only sockOf makes
// one that may be looked at.
type Sock struct{ b []byte }

func sockOf(body []byte) (Sock, bool) {
	if len(body) < diagMsgSize {
		return Sock{}, false
	}
	return Sock{body}, true
}

func (s Sock) id() []byte { return s.b[msgID : msgID+diagIDSize] }

func (s Sock) end(port, addr int) netip.AddrPort {
	id := s.id()
	a := netip.AddrFrom4([4]byte(id[addr : addr+4]))
	if s.b[msgFamily] != unix.AF_INET {
		a = netip.AddrFrom16([16]byte(id[addr : addr+16])).Unmap()
	}
	return netip.AddrPortFrom(a, binary.BigEndian.Uint16(id[port:]))
}

// Local is the socket's own end. IPv4 addresses are such, of whichever family the
// socket is.
func (s Sock) Local() netip.AddrPort { return s.end(idSport, idSrc) }

// Peer is the end that it is connected to, port zero if it is not.
func (s Sock) Peer() netip.AddrPort { return s.end(idDport, idDst) }

// Port is that of Local.
func (s Sock) Port() uint16 { return binary.BigEndian.Uint16(s.id()[idSport:]) }

// State is State….
func (s Sock) State() uint8 { return s.b[msgState] }

// Device is the interface that it is bound to, zero if to none.
func (s Sock) Device() uint32 { return binary.NativeEndian.Uint32(s.id()[idIf:]) }

// Cookie is its SO_COOKIE. Of two words the lower comes first.
func (s Sock) Cookie() uint64 {
	c := s.id()[idCookie:]
	return uint64(binary.NativeEndian.Uint32(c)) | uint64(binary.NativeEndian.Uint32(c[4:]))<<32
}

// UID is its user's.
func (s Sock) UID() uint32 { return binary.NativeEndian.Uint32(s.b[msgUID:]) }

// Inode is what its links in /proc name.
func (s Sock) Inode() uint32 { return binary.NativeEndian.Uint32(s.b[msgInode:]) }

// V6Only tells whether it is of IPv6 and of no concern to IPv4.
func (s Sock) V6Only() bool {
	v := Attrs(s.b[diagMsgSize:]).Get(skV6Only)
	return len(v) > 0 && v[0] != 0
}

// SockDiag asks the kernel about sockets of the network namespace that it was opened
// in, sock_diag(7). It is not for concurrent use.
type SockDiag struct {
	socket      *netlink.Socket
	seq         uint32
	buf         []byte
	interrupted bool
}

// DialSockDiag opens a socket in the namespace of the calling thread.
func DialSockDiag() (*SockDiag, error) {
	s, err := netlink.Dial(unix.NETLINK_SOCK_DIAG)
	if err != nil {
		return nil, fmt.Errorf("sock_diag: %w", err)
	}
	return &SockDiag{socket: s, seq: rand.Uint32(), buf: make([]byte, receiveBuffer)}, nil
}

// Close closes the socket.
func (d *SockDiag) Close() error { return d.socket.Close() }

// Drain throws away what is left of answers.
func (d *SockDiag) Drain() { d.socket.Drain() }

// List asks for all sockets that the query is about. Next reads the answer.
func (d *SockDiag) List(q *SockQuery) error {
	d.interrupted = false
	return d.ask(q, unix.NLM_F_DUMP, 0)
}

func (d *SockDiag) ask(q *SockQuery, flags uint16, cookie uint64) error {
	d.seq++
	var body [diagReqSize]byte
	q.encode(body[:])
	binary.NativeEndian.PutUint64(body[reqID+idCookie:], cookie)
	var room [unix.SizeofNlMsghdr + diagReqSize]byte
	return d.socket.Send(appendMessage(room[:0], sockDiagByFamily, unix.NLM_F_REQUEST|flags, d.seq, body[:]))
}

// Next reads one datagram of a list and calls each for its sockets, which are there
// during the call only. done tells that it was the last. unix.ENOENT says that the
// kernel does not have the family or the protocol.
func (d *SockDiag) Next(each func(Sock)) (done bool, err error) {
	b, err := d.socket.Receive(d.buf)
	if err != nil {
		return false, err
	}
	return d.take(b, each)
}

func (d *SockDiag) take(b []byte, each func(Sock)) (done bool, err error) {
	for len(b) > 0 {
		h, body, rest, ok := nextMessage(b)
		if !ok {
			return true, errShort
		}
		b = rest
		if h.seq != d.seq {
			continue
		}
		d.interrupted = d.interrupted || h.flags&unix.NLM_F_DUMP_INTR != 0
		switch h.typ {
		case unix.NLMSG_DONE:
			return true, nil
		case unix.NLMSG_ERROR:
			if len(body) < 4 {
				return true, errShort
			}
			return true, errnoOf(body)
		case sockDiagByFamily:
			if s, ok := sockOf(body); ok {
				each(s)
			}
		}
	}
	return false, nil
}

// Interrupted tells whether sockets came and went while the last list was made, so
// that it may lack some.
func (d *SockDiag) Interrupted() bool { return d.interrupted }

// Lookup finds the socket of UDP that gets what its peer sends: for this question the
// kernel wants the ends the other way round, "for historical reasons". The socket is
// there until the next question.
func (d *SockDiag) Lookup(q *SockQuery) (Sock, bool) {
	turned := *q
	turned.Local, turned.Peer = q.Peer, q.Local
	d.Drain()
	if d.ask(&turned, 0, ^uint64(0)) != nil { // of any cookie
		return Sock{}, false
	}
	b, err := d.socket.Receive(d.buf)
	if err != nil {
		return Sock{}, false
	}
	h, body, _, ok := nextMessage(b)
	if !ok || h.typ != sockDiagByFamily || h.seq != d.seq {
		return Sock{}, false
	}
	return sockOf(body)
}
