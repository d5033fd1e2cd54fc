// SPDX-License-Identifier: Apache-2.0

package flow

import (
	"syscall"
	"time"

	"aldente/ipc"
)

// Traffic is what one flow has moved, for whoever asks for it.
type Traffic struct {
	Sent, SentPackets         uint64 // from the guest: bytes, packets
	Received, ReceivedPackets uint64 // to the guest
	Born                      int64  // when it began, in nanoseconds
}

// Out counts bytes from the guest.
func (t *Traffic) Out(bytes, packets int) {
	t.Sent += uint64(bytes)
	t.SentPackets += uint64(packets)
}

// In counts bytes to the guest.
func (t *Traffic) In(bytes, packets int) {
	t.Received += uint64(bytes)
	t.ReceivedPackets += uint64(packets)
}

// Describe puts it into f. last is when something moved, in nanoseconds.
func (t *Traffic) Describe(f *ipc.Flow, now, last int64) {
	f.Age, f.Idle = uint64(max(now-t.Born, 0)), uint64(max(now-last, 0))
	f.Sent, f.SentPackets = t.Sent, t.SentPackets
	f.Received, f.ReceivedPackets = t.Received, t.ReceivedPackets
}

// Path is what TCP of the host knows of the way to a connection's peer.
type Path struct {
	RTT         time.Duration // smoothed; zero: none was measured
	Retransmits uint32        // segments
}

// Paths asks for it.
type Paths interface {
	// Path is TCP_INFO.
	Path(fd int32) (Path, syscall.Errno)
}

// Describe adds what is known of a way to f.
func (p *Path) Describe(f *ipc.Flow) {
	f.RTT = uint32(min(p.RTT.Microseconds(), 1<<32-1))
	f.Retransmits += uint64(p.Retransmits)
}

// Packets is how many datagrams of size bytes data of n bytes are, of which the last
// may be shorter. One that is empty is one.
func Packets(n, size int) int {
	if size <= 0 || n <= size {
		return 1
	}
	return (n + size - 1) / size
}
