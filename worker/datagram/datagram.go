// SPDX-License-Identifier: Apache-2.0

// Package datagram is what the translators of UDP, of echo and of UDP past the
// guest's link share: the queue of what waits for a socket, how datagrams are
// joined for one system call and cut again, what follows from a write that
// failed, and what the guest is told of it.
package datagram

import (
	"aldente/worker/flow"
	"aldente/worker/packet"
)

const (
	// MaxSegments is what every kernel takes in one write, UDP_MAX_SEGMENTS
	// of include/linux/udp.h before Linux 6.10.
	MaxSegments = 64
	// MaxWrite is the most that one write with UDP_SEGMENT may hold, in bytes: an
	// IPv4 packet less its headers. IPv6 could do with 20 bytes more.
	MaxWrite = 65535 - 20 - 8
	// BufferSize holds anything that one read brings, in bytes.
	BufferSize = 64 << 10
	// GuestTTL is the time to live of all packets to the guest.
	GuestTTL = 255
	// RefusedLife is how long it is remembered that there is no socket for a flow,
	// in nanoseconds: in that time the broker is not asked again.
	RefusedLife = second

	second = int64(1_000_000_000)

	// Seconds that a flow lives without traffic where the configuration does not
	// say, as conntrack has them: in one direction only, and in both.
	defaultIdle   = 30
	defaultStream = 120
)

// Lifetime is how long a flow of UDP may go unused, in nanoseconds; a stream is one
// with traffic in both directions.
func Lifetime(g *flow.Guest, stream bool) int64 {
	s, otherwise := g.UDPIdle, uint32(defaultIdle)
	if stream {
		s, otherwise = g.UDPStream, defaultStream
	}
	if s == 0 {
		s = otherwise
	}
	return int64(s) * second
}

// Buffers gives each of d memory of its own.
func Buffers(d []flow.Datagram) {
	mem := make([]byte, len(d)*BufferSize)
	for i := range d {
		d[i].Buf = mem[i*BufferSize : (i+1)*BufferSize : (i+1)*BufferSize]
	}
}

// FromPeer divides what a socket has received into what its peer has sent and what
// somebody else has, each in the order in which it came. The kernel does so once a
// socket is connected; but what it has found the socket for before may be in the
// queue, or still on its way into it.
func FromPeer(d []flow.Datagram, peer packet.Addr, port uint16) (own, others []flow.Datagram) {
	n := 0
	for k := range d {
		if from := &d[k].From; !from.IsUnspecified() && (*from != peer || d[k].FromPort != port) {
			continue
		}
		if k != n { // the one goes before the strangers, and all keep their memory
			one := d[k]
			copy(d[n+1:k+1], d[n:k])
			d[n] = one
		}
		n++
	}
	return d[:n], d[n:]
}
