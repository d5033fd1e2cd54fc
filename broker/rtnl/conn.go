// SPDX-License-Identifier: Apache-2.0

// Package rtnl is where netlink is spoken and read: rtnetlink (RFC 3549,
// include/uapi/linux/rtnetlink.h) of links, addresses and routes, and sock_diag(7) of
// sockets. Nobody else knows how a message is laid out.
//
// Routes and addresses of the host have to arrive in the guest's namespace exactly,
// attributes unknown to us included. So nothing is decoded into structures and back:
// Link, Addr, Route, Hop and Sock look at the bytes that the kernel wrote, and change
// them in place. What is too short for its fixed header is none of them, and what is
// no whole attribute is not read.
//
// The package stays clear of package net and, but for subscriptions, of the runtime's
// poller: broker and agent both pay for it at every start.
package rtnl

import (
	"encoding/binary"
	"errors"
	"fmt"
	"math/rand/v2"

	"golang.org/x/sys/unix"

	"aldente/broker/hostnet/netlink"
)

// ErrInterrupted says that tables changed while they were dumped, or that part of
// the answer was lost: ask again.
var ErrInterrupted = errors.New("rtnetlink dump interrupted by a change")

// errShort is for a kernel answer that does not parse, which only a fault of
// this package explains.
var errShort = fmt.Errorf("netlink answer malformed: %w", unix.EBADMSG)

// receiveBuffer is what the kernel fills at most for one dump message
// (NLMSG_GOODSIZE growth stops at 32 KiB, net/netlink/af_netlink.c).
const receiveBuffer = 32 << 10

// Bounds on what one sendto carries, so that all acknowledgements, which repeat
// refused requests, fit the socket's receive buffer (rmem_default, 208 KiB).
const (
	maxBatch    = 64       // requests
	maxBatchLen = 16 << 10 // bytes
)

// Message is one answer: its type (RTM_*) and its body, that is the
// family-specific header (struct ifaddrmsg, rtmsg, ifinfomsg) and attributes.
type Message struct {
	Type uint16 // RTM_*
	Body []byte // header of the family and attributes
}

// Link is what a message of type RTM_*LINK is about, if it is one.
func (m Message) Link() (Link, bool) {
	switch m.Type {
	case unix.RTM_NEWLINK, unix.RTM_DELLINK:
		return LinkOf(m.Body)
	}
	return Link{}, false
}

// Addr is what a message of type RTM_*ADDR is about, if it is one.
func (m Message) Addr() (Addr, bool) {
	switch m.Type {
	case unix.RTM_NEWADDR, unix.RTM_DELADDR:
		return AddrOf(m.Body)
	}
	return Addr{}, false
}

// Route is what a message of type RTM_*ROUTE is about, if it is one.
func (m Message) Route() (Route, bool) {
	switch m.Type {
	case unix.RTM_NEWROUTE, unix.RTM_DELROUTE:
		return RouteOf(m.Body)
	}
	return Route{}, false
}

// Nexthop is what a message of type RTM_*NEXTHOP is about, if it is one.
func (m Message) Nexthop() (Nexthop, bool) {
	switch m.Type {
	case unix.RTM_NEWNEXTHOP, unix.RTM_DELNEXTHOP:
		return NexthopOf(m.Body)
	}
	return Nexthop{}, false
}

// Request is one change: type, body, and flags beyond NLM_F_REQUEST and
// NLM_F_ACK.
type Request struct {
	Type  uint16 // RTM_*
	Flags uint16 // NLM_F_*, beyond those
	Body  []byte // header of the family and attributes
}

// Conn is a blocking rtnetlink socket in the network namespace of the thread
// that dialled it. It is not for concurrent use.
type Conn struct {
	socket *netlink.Socket
	seq    uint32
	buf    []byte
}

