// SPDX-License-Identifier: Apache-2.0

package dns

import (
	"bytes"
	"math/rand/v2"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"golang.org/x/net/dns/dnsmessage"

	"aldente/ipc"
	"aldente/ipc/domain"
	"aldente/names/frame"
)

// world is what is around an engine: clients, resolvers and the broker.
type world struct {
	t   testing.TB
	e   *Engine
	now int64

	clients map[uint32]*guestSocket
	sockets map[uint32]*resolverSocket
	events  []func() // what the engine has had done, for the others to see
	names   []string // asked of resolvers, in lower case, each once and in order
	asked   int
	told    []Named
	whys    []Why
	dials   int

	resolve func(s *resolverSocket, q dnsmessage.Message) [][]byte // nil: honestly
	refuse  func(s *resolverSocket) bool                           // no socket
	denied  func(netip.Addr) bool                                  // by the broker
	granted []netip.Addr                                           // just now
	silent  bool                                                   // the broker says nothing
	full    bool                                                   // there is no room for notes to the broker
	noted   bool                                                   // it was told last by a note
	around  [MaxAddresses]uint8                                    // what it says of others than it was asked of
	said    []saidAround                                           // so far
	zone    map[string][]dnsmessage.Resource
	soas    map[string]dnsmessage.Resource
}

// guestSocket is a client as the host sees it.
type guestSocket struct {
	tcp            bool
	got            [][]byte // messages
	closed, paused bool
	full           bool // takes nothing
	stream         *frame.Reader
}

// resolverSocket is one to a resolver, as the host sees it.
type resolverSocket struct {
	seq      uint32
	resolver uint8
	tcp      bool
	dropped  bool
	reader   *frame.Reader

	asks  int                // questions so far
	first int64              // when the first was
	last  dnsmessage.Message // the last
	came  [][]byte           // what has come since
	odd   bool               // something has come that was no answer, or more than one
}

// again tells whether a socket may ask once more: one question at a time, for a second, and
// only while nothing has come by it but one answer to each.
func (s *resolverSocket) again(now int64) bool {
	if s.tcp || s.odd || s.asks >= 8 || now > s.first+second || len(s.came) != 1 {
		return false
	}
	// What is behind the question may be anything: its number and its case nobody guesses.
	var p dnsmessage.Parser
	h, err := p.Start(s.came[0])
	if err != nil || !h.Response || h.ID != s.last.ID {
		return false
	}
	q, err := p.AllQuestions()
	return err == nil && slices.Equal(q, s.last.Questions)
}

func newWorld(t testing.TB, cfg Config, rules ...string) *world {
	w := &world{
		t: t, now: 1000 * second, clients: map[uint32]*guestSocket{}, sockets: map[uint32]*resolverSocket{},
		zone: map[string][]dnsmessage.Resource{}, soas: map[string]dnsmessage.Resource{},
	}
	chance := rand.New(rand.NewPCG(1, 2))
	cfg.Random = func(b []byte) {
		for i := range b {
			b[i] = byte(chance.Uint32())
		}
	}
	w.e = New(cfg, w)
	w.e.SetRules(rulesOf(t, rules...))
	w.e.Start(w.now)
	w.run()
	return w
}

// rulesOf reads rules: "name", "!name" denies, "~name" denies some ports, "any" is
// what else there is.
func rulesOf(t testing.TB, rules ...string) *domain.Rules {
	r := &domain.Rules{}
	for i, s := range rules {
		if s == "any" {
			r.Default = true
			continue
		}
		p, err := domain.ParsePattern(strings.TrimLeft(s, "!~"))
		if err != nil {
			t.Fatal(err)
		}
		r.List = append(r.List, domain.Rule{Index: i, Pattern: p, Allow: s[0] != '!' && s[0] != '~', Narrow: s[0] == '~'})
	}
	return r
}

// What the engine has done by others.

func (w *world) Send(id uint32, msg []byte) bool {
	c := w.clients[id]
	if c == nil || c.closed {
		w.t.Fatalf("sent to client %d, which is not there", id)
	}
	if c.full {
		return false
	}
	w.check(msg, c.tcp)
	if !c.tcp {
		c.got = append(c.got, msg)
		return true
	}
	for at := 0; at < len(msg); at += frame.MaxRead {
		c.stream.Add(msg[at:min(len(msg), at+frame.MaxRead)])
	}
	for {
		m, err := c.stream.Next()
		if err != nil {
			w.t.Fatal("what was sent is no stream of messages:", err)
		}
		if m == nil {
			return true
		}
		c.got = append(c.got, bytes.Clone(m))
	}
}

// saidAround is what the broker has said of an address and others.
type saidAround struct {
	fitting string
	addr    [16]byte
	bits    uint8
	rules   int // how often all was forgotten by then
}

