// SPDX-License-Identifier: Apache-2.0

package packet

import (
	"net/netip"
	"strconv"
)

// AppendText appends what a decoded packet is, for a log: addresses, numbers and
// names of ours, none of its bytes.
func (p *Packet) AppendText(b []byte) []byte {
	switch {
	case p.EtherType == EtherTypeARP:
		return p.appendARP(b)
	case p.IPVersion == 0:
		b = append(b, "ethertype 0x"...)
		return number(strconv.AppendUint(b, uint64(p.EtherType), 16), " length ", len(p.Frame))
	case p.Fragment:
		b = p.appendAddrs(append(b, "fragment "...), nil)
		return number(number(number(b, " protocol ", int(p.Proto)), " offset ", p.FragOffset), " length ", len(p.Payload()))
	}
	var t TCP
	var u UDP
	l4 := p.Payload()
	switch {
	case p.Proto == ProtoTCP && t.Decode(l4) == nil:
		b = p.appendAddrs(append(b, "tcp "...), &[2]uint16{t.SrcPort, t.DstPort})
		return t.appendText(b)
	case p.Proto == ProtoUDP && u.DecodeGSO(l4) == nil:
		b = p.appendAddrs(append(b, "udp "...), &[2]uint16{u.SrcPort, u.DstPort})
		return number(b, " length ", len(u.Payload))
	case (p.Proto == ProtoICMP || p.Proto == ProtoICMPv6) && len(l4) >= 4:
		b = p.appendAddrs(append(b, "icmp "...), nil)
		b = number(number(b, " type ", int(l4[0])), " code ", int(l4[1]))
		return number(b, " length ", len(l4))
	}
	b = p.appendAddrs(append(b, "ip "...), nil)
	return number(number(b, " protocol ", int(p.Proto)), " length ", len(l4))
}

func (p *Packet) appendARP(b []byte) []byte {
	var a ARP
	if a.Decode(p.Frame[p.L3:]) != nil {
		return append(b, "arp, malformed"...)
	}
	switch a.Op {
	case ARPRequest:
		b = append(b, "arp request for "...)
	case ARPReply:
		b = append(b, "arp reply to "...)
	default:
		b = append(number(b, "arp operation ", int(a.Op)), " for "...)
	}
	b = netip.AddrFrom4(a.TPA).AppendTo(b)
	return netip.AddrFrom4(a.SPA).AppendTo(append(b, " from "...))
}

// appendAddrs appends source and destination, with ports if there are any.
func (p *Packet) appendAddrs(b []byte, ports *[2]uint16) []byte {
	for i, a := range [2]*Addr{&p.Src, &p.Dst} {
		if i == 1 {
			b = append(b, " > "...)
		}
		ip := netip.AddrFrom16(*a).Unmap()
		if ports == nil {
			b = ip.AppendTo(b)
		} else {
			b = netip.AddrPortFrom(ip, ports[i]).AppendTo(b)
		}
	}
	return b
}

// appendText appends flags, numbers and options.
func (t *TCP) appendText(b []byte) []byte {
	b = append(b, ' ')
	for i, name := range [8]string{"fin", "syn", "rst", "psh", "ack", "urg", "ece", "cwr"} {
		if t.Flags&(1<<i) != 0 {
			if b[len(b)-1] != ' ' {
				b = append(b, ',')
			}
			b = append(b, name...)
		}
	}
	b = number(b, " seq ", int(t.Seq))
	if t.Flags&ACK != 0 {
		b = number(b, " ack ", int(t.Ack))
	}
	b = number(b, " window ", int(t.Window))
	if t.MSS != 0 {
		b = number(b, " mss ", int(t.MSS))
	}
	if t.WScale >= 0 {
		b = number(b, " wscale ", int(t.WScale))
	}
	for _, s := range t.SACK[:t.NumSACK] {
		b = number(number(b, " sack ", int(s.Left)), "-", int(s.Right))
	}
	return number(b, " length ", len(t.Payload))
}

// number appends a word and a number.
func number(b []byte, word string, n int) []byte {
	return strconv.AppendInt(append(b, word...), int64(n), 10)
}
