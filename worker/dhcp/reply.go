// SPDX-License-Identifier: Apache-2.0

package dhcp

import (
	"encoding/binary"

	"aldente/ipc"
	"aldente/worker/flow"
	"aldente/worker/packet"
)

const leaseForever = 0xffffffff // RFC 2131 section 3.3

// Flags of the FQDN option, RFC 4702 section 2.1.
const (
	fqdnServerUpdates = 1 << 0
	fqdnOverride      = 1 << 1
	fqdnEncoded       = 1 << 2 // the name is in DNS wire format
	fqdnNoUpdates     = 1 << 3
)

// reply is a message being written.
type reply struct {
	b    []byte // what the message may occupy
	n    int    // bytes written
	sent [256]bool
}

// newReply starts a message in its place in the frame out.
func newReply(g *flow.Guest, q *request, out []byte) reply {
	r := reply{b: out[headers : headers+payloadSize(g, q)], n: fixedSize}
	putFixed(r.b, q)
	if q.cookie {
		r.n += cookieSize
	}
	return r
}

// setAddresses fills in the address that is leased, and the one that the
// client said it has, as RFC 2131 table 3 wants it.
func (r *reply) setAddresses(q *request, kind uint8) {
	if kind == typeACK {
		copy(r.b[12:16], q.ciaddr[:])
	}
	if q.kind != typeInform {
		copy(r.b[16:20], q.given[12:])
	}
}

// end closes the options and returns the message, padded to its least length.
func (r *reply) end() []byte {
	if r.n > fixedSize {
		r.b[r.n] = optionEnd
		r.n++
	}
	return r.b[:max(r.n, minMessage)]
}

// room is the number of bytes left for options, one for the end kept back.
func (r *reply) room() int { return len(r.b) - r.n - 1 }

// put adds an option, in several parts if it is longer than one can be
// (RFC 3396). It is left out if it does not fit or is there already.
func (r *reply) put(code uint8, v []byte) {
	parts := max((len(v)+254)/255, 1)
	if r.sent[code] || len(v)+2*parts > r.room() {
		return
	}
	r.sent[code] = true
	for range parts {
		part := v[:min(len(v), 255)]
		v = v[len(part):]
		r.b[r.n], r.b[r.n+1] = code, uint8(len(part))
		r.n += 2 + copy(r.b[r.n+2:], part)
	}
}

func (r *reply) putAddr(code uint8, a packet.Addr) {
	v := a.As4()
	r.put(code, v[:])
}

// putClientID returns the client's identifier, as RFC 6842 demands.
func (r *reply) putClientID(q *request) {
	if q.nClientID > 0 {
		r.put(optionClientID, q.clientID[:q.nClientID])
	}
}

// fill adds all options: first what makes the message what it is, then what
// the client asked for in its order of preference, then what else there is. So
// if room is short, what the client wants least is missing.
func (r *reply) fill(g *flow.Guest, q *request, kind uint8) {
	if !q.cookie {
		return // BOOTP with a vendor area whose format we do not know
	}
	if q.kind != typeNone {
		r.put(optionMessageType, []byte{kind})
		r.putAddr(optionServerID, g.Our4)
		if q.kind != typeInform {
			r.putLease(g)
		}
		if q.kind == typeDiscover && q.rapid {
			r.put(optionRapidCommit, nil)
		}
		r.putClientID(q)
	}
	r.add(g, q, optionMask) // before the router, RFC 2132 section 3.3
	for _, code := range q.wanted[:q.nWanted] {
		r.add(g, q, code)
	}
	for _, code := range [...]uint8{
		optionClasslessPath, optionRouter, optionDNS, optionHostname, optionMTU, optionFQDN, optionSearch,
	} {
		r.add(g, q, code)
	}
}

// putLease says for how long the address is the client's. One that may change is to be
// asked for again soon (T1); without an answer it is good for long (T2, RFC 2131 section
// 4.4.5).
func (r *reply) putLease(g *flow.Guest) {
	put := func(code uint8, seconds uint32) {
		var v [4]byte
		binary.BigEndian.PutUint32(v[:], seconds)
		r.put(code, v[:])
	}
	if g.Lease == 0 {
		put(optionLease, leaseForever)
		return
	}
	put(optionLease, g.Lease)
	put(optionRenewal, g.Renew)
	put(optionRebinding, max(g.Lease-g.Lease/8, g.Renew))
}

