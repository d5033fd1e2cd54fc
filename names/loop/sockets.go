// SPDX-License-Identifier: Apache-2.0

package loop

import (
	"aldente/ipc"
	"aldente/ipc/domain"
	"aldente/names/dns"
	"aldente/names/frame"
	"aldente/names/kernel"
)

// conn is a socket: of a client, or to a resolver.
type conn struct {
	fd     int // -1: the broker has been asked for it
	token  uint64
	tcp    bool
	port   uint16 // of a client
	up     bool   // of TCP: there is a connection
	paused bool   // nothing is read for now
	ended  bool   // nothing more comes, of a client that may wait for answers
	last   bool   // it is closed once it has taken what waits for it
	queue  frame.Queue
}

// watch has the poller report what is of interest now.
func (l *Loop) watch(c *conn) {
	_ = l.poll.Change(c.fd, c.token, !c.paused && !c.ended, c.tcp && (!c.up || c.queue.Len() > 0))
}

// client takes a client on.
func (l *Loop) client(r *ipc.Client, fd int) {
	c := &conn{fd: fd, token: token(ofClient, r.ID), tcp: r.Proto == ipc.ProtoTCP, port: r.Port, up: true}
	if l.clients[r.ID] != nil || l.poll.Add(fd, c.token, true, false) != nil {
		kernel.Close(fd)
		return
	}
	l.clients[r.ID] = c
	l.engine.Client(r.ID, c.tcp, l.now())
}

// clientEvent reads what a client has sent, or writes what waits for it.
func (l *Loop) clientEvent(id uint32, c *conn, e kernel.Event) {
	if e.Writable && c.queue.Len() > 0 && (!l.drain(c) || c.last && c.queue.Len() == 0) {
		l.clientGone(id, c)
		return
	}
	// What is reported although nothing is read is that the other end is gone for good.
	if e.Readable && (c.paused || c.ended) {
		l.clientGone(id, c)
		return
	}
	for range readsATurn {
		if !e.Readable || c.paused || l.clients[id] != c {
			return
		}
		b := l.buf[:]
		if c.tcp {
			b = b[:frame.MaxRead]
		}
		n, err := kernel.Read(c.fd, b)
		switch {
		case kernel.Busy(err):
			return
		case err != nil:
			// Of UDP: the other end was closed, and never heard what was sent last.
			l.clientGone(id, c)
			return
		case n == 0 && c.tcp:
			c.ended = true
			l.watch(c)
			l.engine.Finished(id, l.now())
			return
		}
		l.engine.Received(id, b[:n], l.now())
		if !c.tcp {
			return // there is rarely another, which would be reported
		}
	}
}

func (l *Loop) clientGone(id uint32, c *conn) {
	l.forget(id, c)
	l.engine.Ended(id, l.now())
}

func (l *Loop) forget(id uint32, c *conn) {
	l.poll.Close(c.fd)
	delete(l.clients, id)
	if c.last {
		l.lasting--
	}
}

// upstream takes a socket that the engine has asked for, if it wants it still.
func (l *Loop) upstream(r *ipc.Upstream, fd int) {
	c := l.asked[r.Seq]
	if c == nil || c.fd >= 0 {
		if fd >= 0 {
			kernel.Close(fd)
		}
		return
	}
	if fd >= 0 && l.poll.Add(fd, token(ofResolver, r.Seq), true, c.tcp) == nil {
		c.fd, c.token = fd, token(ofResolver, r.Seq)
		if !c.tcp {
			c.up = true
			l.engine.Upstream(r.Seq, false, l.now())
		}
		return // a connection is there when it can be written to
	}
	if fd >= 0 {
		kernel.Close(fd)
	}
	delete(l.asked, r.Seq)
	l.engine.Upstream(r.Seq, true, l.now())
}

// resolverEvent reads what a resolver has sent.
func (l *Loop) resolverEvent(id uint32, c *conn, e kernel.Event) {
	if c.tcp && !c.up && e.Writable {
		// A connect that has failed is readable, too, and tells so when it is read.
		c.up = true
		l.watch(c)
		if !e.Readable {
			l.engine.Upstream(id, false, l.now())
		}
	}
	for range readsATurn {
		if !e.Readable || l.asked[id] != c {
			return
		}
		b := l.buf[:]
		if c.tcp {
			b = b[:frame.MaxRead]
		}
		n, err := kernel.Read(c.fd, b)
		if kernel.Busy(err) {
			return
		}
		if err != nil || n == 0 && c.tcp {
			l.poll.Close(c.fd)
			delete(l.asked, id)
			l.engine.UpstreamEnded(id, l.now())
			return
		}
		l.engine.Answered(id, b[:n], l.now())
		if !c.tcp {
			return
		}
	}
}

