// SPDX-License-Identifier: Apache-2.0

package dns

import (
	"fmt"
	"strings"
	"testing"

	"golang.org/x/net/dns/dnsmessage"
)

// reuseWorld has many names, and notes by which sockets they are asked for.
type reuseWorld struct {
	*world
	by     []*resolverSocket
	asked  int
	answer func(s *resolverSocket, q dnsmessage.Message) [][]byte // nil: honestly
}

func newReuseWorld(t *testing.T) *reuseWorld {
	r := &reuseWorld{world: newWorld(t, Config{Resolvers: 1}, "*.letters.test")}
	for i := range 200 {
		r.add(fmt.Sprintf("name%d.letters.test.", i), 60, a4("192.0.2.1"))
	}
	r.resolve = func(s *resolverSocket, q dnsmessage.Message) [][]byte {
		r.by = append(r.by, s)
		if r.answer != nil {
			return r.answer(s, q)
		}
		return [][]byte{r.honest(q)}
	}
	return r
}

// next asks for another name, and returns the socket by which it was asked for last.
func (r *reuseWorld) next() *resolverSocket {
	r.t.Helper()
	r.asked++
	r.expect(r.ask(fmt.Sprintf("name%d.letters.test.", r.asked), tA), noError, "192.0.2.1")
	return r.by[len(r.by)-1]
}

// TestReuse: a socket that has had its answer asks again, some times, and for a second.
func TestReuse(t *testing.T) {
	r := newReuseWorld(t)
	uses := map[uint32]int{}
	for range 100 {
		uses[r.next().seq]++
	}
	for seq, n := range uses {
		if n > maxAsked {
			t.Errorf("socket %d has asked %d times", seq, n)
		}
	}
	if want := (100 + maxAsked - 1) / maxAsked; len(uses) != want {
		t.Errorf("%d sockets have asked 100 questions, want %d", len(uses), want)
	}
	r.pass(2 * reuseLife)
	first := r.next()
	for range 3 {
		r.pass(reuseLife / 4)
		if s := r.next(); s != first {
			t.Fatalf("socket %d asks, and %d might", s.seq, first.seq)
		}
	}
	r.pass(reuseLife/4 - 1)
	if first.dropped {
		t.Error("it was closed too early")
	}
	r.pass(1)
	if !first.dropped {
		t.Error("it waits on, longer than one question may")
	}
	if s := r.next(); s == first {
		t.Error("it asks on, longer than one question may wait")
	}
}

// TestReuseLate: an answer that comes when the socket's time is over closes it.
func TestReuseLate(t *testing.T) {
	r := newReuseWorld(t)
	first := r.next()
	r.pass(reuseLife - ms)
	r.answer = func(s *resolverSocket, q dnsmessage.Message) [][]byte {
		if r.now += 2 * ms; s != first {
			t.Errorf("socket %d asks, and %d might", s.seq, first.seq)
		}
		return [][]byte{r.honest(q)}
	}
	r.next()
	if !first.dropped {
		t.Error("it waits on")
	}
}

// TestReuseOne: no socket has two questions under way, and few wait for another.
func TestReuseOne(t *testing.T) {
	r := newReuseWorld(t)
	for range 3 {
		r.by = nil
		r.client(1000, false)
		for i := range MaxPerClient {
			r.asked++
			r.send(1000, message(fmt.Sprintf("name%d.letters.test.", r.asked), tA, func(m *dnsmessage.Message) { m.ID = uint16(i) }))
		}
		under := map[uint32]bool{}
		for _, q := range r.e.questions {
			under[q.socket.seq] = true
		}
		if len(under) != MaxPerClient {
			t.Fatalf("%d sockets for %d questions", len(under), MaxPerClient)
		}
		r.run()
		if n := len(r.clients[1000].got); n != MaxPerClient || len(r.sockets) > 2*ahead {
			t.Errorf("%d answers, %d sockets left", n, len(r.sockets))
		}
		r.e.Ended(1000, r.now)
		delete(r.clients, 1000)
	}
}

