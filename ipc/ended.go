// SPDX-License-Identifier: Apache-2.0

package ipc

import (
	"encoding/binary"
	"fmt"
)

// How says how a flow has ended, for the flow log.
type How uint8

// Ends of a flow.
const (
	EndClosed  How = 1 + iota // both sides have said all
	EndReset                  // by one side, or an error
	EndRefused                // its connect has failed
	EndTimeout                // one side does not answer any more
	EndIdle                   // unused for long
	EndEvicted                // made room for others
	EndRevoked                // the egress rules do not allow it any more
	EndGone                   // the host does not have the address any more that its socket has
	EndUnused                 // when the socket came, nobody waited for it any more
	endOfEnds
)

// String is how lines of a log have it.
func (h How) String() string {
	if h == 0 || h >= endOfEnds {
		return "unknown"
	}
	return [endOfEnds]string{EndClosed: "closed", EndReset: "reset", EndRefused: "refused", EndTimeout: "timeout",
		EndIdle: "idle", EndEvicted: "evicted", EndRevoked: "revoked", EndGone: "gone", EndUnused: "unused"}[h]
}

// Accepted tells that a connection has come by a listener and goes to the guest by
// its link. Such a one the broker does not hear of otherwise. With FlagFlowLog only.
type Accepted struct {
	Token    uint64   // as in Ended
	Listener uint32   // Listener.ID
	Port     uint16   // the peer's
	Addr     [16]byte // the peer's
}

// AcceptedSize is the encoded size of Accepted, header included.
const AcceptedSize = HeaderSize + 8 + 4 + 2 + 2 + 16

// Encode writes the record to b, which must hold AcceptedSize bytes.
func (a *Accepted) Encode(b []byte) {
	_ = b[AcceptedSize-1]
	putHeader(b, KindAccepted, AcceptedSize)
	p := b[HeaderSize:]
	binary.LittleEndian.PutUint64(p[0:], a.Token)
	binary.LittleEndian.PutUint32(p[8:], a.Listener)
	binary.LittleEndian.PutUint16(p[12:], a.Port)
	p[14], p[15] = 0, 0
	copy(p[16:32], a.Addr[:])
}

// Decode reads exactly one record.
func (a *Accepted) Decode(b []byte) error {
	if err := expect(b, KindAccepted, AcceptedSize); err != nil {
		return err
	}
	p := b[HeaderSize:]
	a.Token = binary.LittleEndian.Uint64(p[0:])
	a.Listener = binary.LittleEndian.Uint32(p[8:])
	a.Port = binary.LittleEndian.Uint16(p[12:])
	copy(a.Addr[:], p[16:32])
	if p[14] != 0 || p[15] != 0 || a.Listener == 0 {
		return fmt.Errorf("%w: reserved bits set, or no listener", ErrMalformed)
	}
	return nil
}

// Ended tells that the socket of a flow is closed, and what the flow has carried.
// With FlagFlowLog only, and for the log: it is never authority.
type Ended struct {
	Token uint64 // of Open, or Accepted
	How   How    // End*

	// In bytes of payload, and datagrams or segments; Sent is the guest's.
	Sent, Received, SentPackets, ReceivedPackets uint64
}

// EndedSize is the encoded size of Ended, header included.
const EndedSize = HeaderSize + 8 + 8 + 4*8

// Encode writes the record to b, which must hold EndedSize bytes.
func (e *Ended) Encode(b []byte) {
	_ = b[EndedSize-1]
	putHeader(b, KindEnded, EndedSize)
	p := b[HeaderSize:]
	for k, v := range [...]uint64{e.Token, uint64(e.How), e.Sent, e.Received, e.SentPackets, e.ReceivedPackets} {
		binary.LittleEndian.PutUint64(p[8*k:], v)
	}
}

// Decode reads exactly one record.
func (e *Ended) Decode(b []byte) error {
	if err := expect(b, KindEnded, EndedSize); err != nil {
		return err
	}
	p := b[HeaderSize:]
	how := binary.LittleEndian.Uint64(p[8:])
	if how == 0 || how >= uint64(endOfEnds) {
		return fmt.Errorf("%w: end %d of a flow", ErrMalformed, how)
	}
	*e = Ended{
		Token: binary.LittleEndian.Uint64(p[0:]), How: How(how),
		Sent: binary.LittleEndian.Uint64(p[16:]), Received: binary.LittleEndian.Uint64(p[24:]),
		SentPackets: binary.LittleEndian.Uint64(p[32:]), ReceivedPackets: binary.LittleEndian.Uint64(p[40:]),
	}
	return nil
}
