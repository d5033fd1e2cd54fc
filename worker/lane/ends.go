// SPDX-License-Identifier: Apache-2.0

package lane

import (
	"syscall"

	"aldente/ipc"
	"aldente/worker/flow"
	"aldente/worker/kernel"
	"aldente/worker/packet"
)

const (
	// maxEnds is how many records for the flow log may wait for the broker to read.
	// What is beyond them is lost: the broker tells of those flows in the end.
	maxEnds = 128 << 10
	// endsRetry is when the channel is tried again that was full, in milliseconds.
	endsRetry = 10
)

// ends tells the broker's flow log of flows: with --flow-log only. A flow's socket comes
// by the broker's answer, or is accepted, and is closed by the lane, each of them: so no
// end is forgotten, whatever a translator does. What the flow has carried and how it has
// ended the translator says just before.
type ends struct {
	token []uint64 // of the flow whose socket a descriptor is, zero: of none
	fd    int32    // that last is of, -1: of none
	last  ipc.Ended

	queue   []note // ring
	head, n int
	out     [ipc.MaxBatch * max(ipc.EndedSize, ipc.AcceptedSize)]byte
}

// note is a record that waits.
type note struct {
	size int32
	rec  [max(ipc.EndedSize, ipc.AcceptedSize)]byte
}

func newEnds(descriptors int) *ends {
	return &ends{token: make([]uint64, descriptors), fd: -1, queue: make([]note, maxEnds)}
}

// tellEnds has the broker told of flows, as long as descriptors are below a number.
func (l *Lane) tellEnds(descriptors int) {
	e := newEnds(descriptors)
	l.ends = e
	l.tcp.Accepted, l.tcp.Ended = e.accepted, e.ended
	l.udp.Ended, l.icmp.Ended, l.bypass.Ended = e.ended, e.ended, e.ended
}

// opened takes note of a socket that the broker has answered a request with.
func (e *ends) opened(fd int32, token uint64) {
	if fd >= 0 && int(fd) < len(e.token) {
		e.token[fd] = token
	}
}

// accepted tells of a connection that came by a listener and goes to the guest.
func (e *ends) accepted(fd int32, token uint64, listener uint32, peer packet.Addr, port uint16) {
	e.opened(fd, token)
	if n := e.add(ipc.AcceptedSize); n != nil {
		(&ipc.Accepted{Token: token, Listener: listener, Port: port, Addr: peer}).Encode(n.rec[:])
	}
}

// ended takes what there is to say of a flow whose socket is closed next.
func (e *ends) ended(fd int32, how ipc.How, t *flow.Traffic) {
	e.fd = fd
	e.last = ipc.Ended{How: how, Sent: t.Sent, Received: t.Received, SentPackets: t.SentPackets, ReceivedPackets: t.ReceivedPackets}
}

// closed tells of the flow that has ended with a socket, if it was one's.
func (e *ends) closed(fd int32) {
	if fd < 0 || int(fd) >= len(e.token) || e.token[fd] == 0 {
		return
	}
	told := ipc.Ended{How: ipc.EndUnused}
	if e.fd == fd { // a flow may have another socket, which is closed before
		told, e.fd = e.last, -1
	}
	told.Token, e.token[fd] = e.token[fd], 0
	if n := e.add(ipc.EndedSize); n != nil {
		told.Encode(n.rec[:])
	}
}

// add returns the place of one more record, nil if there is none.
func (e *ends) add(size int32) *note {
	if e.n == len(e.queue) {
		return nil
	}
	n := &e.queue[(e.head+e.n)%len(e.queue)]
	n.size = size
	e.n++
	return n
}

// flush sends what waits, as far as the channel takes it. It reports false if the
// broker is gone.
func (e *ends) flush(channel int32) bool {
	for e.n > 0 {
		k, b := 0, e.out[:0]
		for size := e.queue[e.head].size; k < min(e.n, ipc.MaxBatch); k++ {
			n := &e.queue[(e.head+k)%len(e.queue)]
			if n.size != size {
				break // records of one kind to a message
			}
			b = append(b, n.rec[:size]...)
		}
		switch _, err := kernel.Write(channel, b); err {
		case 0:
		case syscall.EAGAIN:
			return true
		default:
			return false
		}
		e.head, e.n = (e.head+k)%len(e.queue), e.n-k
	}
	return true
}
