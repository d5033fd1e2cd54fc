// SPDX-License-Identifier: Apache-2.0

package sockets

import (
	"errors"
	"fmt"
	"net/netip"
	"os"

	"golang.org/x/sys/unix"

	"aldente/broker/inet"
	"aldente/ipc"
	"aldente/ipc/sock"
)

// Listener is one socket on the host that stands for a port of the guest, or one
// on the namespace's loopback that stands for a port of the host.
type Listener struct {
	ID        uint32     // names it towards the worker, above zero; zero: not adopted yet
	Proto     uint8      // ipc.ProtoTCP or ipc.ProtoUDP
	Addr      netip.Addr // zero: any address, both families if enabled
	Interface string     // zero: any
	Port      uint16     // that it is bound to
	GuestPort uint16     // that it stands for: in the guest, or on the host with Namespace
	Target    netip.Addr // address in the guest, zero: the guest's own
	Splice    bool       // peers on the host's loopback take the bypass
	Namespace bool       // in the namespace; Addr is zero, Target an address on the host or zero
	FD        int        // the socket, non-blocking; -1: not opened
	Guarded   bool       // the broker accepts what comes by it, and the worker does not have it
	Passed    bool       // the service manager has it too, and goes on to listen
	cookie    uint64     // of a UDP socket of ours on the host
}

// Listen opens the socket and gives it an identifier.
func (f *Factory) Listen(l Listener) (Listener, error) {
	l, err := f.Bind(l)
	if err != nil {
		return l, err
	}
	return f.Adopt(l), nil
}

// Bind opens the socket of a listener and no more.
func (f *Factory) Bind(l Listener) (Listener, error) {
	if err := f.Room(0); err != nil {
		return l, err
	}
	fd, err := f.bindListener(&l, false)
	l.FD = fd
	return l, err
}

// Beside is Bind where listeners of ours that are about to go have the port, by an
// address or interface of which l has a part. They hear as before. Sockets of the same
// user that set SO_REUSEPORT might join them, as with UDP.
func (f *Factory) Beside(l Listener, going []Listener) (Listener, error) {
	if l.Proto == ipc.ProtoTCP {
		for i := range going {
			if err := inet.ShareTCP(going[i].FD, true); err != nil {
				return l, err
			}
			defer inet.ShareTCP(going[i].FD, false)
		}
	}
	fd, err := f.bindListener(&l, true)
	if err == nil && l.Proto == ipc.ProtoUDP && !f.alone(&l, going) {
		unix.Close(fd)
		fd, err = -1, fmt.Errorf("cannot listen on %s port %s%s: %w", protoName(l.Proto), where(&l), hint(unix.EADDRINUSE), unix.EADDRINUSE)
	}
	l.FD = fd
	return l, err
}

// alone tells whether all sockets on a UDP port are ours, where listeners that have
// parts of it alone are to make room for one that has more.
func (f *Factory) alone(l *Listener, going []Listener) bool {
	p := f.ports
	p.mu.Lock()
	defer p.mu.Unlock()
	addr, dual := f.listenAddr(l)
	for _, v4 := range []bool{false, true} {
		if addr.Is4() != v4 && !dual || coveredBy(going, v4) {
			continue
		}
		k := portKey{v4, l.Port}
		if all, err := p.kernel.on(ipc.ProtoUDP, l.Port, 0); err != nil || !p.allOurs(all, k, l.cookie, f.onPort(k)) {
			return false
		}
	}
	return true
}

// Retarget gives the listener with that identifier what l says of the guest's side,
// and returns it.
func (f *Factory) Retarget(id uint32, l Listener) Listener {
	f.mu.Lock()
	defer f.mu.Unlock()
	now := f.listeners[id]
	elsewhere := now.GuestPort != l.GuestPort
	now.GuestPort, now.Target, now.Splice = l.GuestPort, l.Target, l.Splice
	f.listeners[id] = now
	if elsewhere && f.cfg().Ingress.Any() && now.Proto == ipc.ProtoUDP && !now.Namespace {
		if err := inet.Refilter(now.FD, f.hears(&now)); err != nil {
			f.cfg().Logger.Error("nobody can connect by a forwarded port any more", "port", where(&now), "error", err)
		}
	}
	return now
}

