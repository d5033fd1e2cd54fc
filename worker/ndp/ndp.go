// SPDX-License-Identifier: Apache-2.0

// Package ndp answers the guest's neighbour and router solicitations and
// advertises the router that we are (RFC 4861). It keeps no state.
package ndp

import (
	"encoding/binary"

	"aldente/ipc"
	"aldente/worker/flow"
	"aldente/worker/packet"
)

// MaxFrame is the length of the longest frame this package makes, in bytes. A
// buffer that is shorter gets no frame.
const MaxFrame = packet.EthernetLen + 1500

const (
	hopLimit              = 255 // of every message, so that none comes from afar
	routerSolicitSize     = 8
	neighbourMessageSize  = 24 // solicitation and advertisement, without options
	optionSourceLinkLayer = 1
	optionTargetLinkLayer = 2
)

// Flags of a neighbour advertisement, RFC 4861 section 4.4.
const (
	flagRouter    = 1 << 31
	flagSolicited = 1 << 30
	flagOverride  = 1 << 29
)

// body is where an ICMPv6 message starts in our frames, which have no
// extension headers.
const body = packet.EthernetLen + 40

// allNodes is ff02::1, allNodesMAC its Ethernet address (RFC 2464 section 7).
var (
	allNodes    = packet.Addr{0: 0xff, 1: 0x02, 15: 0x01}
	allNodesMAC = packet.MAC{0x33, 0x33, 0, 0, 0, 1}
)

// Handle answers the neighbour or router solicitation in p. It writes the
// advertisement to out and returns its length, or 0 if there is none. There is
// none to other messages, to those that fail the checks of RFC 4861 sections
// 6.1.1 and 7.1.1, and to those in fragments (RFC 6980).
func Handle(g *flow.Guest, p *packet.Packet, out []byte) int {
	if len(out) < MaxFrame || !g.Has(ipc.FlagIPv6) || p.IPVersion != 6 || p.Proto != packet.ProtoICMPv6 {
		return 0
	}
	m := p.Payload()
	if p.Fragment || p.FragNext != 0 || p.TTL != hopLimit || len(m) < routerSolicitSize || m[1] != 0 {
		return 0
	}
	if p.Src.IsMulticast() || p.Src.IsLoopback() {
		return 0
	}
	switch m[0] {
	case packet.ICMPv6NeighborSolicit:
		if g.Has(ipc.FlagNDP) && checksumOK(p) {
			return neighbour(g, p, m, out)
		}
	case packet.ICMPv6RouterSolicit:
		if g.Has(ipc.FlagRA) && checksumOK(p) {
			return router(g, p, m, out)
		}
	}
	return 0
}

// checksumOK verifies the checksum in the frame itself: no guest leaves that
// of neighbour discovery to its link.
func checksumOK(p *packet.Packet) bool {
	var none packet.Offload
	return p.ChecksumOK(&none)
}

// neighbour answers a neighbour solicitation. Whatever the guest looks for on
// its link is reached through us, but for its own addresses. A solicitation
// without source is duplicate address detection (RFC 4862 section 5.4), and no
// address that the guest chooses is in anybody's way.
func neighbour(g *flow.Guest, p *packet.Packet, m, out []byte) int {
	if len(m) < neighbourMessageSize || !optionsOK(m[neighbourMessageSize:]) {
		return 0
	}
	target := packet.Addr(m[8:24])
	if target.IsMulticast() || target.IsZero() || target.IsLoopback() || target.Is4() {
		return 0
	}
	if p.Src.IsUnspecified() {
		claim(g, p, target)
		return 0
	}
	if target == packet.Addr(g.Addr6) {
		return 0
	}
	// Section 7.2.4: an advertisement on behalf of somebody else does not
	// override what the guest knows.
	flags := uint32(flagRouter | flagSolicited)
	if ours(g, target) {
		flags |= flagOverride
	} else if target == g.Seen6 || target == g.SeenLL6 {
		return 0
	}
	b := out[body:]
	b[0], b[1] = packet.ICMPv6NeighborAdvert, 0
	binary.BigEndian.PutUint32(b[4:], flags)
	copy(b[8:24], target[:])
	n := neighbourMessageSize + putLinkLayer(b[neighbourMessageSize:], optionTargetLinkLayer, g.OurMAC)

	src := packet.Addr(g.OurLL6)
	if src.IsZero() {
		src = target
	}
	return finish(g, out, n, src, p.Src, p.SrcMAC)
}

