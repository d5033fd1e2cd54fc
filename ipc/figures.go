// SPDX-License-Identifier: Apache-2.0

package ipc

import (
	"encoding/binary"
	"fmt"
)

// What a worker has counted, and which flows it has, the broker asks for: one Ask at
// a time, and the next only when Answered has come. In between come records of the
// kind that was asked for, as many as Ask.Max at most, in one message. A worker that
// is not asked says nothing.
const (
	KindAsk      Kind = 0x080 + iota // Ask
	KindFlow                         // Flow
	KindFigures                      // Figures
	KindAnswered                     // Answered
)

// MaxFigures is how many records one answer has at most.
const MaxFigures = 32

// MaxCursor bounds cursors: they are below it.
const MaxCursor = 1 << 20

// What Ask asks for.
const (
	AskFlows   = 1 // Flow
	AskFigures = 2 // Figures
)

// Ask asks for the figures from a place on.
type Ask struct {
	ID     uint32 // returned in all records of the answer
	Cursor uint32 // zero: from the first on; else the Next of the last answer
	What   uint8  // Ask*
	Max    uint8  // records, 1 to MaxFigures
}

// AskSize is the encoded size of Ask, header included.
const AskSize = HeaderSize + 12

// Encode writes the record to b, which must hold AskSize bytes.
func (a *Ask) Encode(b []byte) {
	_ = b[AskSize-1]
	putHeader(b, KindAsk, AskSize)
	p := b[HeaderSize:]
	binary.LittleEndian.PutUint32(p[0:], a.ID)
	binary.LittleEndian.PutUint32(p[4:], a.Cursor)
	p[8], p[9], p[10], p[11] = a.What, a.Max, 0, 0
}

// Decode reads exactly one record.
func (a *Ask) Decode(b []byte) error {
	if err := expect(b, KindAsk, AskSize); err != nil {
		return err
	}
	p := b[HeaderSize:]
	a.ID = binary.LittleEndian.Uint32(p[0:])
	a.Cursor = binary.LittleEndian.Uint32(p[4:])
	a.What, a.Max = p[8], p[9]
	if p[10] != 0 || p[11] != 0 || a.Cursor >= MaxCursor || a.Max == 0 || a.Max > MaxFigures ||
		a.What != AskFlows && a.What != AskFigures {
		return fmt.Errorf("%w: %d records of %d from %d on", ErrMalformed, a.Max, a.What, a.Cursor)
	}
	return nil
}

// Answered ends an answer.
type Answered struct {
	ID   uint32 // of Ask
	Next uint32 // where to go on; zero: there is no more
}

// AnsweredSize is the encoded size of Answered, header included.
const AnsweredSize = HeaderSize + 8

// Encode writes the record to b, which must hold AnsweredSize bytes.
func (a *Answered) Encode(b []byte) {
	_ = b[AnsweredSize-1]
	putHeader(b, KindAnswered, AnsweredSize)
	binary.LittleEndian.PutUint32(b[HeaderSize:], a.ID)
	binary.LittleEndian.PutUint32(b[HeaderSize+4:], a.Next)
}

// Decode reads exactly one record.
func (a *Answered) Decode(b []byte) error {
	if err := expect(b, KindAnswered, AnsweredSize); err != nil {
		return err
	}
	a.ID = binary.LittleEndian.Uint32(b[HeaderSize:])
	a.Next = binary.LittleEndian.Uint32(b[HeaderSize+4:])
	if a.Next >= MaxCursor {
		return fmt.Errorf("%w: cursor %d", ErrMalformed, a.Next)
	}
	return nil
}

// FigureValues is how many figures one record holds.
const FigureValues = 16

// Figures holds figures by their numbers, see NumFigures.
type Figures struct {
	ID     uint32               // of Ask
	First  uint16               // number of the first
	N      uint8                // how many, at least one
	Values [FigureValues]uint64 // the first N count, the others are zero
}

// FiguresSize is the encoded size of Figures, header included.
const FiguresSize = HeaderSize + 8 + 8*FigureValues

// Encode writes the record to b, which must hold FiguresSize bytes.
func (f *Figures) Encode(b []byte) {
	_ = b[FiguresSize-1]
	putHeader(b, KindFigures, FiguresSize)
	p := b[HeaderSize:]
	binary.LittleEndian.PutUint32(p[0:], f.ID)
	binary.LittleEndian.PutUint16(p[4:], f.First)
	p[6], p[7] = f.N, 0
	for k, v := range f.Values {
		binary.LittleEndian.PutUint64(p[8+8*k:], v)
	}
}

// Decode reads exactly one record.
func (f *Figures) Decode(b []byte) error {
	if err := expect(b, KindFigures, FiguresSize); err != nil {
		return err
	}
	p := b[HeaderSize:]
	f.ID = binary.LittleEndian.Uint32(p[0:])
	f.First = binary.LittleEndian.Uint16(p[4:])
	f.N = p[6]
	rest := uint64(p[7])
	for k := range f.Values {
		f.Values[k] = binary.LittleEndian.Uint64(p[8+8*k:])
		if k >= int(f.N) {
			rest |= f.Values[k]
		}
	}
	if f.N == 0 || f.N > FigureValues || int(f.First)+int(f.N) > NumFigures || rest != 0 {
		return fmt.Errorf("%w: %d figures from %d on", ErrMalformed, f.N, f.First)
	}
	return nil
}

