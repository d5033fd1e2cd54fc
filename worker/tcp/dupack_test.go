// SPDX-License-Identifier: Apache-2.0

package tcp

import (
	"testing"

	"aldente/worker/packet"
)

// TestDuplicateAcksPageMultiple loses the first of many segments, each as long
// as a power of two divides, so that the low bits of all numbers are the same:
// every later segment has its ACK, within a batch and from batch to batch, or
// the guest would wait for a time-out.
func TestDuplicateAcksPageMultiple(t *testing.T) {
	for _, size := range []int{4096, 256} {
		for _, batch := range []int{1, 27} {
			e := newEnv(t, withMTU(65520))
			p := newPeer(e, guestPort)
			syn := p.syn()
			syn.MSS = uint16(size)
			p.dial(syn)
			p.seq += uint32(size)
			p.sent += size
			acks := 0
			count := min(27, 60000/size-1)
			for k := range count {
				p.add(0, size)
				if (k+1)%batch == 0 || k == count-1 {
					p.end()
				}
				frames, _ := p.got()
				for _, f := range frames {
					if f.tcp.Flags&packet.ACK != 0 && f.tcp.Ack == guestISN+1 && len(f.tcp.Payload) == 0 {
						acks++
					}
				}
			}
			if acks != count {
				t.Errorf("segments of %d bytes, %d in a batch: %d duplicate ACKs for %d segments", size, batch, acks, count)
			}
		}
	}
}