// holds tells whether an address is among those of which the broker has said enough, for the
// name that it was told of last.
func (w *world) holds(a netip.Addr) bool {
	if len(w.told) == 0 || !w.noted {
		return false
	}
	n := &w.told[len(w.told)-1]
	return slices.Contains(n.Addrs, a) && slices.ContainsFunc(w.said, func(s saidAround) bool {
		return s.rules == w.e.around.rules && s.fitting == w.e.rules.Fitting(n.Name, n.Aliases...) && ipc.Around(s.addr, s.bits, a.As16())
	})
}

// check: no message to a client holds an address that has not been granted for it, at the
// moment at which it is sent, or is around one that was, of which the broker has been told.
func (w *world) check(msg []byte, tcp bool) {
	if tcp {
		msg = msg[frame.Prefix:]
	}
	m := w.unpack(msg)
	for _, a := range addrs(&m) {
		if !slices.Contains(w.granted, a) && !w.holds(a) {
			w.t.Fatalf("%v, which nobody has granted: %v", a, m.GoString())
		}
	}
}

func (w *world) Close(id uint32) {
	if c := w.clients[id]; c == nil || c.closed {
		w.t.Fatalf("client %d closed, which is not there", id)
	}
	w.clients[id].closed = true
}

func (w *world) Pause(id uint32, paused bool) {
	c := w.clients[id]
	if c == nil || c.closed || !c.tcp || c.paused == paused {
		w.t.Fatalf("client %d paused: %v", id, paused)
	}
	c.paused = paused
}

func (w *world) Dial(seq uint32, resolver uint8, tcp bool) {
	if w.sockets[seq] != nil {
		w.t.Fatalf("socket %d twice", seq)
	}
	s := &resolverSocket{seq: seq, resolver: resolver, tcp: tcp, reader: frame.NewReader(MaxMessage)}
	w.sockets[seq] = s
	w.dials++
	w.events = append(w.events, func() {
		if !s.dropped {
			w.e.Upstream(seq, w.refuse != nil && w.refuse(s), w.now)
		}
	})
}

func (w *world) Ask(seq uint32, msg []byte) bool {
	s := w.sockets[seq]
	if s == nil || s.dropped || s.asks > 0 && !s.again(w.now) {
		w.t.Fatalf("socket %d asks again, or was dropped: %+v", seq, s)
	}
	if s.asks++; s.asks == 1 {
		s.first = w.now
	}
	w.asked++
	if s.tcp {
		s.reader.Add(msg)
		msg, _ = s.reader.Next()
	}
	var q dnsmessage.Message
	if err := q.Unpack(msg); err != nil || len(q.Questions) != 1 {
		w.t.Fatalf("asked % x: %v", msg, err)
	}
	if name := strings.ToLower(q.Questions[0].Name.String()); !slices.Contains(w.names, name) {
		w.names = append(w.names, name)
	}
	s.last, s.came = q, nil
	w.events = append(w.events, func() {
		answers := [][]byte{}
		if w.resolve != nil {
			answers = w.resolve(s, q)
		} else {
			answers = append(answers, w.honest(q))
		}
		for _, a := range answers {
			w.arrive(s, a)
		}
	})
	return true
}

// arrive has a message of a resolver's come.
func (w *world) arrive(s *resolverSocket, msg []byte) {
	if !s.tcp {
		if !s.dropped {
			s.came = append(s.came, msg)
			s.odd = s.odd || len(s.came) > 1
			w.e.Answered(s.seq, msg, w.now)
		}
		return
	}
	for msg = frame.Append(nil, msg); len(msg) > 0 && !s.dropped; {
		n := min(len(msg), frame.MaxRead)
		w.e.Answered(s.seq, msg[:n], w.now)
		msg = msg[n:]
	}
}

func (w *world) Drop(seq uint32) {
	s := w.sockets[seq]
	if s == nil || s.dropped {
		w.t.Fatalf("socket %d dropped, which is not there", seq)
	}
	s.dropped = true
	delete(w.sockets, seq)
}

func (w *world) Named(n *Named) { w.name(n, false) }

func (w *world) Note(n *Named) bool {
	if w.full {
		return false
	}
	w.name(n, true)
	return true
}

// name takes what the broker is told of a name.
func (w *world) name(n *Named, noted bool) {
	c := *n
	c.Aliases, c.Addrs = slices.Clone(n.Aliases), slices.Clone(n.Addrs)
	if len(c.Addrs) == 0 || len(c.Addrs) > MaxAddresses || len(c.Aliases) > MaxAliases || c.TTL == 0 {
		w.t.Fatalf("named %v", c)
	}
	w.told, w.noted = append(w.told, c), noted
	if w.silent {
		return
	}
	rules := w.e.around.rules // what is said of those before does not count later
	w.events = append(w.events, func() {
		var mask uint64
		for i, a := range c.Addrs {
			if w.denied == nil || !w.denied(a) {
				mask |= 1 << i
			}
		}
		around := w.around
		for i := range around {
			if mask>>i&1 == 0 {
				around[i] = 0
			}
		}
		if w.e.named[c.Seq] != nil {
			fitting := w.e.rules.Fitting(c.Name, c.Aliases...)
			for i, a := range c.Addrs {
				if around[i] > 0 {
					w.said = append(w.said, saidAround{fitting, a.As16(), around[i], rules})
				}
			}
		}
		w.granted = maskOf(&c, mask)
		w.e.Granted(c.Seq, mask, around, w.now)
		w.granted = nil
	})
}

