// SPDX-License-Identifier: Apache-2.0

package sockets

import (
	"container/list"
	"errors"
	"net/netip"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"aldente/broker/inet"
	"aldente/ipc"
)

// Bounds on ports that flows share: how many there are at a time; how long one
// is kept after the last flow was opened on it; how many of its peers are known
// without asking the kernel.
const (
	maxShared    = 256
	sharedLife   = 10 * time.Minute
	maxPortPeers = 1024
	// maxLooks is how often in a second the kernel is asked who is on a port: it
	// takes 0.1 ms, and a guest can bring it about. Beyond it, flows get other ports.
	maxLooks = 200
)

// udpPorts knows which UDP ports of the host are ours.
//
// A port is taken exclusively: without SO_REUSEADDR, with which Linux would let
// any user's socket on it, and SO_REUSEPORT is set only once the port is bound.
// So a port that somebody holds stays his, whatever options he set, and ours stay
// ours. Only a flow that comes from a port that a flow of ours has already may
// share it, since protocols that cross NATs expect one port to have one name. The
// kernel lets in whoever is of the same user and sets SO_REUSEPORT, other
// instances included, so the broker makes sure beforehand: all sockets on the
// port must be ones that it has made. From then on the port is shared, and an
// anchor holds it.
type udpPorts struct {
	low uint16 // ports below it are for listeners

	mu     sync.Mutex
	kernel *lister // nil: no port is shared
	shared map[portKey]*sharedPort
	ages   *list.List // of portKey, the one used last in front
	most   int        // shared ports
	timer  *time.Timer
	second time.Time // in which there were so many looks
	looks  int
	// Who had the port first, by family: the cookie of the socket that was bound
	// to it exclusively. The worker may have closed it since.
	first [2][1 << 16]uint64

	// Sockets that answered from a port when its listener went: flows outlive their
	// rule, and the port can be listened on again beside them. By port, cookies.
	answered [1 << 16 / 64]uint64 // ports on which there may be such sockets
	left     map[uint16][]uint64
	leftAll  int // cookies in left
}

// maxLeft bounds the cookies of udpPorts.left. Beyond it, who listens on a port again
// has to wait for the flows to end.
const maxLeft = 1 << 16

type portKey struct {
	v4   bool
	port uint16
}

// sharedPort is a port on which flows of ours may be bound together.
type sharedPort struct {
	// anchor keeps the port ours while flows come and go: an unconnected socket on
	// it, of one interface, that hears nothing. -1 where a listener does that.
	anchor int
	cookie uint64
	used   time.Time
	age    *list.Element
	// peers are those that some flow on the port was connected to: a second
	// socket between the same ports and addresses would take its datagrams.
	peers map[netip.AddrPort]struct{}
}

func newUDPPorts(maxListeners int) *udpPorts {
	p := &udpPorts{low: unprivilegedPorts(), shared: map[portKey]*sharedPort{}, ages: list.New(), most: maxShared}
	if maxListeners > 0 {
		p.most = min(maxShared, max(maxListeners/16, 8)) // descriptors are for connections as well
	}
	return p
}

// unprivilegedPorts is the first port that anybody may have.
func unprivilegedPorts() uint16 {
	b, err := os.ReadFile("/proc/sys/net/ipv4/ip_unprivileged_port_start")
	if n, e := strconv.ParseUint(strings.TrimSpace(string(b)), 10, 16); err == nil && e == nil {
		return uint16(n)
	}
	return 1024
}

func (p *udpPorts) firstOf(k portKey) *uint64 {
	if k.v4 {
		return &p.first[0][k.port]
	}
	return &p.first[1][k.port]
}

// flowSocket opens a UDP flow's socket from a port where that is free, or ours and
// may be shared, and else from another.
func (f *Factory) flowSocket(m *path, from, to netip.AddrPort, mayShare bool) outcome {
	p := f.ports
	p.mu.Lock()
	defer p.mu.Unlock()
	k := portKey{to.Addr().Is4(), from.Port()}
	flow := inet.Flow{Path: m.inet(), From: from, To: to, Sharing: inet.AloneUntilBound}
	if k.port >= p.low && k.port != 0 {
		r := flow.Dial()
		if r.Err == nil {
			p.takes(k, r.FD)
			return made(r, k.port)
		}
		if mayShare && errors.Is(r.Err, unix.EADDRINUSE) {
			if how, ok := f.share(m, k, from.Addr(), to); ok {
				flow.Sharing, flow.Filter = how, f.hearsOn(f.onPort(k), k.v4)
				r = flow.Dial()
			}
		}
		if !errors.Is(r.Err, unix.EADDRINUSE) && !errors.Is(r.Err, unix.EACCES) {
			return made(r, k.port)
		}
	}
	flow.From, flow.Sharing = netip.AddrPortFrom(from.Addr(), 0), inet.AloneUntilBound
	r := flow.Dial()
	if r.Err == nil {
		k.port = inet.LocalPort(r.FD)
		p.takes(k, r.FD)
	}
	return made(r, k.port)
}

