// SPDX-License-Identifier: Apache-2.0

package udp

import (
	"aldente/worker/datagram"
	"aldente/worker/flow"
	"aldente/worker/store"
)

// Most flows to a resolver live for one question. Where aldente-names answers, their sockets
// are all alike: an end of a pair, of which it has the other, and that other has no memory of
// what was asked before. So the next flow takes the socket of one that has had an answer to
// all that it has sent and has rested since. The broker need not make a pair for each
// question, nor aldente-names watch one. Who is robbed and speaks again is a new flow.

// restTime is for how long nothing may have come by a flow whose socket is taken, in
// nanoseconds: it may be about to ask for the name's other address.
const restTime = 20_000_000

// reusable has a flow's socket serve another when it rests.
func (t *Translator) reusable(c *conn) { c.names = !t.KeepSockets && !c.inbound }

// rest puts a flow on the list of those whose socket another may have, if it has had an
// answer to all that it has sent.
func (t *Translator) rest(i uint32, c *conn) {
	if c.names && !c.rests && c.SentPackets > 0 && c.SentPackets == c.ReceivedPackets {
		c.rests = true
		t.resting.Add(i)
	}
}

// rouse takes a flow off that list.
func (t *Translator) rouse(i uint32, c *conn) {
	if c.rests {
		c.rests = false
		t.resting.Remove(i)
	}
}

// reuse gives a flow that begins the socket of the one that has rested for longest, and
// reports false if there is none.
func (t *Translator) reuse(i uint32, c *conn, k *store.Key) bool {
	from := t.resting.Oldest()
	if _, port := k.Remote(); port != portDNS || from == store.None || !t.answersAt(k) {
		return false
	}
	old := t.flows.At(from)
	if old.last+restTime > t.env.Now() || t.env.Rewatch(old.sock.FD, t.token(i), flow.Readable) != 0 {
		return false
	}
	c.sock, c.peer, c.peerPort, c.localPort, c.state = old.sock, old.peer, old.peerPort, old.localPort, stateOpen
	c.names = true
	old.sock = datagram.NewSocket(-1, 0)
	t.remove(from, old)
	t.Stats.Opened++
	return true
}

// portDNS is the only one that aldente-names answers by UDP.
const portDNS = 53

// answersAt tells whether a flow's destination is one that another has found aldente-names
// at.
func (t *Translator) answersAt(k *store.Key) bool {
	dst, _ := k.Remote()
	for j := range t.places {
		if t.places[j] == dst {
			return true
		}
	}
	return false
}

// place notes where aldente-names was found.
func (t *Translator) place(k *store.Key) {
	if !t.answersAt(k) {
		t.places[t.nextPlace], _ = k.Remote()
		t.nextPlace = (t.nextPlace + 1) % len(t.places)
	}
}

// displace forgets all those places: flows that lead there are revoked.
func (t *Translator) displace() { clear(t.places[:]) }