// Dial opens a socket.
func Dial() (*Conn, error) {
	s, err := netlink.Dial(unix.NETLINK_ROUTE)
	if err != nil {
		return nil, err
	}
	// Both are optimisations: Linux 4.20 filters dumps, 4.12 cuts the echo of
	// the request off an acknowledgement.
	_ = s.Option(unix.NETLINK_GET_STRICT_CHK, 1)
	_ = s.Option(unix.NETLINK_CAP_ACK, 1)
	return &Conn{socket: s, seq: rand.Uint32(), buf: make([]byte, receiveBuffer)}, nil
}

// Close closes the socket.
func (c *Conn) Close() error { return c.socket.Close() }

// Dump asks for a table and calls each for every entry. Bodies are valid only
// during the call. A family or table that the kernel does not have is empty.
func (c *Conn) Dump(typ uint16, body []byte, each func(Message)) error {
	if err := c.send(c.append(nil, Request{Type: typ, Flags: unix.NLM_F_DUMP, Body: body}, 0)); err != nil {
		return err
	}
	interrupted := false
	for {
		done, err := c.receive(c.seq, func(h header, m Message) error {
			interrupted = interrupted || h.flags&unix.NLM_F_DUMP_INTR != 0
			each(m)
			return nil
		})
		switch {
		case errors.Is(err, unix.ENOENT), errors.Is(err, unix.EAFNOSUPPORT), errors.Is(err, unix.EOPNOTSUPP):
			return nil
		case errors.Is(err, unix.ENOBUFS):
			return ErrInterrupted
		case err != nil:
			return err
		case done && interrupted:
			return ErrInterrupted
		case done:
			return nil
		}
	}
}

// Get asks for one object and returns a copy of the answer's body. If the answer
// was lost it asks once more.
func (c *Conn) Get(typ uint16, body []byte) ([]byte, error) {
	b, err := c.get(typ, body)
	if errors.Is(err, unix.ENOBUFS) {
		b, err = c.get(typ, body)
	}
	return b, err
}

func (c *Conn) get(typ uint16, body []byte) ([]byte, error) {
	if err := c.send(c.append(nil, Request{Type: typ, Body: body}, unix.NLM_F_ACK)); err != nil {
		return nil, err
	}
	var got []byte
	for {
		done, err := c.receive(c.seq, func(_ header, m Message) error {
			got = append([]byte(nil), m.Body...)
			return nil
		})
		switch {
		case err != nil:
			return nil, err
		case done && got == nil:
			return nil, errShort
		case done:
			return got, nil
		}
	}
}

// Route asks for the route that what a body is about would take.
func (c *Conn) Route(body []byte) (Route, error) {
	b, err := c.Get(unix.RTM_GETROUTE, body)
	if err != nil {
		return Route{}, err
	}
	r, ok := RouteOf(b)
	if !ok {
		return Route{}, errShort
	}
	return r, nil
}

// Do sends the requests in order and returns one error for each, nil for those
// that succeeded. The second result is for a failure of the socket itself.
// A failed request does not keep the kernel from doing those behind it.
func (c *Conn) Do(reqs []Request) ([]error, error) {
	errs := make([]error, len(reqs))
	for start := 0; start < len(reqs); {
		first := c.seq + 1
		var out []byte
		end := start
		for end < len(reqs) && end < start+maxBatch && (end == start || len(out)+len(reqs[end].Body) < maxBatchLen) {
			out = c.append(out, reqs[end], unix.NLM_F_ACK)
			end++
		}
		if err := c.send(out); err != nil {
			return nil, err
		}
		for i := start; i < end; {
			n, err := c.acks(first, errs[start:end])
			if err != nil {
				return nil, err
			}
			i += n
		}
		start = end
	}
	return errs, nil
}

// acks reads one datagram of acknowledgements, whose sequence numbers start at
// first, and returns how many it held.
func (c *Conn) acks(first uint32, errs []error) (int, error) {
	b, err := c.read()
	if err != nil {
		return 0, err
	}
	n := 0
	for len(b) > 0 {
		h, body, rest, ok := nextMessage(b)
		if !ok {
			return 0, errShort
		}
		b = rest
		i := int(h.seq - first)
		if h.typ != unix.NLMSG_ERROR || len(body) < 4 || i < 0 || i >= len(errs) {
			continue
		}
		errs[i] = errnoOf(body)
		n++
	}
	return n, nil
}

