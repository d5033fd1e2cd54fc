// SPDX-License-Identifier: Apache-2.0

package dns

import (
	"encoding/binary"

	"golang.org/x/net/dns/dnsmessage"

	"aldente/names/frame"
)

// resolver is what is known of one.
type resolver struct {
	ready  []*socket // opened ahead, or on their way
	hung   int       // questions in a row without an answer
	last   int64     // until when others are asked first
	plain  int64     // until when it is asked without EDNS, which it does not know
	folded int64     // until when its answers are believed in another case than was asked
}

// hangs notes that it has not answered, so that the others are asked first for a
// while, twice as long each time.
func (r *resolver) hangs(now int64) {
	r.hung++
	r.last = now + min(second<<min(r.hung, 6), maxPenalty)
}

func (r *resolver) answers() { r.hung, r.last = 0, 0 }

// socket is connected to a resolver, or will be.
type socket struct {
	seq      uint32
	resolver uint8
	tcp      bool
	open     bool // Upstream has come
	since    int64
	q        *question     // nil: kept ready
	reader   *frame.Reader // of TCP

	// See reuse.go.
	asked  int   // how many questions, the one under way too
	first  int64 // when the first was
	last   asked // the one that was answered last, until its answer has come once more
	spoilt bool  // it asks no more
}

// attempt is how far asking has come.
type attempt struct {
	deadline int64 // for all of it
	count    int   // how many messages have been sent, or tried
	tries    [MaxResolvers]uint8
	resolver uint8
	socket   *socket
	sent     asked
	edns     bool
	lies     int
	folded   bool // an answer came in another case
}

// begin asks resolvers.
func (e *Engine) begin(q *question, now int64) {
	q.deadline = now + wholeWait
	e.again(q, now)
}

// again asks the resolver that is most likely to answer, if there is time left.
func (e *Engine) again(q *question, now int64) {
	e.release(q)
	if q.count >= maxAttempts || now >= q.deadline {
		e.giveUp(q, now)
		return
	}
	e.try(q, e.choose(q, now), false, now)
}

// giveUp tells the clients, and remembers it for a moment (RFC 9520).
func (e *Engine) giveUp(q *question, now int64) {
	a := &answer{rcode: servFail, expires: now + failureTTL*second}
	e.cache.add(q.key, a, now)
	e.fail(q, now)
}

// choose goes by the configured order, but asks those that hang, or have not helped,
// later.
func (e *Engine) choose(q *question, now int64) uint8 {
	best, least := 0, 1<<10
	for i := range e.resolvers {
		score := int(q.tries[i])
		if e.resolvers[i].last > now {
			score += 2
		}
		if score < least {
			best, least = i, score
		}
	}
	return uint8(best)
}

// try asks one resolver, by a socket of which nobody knows the port.
func (e *Engine) try(q *question, r uint8, tcp bool, now int64) {
	e.release(q)
	q.count++
	q.tries[r]++
	q.resolver, q.lies = r, 0
	wait := udpWait
	if tcp {
		wait = tcpWait
	}
	q.until = min(now+wait, q.deadline)
	e.arm(q.until)
	s := e.take(r, tcp, now)
	s.q, q.socket = q, s
	if s.open {
		e.put(q, now)
	}
}

// take returns a socket: one that is ready, or on its way, or will be.
func (e *Engine) take(r uint8, tcp bool, now int64) *socket {
	if tcp {
		return e.dial(r, true, now)
	}
	e.dropOld(now)
	ready := e.resolvers[r].ready
	for i, s := range ready {
		if s.open || i == len(ready)-1 {
			e.resolvers[r].ready = append(ready[:i], ready[i+1:]...)
			return s
		}
	}
	return e.dial(r, false, now)
}

func (e *Engine) dial(r uint8, tcp bool, now int64) *socket {
	for { // round after four milliards
		e.lastSock++
		if e.sockets[e.lastSock] == nil {
			break
		}
	}
	s := &socket{seq: e.lastSock, resolver: r, tcp: tcp, since: now}
	if tcp {
		s.reader = frame.NewReader(MaxMessage)
	}
	e.sockets[s.seq] = s
	e.host.Dial(s.seq, r, tcp)
	return s
}

