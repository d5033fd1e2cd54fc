// SPDX-License-Identifier: Apache-2.0

package ipc

import (
	"encoding/binary"
	"fmt"
)

// Kinds of records between the broker and aldente-names, which reads the guest's
// questions for names. Numbers 8 to 15 of each bank are those of flows whose first
// bytes it looks at.
const (
	// Broker to names.
	NamesKindConfig   Kind = 0x200 + iota // NamesConfig
	NamesKindRule                         // NamesRule: one of a set that NamesRules ends
	NamesKindRules                        // NamesRules: the set is complete, and in force
	NamesKindStart                        // Empty: start-up is over; with the end of a channel for notes
	NamesKindClient                       // Client, with its socket
	NamesKindUpstream                     // Upstream, with the socket if Errno is zero
	NamesKindGranted                      // Granted
	NamesKindForget                       // Empty: what Granted said of other addresses counts no more
)

const (
	// Names to broker.
	NamesKindReady   Kind = 0x280 + iota // Empty: confined, start-up records read, answering
	NamesKindDial                        // Dial
	NamesKindNamed                       // Named
	NamesKindRefused                     // Refused
	NamesKindCounted                     // Counted
	NamesKindClosed                      // Closed
)

// Limits of these records.
const (
	MaxResolvers = 8         // that are asked
	MaxNameRules = 1 << 12   // rules by name
	MaxAliases   = 8         // names that one leads to, in one Named
	MaxNamed     = 64        // addresses in one Named
	MaxTTL       = 1<<31 - 1 // seconds, RFC 2181 section 8
)

// NamesConfig is the first record that a names process gets.
type NamesConfig struct {
	Flags     uint32          // Names*
	Resolvers uint8           // how many there are to ask, by numbers from zero; up to MaxResolvers
	NSearch   uint8           // search domains that count, up to MaxSearch
	Reserved  [2]uint8        // zero
	Search    [MaxSearch]Name // that the guest is told of
}

// Flags of NamesConfig.
const (
	NamesNXDOMAIN = 1 << iota // a name that is refused does not exist (RCODE 3), instead of REFUSED (5)
	NamesAudit                // tell of all names, those that are allowed too; refuse none
	NamesDebug                // log at debug level
	NamesHellos               // hellos are looked at: nobody is to be told how to encrypt one

	namesFlags = 1<<iota - 1
)

// NamesRule is one rule by name, in the order in which they are asked.
type NamesRule struct {
	Index   uint16 // in its set, from zero
	Flags   uint8  // NameRule*
	Zero    uint8  // zero
	Pattern Name   // as package domain writes patterns: "example.org", "*.example.org"
}

// Flags of NamesRule.
const (
	NameRuleAllow = 1 << iota // otherwise it denies
	NameRulePorts             // it is about some ports or one protocol only

	nameRuleFlags = 1<<iota - 1
)

// NamesRules ends a set of NamesRule, and puts it in the place of the one before.
type NamesRules struct {
	Count   uint16 // of the rules, up to MaxNameRules
	Default uint8  // 1: what no rule fits is looked up, too
	Zero    uint8  // zero
}

// Client brings a socket from which a guest's questions come: the end of a pair on
// the host's loopback, connected to the other end, which the worker has.
type Client struct {
	ID    uint32 // never zero, and never the same again
	Proto uint8  // ProtoTCP or ProtoUDP
	Zero  uint8  // zero
	Port  uint16 // that the socket has, never zero
}

// Closed tells that names has closed a client's socket by itself, of UDP: the worker does
// not see that, and its guest would go on asking.
type Closed struct {
	Port uint16 // as in Client, never zero
	Zero uint16 // zero
}

// Dial asks for a socket that is connected to a resolver, port 53.
type Dial struct {
	Seq      uint32 // returned in Upstream; means nothing to the broker
	Resolver uint8  // number
	Proto    uint8  // ProtoTCP or ProtoUDP
	Zero     uint16 // zero
}

// DialSize is the encoded size of Dial, header included.
const DialSize = HeaderSize + 8

