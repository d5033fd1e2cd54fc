// SPDX-License-Identifier: Apache-2.0

package ipc

import (
	"encoding/binary"
	"fmt"
)

// Kinds of records between broker and agent. Every request carries an ID that its
// answer repeats, so that several of one kind may be under way.
const (
	// Broker to agent.
	AgentKindSetup  Kind = 0x100 + iota // AgentSetup: starts a description of the namespace's network
	AgentKindChange                     // AgentChange: an address or route of that description
	AgentKindCommit                     // AgentCommit: the description is complete, put it in force
	AgentKindOpen                       // AgentOpen: a socket in the namespace
	AgentKindScan                       // AgentScan: which ports are bound there
	AgentKindUpdate                     // AgentUpdate: starts a change of the network that was set up
)

const (
	// Agent to broker.
	AgentKindTap    Kind = 0x180 + iota // AgentTap, with the tap
	AgentKindReport                     // AgentReport
	AgentKindDone                       // AgentDone: a set-up without an interface, or an update, is done
	AgentKindOpened                     // AgentOpened, with the socket if Errno is zero
	AgentKindLayer                      // AgentLayer
	AgentKindPorts                      // AgentPorts: ports that a scan found
)

// Limits of the agent's records.
const (
	MaxChange  = 4096    // bytes of one rtnetlink body
	MaxChanges = 1 << 18 // changes in one set-up
)

// AgentSetup says what the namespace's interface is to be.
type AgentSetup struct {
	ID       uint32   // of the set-up; the answer has it too
	Flags    uint32   // AgentSetup*
	Name     [16]byte // of the interface, NUL-padded, at most 15 bytes
	MAC      [6]byte  // zero: the kernel chooses
	Reserved [2]byte  // zero
	MTU      uint32   // zero: the kernel's default
	QueueLen uint32   // of the transmit queue in packets; zero: the kernel's default
}

// Flags of AgentSetup.
const (
	AgentSetupConfigure = 1 << iota // bring the interface up with what AgentChange records say
	AgentSetupNoLink                // make no interface, only bring lo up; Name is ignored
	AgentSetupConfine               // give up, at the end, all that opening sockets does not take
	AgentSetupBind                  // but keep CAP_NET_BIND_SERVICE
	AgentSetupScan                  // keep what AgentScan takes
	AgentSetupFollow                // keep what AgentUpdate takes

	agentSetupFlags = 1<<iota - 1
)

// AgentChange is one address or route, as the body of an rtnetlink message
// without an interface index.
type AgentChange struct {
	ID    uint32 // of the set-up or update that it belongs to
	Type  uint16 // AgentAddress or AgentRoute, in an update also AgentNoAddress or AgentNoRoute
	Flags uint16 // AgentChange*
	Body  []byte // at most MaxChange bytes
}

// Types of AgentChange, the numbers of include/uapi/linux/rtnetlink.h.
const (
	AgentAddress   = 20 // RTM_NEWADDR
	AgentNoAddress = 21 // RTM_DELADDR
	AgentRoute     = 24 // RTM_NEWROUTE
	AgentNoRoute   = 25 // RTM_DELROUTE
)

// Flags of AgentChange.
const (
	AgentChangeOnLink = 1 << iota // if the gateway is unreachable, take it to be on the link

	agentChangeFlags = 1<<iota - 1
)

// AgentUpdate starts a change of the network that was set up: AgentChange records, which
// are done in their order, and AgentCommit. The answer is AgentDone; AgentReport tells
// before it what could not be done.
type AgentUpdate struct {
	ID uint32 // of the update; the answer has it too
}

// Encode returns the record.
func (u *AgentUpdate) Encode() []byte { return encodeFixed(AgentKindUpdate, u) }

// Decode reads exactly one record.
func (u *AgentUpdate) Decode(b []byte) error { return decodeFixed(b, AgentKindUpdate, u) }

// AgentCommit ends a description.
type AgentCommit struct {
	ID      uint32 // of the set-up
	Changes uint32 // number of AgentChange records that were sent for it
}

// AgentTap answers a set-up that succeeded. The tap comes with it.
type AgentTap struct {
	ID      uint32   // of the set-up
	Index   uint32   // of the interface in the namespace, never zero
	MAC     [6]byte  // that it really has
	Padding [2]byte  // zero
	Offload uint32   // TUN_F_* bits in force, include/uapi/linux/if_tun.h
	Name    [16]byte // NUL-padded
}