// add adds one option of configuration, if we have anything to say on it.
func (r *reply) add(g *flow.Guest, q *request, code uint8) {
	if r.sent[code] {
		return
	}
	switch code {
	case optionMask:
		mask := mask4(g)
		r.put(code, mask[:])
	case optionRouter:
		r.putAddr(code, g.Our4)
	case optionDNS:
		r.putResolvers(g)
	case optionHostname:
		if g.Hostname.Len > 0 {
			r.put(code, name(&g.Hostname))
		}
	case optionDomain:
		if d := domain(g); len(d) > 0 {
			r.put(code, d)
		}
	case optionMTU:
		if g.MTU >= 68 { // RFC 2132 section 5.1
			r.put(code, []byte{uint8(g.MTU >> 8), uint8(g.MTU)})
		}
	case optionFQDN:
		r.putFQDN(g, q)
	case optionSearch:
		r.putSearch(g)
	case optionClasslessPath:
		r.putRoutes(g, q)
	}
}

// name returns the bytes of n.
func name(n *ipc.Name) []byte { return n.Bytes[:min(int(n.Len), ipc.MaxDomain)] }

// domain is what the guest's own name is completed with: what follows its
// host part, or else the first domain of the search list.
func domain(g *flow.Guest) []byte {
	fqdn := trimDot(name(&g.FQDN))
	for i := range fqdn {
		if fqdn[i] == '.' {
			return fqdn[i+1:]
		}
	}
	if g.NSearch > 0 {
		return trimDot(name(&g.Search[0]))
	}
	return nil
}

func trimDot(b []byte) []byte {
	if len(b) > 0 && b[len(b)-1] == '.' {
		return b[:len(b)-1]
	}
	return b
}

func mask4(g *flow.Guest) (m [4]byte) {
	binary.BigEndian.PutUint32(m[:], ^uint32(0)<<(32-min(g.Prefix4, 32)))
	return m
}

func (r *reply) putResolvers(g *flow.Guest) {
	var v [4 * ipc.MaxDNS]byte
	n := 0
	for i := range min(int(g.NDNS4), ipc.MaxDNS) {
		n += copy(v[n:], g.DNS4[i][12:])
	}
	if n > 0 {
		r.put(optionDNS, v[:n])
	}
}

// putRoutes adds a route to the gateway and the default route through it. It
// does so where the gateway is not on the guest's subnet: the router option
// alone would not reach it.
func (r *reply) putRoutes(g *flow.Guest, q *request) {
	our := packet.Addr(g.Our4)
	a, o, mask := q.given.As4(), our.As4(), mask4(g)
	m := binary.BigEndian.Uint32(mask[:])
	if (binary.BigEndian.Uint32(a[:])^binary.BigEndian.Uint32(o[:]))&m == 0 {
		return
	}
	v := [14]byte{0: 32, 9: 0}
	copy(v[1:5], o[:])   // the gateway itself, by router 0.0.0.0: on the link
	copy(v[10:14], o[:]) // 0.0.0.0/0 by the gateway
	r.put(optionClasslessPath, v[:])
}

// putFQDN adds the client's name in the encoding that the client uses. We
// update no DNS, and say so.
func (r *reply) putFQDN(g *flow.Guest, q *request) {
	if g.FQDN.Len == 0 || q.kind == typeNone {
		return
	}
	v := [3 + ipc.MaxDomain + 2]byte{fqdnNoUpdates, 255, 255}
	if q.hasFQDN && q.fqdnFlags&fqdnServerUpdates != 0 {
		v[0] |= fqdnOverride
	}
	fqdn := name(&g.FQDN)
	if q.hasFQDN && q.fqdnFlags&fqdnEncoded == 0 {
		r.put(optionFQDN, v[:3+copy(v[3:], trimDot(fqdn))])
		return
	}
	v[0] |= fqdnEncoded
	if n := putName(v[:], 3, fqdn, false); n > 3 {
		r.put(optionFQDN, v[:n])
	}
}
