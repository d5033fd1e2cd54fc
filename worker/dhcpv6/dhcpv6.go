// SPDX-License-Identifier: Apache-2.0

// Package dhcpv6 is the guest's DHCPv6 server (RFC 8415). There is one guest
// and one address for it, leased for ever or, where it may change with the host's, for as
// long as the configuration says. So a message is answered from that alone and nothing is
// remembered.
package dhcpv6

import (
	"aldente/ipc"
	"aldente/worker/flow"
	"aldente/worker/packet"
)

const (
	serverPort = 547
	clientPort = 546

	headers = packet.EthernetLen + 40 + 8 // before the DHCPv6 message
)

// MaxFrame is the length of the longest frame this package makes, in bytes. A
// buffer that is shorter gets no frame.
const MaxFrame = packet.EthernetLen + 1500

// minMTU is what every link carries in one piece, RFC 8200 section 5.
const minMTU = 1280

// allServers is All_DHCP_Relay_Agents_and_Servers, RFC 8415 section 7.1.
var allServers = packet.Addr{0: 0xff, 1: 0x02, 13: 0x01, 15: 0x02}

// Handle answers the client's message in u, a datagram that came in p and whose
// checksum the caller has verified. It writes the reply to out and returns its
// length, or 0 if there is none. There is none to messages of other kinds (those
// of relay agents and servers among them), to those for another server, and to
// those that section 16 of RFC 8415 wants discarded.
func Handle(g *flow.Guest, p *packet.Packet, u *packet.UDP, out []byte) int {
	if len(out) < MaxFrame || !g.Has(ipc.FlagIPv6|ipc.FlagDHCPv6) || p.IPVersion != 6 || u.DstPort != serverPort {
		return 0
	}
	our := packet.Addr(g.OurLL6)
	if our.IsZero() || p.Src.IsUnspecified() || p.Src.IsMulticast() || p.Src.IsLoopback() {
		return 0
	}
	var q request
	if !q.parse(u.Payload) || !q.admissible(g) {
		return 0
	}
	r := newReply(g, &q, out)
	switch {
	case p.Dst == allServers:
		if !r.answer(g, &q) {
			return 0
		}
	case p.Dst != our && p.Dst != packet.Addr(g.Our6):
		return 0
	case q.kind == kindRequest || q.kind == kindRenew || q.kind == kindRelease || q.kind == kindDecline:
		r.putStatus(statusUseMulticast) // sections 18.4.1 to 18.4.4
	default:
		return 0
	}
	e := packet.Ends{SrcMAC: g.OurMAC, DstMAC: p.SrcMAC, Src: our, Dst: p.Src}
	return packet.PutUDPFull(out, &e, serverPort, clientPort, r.b[:r.n])
}

// answer fills the reply, section 18.3. It reports false if there must be
// none.
func (r *reply) answer(g *flow.Guest, q *request) bool {
	switch q.kind {
	case kindSolicit:
		serves := q.holder(g) > 0
		if q.rapid && serves {
			r.put(optionRapidCommit, nil)
		} else {
			r.b[0] = kindAdvertise
		}
		if serves && r.b[0] == kindAdvertise {
			// No better server will come: the client need not wait for one.
			r.put(optionPreference, maxPreference[:])
		}
		r.assign(g, q)
	case kindRequest, kindRenew, kindRebind:
		r.assign(g, q)
	case kindConfirm:
		return r.confirm(g, q)
	case kindRelease, kindDecline:
		r.release(g, q)
		return true
	}
	r.putConfiguration(g, q)
	return true
}

// confirm tells whether all of the client's addresses are on this link,
// section 18.3.3. Without an address to compare, neither can be said.
func (r *reply) confirm(g *flow.Guest, q *request) bool {
	status := uint16(statusNone)
	for o := (options{rest: q.options}); o.next(); {
		for a := o.inner(); a.next(); {
			switch {
			case a.code != optionIAAddress:
			case !stillRight(g, packet.Addr(a.value[:16])):
				status = statusNotOnLink
			case status == statusNone:
				status = statusSuccess
			}
		}
	}
	if status == statusNone || g.Addr6 == [16]byte{} {
		return false
	}
	r.putStatus(status)
	return true
}

// onLink tells whether the address has the link's prefix, which is what router
// advertisements say it is.
func onLink(g *flow.Guest, a packet.Addr) bool {
	return [8]byte(a[:8]) == [8]byte(g.Addr6[:8])
}

// stillRight tells whether a client that has moved, for all that it knows, may go on to use
// an address. One that the host has lost is of the link's prefix or not: the client asks
// for the new one at once if it is told that its own is wrong.
func stillRight(g *flow.Guest, a packet.Addr) bool {
	return !g.HasLost(&a) && (onLink(g, a) || g.Keeps(&a))
}

// Assigned returns the address that a frame gives the guest which Handle made. It is zero
// if the frame gives none.
func Assigned(frame []byte) packet.Addr {
	if len(frame) < headers+headerSize || frame[headers] != kindReply {
		return packet.Addr{}
	}
	for o := (options{rest: frame[headers+headerSize:]}); o.next(); {
		if o.code != optionIANA {
			continue
		}
		if a := o.inner(); a.next() && a.code == optionIAAddress {
			return packet.Addr(a.value[:16]) // the lease is the first
		}
	}
	return packet.Addr{}
}

// release acknowledges RELEASE and DECLINE, sections 18.3.7 and 18.3.8. The
// lease stays with the guest, who may come back for it; associations that have
// none are named.
func (r *reply) release(g *flow.Guest, q *request) {
	r.putStatus(statusSuccess)
	for o := (options{rest: q.options}); o.next(); {
		switch o.code {
		case optionIANA:
			if !o.holds(g.Addr6) {
				r.putRefusal(&o, statusNoBinding)
			}
		case optionIATA, optionIAPD:
			r.putRefusal(&o, statusNoBinding)
		}
	}
}

// assign answers each identity association (IA) of SOLICIT, REQUEST, RENEW and
// REBIND. The one that has the guest's address keeps it, or else the first one
// gets it; there is nothing for any other.
func (r *reply) assign(g *flow.Guest, q *request) {
	holder := q.holder(g)
	extending := q.kind == kindRenew || q.kind == kindRebind
	for o := (options{rest: q.options}); o.next(); {
		status := uint16(statusNoAddrsAvail)
		switch o.code {
		case optionIAPD:
			status = statusNoPrefixAvail
		case optionIANA, optionIATA:
		default:
			continue
		}
		switch {
		case extending && (o.code != optionIANA || o.nth != holder):
			r.putRefusal(&o, statusNoBinding)
		case q.kind == kindRequest && o.code != optionIAPD && o.misplaced(g):
			r.putRefusal(&o, statusNotOnLink)
		case o.code == optionIANA && o.nth == holder:
			r.putLease(g, &o, extending)
		default:
			r.putRefusal(&o, status)
		}
	}
}

// holder tells which of the options is the IA that gets the guest's address:
// options.nth, or 0 for none.
func (q *request) holder(g *flow.Guest) int {
	if g.Addr6 == [16]byte{} {
		return 0
	}
	first := 0
	for o := (options{rest: q.options}); o.next(); {
		if o.code != optionIANA {
			continue
		}
		if o.holds(g.Addr6) {
			return o.nth
		}
		if first == 0 {
			first = o.nth
		}
	}
	return first
}