// AgentReport says what went wrong. A warning may precede the answer to the
// request; a failure is the answer.
type AgentReport struct {
	ID    uint32 // of the set-up
	Fatal uint8  // 1: failure, 0: warning
	Errno uint16 // zero: none
	Text  Name   // what was tried, for people
}

// Encode returns the record.
func (s *AgentSetup) Encode() []byte { return encodeFixed(AgentKindSetup, s) }

// Decode reads exactly one record and checks its ranges.
func (s *AgentSetup) Decode(b []byte) error {
	if err := decodeFixed(b, AgentKindSetup, s); err != nil {
		return err
	}
	if s.Flags&^agentSetupFlags != 0 || s.Reserved != [2]byte{} || s.Flags&AgentSetupNoLink == 0 && !validName(&s.Name) {
		return fmt.Errorf("%w: flags %#x, name %q", ErrMalformed, s.Flags, s.Name)
	}
	return nil
}

// changeHead is the size of AgentChange before its body.
const changeHead = HeaderSize + 4 + 2 + 2

// Encode returns the record. The body must not exceed MaxChange.
func (c *AgentChange) Encode() []byte {
	b := make([]byte, changeHead, changeHead+len(c.Body))
	putHeader(b, AgentKindChange, changeHead+len(c.Body))
	binary.LittleEndian.PutUint32(b[HeaderSize:], c.ID)
	binary.LittleEndian.PutUint16(b[HeaderSize+4:], c.Type)
	binary.LittleEndian.PutUint16(b[HeaderSize+6:], c.Flags)
	return append(b, c.Body...)
}

// Decode reads exactly one record. Body aliases b.
func (c *AgentChange) Decode(b []byte) error {
	if len(b) < changeHead || len(b) > changeHead+MaxChange {
		return fmt.Errorf("%w: change of %d bytes", ErrMalformed, len(b))
	}
	if err := expect(b, AgentKindChange, len(b)); err != nil {
		return err
	}
	c.ID = binary.LittleEndian.Uint32(b[HeaderSize:])
	c.Type = binary.LittleEndian.Uint16(b[HeaderSize+4:])
	c.Flags = binary.LittleEndian.Uint16(b[HeaderSize+6:])
	c.Body = b[changeHead:]
	switch c.Type {
	case AgentAddress, AgentNoAddress, AgentRoute, AgentNoRoute:
	default:
		return fmt.Errorf("%w: change of type %d", ErrMalformed, c.Type)
	}
	if c.Flags&^agentChangeFlags != 0 {
		return fmt.Errorf("%w: change of type %d, flags %#x", ErrMalformed, c.Type, c.Flags)
	}
	return nil
}

// Encode returns the record.
func (c *AgentCommit) Encode() []byte { return encodeFixed(AgentKindCommit, c) }

// Decode reads exactly one record.
func (c *AgentCommit) Decode(b []byte) error { return decodeFixed(b, AgentKindCommit, c) }

// Encode returns the record.
func (t *AgentTap) Encode() []byte { return encodeFixed(AgentKindTap, t) }

// Decode reads exactly one record and checks its ranges.
func (t *AgentTap) Decode(b []byte) error {
	if err := decodeFixed(b, AgentKindTap, t); err != nil {
		return err
	}
	if t.Index == 0 || t.Padding != [2]byte{} || !validName(&t.Name) {
		return fmt.Errorf("%w: interface %d, name %q", ErrMalformed, t.Index, t.Name)
	}
	return nil
}

// Encode returns the record.
func (r *AgentReport) Encode() []byte { return encodeFixed(AgentKindReport, r) }

// Decode reads exactly one record. The text is free of control characters:
// it goes to the log and the terminal, and the namespace has a say in it.
func (r *AgentReport) Decode(b []byte) error {
	if err := decodeFixed(b, AgentKindReport, r); err != nil {
		return err
	}
	if r.Fatal > 1 {
		return fmt.Errorf("%w: report of level %d", ErrMalformed, r.Fatal)
	}
	if !r.Text.printable() {
		return fmt.Errorf("%w: control character in a report", ErrMalformed)
	}
	return nil
}

// validName checks an interface's name as dev_valid_name in net/core/dev.c
// does.
func validName(name *[16]byte) bool {
	n := 0
	for n < len(name) && name[n] != 0 {
		if c := name[n]; c <= ' ' || c == '/' || c == ':' || c == 0x7f {
			return false
		}
		n++
	}
	if n == 0 || n == len(name) || string(name[:n]) == "." || string(name[:n]) == ".." {
		return false
	}
	for _, c := range name[n:] {
		if c != 0 {
			return false
		}
	}
	return true
}