// Room returns an error when there are as many listeners as may be, with so many
// more that are not adopted yet. Descriptors are for connections as well.
func (f *Factory) Room(more int) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.cfg().MaxListeners > 0 && len(f.listeners)+more >= f.cfg().MaxListeners {
		return fmt.Errorf("more than %d ports, three quarters of what the limit on open files allows (ulimit -n): %w",
			f.cfg().MaxListeners, unix.EMFILE)
	}
	return nil
}

// Adopt takes over a socket that listens and gives it an identifier.
func (f *Factory) Adopt(l Listener) Listener {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.nextID++ // 24 bits serve as generation in the worker: no use comes near
	l.ID = f.nextID
	l.Guarded = f.gate != nil && l.Proto == ipc.ProtoTCP && !l.Namespace
	f.listeners[l.ID] = l
	if l.Guarded {
		f.gate.add(&l)
	}
	return l
}

func (f *Factory) listener(id uint32) (Listener, bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	l, ok := f.listeners[id]
	return l, ok
}

// Unlisten closes our copy of a listener and forgets it, and returns what it was.
// Nobody can connect from then on, though the worker still has the socket: the port is
// free for the next, but of UDP.
func (f *Factory) Unlisten(id uint32) (Listener, bool) {
	f.mu.Lock()
	l, ok := f.listeners[id]
	delete(f.listeners, id)
	if l.Guarded {
		unix.Close(l.FD) // before its number can be another's: see accept
		delete(f.gate.refused, id)
	}
	f.mu.Unlock() // whoever has the ports may ask for listeners
	if !ok {
		return l, false
	}
	switch {
	case l.Guarded:
		return l, true
	case l.Proto == ipc.ProtoTCP:
		sock.Shutdown(l.FD, unix.SHUT_RDWR)
	case !l.Namespace:
		f.ports.unlistened(l.Port)
	}
	unix.Close(l.FD)
	return l, true
}

// Shut has the listening sockets of TCP listen no more, whoever else still holds
// them: on the way out, so that the next instance can have their ports at once. Those of the
// service manager it passes to the next instance itself.
func (f *Factory) Shut() {
	for _, l := range f.Listeners() {
		if l.Proto == ipc.ProtoTCP && !l.Passed {
			sock.Shutdown(l.FD, unix.SHUT_RDWR)
		}
	}
}

// Revive has a listener hear again that a worker has shut down: that counts for
// everybody who holds the socket, and for the next worker too. One that hears
// stays as it is. The identifier stays in any case, the descriptor may not. What
// the agent has bound for UDP cannot be had again. After an error the listener is as
// it was, for another try: its interface or address may come back, or descriptors.
func (f *Factory) Revive(l Listener) (Listener, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if l.Proto == ipc.ProtoTCP {
		return l, inet.ListenAgain(l.FD)
	}
	p := []unix.PollFd{{Fd: int32(l.FD), Events: unix.POLLRDHUP}}
	if n, err := unix.Poll(p, 0); n != 1 || err != nil || l.Namespace {
		return l, nil
	}
	fd, err := f.bindListener(&l, true) // beside the old one: the port is never anybody's
	if err != nil {
		return l, err
	}
	unix.Close(l.FD)
	l.FD = fd
	f.listeners[l.ID] = l
	return l, nil
}

// Listeners returns all listeners.
func (f *Factory) Listeners() []Listener {
	f.mu.Lock()
	defer f.mu.Unlock()
	all := make([]Listener, 0, len(f.listeners))
	for _, l := range f.listeners {
		all = append(all, l)
	}
	return all
}

// Record is what the worker is told of l.
func (l *Listener) Record() ipc.Listener {
	r := ipc.Listener{ID: l.ID, Proto: l.Proto, HostPort: l.Port, GuestPort: l.GuestPort}
	switch {
	case l.Namespace:
		r.Flags = ipc.ListenerNamespace
	case l.Target.IsValid():
		r.Target = l.Target.As16()
	case l.Splice:
		r.Flags = ipc.ListenerMayBypass
	}
	return r
}

