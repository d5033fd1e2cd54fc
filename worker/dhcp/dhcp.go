// SPDX-License-Identifier: Apache-2.0

// Package dhcp is the guest's DHCP server (RFC 2131), and its BOOTP server
// (RFC 951). There is one guest and one address for it, leased for ever or, where it may
// change with the host's, for as long as the configuration says. So a request is answered
// from that alone and nothing is remembered.
package dhcp

import (
	"encoding/binary"

	"aldente/ipc"
	"aldente/worker/flow"
	"aldente/worker/packet"
)

const (
	serverPort = 67
	clientPort = 68

	headers = packet.EthernetLen + 20 + 8 // before the BOOTP message
)

// MaxFrame is the length of the longest frame this package makes, in bytes. A
// buffer that is shorter gets no frame.
const MaxFrame = packet.EthernetLen + 1500

// Message types, RFC 2132 section 9.6.
const (
	typeNone     = 0 // none given: BOOTP
	typeDiscover = 1
	typeOffer    = 2
	typeRequest  = 3
	typeACK      = 5
	typeNAK      = 6
	typeInform   = 8
)

// Handle answers the BOOTP or DHCP request in u, a datagram that came in p and
// whose checksum the caller has verified. It writes the reply to out and returns
// its length, or 0 if there is none. There is none to DECLINE and RELEASE, which
// change nothing here; to what a relay agent passes on, which is for another
// network (RFC 2131 section 4.3.1); and to malformed requests.
func Handle(g *flow.Guest, p *packet.Packet, u *packet.UDP, out []byte) int {
	if len(out) < MaxFrame || !g.Has(ipc.FlagIPv4|ipc.FlagDHCP) || p.IPVersion != 4 || u.DstPort != serverPort {
		return 0
	}
	assigned, our := packet.Addr(g.Addr4), packet.Addr(g.Our4)
	if !isHost(&assigned) || !isHost(&our) {
		return 0
	}
	var q request
	if !q.parse(u.Payload) {
		return 0
	}
	q.given = given(g, &q)
	switch kind := decide(g, &q); kind {
	case typeOffer, typeACK:
		return send(g, p, &q, kind, out)
	case typeNAK:
		return refuse(g, &q, out)
	}
	return 0
}

// Assigned returns the address that a frame gives the guest which Handle made: it may be
// spoken to by that from then on, whether or not it has said anything from there. It is
// zero if the frame gives none.
func Assigned(frame []byte) packet.Addr {
	if len(frame) < headers+fixedSize {
		return packet.Addr{}
	}
	b := frame[headers:]
	a := [4]byte(b[16:20])
	o := b[fixedSize+cookieSize:] // the type is the first option
	if a == [4]byte{} || len(o) < 3 || [cookieSize]byte(b[fixedSize:]) != magicCookie || o[0] != optionMessageType || o[2] != typeACK {
		return packet.Addr{}
	}
	return packet.AddrFrom4(a)
}

// given is the address that the client gets: its own, where it has one of those that it had
// before and may keep, or the one assigned. So its connections go on.
func given(g *flow.Guest, q *request) packet.Addr {
	for _, a := range [...]packet.Addr{packet.AddrFrom4(q.requested), packet.AddrFrom4(q.ciaddr)} {
		if g.Keeps(&a) {
			return a
		}
	}
	return g.Addr4
}

// isHost tells whether a is an IPv4 address that a host can have.
func isHost(a *packet.Addr) bool {
	return a.Is4() && !a.IsUnspecified() && !a.IsLoopback() && !a.IsMulticast() && !a.IsBroadcast()
}

// decide returns the type of the reply, or typeNone for none. BOOTP gets the
// same as a DHCP client that is acknowledged, as RFC 1534 section 2 allows.
func decide(g *flow.Guest, q *request) uint8 {
	switch q.kind {
	case typeNone, typeInform:
		return typeACK
	case typeDiscover:
		if q.rapid { // RFC 4039
			return typeACK
		}
		return typeOffer
	case typeRequest:
		return decideRequest(g, q)
	}
	return typeNone
}

