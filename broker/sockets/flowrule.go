// SPDX-License-Identifier: Apache-2.0

package sockets

import (
	"net/netip"

	"aldente/ipc"
)

// FlowRule tells which rule allows a flow that a worker says it has: of one that the
// guest has begun, the egress rule that decides on it as the rules are now, whatever
// they were when it began; of one that came by a listener, the port rule. Of one that
// is refused it is the egress rule that refuses it. Empty: no rule fits, it is not
// known, or what was decided then does not hold any more.
//
// Nothing is remembered here for that. The worker's words are for display only: where it
// lies, the rule is that for its lie. It opens and counts nothing, and may be called
// at any time.
func (f *Factory) FlowRule(w *ipc.Flow) string {
	refused := w.State == ipc.FlowRefused
	switch {
	case w.Direction == ipc.FlowOut && w.Remote != [16]byte{}:
		d := f.cfg().decide(&request{
			proto: w.Proto, shown: true,
			src: netip.AddrPortFrom(netip.AddrFrom16(w.Guest).Unmap(), w.GuestPort),
			dst: netip.AddrPortFrom(netip.AddrFrom16(w.Remote).Unmap(), w.RemotePort),
		})
		if d.verdict.Allowed != refused {
			return d.rule()
		}
	case w.Listener != 0 && !refused:
		l, ok := f.listener(w.Listener)
		if ok && l.Proto == w.Proto && l.Namespace == (w.Direction == ipc.FlowBypassOut) {
			return portRule(&l)
		}
	}
	return ""
}