func maskOf(n *Named, mask uint64) (granted []netip.Addr) {
	for i, a := range n.Addrs {
		if mask>>i&1 != 0 {
			granted = append(granted, a)
		}
	}
	return granted
}

func (w *world) Refused(_ domain.Name, _ uint16, why Why) { w.whys = append(w.whys, why) }

// run lets all happen that happens at once.
func (w *world) run() {
	for n := 0; len(w.events) > 0; n++ {
		if n > 100_000 {
			w.t.Fatal("no end")
		}
		f := w.events[0]
		w.events = w.events[1:]
		f()
	}
}

// pass has time go by, with all that is due.
func (w *world) pass(d int64) {
	for end := w.now + d; ; {
		due := w.e.Deadline()
		if due > end {
			w.now = end
			return
		}
		w.now = max(w.now, due)
		w.e.Tick(w.now)
		w.run()
		if w.e.Deadline() <= w.now {
			w.t.Fatal("due again at once")
		}
	}
}

// client takes on a client.
func (w *world) client(id uint32, tcp bool) *guestSocket {
	c := &guestSocket{tcp: tcp, stream: frame.NewReader(65535)}
	w.clients[id] = c
	w.e.Client(id, tcp, w.now)
	return c
}

// send has a client send a message.
func (w *world) send(id uint32, msg []byte) {
	if w.clients[id].tcp {
		msg = frame.Append(nil, msg)
	}
	w.e.Received(id, msg, w.now)
}

// ask has a new client ask over UDP, and returns the answer.
func (w *world) ask(name string, typ dnsmessage.Type) dnsmessage.Message {
	w.t.Helper()
	return w.unpack(w.exchange(message(name, typ), false))
}

// exchange has a new client send a message, and returns the answer.
func (w *world) exchange(msg []byte, tcp bool) []byte {
	w.t.Helper()
	id := uint32(len(w.clients) + 1)
	c := w.client(id, tcp)
	w.send(id, msg)
	w.run()
	for range 100 {
		if len(c.got) > 0 || c.closed || w.e.Deadline() > w.now+20*second {
			break
		}
		w.pass(max(w.e.Deadline()-w.now, 0))
	}
	if len(c.got) != 1 {
		w.t.Fatalf("%d answers", len(c.got))
	}
	if !c.closed {
		w.e.Ended(id, w.now)
	}
	return c.got[0]
}

func (w *world) unpack(msg []byte) dnsmessage.Message {
	w.t.Helper()
	var m dnsmessage.Message
	if err := m.Unpack(msg); err != nil {
		w.t.Fatalf("% x: %v", msg, err)
	}
	return m
}

// add puts records into the zone: name, TTL and body.
func (w *world) add(name string, ttl uint32, body dnsmessage.ResourceBody) {
	key := strings.ToLower(name)
	w.zone[key] = append(w.zone[key], resource(name, ttl, body))
}

// honest answers out of the zone.
func (w *world) honest(q dnsmessage.Message) []byte {
	b, err := w.reply(q).Pack()
	if err != nil {
		w.t.Fatal(err)
	}
	return b
}

func (w *world) reply(q dnsmessage.Message) *dnsmessage.Message {
	m := &dnsmessage.Message{Header: q.Header, Questions: slices.Clone(q.Questions)}
	m.Response, m.RecursionAvailable = true, true
	name := strings.ToLower(q.Questions[0].Name.String())
	for range 20 {
		records, ok := w.zone[name]
		if !ok {
			m.RCode = dnsmessage.RCodeNameError
		}
		next := ""
		for _, r := range records {
			c, alias := r.Body.(*dnsmessage.CNAMEResource)
			if alias || typeOf(r) == q.Questions[0].Type {
				m.Answers = append(m.Answers, r)
			}
			if alias {
				next = strings.ToLower(c.CNAME.String())
			}
		}
		if next == "" {
			break
		}
		name = next
	}
	if len(m.Answers) == 0 || m.RCode != 0 {
		for at, soa := range w.soas {
			if strings.HasSuffix(name, at) {
				m.Authorities = append(m.Authorities, soa)
			}
		}
	}
	return m
}

// expect compares an answer's code and addresses.
func (w *world) expect(m dnsmessage.Message, rcode dnsmessage.RCode, want string) {
	w.t.Helper()
	if m.RCode != rcode || texts(&m) != want {
		w.t.Fatalf("answer %v with %q, want %v with %q", m.RCode, texts(&m), rcode, want)
	}
}