// TestSpoilt: a socket asks no more where something else has come by it than one answer to
// what it was asked, be it before or after that; nor where its question had been asked by
// another, and might be known; nor in another network.
func TestSpoilt(t *testing.T) {
	lie := lies["another number"]
	honest := func(r *reuseWorld, q dnsmessage.Message) []byte { return r.honest(q) }
	changed := func(r *reuseWorld, q dnsmessage.Message, change func(*dnsmessage.Message)) []byte {
		m := r.reply(q)
		change(m)
		b, _ := m.Pack()
		return b
	}
	for name, c := range map[string]struct {
		// How the first question by UDP is answered, and what happens then, and before.
		answer         func(r *reuseWorld, q dnsmessage.Message) [][]byte
		then           func(r *reuseWorld, s *resolverSocket)
		before         func(r *reuseWorld)
		lies, repeated uint64
	}{
		"a lie before": {answer: func(r *reuseWorld, q dnsmessage.Message) [][]byte { return [][]byte{lie(r.world, q), honest(r, q)} }, lies: 1},
		"a lie behind": {answer: func(r *reuseWorld, q dnsmessage.Message) [][]byte { return [][]byte{honest(r, q), lie(r.world, q)} }, lies: 1},
		"nothing behind": {then: func(r *reuseWorld, s *resolverSocket) {
			r.arrive(s, nil)
		}, lies: 1},
		"twice": {answer: func(r *reuseWorld, q dnsmessage.Message) [][]byte { return [][]byte{honest(r, q), honest(r, q)} }, repeated: 1},
		"in another case": {answer: func(r *reuseWorld, q dnsmessage.Message) [][]byte {
			return [][]byte{changed(r, q, func(m *dnsmessage.Message) {
				m.Questions[0].Name = dnsmessage.MustNewName(strings.ToLower(m.Questions[0].Name.String()))
			})}
		}},
		"cut": {answer: func(r *reuseWorld, q dnsmessage.Message) [][]byte {
			return [][]byte{changed(r, q, func(m *dnsmessage.Message) { m.Truncated = true })}
		}},
		"a failure": {answer: func(r *reuseWorld, q dnsmessage.Message) [][]byte {
			return [][]byte{changed(r, q, func(m *dnsmessage.Message) { m.RCode = servFail })}
		}},
		"without EDNS": {answer: func(r *reuseWorld, q dnsmessage.Message) [][]byte {
			return [][]byte{changed(r, q, func(m *dnsmessage.Message) { m.RCode, m.Questions = formErr, nil })}
		}},
		"an error":               {then: func(r *reuseWorld, s *resolverSocket) { r.e.UpstreamEnded(s.seq, r.now) }},
		"another network before": {before: func(r *reuseWorld) { r.e.Forget() }},
		"another network":        {then: func(r *reuseWorld, s *resolverSocket) { r.e.Forget() }},
		"another network meanwhile": {answer: func(r *reuseWorld, q dnsmessage.Message) [][]byte {
			r.e.Forget()
			return [][]byte{honest(r, q)}
		}},
	} {
		t.Run(name, func(t *testing.T) {
			r := newReuseWorld(t)
			var first *resolverSocket
			r.answer = func(s *resolverSocket, q dnsmessage.Message) [][]byte {
				if first == nil && !s.tcp {
					if first = s; c.answer != nil {
						return c.answer(r, q)
					}
				}
				return [][]byte{honest(r, q)}
			}
			if c.before != nil {
				c.before(r)
			}
			r.next()
			if c.then != nil {
				c.then(r, first)
			}
			for range 2 * maxAsked {
				if r.next() == first {
					t.Fatal("it asks again")
				}
			}
			if f := r.e.Figures(); f.Lies != c.lies || f.Repeated != c.repeated {
				t.Errorf("%d lies, %d times the same, want %d and %d", f.Lies, f.Repeated, c.lies, c.repeated)
			}
			if !first.dropped {
				t.Error("it is kept")
			}
		})
	}
}

// TestSpoiltFolded: where names come in another case for good, each question has a socket.
func TestSpoiltFolded(t *testing.T) {
	r := newReuseWorld(t)
	r.answer = func(_ *resolverSocket, q dnsmessage.Message) [][]byte {
		q.Questions[0].Name = dnsmessage.MustNewName(strings.ToLower(q.Questions[0].Name.String()))
		return [][]byte{r.honest(q)}
	}
	seen := map[*resolverSocket]bool{}
	for range 20 {
		s := r.next()
		if seen[s] {
			t.Fatal("one asks again")
		}
		seen[s] = true
	}
}

// TestSpoiltRetry: the socket by which a question was asked once more is closed.
func TestSpoiltRetry(t *testing.T) {
	r := newReuseWorld(t)
	silent := true
	r.answer = func(_ *resolverSocket, q dnsmessage.Message) [][]byte {
		if silent {
			silent = false
			return nil
		}
		return [][]byte{r.honest(q)}
	}
	r.client(1000, false)
	r.send(1000, message("name150.letters.test.", tA))
	r.run()
	r.pass(udpWait)
	if len(r.by) != 2 || len(r.clients[1000].got) != 1 || r.by[0] == r.by[1] {
		t.Fatalf("asked %d times, %d answers", len(r.by), len(r.clients[1000].got))
	}
	if !r.by[0].dropped || !r.by[1].dropped {
		t.Error("one of the sockets is kept")
	}
}

// TestRepeatedMeanwhile: an answer that comes once more while the next question waits is no
// lie, does not end that, and the socket's use ends with it. Once more is a lie.
func TestRepeatedMeanwhile(t *testing.T) {
	for more := range 3 {
		r := newReuseWorld(t)
		var before []byte
		r.answer = func(_ *resolverSocket, q dnsmessage.Message) (all [][]byte) {
			for range more {
				if len(r.by) == 2 {
					all = append(all, before)
				}
			}
			before = r.honest(q)
			return append(all, before)
		}
		first, second, third := r.next(), r.next(), r.next()
		if second != first || (third == first) != (more == 0) || first.dropped != (more > 0) {
			t.Errorf("%d times: sockets %d, %d, %d", more, first.seq, second.seq, third.seq)
		}
		if f := r.e.Figures(); f.Repeated != uint64(min(more, 1)) || f.Lies != uint64(max(more-1, 0)) {
			t.Errorf("%d times: %d, and %d lies", more, f.Repeated, f.Lies)
		}
	}
}
