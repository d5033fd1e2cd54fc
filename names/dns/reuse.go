// SPDX-License-Identifier: Apache-2.0

package dns

import "golang.org/x/net/dns/dnsmessage"

// A socket that has had its answer may ask again: to make one takes the broker longer than to
// begin the connection that the guest asks for. One question at a time goes by it, as before,
// and each has a number and a case of its own; what a socket that is used again gives away is
// that its port stays what it was. So it is used again only where that helps nobody to find
// the port: what reaches it and is not the one answer that was waited for ends its use, be it
// a guess or a probe, and it asks for no longer than one question may wait for its answer.

// asked is what a question was sent with, all of which its answer has to repeat.
type asked struct {
	id   uint16
	typ  dnsmessage.Type
	name dnsmessage.Name // in the case in which it was sent
}

// rest has the socket of a question that has been answered wait for another, or closes it:
// if anything else has come by it, if the question was asked before by another, if it has
// asked for often or long enough, or if there are others enough.
func (e *Engine) rest(q *question, exact bool, now int64) {
	s := q.socket
	r := &e.resolvers[s.resolver]
	if s.tcp || s.spoilt || !exact || q.lies > 0 || q.count > 1 || s.asked >= maxAsked || now >= s.ends() || len(r.ready) >= ahead {
		e.release(q)
		return
	}
	s.q, s.last, q.socket = nil, q.sent, nil
	// In front of those that have not asked: their time begins when they do.
	r.ready = append(r.ready, nil)
	copy(r.ready[1:], r.ready)
	r.ready[0] = s
	e.arm(s.ends())
}

// ends is when a socket that is kept ready has to be closed.
func (s *socket) ends() int64 {
	if s.asked > 0 {
		return s.first + reuseLife
	}
	return s.since + readyLife
}

// repeated tells whether a message is the answer that the socket's last question has had,
// once more: the network has doubled it. That is so once at most.
func (s *socket) repeated(msg []byte) bool {
	if s.last.name.Length == 0 {
		return false
	}
	if _, _, kind := readResponse(&s.last, msg); kind != fits {
		return false
	}
	s.last = asked{}
	return true
}

// unasked takes what comes by a socket that waits for nothing.
func (e *Engine) unasked(s *socket, msg []byte) {
	if s.repeated(msg) {
		e.figures.Repeated++
	} else {
		e.figures.Lies++ // somebody guesses
	}
	e.lose(s)
}

// spoil has no socket of before ask more than once: the host's network has changed.
func (e *Engine) spoil() {
	for _, s := range e.sockets {
		if s.q == nil && s.asked > 0 {
			e.lose(s)
		} else {
			s.spoilt = true
		}
	}
}
