// SPDX-License-Identifier: Apache-2.0

package ipc

import (
	"encoding/binary"
	"fmt"
)

// Records about flows of which the first bytes are looked at before they go on: by
// the process that reads names, between the broker and that one, and Switch, between
// the broker and the worker.
//
// The worker has one end of a pair of sockets at first (OpenedStaged). What the guest
// sends it writes there and keeps. The other end goes to the process for names with
// Stage, which reads and says in Staged what it has found. The broker judges that, and
// passes on the socket that leads to the destination with StageSocket. What was read
// is written to it, Passed says how much that was, and with Switch the worker gets the
// socket and goes on behind that.
//
// KindSwitch goes from the broker to the worker.
const KindSwitch Kind = 0x08b

// Kinds between broker and the process for names.
const (
	// Broker to the process for names.
	NamesKindStage       Kind = 0x208 + iota // Stage, with the end of a pair
	NamesKindStageSocket                     // StageSocket, with the socket to the destination
	NamesKindStageEnd                        // StageEnd: forget it
)

const (
	// From the process for names.
	NamesKindStaged Kind = 0x288 + iota // Staged
	NamesKindPassed                     // Passed
)

// MaxStaged is how many bytes of a flow are looked at. The worker writes no more to
// the pair.
const MaxStaged = 16<<10 + 512

// MaxStagedDatagrams is the same for a flow of datagrams.
const MaxStagedDatagrams = 32

// MaxStages is how many flows may be looked at at a time.
const MaxStages = 256

// What a flow is looked at for.
const (
	StageTLS  = 1 + iota // the server's name in a TLS client hello, of TCP
	StageQUIC            // the same in the first flight of QUIC
	endOfStages
)

// Stage has the beginning of a flow looked at.
type Stage struct {
	ID       uint32  // of the flow, in the records that follow; never zero
	What     uint8   // Stage*
	Reserved [3]byte // zero
}

// StageSocket has what was read written to the socket that comes with it.
type StageSocket struct {
	ID uint32 // as in Stage
}

// StageEnd has a flow forgotten. Nothing is said of it any more.
type StageEnd struct {
	ID uint32 // as in Stage
}

// Staged says what the beginning of a flow was found to be.
type Staged struct {
	ID    uint32 // as in Stage
	Found uint8  // Found*
	Name  Name   // the server's name, with FoundName
}

// What may be found at the beginning of a flow.
const (
	FoundName     = 1 + iota // a client hello with a server's name
	FoundNoName              // a client hello without one, or with more than one
	FoundBadName             // a client hello whose name no server can have: an address, or what is no host name
	FoundNotHello            // something else, or a hello that is malformed
	FoundTooLong             // a hello longer than MaxStaged, or MaxStagedDatagrams
	FoundVersion             // QUIC of a version that is not known
	FoundEnd                 // the end, before a hello was complete
	FoundNoRoom              // there are MaxStages already
	endOfFound
)

// FoundText is what a Found* is, for people.
func FoundText(f uint8) string {
	if f == 0 || f >= endOfFound {
		return "unknown"
	}
	return [endOfFound]string{FoundName: "a name", FoundNoName: "no server name", FoundBadName: "a server name that is no host name",
		FoundNotHello: "no TLS client hello", FoundTooLong: "a client hello that is too long", FoundVersion: "an unknown version of QUIC",
		FoundEnd: "the end", FoundNoRoom: "too many connections at a time"}[f]
}

// Passed says that what was read is written.
type Passed struct {
	ID    uint32 // as in Stage
	Errno uint16 // why it could not be; zero: it was
	Count uint32 // how much that was: bytes, of datagrams their number
}

// Encode returns the record.
func (s *Stage) Encode() []byte { return encodeFixed(NamesKindStage, s) }

// Decode reads exactly one record and checks its ranges.
func (s *Stage) Decode(b []byte) error {
	if err := decodeFixed(b, NamesKindStage, s); err != nil {
		return err
	}
	if s.ID == 0 || s.What == 0 || s.What >= endOfStages || s.Reserved != [3]byte{} {
		return fmt.Errorf("%w: stage %d for %d", ErrMalformed, s.ID, s.What)
	}
	return nil
}

// Encode returns the record.
func (s *StageSocket) Encode() []byte { return encodeFixed(NamesKindStageSocket, s) }

// Decode reads exactly one record.
func (s *StageSocket) Decode(b []byte) error { return decodeFixed(b, NamesKindStageSocket, s) }

// Encode returns the record.
func (s *StageEnd) Encode() []byte { return encodeFixed(NamesKindStageEnd, s) }

// Decode reads exactly one record.
func (s *StageEnd) Decode(b []byte) error { return decodeFixed(b, NamesKindStageEnd, s) }

// Encode returns the record.
func (s *Staged) Encode() []byte { return encodeFixed(NamesKindStaged, s) }

// Decode reads exactly one record and checks its ranges. A name is printable: it goes
// to the log, and the guest has a say in it.
func (s *Staged) Decode(b []byte) error {
	if err := decodeFixed(b, NamesKindStaged, s); err != nil {
		return err
	}
	if s.Found == 0 || s.Found >= endOfFound || (s.Found == FoundName) != (s.Name.Len > 0) || !s.Name.printable() {
		return fmt.Errorf("%w: stage %d has found %d", ErrMalformed, s.ID, s.Found)
	}
	return nil
}

// Encode returns the record.
func (p *Passed) Encode() []byte { return encodeFixed(NamesKindPassed, p) }

// Decode reads exactly one record and checks its ranges.
func (p *Passed) Decode(b []byte) error {
	if err := decodeFixed(b, NamesKindPassed, p); err != nil {
		return err
	}
	if p.Count > MaxStaged || p.Errno != 0 && p.Count != 0 {
		return fmt.Errorf("%w: stage %d has passed %d on, error %d", ErrMalformed, p.ID, p.Count, p.Errno)
	}
	return nil
}

// Switch gives a flow that was OpenedStaged the socket to its destination, or ends it.
type Switch struct {
	Token uint64 // as in Opened
	Errno uint16 // zero: the socket comes with this record
	Count uint32 // of what the flow has kept: bytes or datagrams that were sent by that socket already
}

// SwitchSize is the encoded size of Switch, header included.
const SwitchSize = HeaderSize + 8 + 2 + 2 + 4

// Encode writes the record to b, which must hold SwitchSize bytes.
func (s *Switch) Encode(b []byte) {
	_ = b[SwitchSize-1]
	putHeader(b, KindSwitch, SwitchSize)
	p := b[HeaderSize:]
	binary.LittleEndian.PutUint64(p, s.Token)
	binary.LittleEndian.PutUint16(p[8:], s.Errno)
	p[10], p[11] = 0, 0
	binary.LittleEndian.PutUint32(p[12:], s.Count)
}

// Decode reads exactly one record.
func (s *Switch) Decode(b []byte) error {
	if err := expect(b, KindSwitch, SwitchSize); err != nil {
		return err
	}
	p := b[HeaderSize:]
	s.Token = binary.LittleEndian.Uint64(p)
	s.Errno = binary.LittleEndian.Uint16(p[8:])
	s.Count = binary.LittleEndian.Uint32(p[12:])
	if p[10] != 0 || p[11] != 0 || s.Count > MaxStaged || s.Errno != 0 && s.Count != 0 {
		return fmt.Errorf("%w: a switch after %d, error %d", ErrMalformed, s.Count, s.Errno)
	}
	return nil
}
