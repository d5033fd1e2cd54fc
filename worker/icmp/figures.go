// SPDX-License-Identifier: Apache-2.0

package icmp

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
	*f = ipc.Flow{Proto: ipc.ProtoICMPv6, Queued: uint64(c.queue.Bytes()), State: [...]ipc.FlowState{
		stateOpening: ipc.FlowOpening, stateOpen: ipc.FlowOpen, stateRefused: ipc.FlowRefused,
	}[c.state]}
	remote, _ := k.Remote()
	if f.Remote = remote; remote.Is4() {
		f.Proto = ipc.ProtoICMP
	}
	f.Guest, f.GuestPort = k.Guest()
	c.Traffic.Describe(f, t.env.Now(), c.last)
	return true
}
