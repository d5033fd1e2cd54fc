// SPDX-License-Identifier: Apache-2.0

// Package igmp is the router's side of IGMP (RFC 1112, RFC 2236, RFC 3376) and of MLD
// (RFC 2710, RFC 3810): it reads which groups the guest wants to hear, and asks for them.
// Which senders of a group the guest wants is not looked at: its kernel sorts them out.
package igmp

import (
	"encoding/binary"

	"aldente/worker/packet"
)

// Types of IGMP messages, RFC 3376 section 4 and RFC 2236 section 2.1.
const (
	typeQuery   = 0x11
	typeReport1 = 0x12
	typeReport2 = 0x16
	typeLeave   = 0x17
	typeReport3 = 0x22
)

// Types of records in a report of version 3, and in one of MLD version 2: RFC 3376
// section 4.2.12, RFC 3810 section 5.2.12. Others change nothing that counts here.
const (
	modeIsInclude = 1 + iota
	modeIsExclude
	changeToInclude
	changeToExclude
	allowNewSources
)

// message describes one of the two protocols.
type message struct {
	group  int // bytes of an address
	header int // of a message, before the group that it is about
	none   int // of a record, before its group
}

var (
	message4 = message{group: 4, header: 4, none: 4}
	message6 = message{group: 16, header: 8, none: 4}
)

// recordsAt is where the records of a report begin, behind how many there are.
const recordsAt = 8

// Read reads a message from the guest, p, and tells of each group that it names whether
// the guest wants to hear it. The checksum of ICMPv6 was found right. It reports false if
// it is no report, or one that is malformed: up to there tell was called.
func Read(p *packet.Packet, tell func(group packet.Addr, wanted bool)) bool {
	b := p.Payload()
	if p.TTL != 1 || p.Fragment || len(b) < recordsAt { // RFC 3376 section 4, RFC 3810 section 5
		return false
	}
	m, typ := &message4, b[0]
	if p.IPVersion == 6 {
		if m = &message6; !p.Src.IsLinkLocal() && !p.Src.IsUnspecified() {
			return false
		}
	} else if p.Proto != packet.ProtoIGMP || packet.Fold(packet.Sum(b, 0)) != 0xffff {
		return false
	}
	switch {
	case m == &message4 && typ == typeReport3, m == &message6 && typ == packet.MLDReport2:
		return m.records(b, tell)
	case m == &message4 && (typ == typeReport1 || typ == typeReport2), m == &message6 && typ == packet.MLDReport1:
		return m.single(b, true, tell)
	case m == &message4 && typ == typeLeave, m == &message6 && typ == packet.MLDDone:
		return m.single(b, false, tell)
	}
	return false
}

// single reads a message about one group.
func (m *message) single(b []byte, wanted bool, tell func(packet.Addr, bool)) bool {
	if len(b) < m.header+m.group {
		return false
	}
	a, ok := m.addr(b[m.header:])
	if ok {
		tell(a, wanted)
	}
	return ok
}

// records reads a report of several groups.
func (m *message) records(b []byte, tell func(packet.Addr, bool)) bool {
	n := int(binary.BigEndian.Uint16(b[6:]))
	for b = b[recordsAt:]; n > 0; n-- {
		if len(b) < m.none+m.group {
			return false
		}
		sources := int(binary.BigEndian.Uint16(b[2:]))
		size := m.none + m.group + sources*m.group + int(b[1])*4
		a, ok := m.addr(b[m.none:])
		if len(b) < size || !ok {
			return false
		}
		switch b[0] {
		case modeIsExclude, changeToExclude:
			tell(a, true)
		case modeIsInclude, changeToInclude:
			tell(a, sources > 0)
		case allowNewSources:
			if sources > 0 {
				tell(a, true)
			}
		}
		b = b[size:]
	}
	return true
}

// addr reads a group's address.
func (m *message) addr(b []byte) (a packet.Addr, ok bool) {
	if m.group == 4 {
		a = packet.AddrFrom4([4]byte(b))
	} else {
		a = packet.Addr(b)
	}
	return a, a.IsMulticast()
}
