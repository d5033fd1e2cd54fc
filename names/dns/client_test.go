// SPDX-License-Identifier: Apache-2.0

package dns

import (
	"bytes"
	"fmt"
	"maps"
	"runtime"
	"slices"
	"strings"
	"testing"

	"golang.org/x/net/dns/dnsmessage"

	"aldente/names/frame"
)

// numbered is a question with a number.
func numbered(id uint16, name string, typ dnsmessage.Type) []byte {
	return message(name, typ, func(m *dnsmessage.Message) { m.ID = id })
}

// TestPipelining: a client of TCP asks without waiting, in pieces of any size; it is
// read on as answers go out, and has all of them.
func TestPipelining(t *testing.T) {
	for _, piece := range []int{1, 7, 4096} {
		w := newWorld(t, Config{Resolvers: 1}, "*.test")
		c := w.client(1, true)
		var stream []byte
		for i := range 100 {
			name := fmt.Sprintf("n%d.test.", i)
			w.add(name, 60, a4("192.0.2.1"))
			if i%5 == 0 {
				name = "refused.example."
			}
			stream = frame.Append(stream, numbered(uint16(i), name, tA))
		}
		held := 0
		for len(stream) > 0 {
			if c.paused {
				if n, _, _, _ := w.e.Held(); n < MaxPerClient {
					t.Fatalf("paused with %d questions", n)
				}
				held++
				w.run()
				continue
			}
			n := min(piece, len(stream))
			w.e.Received(1, stream[:n], w.now)
			stream = stream[n:]
		}
		w.run()
		var ids []int
		for _, msg := range c.got {
			m := w.unpack(msg)
			ids = append(ids, int(m.ID))
			if refused := m.ID%5 == 0; refused != (m.RCode == nxDomain || m.RCode == 5) {
				t.Errorf("question %d: %v", m.ID, m.RCode)
			}
		}
		slices.Sort(ids)
		if len(slices.Compact(ids)) != 100 || held == 0 && piece < len(numbered(0, "n.test.", tA)) || c.closed || c.paused {
			t.Errorf("%d answers, paused %d times, closed %v", len(ids), held, c.closed)
		}
		w.e.Finished(1, w.now)
		if !c.closed {
			t.Error("not closed when all was said")
		}
	}
}

// TestFinished: who says no more still has its answers.
func TestFinished(t *testing.T) {
	w := newWorld(t, Config{Resolvers: 1}, "*.test")
	w.add("a.test.", 60, a4("192.0.2.1"))
	c := w.client(1, true)
	w.send(1, message("a.test.", tA))
	w.e.Finished(1, w.now)
	if c.closed {
		t.Fatal("closed too early")
	}
	w.run()
	if len(c.got) != 1 || !c.closed {
		t.Errorf("%d answers, closed: %v", len(c.got), c.closed)
	}
	// With more questions than may be under way.
	c = w.client(2, true)
	var stream []byte
	for i := range 2 * MaxPerClient {
		stream = frame.Append(stream, numbered(uint16(i), fmt.Sprintf("n%d.test.", i), tA))
	}
	w.e.Received(2, stream, w.now)
	w.e.Finished(2, w.now)
	w.run()
	if len(c.got) != 2*MaxPerClient || !c.closed {
		t.Errorf("%d answers, closed: %v", len(c.got), c.closed)
	}
	w.e.Finished(3, w.now) // nobody
}

