// SPDX-License-Identifier: Apache-2.0

package ipc

import "fmt"

// AgentLayer tells one layer of the agent's confinement. They come in the order
// in which they were put up, before the answer to the set-up that asked for it.
type AgentLayer struct {
	ID       uint32  // of the set-up
	State    uint8   // 0: missing, 1: as far as the kernel goes, 2: in force
	Reserved [3]byte // zero
	Name     Name    // of the layer, see policy.Layer
	Detail   Name    // what exactly, or why not
}

// Encode returns the record.
func (l *AgentLayer) Encode() []byte { return encodeFixed(AgentKindLayer, l) }

// Decode reads exactly one record and checks its ranges. The texts are free of
// control characters: they go to the log.
func (l *AgentLayer) Decode(b []byte) error {
	if err := decodeFixed(b, AgentKindLayer, l); err != nil {
		return err
	}
	if l.State > 2 || l.Reserved != [3]byte{} || !l.Name.printable() || !l.Detail.printable() {
		return fmt.Errorf("%w: layer %q in state %d", ErrMalformed, l.Name.String(), l.State)
	}
	return nil
}

// printable tells whether a name is free of control characters.
func (n *Name) printable() bool {
	for _, c := range n.Bytes[:n.Len] {
		if c < ' ' || c == 0x7f {
			return false
		}
	}
	return true
}