// Upstream answers Dial. The connect of TCP may not have ended.
type Upstream struct {
	Seq      uint32 // as in Dial
	Resolver uint8  // as in Dial
	Proto    uint8  // as in Dial
	Errno    uint16 // zero: the socket comes with this record
}

// Refused tells that a name is not looked up. It is for logs, and its limiter's.
type Refused struct {
	Type uint16 // of the question, RFC 1035 section 3.2.2
	Why  uint8  // Refused*
	Zero uint8  // zero
	Name Name   // the question's, in letters that need no care
}

// Reasons of Refused.
const (
	RefusedByRule  = 1 + iota // a rule by name denies it
	RefusedDefault            // no rule by name fits, and others are not looked up
	RefusedAlias              // it leads to a name that is denied
	RefusedAddress            // none of its addresses may be reached
	RefusedType               // questions of this type are not passed on
	NotRefused                // NamesAudit: it was looked up

	refusals
)

// Counted tells what was counted since the last one. It is for people.
type Counted struct {
	Questions uint64 // of clients
	Refused   uint64 // of them, by a rule
	Cached    uint64 // answered from the cache
	Asked     uint64 // datagrams and streams to resolvers
	Failed    uint64 // questions without an answer in time
	Forged    uint64 // datagrams that were no answer to what was asked
}

// Named asks the broker which addresses of a name the guest may be told of. It
// notes those, and that the guest may connect there for as long. What the guest is told at
// once, since the broker's word is known, comes by the channel for notes, which has nothing
// else: the broker is not woken by it, and looks there before it decides on a connection.
type Named struct {
	Seq     uint32             // returned in Granted; means nothing to the broker
	TTL     uint32             // seconds that the guest may keep them
	Type    uint16             // of the question
	Name    Name               // that was asked for, canonical as package domain has names
	Aliases uint8              // how many follow
	Count   uint8              // addresses
	Alias   [MaxAliases]Name   // names that the first leads to; beyond Aliases: empty
	Addr    [MaxNamed][16]byte // beyond Count: zero
}

// NamedSize is the encoded size of Named, header included.
const NamedSize = HeaderSize + 4 + 4 + 2 + 2 + (1+MaxAliases)*nameSize + MaxNamed*16

// nameSize is that of Name.
const nameSize = 1 + MaxDomain

// Granted answers Named, whichever way that has come.
type Granted struct {
	Seq  uint32 // as in Named
	Zero uint32 // zero
	Mask uint64 // bit i: address i may be told
	// Around says of an address that may be told how far that holds without asking, for
	// names that the same rules by name fit: for what Around tells with that number.
	// Zero: not at all.
	Around [MaxNamed]uint8
}

// GrantedSize is the encoded size of Granted, header included.
const GrantedSize = HeaderSize + 16 + MaxNamed

// Around tells whether what holds around an address, for so many bits of 16 bytes, holds for
// another. An address of ISATAP (RFC 5214 section 6.1) is judged by what it holds.
func Around(a [16]byte, bits uint8, other [16]byte) bool {
	if bits == 0 || bits < 128 && other[8]&^2 == 0 && other[9] == 0 && other[10] == 0x5e && other[11] == 0xfe {
		return false
	}
	whole := int(bits / 8)
	if [16]byte(a) == other {
		return true
	}
	for i := range min(whole, len(a)) {
		if a[i] != other[i] {
			return false
		}
	}
	return whole < len(a) && (a[whole]^other[whole])>>(8-bits%8) == 0
}

// Encode returns the record.
func (c *NamesConfig) Encode() []byte { return encodeFixed(NamesKindConfig, c) }

// Decode reads exactly one record and checks its ranges.
func (c *NamesConfig) Decode(b []byte) error {
	if err := decodeFixed(b, NamesKindConfig, c); err != nil {
		return err
	}
	if c.Flags&^namesFlags != 0 || c.Resolvers > MaxResolvers || c.NSearch > MaxSearch || c.Reserved != [2]uint8{} {
		return fmt.Errorf("%w: %d resolvers, flags %#x", ErrMalformed, c.Resolvers, c.Flags)
	}
	for i := range c.Search {
		if used := i < int(c.NSearch); used && !c.Search[i].plain(false) || !used && c.Search[i] != (Name{}) {
			return fmt.Errorf("%w: search domain %d", ErrMalformed, i)
		}
	}
	return nil
}

