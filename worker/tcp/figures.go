// SPDX-License-Identifier: Apache-2.0

package tcp

import (
	"aldente/ipc"
	"aldente/worker/flow"
)

// Places is how many numbers there are of which Describe may know something.
func (t *Translator) Places() uint32 { return t.flows.Used() }

// Describe says what is known of the flow with a number below Places. It reports
// false if there is none.
func (t *Translator) Describe(i uint32, f *ipc.Flow) bool {
	if !t.flows.Has(i) {
		return false
	}
	c := t.flows.At(i)
	*f = ipc.Flow{Proto: ipc.ProtoTCP, Direction: ipc.FlowIn, State: c.rfcState(), Listener: c.listener}
	if c.share() == flow.ShareOut {
		f.Direction = ipc.FlowOut
	}
	if !c.has(flagDetached) { // otherwise its addresses are forgotten
		k := t.flows.Key(i)
		f.Guest, f.GuestPort = k.Guest()
		f.Remote, f.RemotePort = k.Remote()
	}
	c.Traffic.Describe(f, t.env.Now(), c.seenAt)
	f.Retransmits = uint64(c.retransmits)
	if c.state == stateOpen {
		f.Queued = uint64(c.queued())
	}
	if c.fd >= 0 && c.state > stateConnecting {
		if p, e := t.env.Path(c.fd); e == 0 {
			p.Describe(f)
		}
	}
	return true
}

// rfcState is RFC 9293's name for where our end of a connection is, which is the end
// towards the guest. But a connection of the guest's that nobody has answered yet is
// one in SYN-SENT: the guest waits for its remote and not for us.
func (c *conn) rfcState() ipc.FlowState {
	switch c.state {
	case stateOpening, stateConnecting, stateSynSent:
		return ipc.FlowSynSent
	case stateSynAckSent:
		return ipc.FlowSynReceived
	case stateTimeWait:
		return ipc.FlowTimeWait
	}
	acked := c.has(flagFINSent) && after(c.sndUna, c.finSeq)
	switch {
	case !c.has(flagGuestFIN) && !c.has(flagFINSent):
		return ipc.FlowEstablished
	case !c.has(flagGuestFIN) && acked:
		return ipc.FlowFinWait2
	case !c.has(flagGuestFIN):
		return ipc.FlowFinWait1
	case !c.has(flagFINSent):
		return ipc.FlowCloseWait
	case c.has(flagHostFirst) && !acked:
		return ipc.FlowClosing
	}
	return ipc.FlowLastAck // maybe not of the guest any more, but of the host
}
