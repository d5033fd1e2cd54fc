// SPDX-License-Identifier: Apache-2.0

package dns

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"golang.org/x/net/dns/dnsmessage"

	"aldente/fuzz"
	"aldente/ipc/domain"
)

// model is a whole engine between a guest, resolvers and a broker that do what a script
// says, in any order.
type model struct {
	*world
	src    fuzz.Source
	open   []uint32            // clients
	owed   map[uint32][]uint16 // numbers of questions without an answer, by client
	wild   map[uint32]bool     // who has sent bytes of any kind over TCP: nobody can tell what they ask
	rules  *domain.Rules
	number uint16
}

// What there is to ask for.
var (
	modelNames = []string{"a.test.", "A.Test.", "alias.test.", "x.b.test.", "bad.test.", "deep.x.b.test.", "n.other.", ".", "1.2.0.192.in-addr.arpa.", "loop.test."}
	modelTypes = []dnsmessage.Type{tA, tAAAA, tHTTPS, tTXT, dnsmessage.TypeMX, tPTR, dnsmessage.TypeALL, typeWKS}
	modelRules = [][]string{{"a.test", "*.test"}, {"!bad.test", "any"}, {"a.test"}, {}, {"!*.b.test", "*.test", "!a.test"}}
)

// FuzzDNSEngine: whatever happens, and in whatever order, no client is told an address that
// was not granted for this answer (world.check), none has an answer that it has not asked
// for or two, nothing is asked for that the rules of the moment refuse, no bound is
// exceeded, and when all is over nothing is left.
func FuzzDNSEngine(f *testing.F) {
	const client, tcpClient, asks, event = 0, 1, 2, 5
	// A client that asks, with all that follows; the same by TCP; two that ask the same.
	plain := []byte{client, asks, 0, 0, 0, event, 0, event, 0, event, 0, 0, 0, event, 0, event, 0, event, 0, 0xff, 0xff}
	fuzz.Add(f, plain)
	for name := range modelNames {
		for typ := range modelTypes {
			for how := range 12 {
				script := []byte{client, tcpClient}
				for c := range 2 {
					script = append(script, asks, byte(c), byte(name), byte(typ))
				}
				for range 12 {
					script = append(script, event, 0, byte(how), byte(how*37), 0x7f)
				}
				script = append(script, 7, byte(how), asks, 1, byte(name), byte(typ), 8, byte(how%5), event, 0, byte(how), 3, 0xff, 6, 1, 9, 1, 4, 0)
				fuzz.Add(f, script)
			}
		}
	}
	// More than there is room for; then silence.
	var many []byte
	for i := range 70 {
		many = append(many, tcpClient, asks, byte(i), byte(i), byte(i/7))
	}
	fuzz.Add(f, append(many, 7, 255, 7, 255, 10, 3, 11, 4, 12))
	fuzz.Add(f, append(slices.Repeat([]byte{tcpClient}, MaxTCP+3), 10, 0, asks, 0, 4, 0, asks, 1, 4, 0))
	// One that asks for more than may be under way, and takes none of it.
	piped := []byte{tcpClient}
	for i := range MaxPerClient + 5 {
		piped = append(piped, asks, 0, 3, byte(i%6))
	}
	fuzz.Add(f, append(piped, 14, 14, 14))
	fuzz.Add(f, append(piped, 10, 0, 14, 14, 14))
	for i := range MaxPerClient + 5 {
		piped[0] = client
		piped[4*i+4] = 0
	}
	fuzz.Add(f, append(piped, 14))
	// Rules that change while sockets are on their way.
	late := []byte{client}
	for i := range 5 {
		late = append(late, asks, 0, 0, byte(i))
	}
	fuzz.Add(f, append(late, 8, 3, 14))
	// Answers that need not wait for the broker, until it says another thing, or what is to
	// be forgotten comes between. Zeros are answers and words as they should be.
	calm := make([]byte, 120)
	all := append([]byte{18}, calm...)
	question := func(script []byte, name byte) []byte { return append(script, asks, 0, name, 0) }
	for _, bits := range []byte{1, 97, 120, 128} {
		for _, then := range [][]byte{nil, {16}, {17}, {8, 0}, {8, 4}, {7, 100}} {
			for events := range 4 {
				script := question([]byte{client, 15, bits}, 0)
				for range events {
					script = append(append(script, event, 0), calm...)
				}
				script = append(append(script, then...), all...)
				for _, name := range []byte{3, 0, 5, 3} {
					script = append(question(append(append(script, 7, 255), calm...), name), all...)
				}
				fuzz.Add(f, script)
			}
		}
	}
	// One question behind the other, by sockets that ask again, and now and then what ends that.
	for how := range 12 {
		var turns []byte
		for i := range 2 * len(modelNames) {
			turns = append(turns, asks, 0, byte(i), byte(i/3), 18)
			turns = append(turns, make([]byte, 6)...)
			if i%5 == 4 {
				turns = append(append(turns, asks, 0, byte(i), byte(i/2+3), event, 0, byte(how)), calm...)
			}
		}
		fuzz.Add(f, append([]byte{client}, turns...))
	}
	// Answers that have grown old, and a broker that says nothing.
	fuzz.Add(f, []byte{client, asks, 0, 0, 0, 14, 7, 255, 7, 255, 7, 255, 7, 255, 7, 255, 7, 255, 7, 255, 7, 255, asks, 0, 0, 0, 14, event, 0, event, 0, event, 0, 6, 0, 7, 255})
	fuzz.Add(f, []byte{tcpClient, 3, 0, 4, 0xff, 0xff, 0, 0, tcpClient, 3, 1, 3, 0, 12, 1, 13, 2, 9, 0, client, 9, 0, 14, 1, 14, 0})
	f.Fuzz(func(t *testing.T, script []byte) {
		if len(script) > 4096 {
			return
		}
		m := newModel(t, script)
		for len(m.src.B) > 0 {
			m.step()
			m.invariants()
		}
		m.denied = nil
		m.run()
		m.pass(3600 * second)
		m.run()
		m.pass(3600 * second)
		m.collect()
		if q, c, _, _ := m.e.Held(); q+c+len(m.sockets)+len(m.e.named)+len(m.e.around.told)+m.e.waiting > 0 {
			t.Fatalf("%d questions, %d clients, %d sockets left", q, c, len(m.sockets))
		}
	})
}

