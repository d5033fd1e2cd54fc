// SPDX-License-Identifier: Apache-2.0

package tcp

import "testing"

// However many flows have much to send, a turn ends soon, and none of them is
// left out: those that an event announced have one super-frame at least, and
// what they have left goes on in the order in which they became ready.
func TestTurnBytes(t *testing.T) {
	const flows, each = 32, 900_000
	e := newEnv(t, withFlows(2*flows), withChunks(flows*64))
	var peers []*peer
	for k := range uint16(flows) {
		p := newPeer(e, guestPort+k)
		p.dial(p.syn())
		p.acks(0, 0xffff) // a window of 1 MiB
		p.s.rcvBuf = each
		peers = append(peers, p)
	}
	e.take()
	got := make([]int, flows)
	taken := func() (n int) {
		for _, f := range e.take() {
			got[f.tcp.DstPort-guestPort] += len(f.tcp.Payload)
			n += len(f.tcp.Payload)
		}
		return
	}
	for _, p := range peers {
		p.s.say(each)
	}
	e.deliver()
	if n := taken(); n < besideTurn || n > besideTurn+flows*maxPayload {
		t.Errorf("events had %d bytes sent", n)
	}
	for k, n := range got {
		if n == 0 {
			t.Errorf("flow %d has sent nothing", k)
		}
	}
	for polls := 1; e.tr.Pending(); polls++ {
		e.tr.Poll()
		if n := taken(); n > bulkTurn+maxPayload {
			t.Fatalf("%d bytes sent in one turn", n)
		}
		if polls == flows {
			for k, n := range got {
				if n < 3*maxPayload-3*1460 {
					t.Errorf("flow %d has sent %d bytes in %d turns", k, n, polls)
				}
			}
		}
	}
	for k, n := range got {
		if n != each {
			t.Errorf("flow %d has sent %d bytes of %d", k, n, each)
		}
	}
}

// beside dials flows of bulk, which have been sent enough to be that and have more, and
// one that says little, the last of which an event tells.
func beside(e *env, flows, each int) (bulk []*peer, brief *peer) {
	for k := range uint16(flows + 1) {
		p := newPeer(e, guestPort+k)
		p.dial(p.syn())
		p.acks(0, 0xffff) // a window of 1 MiB
		p.s.rcvBuf = 8 << 20
		bulk = append(bulk, p)
	}
	bulk, brief = bulk[:flows], bulk[flows]
	for _, p := range bulk {
		p.s.say(heavy + 1460)
	}
	e.settle()
	e.take()
	for _, p := range bulk {
		p.acks(heavy+1460+1, 0xffff)
	}
	for _, p := range bulk {
		p.s.say(each)
	}
	return bulk, brief
}

// before is how many bytes of others are sent to the guest before those of p, and in all.
func (e *env) before(p *peer) (first, all int) {
	first = -1
	for _, f := range e.take() {
		if f.tcp.DstPort == p.port && len(f.tcp.Payload) > 0 && first < 0 {
			first = all
		}
		all += len(f.tcp.Payload)
	}
	return first, all
}

// A flow that says little waits for little of the bulk that events told of before it, of
// however many flows, and for none once it is known. Bulk that waited itself is sent in turns that are short as long as
// such a flow is there, and all of it in the end.
func TestSparseFlowFirst(t *testing.T) {
	const flows, each = 32, 600_000
	e := newEnv(t, withFlows(2*flows), withChunks(flows*128))
	bulk, brief := beside(e, flows, each)
	left := flows * each
	for round := range 20 {
		for _, p := range bulk {
			p.s.say(1460)
			left += 1460
		}
		brief.s.say(100)
		e.deliver()
		first, all := e.before(brief)
		if first < 0 || first > besideTurn+maxPayload || round > 0 && first > 0 {
			t.Fatalf("round %d: after %d bytes of others", round, first)
		}
		left -= all - 100
		e.tr.Poll()
		_, all = e.before(brief)
		if all < besideTurn || all > besideTurn+maxPayload {
			t.Errorf("round %d: %d bytes in the turn", round, all)
		}
		left -= all
	}
	e.now += besideFor
	for e.tr.Pending() {
		e.tr.Poll()
		_, all := e.before(brief)
		if left -= all; left > 0 && all < bulkTurn || all > bulkTurn+maxPayload {
			t.Errorf("%d bytes in a turn beside nobody", all)
		}
	}
	if left != 0 {
		t.Errorf("%d bytes are not sent", left)
	}
}

// Many flows of which none is one of bulk, but each has something, do not keep one waiting
// that has a word to say for longer than a turn either.
func TestSparseFlowBesideMany(t *testing.T) {
	const flows, each = 32, 32 << 10
	e := newEnv(t, withFlows(2*flows), withChunks(flows*128))
	bulk, brief := beside(e, flows, 0)
	e.now += 16e6 // what was sent is forgotten, but for nothing
	for _, p := range bulk {
		p.s.say(light)
	}
	e.settle()
	e.take()
	for _, p := range bulk {
		p.acks(heavy+1460+light+1, 0xffff)
	}
	for _, p := range bulk {
		p.s.say(each)
	}
	brief.s.say(100)
	e.deliver()
	if first, _ := e.before(brief); first < 0 || first > besideTurn+each {
		t.Errorf("after %d bytes of others", first)
	}
	// Once it was quiet for long enough a flow is one of bulk no more.
	e.settle()
	e.take()
	c := bulk[0].conn()
	if c.sentOfLate(e.now) == 0 {
		t.Fatal("nothing was sent of late")
	}
	e.now += 2 * heavy / loadForgiven << loadUnit
	if n := c.sentOfLate(e.now); n != 0 {
		t.Errorf("%d bytes are remembered for ever", n)
	}
}