// TestBadStreams: lengths that are none end a connection; so does one that does not take
// its answers.
func TestBadStreams(t *testing.T) {
	for name, stream := range map[string]string{
		"no header": "\x00\x05aaaaa", "too long": "\xff\xff" + strings.Repeat("a", 300), "nothing": "\x00\x00",
	} {
		w := newWorld(t, Config{Resolvers: 1}, "*.test")
		c := w.client(1, true)
		w.e.Received(1, []byte(stream), w.now)
		if !c.closed || w.e.Figures().Malformed != 1 {
			t.Errorf("%s: not closed", name)
		}
		w.e.Received(1, []byte(stream), w.now)
	}
	w := newWorld(t, Config{Resolvers: 1}, "*.test")
	c := w.client(1, true)
	c.full = true
	w.send(1, message("refused.example.", tA))
	if !c.closed {
		t.Error("one that takes nothing is kept")
	}
	c = w.client(2, true)
	for !c.closed { // it is to be read no more
		w.e.Received(2, frame.Append(nil, message(fmt.Sprintf("n%d.test.", len(w.e.questions)), tA)), w.now)
	}
	w.run()
}

// TestIdle: clients that say nothing go; those that wait do not; a part of a message
// is nothing.
func TestIdle(t *testing.T) {
	w := newWorld(t, Config{Resolvers: 1}, "*.test")
	udp, tcp, slow, waits := w.client(1, false), w.client(2, true), w.client(3, true), w.client(4, true)
	w.resolve = func(*resolverSocket, dnsmessage.Message) [][]byte { return nil }
	var at int64
	for at = 0; at < tcpIdle; at += second {
		w.e.Received(3, []byte{0}, w.now)
		if at == tcpIdle-second {
			w.send(4, message("a.test.", tA))
		}
		w.pass(second)
	}
	if udp.closed || !tcp.closed || !slow.closed || waits.closed {
		t.Errorf("closed: %v %v %v %v", udp.closed, tcp.closed, slow.closed, waits.closed)
	}
	w.pass(wholeWait)
	if waits.closed || len(waits.got) != 1 {
		t.Errorf("closed: %v, %d answers", waits.closed, len(waits.got))
	}
	w.pass(tcpIdle)
	if !waits.closed || udp.closed {
		t.Errorf("closed: %v %v", waits.closed, udp.closed)
	}
	w.pass(udpIdle)
	if _, clients, _, _ := w.e.Held(); !udp.closed || clients != 0 {
		t.Errorf("%d clients left", clients)
	}
}

// TestClientsBounded: the one that has been silent for longest makes room, and none that
// waits.
func TestClientsBounded(t *testing.T) {
	for _, tcp := range []bool{false, true} {
		most := map[bool]int{false: MaxUDP, true: MaxTCP}[tcp]
		w := newWorld(t, Config{Resolvers: 1}, "*.test")
		w.resolve = func(*resolverSocket, dnsmessage.Message) [][]byte { return nil }
		for i := range most {
			w.client(uint32(i+1), tcp)
		}
		w.send(1, message("a.test.", tA))          // waits
		w.send(2, message("refused.example.", tA)) // has had its answer, just now
		w.client(10_001, tcp)
		w.client(10_002, tcp)
		w.client(10_003, tcp)
		for id, closed := range map[uint32]bool{1: false, 2: false, 3: true, 4: true, 5: true, 6: false, 10_001: false} {
			if w.clients[id].closed != closed {
				t.Errorf("client %d closed: %v", id, !closed)
			}
		}
		if w.e.Figures().Evicted != 3 {
			t.Errorf("%d evicted", w.e.Figures().Evicted)
		}
		if !tcp {
			continue // no more wait than MaxUnderWay
		}
		for id, c := range w.clients {
			if !c.closed {
				w.send(id, message("a.test.", tA))
			}
		}
		if c := w.client(20_000, tcp); !c.closed {
			t.Error("room where there is none")
		}
		w.client(6, tcp) // the number is another's by now
		w.pass(wholeWait)
	}
}