// receive reads one datagram and calls each for the messages that answer seq.
// done tells that the answer is complete.
func (c *Conn) receive(seq uint32, each func(header, Message) error) (done bool, err error) {
	b, err := c.read()
	if err != nil {
		return false, err
	}
	for len(b) > 0 {
		h, body, rest, ok := nextMessage(b)
		if !ok {
			return false, errShort
		}
		b = rest
		switch {
		case h.seq != seq:
		case h.typ == unix.NLMSG_ERROR || h.typ == unix.NLMSG_DONE:
			if len(body) < 4 {
				return false, errShort
			}
			return true, errnoOf(body)
		default:
			if err := each(h, Message{Type: h.typ, Body: body}); err != nil {
				return false, err
			}
		}
	}
	return false, nil
}

func (c *Conn) send(b []byte) error { return c.socket.Send(b) }

func (c *Conn) read() ([]byte, error) {
	b, err := c.socket.Receive(c.buf)
	if err != nil {
		c.socket.Drain() // the rest of this answer is none to the next request
		return nil, fmt.Errorf("rtnetlink: %w", err)
	}
	return b, nil
}

// header is what matters of struct nlmsghdr.
type header struct {
	typ, flags uint16
	seq        uint32
}

func (c *Conn) append(b []byte, r Request, flags uint16) []byte {
	c.seq++
	return appendMessage(b, r.Type, unix.NLM_F_REQUEST|flags|r.Flags, c.seq, r.Body)
}

// Offsets in struct nlmsghdr, include/uapi/linux/netlink.h.
const (
	nlmsgLen   = 0
	nlmsgType  = 4
	nlmsgFlags = 6
	nlmsgSeq   = 8
)

func appendMessage(b []byte, typ, flags uint16, seq uint32, body []byte) []byte {
	b = binary.NativeEndian.AppendUint32(b, uint32(unix.SizeofNlMsghdr+len(body)))
	b = binary.NativeEndian.AppendUint16(b, typ)
	b = binary.NativeEndian.AppendUint16(b, flags)
	b = binary.NativeEndian.AppendUint32(b, seq)
	b = binary.NativeEndian.AppendUint32(b, 0) // the port identifier: the kernel knows it
	b = append(b, body...)
	for len(b)%unix.NLMSG_ALIGNTO != 0 {
		b = append(b, 0)
	}
	return b
}

// nextMessage splits the first message off b.
func nextMessage(b []byte) (h header, body, rest []byte, ok bool) {
	if len(b) < unix.SizeofNlMsghdr {
		return h, nil, nil, false
	}
	n := binary.NativeEndian.Uint32(b[nlmsgLen:])
	if n < unix.SizeofNlMsghdr || uint64(n) > uint64(len(b)) {
		return h, nil, nil, false
	}
	h.typ = binary.NativeEndian.Uint16(b[nlmsgType:])
	h.flags = binary.NativeEndian.Uint16(b[nlmsgFlags:])
	h.seq = binary.NativeEndian.Uint32(b[nlmsgSeq:])
	return h, b[unix.SizeofNlMsghdr:n], b[min(align(int(n)), len(b)):], true
}

// Subscription hears what the kernel tells those who asked to be told.
type Subscription = netlink.Subscription

// Subscribe has the kernel tell what changes about groups, RTNLGRP_*.
func Subscribe(groups ...int) (*Subscription, error) {
	return netlink.Subscribe(unix.NETLINK_ROUTE, groups...)
}

// Next splits the first message off a datagram that nobody asked for. It reports
// false if there is no whole one.
func Next(b []byte) (m Message, rest []byte, ok bool) {
	h, body, rest, ok := nextMessage(b)
	return Message{Type: h.typ, Body: body}, rest, ok
}

// errnoOf reads the status of NLMSG_ERROR and NLMSG_DONE: zero or a negative
// error number.
func errnoOf(body []byte) error {
	if e := int32(binary.NativeEndian.Uint32(body)); e < 0 {
		return unix.Errno(-e)
	}
	return nil
}
