// SPDX-License-Identifier: Apache-2.0

package ipc

import (
	"encoding/binary"
	"fmt"
)

// KindRevokeFlows is the kind of RevokeFlows.
const KindRevokeFlows Kind = 0x08a

// MaxRevoke is how many flows one RevokeFlows names.
const MaxRevoke = 32

// RevokeFlows ends flows one by one, by the tokens of the requests that opened them: for
// what the egress rules had allowed and refuse since they were changed. Both sides of
// a TCP connection hear a reset. A flow that has ended is none of the worker's concern.
type RevokeFlows struct {
	N      uint32            // tokens, 1 to MaxRevoke
	Tokens [MaxRevoke]uint64 // zero behind the first N
}

// RevokeFlowsSize is the encoded size of RevokeFlows, header included.
const RevokeFlowsSize = HeaderSize + 8 + 8*MaxRevoke

// Encode writes the record to b, which must hold RevokeFlowsSize bytes.
func (r *RevokeFlows) Encode(b []byte) {
	_ = b[RevokeFlowsSize-1]
	putHeader(b, KindRevokeFlows, RevokeFlowsSize)
	p := b[HeaderSize:]
	binary.LittleEndian.PutUint64(p, uint64(r.N))
	for i, t := range r.Tokens {
		binary.LittleEndian.PutUint64(p[8+8*i:], t)
	}
}

// Decode reads exactly one record.
func (r *RevokeFlows) Decode(b []byte) error {
	if err := expect(b, KindRevokeFlows, RevokeFlowsSize); err != nil {
		return err
	}
	p := b[HeaderSize:]
	n := binary.LittleEndian.Uint64(p)
	if n == 0 || n > MaxRevoke {
		return fmt.Errorf("%w: %d flows to end", ErrMalformed, n)
	}
	r.N = uint32(n)
	for i := range r.Tokens {
		r.Tokens[i] = binary.LittleEndian.Uint64(p[8+8*i:])
		if i >= int(n) && r.Tokens[i] != 0 {
			return fmt.Errorf("%w: a flow behind the last", ErrMalformed)
		}
	}
	return nil
}
