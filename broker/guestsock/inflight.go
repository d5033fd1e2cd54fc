// SPDX-License-Identifier: Apache-2.0

package guestsock

import (
	"encoding/binary"

	"golang.org/x/sys/unix"

	"aldente/ipc"
	"aldente/ipc/sock"
)

// GET_INFLIGHT_FD of vhost-user, and the flags of its answer: version 1, a reply.
const (
	getInflightFD = 31
	replyFlags    = 1 | 1<<2
)

// SetClient tells which socket the client of a Given server has, for Inflight. It stays
// the caller's.
func (s *Server) SetClient(fd int) error {
	own, err := unix.FcntlInt(uintptr(fd), unix.F_DUPFD_CLOEXEC, 0)
	if err == nil {
		s.client = own
	}
	return err
}

// Inflight answers the client of vhost-user, who has asked the worker for memory to
// keep what is in flight. A client that cannot be answered is hung up on.
func (s *Server) Inflight(r *ipc.Inflight) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.kind != ipc.LinkVhostUser || s.client < 0 || !s.busy {
		return
	}
	if err := answerInflight(s.client, r); err != nil {
		s.log.Warn("cannot give the client memory for what is in flight", "error", err)
		sock.Shutdown(s.client, unix.SHUT_RDWR)
	}
}

func answerInflight(client int, r *ipc.Inflight) error {
	fd, err := unix.MemfdCreate("inflight", unix.MFD_CLOEXEC|unix.MFD_NOEXEC_SEAL)
	if err == unix.EINVAL { // before Linux 6.3
		fd, err = unix.MemfdCreate("inflight", unix.MFD_CLOEXEC)
	}
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	if err := unix.Ftruncate(fd, int64(r.Bytes)); err != nil {
		return err
	}
	b := binary.NativeEndian.AppendUint32(nil, getInflightFD)
	b = binary.NativeEndian.AppendUint32(b, replyFlags)
	b = binary.NativeEndian.AppendUint32(b, r.Payload)
	b = binary.NativeEndian.AppendUint64(b, uint64(r.Bytes))
	b = binary.NativeEndian.AppendUint64(b, 0) // where it begins
	b = binary.NativeEndian.AppendUint16(b, r.Queues)
	b = binary.NativeEndian.AppendUint16(b, r.Ring)
	b = append(b, make([]byte, r.Payload-ipc.InflightPayload)...)
	return sock.Sendmsg(client, b, unix.UnixRights(fd), nil, unix.MSG_DONTWAIT|unix.MSG_NOSIGNAL)
}
