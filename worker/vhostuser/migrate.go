// SPDX-License-Identifier: Apache-2.0

package vhostuser

import (
	"encoding/binary"

	"aldente/worker/vhost"
)

// setLogBase maps the log of pages that are written to.
func (s *Session) setLogBase(b []byte) error {
	if len(s.fds) != 1 {
		return malformed("no descriptor")
	}
	m, err := mapShared(s.fds[0], u64(b[8:]), u64(b))
	if err != nil {
		return err
	}
	s.dev.SetLog(Log{m.used})
	s.log.unmap()
	s.log = m
	return s.answer(0)
}

// setLogFD is told of an event that nobody has to be told of: the log is read when
// the front end wants to.
func (s *Session) setLogFD([]byte) error { return nil }

// inflightInfo is the payload of both requests for memory of chains in flight.
type inflightInfo struct {
	size, offset uint64 // of the memory in its file, in bytes
	queues, ring int
}

func (p *inflightInfo) decode(b []byte) error {
	*p = inflightInfo{u64(b), u64(b[8:]), int(binary.NativeEndian.Uint16(b[16:])), int(binary.NativeEndian.Uint16(b[18:]))}
	if p.queues == 0 || p.queues > MaxQueues || p.ring == 0 || p.ring > MaxRing || p.ring&(p.ring-1) != 0 {
		return malformed("%d queues of %d descriptors", p.queues, p.ring)
	}
	return nil
}

// need is how many bytes such queues have.
func (p *inflightInfo) need() uint64 { return uint64(p.queues * vhost.InflightSize(p.ring)) }

// getInflightFD leaves the answer to who can make memory.
func (s *Session) getInflightFD(b []byte) error {
	var p inflightInfo
	if err := p.decode(b); err != nil {
		return err
	}
	if err := s.config.NewInflight(int(p.need()), p.queues, p.ring, len(b)); err != nil {
		return malformed("%v", err)
	}
	return nil
}

func (s *Session) setInflightFD(b []byte) error {
	var p inflightInfo
	if err := p.decode(b); err != nil {
		return err
	}
	switch {
	case len(s.fds) != 1:
		return malformed("no descriptor")
	case p.size < p.need():
		return malformed("%d bytes for %d queues of %d descriptors", p.size, p.queues, p.ring)
	case s.running():
		return malformed("memory for chains in flight changes while rings run")
	}
	m, err := mapShared(s.fds[0], p.offset, p.size)
	if err != nil {
		return err
	}
	s.dev.SetInflight(Inflight{m.used, p.queues, p.ring})
	s.inflight.unmap()
	s.inflight = m
	return nil
}
