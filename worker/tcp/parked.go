// SPDX-License-Identifier: Apache-2.0

package tcp

import (
	"aldente/ipc"
	"aldente/worker/flow"
	"aldente/worker/packet"
)

// Ways of a connection that came by a listener.
const (
	byLink = iota
	pastLink
	ways
)

// mostParked is how many connections may wait for room on one way that were taken
// from listeners of both.
const mostParked = 1024

// parked is a connection that was accepted and finds no room on its way.
type parked struct {
	l    listener // as it was
	fd   int32
	peer packet.Addr
	port uint16
}

// lot holds those of one way, in the order in which they came. Which way a
// connection goes is known once it is accepted, so those of a way that is full would
// keep others waiting behind them.
type lot struct {
	ring     []parked
	first, n int
}

func (q *lot) put(p *parked) {
	q.ring[(q.first+q.n)%len(q.ring)] = *p
	q.n++
}

func (q *lot) get() parked {
	p := q.ring[q.first]
	q.first = (q.first + 1) % len(q.ring)
	q.n--
	return p
}

// room tells whether one more connection that came by l may go this way.
func (t *Translator) room(l *listener, way int) bool {
	if way == pastLink {
		return t.BypassRoom == nil || t.BypassRoom(l.flags)
	}
	return t.hasRoom(flow.ShareIn)
}

// mayAccept tells whether a connection that waits on l may be taken: there has to be
// room on the way that it is going to go, or on one of them.
func (t *Translator) mayAccept(l *listener) bool {
	if !t.g.Accept.Ready(t.env.Now()) {
		return false
	}
	switch {
	case l.flags == 0:
		return t.room(l, byLink)
	case l.flags&ipc.ListenerNamespace != 0:
		return t.room(l, pastLink)
	}
	return t.g.Shares.May(flow.ShareIn, 1) && (t.room(l, byLink) || t.room(l, pastLink))
}

// place has a connection go its way, after those that wait for the same. One out of
// the namespace shares nothing with them and goes before. One that finds no room
// waits, with as many others as may, or is reset.
func (t *Translator) place(p *parked) {
	way := byLink
	if flow.TakesBypass(p.l.flags, &p.peer) {
		way = pastLink
	}
	q := &t.lots[way]
	switch {
	case (q.n == 0 || p.l.flags&ipc.ListenerNamespace != 0) && t.room(&p.l, way):
		t.goes(p, way)
	case q.n == mostParked:
		t.Stats.NoMemory++
		t.resetSocket(p.fd)
	default:
		q.put(p)
		t.starved = true
		t.g.Shares.Take(flow.ShareIn, 1)
	}
}

func (t *Translator) goes(p *parked, way int) {
	if way == pastLink {
		t.Bypass(p.l.id, p.l.flags, p.fd, p.peer, p.port)
	} else {
		t.openIn(&p.l, p.fd, p.peer, p.port)
	}
}

// unpark has those go that there is room for again.
func (t *Translator) unpark() {
	for way := range t.lots {
		q := &t.lots[way]
		for q.n > 0 {
			// Its own descriptor counts already.
			if !t.g.Shares.Lend(flow.ShareIn, func() bool { return t.room(&q.ring[q.first].l, way) }) {
				t.starved = true
				break
			}
			t.g.Shares.Take(flow.ShareIn, -1)
			p := q.get()
			t.goes(&p, way)
		}
	}
}
