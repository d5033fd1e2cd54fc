// SPDX-License-Identifier: Apache-2.0

package bypass

import (
	"aldente/ipc"
	"aldente/worker/flow"
)

// Places is how many numbers of connections there are of which Describe may know
// something, PlacesUDP the same for DescribeUDP.
func (t *Translator) Places() uint32 { return t.streams.next }

// PlacesUDP is Places for flows of datagrams.
func (t *Translator) PlacesUDP() uint32 { return t.flows.Used() }

// Describe says what is known of the connection with a number below Places. It
// reports false if there is none. Of packets nothing is known.
func (t *Translator) Describe(i uint32, f *ipc.Flow) bool {
	s := &t.streams.all[i]
	if s.state == 0 || s.state == stateEnded {
		return false
	}
	// The guest's end is the near one if it has begun the connection.
	guest, remote := near, far
	*f = ipc.Flow{Proto: ipc.ProtoTCP, Direction: ipc.FlowBypassOut, State: s.rfcState(), Listener: s.listener}
	f.Guest, f.GuestPort, f.Remote, f.RemotePort = s.peer, s.port, s.to, s.farPort
	if !s.has(flagOut) {
		guest, remote = far, near
		f.Direction = ipc.FlowBypassIn
		f.Guest, f.GuestPort, f.Remote, f.RemotePort = s.to, s.farPort, s.peer, s.port
	}
	(&flow.Traffic{Born: s.born, Sent: s.sides[guest].passed, Received: s.sides[remote].passed}).Describe(f, t.env.Now(), s.last)
	f.Queued = uint64(s.sides[guest].held)
	if s.state != stateOpen {
		return true
	}
	if p, e := t.env.Path(s.sides[guest].fd); e == 0 {
		p.Describe(f)
	}
	if p, e := t.env.Path(s.sides[remote].fd); e == 0 {
		p.Describe(f)
	}
	return true
}

// rfcState is RFC 9293's name for a connection as the end that has begun it knows it.
func (s *stream) rfcState() ipc.FlowState {
	n, o := &s.sides[near], &s.sides[far]
	switch {
	case s.state != stateOpen:
		return ipc.FlowSynSent
	case n.has(ended) && o.has(ended):
		return ipc.FlowLastAck
	case n.has(ended):
		return ipc.FlowFinWait2
	case o.has(ended):
		return ipc.FlowCloseWait
	}
	return ipc.FlowEstablished
}

// DescribeUDP is Describe for flows of datagrams.
func (t *Translator) DescribeUDP(i uint32, f *ipc.Flow) bool {
	if !t.flows.Has(i) {
		return false
	}
	d, k := t.flows.At(i), t.flows.Key(i)
	*f = ipc.Flow{Proto: ipc.ProtoUDP, State: ipc.FlowOpen, Listener: d.listener}
	switch {
	case d.refused:
		f.State = ipc.FlowRefused
	case d.opening:
		f.State = ipc.FlowOpening
	case !d.answered:
		f.State = ipc.FlowUnanswered
	}
	d.Traffic.Describe(f, t.env.Now(), d.last)
	peer, port := k.Remote()
	if outOfNamespace(k) {
		f.Direction, f.Queued = ipc.FlowBypassOut, uint64(d.queue.Bytes())
		f.Guest, f.GuestPort, f.Remote, f.RemotePort = peer, port, d.farAddr, d.farPort
		return true
	}
	f.Direction = ipc.FlowBypassIn
	f.Guest, f.GuestPort, f.Remote, f.RemotePort = d.farAddr, d.farPort, peer, port
	f.Sent, f.SentPackets, f.Received, f.ReceivedPackets = f.Received, f.ReceivedPackets, f.Sent, f.SentPackets
	return true
}
