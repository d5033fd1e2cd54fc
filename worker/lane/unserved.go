// SPDX-License-Identifier: Apache-2.0

package lane

import (
	"aldente/worker/datagram"
	"aldente/worker/packet"
)

// unservedNotices is how many packets of protocols that nobody translates are answered
// in a second.
const unservedNotices = 100

// unserved takes a packet of a protocol that nobody here translates: SCTP, DCCP,
// UDP-Lite, GRE, ESP, anything. Its sender is told, and need not wait for its own
// patience to end.
func (l *Lane) unserved(p *packet.Packet) {
	l.Stats.Ignored++
	if !l.isToldOf(p) || !l.notePace.Ready(l.now) {
		return
	}
	l.notePace.Spend()
	e := packet.Ends{SrcMAC: l.guest.OurMAC, DstMAC: l.guest.MAC, Dst: p.Src, TTL: datagram.GuestTTL}
	e.Src = l.guest.Offender(packet.Addr{}, packet.Addr{}, p.Dst)
	typ, code, info := uint8(packet.ICMPDestUnreachable), uint8(packet.ICMPProtoUnreachable), uint32(0)
	if p.IPVersion == 6 {
		typ, code, info = packet.ICMPv6ParamProblem, packet.ICMPv6UnknownHeader, uint32(p.ProtoAt-p.L3)
	}
	l.sendOwn(packet.PutICMPError(l.out, &e, typ, code, info, p.Frame[p.L3:p.End]))
}

// isToldOf tells whether whoever has sent a packet is to hear that nobody knows its
// protocol: RFC 1122 section 3.2.2 and RFC 4443 section 2.4 list what no error may be
// about. What the user has switched off is silent, as are protocols of which hosts
// know enough to ignore them.
func (l *Lane) isToldOf(p *packet.Packet) bool {
	switch {
	case p.Proto == packet.ProtoTCP, p.Proto == packet.ProtoUDP,
		p.IPVersion == 4 && (p.Proto == packet.ProtoICMP || p.Proto == packet.ProtoIGMP),
		p.IPVersion == 6 && (p.Proto == packet.ProtoICMPv6 || p.Proto == packet.ProtoNone):
		return false
	case p.DstMAC.IsGroup(), p.Dst.IsMulticast(), l.guest.IsBroadcast(&p.Dst), p.Dst.IsUnspecified():
		return false
	}
	return !p.Src.IsUnspecified() && !l.guest.IsBroadcast(&p.Src) && !(p.Src.Is4() && p.Src[12] >= 240)
}
