// SPDX-License-Identifier: Apache-2.0

package dns

import (
	"bytes"
	"fmt"
	"slices"
	"strings"
	"testing"

	"golang.org/x/net/dns/dnsmessage"
)

// forged is an answer to a question, with an address that is the forger's, changed.
func forged(w *world, q dnsmessage.Message, change func(*dnsmessage.Message)) []byte {
	m := w.reply(q)
	m.Answers = []dnsmessage.Resource{resource(q.Questions[0].Name.String(), 60, a4("203.0.113.66"))}
	change(m)
	b, err := m.Pack()
	if err != nil {
		w.t.Fatal(err)
	}
	return b
}

// lies are messages that are no answer to a question, whatever they hold.
var lies = map[string]func(w *world, q dnsmessage.Message) []byte{
	"another number": func(w *world, q dnsmessage.Message) []byte {
		return forged(w, q, func(m *dnsmessage.Message) { m.ID++ })
	},
	"a question": func(w *world, q dnsmessage.Message) []byte {
		return forged(w, q, func(m *dnsmessage.Message) { m.Response = false })
	},
	"another operation": func(w *world, q dnsmessage.Message) []byte {
		return forged(w, q, func(m *dnsmessage.Message) { m.OpCode = 2 })
	},
	"another name": func(w *world, q dnsmessage.Message) []byte {
		return forged(w, q, func(m *dnsmessage.Message) { m.Questions[0].Name = dnsmessage.MustNewName("b.test.") })
	},
	"another type": func(w *world, q dnsmessage.Message) []byte {
		return forged(w, q, func(m *dnsmessage.Message) { m.Questions[0].Type = tTXT })
	},
	"another class": func(w *world, q dnsmessage.Message) []byte {
		return forged(w, q, func(m *dnsmessage.Message) { m.Questions[0].Class = 3 })
	},
	"no question": func(w *world, q dnsmessage.Message) []byte {
		return forged(w, q, func(m *dnsmessage.Message) { m.Questions = nil })
	},
	"two questions": func(w *world, q dnsmessage.Message) []byte {
		return forged(w, q, func(m *dnsmessage.Message) { m.Questions = append(m.Questions, m.Questions[0]) })
	},
	"half of it": func(w *world, q dnsmessage.Message) []byte {
		b := forged(w, q, func(*dnsmessage.Message) {})
		return b[:len(b)-3]
	},
	"an address of another length": func(w *world, q dnsmessage.Message) []byte {
		return forged(w, q, func(m *dnsmessage.Message) {
			m.Answers[0].Body = &dnsmessage.UnknownResource{Type: tA, Data: make([]byte, 5)}
		})
	},
	"nothing":   func(*world, dnsmessage.Message) []byte { return []byte{} },
	"a header":  func(w *world, q dnsmessage.Message) []byte { return forged(w, q, func(*dnsmessage.Message) {})[:12] },
	"two bytes": func(w *world, q dnsmessage.Message) []byte { return forged(w, q, func(*dnsmessage.Message) {})[:2] },
}

// TestLyingResolver: what does not answer the question counts for nothing, and the
// answer behind it is taken; where only lies come, by UDP and TCP, there is no answer.
func TestLyingResolver(t *testing.T) {
	for name, lie := range lies {
		for _, only := range []bool{false, true} {
			t.Run(fmt.Sprint(name, only), func(t *testing.T) { lying(t, lie, only) })
		}
	}
}

func lying(t *testing.T, lie func(*world, dnsmessage.Message) []byte, only bool) {
	w := newWorld(t, Config{Resolvers: 1}, "a.test")
	w.add("a.test.", 60, a4("192.0.2.1"))
	w.resolve = func(_ *resolverSocket, q dnsmessage.Message) [][]byte {
		var all [][]byte
		for range maxLies - 1 {
			all = append(all, lie(w, q))
		}
		if only {
			return append(all, lie(w, q))
		}
		return append(all, w.honest(q))
	}
	m := w.ask("a.test.", tA)
	if only {
		w.expect(m, servFail, "")
	} else {
		w.expect(m, noError, "192.0.2.1")
	}
	if n := w.e.Figures().Lies; n < maxLies-1 {
		t.Errorf("%d lies", n)
	}
	if strings.Contains(fmt.Sprint(w.told), "203.0.113.66") {
		t.Errorf("the broker was told %v", w.told)
	}
}