// keepReady has sockets made ahead, several at a time, if there are few. That is when a
// question has been sent, so that none waits for it: the broker makes them while the answer
// is on its way, and not when the guest is about to connect. Of those that ask, some may be
// ready again.
func (e *Engine) keepReady(r uint8, ask int, now int64) {
	if len(e.resolvers[r].ready)+ask >= ahead/2 {
		return
	}
	for len(e.resolvers[r].ready)+ask < ahead {
		e.resolvers[r].ready = append(e.resolvers[r].ready, e.dial(r, false, now))
		e.arm(now + readyLife)
	}
}

// dropOld closes sockets that have been ready for so long that the host may have other
// routes and addresses by now.
func (e *Engine) dropOld(now int64) {
	for i := range e.resolvers {
		ready := e.resolvers[i].ready
		e.resolvers[i].ready = ready[:0]
		for _, s := range ready {
			if s.ends() <= now {
				e.drop(s)
				continue
			}
			e.arm(s.ends())
			e.resolvers[i].ready = append(e.resolvers[i].ready, s)
		}
		clear(ready[len(e.resolvers[i].ready):])
	}
}

// release closes the socket of a question: no answer to what was asked by it counts
// any more.
func (e *Engine) release(q *question) {
	if q.socket != nil {
		e.drop(q.socket)
		q.socket = nil
	}
}

// drop closes a socket that is none of those kept ready.
func (e *Engine) drop(s *socket) {
	delete(e.sockets, s.seq)
	e.host.Drop(s.seq)
}

// lose closes a socket, and takes it off those kept ready.
func (e *Engine) lose(s *socket) {
	ready := e.resolvers[s.resolver].ready
	for i := range ready {
		if ready[i] == s {
			e.resolvers[s.resolver].ready = append(ready[:i], ready[i+1:]...)
			break
		}
	}
	e.drop(s)
}

// Upstream tells that a socket is connected, or that it will not be. A connection of TCP
// is established by then.
func (e *Engine) Upstream(seq uint32, failed bool, now int64) {
	s := e.sockets[seq]
	switch {
	case s == nil:
	case failed:
		e.broken(s, now)
	default:
		s.open, s.since = true, now
		if s.q != nil {
			e.put(s.q, now)
		}
	}
}

// UpstreamEnded tells that nothing comes by a socket any more: its connection has
// ended, or an error came.
func (e *Engine) UpstreamEnded(seq uint32, now int64) {
	if s := e.sockets[seq]; s != nil {
		e.broken(s, now)
	}
}

func (e *Engine) broken(s *socket, now int64) {
	q := s.q
	if q == nil {
		e.lose(s)
		return
	}
	if !s.tcp {
		e.resolvers[s.resolver].hangs(now)
	}
	e.again(q, now)
}

// put sends the question: with a number and in upper and lower case that are chance, by
// a port that was when its socket was made. Rules may have changed since it was asked for.
func (e *Engine) put(q *question, now int64) {
	if allowed, why := e.allows(q.name); !allowed {
		e.release(q)
		e.refuse(q, why, now)
		return
	}
	var chance [34]byte
	e.cfg.Random(chance[:])
	q.sent = asked{binary.BigEndian.Uint16(chance[32:]), q.typ, mixed(q.key, chance[:32])}
	q.edns = e.resolvers[q.resolver].plain <= now
	b := dnsmessage.NewBuilder(make([]byte, 0, 320), dnsmessage.Header{ID: q.sent.id, RecursionDesired: true})
	err := b.StartQuestions()
	if err == nil {
		err = b.Question(dnsmessage.Question{Name: q.sent.name, Type: q.typ, Class: dnsmessage.ClassINET})
	}
	if err == nil && q.edns {
		err = option(&b, ednsSize, 0, false, nil)
	}
	msg, errEnd := b.Finish()
	if err != nil || errEnd != nil {
		e.giveUp(q, now) // no name that rules can name
		return
	}
	if q.socket.tcp {
		msg = frame.Append(make([]byte, 0, frame.Prefix+len(msg)), msg)
	}
	e.figures.Asked++
	s := q.socket
	if s.asked++; s.asked == 1 {
		s.first = now
	}
	if !e.host.Ask(s.seq, msg) {
		e.broken(s, now)
		return
	}
	e.keepReady(q.resolver, 1, now)
}

