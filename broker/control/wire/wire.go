// SPDX-License-Identifier: Apache-2.0

// Package wire is the protocol by which pesto changes the port rules of a running
// instance, version 2 of passt's, as bytes. It opens and asks nothing.
//
// The server speaks first: who it is, and all tables of rules. The client sends
// whole tables back, or nothing. So far that is passt's. Ours goes on, past what
// passt's client reads and passt's server writes: the server answers whether the
// tables are in force now, see AppendAnswer.
package wire

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net/netip"

	"aldente/broker/cli"
	"aldente/ipc"
)

// Version is that of the protocol.
const Version = 2

// magic is what a server begins with.
const magic = "basil:s\x00"

// Sizes on the wire, in bytes. Numbers are big-endian.
const (
	nameSize   = 128 // of a table's name
	ifNameSize = 16  // of an interface's, IFNAMSIZ
	ruleSize   = 56
)

// Bounds on what is read.
const (
	maxTables = 16
	maxRules  = 2 * cli.MaxRules // of one table: both protocols
)

// Numbers of the tables, which passt calls pif.
const (
	Host   = 1 // -t, -u: from the host to the guest
	Splice = 3 // -T, -U: from the namespace's loopback to the host's
)

// Names are what users call the tables.
var Names = map[uint8]string{Host: "HOST", Splice: "SPLICE"}

// Caps says which rules a table may have.
type Caps uint32

// Capabilities of a table.
const (
	CapIPv4 Caps = 1 << iota
	CapIPv6
	CapTCP
	CapUDP
	CapScan       // rules with "auto"
	CapInterfaces // rules bound to an interface
)

// Table is the rules of one direction.
type Table struct {
	ID    uint8      // which direction
	Name  string     // at most 127 bytes; none from a client
	Caps  Caps       // none from a client
	Rules []cli.Rule // at most 2 * cli.MaxRules: those of both protocols
}

// Flags of a rule on the wire.
const (
	flagDual = 1 << iota // listens on any address of both families
	flagWeak             // best effort
	flagAuto
	allFlags = flagDual | flagWeak | flagAuto
)

// ErrMalformed is what is no message of the protocol.
var ErrMalformed = errors.New("malformed message")

func malformed(format string, args ...any) error {
	return fmt.Errorf("%w: %s", ErrMalformed, fmt.Sprintf(format, args...))
}

// AppendHello appends what a server begins with.
func AppendHello(b []byte, tables []Table) []byte {
	b = append(b, magic...)
	b = binary.BigEndian.AppendUint32(b, Version)
	b = binary.BigEndian.AppendUint32(b, nameSize)
	b = binary.BigEndian.AppendUint32(b, ifNameSize)
	for i := range tables {
		t := &tables[i]
		b = append(b, t.ID)
		b = appendPadded(b, t.Name, nameSize)
		b = binary.BigEndian.AppendUint32(b, uint32(t.Caps))
		b = appendRules(b, t.Rules)
	}
	return append(b, 0)
}

// ReadHello reads what a server begins with.
func ReadHello(r io.Reader) ([]Table, error) {
	var head [len(magic) + 12]byte
	if _, err := io.ReadFull(r, head[:]); err != nil {
		return nil, err
	}
	rest, ok := bytes.CutPrefix(head[:], []byte(magic))
	switch {
	case !ok:
		return nil, malformed("it does not begin as passt's control socket does")
	case number(rest) != Version:
		return nil, malformed("version %d of the protocol, not %d", number(rest), Version)
	case number(rest[4:]) != nameSize || number(rest[8:]) != ifNameSize:
		return nil, malformed("names of %d and %d bytes, not %d and %d", number(rest[4:]), number(rest[8:]), nameSize, ifNameSize)
	}
	return readTables(r, func(t *Table) error {
		var b [nameSize + 4]byte
		if _, err := io.ReadFull(r, b[:]); err != nil {
			return cut(err)
		}
		name, ok := padded(b[:nameSize])
		if !ok || name == "" {
			return malformed("a table without a name")
		}
		t.Name, t.Caps = name, Caps(number(b[nameSize:]))
		return nil
	})
}

// AppendTables appends what a client sends: all the tables as they are to be.
func AppendTables(b []byte, tables []Table) []byte {
	for i := range tables {
		b = append(b, tables[i].ID)
		b = appendRules(b, tables[i].Rules)
	}
	return append(b, 0)
}

// ReadTables reads what a client sends. io.EOF means that it wants nothing changed.
func ReadTables(r io.Reader) ([]Table, error) {
	return readTables(r, func(*Table) error { return nil })
}