// takes notes that a socket was bound to a port that nobody had.
func (p *udpPorts) takes(k portKey, fd int) {
	*p.firstOf(k) = cookie(fd)
}

// share makes sure that a port that is taken is ours, that no socket on it is
// connected to the same peer, and says how to bind another.
func (f *Factory) share(m *path, k portKey, from netip.Addr, to netip.AddrPort) (inet.Sharing, bool) {
	p := f.ports
	listens := f.onPort(k)
	how, ok := besides(listens, m, k, from)
	if !ok {
		return how, false
	}
	s := p.shared[k]
	if s == nil {
		if s = p.secure(m, k, listens); s == nil {
			return how, false
		}
	}
	s.used = time.Now()
	p.ages.MoveToFront(s.age)
	return how, p.single(s, k, to)
}

// besides says how a flow's socket is bound beside our listeners on its port. Until
// it is connected it hears what nobody else is nearer to. If a listener has the
// whole port, that is the listener's, and whoever reads the socket passes it on. One
// that has an address or an interface alone is nearer by itself, and what comes to
// others is for nobody: it must not get to that listener. Only between two that are
// equally near nobody could tell: the flow gets another port then.
func besides(listens []Listener, m *path, k portKey, from netip.Addr) (inet.Sharing, bool) {
	if coveredBy(listens, k.v4) {
		return inet.SharedAndOpen, true
	}
	for i := range listens {
		l := &listens[i]
		sameAddr := l.Addr.IsValid() && !l.Addr.IsUnspecified() && l.Addr.WithZone("") == from
		if sameAddr || l.Interface != "" && l.Interface == m.Interface {
			return inet.SharedUntilConnected, false
		}
	}
	return inet.SharedUntilConnected, true
}

// look lists the sockets on a port for the sake of a flow.
func (p *udpPorts) look(port, peerPort uint16) ([]holder, error) {
	if now := time.Now(); now.Sub(p.second) >= time.Second {
		p.second, p.looks = now, 0
	}
	if p.looks++; p.looks > maxLooks {
		return nil, unix.EAGAIN
	}
	return p.kernel.on(ipc.ProtoUDP, port, peerPort)
}

// single notes that a socket on the port will be connected to a peer. It reports
// false if one is already.
func (p *udpPorts) single(s *sharedPort, k portKey, to netip.AddrPort) bool {
	_, again := s.peers[to]
	if again || len(s.peers) >= maxPortPeers {
		if all, err := p.look(k.port, to.Port()); err != nil || connectedTo(all, to) {
			return false
		}
	}
	if len(s.peers) < maxPortPeers {
		s.peers[to] = struct{}{}
	}
	return true
}

func connectedTo(all []holder, to netip.AddrPort) bool {
	for i := range all {
		if all[i].peer == to {
			return true
		}
	}
	return false
}

// secure makes a port of ours one to share, or returns nil if it is not ours
// alone.
func (p *udpPorts) secure(m *path, k portKey, listens []Listener) *sharedPort {
	all, err := p.look(k.port, 0)
	if err != nil {
		return nil
	}
	for i := range listens {
		if listens[i].Interface != "" && listens[i].Interface == m.anchorDevice() {
			return nil // an anchor would hear in its place
		}
	}
	s := &sharedPort{anchor: -1, peers: map[netip.AddrPort]struct{}{}}
	if !coveredBy(listens, k.v4) {
		if !p.allOurs(all, k, 0, listens) {
			return nil
		}
		if s.anchor, err = inet.Anchor(m.anchorDevice(), k.v4, k.port); err != nil {
			return nil
		}
		s.cookie = cookie(s.anchor)
		// Somebody may have come between the look and the bind.
		all, err = p.look(k.port, 0)
		if err != nil || !p.allOurs(all, k, s.cookie, listens) {
			unix.Close(s.anchor)
			return nil
		}
	}
	for i := range all {
		if all[i].peer.Port() != 0 && len(s.peers) < maxPortPeers {
			s.peers[all[i].peer] = struct{}{}
		}
	}
	for p.ages.Len() >= p.most {
		p.forget(p.ages.Back().Value.(portKey))
	}
	p.shared[k], s.age = s, p.ages.PushFront(k)
	if p.timer == nil {
		p.timer = time.AfterFunc(sharedLife, p.sweep)
	}
	return s
}

// allOurs tells whether all sockets on a port, as far as they matter to the
// family, are ours: the one that had it first, the anchor, or one on the address
// of a listener of ours, which nobody else can have.
func (p *udpPorts) allOurs(all []holder, k portKey, anchor uint64, listens []Listener) bool {
	first := *p.firstOf(k)
	for i := range all {
		h := &all[i]
		group := h.local.Addr().IsMulticast() || h.local.Addr() == broadcast // which hears nothing that is for us
		ours := group || !h.inFamily(k.v4) || h.cookie != 0 && (h.cookie == first || h.cookie == anchor)
		for j := range listens {
			l := &listens[j]
			ours = ours || h.cookie != 0 && h.cookie == l.cookie || l.Addr.IsValid() && l.Addr.WithZone("") == h.local.Addr()
		}
		if !ours {
			return false
		}
	}
	return true
}

