// SPDX-License-Identifier: Apache-2.0

package sockets

import (
	"errors"
	"net/netip"
	"time"

	"golang.org/x/sys/unix"

	"aldente/broker/egress"
	"aldente/broker/flowlog"
	"aldente/broker/inet"
	"aldente/broker/ingress"
	"aldente/broker/limiter"
	"aldente/ipc"
	"aldente/ipc/sock"
)

const (
	// acceptBurst bounds the connections that are taken from a listener at a time.
	acceptBurst = 64
	// acceptPause is how long nothing is accepted where there is no descriptor left, or
	// no worker.
	acceptPause = 10 * time.Millisecond
	// acceptWait is how long a connection that was accepted waits for a worker.
	acceptWait = 10 * time.Second
)

// gate accepts the connections that come by guarded listeners.
type gate struct {
	ep      int // of the listeners, by their identifier
	events  []unix.EpollEvent
	refused map[uint32]uint64 // connections, by listener; under Factory.mu
	lines   limiter.Bucket    // of the log
	pace    limiter.Bucket    // of connections
}

func newGate() *gate {
	return &gate{ep: -1, events: make([]unix.EpollEvent, 64), refused: map[uint32]uint64{},
		lines: limiter.Bucket{Rate: limiter.Rate{PerSecond: 1, Burst: 20}},
		pace:  limiter.Bucket{Rate: limiter.Rate{PerSecond: -1}}}
}

// add has a listener's connections accepted. The caller holds Factory.mu.
func (g *gate) add(l *Listener) {
	if g.ep < 0 {
		ep, err := unix.EpollCreate1(unix.EPOLL_CLOEXEC)
		if err != nil {
			return // nobody gets in
		}
		g.ep = ep
	}
	inet.NoDelay(l.FD) // which its connections have from it
	e := unix.EpollEvent{Events: unix.EPOLLIN, Fd: int32(l.ID)}
	_ = unix.EpollCtl(g.ep, unix.EPOLL_CTL_ADD, l.FD, &e)
}

// PassOn has connections accepted where rules say who may connect, and passes on those
// that they let in, by send. It must be called once, before this process confines
// itself.
func (f *Factory) PassOn(send func(rec []byte, fd int) error) {
	if f.gate == nil {
		return
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.gate.ep < 0 {
		ep, err := unix.EpollCreate1(unix.EPOLL_CLOEXEC)
		if err != nil {
			f.cfg().Logger.Error("nobody can connect to the guest", "error", err)
			return
		}
		f.gate.ep = ep
	}
	go f.acceptAll(send)
}

// acceptAll accepts for as long as the process lives.
func (f *Factory) acceptAll(send func(rec []byte, fd int) error) {
	for {
		fds := [1]unix.PollFd{{Fd: int32(f.gate.ep), Events: unix.POLLIN}}
		if _, err := unix.Poll(fds[:], -1); err != nil && err != unix.EINTR {
			f.cfg().Logger.Error("nobody can connect to the guest any more", "error", err)
			return
		}
		n := readyNow(f.gate.ep, f.gate.events)
		for _, e := range f.gate.events[:n] {
			f.acceptSome(uint32(e.Fd), send)
		}
	}
}

// acceptSome takes what waits on a listener.
func (f *Factory) acceptSome(id uint32, send func(rec []byte, fd int) error) {
	for range acceptBurst {
		if !f.gate.pace.Ready(time.Now()) {
			time.Sleep(acceptPause) // they wait in the backlog
			return
		}
		l, fd, peer, scope, err := f.accept(id)
		switch {
		case err == nil:
			f.gate.pace.Spend()
			f.admit(&l, fd, peer, scope, send)
		case errors.Is(err, unix.EMFILE), errors.Is(err, unix.ENFILE), errors.Is(err, unix.ENOBUFS), errors.Is(err, unix.ENOMEM):
			time.Sleep(acceptPause)
			return
		case errors.Is(err, unix.EAGAIN), errors.Is(err, unix.EBADF):
			return
		}
		// Any other error is that of a connection which is gone already, accept(2).
	}
}

// accept takes one connection, and tells on which interface a link-local peer is. What
// the listener is, and that its descriptor is its own, holds for as long as f.mu is held.
func (f *Factory) accept(id uint32) (l Listener, fd int, peer netip.AddrPort, scope uint32, err error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	l, ok := f.listeners[id]
	if !ok {
		return l, -1, peer, 0, unix.EBADF
	}
	fd, sa, err := sock.Accept4(l.FD, unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC)
	if err == unix.EINVAL { // it does not listen any more: it would be reported for ever
		_ = unix.EpollCtl(f.gate.ep, unix.EPOLL_CTL_DEL, l.FD, nil)
		err = unix.EBADF
	}
	switch a := sa.(type) {
	case *unix.SockaddrInet4:
		peer = netip.AddrPortFrom(netip.AddrFrom4(a.Addr), uint16(a.Port))
	case *unix.SockaddrInet6:
		peer, scope = netip.AddrPortFrom(netip.AddrFrom16(a.Addr).Unmap(), uint16(a.Port)), a.ZoneId
	}
	return l, fd, peer, scope, err
}

// admit passes a connection on, or ends it.
func (f *Factory) admit(l *Listener, fd int, peer netip.AddrPort, scope uint32, send func(rec []byte, fd int) error) {
	defer unix.Close(fd)
	allowed, by := f.cfg().Ingress.Admit(ingress.Peer{
		Proto: ipc.ProtoTCP, Port: l.GuestPort, Addr: peer.Addr(), Host: f.cfg().onHost(egress.Flow{Proto: ipc.ProtoTCP, To: peer, Scope: scope}),
	})
	if !allowed {
		disconnect(fd)
		f.refusedIn(l, peer, by)
		return
	}
	r := l.Record()
	rec := make([]byte, ipc.IncomingSize)
	(&ipc.Incoming{Listener: r, Port: peer.Port(), Peer: peer.Addr().As16()}).Encode(rec)
	err := send(rec, fd)
	for began := time.Now(); errors.Is(err, unix.EPIPE) && time.Since(began) < acceptWait; err = send(rec, fd) {
		time.Sleep(acceptPause) // there is no worker for a moment
	}
	if err != nil {
		disconnect(fd)
	}
}

// refusedIn tells of a connection that was refused.
func (f *Factory) refusedIn(l *Listener, peer netip.AddrPort, by string) {
	f.mu.Lock()
	f.gate.refused[l.ID]++
	f.mu.Unlock()
	if f.cfg().Flows != nil {
		f.cfg().Flows.Refused(flowlog.Flow{Proto: ipc.ProtoTCP, Direction: "in", Guest: ofGuest(l), Remote: peer, Rule: by}, "inbound rules")
	}
	if f.gate.lines.Take(time.Now()) {
		f.cfg().Logger.Info("connection refused by the inbound rules", "from", peer.String(), "port", l.GuestPort, "rule", by, "not_told", f.gate.lines.Missed())
	}
}