// Encode returns the record.
func (r *NamesRule) Encode() []byte { return encodeFixed(NamesKindRule, r) }

// Decode reads exactly one record and checks its ranges; whether its pattern is one is
// for package domain to say.
func (r *NamesRule) Decode(b []byte) error {
	if err := decodeFixed(b, NamesKindRule, r); err != nil {
		return err
	}
	if r.Index >= MaxNameRules || r.Flags&^nameRuleFlags != 0 || r.Zero != 0 || !r.Pattern.plain(false) {
		return fmt.Errorf("%w: rule %d, flags %#x", ErrMalformed, r.Index, r.Flags)
	}
	return nil
}

// Encode returns the record.
func (r *NamesRules) Encode() []byte { return encodeFixed(NamesKindRules, r) }

// Decode reads exactly one record and checks its ranges.
func (r *NamesRules) Decode(b []byte) error {
	if err := decodeFixed(b, NamesKindRules, r); err != nil {
		return err
	}
	if r.Count > MaxNameRules || r.Default > 1 || r.Zero != 0 {
		return fmt.Errorf("%w: %d rules", ErrMalformed, r.Count)
	}
	return nil
}

// Encode returns the record.
func (c *Client) Encode() []byte { return encodeFixed(NamesKindClient, c) }

// Decode reads exactly one record and checks its ranges.
func (c *Client) Decode(b []byte) error {
	if err := decodeFixed(b, NamesKindClient, c); err != nil {
		return err
	}
	if c.ID == 0 || c.Port == 0 || c.Proto != ProtoTCP && c.Proto != ProtoUDP || c.Zero != 0 {
		return fmt.Errorf("%w: client %d of protocol %d", ErrMalformed, c.ID, c.Proto)
	}
	return nil
}

// Encode returns the record.
func (d *Dial) Encode() []byte { return encodeFixed(NamesKindDial, d) }

// Decode reads exactly one record and checks its ranges.
func (d *Dial) Decode(b []byte) error {
	if err := decodeFixed(b, NamesKindDial, d); err != nil {
		return err
	}
	if d.Resolver >= MaxResolvers || d.Proto != ProtoTCP && d.Proto != ProtoUDP || d.Zero != 0 {
		return fmt.Errorf("%w: resolver %d by protocol %d", ErrMalformed, d.Resolver, d.Proto)
	}
	return nil
}

// Encode returns the record.
func (u *Upstream) Encode() []byte { return encodeFixed(NamesKindUpstream, u) }

// Decode reads exactly one record and checks its ranges.
func (u *Upstream) Decode(b []byte) error {
	if err := decodeFixed(b, NamesKindUpstream, u); err != nil {
		return err
	}
	if u.Resolver >= MaxResolvers || u.Proto != ProtoTCP && u.Proto != ProtoUDP {
		return fmt.Errorf("%w: resolver %d by protocol %d", ErrMalformed, u.Resolver, u.Proto)
	}
	return nil
}

// Encode returns the record.
func (r *Refused) Encode() []byte { return encodeFixed(NamesKindRefused, r) }

// Decode reads exactly one record and checks its ranges. Its name goes to logs, and
// a guest has chosen it.
func (r *Refused) Decode(b []byte) error {
	if err := decodeFixed(b, NamesKindRefused, r); err != nil {
		return err
	}
	if r.Why == 0 || r.Why >= refusals || r.Zero != 0 || !r.Name.plain(true) {
		return fmt.Errorf("%w: name refused for reason %d", ErrMalformed, r.Why)
	}
	return nil
}

// Encode returns the record.
func (c *Counted) Encode() []byte { return encodeFixed(NamesKindCounted, c) }

// Decode reads exactly one record.
func (c *Counted) Decode(b []byte) error { return decodeFixed(b, NamesKindCounted, c) }

// Encode returns the record.
func (c *Closed) Encode() []byte { return encodeFixed(NamesKindClosed, c) }

