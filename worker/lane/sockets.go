// SPDX-License-Identifier: Apache-2.0

package lane

import (
	"syscall"

	"aldente/ipc"
	"aldente/worker/kernel"
	"aldente/worker/link"
	"aldente/worker/packet"
)

// Write implements flow.Writer.
func (l *Lane) Write(fd int32, b []byte) (int, syscall.Errno) {
	n, e := l.Sockets.Write(fd, b)
	l.faulted = l.faulted || e == syscall.EFAULT
	return n, e
}

// Writev implements flow.GatherWriter.
func (l *Lane) Writev(fd int32, bufs [][]byte) (int, syscall.Errno) {
	n, e := l.Sockets.Writev(fd, bufs)
	l.faulted = l.faulted || e == syscall.EFAULT
	return n, e
}

// RecvPieces implements tcp.Env.
func (l *Lane) RecvPieces(fd int32, bufs [][]byte, flags int) (int, syscall.Errno) {
	n, e := l.Sockets.RecvPieces(fd, bufs, flags)
	l.faulted = l.faulted || e == syscall.EFAULT
	return n, e
}

// Open implements flow.Broker.
func (l *Lane) Open(r *ipc.Open) bool {
	if !l.channel.add(r) {
		return false
	}
	l.figures.requested(r.Token, l.now)
	if l.flows != nil {
		l.flows.ask(r)
	}
	return true
}

// Accept implements tcp.Env.
func (l *Lane) Accept(fd int32) (int32, packet.Addr, uint16, syscall.Errno) {
	conn, peer, port, e := l.Sockets.Accept(fd)
	if l.flows != nil && e == 0 {
		l.flows.accepted(l.now, conn, peer, port)
	}
	return conn, peer, port, e
}

// Watch implements flow.Watcher.
func (l *Lane) Watch(fd int32, token uint64, events uint32) syscall.Errno {
	return l.poll.Watch(fd, token, events)
}

// Rewatch implements flow.Rewatcher.
func (l *Lane) Rewatch(fd int32, token uint64, events uint32) syscall.Errno {
	return l.poll.Rewatch(fd, token, events)
}

// TakeError implements flow.Failures.
func (l *Lane) TakeError(fd int32) syscall.Errno {
	e := l.Sockets.TakeError(fd)
	if l.live != nil && e != 0 {
		l.live.verdict = link.Note{"the socket outside: ", e.Error()}
	}
	return e
}

// Close implements flow.Watcher.
func (l *Lane) Close(fd int32) {
	if l.flows != nil {
		l.flows.closed(l.now, fd)
	}
	if l.ends != nil {
		l.ends.closed(fd)
	}
	kernel.Close(fd)
	l.freed = true
}

// Abort implements flow.Streams.
func (l *Lane) Abort(fd int32) {
	l.ResetOnClose(fd)
	l.Close(fd)
}

// Splice implements bypass.Env.
func (l *Lane) Splice(from, to int32, n int) (int, syscall.Errno) {
	n, e := l.Sockets.Splice(from, to, n)
	if e == 0 {
		l.moved += n
	}
	return n, e
}
