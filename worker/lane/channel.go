// SPDX-License-Identifier: Apache-2.0

package lane

import (
	"syscall"

	"aldente/ipc"
	"aldente/worker/kernel"
)

// channel is the lane's end of the channel to the broker: requests queue here
// and leave several at a time, answers come several at a time.
type channel struct {
	fd          int32
	queue       [4096]ipc.Open // ring
	head, n     int
	outstanding int
	out         [ipc.MaxBatch * ipc.OpenSize]byte
	in          kernel.Records
}

// add queues a request; it reports false if the queue is full.
func (c *channel) add(r *ipc.Open) bool {
	if c.n == len(c.queue) {
		return false
	}
	c.queue[(c.head+c.n)%len(c.queue)] = *r
	c.n++
	return true
}

// flush sends queued requests as far as the bound on unanswered ones allows.
// It reports false if the broker is gone.
func (c *channel) flush() bool {
	for c.n > 0 && c.outstanding < ipc.MaxOutstanding {
		k := min(c.n, ipc.MaxBatch, ipc.MaxOutstanding-c.outstanding)
		for j := range k {
			c.queue[(c.head+j)%len(c.queue)].Encode(c.out[j*ipc.OpenSize : (j+1)*ipc.OpenSize])
		}
		_, e := kernel.Write(c.fd, c.out[:k*ipc.OpenSize])
		if e == syscall.EAGAIN {
			return true
		}
		if e != 0 {
			return false
		}
		c.head = (c.head + k) % len(c.queue)
		c.n -= k
		c.outstanding += k
	}
	return true
}

// send writes one record.
func (c *channel) send(rec []byte) syscall.Errno {
	_, e := kernel.Write(c.fd, rec)
	return e
}

// receive takes what the broker has sent and calls f for each record with its
// descriptor or -1. It reports false at the end of the channel.
func (c *channel) receive(f func(rec []byte, fd int32)) bool { return c.in.Receive(c.fd, f) }
