// SPDX-License-Identifier: Apache-2.0

package ndp

import (
	"encoding/binary"

	"aldente/ipc"
	"aldente/worker/flow"
	"aldente/worker/packet"
)

// Options of a router advertisement.
const (
	optionPrefix = 3  // RFC 4861 section 4.6.2
	optionMTU    = 5  // RFC 4861 section 4.6.4
	optionRDNSS  = 25 // RFC 8106 section 5.1
	optionDNSSL  = 31 // RFC 8106 section 5.2
)

const (
	routerAdvertSize = 16
	curHopLimit      = 255
	routerLifetime   = 65535 // seconds, the most there is: RFC 8319 section 4
	forever          = 0xffffffff
	flagManaged      = 0x80 // addresses by DHCPv6
	flagOther        = 0x40 // other configuration by DHCPv6
	prefixLength     = 64   // what SLAAC takes, whatever the host's own is
	prefixFlags      = 0xc0 // on-link, autonomous
	minMTU           = 1280 // RFC 8200 section 5
)

// Next returns how long to wait before the next unsolicited advertisement, in
// nanoseconds: between MinRtrAdvInterval and MaxRtrAdvInterval of RFC 4861
// section 6.2.1, 200 to 600 s. It returns 0 if none is to be sent. rand is any
// random number.
func Next(g *flow.Guest, rand uint64) int64 {
	if !advertises(g) {
		return 0
	}
	const low, high = 200_000_000_000, 600_000_000_000
	return low + int64(rand%(high-low+1))
}

func advertises(g *flow.Guest) bool {
	src := packet.Addr(g.OurLL6)
	return g.Has(ipc.FlagIPv6|ipc.FlagRA) && !src.IsZero()
}

// Advertise writes an unsolicited router advertisement to all nodes. It
// returns the frame's length, or 0 if none is to be sent.
func Advertise(g *flow.Guest, out []byte) int {
	if len(out) < MaxFrame || !advertises(g) {
		return 0
	}
	return finish(g, out, putRouter(g, out[body:]), g.OurLL6, allNodes, allNodesMAC)
}

// router answers a router solicitation: to the guest, or to all nodes if it
// has no address yet. RFC 4861 section 6.1.1: then it must not give its MAC
// address either.
func router(g *flow.Guest, p *packet.Packet, m, out []byte) int {
	options := m[routerSolicitSize:]
	if !advertises(g) || !optionsOK(options) {
		return 0
	}
	dst, mac := p.Src, p.SrcMAC
	if dst.IsUnspecified() {
		if hasOption(options, optionSourceLinkLayer) {
			return 0
		}
		dst, mac = allNodes, allNodesMAC
	}
	return finish(g, out, putRouter(g, out[body:]), g.OurLL6, dst, mac)
}

// putRouter writes the advertisement's message and returns its length.
func putRouter(g *flow.Guest, b []byte) int {
	clear(b[:routerAdvertSize])
	b[0] = packet.ICMPv6RouterAdvert
	b[4] = curHopLimit
	addr := packet.Addr(g.Addr6)
	global := !addr.IsZero() && !addr.IsLinkLocal()
	if g.Has(ipc.FlagDHCPv6) {
		b[5] = flagOther
		if global {
			b[5] = flagManaged // which includes the other
		}
	}
	if !g.Has(ipc.FlagNoRouter6) {
		binary.BigEndian.PutUint16(b[6:], routerLifetime)
	}
	n := routerAdvertSize
	if global {
		n += putPrefix(b[n:], &addr, forever, forever)
	}
	n += putFormer(g, b[n:])
	n += putLinkLayer(b[n:], optionSourceLinkLayer, g.OurMAC)
	if g.MTU >= minMTU {
		b[n], b[n+1], b[n+2], b[n+3] = optionMTU, 1, 0, 0
		binary.BigEndian.PutUint32(b[n+4:], uint32(g.MTU))
		n += 8
	}
	w := &g.Withdrawn
	n += putResolvers(g.DNS6[:min(int(g.NDNS6), ipc.MaxDNS)], forever, b[n:])
	n += putResolvers(w.DNS6[:w.NDNS6], 0, b[n:])
	limit := min(max(g.LinkMTU(), minMTU)-40, MaxFrame-body)
	n += putSearch(g.Search[:min(int(g.NSearch), ipc.MaxSearch)], forever, b[n:limit])
	return n + putSearch(w.Search[:w.NSearch], 0, b[n:limit])
}

// putFormer deprecates the prefixes of addresses that the guest had before (RFC 4862
// section 5.5.4): nothing new comes from there. What the host has still may go on to be
// used; what it has lost ends after two hours, which is as soon as a host believes an
// advertisement (section 5.5.3).
func putFormer(g *flow.Guest, b []byte) (n int) {
	for i := range g.Former6 {
		addr, valid := packet.Addr(g.Former6[i]), uint32(0)
		if addr.IsZero() || addr.IsLinkLocal() || samePrefix(&addr, &g.Addr6) || repeated(g, i) {
			continue
		}
		if g.Kept6>>i&1 != 0 {
			valid = forever
		}
		n += putPrefix(b[n:], &addr, 0, valid)
	}
	return n
}

func samePrefix(a *packet.Addr, b *[16]byte) bool {
	return [prefixLength / 8]byte(a[:]) == [prefixLength / 8]byte(b[:])
}

// repeated tells whether the prefix of a former address is that of one before it.
func repeated(g *flow.Guest, i int) bool {
	addr := packet.Addr(g.Former6[i])
	for j := range i {
		if samePrefix(&addr, &g.Former6[j]) {
			return true
		}
	}
	return false
}

// putPrefix adds a prefix with its lifetimes in seconds.
func putPrefix(b []byte, addr *packet.Addr, preferred, valid uint32) int {
	const size = 32
	clear(b[:size])
	b[0], b[1], b[2], b[3] = optionPrefix, size/8, prefixLength, prefixFlags
	binary.BigEndian.PutUint32(b[4:], valid)
	binary.BigEndian.PutUint32(b[8:], preferred)
	copy(b[16:], addr[:prefixLength/8])
	return size
}

// putResolvers adds resolvers with their lifetime in seconds: zero for those that are not to
// be asked any more.
func putResolvers(all [][16]byte, life uint32, b []byte) int {
	if len(all) == 0 {
		return 0
	}
	b[0], b[1], b[2], b[3] = optionRDNSS, uint8(1+2*len(all)), 0, 0
	binary.BigEndian.PutUint32(b[4:], life)
	for i := range all {
		copy(b[8+16*i:], all[i][:])
	}
	return 8 + 16*len(all)
}

// putSearch writes a search list with its lifetime in seconds, padded with zeros to whole units of
// eight bytes. A domain that does not fit what is left of b is left out, and so is
// an option that would hold none.
func putSearch(all []ipc.Name, life uint32, b []byte) int {
	b = b[:len(b)&^7]
	n := 8
	for i := range all {
		d := &all[i]
		if n < len(b) {
			n += packet.PutName(b[n:], d.Bytes[:min(int(d.Len), ipc.MaxDomain)])
		}
	}
	if n <= 8 {
		return 0
	}
	for ; n%8 != 0; n++ {
		b[n] = 0
	}
	b[0], b[1], b[2], b[3] = optionDNSSL, uint8(n/8), 0, 0
	binary.BigEndian.PutUint32(b[4:], life)
	return n
}