// decideRequest tells the client's state from what it filled in, by table 4
// of RFC 2131 section 4.3.2.
//
// A client that asks for another address while it has none (SELECTING,
// INIT-REBOOT) is refused, so that it asks anew at once: no other server serves
// this link. One that uses another address (RENEWING, REBINDING) got it on
// another link before it was moved here. Its address keeps working. So it gets
// no answer, and keeps its connections until that lease ends. Of addresses that we have
// leased before, one that the host has still goes on to be the client's, whatever state it
// is in; one that the host has lost is refused: the client asks for the new one at once.
func decideRequest(g *flow.Guest, q *request) uint8 {
	our := packet.Addr(g.Our4)
	none := [4]byte{}
	client := packet.AddrFrom4(q.ciaddr)
	switch {
	case q.hasServer && q.server != our.As4():
		return typeNone // it took another server's offer
	case q.hasServer && !q.hasRequested && q.ciaddr == none:
		return typeACK // it left out what it was offered, but only we can have done so
	case q.hasRequested && q.requested != q.given.As4():
		return typeNAK
	case q.hasRequested:
		return typeACK
	case client == q.given:
		return typeACK
	case g.HasLost(&client):
		return typeNAK
	}
	return typeNone
}

// send writes an OFFER or ACK. It goes to the address that the client has, or
// else to the one that it is given, unless it cannot take that yet.
func send(g *flow.Guest, p *packet.Packet, q *request, kind uint8, out []byte) int {
	client := packet.AddrFrom4(q.ciaddr)
	lease := q.kind != typeInform
	dst := q.given
	switch {
	case isHost(&client):
		dst = client
	case !lease && isHost(&p.Src):
		dst = p.Src
	case !lease || q.flags&flagBroadcast != 0:
		dst = broadcast
	}
	r := newReply(g, q, out)
	r.setAddresses(q, kind)
	r.fill(g, q, kind)
	return r.frame(g, q, dst, out)
}

// refuse writes a NAK, which is always broadcast (RFC 2131 section 4.1): the
// client's address may be of another network.
func refuse(g *flow.Guest, q *request, out []byte) int {
	r := newReply(g, q, out)
	r.put(optionMessageType, []byte{typeNAK})
	r.putAddr(optionServerID, g.Our4)
	r.putClientID(q)
	r.put(optionMessage, refusal[:])
	return r.frame(g, q, broadcast, out)
}

// refusal is for the client's log.
var refusal = [...]byte{'n', 'o', 't', ' ', 'y', 'o', 'u', 'r', ' ', 'a', 'd', 'd', 'r', 'e', 's', 's'}

var broadcast = packet.AddrFrom4([4]byte{255, 255, 255, 255})

// frame ends the message and puts headers before it. A datagram to a client
// that has no address yet goes to its MAC address, with the address it is to
// have (RFC 2131 section 4.1).
func (r *reply) frame(g *flow.Guest, q *request, dst packet.Addr, out []byte) int {
	mac := q.mac
	if dst == broadcast {
		mac = packet.Broadcast
	}
	e := packet.Ends{SrcMAC: g.OurMAC, DstMAC: mac, Src: g.Our4, Dst: dst, DF: true}
	return packet.PutUDPFull(out, &e, serverPort, clientPort, r.end())
}

// payloadSize is how long the reply's BOOTP message may be. The client takes an
// IP packet of 576 bytes, or as many as option 57 says (RFC 2131 section 2). It
// is no more than the link carries in one frame, and never less than a whole
// BOOTP message.
func payloadSize(g *flow.Guest, q *request) int {
	if q.kind == typeNone {
		return minMessage
	}
	size := 576
	if q.maxSize > 576 {
		size = int(q.maxSize)
	}
	return max(min(size, g.LinkMTU(), 1500)-28, minMessage)
}

// putFixed writes the fixed part that every reply has, RFC 2131 table 3.
func putFixed(b []byte, q *request) {
	clear(b)
	b[0], b[1], b[2] = opReply, hardwareEthernet, 6
	copy(b[4:8], q.xid[:])
	binary.BigEndian.PutUint16(b[10:], q.flags)
	copy(b[28:34], q.mac[:])
	if q.cookie {
		copy(b[fixedSize:], magicCookie[:])
	}
}
