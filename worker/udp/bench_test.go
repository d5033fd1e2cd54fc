// SPDX-License-Identifier: Apache-2.0

package udp

import (
	"testing"

	"aldente/worker/flow"
	"aldente/worker/packet"
)

// BenchmarkInput is the guest's datagrams of one batch, 32 of them.
func BenchmarkInput(b *testing.B) {
	r := newRig(b)
	r.connect(remote4)
	r.host.Quiet = true
	var p packet.Packet
	var u packet.UDP
	var o packet.Offload
	p.Decode(r.frame(remote4, 1000, 2000, make([]byte, 1400)))
	u.Decode(p.Payload())
	b.SetBytes(32 * 1400)
	for b.Loop() {
		for range 32 {
			r.Input(&p, &o, &u)
		}
		r.Flush()
	}
}

// BenchmarkReceive is the host's datagrams of one event: one by one, and as
// UDP_GRO joins them.
func BenchmarkReceive(b *testing.B) {
	for _, bb := range []struct {
		name           string
		count, n, size int
	}{{"one", 1, 1400, 0}, {"32", 32, 1400, 0}, {"joined", 1, 45 * 1400, 1400}} {
		b.Run(bb.name, func(b *testing.B) {
			r := newRig(b)
			s, token := r.connect(remote4)
			r.host.Quiet = true
			data := make([]byte, bb.n)
			load := make([]flow.Datagram, 0, bb.count)
			b.SetBytes(int64(bb.count * bb.n))
			for b.Loop() {
				load = load[:0]
				for range bb.count {
					load = append(load, flow.Datagram{Buf: data, N: bb.n, Segment: bb.size})
				}
				s.Datagrams = load
				r.Ready(token, flow.Readable)
			}
		})
	}
}
