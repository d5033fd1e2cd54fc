// SPDX-License-Identifier: Apache-2.0

package flow

import (
	"slices"

	"aldente/ipc"
	"aldente/worker/packet"
)

// Guest is what the worker knows about its guest: what it was told at start,
// and what it learned from frames.
type Guest struct {
	ipc.Config
	Traits // of the link

	Shares *Shares // of the lane's descriptors; nil: there is no bound
	Accept *Pace   // of connections to the guest; nil: there is no bound

	MAC packet.MAC // where frames go; all zero until learned

	// Last source addresses seen, or the assigned ones until then. They
	// follow the guest only where the configuration did not fix them.
	Seen4, Seen6, SeenLL6 packet.Addr

	Used Used // what it has given itself

	Withdrawn Withdrawn // what router advertisements have told it of and is so no more

	heard4, heard6 bool // it has sent packets of this family, or ARP
}

// Used are addresses that the guest has sent from, or was about to take, besides Config.Own.
type Used struct {
	addrs [maxUsed]packet.Addr
	next  uint8 // where the next one goes
}

// maxUsed is how many addresses are remembered that the guest has given itself. Of more,
// the one that was noted first gives way.
const maxUsed = 16

// Withdrawn are resolvers and search domains that the guest was told of for ever, and is to
// be told to forget (RFC 8106 section 5.1: a lifetime of zero).
type Withdrawn struct {
	DNS6    [maxWithdrawn][16]byte  // resolvers
	NDNS6   uint8                   // how many of DNS6 are set
	Search  [ipc.MaxSearch]ipc.Name // search domains
	NSearch uint8                   // how many of Search are set
}

// maxWithdrawn is how many resolvers are: those of two changes in a row. Of more the first
// are left out.
const maxWithdrawn = 2 * ipc.MaxDNS

// withdraw adds what the guest was told of and is not by c, and takes out what it is again.
func (g *Guest) withdraw(c *ipc.Config) {
	w := &g.Withdrawn
	was := *w
	*w = Withdrawn{}
	is := c.DNS6[:min(c.NDNS6, ipc.MaxDNS)]
	for _, some := range [...][][16]byte{g.DNS6[:min(g.NDNS6, ipc.MaxDNS)], was.DNS6[:was.NDNS6]} {
		for _, a := range some {
			if w.NDNS6 < maxWithdrawn && !slices.Contains(is, a) && !slices.Contains(w.DNS6[:w.NDNS6], a) {
				w.DNS6[w.NDNS6] = a
				w.NDNS6++
			}
		}
	}
	domains := c.Search[:min(c.NSearch, ipc.MaxSearch)]
	for _, some := range [...][]ipc.Name{g.Search[:min(g.NSearch, ipc.MaxSearch)], was.Search[:was.NSearch]} {
		for i := range some {
			if w.NSearch < ipc.MaxSearch && !slices.Contains(domains, some[i]) && !slices.Contains(w.Search[:w.NSearch], some[i]) {
				w.Search[w.NSearch] = some[i]
				w.NSearch++
			}
		}
	}
}

// Reconfigure takes over another configuration. What the guest was seen to use stays
// until it is seen to use something else, unless it has been given what is new already.
// What it has given itself it may have still: nobody tells that it has not, and to take it
// for somebody else's would keep who comes from there from the guest.
func (g *Guest) Reconfigure(c *ipc.Config) {
	follow := func(seen *packet.Addr, was, is [16]byte, heard bool) {
		if is != was && *seen == was && (!heard || c.Flags&ipc.FlagConfigured != 0) {
			*seen = is
		}
	}
	follow(&g.Seen4, g.Addr4, c.Addr4, g.heard4)
	follow(&g.Seen6, g.Addr6, c.Addr6, g.heard6)
	g.withdraw(c)
	g.Config = *c
}

// Keeps tells whether an address was the guest's before, is not what it is assigned now, and
// may be used by it still: the host has it.
func (g *Guest) Keeps(a *packet.Addr) bool {
	former, kept := &g.Former6, g.Kept6
	if a.Is4() {
		former, kept = &g.Former4, g.Kept4
	}
	for i := range former {
		if *a == packet.Addr(former[i]) && !a.IsZero() {
			return kept>>i&1 != 0
		}
	}
	return false
}

// HasLost tells whether an address was the guest's before, and the host has it no more.
func (g *Guest) HasLost(a *packet.Addr) bool {
	former := &g.Former6
	if a.Is4() {
		former = &g.Former4
	}
	return !a.IsZero() && slices.Contains(former[:], [16]byte(*a)) && !g.Keeps(a)
}

// Assigned4 notes that the guest has taken the IPv4 address assigned.
func (g *Guest) Assigned4() {
	if !g.Has(ipc.FlagAddr4Fixed) {
		g.Seen4 = g.Addr4
	}
}

// Has tells whether all bits of flag are set.
func (g *Guest) Has(flag uint64) bool { return g.Flags&flag == flag }