// readTables reads tables to the end mark, with head for what comes before the
// rules of each. io.EOF means that there was not one byte.
func readTables(r io.Reader, head func(*Table) error) ([]Table, error) {
	var tables []Table
	var seen [256]bool
	for {
		var id [1]byte
		if _, err := io.ReadFull(r, id[:]); err != nil {
			if len(tables) > 0 {
				err = cut(err)
			}
			return nil, err
		}
		switch t := (Table{ID: id[0]}); {
		case t.ID == 0:
			return tables, nil
		case seen[t.ID]:
			return nil, malformed("table %d twice", t.ID)
		case len(tables) == maxTables:
			return nil, malformed("more than %d tables", maxTables)
		default:
			seen[t.ID] = true
			err := head(&t)
			if err == nil {
				t.Rules, err = readRules(r)
			}
			if err != nil {
				return nil, err
			}
			tables = append(tables, t)
		}
	}
}

func appendRules(b []byte, rules []cli.Rule) []byte {
	b = binary.BigEndian.AppendUint32(b, uint32(len(rules)))
	for i := range rules {
		b = appendRule(b, &rules[i])
	}
	return b
}

// readRules reads a count and so many rules. Nothing is set aside for what has not
// come yet.
func readRules(r io.Reader) ([]cli.Rule, error) {
	var b [ruleSize]byte
	if _, err := io.ReadFull(r, b[:4]); err != nil {
		return nil, cut(err)
	}
	n := number(b[:])
	if n > maxRules {
		return nil, malformed("%d rules, at most %d are possible", n, maxRules)
	}
	var rules []cli.Rule
	for range n {
		if _, err := io.ReadFull(r, b[:]); err != nil {
			return nil, cut(err)
		}
		rule, err := decodeRule(&b)
		if err != nil {
			return nil, err
		}
		rules = append(rules, rule)
	}
	return rules, nil
}

// Offsets into a rule.
const (
	offTarget    = 16
	offInterface = 32
	offFirst     = 48
	offLast      = 50
	offTo        = 52
	offProto     = 54
	offFlags     = 55
)

func appendRule(b []byte, r *cli.Rule) []byte {
	var w [ruleSize]byte
	if r.Addr.IsValid() {
		a := r.Addr.As16()
		copy(w[:], a[:])
	} else {
		w[offFlags] |= flagDual
	}
	if r.TargetAddr.IsValid() {
		a := r.TargetAddr.As16()
		copy(w[offTarget:], a[:])
	}
	copy(w[offInterface:offFirst-1], r.Interface)
	binary.BigEndian.PutUint16(w[offFirst:], r.First)
	binary.BigEndian.PutUint16(w[offLast:], r.Last)
	binary.BigEndian.PutUint16(w[offTo:], r.TargetPort)
	w[offProto] = r.Proto
	if r.Weak {
		w[offFlags] |= flagWeak
	}
	if r.Auto {
		w[offFlags] |= flagAuto
	}
	return append(b, w[:]...)
}

func decodeRule(b *[ruleSize]byte) (r cli.Rule, err error) {
	listen, target := netip.AddrFrom16([16]byte(b[:16])), netip.AddrFrom16([16]byte(b[offTarget:offInterface]))
	ifname, ok := padded(b[offInterface:offFirst])
	flags := b[offFlags]
	r = cli.Rule{
		Proto: b[offProto], Interface: ifname,
		PortRange:  cli.PortRange{First: binary.BigEndian.Uint16(b[offFirst:]), Last: binary.BigEndian.Uint16(b[offLast:])},
		TargetPort: binary.BigEndian.Uint16(b[offTo:]),
		Weak:       flags&flagWeak != 0, Auto: flags&flagAuto != 0,
	}
	if flags&flagDual == 0 {
		r.Addr = listen.Unmap()
	}
	if target = target.Unmap(); !target.IsUnspecified() {
		r.TargetAddr = target
	}
	switch {
	case !ok:
		return r, malformed("an interface's name without an end")
	case r.Proto != ipc.ProtoTCP && r.Proto != ipc.ProtoUDP:
		return r, malformed("a rule for protocol %d", r.Proto)
	case flags&^allFlags != 0:
		return r, malformed("a rule with flags %#x", flags)
	case flags&flagDual != 0 && listen != netip.IPv6Unspecified():
		return r, malformed("a rule for both families with an address")
	case r.First > r.Last || int(r.TargetPort)+r.Len()-1 > 65535:
		return r, malformed("a rule for ports %d to %d, from %d on", r.First, r.Last, r.TargetPort)
	}
	return r, nil
}

func number(b []byte) uint32 { return binary.BigEndian.Uint32(b) }

// appendPadded appends a text with zeros behind it, one at least.
func appendPadded(b []byte, s string, size int) []byte {
	w := make([]byte, size)
	copy(w[:size-1], s)
	return append(b, w...)
}

// padded returns the text before the first zero. False means that there is none.
func padded(b []byte) (string, bool) {
	s, _, ok := bytes.Cut(b, []byte{0})
	return string(s), ok
}

// cut makes a message that ends too early an error of its own.
func cut(err error) error {
	if errors.Is(err, io.EOF) {
		return io.ErrUnexpectedEOF
	}
	return err
}
