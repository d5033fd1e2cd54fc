// SPDX-License-Identifier: Apache-2.0

package lane

import (
	"aldente/ipc"
	"aldente/worker/arp"
	"aldente/worker/link"
	"aldente/worker/packet"
)

// DHCP has no word by which a server could have its client ask again: FORCERENEW (RFC 3203)
// counts only with a secret that both know (RFC 3118), and clients of today drop it. But
// clients ask again when their link was away, as when a cable is pulled and plugged in
// elsewhere. So that is what a guest sees of its tap when what it has leased has changed.
const (
	// carrierAway is for how long the carrier is taken away. The kernel tells whoever listens
	// of a carrier that is lost once in a second (net/core/link_watch.c), and of one that has come back
	// before not at all.
	carrierAway = 1_150_000_000
	// carrierRest is how long a link stays, at least, before it goes away again.
	carrierRest = 5_000_000_000
	// carrierHeard is within which time a client that looks at its link asks, on a machine that is busy.
	carrierHeard = 15_000_000_000
	// carrierMisses is how often in a row nobody may ask until it is seen that nobody looks:
	// from then on it would disturb the guest for nothing.
	carrierMisses = 2
)

// leases are what the guest has of DHCP and DHCPv6, and whether it is to ask for it again.
type leases struct {
	four, six lease
	again     bool  // it is to ask, and was not told yet
	away      bool  // the carrier is
	back      int64 // when it came back last
	misses    int   // how often nobody has asked since
}

// lease is what was told with an address; zero: there is none.
type lease struct {
	addr, our     packet.Addr
	prefix        uint8
	ndns, nsearch uint8
	dns           [ipc.MaxDNS][16]byte
	search        [ipc.MaxSearch]ipc.Name
}

func (l *Lane) lease4(a packet.Addr) lease {
	g := &l.guest
	return lease{addr: a, our: g.Our4, prefix: g.Prefix4, ndns: g.NDNS4, dns: g.DNS4, nsearch: g.NSearch, search: g.Search}
}

// lease6 has neither router nor prefix, which are told by advertisements, nor resolvers,
// where these do.
func (l *Lane) lease6(a packet.Addr) lease {
	g := &l.guest
	if g.Has(ipc.FlagRA) {
		return lease{addr: a}
	}
	return lease{addr: a, ndns: g.NDNS6, dns: g.DNS6, nsearch: g.NSearch, search: g.Search}
}

// leased4 notes that the guest has been given an IPv4 address, unless that is zero.
func (l *Lane) leased4(a packet.Addr) {
	if a.IsZero() {
		return
	}
	if a == packet.Addr(l.guest.Addr4) {
		l.guest.Assigned4()
	}
	l.leases.four = l.lease4(a)
	l.asked()
}

// asked notes that the guest has asked, perhaps since its link was away.
func (l *Lane) asked() {
	if s := &l.leases; !s.away && l.now-s.back < carrierHeard {
		s.misses = 0
	}
}

// leased6 is the same of IPv6.
func (l *Lane) leased6(a packet.Addr) {
	if !a.IsZero() {
		l.leases.six = l.lease6(a)
		l.asked()
	}
}

// outdated tells whether the guest would be told something else than it was. A host without a
// network has nothing to tell that would be of use: what the guest has may be right again soon.
// With an address that is kept it goes on, by whichever router it has: all of them are we.
func (l *Lane) outdated() bool {
	g, was, is := &l.guest, &l.leases.four, packet.Addr(l.guest.Addr4)
	if !was.addr.IsZero() && g.Has(ipc.FlagIPv4|ipc.FlagDHCP) && is.Is4() && !isLinkLocal4(&is) && was.differs(l.lease4(is), g.Keeps(&was.addr)) {
		return true
	}
	was, is = &l.leases.six, packet.Addr(g.Addr6)
	return !was.addr.IsZero() && g.Has(ipc.FlagIPv6|ipc.FlagDHCPv6) && !g.Has(ipc.FlagNoRouter6) && !is.IsZero() && was.differs(l.lease6(is), g.Keeps(&was.addr))
}

// differs tells whether another lease says something else; kept, besides address and router.
func (a *lease) differs(b lease, kept bool) bool {
	if kept {
		b.addr, b.our, b.prefix = a.addr, a.our, a.prefix
	}
	return *a != b
}

// isLinkLocal4 is RFC 3927 section 2.1.
func isLinkLocal4(a *packet.Addr) bool { return a[12] == 169 && a[13] == 254 }

// askAgain has a guest ask for its network again, if what it has leased has changed and its link
// can tell it. What changes while the carrier is away it will ask for as well; what changes
// soon afterwards it is told of later, all at once.
func (l *Lane) askAgain() {
	s := &l.leases
	s.again = l.outdated()
	plug, ok := l.link.(link.Plug)
	if !s.again || s.away || !ok || s.misses == carrierMisses || l.wheel.Pending(l.timer+timerCarrier) {
		return
	}
	if l.guest.Has(ipc.FlagDebug) {
		logf(levelDebug, "what the guest has leased has changed: its link is away for a moment, so that it asks again")
	}
	plug.SetCarrier(false)
	s.away = true
	l.wheel.Set(l.timer+timerCarrier, l.now+carrierAway)
}

// carrierDue gives the carrier back, and announces who is there, since the guest's kernel has
// forgotten all neighbours; or it is time for what has changed since.
func (l *Lane) carrierDue() {
	s := &l.leases
	plug, ok := l.link.(link.Plug)
	switch {
	case !ok:
		s.away = false
	case s.away:
		plug.SetCarrier(true)
		s.away, s.again, s.back = false, false, l.now
		s.misses++ // until it asks
		l.sendOwn(arp.Announce(&l.guest, l.out))
		l.advertise()
		l.wheel.Set(l.timer+timerCarrier, l.now+carrierRest)
	case s.again:
		l.askAgain()
	}
}