// LinkMTU is the largest IP packet the link carries, in bytes.
func (g *Guest) LinkMTU() int {
	if g.MTU == 0 {
		return 65520
	}
	return int(g.MTU)
}

// Learn notes the source of a frame from the guest. That of ARP counts like that
// of IP: a guest that sets its address by hand announces it or asks for its
// router, and connections from outside find it before it has sent anything else.
func (g *Guest) Learn(p *packet.Packet) {
	if !p.SrcMAC.IsGroup() && !p.SrcMAC.IsZero() {
		g.MAC = p.SrcMAC
	}
	switch p.IPVersion {
	case 0:
		g.heard4 = true
		g.learnARP(p)
	case 4:
		g.heard4 = true
		if p.Src != g.Seen4 {
			g.Uses(&p.Src)
		}
	case 6:
		g.heard6 = true
		if p.Src != g.Seen6 && p.Src != g.SeenLL6 && !p.Src.Is4() {
			g.Uses(&p.Src)
		}
	}
}

// Uses notes that an address is the guest's: it has sent from it, or is about to take it.
// Connections from outside lead to the last one of each kind, but for those that are fixed.
func (g *Guest) Uses(a *packet.Addr) {
	if !usable(a) {
		return
	}
	if !g.IsOwn(a) {
		u := &g.Used
		u.addrs[u.next] = *a
		u.next = (u.next + 1) % maxUsed
	}
	switch {
	case a.Is4():
		if !g.Has(ipc.FlagAddr4Fixed) {
			g.Seen4 = *a
		}
	case a.IsLinkLocal():
		g.SeenLL6 = *a
	case !g.Has(ipc.FlagAddr6Fixed):
		g.Seen6 = *a
	}
}

// IsOwn tells whether an address is the guest's, as far as is known: nothing that comes from
// there is taken by it.
func (g *Guest) IsOwn(a *packet.Addr) bool {
	return *a == g.Seen4 || *a == g.Seen6 || *a == g.SeenLL6 || *a == packet.Addr(g.Addr4) || *a == packet.Addr(g.Addr6) ||
		slices.Contains(g.Used.addrs[:], *a) || slices.Contains(g.Config.Own[:min(g.NOwn, ipc.MaxOwn)], [16]byte(*a))
}

func (g *Guest) learnARP(p *packet.Packet) {
	var a packet.ARP
	if p.EtherType != packet.EtherTypeARP || a.Decode(p.Payload()) != nil {
		return
	}
	if src := packet.AddrFrom4(a.SPA); src != packet.Addr(g.Our4) && src != g.Seen4 {
		g.Uses(&src)
	}
}

func usable(a *packet.Addr) bool {
	return !a.IsUnspecified() && !a.IsLoopback() && !a.IsMulticast() && !a.IsBroadcast()
}

// InboundSource is how the guest sees a remote address of a connection or
// datagram that came to the host.
func (g *Guest) InboundSource(a packet.Addr) packet.Addr {
	v4 := a.Is4()
	switch {
	case a == (packet.AddrFrom4([4]byte{127, 0, 0, 1})) && g.MapHostLoopback4 != [16]byte{}:
		return g.MapHostLoopback4
	case a == (packet.Addr{15: 1}) && g.MapHostLoopback6 != [16]byte{}:
		return g.MapHostLoopback6
	case v4 && a == packet.Addr(g.Addr4) && g.MapGuestAddr4 != [16]byte{}:
		return g.MapGuestAddr4
	case !v4 && a == packet.Addr(g.Addr6) && g.MapGuestAddr6 != [16]byte{}:
		return g.MapGuestAddr6
	case a.IsLoopback() || a.IsUnspecified() || g.IsOwn(&a):
		if v4 {
			return g.Our4
		}
		return g.linkLocal()
	}
	return a
}

// linkLocal is our link-local address, or the one that we have.
func (g *Guest) linkLocal() packet.Addr {
	if g.OurLL6 != [16]byte{} {
		return g.OurLL6
	}
	return g.Our6
}

// InboundTarget is the guest's address for a connection or datagram whose
// source, as the guest sees it, is src. A guest that has no IPv6 address but its
// link-local one is reached by that. A zero result means that no address of that
// family is known yet.
func (g *Guest) InboundTarget(src *packet.Addr) packet.Addr {
	switch {
	case src.Is4():
		return g.Seen4
	case src.IsLinkLocal() && !g.SeenLL6.IsZero(), g.Seen6.IsZero():
		return g.SeenLL6
	}
	return g.Seen6
}

// TakesBypass tells whether a peer of a listener with these flags goes socket to
// socket, past the guest's link. For what listens in the namespace there is no
// other way.
func TakesBypass(flags uint8, peer *packet.Addr) bool {
	return flags&ipc.ListenerNamespace != 0 || flags&ipc.ListenerMayBypass != 0 && peer.IsLoopback()
}
