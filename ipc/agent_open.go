// SPDX-License-Identifier: Apache-2.0

package ipc

import "fmt"

// AgentOpen asks for one socket in the namespace. The agent binds and listens
// as told; connecting is the broker's, for which the socket needs to have been
// made in the namespace and nothing else. Requests may follow one another
// without waiting for answers.
type AgentOpen struct {
	ID        uint32   // of the request; the answer has it too
	Proto     uint8    // ProtoTCP or ProtoUDP
	Flags     uint8    // AgentOpen*
	LocalPort uint16   // with AgentOpenBind: 0 for any; else zero
	Local     [16]byte // with AgentOpenBind: zero address for any; else zero
}

// AgentOpenSize is the length of an AgentOpen in bytes. A message has up to MaxBatch.
const AgentOpenSize = HeaderSize + 24

// Flags of AgentOpen.
const (
	AgentOpenIPv4   = 1 << iota // of family AF_INET; otherwise AF_INET6
	AgentOpenBind               // to Local and LocalPort
	AgentOpenListen             // TCP: listen; UDP: report where each datagram was sent to
	AgentOpenDevice             // on the namespace's lo only, SO_BINDTODEVICE
	AgentOpenDual               // with AgentOpenBind and family AF_INET6: IPv4 too
	AgentOpenBeside             // with AgentOpenListen, UDP: sockets of ours may be on the port

	agentOpenFlags = 1<<iota - 1
)

// AgentOpened answers AgentOpen.
type AgentOpened struct {
	ID      uint32 // of the request
	Errno   uint16 // zero: the socket comes with this record
	Padding uint16 // zero
}

// AgentDone says that a set-up without an interface is complete.
type AgentDone struct {
	ID uint32 // of the set-up
}

// Encode returns the record.
func (o *AgentOpen) Encode() []byte { return encodeFixed(AgentKindOpen, o) }

// Decode reads exactly one record and checks its ranges.
func (o *AgentOpen) Decode(b []byte) error {
	if err := decodeFixed(b, AgentKindOpen, o); err != nil {
		return err
	}
	bind := o.Flags&AgentOpenBind != 0
	switch {
	case o.Flags&^agentOpenFlags != 0,
		o.Proto != ProtoTCP && o.Proto != ProtoUDP,
		!bind && (o.Flags&(AgentOpenListen|AgentOpenDual) != 0 || o.LocalPort != 0 || o.Local != [16]byte{}),
		o.Flags&AgentOpenBeside != 0 && (o.Flags&AgentOpenListen == 0 || o.Proto != ProtoUDP),
		o.Flags&AgentOpenIPv4 != 0 && o.Flags&AgentOpenDual != 0:
		return fmt.Errorf("%w: socket of protocol %d, flags %#x, port %d", ErrMalformed, o.Proto, o.Flags, o.LocalPort)
	}
	return nil
}

// Encode returns the record.
func (o *AgentOpened) Encode() []byte { return encodeFixed(AgentKindOpened, o) }

// Decode reads exactly one record and checks its ranges.
func (o *AgentOpened) Decode(b []byte) error {
	if err := decodeFixed(b, AgentKindOpened, o); err != nil {
		return err
	}
	if o.Padding != 0 {
		return fmt.Errorf("%w: padding in the answer to %d", ErrMalformed, o.ID)
	}
	return nil
}

// Encode returns the record.
func (d *AgentDone) Encode() []byte { return encodeFixed(AgentKindDone, d) }

// Decode reads exactly one record.
func (d *AgentDone) Decode(b []byte) error { return decodeFixed(b, AgentKindDone, d) }
