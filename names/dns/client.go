// SPDX-License-Identifier: Apache-2.0

package dns

import (
	"container/list"

	"golang.org/x/net/dns/dnsmessage"

	"aldente/names/frame"
)

// client is a socket of UDP on which one flow of the guest's comes, or a connection
// of TCP.
type client struct {
	id       uint32
	tcp      bool
	gone     bool
	finished bool // nothing more comes
	paused   bool
	reading  bool  // messages are being taken out of its stream
	waiting  int   // questions without an answer yet
	heard    int64 // when the last whole message came, or an answer went
	place    *list.Element
	reader   *frame.Reader // of TCP
}

func (e *Engine) order(c *client) *list.List {
	if c.tcp {
		return &e.tcp
	}
	return &e.udp
}

// Client takes a client on. If there are as many as there may be, the one that has been
// silent for longest and waits for nothing goes; if all wait, the new one does.
func (e *Engine) Client(id uint32, tcp bool, now int64) {
	if old := e.clients[id]; old != nil {
		e.forget(old) // the number is another's by now
	}
	c := &client{id: id, tcp: tcp, heard: now}
	order, most, idle := &e.udp, e.cfg.Clients, udpIdle
	if tcp {
		order, most, idle = &e.tcp, MaxTCP, tcpIdle
		c.reader = frame.NewReader(MaxQuestion)
	}
	if order.Len() >= most && !e.makeRoom(order) {
		e.figures.Overload++
		e.host.Close(id)
		return
	}
	c.place = order.PushFront(c)
	e.clients[id] = c
	e.arm(now + idle)
}

func (e *Engine) makeRoom(order *list.List) bool {
	for at := order.Back(); at != nil; at = at.Prev() {
		if c := at.Value.(*client); c.waiting == 0 {
			e.figures.Evicted++
			e.close(c)
			return true
		}
	}
	return false
}

// Ended tells that a client has gone. Its socket is the host's to close.
func (e *Engine) Ended(id uint32, _ int64) {
	if c := e.clients[id]; c != nil {
		e.forget(c)
	}
}

// Finished tells that nothing more comes from a client of TCP, which still reads. It
// is closed when it has its answers.
func (e *Engine) Finished(id uint32, now int64) {
	if c := e.clients[id]; c != nil {
		c.finished = true
		e.leave(c)
	}
}

// leave closes a client that has said all and has all its answers.
func (e *Engine) leave(c *client) {
	if c.finished && !c.gone && !c.paused && c.waiting == 0 {
		e.close(c)
	}
}

// forget leaves the client's questions under way: their answers are kept.
func (e *Engine) forget(c *client) {
	c.gone = true
	e.order(c).Remove(c.place)
	delete(e.clients, c.id)
}

func (e *Engine) close(c *client) {
	e.forget(c)
	e.host.Close(c.id)
}

// idle closes clients that have been silent for too long, and arms for the next.
func (e *Engine) idle(order *list.List, now, life int64) {
	for at := order.Back(); at != nil; {
		c := at.Value.(*client)
		at = at.Prev()
		switch {
		case c.waiting > 0: // until its questions are over
		case c.heard+life > now:
			e.arm(c.heard + life)
			return
		default:
			e.close(c)
		}
	}
}

// Received takes what a client has sent: a datagram, or a piece of its stream, of at
// most frame.MaxRead bytes.
func (e *Engine) Received(id uint32, p []byte, now int64) {
	c := e.clients[id]
	switch {
	case c == nil:
	case !c.tcp:
		e.message(c, p, now)
	case !c.reader.Add(p):
		e.close(c)
	default:
		e.read(c, now)
	}
}

// read takes messages out of a client's stream until it has as many questions under
// way as it may have.
func (e *Engine) read(c *client, now int64) {
	c.reading = true
	defer func() { c.reading = false }()
	for !c.gone && c.waiting < MaxPerClient {
		msg, err := c.reader.Next()
		if err != nil {
			e.figures.Malformed++
			e.close(c)
			return
		}
		if msg == nil {
			e.pause(c, false)
			e.leave(c)
			return
		}
		e.message(c, msg, now)
	}
	e.pause(c, true)
}

func (e *Engine) pause(c *client, paused bool) {
	if !c.gone && c.paused != paused {
		c.paused = paused
		e.host.Pause(c.id, paused)
	}
}

// active puts a client in front of those that are silent.
func (e *Engine) active(c *client, now int64) {
	if !c.gone {
		c.heard = now
		e.order(c).MoveToFront(c.place)
	}
}

// message answers a client's message, or has its question wait.
func (e *Engine) message(c *client, msg []byte, now int64) {
	if len(msg) > MaxQuestion {
		e.figures.Malformed++
		return
	}
	q, ok := readQuery(msg, c.tcp)
	if !ok || q.problem == formErr {
		e.figures.Malformed++
	}
	if !ok {
		return
	}
	e.active(c, now)
	e.figures.Questions++
	if q.problem != noError {
		if q.problem == notImp {
			e.report(q.domain, q.typ, ByType, now)
		}
		e.send(c, q.failure(q.problem))
		return
	}
	w := waiter{c, q}
	if !e.judge(&q, now) {
		e.send(c, q.refusal(e.refusalCode(q.domain)))
		return
	}
	e.answer(w, now)
}

// answer answers what the rules allow: at once, or once others have spoken.
func (e *Engine) answer(w waiter, now int64) {
	if w.q.typ == dnsmessage.TypeALL {
		e.send(w.c, w.q.minimal())
		return
	}
	if w.q.typ == dnsmessage.TypePTR {
		if name, ttl, ok := e.given.find(w.q.domain, now); ok {
			e.send(w.c, w.q.pointer(name, ttl))
			return
		}
	}
	e.ask(w, now)
}

// send sends a message to a client; one that takes none is closed.
func (e *Engine) send(c *client, msg []byte) {
	if c.gone || msg == nil {
		return
	}
	if c.tcp {
		msg = frame.Append(make([]byte, 0, frame.Prefix+len(msg)), msg)
	}
	if !e.host.Send(c.id, msg) {
		e.close(c)
	}
}
