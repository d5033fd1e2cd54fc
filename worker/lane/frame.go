// SPDX-License-Identifier: Apache-2.0

package lane

import (
	"time"

	"aldente/ipc"
	"aldente/worker/arp"
	"aldente/worker/dhcp"
	"aldente/worker/dhcpv6"
	"aldente/worker/link"
	"aldente/worker/ndp"
	"aldente/worker/packet"
)

const (
	portDHCP   = 67
	portDHCPv6 = 547
)

// frame takes one frame from the guest to where it belongs.
func (l *Lane) frame(f *link.Frame) {
	l.Stats.Frames++
	l.moved += len(f.Data)
	for _, b := range f.More {
		l.moved += len(b)
	}
	if l.trace != nil {
		l.trace.frame("from guest: ", f.Data, nil)
	}
	if f.Offload.Flags&packet.OffloadUntold != 0 && (l.capture != nil || l.live != nil) && l.pkt.Decode(f.Data) == nil {
		l.pkt.Tell(&f.Offload) // so that it is recorded with the checksum that it is to have
	}
	if l.capture != nil {
		l.capture.Frame(time.Now(), &f.Offload, f.Data, nil)
	}
	if l.live != nil {
		l.live.take(f)
		return
	}
	l.translate(f)
}

// translate does what a frame from the guest calls for.
func (l *Lane) translate(f *link.Frame) {
	p := &l.pkt
	err := error(nil)
	if f.More == nil {
		err = p.Decode(f.Data)
	} else {
		err = p.DecodeSplit(f.Data, f.More)
	}
	if err != nil || p.Beyond > 0 && p.Proto != packet.ProtoTCP {
		l.Stats.BadFrames++
		return
	}
	switch {
	case p.IPVersion == 4 && l.guest.Has(ipc.FlagIPv4), p.IPVersion == 6 && l.guest.Has(ipc.FlagIPv6):
		l.ip(p, &f.Offload)
	case p.EtherType == packet.EtherTypeARP && l.guest.Has(ipc.FlagIPv4):
		n := arp.Handle(&l.guest, p, l.out) // not by what it is about to teach us
		l.guest.Learn(p)
		l.sendOwn(n)
	default:
		l.Stats.Ignored++
	}
}

// ip takes an IP packet, put together if it came in fragments.
func (l *Lane) ip(p *packet.Packet, o *packet.Offload) {
	if p.Fragment {
		whole, ok := l.reasm.Reassemble(p, l.now)
		if !ok {
			return
		}
		if l.again.Decode(whole) != nil {
			l.Stats.BadFrames++
			return
		}
		l.again.DF = false // it was cut already
		p, o = &l.again, &l.none
	}
	if !p.ChecksumOK(o) {
		l.Stats.BadChecksums++
		return
	}
	if p.Src.IsLoopback() || p.Dst.IsLoopback() || p.Src.IsMulticast() {
		l.Stats.Ignored++ // never on a link, RFC 1122 section 3.2.1.3, RFC 4291 section 2.5.3
		return
	}
	l.guest.Learn(p)
	switch {
	case p.Proto == packet.ProtoTCP && l.guest.Has(ipc.FlagTCP):
		if p.TCP(&l.seg) != nil {
			l.Stats.BadFrames++
			return
		}
		l.tcp.Input(p, &l.seg)
	case p.Proto == packet.ProtoUDP:
		l.datagram(p, o)
	case p.Proto == packet.ProtoICMP && p.IPVersion == 4 && l.guest.Has(ipc.FlagICMP):
		l.request(p, o, packet.ICMPEchoRequest)
	case p.Proto == packet.ProtoICMPv6 && p.IPVersion == 6:
		l.icmpv6(p, o)
	case p.Proto == packet.ProtoIGMP && p.IPVersion == 4 && l.guest.NGroups > 0:
		l.membership(p)
	default:
		l.unserved(p)
	}
}

func (l *Lane) datagram(p *packet.Packet, o *packet.Offload) {
	var err error
	if o.GSOType == packet.GSOUDPL4 {
		err = l.dgram.DecodeGSO(p.Payload())
	} else {
		err = l.dgram.Decode(p.Payload())
	}
	u := &l.dgram
	switch {
	case err != nil:
		l.Stats.BadFrames++
	case u.DstPort == portDHCP && p.IPVersion == 4 && l.guest.Has(ipc.FlagDHCP):
		n := dhcp.Handle(&l.guest, p, u, l.out)
		l.leased4(dhcp.Assigned(l.out[:n]))
		l.sendOwn(n)
	case u.DstPort == portDHCPv6 && p.IPVersion == 6 && l.guest.Has(ipc.FlagDHCPv6) && l.forServer(&p.Dst):
		n := dhcpv6.Handle(&l.guest, p, u, l.out)
		l.leased6(dhcpv6.Assigned(l.out[:n]))
		l.sendOwn(n)
	case l.guest.Has(ipc.FlagUDP):
		l.udp.Input(p, o, u)
	default:
		l.Stats.Ignored++
	}
}

// request takes an echo request. Nobody here serves any other message.
func (l *Lane) request(p *packet.Packet, o *packet.Offload, typ uint8) {
	switch {
	case l.echo.Decode(p.Payload()) != nil:
		l.Stats.BadFrames++
	case l.echo.Type != typ:
		l.Stats.Ignored++
	default:
		l.icmp.Input(p, o, &l.echo)
	}
}

// forServer tells whether a DHCPv6 message to a is for us: to
// All_DHCP_Relay_Agents_and_Servers (RFC 8415 section 7.1) or our own address.
func (l *Lane) forServer(a *packet.Addr) bool {
	return *a == packet.Addr{0: 0xff, 1: 2, 13: 1, 15: 2} || *a == l.guest.Our6 || *a == l.guest.OurLL6
}

func (l *Lane) icmpv6(p *packet.Packet, o *packet.Offload) {
	b := p.Payload()
	if len(b) < 4 {
		l.Stats.BadFrames++
		return
	}
	switch t := b[0]; {
	case t >= packet.ICMPv6RouterSolicit && t <= packet.ICMPv6Redirect:
		if p == &l.again {
			l.Stats.Ignored++ // never in fragments, RFC 6980 section 5
			return
		}
		l.sendOwn(ndp.Handle(&l.guest, p, l.out))
	case t == packet.ICMPv6EchoRequest && l.guest.Has(ipc.FlagICMP):
		l.request(p, o, packet.ICMPv6EchoRequest)
	case (t == packet.MLDReport1 || t == packet.MLDDone || t == packet.MLDReport2) && l.guest.NGroups > 0:
		l.membership(p)
	default:
		l.Stats.Ignored++
	}
}