// coveredBy tells whether one of the listeners has the whole port, so that all
// others on it are ours.
func coveredBy(listens []Listener, v4 bool) bool {
	for i := range listens {
		l := &listens[i]
		if l.Interface == "" && (!l.Addr.IsValid() || l.Addr.IsUnspecified() && l.Addr.Is4() == v4) {
			return true
		}
	}
	return false
}

// onPort returns our UDP listeners on a port of the host.
func (f *Factory) onPort(k portKey) (on []Listener) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, l := range f.listeners {
		if l.Proto == ipc.ProtoUDP && !l.Namespace && l.Port == k.port && (!l.Addr.IsValid() || l.Addr.Is4() == k.v4) {
			on = append(on, l)
		}
	}
	return on
}

// anchorDevice is the interface that an anchor is bound to.
func (m *path) anchorDevice() string {
	if m.Interface != "" {
		return m.Interface
	}
	return "lo"
}

// replies notes that a listener's answers go to a peer from its port. It reports
// false if a flow of the guest's has the same two ends.
func (p *udpPorts) replies(k portKey, to netip.AddrPort) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.answered[k.port/64] |= 1 << (k.port % 64)
	s := p.shared[k]
	return s == nil || p.single(s, k, to)
}

// sweep gives shared ports back that no flow has used for long, and on which none
// is left.
func (p *udpPorts) sweep() {
	p.mu.Lock()
	defer p.mu.Unlock()
	now := time.Now()
	for k, s := range p.shared {
		if now.Sub(s.used) < sharedLife {
			continue
		}
		if all, err := p.kernel.on(ipc.ProtoUDP, k.port, 0); err == nil && p.inUse(all, k, s) {
			s.used = now
			continue
		}
		p.forget(k)
	}
	if p.timer = nil; len(p.shared) > 0 {
		p.timer = time.AfterFunc(sharedLife, p.sweep)
	}
}

// inUse tells whether flows are connected from the port.
func (p *udpPorts) inUse(all []holder, k portKey, s *sharedPort) bool {
	for i := range all {
		if h := &all[i]; h.peer.Port() != 0 && h.inFamily(k.v4) && h.cookie != s.cookie {
			return true
		}
	}
	return false
}

// join binds a listener to a port that is taken, if it is so by flows of the
// guest's only: a service that has called somebody before it was forwarded to.
func (f *Factory) join(l *Listener, families ...bool) (int, error) {
	p := f.ports
	p.mu.Lock()
	defer p.mu.Unlock()
	ours := func(listener uint64) bool {
		for _, v4 := range families {
			k := portKey{v4, l.Port}
			if p.shared[k] != nil {
				continue
			}
			all, err := p.kernel.on(ipc.ProtoUDP, k.port, 0)
			all = slices.DeleteFunc(all, func(h holder) bool { return slices.Contains(p.left[l.Port], h.cookie) })
			if err != nil || !p.allOurs(all, k, listener, f.onPort(k)) {
				return false
			}
		}
		return true
	}
	if p.first[0][l.Port]|p.first[1][l.Port] == 0 && p.left[l.Port] == nil || !ours(0) {
		return -1, unix.EADDRINUSE
	}
	fd, err := f.listenSocket(l, true)
	if err == nil && !ours(cookie(fd)) {
		unix.Close(fd)
		return -1, unix.EADDRINUSE
	}
	if err == nil {
		for _, v4 := range families {
			if k := (portKey{v4, l.Port}); p.shared[k] != nil {
				p.forget(k) // its anchor, which would hear in place of the listener
			}
		}
	}
	return fd, err
}

// unlistened forgets what is shared by a listener that is about to go.
func (p *udpPorts) unlistened(port uint16) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, v4 := range []bool{true, false} {
		if s := p.shared[portKey{v4, port}]; s != nil && s.anchor < 0 {
			p.forget(portKey{v4, port})
		}
	}
	if bit := uint64(1) << (port % 64); p.answered[port/64]&bit != 0 {
		p.answered[port/64] &^= bit
		p.leave(port)
	}
}

// leave notes who is on a port that we still have to ourselves.
func (p *udpPorts) leave(port uint16) {
	p.leftAll -= len(p.left[port])
	delete(p.left, port)
	all, err := p.kernel.on(ipc.ProtoUDP, port, 0)
	if err != nil {
		return
	}
	if p.leftAll+len(all) > maxLeft {
		p.left, p.leftAll = nil, 0
	}
	if p.left == nil {
		p.left = map[uint16][]uint64{}
	}
	for i := range all {
		if all[i].cookie != 0 {
			p.left[port] = append(p.left[port], all[i].cookie)
		}
	}
	p.leftAll += len(p.left[port])
}

func (p *udpPorts) forget(k portKey) {
	s := p.shared[k]
	if s.anchor >= 0 {
		unix.Close(s.anchor)
	}
	p.ages.Remove(s.age)
	delete(p.shared, k)
}
