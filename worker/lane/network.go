// SPDX-License-Identifier: Apache-2.0

package lane

import (
	"aldente/worker/packet"
)

// What has changed is advertised at once and twice more, as far apart as RFC 4861
// section 10 wants it (MIN_DELAY_BETWEEN_RAS), in case that the guest misses one.
const (
	advertiseAgain = 2
	advertiseSoon  = 3_000_000_000 // nanoseconds
)

// reconfigure takes over what the guest's network is like from now on. Flows stay. A
// guest that was told by router advertisements is told at once; by DHCP, when it asks
// again, which it is asked for where its link can.
func (l *Lane) reconfigure(rec []byte) error {
	c := &l.next // on the stack it would not stay, by way of an interface
	if err := c.Decode(rec); err != nil {
		return err
	}
	g := &l.guest
	// What the lane was made for does not change, nor what the link has said.
	c.MTU, c.LinkKind, c.GuestMAC = g.MTU, g.LinkKind, g.GuestMAC
	c.MaxFlows, c.MaxUDP, c.MaxConns, c.NewConns, c.Bytes, c.Stats = g.MaxFlows, g.MaxUDP, g.MaxConns, g.NewConns, g.Bytes, g.Stats
	c.NGroups, c.Groups = g.NGroups, g.Groups
	g.Reconfigure(c)
	l.udp.ForgetGroups()
	l.askGroups()
	if l.link != nil {
		l.advertised = 0
		l.advertise()
		l.askAgain()
	}
	return nil
}

// addressesGone ends flows whose sockets have addresses that the host has no more.
func (l *Lane) addressesGone(rec []byte) error {
	if err := l.gone.Decode(rec); err != nil {
		return err
	}
	l.tcp.Gone(l.lost)
	l.udp.Gone(l.lost)
	l.icmp.Gone(l.lost)
	return nil
}

// hasLost tells whether a socket's address is one of those that are gone.
func (l *Lane) hasLost(fd int32) bool {
	a, _, e := l.LocalAddr(fd)
	if e != 0 {
		return false
	}
	for i := range l.gone.Addrs[:l.gone.N] {
		if a == packet.Addr(l.gone.Addrs[i]) {
			return true
		}
	}
	return false
}