func newModel(t testing.TB, script []byte) *model {
	m := &model{src: fuzz.Source{B: script}, owed: map[uint32][]uint16{}, wild: map[uint32]bool{}, rules: rulesOf(t, modelRules[0]...)}
	m.world = newWorld(t, Config{Resolvers: 2, PlainHellos: true}, modelRules[0]...)
	fillZone(m.world)
	m.add("alias.test.", 60, cname("x.b.test."))
	m.add("loop.test.", 60, cname("loop.test."))
	m.resolve = m.hostile
	m.refuse = func(*resolverSocket) bool { return m.src.Byte()%8 == 7 }
	m.denied = func(netip.Addr) bool { return m.src.Byte()&1 != 0 }
	return m
}

// step does one thing.
func (m *model) step() {
	switch m.src.Byte() {
	case 0:
		m.join(false)
	case 1:
		m.join(true)
	case 2:
		m.ask()
	case 3: // bytes of any kind
		if id, c := m.pick(); c != nil && !c.paused {
			b := m.src.Block()
			if !c.tcp && len(b) >= 2 {
				m.owed[id] = append(m.owed[id], uint16(b[0])<<8|uint16(b[1]))
			}
			m.wild[id] = c.tcp
			m.e.Received(id, b, m.now)
		}
	case 4:
		if id, c := m.pick(); c != nil && c.tcp {
			m.e.Finished(id, m.now)
		}
	case 5: // one of the things that are about to happen
		if i := int(m.src.Byte()); len(m.events) > 0 {
			i %= len(m.events)
			f := m.events[i]
			m.events = slices.Delete(m.events, i, i+1)
			f()
		}
	case 6: // it never happens
		if i := int(m.src.Byte()); len(m.events) > 0 {
			i %= len(m.events)
			m.events = slices.Delete(m.events, i, i+1)
		}
	case 7:
		m.pass(int64(m.src.Byte()) * 37 * ms)
	case 8:
		set := modelRules[int(m.src.Byte())%len(modelRules)]
		m.rules = rulesOf(m.t, set...)
		m.e.SetRules(m.rules)
	case 9:
		if id, c := m.pick(); c != nil {
			m.e.Ended(id, m.now)
			c.closed = true
		}
	case 10:
		if _, c := m.pick(); c != nil {
			c.full = !c.full
		}
	case 11:
		if s := m.socket(); s != nil {
			m.e.UpstreamEnded(s.seq, m.now)
		}
	case 12:
		if s := m.socket(); s != nil {
			m.e.Answered(s.seq, m.src.Block(), m.now)
		}
	case 13:
		m.e.Granted(m.src.Uint32(), ^uint64(0), m.around, m.now)
	case 15: // the broker says more than it was asked
		bits := m.src.Byte() % 129
		for i := range m.around {
			m.around[i] = bits
		}
	case 16:
		m.e.Forget()
	case 17:
		m.full = !m.full
	default:
		m.run()
	}
}

// join has a client come.
func (m *model) join(tcp bool) {
	m.number++
	id := uint32(m.number)
	m.client(id, tcp)
	m.open = append(m.open, id)
}

// ask has a client ask for something.
func (m *model) ask() {
	id, c := m.pick()
	if c == nil || c.paused {
		return
	}
	m.number++
	m.owed[id] = append(m.owed[id], m.number)
	name := modelNames[int(m.src.Byte())%len(modelNames)]
	typ := modelTypes[int(m.src.Byte())%len(modelTypes)]
	m.send(id, message(name, typ, func(q *dnsmessage.Message) {
		if q.ID = m.number; m.number%3 == 0 {
			withEDNS(700, true)(q)
		}
	}))
}

