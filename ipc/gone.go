// SPDX-License-Identifier: Apache-2.0

package ipc

import "fmt"

// KindGone is the kind of Gone.
const KindGone Kind = 0x08c

// MaxGone is how many addresses one Gone names.
const MaxGone = 8

// Gone tells of addresses that the host has no more: nothing that is sent from them
// arrives, and no answer. The worker ends the flows whose sockets have them, TCP's by a
// reset for the guest.
type Gone struct {
	N     uint8             // addresses, 1 to MaxGone
	Addrs [MaxGone][16]byte // IPv4-mapped or IPv6; zero behind the first N
}

// Encode returns the record.
func (g *Gone) Encode() []byte { return encodeFixed(KindGone, g) }

// Decode reads exactly one record.
func (g *Gone) Decode(b []byte) error {
	if err := decodeFixed(b, KindGone, g); err != nil {
		return err
	}
	if g.N == 0 || g.N > MaxGone {
		return fmt.Errorf("%w: %d addresses are gone", ErrMalformed, g.N)
	}
	for i := range g.Addrs {
		if used := g.Addrs[i] != [16]byte{}; used != (i < int(g.N)) {
			return fmt.Errorf("%w: %d addresses are gone, and number %d is %v", ErrMalformed, g.N, i, g.Addrs[i])
		}
	}
	return nil
}
