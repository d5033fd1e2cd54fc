// SPDX-License-Identifier: Apache-2.0

package udp

import "aldente/ipc"

// Places is how many numbers there are of which Describe may know something.
func (t *Translator) Places() uint32 { return t.flows.Used() }

// Describe says what is known of the flow with a number below Places. It reports
// false if there is none.
func (t *Translator) Describe(i uint32, f *ipc.Flow) bool {
	if !t.flows.Has(i) {
		return false
	}
	c, k := t.flows.At(i), t.flows.Key(i)
	*f = ipc.Flow{Proto: ipc.ProtoUDP, Queued: uint64(c.queue.Bytes()), State: [...]ipc.FlowState{
		stateOpening: ipc.FlowOpening, stateOpen: ipc.FlowOpen, stateRefused: ipc.FlowRefused, stateUnanswered: ipc.FlowUnanswered, stateStaged: ipc.FlowOpen,
	}[c.state]}
	if c.inbound {
		f.Direction, f.Listener = ipc.FlowIn, c.listener
	}
	f.Guest, f.GuestPort = k.Guest()
	f.Remote, f.RemotePort = k.Remote()
	c.Traffic.Describe(f, t.env.Now(), c.last)
	return true
}