// bindListener opens one socket: for any address one of IPv6 that takes IPv4
// too, where both are enabled. Beside one of ours means that the port is ours.
func (f *Factory) bindListener(l *Listener, beside bool) (int, error) {
	fd, err := f.listenSocket(l, beside)
	if l.Proto == ipc.ProtoUDP && !beside && errors.Is(err, unix.EADDRINUSE) {
		a, dual := f.listenAddr(l)
		families := []bool{a.Is4()}
		if dual {
			families = append(families, true)
		}
		if joined, e := f.join(l, families...); e == nil {
			fd, err = joined, nil
		}
	}
	if err != nil {
		return -1, fmt.Errorf("cannot listen on %s port %s%s: %w", protoName(l.Proto), where(l), hint(err), err)
	}
	if l.Proto == ipc.ProtoUDP {
		l.cookie = cookie(fd)
	}
	return fd, nil
}

// listenAddr is the address that a listener's socket is bound to, and whether it
// stands for both families.
func (f *Factory) listenAddr(l *Listener) (addr netip.Addr, dual bool) {
	switch {
	case l.Addr.IsValid():
		return l.Addr, false
	case f.cfg().V6.Enabled:
		return netip.IPv6Unspecified(), f.cfg().V4.Enabled
	}
	return netip.IPv4Unspecified(), false
}

// listenSocket binds the socket of a listener.
func (f *Factory) listenSocket(l *Listener, beside bool) (int, error) {
	addr, dual := f.listenAddr(l)
	fam := f.cfg().family(addr)
	scope := fam.Scope
	if l.Interface != "" {
		scope = 0 // another interface's would take the place of that one
	}
	at := inet.Listener{
		Path: inet.Path{Device: l.Interface, Scope: scope, Freebind: fam.Freebind},
		At:   netip.AddrPortFrom(addr, l.Port), Dual: dual, Beside: beside, Filter: f.hears(l),
	}
	if l.Proto == ipc.ProtoUDP {
		return at.ListenUDP()
	}
	if s := f.givenAt(&at); s != nil {
		l.Passed = true
		return s.FD, inet.TakeTCP(s.FD)
	}
	return at.ListenTCP()
}

// Give makes the listeners those of the user that this process is about to
// become. The kernel lets UDP sockets share a port only if all are one user's,
// and whoever looks for the owner of a port finds the same one for all.
func (f *Factory) Give(uid, gid int) error {
	for _, l := range f.Listeners() {
		if l.Namespace {
			continue
		}
		if err := unix.Fchown(l.FD, uid, gid); err != nil {
			return os.NewSyscallError("fchown", err)
		}
	}
	return nil
}

func where(l *Listener) string {
	s := fmt.Sprint(l.Port)
	if l.Addr.IsValid() {
		s = netip.AddrPortFrom(l.Addr, l.Port).String()
	}
	if l.Interface != "" {
		s += "%" + l.Interface
	}
	return s
}

func hint(err error) string {
	switch {
	case errors.Is(err, unix.EACCES):
		return " (ports below net.ipv4.ip_unprivileged_port_start need CAP_NET_BIND_SERVICE)"
	case errors.Is(err, unix.EADDRINUSE):
		return " (another socket has it)"
	}
	return ""
}

// openReply makes the socket for answers to a datagram that came to a UDP
// listener: on the listener's port, connected to the peer. The kernel then
// prefers it to the listener for that peer's datagrams.
func (f *Factory) openReply(q *request, d *decision) outcome {
	if !f.ports.replies(portKey{d.to.Addr().Is4(), d.from.Port()}, d.to) {
		return nothing(unix.EADDRINUSE)
	}
	flow := inet.Flow{Path: d.inet(), From: d.from, To: d.to, Sharing: inet.SharedAndOpen, Filter: f.hears(&q.listener)}
	return made(flow.Dial(), d.from.Port())
}
