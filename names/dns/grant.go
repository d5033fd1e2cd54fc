// SPDX-License-Identifier: Apache-2.0

package dns

import (
	"net/netip"

	"golang.org/x/net/dns/dnsmessage"

	"aldente/ipc/domain"
)

// key is what makes two questions the same: what else a client says is not passed on.
type key struct {
	name domain.Name
	typ  dnsmessage.Type
}

// waiter is a client's question that waits for an answer.
type waiter struct {
	c *client
	q query
}

// question is under way: a resolver's answer, or the broker's, is waited for.
type question struct {
	key
	waiters []waiter
	until   int64 // when what is waited for is late
	attempt       // upstream.go

	answer *answer // once there is one: the broker's word is waited for
	seq    uint32  // of its Named
	rules  int     // around.rules then
}

// ask has a client's question wait for its answer. The same question is asked once.
func (e *Engine) ask(w waiter, now int64) {
	k := key{w.q.domain, w.q.typ}
	q := e.questions[k]
	if w.c.waiting >= MaxPerClient || e.waiting >= MaxWaiting || q == nil && len(e.questions) >= MaxUnderWay {
		// A datagram may be lost, and is asked again; of a stream nothing is.
		e.figures.Overload++
		if w.c.tcp {
			e.send(w.c, w.q.failure(servFail))
		}
		return
	}
	w.c.waiting++
	e.waiting++
	if q != nil {
		e.figures.Merged++
		q.waiters = append(q.waiters, w)
		return
	}
	q = &question{key: k, waiters: []waiter{w}}
	e.questions[k] = q
	if a := e.cache.find(k, now); a != nil {
		e.figures.Cached++
		e.grant(q, a, now)
		return
	}
	e.begin(q, now)
}

// grant tells the broker what an answer holds and waits for its word, unless that is known
// (around.go). The answer of which nobody needs to be asked goes out at once.
func (e *Engine) grant(q *question, a *answer, now int64) {
	q.answer = a
	if len(a.addrs) == 0 {
		e.finish(q, nil, now)
		return
	}
	e.seq++
	q.seq, q.rules = e.seq, e.around.rules
	q.until = now + grantWait
	e.arm(q.until)
	n := Named{Seq: q.seq, TTL: a.left(now), Type: uint16(q.typ), Name: q.name, Aliases: a.aliases, Addrs: a.addrs}
	if e.mayTell(e.rules.Fitting(q.name, a.aliases...), a.addrs) && e.host.Note(&n) {
		e.around.told[q.seq] = told{q.until, 1<<len(a.addrs) - 1}
		e.finish(q, a.addrs, now)
		return
	}
	e.named[q.seq] = q
	e.host.Named(&n)
}

// Granted tells which addresses of a Named may be told on: bit i is for the i-th; and of
// those how far that holds for others, as ipc.Granted has it.
func (e *Engine) Granted(seq uint32, mask uint64, around [MaxAddresses]uint8, now int64) {
	q := e.named[seq]
	if q == nil {
		e.confirmed(seq, mask)
		return // it is out, or too late: the client has been told that it failed
	}
	delete(e.named, seq)
	if q.rules == e.around.rules {
		fitting := e.rules.Fitting(q.name, q.answer.aliases...)
		for i, a := range q.answer.addrs {
			e.around.add(place{fitting, a.As16(), around[i]})
		}
	}
	addrs := make([]netip.Addr, 0, len(q.answer.addrs))
	for i, a := range q.answer.addrs {
		if mask>>i&1 != 0 {
			addrs = append(addrs, a)
		}
	}
	e.figures.Cut += uint64(len(q.answer.addrs) - len(addrs))
	e.finish(q, addrs, now)
}

// finish answers all who wait, with the addresses that were granted and no others.
// Rules may have changed meanwhile.
func (e *Engine) finish(q *question, granted []netip.Addr, now int64) {
	a := q.answer
	if allowed, why := e.allows(q.name, a.aliases...); !allowed {
		e.refuse(q, why, now)
		return
	}
	if len(a.addrs) > 0 && len(granted) == 0 {
		e.report(q.name, q.typ, ByAddress, now)
	}
	if q.typ == dnsmessage.TypeA || q.typ == dnsmessage.TypeAAAA {
		until := now + int64(a.left(now)+givenMore)*second
		for _, addr := range granted {
			e.given.add(addr, q.name, until)
		}
	}
	e.end(q, now, func(w *waiter) []byte { return w.q.answer(a, granted, a.left(now)) })
}

// refuse tells all who wait that the rules refuse what they have asked for.
func (e *Engine) refuse(q *question, why Why, now int64) {
	e.figures.Refused++
	e.report(q.name, q.typ, why, now)
	code := e.refusalCode(q.name)
	e.end(q, now, func(w *waiter) []byte { return w.q.refusal(code) })
}

// fail tells all who wait that there is no answer.
func (e *Engine) fail(q *question, now int64) {
	e.figures.Failed++
	e.end(q, now, func(w *waiter) []byte { return w.q.failure(servFail) })
}

// end takes a question off. Clients that may ask more now are read on.
func (e *Engine) end(q *question, now int64, reply func(*waiter) []byte) {
	delete(e.questions, q.key)
	e.waiting -= len(q.waiters)
	for i := range q.waiters {
		w := &q.waiters[i]
		w.c.waiting--
		if !w.c.gone {
			e.active(w.c, now)
			e.send(w.c, reply(w))
			e.arm(now + tcpIdle)
		}
	}
	for i := range q.waiters {
		if c := q.waiters[i].c; c.paused && !c.reading {
			e.read(c, now)
		} else {
			e.leave(c)
		}
	}
}
