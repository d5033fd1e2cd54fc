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
	if n := taken(); n < turnBytes || n > turnBytes+flows*maxPayload {
		t.Errorf("events had %d bytes sent", n)
	}
	for k, n := range got {
		if n == 0 {
			t.Errorf("flow %d has sent nothing", k)
		}
	}
	for polls := 1; e.tr.Pending(); polls++ {
		e.tr.Poll()
		if n := taken(); n > turnBytes+maxPayload {
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