// TestCase: a resolver that writes names in its own case is believed once TCP has said
// so, or a second socket; a forger who does not know the case is not.
func TestCase(t *testing.T) {
	lower := func(w *world, q dnsmessage.Message) []byte {
		q.Questions[0].Name = dnsmessage.MustNewName(strings.ToLower(q.Questions[0].Name.String()))
		return w.honest(q)
	}
	for _, tcp := range []bool{true, false} {
		w := newWorld(t, Config{Resolvers: 1}, "*.letters.test")
		for i := range 3 {
			w.add(fmt.Sprintf("name%d.letters.test.", i), 60, a4("192.0.2.1"))
		}
		w.refuse = func(s *resolverSocket) bool { return s.tcp && !tcp }
		overTCP := 0
		w.resolve = func(s *resolverSocket, q dnsmessage.Message) [][]byte {
			if s.tcp {
				overTCP++
			}
			return [][]byte{lower(w, q)}
		}
		for i := range 3 {
			w.expect(w.ask(fmt.Sprintf("name%d.letters.test.", i), tA), noError, "192.0.2.1")
		}
		if tcp && (overTCP != 1 || w.asked != 4) || !tcp && (overTCP != 0 || w.asked != 4) {
			t.Errorf("TCP %v: %d by TCP of %d", tcp, overTCP, w.asked)
		}
	}

	w := newWorld(t, Config{Resolvers: 1}, "many.letters.in.a.name.test")
	w.add("many.letters.in.a.name.test.", 60, a4("192.0.2.1"))
	w.resolve = func(s *resolverSocket, q dnsmessage.Message) [][]byte {
		if s.tcp {
			return [][]byte{w.honest(q)}
		}
		// The forger has guessed port and number.
		return [][]byte{forged(w, q, func(m *dnsmessage.Message) {
			m.Questions[0].Name = dnsmessage.MustNewName("many.letters.in.a.name.test.")
		})}
	}
	w.expect(w.ask("many.letters.in.a.name.test.", tA), noError, "192.0.2.1")
	if strings.ToLower(w.e.questionsSent()) != w.e.questionsSent() {
		t.Error("a question is left")
	}
}

// questionsSent are names of questions that are under way.
func (e *Engine) questionsSent() string {
	s := ""
	for _, q := range e.questions {
		s += q.sent.name.String()
	}
	return s
}

// TestChance: number and case of each message are another, and so is the socket.
func TestChance(t *testing.T) {
	w := newWorld(t, Config{Resolvers: 1}, "*.letters.test")
	seen := map[string]bool{}
	w.resolve = func(s *resolverSocket, q dnsmessage.Message) [][]byte {
		name := q.Questions[0].Name.String()
		if !strings.HasSuffix(strings.ToLower(name), ".letters.test.") {
			t.Errorf("asked for %s", name)
		}
		key := fmt.Sprint(q.ID, name[len(name)-13:])
		if seen[key] {
			t.Errorf("%s twice", key)
		}
		seen[key] = true
		return [][]byte{w.honest(q)}
	}
	for i := range 100 {
		w.ask(fmt.Sprintf("name%d.letters.test.", i), tA)
	}
	if len(seen) != 100 {
		t.Errorf("asked %d times", len(seen))
	}
}

