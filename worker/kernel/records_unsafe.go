// SPDX-License-Identifier: Apache-2.0

package kernel

import (
	"encoding/binary"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"

	"aldente/ipc"
)

// Records takes records from a channel, several with a call.
type Records struct {
	mmsg [32]mmsghdr
	iov  [32]unix.Iovec
	bufs [32][ipc.MaxRecord]byte
	oob  [32][64]byte

	laid   bool // all were laid once
	filled int  // messages that the kernel has filled since they were
}

// lay makes room for one message. What the kernel fills has to be laid again.
func (r *Records) lay(i int) {
	r.iov[i].Base = &r.bufs[i][0]
	r.iov[i].SetLen(len(r.bufs[i]))
	m := &r.mmsg[i].hdr
	*m = unix.Msghdr{Iov: &r.iov[i], Control: &r.oob[i][0]}
	m.SetIovlen(1)
	m.SetControllen(len(r.oob[i]))
}

// Receive takes what has come, a few at a time, and calls f for each record with its
// descriptor or -1. It reports false at the end of the channel.
func (r *Records) Receive(fd int32, f func(rec []byte, fd int32)) bool {
	if !r.laid {
		r.laid, r.filled = true, len(r.mmsg)
	}
	for i := range r.filled {
		r.lay(i)
	}
	r.filled = 0
	n, e := raw6(unix.SYS_RECVMMSG, uintptr(fd), uintptr(unsafe.Pointer(&r.mmsg)), uintptr(len(r.mmsg)),
		unix.MSG_DONTWAIT|unix.MSG_CMSG_CLOEXEC, 0, 0)
	if e == syscall.EAGAIN {
		return true
	}
	if e != 0 {
		return false
	}
	r.filled = n
	for i := range n {
		m := &r.mmsg[i]
		if m.n == 0 {
			return false
		}
		passed := int32(-1)
		for k := range cmsgs(r.oob[i][:m.hdr.Controllen]) {
			if k.level == unix.SOL_SOCKET && k.typ == unix.SCM_RIGHTS && len(k.data) >= 4 {
				passed = int32(binary.NativeEndian.Uint32(k.data))
			}
		}
		f(r.bufs[i][:m.n], passed)
	}
	return n > 0
}