// FlowDirection says who began a flow, and whether it goes by the guest's link.
type FlowDirection uint8

// Directions of flows.
const (
	FlowOut       FlowDirection = iota // from the guest
	FlowIn                             // to the guest
	FlowBypassOut                      // from the guest, past its link
	FlowBypassIn                       // to the guest, past its link
	FlowDirections
)

// FlowState is where a flow is. Those from FlowSynSent on are TCP's, and only they
// are, by the names of RFC 9293.
type FlowState uint8

// States of flows.
const (
	FlowOpen       FlowState = iota + 1
	FlowOpening              // a socket was asked for
	FlowUnanswered           // nobody has answered
	FlowRefused              // there is no socket, which is remembered for a while
	FlowSynSent
	FlowSynReceived
	FlowEstablished
	FlowFinWait1
	FlowFinWait2
	FlowCloseWait
	FlowClosing
	FlowLastAck
	FlowTimeWait
	FlowStates
)

// Flow is one flow. The two addresses are as the guest sees them. They are zero where
// the worker does not know them any more.
type Flow struct {
	ID              uint32        // of Ask
	Proto           uint8         // ProtoTCP, ProtoUDP, ProtoICMP or ProtoICMPv6
	Direction       FlowDirection // echo has FlowOut only
	State           FlowState     // as TCP has them, or open
	GuestPort       uint16        // or echo identifier
	RemotePort      uint16        // zero for echo
	RTT             uint32        // to the remote, microseconds; zero: not known
	Listener        uint32        // that it came by (Listener.ID); FlowOut has none
	Guest, Remote   [16]byte      // addresses
	Age, Idle       uint64        // since it began, and since something came; nanoseconds
	Sent            uint64        // bytes from the guest
	Received        uint64        // bytes to the guest
	SentPackets     uint64        // datagrams, or segments as they crossed the link
	ReceivedPackets uint64        // likewise
	Queued          uint64        // bytes from the guest that wait in the worker
	Retransmits     uint64        // segments, to the guest and to the remote
}

// FlowSize is the encoded size of Flow, header included.
const FlowSize = HeaderSize + 16 + 2*16 + 8*8 + 4

// Encode writes the record to b, which must hold FlowSize bytes.
func (f *Flow) Encode(b []byte) {
	_ = b[FlowSize-1]
	putHeader(b, KindFlow, FlowSize)
	p := b[HeaderSize:]
	binary.LittleEndian.PutUint32(p[0:], f.ID)
	p[4], p[5], p[6], p[7] = f.Proto, uint8(f.Direction), uint8(f.State), 0
	binary.LittleEndian.PutUint16(p[8:], f.GuestPort)
	binary.LittleEndian.PutUint16(p[10:], f.RemotePort)
	binary.LittleEndian.PutUint32(p[12:], f.RTT)
	copy(p[16:32], f.Guest[:])
	copy(p[32:48], f.Remote[:])
	for k, v := range f.counts() {
		binary.LittleEndian.PutUint64(p[48+8*k:], *v)
	}
	binary.LittleEndian.PutUint32(p[112:], f.Listener)
}

// counts are the fields of eight bytes, in their order.
func (f *Flow) counts() [8]*uint64 {
	return [8]*uint64{&f.Age, &f.Idle, &f.Sent, &f.Received, &f.SentPackets, &f.ReceivedPackets, &f.Queued, &f.Retransmits}
}

// Decode reads exactly one record.
func (f *Flow) Decode(b []byte) error {
	if err := expect(b, KindFlow, FlowSize); err != nil {
		return err
	}
	p := b[HeaderSize:]
	f.ID = binary.LittleEndian.Uint32(p[0:])
	f.Proto, f.Direction, f.State = p[4], FlowDirection(p[5]), FlowState(p[6])
	f.GuestPort = binary.LittleEndian.Uint16(p[8:])
	f.RemotePort = binary.LittleEndian.Uint16(p[10:])
	f.RTT = binary.LittleEndian.Uint32(p[12:])
	f.Guest, f.Remote = [16]byte(p[16:32]), [16]byte(p[32:48])
	for k, v := range f.counts() {
		*v = binary.LittleEndian.Uint64(p[48+8*k:])
	}
	f.Listener = binary.LittleEndian.Uint32(p[112:])
	right := p[7] == 0 && f.Direction < FlowDirections && f.State > 0 && f.State < FlowStates && (f.Listener == 0 || f.Direction != FlowOut)
	switch f.Proto {
	case ProtoTCP:
		right = right && f.State >= FlowSynSent
	case ProtoUDP:
		right = right && f.State < FlowSynSent
	case ProtoICMP, ProtoICMPv6:
		right = right && f.State < FlowSynSent && f.Direction == FlowOut && f.RemotePort == 0
	default:
		right = false
	}
	if !right {
		return fmt.Errorf("%w: flow of protocol %d, direction %d, state %d, listener %d", ErrMalformed, f.Proto, f.Direction, f.State, f.Listener)
	}
	return nil
}