// TestOverload: what there is no room for is lost by UDP, and refused by TCP.
func TestOverload(t *testing.T) {
	w := newWorld(t, Config{Resolvers: 1}, "*.test")
	w.resolve = func(*resolverSocket, dnsmessage.Message) [][]byte { return nil }
	for i := range MaxUnderWay {
		id := uint32(i/MaxPerClient + 1)
		if w.clients[id] == nil {
			w.client(id, false)
		}
		w.send(id, message(fmt.Sprintf("n%d.test.", i), tA))
	}
	w.send(1, message("one-too-many.test.", tA)) // of one client
	udp, tcp := w.client(1000, false), w.client(1001, true)
	w.send(1000, message("another.test.", tA))
	w.send(1001, message("another.test.", tA))
	w.send(1000, message("n0.test.", tA)) // is under way
	if n, _, _, _ := w.e.Held(); n != MaxUnderWay || w.e.Figures().Overload != 3 || w.e.Figures().Merged != 1 {
		t.Errorf("%d under way, %+v", n, w.e.Figures())
	}
	if len(udp.got) != 0 || len(tcp.got) != 1 || w.unpack(tcp.got[0]).RCode != servFail {
		t.Errorf("%d and %d answers", len(udp.got), len(tcp.got))
	}
	for i := range MaxWaiting {
		id := uint32(2000 + i/MaxPerClient)
		if w.clients[id] == nil {
			w.client(id, false)
		}
		w.send(id, message("n1.test.", tA))
	}
	if w.e.waiting != MaxWaiting {
		t.Errorf("%d wait", w.e.waiting)
	}
	w.pass(wholeWait)
	if n, _, _, _ := w.e.Held(); n != 0 || w.e.waiting != 0 {
		t.Errorf("%d under way, %d wait", n, w.e.waiting)
	}
}

// TestMerged: one question that many have is asked once, and each has its own answer.
func TestMerged(t *testing.T) {
	w := newWorld(t, Config{Resolvers: 1}, "*.test")
	w.add("a.test.", 60, a4("192.0.2.1"))
	for i := range 20 {
		w.client(uint32(i+1), i%2 == 0)
		w.send(uint32(i+1), numbered(uint16(i), []string{"a.test.", "A.TEST."}[i%2], tA))
	}
	w.e.Ended(1, w.now) // does not wait for it
	w.e.Ended(1, w.now)
	w.run()
	for i := range 20 {
		got := w.clients[uint32(i+1)].got
		if i == 0 && len(got) == 0 {
			continue
		}
		if m := w.unpack(got[0]); len(got) != 1 || m.ID != uint16(i) || m.Questions[0].Name.String() != []string{"a.test.", "A.TEST."}[i%2] {
			t.Errorf("client %d: %d answers, %v", i, len(got), m.GoString())
		}
	}
	if w.asked != 1 || len(w.told) != 1 || w.e.Figures().Merged != 19 {
		t.Errorf("asked %d times", w.asked)
	}
}