// drain writes what waits for a socket, and reports false if that is broken.
func (l *Loop) drain(c *conn) bool {
	for c.queue.Len() > 0 {
		n, err := kernel.Write(c.fd, c.queue.Bytes())
		if kernel.Busy(err) {
			break
		}
		if err != nil {
			return false
		}
		c.queue.Wrote(n)
	}
	l.watch(c)
	return true
}

// host is the loop as the engine sees it.
type host struct{ *Loop }

// Send implements dns.Host. A datagram for which there is no room is lost, as datagrams
// are.
func (h host) Send(id uint32, msg []byte) bool {
	c := h.clients[id]
	if c == nil {
		return false
	}
	if !c.tcp {
		_, err := kernel.Write(c.fd, msg)
		return err == nil || kernel.Busy(err)
	}
	waited := c.queue.Len() > 0
	return c.queue.Add(msg) && (waited || h.drain(c))
}

// Close implements dns.Host. What has not been taken yet is, if not too many take their
// time. Of UDP the other end does not see it, and has to be told.
func (h host) Close(id uint32) {
	c := h.clients[id]
	switch {
	case c == nil || c.last:
	case c.queue.Len() > 0 && h.lasting < maxLasting:
		c.ended, c.last = true, true
		h.lasting++
		h.watch(c)
	default:
		if h.forget(id, c); !c.tcp {
			h.send((&ipc.Closed{Port: c.port}).Encode())
		}
	}
}

// Pause implements dns.Host.
func (h host) Pause(id uint32, paused bool) {
	if c := h.clients[id]; c != nil {
		c.paused = paused
		h.watch(c)
	}
}

// Dial implements dns.Host.
func (h host) Dial(socket uint32, resolver uint8, tcp bool) {
	d := ipc.Dial{Seq: socket, Resolver: resolver, Proto: ipc.ProtoUDP}
	if tcp {
		d.Proto = ipc.ProtoTCP
	}
	h.asked[socket] = &conn{fd: -1, tcp: tcp}
	if h.dials = append(h.dials, d.Encode()...); len(h.dials) == ipc.MaxBatch*ipc.DialSize {
		h.flushDials()
	}
}

// flushDials sends what was asked of the broker in a turn as one message: sockets are made
// ahead several at a time.
func (l *Loop) flushDials() {
	if len(l.dials) > 0 {
		l.send(l.dials)
		l.dials = nil // it may wait for room
	}
}

// Ask implements dns.Host.
func (h host) Ask(socket uint32, msg []byte) bool {
	c := h.asked[socket]
	if c == nil || c.fd < 0 {
		return false
	}
	n, err := kernel.Write(c.fd, msg)
	return err == nil && n == len(msg)
}

// Drop implements dns.Host.
func (h host) Drop(socket uint32) {
	if c := h.asked[socket]; c != nil {
		delete(h.asked, socket)
		if c.fd >= 0 {
			h.dropped = append(h.dropped, c.fd) // what is to be said of its answer first
		}
	}
}

// closeDropped closes the sockets that the engine has dropped in this turn.
func (l *Loop) closeDropped() {
	for _, fd := range l.dropped {
		l.poll.Close(fd)
	}
	l.dropped = l.dropped[:0]
}

// Named implements dns.Host. What no record can hold is granted to nobody.
func (h host) Named(n *dns.Named) {
	if rec := make([]byte, ipc.NamedSize); named(n, rec) == nil {
		h.send(rec) // it may wait for room
	}
}

// Note implements dns.Host.
func (h host) Note(n *dns.Named) bool {
	err := named(n, h.note[:])
	if err == nil {
		_, err = kernel.Write(h.notes, h.note[:])
	}
	if err == nil {
		h.noted++
	}
	return err == nil
}

// Refused implements dns.Host.
func (h host) Refused(name domain.Name, typ uint16, why dns.Why) {
	r := ipc.Refused{Type: typ, Why: uint8(why)}
	var err error
	if r.Name, err = ipc.MakeName(string(name)); err == nil {
		h.send(r.Encode())
	}
}
