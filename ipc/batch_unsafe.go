// SPDX-License-Identifier: Apache-2.0

package ipc

import (
	"unsafe"

	"golang.org/x/sys/unix"

	"aldente/ipc/sock"
)

// Replies gathers Opened records with their descriptors, so that all answers
// to one batch of requests leave with one sendmmsg(2). Descriptors belong to
// it from Add on: they are closed once sent, or if they cannot be.
type Replies struct {
	n    int
	msgs [maxReplies]mmsghdr
	iov  [maxReplies]unix.Iovec
	recs [maxReplies][OpenedSize]byte
	oob  [maxReplies][oobSize]byte
	fds  [maxReplies]int
}

// maxReplies is how many records answer MaxBatch requests: a flow to a group gets two
// descriptors.
const maxReplies = 2 * MaxBatch

// oobSize holds one descriptor: unix.CmsgSpace(4) on 64-bit systems.
const oobSize = 24

// mmsghdr is struct mmsghdr of include/linux/socket.h.
type mmsghdr struct {
	hdr unix.Msghdr
	n   uint32
	_   [4]byte
}

// Full tells whether Send has to come before the next Add.
func (r *Replies) Full() bool { return r.n == maxReplies }

// Add gathers one answer; fd is -1 if none goes with it.
func (r *Replies) Add(o *Opened, fd int) {
	i := r.n
	r.n++
	o.Encode(r.recs[i][:])
	r.fds[i] = fd
	r.iov[i].Base = &r.recs[i][0]
	r.iov[i].SetLen(OpenedSize)
	h := &r.msgs[i].hdr
	*h = unix.Msghdr{Iov: &r.iov[i]}
	h.SetIovlen(1)
	if fd >= 0 {
		c := (*unix.Cmsghdr)(unsafe.Pointer(&r.oob[i]))
		c.Level, c.Type = unix.SOL_SOCKET, unix.SCM_RIGHTS
		c.SetLen(unix.CmsgLen(4))
		*(*int32)(unsafe.Pointer(&r.oob[i][unix.SizeofCmsghdr])) = int32(fd)
		h.Control = &r.oob[i][0]
		h.SetControllen(oobSize)
	}
}

// Keep leaves the descriptor that was added last open when it is sent. It must
// stay open until then.
func (r *Replies) Keep() { r.fds[r.n-1] = -1 }

// Send sends what was gathered and closes the descriptors.
func (r *Replies) Send(conn int) error {
	sent := 0
	var err error
	for sent < r.n {
		n, _, e := unix.RawSyscall6(unix.SYS_SENDMMSG, uintptr(conn), uintptr(unsafe.Pointer(&r.msgs[sent])),
			uintptr(r.n-sent), unix.MSG_NOSIGNAL|unix.MSG_DONTWAIT, 0, 0)
		if e == unix.EAGAIN { // it has to be waited for
			n, _, e = unix.Syscall6(unix.SYS_SENDMMSG, uintptr(conn), uintptr(unsafe.Pointer(&r.msgs[sent])),
				uintptr(r.n-sent), unix.MSG_NOSIGNAL, 0, 0)
		}
		if e == unix.EINTR {
			continue
		}
		if e != 0 {
			err = e
			break
		}
		sent += int(n)
	}
	for i := range r.n {
		if r.fds[i] >= 0 {
			sock.Close(r.fds[i])
		}
	}
	r.n = 0
	return err
}