// Decode reads exactly one record and checks its ranges.
func (c *Closed) Decode(b []byte) error {
	if err := decodeFixed(b, NamesKindClosed, c); err != nil {
		return err
	}
	if c.Port == 0 || c.Zero != 0 {
		return fmt.Errorf("%w: client of port %d", ErrMalformed, c.Port)
	}
	return nil
}

// Encode returns the record.
func (g *Granted) Encode() []byte { return encodeFixed(NamesKindGranted, g) }

// Decode reads exactly one record.
func (g *Granted) Decode(b []byte) error {
	if err := decodeFixed(b, NamesKindGranted, g); err != nil {
		return err
	}
	if g.Zero != 0 {
		return fmt.Errorf("%w: reserved bits set", ErrMalformed)
	}
	for i, n := range g.Around {
		if n > 128 || n != 0 && g.Mask>>i&1 == 0 {
			return fmt.Errorf("%w: %d bits around address %d", ErrMalformed, n, i)
		}
	}
	return nil
}

// Encode writes the record to b, which must hold NamedSize bytes.
func (n *Named) Encode(b []byte) {
	_ = b[NamedSize-1]
	putHeader(b, NamesKindNamed, NamedSize)
	p := b[HeaderSize:]
	binary.LittleEndian.PutUint32(p, n.Seq)
	binary.LittleEndian.PutUint32(p[4:], n.TTL)
	binary.LittleEndian.PutUint16(p[8:], n.Type)
	p[10], p[11] = n.Aliases, n.Count
	p = n.Name.put(p[12:])
	for i := range n.Alias {
		p = n.Alias[i].put(p)
	}
	for i := range n.Addr {
		p = p[copy(p, n.Addr[i][:]):]
	}
}

// Decode reads exactly one record and checks its ranges; whether a name is one is for
// package domain to say.
func (n *Named) Decode(b []byte) error {
	if err := expect(b, NamesKindNamed, NamedSize); err != nil {
		return err
	}
	p := b[HeaderSize:]
	n.Seq = binary.LittleEndian.Uint32(p)
	n.TTL = binary.LittleEndian.Uint32(p[4:])
	n.Type = binary.LittleEndian.Uint16(p[8:])
	n.Aliases, n.Count = p[10], p[11]
	p = n.Name.take(p[12:])
	for i := range n.Alias {
		p = n.Alias[i].take(p)
	}
	for i := range n.Addr {
		p = p[copy(n.Addr[i][:], p):]
	}
	if n.TTL > MaxTTL || n.Aliases > MaxAliases || n.Count > MaxNamed || !n.Name.plain(false) || !n.tidy() {
		return fmt.Errorf("%w: %d names and %d addresses for %d s", ErrMalformed, n.Aliases, n.Count, n.TTL)
	}
	return nil
}

// tidy tells whether the names that count are some, and nothing is behind what counts.
func (n *Named) tidy() bool {
	for i := range n.Alias {
		if used := i < int(n.Aliases); used && !n.Alias[i].plain(false) || !used && n.Alias[i] != (Name{}) {
			return false
		}
	}
	for i := range n.Addr {
		if used := i < int(n.Count); used == (n.Addr[i] == [16]byte{}) {
			return false
		}
	}
	return true
}

// put writes a name and returns what is behind it.
func (n *Name) put(p []byte) []byte {
	p[0] = n.Len
	copy(p[1:], n.Bytes[:])
	return p[nameSize:]
}

// take reads what put has written.
func (n *Name) take(p []byte) []byte {
	n.Len = p[0]
	copy(n.Bytes[:], p[1:])
	return p[nameSize:]
}

// plain tells whether a name consists of characters that a log may show as they are,
// and of nothing behind its end; empty it may be for the root alone.
func (n *Name) plain(root bool) bool {
	if n.Len == 0 && !root {
		return false
	}
	for i, c := range n.Bytes {
		if used := i < int(n.Len); used && (c <= ' ' || c >= 0x7f || c == '"') || !used && c != 0 {
			return false
		}
	}
	return true
}