// TestHangs: another resolver is asked, first of all from then on for a while; if none
// answers the client hears so before it asks again; answers after time-out count for
// nothing.
func TestHangs(t *testing.T) {
	w := newWorld(t, Config{Resolvers: 2}, "*.test")
	for i := range 9 {
		w.add(fmt.Sprintf("n%d.test.", i), 60, a4("192.0.2.1"))
	}
	var asked []uint8
	hangs := map[uint8]bool{0: true}
	var late *resolverSocket
	var lateAnswer []byte
	w.resolve = func(s *resolverSocket, q dnsmessage.Message) [][]byte {
		asked = append(asked, s.resolver)
		if hangs[s.resolver] {
			late, lateAnswer = s, w.honest(q)
			return nil
		}
		return [][]byte{w.honest(q)}
	}
	began := w.now
	w.expect(w.ask("n0.test.", tA), noError, "192.0.2.1")
	if w.now-began != udpWait || !slices.Equal(asked, []uint8{0, 1}) {
		t.Errorf("asked %v, took %d ms", asked, (w.now-began)/ms)
	}
	w.e.Answered(late.seq, lateAnswer, w.now)
	asked, began = nil, w.now
	w.expect(w.ask("n1.test.", tA), noError, "192.0.2.1")
	if w.now != began || !slices.Equal(asked, []uint8{1}) {
		t.Errorf("asked %v, took %d ms", asked, (w.now-began)/ms)
	}
	w.pass(2 * second)
	hangs[0], asked = false, nil
	w.ask("n2.test.", tA) // it has had its time, and answers again
	w.ask("n3.test.", tA)
	if !slices.Equal(asked, []uint8{0, 0}) {
		t.Errorf("asked %v", asked)
	}
	hangs, asked, began = map[uint8]bool{0: true, 1: true}, nil, w.now
	w.expect(w.ask("n4.test.", tA), servFail, "")
	if took := w.now - began; took < 3*second || took > wholeWait || len(asked) < 4 || !slices.Contains(asked, 1) {
		t.Errorf("asked %v, took %d ms", asked, took/ms)
	}
	asked, began = nil, w.now
	w.expect(w.ask("n4.test.", tA), servFail, "") // remembered for a moment
	if len(asked) != 0 || w.now != began {
		t.Errorf("asked %v", asked)
	}
	w.pass(failureTTL * second)
	hangs = nil
	w.expect(w.ask("n4.test.", tA), noError, "192.0.2.1")
	if w.e.Figures().TimedOut < 5 || w.e.Figures().Failed != 1 {
		t.Errorf("figures %+v", w.e.Figures())
	}
}

// TestTruncated: what is cut is asked for by TCP; where there is no TCP, elsewhere.
func TestTruncated(t *testing.T) {
	w := newWorld(t, Config{Resolvers: 2}, "*.test")
	for i := range 400 {
		w.add("many.test.", 60, a4(fmt.Sprintf("192.0.%d.%d", i/200, i%200)))
	}
	cut := func(s *resolverSocket, q dnsmessage.Message) [][]byte {
		m := w.reply(q)
		if !s.tcp {
			m.Truncated, m.Answers = true, m.Answers[:min(len(m.Answers), 3)]
		}
		b, _ := m.Pack()
		return [][]byte{b}
	}
	w.resolve = cut
	w.expect(w.ask("many.test.", tA), noError, texts(&dnsmessage.Message{Answers: w.zone["many.test."][:30]}))
	if n := len(w.told[0].Addrs); n != MaxAddresses {
		t.Errorf("%d addresses", n)
	}

	var asked []string
	w.resolve = func(s *resolverSocket, q dnsmessage.Message) [][]byte {
		asked = append(asked, fmt.Sprint(s.resolver, s.tcp))
		return cut(s, q)
	}
	w.refuse = func(s *resolverSocket) bool { return s.tcp && s.resolver == 0 }
	w.add("text.test.", 60, &dnsmessage.TXTResource{TXT: []string{"x"}})
	if m := w.ask("text.test.", tTXT); len(m.Answers) != 1 || !slices.Equal(asked, []string{"0 false", "1 false", "1 true"}) {
		t.Errorf("asked %v: %v", asked, m.GoString())
	}

	w.refuse = nil
	w.resolve = func(s *resolverSocket, q dnsmessage.Message) [][]byte {
		m := w.reply(q)
		m.Truncated = true // even by TCP
		b, _ := m.Pack()
		return [][]byte{b}
	}
	if m := w.ask("other.test.", tTXT); m.RCode != servFail || w.asked > 40 {
		t.Errorf("asked %d times: %v", w.asked, m.RCode)
	}
	// A stream that is none.
	w.resolve = func(s *resolverSocket, q dnsmessage.Message) [][]byte {
		if !s.tcp {
			return cut(s, q)
		}
		w.e.Answered(s.seq, bytes.Repeat([]byte{0xff}, 100), w.now)
		return nil
	}
	if m := w.ask("third.test.", tTXT); m.RCode != servFail {
		t.Errorf("no stream: %v", m.RCode)
	}
	w.resolve = func(s *resolverSocket, q dnsmessage.Message) [][]byte {
		if s.tcp {
			w.e.UpstreamEnded(s.seq, w.now)
			return nil
		}
		return cut(s, q)
	}
	if m := w.ask("fourth.test.", tTXT); m.RCode != servFail {
		t.Errorf("a stream that ends: %v", m.RCode)
	}
}

