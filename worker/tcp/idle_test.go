// SPDX-License-Identifier: Apache-2.0

package tcp

import (
	"testing"

	"aldente/ipc"
	"aldente/worker/flow"
	"aldente/worker/packet"
)

// turns goes on as the lane does after a descriptor of any translator was closed,
// until nothing is pending. It returns how many turns that took, most at most.
func turns(e *env, most int) int {
	e.deliver()
	e.tr.Freed()
	for n := range most {
		e.deliver()
		if e.tr.Pending() {
			e.tr.Poll()
		}
		e.tr.Sweep()
		if e.g.Shares.Returned() {
			e.tr.Freed()
		}
		if !e.tr.Pending() {
			return n
		}
	}
	return most
}

// TestParkedIdle: connections that wait for room keep the lane from nothing, its sleep
// included.
func TestParkedIdle(t *testing.T) {
	e := newEnv(t, withFlows(8))
	e.g.Shares = flow.NewShares(64)
	l, _, _ := crossing(e, 1000)
	for k := range 9 {
		l.arrive(e.newSock(), remote4, uint16(1000+k))
	}
	if n := turns(e, 1000); n == 1000 {
		t.Errorf("busy for %d turns with %d parked", n, e.tr.lots[byLink].n)
	}
}

// TestParkedNamespace: what comes out of the namespace shares nothing with what waits
// to get in, and does not wait behind it.
func TestParkedNamespace(t *testing.T) {
	e := newEnv(t, withFlows(64), withChunks(4096))
	l, past, _ := crossing(e, 0)
	var in int
	e.tr.BypassRoom = func(f uint8) bool { return f&ipc.ListenerNamespace != 0 || in < 0 }
	m := e.newSock()
	m.listening = true
	e.tr.AddListener(&ipc.Listener{ID: 2, Proto: ipc.ProtoTCP, GuestPort: 81, Flags: ipc.ListenerNamespace}, m.fd)
	l.arrive(e.newSock(), loopback4, 1000)
	e.settle()
	var socks []*sock
	for k := range mostParked + 10 {
		s := e.newSock()
		socks = append(socks, s)
		m.arrive(s, loopback4, uint16(2000+k))
	}
	e.settle()
	aborted := 0
	for _, s := range socks {
		if s.aborted {
			aborted++
		}
	}
	if len(*past) != len(socks) {
		t.Errorf("%d of %d went, parked %d, reset %d", len(*past), len(socks), e.tr.lots[pastLink].n, aborted)
	}
}

// TestTimeWaitPlaces: connections of one direction in TIME-WAIT, which hold a place of
// the table and nothing else, do not shut out those of the other.
func TestTimeWaitPlaces(t *testing.T) {
	e := newEnv(t, withFlows(64), withChunks(4096))
	tw := 0
	for port := range uint16(200) {
		n := len(e.opens)
		p := newPeer(e, 2000+port)
		p.start(p.syn())
		if len(e.opens) == n {
			break
		}
		p.s = e.newSock()
		e.answer(len(e.opens)-1, ipc.Opened{}, p.s)
		iss := e.issOf(2000+port, remotePort)
		p.raw(packet.TCP{Flags: packet.ACK, Seq: p.seq, Ack: iss + 1, Window: 0xffff})
		p.s.fin()
		e.settle()
		e.take()
		p.raw(packet.TCP{Flags: packet.ACK | packet.FIN, Seq: p.seq, Ack: iss + 2, Window: 0xffff})
		e.settle()
		tw++
	}
	states := map[state]int{}
	e.tr.flows.Each(func(i uint32) { states[e.tr.flows.At(i).state]++ })
	l := e.listen(1, 80)
	for k := range 10 {
		l.arrive(e.newSock(), remote4, uint16(1000+k))
	}
	t.Log(tw, states, e.tr.made, e.tr.least, e.tr.Len())
	before := e.tr.Len()
	e.settle()
	if e.tr.Len() == before {
		t.Errorf("%d connections, states %v, made %v, least %v: nothing comes in", tw, states, e.tr.made, e.tr.least)
	}
}

// TestParkedIdlePast: the same for those that wait for the bypass.
func TestParkedIdlePast(t *testing.T) {
	e := newEnv(t, withFlows(8))
	e.g.Shares = flow.NewShares(64)
	l, _, _ := crossing(e, 0)
	l.arrive(e.newSock(), loopback4, 1000)
	if n := turns(e, 1000); n == 1000 {
		t.Errorf("busy for %d turns with %d parked", n, e.tr.lots[pastLink].n)
	}
}
