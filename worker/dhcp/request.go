// SPDX-License-Identifier: Apache-2.0

package dhcp

import (
	"encoding/binary"

	"aldente/worker/packet"
)

// The BOOTP message, RFC 2131 section 2: 236 bytes of fixed fields, then the
// cookie and the options.
const (
	opRequest        = 1
	opReply          = 2
	hardwareEthernet = 1
	flagBroadcast    = 0x8000

	fixedSize  = 236
	cookieSize = 4
	minMessage = 300 // RFC 951, and what old clients insist on
	snameStart = 44  // of 64 bytes
	fileStart  = 108 // of 128 bytes
)

var magicCookie = [cookieSize]byte{99, 130, 83, 99}

// Options, by RFC 2132 unless said otherwise.
const (
	optionPad           = 0
	optionMask          = 1
	optionRouter        = 3
	optionDNS           = 6
	optionHostname      = 12
	optionDomain        = 15
	optionMTU           = 26
	optionRequested     = 50
	optionLease         = 51
	optionOverload      = 52
	optionMessageType   = 53
	optionServerID      = 54
	optionParameters    = 55
	optionMessage       = 56
	optionMaxSize       = 57
	optionRenewal       = 58
	optionRebinding     = 59
	optionClientID      = 61
	optionRapidCommit   = 80  // RFC 4039
	optionFQDN          = 81  // RFC 4702
	optionSearch        = 119 // RFC 3397
	optionClasslessPath = 121 // RFC 3442
	optionEnd           = 255
)

// request is what a client's message says.
type request struct {
	kind   uint8 // message type, typeNone for BOOTP
	cookie bool  // the options area is one
	xid    [4]byte
	flags  uint16
	ciaddr [4]byte
	mac    packet.MAC

	requested, server       [4]byte
	hasRequested, hasServer bool
	rapid                   bool
	maxSize                 uint16 // 0: not given
	fqdnFlags               uint8
	hasFQDN                 bool

	given packet.Addr // what it gets, which is not the client's to say

	clientID  [255]byte
	nClientID int
	wanted    [255]byte // parameter request list
	nWanted   int
}

// areas are the parts of a message that hold options, in the order of
// RFC 3396 section 5.
type areas [3][]byte

// parse reads a message. It reports false for what is no request from a
// client on Ethernet, or is malformed.
func (q *request) parse(b []byte) bool {
	if len(b) < fixedSize || b[0] != opRequest || b[1] != hardwareEthernet || b[2] != 6 {
		return false
	}
	if giaddr := [4]byte(b[24:28]); giaddr != [4]byte{} {
		return false
	}
	q.xid = [4]byte(b[4:8])
	q.flags = binary.BigEndian.Uint16(b[10:]) & flagBroadcast
	q.ciaddr = [4]byte(b[12:16])
	q.mac = packet.MAC(b[28:34])
	if q.mac.IsZero() || q.mac.IsGroup() {
		return false
	}
	if len(b) < fixedSize+cookieSize || [cookieSize]byte(b[fixedSize:]) != magicCookie {
		return true // BOOTP with a vendor area of its own
	}
	q.cookie = true
	a := areas{b[fixedSize+cookieSize:]}
	return a.overload(b) && q.options(&a)
}

// overload adds the fields that hold options as well.
func (a *areas) overload(b []byte) bool {
	var v [1]byte
	if !wellFormed(a[0]) {
		return false
	}
	n, ok := a.gather(optionOverload, v[:])
	switch {
	case n < 0:
		return true
	case !ok || n != 1 || v[0] < 1 || v[0] > 3:
		return false
	}
	if v[0]&1 != 0 {
		a[1] = b[fileStart:fixedSize]
	}
	if v[0]&2 != 0 {
		a[2] = b[snameStart:fileStart]
	}
	return wellFormed(a[1]) && wellFormed(a[2])
}

// options reads what we act upon. An option of the wrong length makes the
// message malformed.
func (q *request) options(a *areas) bool {
	var v [4]byte
	var fqdn [3]byte // flags and two deprecated codes; the name is not ours to follow
	n, ok := a.gather(optionMessageType, v[:1])
	if n >= 0 && (!ok || n != 1 || v[0] == 0) {
		return false
	}
	q.kind = v[0]
	if n, ok = a.gather(optionRequested, q.requested[:]); n >= 0 && (!ok || n != 4) {
		return false
	}
	q.hasRequested = n == 4
	if n, ok = a.gather(optionServerID, q.server[:]); n >= 0 && (!ok || n != 4) {
		return false
	}
	q.hasServer = n == 4
	if n, ok = a.gather(optionMaxSize, v[:2]); n >= 0 {
		if !ok || n != 2 {
			return false
		}
		q.maxSize = binary.BigEndian.Uint16(v[:])
	}
	n, _ = a.gather(optionRapidCommit, nil)
	q.rapid = n >= 0
	n, _ = a.gather(optionFQDN, fqdn[:])
	q.fqdnFlags, q.hasFQDN = fqdn[0], n == len(fqdn)
	n, _ = a.gather(optionParameters, q.wanted[:])
	q.nWanted = max(n, 0)
	if n, ok = a.gather(optionClientID, q.clientID[:]); ok {
		q.nClientID = max(n, 0)
	}
	return true
}

// wellFormed tells whether each option ends within the area. The end option
// is not insisted on.
func wellFormed(b []byte) bool {
	for len(b) > 0 && b[0] != optionEnd {
		n := 1
		if b[0] != optionPad {
			if len(b) < 2 || 2+int(b[1]) > len(b) {
				return false
			}
			n = 2 + int(b[1])
		}
		b = b[n:]
	}
	return true
}

// gather puts together all parts of an option (RFC 3396) and returns the
// number of bytes in v, -1 if there is no such option. ok is false if v was
// too short. The areas must be well-formed.
func (a *areas) gather(code uint8, v []byte) (n int, ok bool) {
	n, ok = -1, true
	for _, b := range a {
		for len(b) > 0 && b[0] != optionEnd {
			if b[0] == optionPad {
				b = b[1:]
				continue
			}
			if b[0] == code {
				part := b[2 : 2+int(b[1])]
				n = max(n, 0)
				ok = ok && len(part) <= len(v)-n
				n += copy(v[n:], part)
			}
			b = b[2+int(b[1]):]
		}
	}
	return n, ok
}
