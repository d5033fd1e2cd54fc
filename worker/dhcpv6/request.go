// SPDX-License-Identifier: Apache-2.0

package dhcpv6

import (
	"encoding/binary"

	"aldente/worker/flow"
	"aldente/worker/packet"
)

// Message types, RFC 8415 section 7.3.
const (
	kindSolicit            = 1
	kindAdvertise          = 2
	kindRequest            = 3
	kindConfirm            = 4
	kindRenew              = 5
	kindRebind             = 6
	kindReply              = 7
	kindRelease            = 8
	kindDecline            = 9
	kindInformationRequest = 11
)

// Options, by RFC 8415 section 21 unless said otherwise.
const (
	optionClientID    = 1
	optionServerID    = 2
	optionIANA        = 3
	optionIATA        = 4
	optionIAAddress   = 5
	optionRequested   = 6
	optionPreference  = 7
	optionStatus      = 13
	optionRapidCommit = 14
	optionDNS         = 23 // RFC 3646
	optionSearch      = 24 // RFC 3646
	optionIAPD        = 25
	optionFQDN        = 39 // RFC 4704
)

const (
	headerSize    = 4 // type and transaction identifier
	iaSize        = 12
	iataSize      = 4
	iaAddressSize = 24
	minDUID       = 3 // section 11.1: a type and 1 to 128 bytes
	maxDUID       = 130
)

// options walks a list of options, section 21.1. It is a value: a copy walks
// on its own.
type options struct {
	rest  []byte
	code  uint16
	value []byte
	nth   int // 1 for the first option
}

// next moves to the next option and reports false behind the last one that is
// whole.
func (o *options) next() bool {
	if len(o.rest) < 4 {
		return false
	}
	end := 4 + int(binary.BigEndian.Uint16(o.rest[2:]))
	if end > len(o.rest) {
		return false
	}
	o.code = binary.BigEndian.Uint16(o.rest)
	o.value = o.rest[4:end]
	o.rest = o.rest[end:]
	o.nth++
	return true
}

// inner walks the options inside an identity association, none in any other
// option.
func (o *options) inner() options {
	size := iaSize
	switch o.code {
	case optionIANA, optionIAPD:
	case optionIATA:
		size = iataSize
	default:
		return options{}
	}
	return options{rest: o.value[min(size, len(o.value)):]}
}

// holds tells whether the IA lists the address.
func (o *options) holds(addr packet.Addr) bool {
	for a := o.inner(); a.next(); {
		if a.code == optionIAAddress && packet.Addr(a.value[:16]) == addr {
			return true
		}
	}
	return false
}

// misplaced tells whether the IA lists an address of another link than ours.
func (o *options) misplaced(g *flow.Guest) bool {
	if g.Addr6 == [16]byte{} {
		return false
	}
	for a := o.inner(); a.next(); {
		if a.code == optionIAAddress && !onLink(g, packet.Addr(a.value[:16])) {
			return true
		}
	}
	return false
}

// request is what a client's message says. Slices are views of the frame.
type request struct {
	kind      uint8
	id        [3]byte
	options   []byte
	clientID  []byte // nil: none
	serverID  []byte // nil: none
	ia        bool   // there is an identity association
	rapid     bool
	fqdn      bool // option 39 was sent or asked for
	fqdnFlags uint8
}

// parse reads a message and its options, those inside identity associations
// too. It reports false if it is malformed.
func (q *request) parse(b []byte) bool {
	if len(b) < headerSize {
		return false
	}
	q.kind = b[0]
	q.id = [3]byte(b[1:4])
	q.options = b[headerSize:]
	o := options{rest: q.options}
	for o.next() {
		if !q.note(&o) {
			return false
		}
	}
	return len(o.rest) == 0
}

// note takes in one option.
func (q *request) note(o *options) bool {
	v := o.value
	switch o.code {
	case optionClientID:
		if q.clientID != nil || len(v) < minDUID || len(v) > maxDUID {
			return false
		}
		q.clientID = v
	case optionServerID:
		if q.serverID != nil || len(v) < minDUID || len(v) > maxDUID {
			return false
		}
		q.serverID = v
	case optionIANA, optionIAPD:
		q.ia = true
		return len(v) >= iaSize && innerOK(o)
	case optionIATA:
		q.ia = true
		return len(v) >= iataSize && innerOK(o)
	case optionRapidCommit:
		q.rapid = true
	case optionFQDN:
		if len(v) == 0 {
			return false
		}
		q.fqdn, q.fqdnFlags = true, v[0]
	case optionRequested:
		if len(v)%2 != 0 {
			return false
		}
		for ; len(v) > 0; v = v[2:] {
			q.fqdn = q.fqdn || binary.BigEndian.Uint16(v) == optionFQDN
		}
	}
	return true
}

// innerOK checks the options inside an identity association.
func innerOK(o *options) bool {
	a := o.inner()
	for a.next() {
		if a.code == optionIAAddress && len(a.value) < iaAddressSize {
			return false
		}
	}
	return len(a.rest) == 0
}

// admissible applies the rules of section 16 on who must name whom.
func (q *request) admissible(g *flow.Guest) bool {
	duid := serverDUID(g)
	forUs := string(q.serverID) == string(duid[:])
	switch q.kind {
	case kindSolicit, kindConfirm, kindRebind:
		return q.clientID != nil && q.serverID == nil
	case kindRequest, kindRenew, kindRelease, kindDecline:
		return q.clientID != nil && forUs
	case kindInformationRequest:
		return (q.serverID == nil || forUs) && !q.ia
	}
	return false
}