// mixed is a name with each letter in the case that chance says
// (draft-vixie-dnsext-dns0x20): a forger has to guess it.
func mixed(k key, chance []byte) dnsmessage.Name {
	n := wireName(k.name)
	for i := range n.Length {
		if c := n.Data[i]; 'a' <= c && c <= 'z' && chance[i/8]>>(i%8)&1 != 0 {
			n.Data[i] = c - 'a' + 'A'
		}
	}
	return n
}

// Answered takes what a resolver has sent: a datagram, or a piece of the stream, of at
// most frame.MaxRead bytes.
func (e *Engine) Answered(seq uint32, p []byte, now int64) {
	s := e.sockets[seq]
	switch {
	case s == nil:
	case s.q == nil:
		e.unasked(s, p)
	case !s.tcp:
		e.response(s.q, p, now)
	case !s.reader.Add(p):
		e.again(s.q, now)
	default:
		e.stream(s, now)
	}
}

func (e *Engine) stream(s *socket, now int64) {
	q := s.q
	msg, err := s.reader.Next()
	if err != nil {
		e.figures.Lies++
		e.again(q, now)
	} else if msg != nil {
		e.response(q, msg, now)
	}
}

// response goes on by what a message is.
func (e *Engine) response(q *question, msg []byte, now int64) {
	r := &e.resolvers[q.resolver]
	tcp := q.socket.tcp
	p, header, kind := readResponse(&q.sent, msg)
	exact := kind == fits
	if kind == folds && (r.folded > now || tcp || q.folded) {
		// That it writes names its own way has been said on a connection, which
		// nobody forges from afar, or twice on ports that nobody knew.
		r.folded = now + plainLife
		kind = fits
	}
	switch {
	case kind == lie && q.socket.repeated(msg):
		e.figures.Repeated++
		q.socket.spoilt = true
	case kind == lie || tcp && header.Truncated:
		e.lied(q, now)
	case kind == folds:
		q.folded = true
		e.try(q, q.resolver, true, now)
	case header.Truncated:
		r.answers()
		e.try(q, q.resolver, true, now)
	case (header.RCode == formErr || header.RCode == notImp) && q.edns:
		r.plain = now + plainLife
		e.try(q, q.resolver, tcp, now)
	case header.RCode != noError && header.RCode != nxDomain:
		e.again(q, now)
	default:
		a, err := e.readAnswer(q, p, header.RCode, now)
		if err != nil {
			e.lied(q, now)
			return
		}
		r.answers()
		e.rest(q, exact, now)
		e.cache.add(q.key, a, now)
		e.grant(q, a, now)
	}
}

// lied: a datagram that is no answer may be a forger's, and the answer still come. If
// there are many, or on a connection, another way is taken.
func (e *Engine) lied(q *question, now int64) {
	e.figures.Lies++
	q.lies++
	switch {
	case q.socket.tcp:
		e.again(q, now)
	case q.lies >= maxLies && q.count < maxAttempts:
		e.try(q, q.resolver, true, now)
	case q.lies >= maxLies:
		e.again(q, now)
	}
}

// What a message of a resolver's may be.
const (
	lie   = iota // no answer to what was asked
	folds        // an answer, but with the name in another case
	fits
)

// readResponse looks at all of a message that a forger would have to guess. The parser
// stands before the answers.
func readResponse(q *asked, msg []byte) (p dnsmessage.Parser, h dnsmessage.Header, kind int) {
	h, err := p.Start(msg)
	if err != nil || !h.Response || h.ID != q.id || h.OpCode != opQuery {
		return p, h, lie
	}
	failed := h.RCode != noError && h.RCode != nxDomain
	switch count := binary.BigEndian.Uint16(msg[4:]); {
	case count == 0 && failed:
		return p, h, fits // it has not even read the question
	case count != 1:
		return p, h, lie
	}
	question, err := p.Question()
	switch {
	case err != nil || p.SkipAllQuestions() != nil || question.Type != q.typ || question.Class != dnsmessage.ClassINET || !sameName(&question.Name, &q.name):
		return p, h, lie
	case question.Name != q.name:
		return p, h, folds
	}
	return p, h, fits
}
