// SPDX-License-Identifier: Apache-2.0

package lane

import (
	"encoding/binary"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"

	"aldente/ipc"
)

// channel is the lane's end of the channel to the broker: requests queue here
// and leave several at a time, answers come several at a time.
type channel struct {
	fd          int32
	queue       [4096]ipc.Open // ring
	head, n     int
	outstanding int
	out         [ipc.MaxBatch * ipc.OpenSize]byte

	mmsg [32]mmsghdr
	iov  [32]unix.Iovec
	bufs [32][ipc.MaxRecord]byte
	oob  [32][64]byte
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
		_, e := raw(unix.SYS_WRITE, uintptr(c.fd), base(c.out[:k*ipc.OpenSize]), uintptr(k*ipc.OpenSize))
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
	_, e := raw(unix.SYS_WRITE, uintptr(c.fd), base(rec), uintptr(len(rec)))
	return e
}

// receive takes what the broker has sent and calls f for each record with its
// descriptor or -1. It reports false at the end of the channel.
func (c *channel) receive(f func(rec []byte, fd int32)) bool {
	for i := range c.mmsg {
		c.iov[i].Base = &c.bufs[i][0]
		c.iov[i].SetLen(len(c.bufs[i]))
		m := &c.mmsg[i].hdr
		*m = unix.Msghdr{Iov: &c.iov[i], Control: &c.oob[i][0]}
		m.SetIovlen(1)
		m.SetControllen(len(c.oob[i]))
	}
	n, e := raw6(unix.SYS_RECVMMSG, uintptr(c.fd), uintptr(unsafe.Pointer(&c.mmsg)), uintptr(len(c.mmsg)),
		unix.MSG_DONTWAIT|unix.MSG_CMSG_CLOEXEC, 0, 0)
	if e == syscall.EAGAIN {
		return true
	}
	if e != 0 {
		return false
	}
	for i := range n {
		m := &c.mmsg[i]
		if m.n == 0 {
			return false
		}
		fd := int32(-1)
		for k := range cmsgs(c.oob[i][:m.hdr.Controllen]) {
			if k.level == unix.SOL_SOCKET && k.typ == unix.SCM_RIGHTS && len(k.data) >= 4 {
				fd = int32(binary.NativeEndian.Uint32(k.data))
			}
		}
		f(c.bufs[i][:m.n], fd)
	}
	return n > 0
}