// claim notes an address that the guest is about to take, so that connections
// from outside find it there before it has sent anything from it.
func claim(g *flow.Guest, p *packet.Packet, target packet.Addr) {
	if p.Dst.IsMulticast() && !ours(g, target) { // section 7.1.1
		g.Uses(&target)
	}
}

// ours tells whether the address stands for us and not for some remote host.
func ours(g *flow.Guest, a packet.Addr) bool {
	return a == packet.Addr(g.Our6) || a == packet.Addr(g.OurLL6) || a == packet.Addr(g.MapHostLoopback6) ||
		a == packet.Addr(g.MapGuestAddr6) || a == packet.Addr(g.DNSForward6)
}

// Solicit writes a solicitation for the guest's assigned IPv6 address, so
// that its MAC address is known before it speaks. It returns the frame's
// length, or 0 if no address was assigned.
func Solicit(g *flow.Guest, out []byte) int {
	target := packet.Addr(g.Addr6)
	src := packet.Addr(g.OurLL6)
	if len(out) < MaxFrame || !g.Has(ipc.FlagIPv6|ipc.FlagNDP) || target.IsZero() || src.IsZero() {
		return 0
	}
	b := out[body:]
	b[0], b[1] = packet.ICMPv6NeighborSolicit, 0
	binary.BigEndian.PutUint32(b[4:], 0)
	copy(b[8:24], target[:])
	n := neighbourMessageSize + putLinkLayer(b[neighbourMessageSize:], optionSourceLinkLayer, g.OurMAC)

	// The solicited-node address, RFC 4291 section 2.7.1.
	dst := packet.Addr{0: 0xff, 1: 0x02, 11: 0x01, 12: 0xff, 13: target[13], 14: target[14], 15: target[15]}
	mac := packet.MAC{0x33, 0x33, 0xff, target[13], target[14], target[15]}
	return finish(g, out, n, src, dst, mac)
}

// optionsOK walks the options: each must have a length, and end within the
// message (RFC 4861 sections 6.1.1 and 7.1.1).
func optionsOK(b []byte) bool {
	for len(b) > 0 {
		if len(b) < 2 || b[1] == 0 || int(b[1])*8 > len(b) {
			return false
		}
		b = b[int(b[1])*8:]
	}
	return true
}

// hasOption looks for an option in a list that optionsOK has passed.
func hasOption(b []byte, typ uint8) bool {
	for len(b) > 0 {
		if b[0] == typ {
			return true
		}
		b = b[int(b[1])*8:]
	}
	return false
}

func putLinkLayer(b []byte, typ uint8, mac packet.MAC) int {
	b[0], b[1] = typ, 1
	copy(b[2:8], mac[:])
	return 8
}

// finish puts headers before, and the checksum into, the n bytes of message
// in out.
func finish(g *flow.Guest, out []byte, n int, src, dst packet.Addr, mac packet.MAC) int {
	e := packet.Ends{SrcMAC: g.OurMAC, DstMAC: mac, Src: src, Dst: dst, TTL: hopLimit}
	packet.PutIP(out, &e, packet.ProtoICMPv6, n)
	b := out[body : body+n]
	b[2], b[3] = 0, 0
	sum := packet.Sum(b, packet.PseudoSum(&src, &dst, packet.ProtoICMPv6, n))
	binary.BigEndian.PutUint16(b[2:], ^packet.Fold(sum))
	return body + n
}