// TestMemoryBounded: fifty thousand questions in a minute, each of a client and for a name
// of its own, leave no more than the bounds say: where all are answered, with many
// addresses; where none are; where all are refused; and where all get no socket.
func TestMemoryBounded(t *testing.T) {
	const questions = 50_000
	many := make([]dnsmessage.Resource, MaxAddresses)
	for i := range many {
		many[i] = resource(".", 60, a6(fmt.Sprintf("2001:db8::%x", i)))
	}
	for kind, rules := range map[string]string{"answered": "*.test", "hanging": "*.test", "refused": "none.test", "socketless": "*.test"} {
		w := newWorld(t, Config{Resolvers: 2}, rules)
		w.refuse = func(*resolverSocket) bool { return kind == "socketless" }
		var buf []byte
		w.resolve = func(_ *resolverSocket, q dnsmessage.Message) [][]byte {
			if kind == "hanging" {
				return nil
			}
			name := q.Questions[0].Name.String()
			for i := range many {
				many[i].Header.Name = dnsmessage.MustNewName(name)
			}
			m := dnsmessage.Message{Header: q.Header, Questions: q.Questions, Answers: many}
			m.Response = true
			buf, _ = m.AppendPack(buf[:0])
			return [][]byte{buf}
		}
		before := heap()
		var most uint64
		for i := range questions {
			id := uint32(i + 1)
			w.client(id, false)
			w.send(id, message(fmt.Sprintf("%s%d.test.", strings.Repeat("long-", 10), i), tAAAA))
			w.run()
			w.pass(minute / questions)
			w.names, w.told, w.whys = nil, nil, nil
			if w.clients[id].got = nil; i%100 == 0 {
				maps.DeleteFunc(w.clients, func(_ uint32, c *guestSocket) bool { return c.closed })
			}
			q, c, entries, size := w.e.Held()
			if q > MaxUnderWay || c > MaxUDP || entries > maxEntries || size > maxCached || len(w.e.given.names) > maxGiven || len(w.e.sockets) > MaxUnderWay+2*ahead {
				t.Fatalf("%s: %d under way, %d clients, %d kept in %d bytes, %d sockets", kind, q, c, entries, size, len(w.e.sockets))
			}
			if i%10_000 == 9_999 {
				most = max(most, heap()-min(before, heap()))
			}
		}
		if most > 5<<20 {
			t.Errorf("%s: %d bytes", kind, most)
		}
		t.Logf("%s: %d KiB at most", kind, most>>10)
		w.pass(2 * 3600 * second)
		if q, c, _, _ := w.e.Held(); q != 0 || c != 0 || len(w.e.sockets) != 0 || w.e.waiting != 0 || len(w.e.named) != 0 {
			t.Errorf("%s: %d under way, %d clients, %d sockets left", kind, q, c, len(w.e.sockets))
		}
	}
}

func heap() uint64 {
	var m runtime.MemStats
	runtime.GC()
	runtime.ReadMemStats(&m)
	return m.HeapAlloc
}

// TestCacheBounded: in number and in bytes; what is used stays.
func TestCacheBounded(t *testing.T) {
	var c cache
	c.init()
	add := func(i, size int) {
		c.add(key{name: domainOf(i)}, &answer{expires: 1000, records: []record{{data: make([]byte, size)}}}, 0)
	}
	for i := range 3 * maxEntries {
		add(i, 10)
		c.find(key{name: domainOf(0)}, 1)
	}
	if len(c.entries) != maxEntries || c.order.Len() != maxEntries || c.find(key{name: domainOf(0)}, 1) == nil || c.find(key{name: domainOf(1)}, 1) != nil {
		t.Errorf("%d entries", len(c.entries))
	}
	for i := range 100 {
		add(i, 16000)
	}
	if c.bytes > maxCached || c.bytes < maxCached/2 || len(c.entries) > 70 {
		t.Errorf("%d bytes in %d entries", c.bytes, len(c.entries))
	}
	add(1, 10)
	if c.find(key{name: domainOf(1)}, 1000) != nil || c.find(key{name: domainOf(2)}, 1000) != nil {
		t.Error("kept for too long")
	}
	for at := c.order.Front(); at != nil; at = c.order.Front() {
		c.remove(at)
	}
	if c.bytes != 0 || len(c.entries) != 0 {
		t.Errorf("%d bytes of nothing", c.bytes)
	}
}

// TestReported: refusals are told in a number that nobody minds.
func TestReported(t *testing.T) {
	w := newWorld(t, Config{Resolvers: 1}, "a.test")
	for i := range 1000 {
		w.ask(fmt.Sprintf("n%d.example.", i), tA)
	}
	if len(w.whys) != maxReported || w.e.Figures().Unreported != 1000-maxReported {
		t.Errorf("told of %d, not of %d", len(w.whys), w.e.Figures().Unreported)
	}
	w.pass(second)
	w.ask("a.example.", tA)
	if len(w.whys) != maxReported+1 {
		t.Errorf("told of %d", len(w.whys))
	}
	if !bytes.Equal(w.clients[1].got[0][:2], []byte{0x12, 0x34}) {
		t.Error("number of the answer")
	}
}
