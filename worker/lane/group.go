// SPDX-License-Identifier: Apache-2.0

package lane

import (
	"aldente/ipc"
	"aldente/worker/igmp"
	"aldente/worker/packet"
)

// membership takes a report of which groups the guest wants to hear.
func (l *Lane) membership(p *packet.Packet) {
	if !l.guest.Has(ipc.FlagUDP) || !igmp.Read(p, l.wants) {
		l.Stats.Ignored++
	}
	// Behind a machine there may be others that stay: they say so within a second.
	if l.udp.Left() && l.groupPace.Ready(l.now) {
		l.groupPace.Spend()
		l.askGroups()
	}
}

// askGroups asks the guest which groups it wants, where it may have any, and forgets
// those that it wants no more: as a router does, RFC 3376 section 6.
func (l *Lane) askGroups() {
	g := &l.guest
	if g.NGroups == 0 {
		return
	}
	l.udp.Forget(igmp.Life)
	if l.link != nil {
		if g.Has(ipc.FlagIPv4) {
			l.sendOwn(igmp.Query4(g, l.out))
		}
		if g.Has(ipc.FlagIPv6) {
			l.sendOwn(igmp.Query6(g, l.out))
		}
	}
	l.wheel.Set(l.timer+timerGroups, l.now+igmp.Interval)
}
