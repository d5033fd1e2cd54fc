// SPDX-License-Identifier: Apache-2.0

package dhcpv6

import (
	"encoding/binary"

	"aldente/ipc"
	"aldente/worker/flow"
	"aldente/worker/packet"
)

// Status codes, RFC 8415 section 21.13.
const (
	statusSuccess       = 0
	statusNoAddrsAvail  = 2
	statusNoBinding     = 3
	statusNotOnLink     = 4
	statusUseMulticast  = 5
	statusNoPrefixAvail = 6

	statusNone = 0xffff // not a code: nothing to say
)

const (
	forever  = 0xffffffff // a lifetime, section 7.7
	duidSize = 14
	duidLLT  = 1 // DUID-LLT, section 11.2
	ethernet = 1 // hardware type
)

// Flags of the FQDN option, RFC 4704 section 4.1.
const (
	fqdnServerUpdates = 1 << 0
	fqdnOverride      = 1 << 1
	fqdnNoUpdates     = 1 << 2
)

var maxPreference = [1]byte{255}

// serverDUID is our identifier. It depends on the configuration alone.
func serverDUID(g *flow.Guest) (d [duidSize]byte) {
	binary.BigEndian.PutUint16(d[0:], duidLLT)
	binary.BigEndian.PutUint16(d[2:], ethernet)
	binary.BigEndian.PutUint32(d[4:], g.DUIDTime)
	copy(d[8:], g.OurMAC[:])
	return d
}

// reply is a message being written.
type reply struct {
	b []byte // what the message may occupy
	n int    // bytes written
}

// newReply starts a message in its place in the frame out, with the options
// that every reply has. It is as long as one packet on the link can be.
func newReply(g *flow.Guest, q *request, out []byte) reply {
	size := min(max(g.LinkMTU(), minMTU), 1500) - (headers - packet.EthernetLen)
	r := reply{b: out[headers : headers+size], n: headerSize}
	r.b[0] = kindReply
	copy(r.b[1:], q.id[:])
	duid := serverDUID(g)
	r.put(optionServerID, duid[:])
	if q.clientID != nil {
		r.put(optionClientID, q.clientID)
	}
	return r
}

// put adds an option, unless there is no room for it.
func (r *reply) put(code uint16, v []byte) {
	if r.open(code, len(v)) {
		r.n += copy(r.b[r.n:], v)
	}
}

// open writes an option's head if it has room, and leaves the value to the
// caller.
func (r *reply) open(code uint16, size int) bool {
	if r.n+4+size > len(r.b) {
		return false
	}
	binary.BigEndian.PutUint16(r.b[r.n:], code)
	binary.BigEndian.PutUint16(r.b[r.n+2:], uint16(size))
	r.n += 4
	return true
}

// putStatus adds a status code without a text.
func (r *reply) putStatus(code uint16) {
	r.put(optionStatus, []byte{uint8(code >> 8), uint8(code)})
}

// putRefusal answers an identity association with a status alone.
func (r *reply) putRefusal(o *options, code uint16) {
	size := iaSize
	if o.code == optionIATA {
		size = iataSize
	}
	if !r.open(o.code, size+4+2) {
		return
	}
	clear(r.b[r.n : r.n+size])
	copy(r.b[r.n:r.n+4], o.value) // IAID
	r.n += size
	r.putStatus(code)
}

// putLease answers an identity association with the guest's address. Where
// the client wants to keep addresses that are not its own any more, their
// lifetimes end (sections 18.3.4 and 18.3.5).
func (r *reply) putLease(g *flow.Guest, o *options, extending bool) {
	start := r.n
	if !r.open(optionIANA, iaSize+4+iaAddressSize) {
		return
	}
	v := r.b[r.n:]
	copy(v[:4], o.value) // IAID
	life, renew, rebind := uint32(forever), uint32(forever), uint32(forever)
	if g.Lease != 0 {
		life, renew, rebind = g.Lease, g.Renew, max(g.Lease-g.Lease/8, g.Renew)
	}
	binary.BigEndian.PutUint32(v[4:], renew)
	binary.BigEndian.PutUint32(v[8:], rebind)
	r.n += iaSize
	r.putAddress(g.Addr6, life, life)
	if extending {
		for a := o.inner(); a.next(); {
			if addr := packet.Addr(a.value[:16]); a.code == optionIAAddress && addr != g.Addr6 {
				r.putAddress(addr, 0, remaining(g, addr, life))
			}
		}
	}
	binary.BigEndian.PutUint16(r.b[start+2:], uint16(r.n-start-4))
}

// remaining is for how long an address may be used that the guest had before: as long as
// the host has it, for what there is.
func remaining(g *flow.Guest, addr packet.Addr, life uint32) uint32 {
	if g.Keeps(&addr) {
		return life
	}
	return 0
}

// putAddress adds an address with its lifetimes in seconds: for new connections, and for
// those that there are.
func (r *reply) putAddress(addr packet.Addr, preferred, valid uint32) {
	var v [iaAddressSize]byte
	copy(v[:], addr[:])
	binary.BigEndian.PutUint32(v[16:], preferred)
	binary.BigEndian.PutUint32(v[20:], valid)
	r.put(optionIAAddress, v[:])
}

// putConfiguration adds what is not about addresses, whether or not the client
// listed it: what it does not want, it ignores. Only the FQDN is kept from
// clients that know nothing of it (RFC 4704 section 6).
func (r *reply) putConfiguration(g *flow.Guest, q *request) {
	if count := min(int(g.NDNS6), ipc.MaxDNS); count > 0 && r.open(optionDNS, 16*count) {
		for i := range count {
			r.n += copy(r.b[r.n:], g.DNS6[i][:])
		}
	}
	if q.fqdn && g.FQDN.Len > 0 {
		r.putFQDN(g, q)
	}
	r.putSearch(g)
}

// putFQDN adds the client's name. We update no DNS, and say so.
func (r *reply) putFQDN(g *flow.Guest, q *request) {
	var v [1 + ipc.MaxDomain + 2]byte
	v[0] = fqdnNoUpdates
	if q.fqdnFlags&fqdnServerUpdates != 0 {
		v[0] |= fqdnOverride
	}
	if n := packet.PutName(v[1:], name(&g.FQDN)); n > 0 {
		r.put(optionFQDN, v[:1+n])
	}
}

// putSearch adds the search list, without the domains for which no room is
// left.
func (r *reply) putSearch(g *flow.Guest) {
	start := r.n
	if !r.open(optionSearch, 0) {
		return
	}
	for i := range min(int(g.NSearch), ipc.MaxSearch) {
		r.n += packet.PutName(r.b[r.n:], name(&g.Search[i]))
	}
	if r.n == start+4 {
		r.n = start // no domain: no option
		return
	}
	binary.BigEndian.PutUint16(r.b[start+2:], uint16(r.n-start-4))
}

// name returns the bytes of n.
func name(n *ipc.Name) []byte { return n.Bytes[:min(int(n.Len), ipc.MaxDomain)] }
