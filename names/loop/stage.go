// SPDX-License-Identifier: Apache-2.0

package loop

import (
	"errors"
	"syscall"

	"aldente/ipc"
	"aldente/names/kernel"
)

// stage takes a record about a flow whose first bytes are looked at.
func (l *Loop) stage(kind ipc.Kind, rec []byte, fd int) error {
	switch kind {
	case ipc.NamesKindStage:
		var s ipc.Stage
		if err := s.Decode(rec); err != nil {
			return err
		}
		l.staged.Begin(&s, fd)
	case ipc.NamesKindStageSocket:
		var s ipc.StageSocket
		if err := s.Decode(rec); err != nil {
			return err
		}
		l.staged.Socket(&s, fd)
	case ipc.NamesKindStageEnd:
		var s ipc.StageEnd
		if err := s.Decode(rec); err != nil {
			return err
		}
		l.staged.End(&s)
	case ipc.NamesKindRelay:
		var r ipc.Relay
		if err := r.Decode(rec); err != nil {
			return err
		}
		l.staged.Relay(&r, fd)
	}
	return nil
}

// proxy takes the record about the proxy, and wipes it.
func (l *Loop) proxy(rec []byte) error {
	var p ipc.Proxy
	err := p.Decode(rec)
	clear(rec)
	if err == nil {
		l.staged.SetProxy(&p)
	}
	p = ipc.Proxy{}
	return err
}

// stages is the loop as package stage sees it.
type stages struct{ *Loop }

// Tell implements stage.Env.
func (s stages) Tell(rec []byte) { s.send(rec) }

// Read implements stage.Env.
func (s stages) Read(fd int, b []byte) (int, syscall.Errno) {
	n, err := kernel.Read(fd, b)
	return n, errno(err)
}

// Write implements stage.Env.
func (s stages) Write(fd int, b []byte) (int, syscall.Errno) {
	n, err := kernel.Write(fd, b)
	return n, errno(err)
}

// Watch implements stage.Env.
func (s stages) Watch(fd int, id uint32, writable bool) syscall.Errno {
	return errno(s.poll.Add(fd, token(ofStage, id), !writable, writable))
}

// Unwatch implements stage.Env.
func (s stages) Unwatch(fd int) { s.poll.Remove(fd) }

// Close implements stage.Env.
func (s stages) Close(fd int) { s.poll.Close(fd) }

// errno is the error number in err, zero if that is nil.
func errno(err error) syscall.Errno {
	var e syscall.Errno
	if err != nil && !errors.As(err, &e) {
		return syscall.EIO
	}
	return e
}
