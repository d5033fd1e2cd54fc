// SPDX-License-Identifier: Apache-2.0

package tcp

import (
	"testing"

	"aldente/ipc"
	"aldente/worker/flow"
	"aldente/worker/packet"
)

var loopback4 = packet.AddrFrom4([4]byte{127, 0, 0, 1})

// crossing is a listener whose connections go by the link or past it. What has gone
// past it is in the result, and there is room for so many.
func crossing(e *env, room int) (l *sock, past *[]int32, more func(int)) {
	past = new([]int32)
	l = e.newSock()
	l.listening = true
	e.tr.Bypass = func(_ uint32, _ uint8, fd int32, _ packet.Addr, _ uint16) { *past = append(*past, fd) }
	e.tr.BypassRoom = func(uint8) bool { return len(*past) < room }
	e.tr.AddListener(&ipc.Listener{ID: 1, Proto: ipc.ProtoTCP, GuestPort: 80, Flags: ipc.ListenerMayBypass}, l.fd)
	return l, past, func(n int) { room += n; e.tr.Freed() }
}

// Connections past the link that find no room keep none of those waiting that go by
// it, and the reverse: they wait by themselves, in their order, and are reset where
// more wait than may.
func TestAcceptWays(t *testing.T) {
	for _, full := range []int{byLink, pastLink} {
		e := newEnv(t, withFlows(64), withChunks(4096))
		room, other, peers := 0, 3, [ways]packet.Addr{loopback4, remote4}
		if full == byLink {
			room, peers = 1000, [ways]packet.Addr{remote4, loopback4}
			other = 60
			m := e.listen(2, 81)
			for k := range 60 { // all that is not kept for the guest's own connections
				m.arrive(e.newSock(), remote4, uint16(20000+k))
			}
			e.settle()
		}
		l, past, more := crossing(e, room)
		gone := func() (n int) {
			if full == byLink {
				return len(*past)
			}
			return e.tr.Len()
		}
		before := gone()
		var socks []*sock
		for k := range mostParked + 10 {
			s := e.newSock()
			socks = append(socks, s)
			l.arrive(s, peers[0], uint16(1000+k))
		}
		for k := range other {
			l.arrive(e.newSock(), peers[1], uint16(30000+k))
		}
		e.settle()
		if n := gone() - before; n != other || len(l.backlog) != 0 || e.tr.Pending() {
			t.Fatalf("%d of %d went past those that wait, %d in the backlog, pending %t", n, other, len(l.backlog), e.tr.Pending())
		}
		for k, s := range socks {
			if s.aborted != (k >= mostParked) {
				t.Fatalf("connection %d of %d: reset=%t", k, len(socks), s.aborted)
			}
		}
		if full == pastLink {
			more(5)
			e.settle()
			if len(*past) != 5 {
				t.Fatalf("%d went as there was room", len(*past))
			}
			for k, fd := range *past {
				if fd != socks[k].fd {
					t.Errorf("connection %d is not the one that came first", k)
				}
			}
		}
		e.tr.Close()
		for _, s := range socks[:mostParked] {
			if n := s.closes; n > 1 || n == 0 && full == byLink {
				t.Fatalf("closed %d times", n)
			}
		}
	}
}

// What waits for room goes when a flow ends, whatever it held, and does not keep the
// lane busy.
func TestAcceptWaysRoomAgain(t *testing.T) {
	e := newEnv(t, withFlows(8))
	e.g.Shares = flow.NewShares(64)
	l, past, _ := crossing(e, 1000)
	for k := range 9 {
		l.arrive(e.newSock(), remote4, uint16(1000+k))
	}
	l.arrive(e.newSock(), loopback4, 5000)
	e.settle()
	if len(*past) != 1 || e.tr.Len() != 6 || e.tr.lots[byLink].n != 3 || e.tr.Pending() {
		t.Fatalf("%d past the link, %d by it, %d wait, pending %t", len(*past), e.tr.Len(), e.tr.lots[byLink].n, e.tr.Pending())
	}
	if n := e.g.Shares.Used(flow.ShareIn); n != 9 {
		t.Errorf("%d descriptors counted", n)
	}
	e.take()
	for k := range 9 {
		e.input(guest4, remote4, packet.TCP{SrcPort: 80, DstPort: uint16(1000 + k), Flags: packet.RST | packet.ACK,
			Ack: e.issOf(80, uint16(1000+k)) + 1, WScale: -1})
		e.flush()
		e.settle()
	}
	if e.tr.Len() != 0 || e.tr.lots[byLink].n != 0 || e.g.Shares.Used(flow.ShareIn) != 0 {
		t.Errorf("%d connections, %d wait, %d descriptors counted", e.tr.Len(), e.tr.lots[byLink].n, e.g.Shares.Used(flow.ShareIn))
	}
}

// TestTableShares: neither direction takes all of the table, or of the chunks.
func TestTableShares(t *testing.T) {
	for name, o := range map[string][]option{
		"table":  {withFlows(64), withChunks(4096)},
		"chunks": {withFlows(4096), withChunks(256)},
	} {
		e := newEnv(t, o...)
		l := e.listen(1, 80)
		for k := range 5000 {
			l.arrive(e.newSock(), remote4, uint16(1000+k))
		}
		e.settle()
		inbound, opens := e.tr.Len(), 0
		for port := range uint16(5000) {
			p := newPeer(e, 2000+port)
			p.start(p.syn())
			if len(e.opens) == opens {
				break
			}
			opens++
			p.s = e.newSock()
			e.answer(len(e.opens)-1, ipc.Opened{}, p.s)
			p.raw(packet.TCP{Flags: packet.ACK, Seq: p.seq, Ack: e.issOf(2000+port, remotePort) + 1})
			e.settle()
		}
		if opens < 64/4 || inbound < 64/2 {
			t.Errorf("%s: %d inbound, then %d outbound", name, inbound, opens)
		}
		e.tr.Close()
	}
}