// TestOldResolver: one that does not know EDNS is asked without, and so is it for a while.
func TestOldResolver(t *testing.T) {
	for _, rcode := range []dnsmessage.RCode{formErr, notImp} {
		w := newWorld(t, Config{Resolvers: 1}, "*.test")
		w.add("a.test.", 60, a4("192.0.2.1"))
		w.add("b.test.", 60, a4("192.0.2.2"))
		w.resolve = func(s *resolverSocket, q dnsmessage.Message) [][]byte {
			if len(q.Additionals) == 0 {
				return [][]byte{w.honest(q)}
			}
			h := q.Header
			h.Response, h.RCode = true, rcode
			b, _ := (&dnsmessage.Message{Header: h}).Pack() // as it has not read the question
			return [][]byte{b}
		}
		w.expect(w.ask("a.test.", tA), noError, "192.0.2.1")
		w.expect(w.ask("b.test.", tA), noError, "192.0.2.2")
		if w.asked != 3 {
			t.Errorf("asked %d times", w.asked)
		}
	}
}

// TestErrorsOfResolvers: another is asked; in the end the client hears that it failed, and
// nothing of what else was said.
func TestErrorsOfResolvers(t *testing.T) {
	for _, rcode := range []dnsmessage.RCode{servFail, refused, 9, 15} {
		w := newWorld(t, Config{Resolvers: 2}, "*.test")
		w.add("a.test.", 60, a4("192.0.2.1"))
		fails := func(s *resolverSocket, q dnsmessage.Message) [][]byte {
			return [][]byte{forged(w, q, func(m *dnsmessage.Message) { m.RCode = rcode })}
		}
		w.resolve = func(s *resolverSocket, q dnsmessage.Message) [][]byte {
			if s.resolver == 1 {
				return [][]byte{w.honest(q)}
			}
			return fails(s, q)
		}
		w.expect(w.ask("a.test.", tA), noError, "192.0.2.1")
		w.resolve = fails
		w.expect(w.ask("b.test.", tA), servFail, "")
	}
}

// TestNoSockets: without sockets there is no answer, and no end of trying either.
func TestNoSockets(t *testing.T) {
	w := newWorld(t, Config{Resolvers: 3}, "*.test")
	w.add("a.test.", 60, a4("192.0.2.1"))
	w.refuse = func(*resolverSocket) bool { return true }
	w.pass(2 * minute) // none are left of those that were ready
	before := w.dials
	w.expect(w.ask("a.test.", tA), servFail, "")
	if n := w.dials - before; n > maxAttempts*(ahead+1) {
		t.Errorf("%d sockets", n)
	}
	w.refuse = func(s *resolverSocket) bool { return s.resolver != 2 }
	w.pass(failureTTL * second)
	w.expect(w.ask("a.test.", tA), noError, "192.0.2.1")
}

// TestReady: some sockets are ready ahead, they do not grow old, and one on which something
// comes unasked is not used.
func TestReady(t *testing.T) {
	w := newWorld(t, Config{Resolvers: 1}, "*.test")
	if w.dials != ahead {
		t.Fatalf("%d sockets at the start", w.dials)
	}
	for i := range 20 {
		w.ask(fmt.Sprintf("n%d.test.", i), tA)
	}
	if left := len(w.sockets); w.dials != 20/maxAsked+left || left > ahead || left < ahead/2 {
		t.Errorf("%d sockets made, %d left", w.dials, left)
	}
	w.pass(reuseLife)
	left := len(w.sockets)
	for seq := range w.sockets {
		w.e.Answered(seq, make([]byte, 40), w.now)
		break
	}
	if len(w.sockets) != left-1 || w.e.Figures().Lies != 1 {
		t.Errorf("%d sockets left", len(w.sockets))
	}
	for seq := range w.sockets {
		w.e.UpstreamEnded(seq, w.now)
		break
	}
	w.pass(readyLife)
	if len(w.sockets) != 0 {
		t.Errorf("%d sockets left", len(w.sockets))
	}
	dials := w.dials
	w.pass(100 * minute)
	if w.dials != dials {
		t.Errorf("%d sockets made for nobody", w.dials-dials)
	}
	w.ask("last.test.", tA)
	w.e.Upstream(4711, false, w.now)
	w.e.UpstreamEnded(4711, w.now)
	w.e.Answered(4711, nil, w.now)
}