// pick is a client that is there.
func (m *model) pick() (uint32, *guestSocket) {
	i := int(m.src.Byte())
	m.open = slices.DeleteFunc(m.open, func(id uint32) bool { return m.clients[id].closed })
	if len(m.open) == 0 {
		return 0, nil
	}
	id := m.open[i%len(m.open)]
	return id, m.clients[id]
}

// socket is one to a resolver that is connected, or on its way.
func (m *model) socket() *resolverSocket {
	var seqs []uint32
	for seq := range m.sockets {
		seqs = append(seqs, seq)
	}
	slices.Sort(seqs)
	i := int(m.src.Byte())
	if len(seqs) == 0 {
		return nil
	}
	return m.sockets[seqs[i%len(seqs)]]
}

// hostile is what a resolver makes of a question.
func (m *model) hostile(s *resolverSocket, q dnsmessage.Message) [][]byte {
	packed := func(change func(*dnsmessage.Message)) []byte {
		r := m.reply(q)
		change(r)
		b, err := r.Pack()
		if err != nil {
			return nil
		}
		return b
	}
	switch m.src.Byte() % 12 {
	case 1:
		return nil
	case 2:
		return [][]byte{packed(func(r *dnsmessage.Message) { r.ID++ }), m.honest(q)}
	case 3:
		return [][]byte{packed(func(r *dnsmessage.Message) { r.Truncated = true })}
	case 4:
		rcode := dnsmessage.RCode(m.src.Byte() & 15)
		return [][]byte{packed(func(r *dnsmessage.Message) { r.RCode = rcode })}
	case 5: // its own case
		return [][]byte{packed(func(r *dnsmessage.Message) {
			r.Questions[0].Name = dnsmessage.MustNewName(strings.ToLower(r.Questions[0].Name.String()))
		})}
	case 6:
		return [][]byte{packed(func(r *dnsmessage.Message) {
			r.Additionals = append(r.Additionals, r.Answers...)
			r.Answers = append(r.Answers, resource("elsewhere.test.", 60, a4("203.0.113.1")))
		})}
	case 7: // many lies
		return slices.Repeat([][]byte{packed(func(r *dnsmessage.Message) { r.Response = false })}, maxLies)
	case 8:
		return [][]byte{m.src.Block()}
	case 9: // cut somewhere, or changed
		b := m.honest(q)
		b[int(m.src.Byte())%len(b)] ^= m.src.Byte()
		return [][]byte{b[:len(b)-min(len(b), int(m.src.Byte()%4))]}
	case 10:
		return [][]byte{packed(func(r *dnsmessage.Message) {
			r.Answers = nil
			for i := range 300 {
				r.Answers = append(r.Answers, resource(q.Questions[0].Name.String(), uint32(i), a4(fmt.Sprintf("10.0.%d.%d", i/256, i%256))))
			}
		})}
	case 11: // doubled on its way
		return [][]byte{m.honest(q), m.honest(q)}
	}
	return [][]byte{m.honest(q)}
}

// invariants hold after each step.
func (m *model) invariants() {
	for _, name := range m.names {
		n, err := domain.Parse(name)
		if err != nil || !m.rules.Judge(n).Allowed {
			m.t.Fatalf("asked for %q, which is refused", name)
		}
	}
	m.names, m.told, m.whys = nil, nil, nil
	m.collect()
	e := m.e
	if len(e.questions) > MaxUnderWay || e.waiting > MaxWaiting || e.udp.Len() > MaxUDP || e.tcp.Len() > MaxTCP || e.cache.bytes > maxCached ||
		len(e.sockets) > MaxUnderWay+2*ahead || len(e.sockets) != len(m.sockets) {
		m.t.Fatalf("%d under way, %d wait, %d and %d clients, %d sockets of %d", len(e.questions), e.waiting, e.udp.Len(), e.tcp.Len(), len(e.sockets), len(m.sockets))
	}
	for id, c := range e.clients {
		if c.waiting > MaxPerClient {
			m.t.Fatalf("client %d waits for %d answers", id, c.waiting)
		}
	}
	waiting := 0
	for _, q := range e.questions {
		waiting += len(q.waiters)
		if q.until < m.now-second && q.until < e.Deadline() {
			m.t.Fatalf("%q waits for nothing", q.name)
		}
	}
	if waiting != e.waiting {
		m.t.Fatalf("%d wait, not %d", waiting, e.waiting)
	}
}

// collect takes the answers that clients have.
func (m *model) collect() {
	for id, c := range m.clients {
		for _, msg := range c.got {
			number := uint16(msg[0])<<8 | uint16(msg[1])
			owed := m.owed[id]
			i := slices.Index(owed, number)
			if i < 0 && !m.wild[id] {
				m.t.Fatalf("client %d has an answer with number %d, and has asked %d", id, number, owed)
			}
			if i >= 0 {
				m.owed[id] = slices.Delete(owed, i, i+1)
			}
		}
		if c.got = nil; c.closed {
			delete(m.clients, id)
			delete(m.owed, id)
			m.open = slices.DeleteFunc(m.open, func(o uint32) bool { return o == id })
		}
	}
}
