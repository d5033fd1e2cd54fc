// SPDX-License-Identifier: Apache-2.0

// Package packet reads and writes Ethernet frames: ARP, IPv4, IPv6 with its
// extension headers, TCP, UDP, ICMP and ICMPv6.
//
// Everything that is read comes from a hostile guest. A decoder checks every
// length before it looks behind it, returns a sentinel error for what it
// refuses, and neither panics nor allocates. What it returns are views: slices
// of the frame it was given. Only Reassembler keeps state, in memory of its own.
//
// A frame may come in two parts: a beginning with all headers, which nobody else
// writes to, and payload that lies elsewhere and may change at any time
// (DecodeSplit). Nothing is decided by what the second part holds.
//
// Builders write to a buffer of the caller's, which must be big enough, and
// panic where it is not: the sizes are the caller's own, never the guest's.
package packet

import "errors"

// EthernetLen is the length of an Ethernet header without VLAN tag, in bytes.
const EthernetLen = 14

// MaxHeaders bounds the headers that PutTCP and PutUDP write, and the scratch
// space that fragmenting needs, in bytes.
const MaxHeaders = 160

// Values of the Ethernet type field, IANA's "IEEE 802 Numbers".
const (
	EtherTypeIPv4 = 0x0800
	EtherTypeARP  = 0x0806
	EtherTypeIPv6 = 0x86dd
)

// Protocol and extension header numbers, IANA's "Assigned Internet Protocol
// Numbers".
const (
	ProtoHopByHop = 0 // IPv6 only, RFC 8200 section 4.3
	ProtoICMP     = 1
	ProtoIGMP     = 2 // IPv4 only
	ProtoTCP      = 6
	ProtoUDP      = 17
	ProtoRouting  = 43 // RFC 8200 section 4.4
	ProtoFragment = 44 // RFC 8200 section 4.5
	ProtoICMPv6   = 58
	ProtoNone     = 59 // RFC 8200 section 4.7: nothing follows
	ProtoDestOpts = 60 // RFC 8200 section 4.6
)

// ICMP types, RFC 792.
const (
	ICMPEchoReply       = 0
	ICMPDestUnreachable = 3
	ICMPEchoRequest     = 8
	ICMPTimeExceeded    = 11
	ICMPParamProblem    = 12
)

// Codes of ICMPDestUnreachable, RFC 792 and RFC 1812 section 5.2.7.1.
const (
	ICMPNetUnreachable   = 0
	ICMPHostUnreachable  = 1
	ICMPProtoUnreachable = 2
	ICMPPortUnreachable  = 3
	ICMPFragNeeded       = 4 // RFC 1191: info holds the next hop's MTU
	ICMPAdminProhibited  = 13
)

// ICMPv6 types, RFC 4443 and RFC 4861.
const (
	ICMPv6DestUnreachable = 1
	ICMPv6PacketTooBig    = 2 // info holds the next hop's MTU
	ICMPv6TimeExceeded    = 3
	ICMPv6ParamProblem    = 4 // info holds an offset into the packet
	ICMPv6EchoRequest     = 128
	ICMPv6EchoReply       = 129
	ICMPv6RouterSolicit   = 133
	ICMPv6RouterAdvert    = 134
	ICMPv6NeighborSolicit = 135
	ICMPv6NeighborAdvert  = 136
	ICMPv6Redirect        = 137
)

// Types of ICMPv6 messages about groups, RFC 2710 section 3.1 and RFC 3810 section 5.
const (
	MLDQuery   = 130
	MLDReport1 = 131
	MLDDone    = 132
	MLDReport2 = 143
)

// Codes of ICMPv6DestUnreachable, RFC 4443 section 3.1.
const (
	ICMPv6NoRoute         = 0
	ICMPv6AdminProhibited = 1
	ICMPv6AddrUnreachable = 3
	ICMPv6PortUnreachable = 4
)

// ICMPv6UnknownHeader is the code of ICMPv6ParamProblem that says that nobody knows the
// Next Header value which its pointer leads to, RFC 4443 section 3.4.
const ICMPv6UnknownHeader = 1

// What decoders refuse. They are compared with ==, never wrapped.
var (
	ErrTruncated      = errors.New("packet: shorter than its headers say")
	ErrVersion        = errors.New("packet: IP version does not match the Ethernet type")
	ErrHeaderLength   = errors.New("packet: impossible header length")
	ErrHeaderChecksum = errors.New("packet: IPv4 header checksum")
	ErrExtension      = errors.New("packet: IPv6 extension header misplaced, or too many")
	ErrOption         = errors.New("packet: IPv6 option that may not be skipped")
	ErrRouting        = errors.New("packet: IPv6 routing header with segments left")
	ErrFragment       = errors.New("packet: impossible fragment")
	ErrMapped         = errors.New("packet: IPv4-mapped address in an IPv6 header")
	ErrARP            = errors.New("packet: not ARP for IPv4 over Ethernet")
)
