// SPDX-License-Identifier: Apache-2.0

package udp

import (
	"encoding/binary"
	"hash/maphash"
	"syscall"

	"aldente/ipc"
	"aldente/worker/flow"
	"aldente/worker/packet"
	"aldente/worker/store"
)

// listener is a bound socket on the host that stands for a port of the guest.
type listener struct {
	id        uint32 // zero: not in use
	at        uint32 // in Translator.listeners
	fd        int32
	flags     uint8 // ipc.Listener*
	hostPort  uint16
	guestPort uint16
	target    packet.Addr
	ready     bool // more to read than one turn allows
	replies   int  // flows that came by it and were answered
}

// maxReplies is how many flows of one listener have sockets of their own. They are
// all on one port: the kernel looks at each before it gives the listener what a
// stranger has sent, 10 ns or so.
const maxReplies = 4096

// AddListener takes over a bound socket.
func (t *Translator) AddListener(l *ipc.Listener, fd int32) {
	n := listener{id: l.ID, fd: fd, flags: l.Flags, hostPort: l.HostPort, guestPort: l.GuestPort, target: l.Target}
	at := len(t.listeners)
	if k := len(t.unused); k > 0 {
		at, t.unused = int(t.unused[k-1]), t.unused[:k-1]
		n.at = uint32(at)
		t.listeners[at] = n
	} else {
		n.at = uint32(at)
		t.listeners = append(t.listeners, n)
	}
	t.g.Shares.Reduce(1)
	// What a burst of clients sends waits here.
	t.env.Option(fd, flow.OptionRecvBuffer, bulkBuffer)
	if e := t.env.Watch(fd, flow.Token(flow.OwnerUDPListener, l.ID, uint32(at)), flow.Readable); e != 0 {
		t.closeListener(at)
	}
}

// RemoveListener closes a listener; flows that came by it stay.
func (t *Translator) RemoveListener(id uint32) {
	if k := t.placeOf(id); k >= 0 {
		t.closeListener(k)
	}
}

// RetargetListener gives a listener another target; flows that came by it stay.
func (t *Translator) RetargetListener(l *ipc.Listener) {
	if k := t.placeOf(l.ID); k >= 0 {
		n := &t.listeners[k]
		n.flags, n.guestPort, n.target = l.Flags, l.GuestPort, l.Target
	}
}

// placeOf returns where a listener is, or -1. Those of a rule come in order, so
// that the next one is looked for behind the last.
func (t *Translator) placeOf(id uint32) int {
	for i := range t.listeners {
		k := (t.lastListener + i) % len(t.listeners)
		if t.listeners[k].id == id && id != 0 {
			t.lastListener = k + 1
			return k
		}
	}
	return -1
}

func (t *Translator) closeListener(at int) {
	l := &t.listeners[at]
	if l.id == 0 {
		return
	}
	if l.ready {
		t.waiting--
	}
	t.g.Shares.Reduce(-1)
	t.env.Close(l.fd)
	*l = listener{}
	t.unused = append(t.unused, uint32(at))
}

// ListenerReady is called for events on a listener.
func (t *Translator) ListenerReady(token uint64, events uint32) {
	_, id, k := flow.SplitToken(token)
	if int(k) >= len(t.listeners) || t.listeners[k].id == 0 || t.listeners[k].id&0xffffff != id {
		return
	}
	l := &t.listeners[k]
	if events&flow.Failed != 0 {
		t.env.TakeError(l.fd)
	}
	if !l.ready {
		t.listen(l)
	}
}

func (t *Translator) pollListeners() {
	for k := range t.listeners {
		if l := &t.listeners[k]; l.ready && t.env.CanSend() {
			l.ready = false
			t.waiting--
			t.listen(l)
		}
	}
}

// listen takes datagrams from a listener, for one turn.
func (t *Translator) listen(l *listener) {
	taken := 0
	for range turnRounds {
		if taken >= turnBytes || !t.env.CanSend() {
			break
		}
		n, e := t.env.RecvDatagrams(l.fd, t.datagrams[:])
		if e == syscall.EAGAIN {
			return
		}
		d := t.datagrams[:n]
		for len(d) > 0 {
			k := samePeer(d)
			for _, one := range d[:k] {
				taken += one.N
			}
			t.came(l, d[:k])
			d = d[k:]
		}
		if e == 0 && n < readBatch {
			return
		}
	}
	l.ready = true
	t.waiting++
}

// samePeer is how many datagrams from the first on are of one flow.
func samePeer(d []flow.Datagram) int {
	n := 1
	for n < len(d) && d[n].From == d[0].From && d[n].FromPort == d[0].FromPort && d[n].Scope == d[0].Scope && d[n].To == d[0].To {
		n++
	}
	return n
}

// came takes datagrams of one peer that are for a listener: past the guest's link,
// or by it.
func (t *Translator) came(l *listener, d []flow.Datagram) {
	if flow.TakesBypass(l.flags, &d[0].From) {
		t.Bypass(l.id, l.flags, l.hostPort, d)
	} else {
		t.inbound(l, d)
	}
}

// Return takes datagrams of one peer that were meant for a listener and reached
// a flow's socket on the same port. Until that was connected, the kernel gave it
// whatever came to the port.
func (t *Translator) Return(id uint32, d []flow.Datagram) {
	for k := range t.listeners {
		if l := &t.listeners[k]; l.id == id && id != 0 {
			t.Stats.Returned += uint64(len(d))
			t.came(l, d)
			return
		}
	}
	t.Stats.Strangers += uint64(len(d))
}

// stray takes what somebody else has sent to a flow's socket. It is for the
// listener on the same port, if there is one.
func (t *Translator) stray(c *conn, d []flow.Datagram) {
	l := t.listenerOf(c)
	for k := 0; l == nil && k < len(t.listeners); k++ {
		if o := &t.listeners[k]; o.id != 0 && c.localPort != 0 && o.hostPort == c.localPort && o.flags&ipc.ListenerNamespace == 0 {
			l = o
		}
	}
	if l == nil {
		t.Stats.Strangers += uint64(len(d))
		return
	}
	for k := range d {
		if d[k].To.IsZero() {
			d[k].To = t.localOf(c)
		}
	}
	t.Stats.Returned += uint64(len(d))
	t.came(l, d)
}

// localOf is the address that a flow's socket was bound to, if to one: a socket that
// is bound to any is told where each datagram was sent to.
func (t *Translator) localOf(c *conn) packet.Addr {
	if !c.local.IsZero() {
		return c.local
	}
	a, _, e := t.env.LocalAddr(c.sock.FD)
	if e != 0 {
		return packet.Addr{}
	}
	return a
}

// listenerOf is the listener that a flow came by, nil if none or if it is gone.
func (t *Translator) listenerOf(c *conn) *listener {
	if c.listener == 0 || int(c.place) >= len(t.listeners) || t.listeners[c.place].id != c.listener {
		return nil
	}
	return &t.listeners[c.place]
}

// inbound delivers datagrams of one peer. The guest gets them at once; only if it
// answers a socket is asked for, so that forged sources cost none.
func (t *Translator) inbound(l *listener, d []flow.Datagram) {
	peer, port, local := d[0].From, d[0].FromPort, d[0].To
	if local.IsMulticast() && t.hears(&local, l.hostPort) {
		return // it comes by the member's socket, too
	}
	if !unicast(&local) && !local.IsLoopback() {
		local = packet.Addr{} // sent to a group: answered from any address
	}
	putScope(&peer, d[0].Scope)
	host := store.MakeKey(&peer, &local, port, uint16(l.id))
	i := store.None
	if n := t.inboundFlows.Find(&host); n != store.None {
		i = *t.inboundFlows.At(n)
		if c := t.flows.At(i); c.listener != l.id || t.otherFamily(i, c, l) {
			t.remove(i, c) // of a listener that is gone, or by what the guest lacks
			i = store.None
		}
	}
	if i == store.None {
		if i = t.openIn(&host, l, d, local); i == store.None {
			return
		}
	}
	c := t.flows.At(i)
	if c.state != stateRefused {
		t.touch(i, c)
	}
	t.deliver(i, c, d)
}

// otherFamily tells whether a flow from [::1] that nobody has answered would go by IPv4
// if it began now, or by IPv6 again. What the guest has could not be known before it had
// sent anything.
func (t *Translator) otherFamily(i uint32, c *conn, l *listener) bool {
	if c.state != stateUnanswered || !l.target.IsZero() || c.peer != flow.OtherLoopback(true) {
		return false
	}
	remote, _ := t.flows.Key(i).Remote()
	now, guest := t.g.Inbound(c.peer)
	return !guest.IsZero() && now.Is4() != remote.Is4()
}

// putScope writes the interface into bytes of a link-local address that are always zero
// (RFC 4291 section 2.5.6): two peers may have one address, each on a link of its own.
func putScope(a *packet.Addr, scope uint32) {
	if scope != 0 && a.IsLinkLocal() {
		binary.BigEndian.PutUint32(a[4:], scope)
	}
}

// openIn makes a flow for a datagram that came by a listener, or finds the one that
// the guest has begun from the same port.
func (t *Translator) openIn(host *store.Key, l *listener, all []flow.Datagram, local packet.Addr) uint32 {
	d := &all[0]
	remote, guest := t.g.Inbound(d.From)
	if !l.target.IsZero() {
		remote, guest = t.g.InboundTo(l.target, d.From), l.target
	}
	if guest.IsUnspecified() || guest.Is4() != remote.Is4() || !unicast(&remote) || d.FromPort == 0 {
		t.Stats.NoTarget += uint64(len(all))
		return store.None
	}
	k := store.MakeKey(&remote, &guest, d.FromPort, l.guestPort)
	if i := t.flows.Find(&k); i != store.None {
		c := t.flows.At(i)
		if t.sameEnds(c, l, d, &local) {
			return i
		}
		if c.state == stateRefused && !c.inbound || t.givesPortBack(c, d.FromPort) {
			t.remove(i, c)
		} else if !t.another(&k, host, d.FromPort) {
			t.Stats.NoRoom++
			return store.None
		}
	}
	i, c := t.insert(&k, stateUnanswered)
	if c == nil {
		return store.None
	}
	n := t.inboundFlows.Insert(host)
	*t.inboundFlows.At(n) = i
	c.byHost = n + 1
	c.inbound = true
	c.peer, c.peerPort, c.scope, c.local = d.From, d.FromPort, d.Scope, local
	c.listener, c.place, c.localPort = l.id, l.at, l.hostPort
	t.Stats.Inbound++
	return i
}

// sameEnds tells whether a flow that the guest has begun is between the ends that a
// datagram for a listener names: the peer's answer was faster than our connect.
func (t *Translator) sameEnds(c *conn, l *listener, d *flow.Datagram, local *packet.Addr) bool {
	if c.inbound || c.peerPort != d.FromPort {
		return false
	}
	if c.state == stateOpening {
		return l.hostPort == l.guestPort // where its socket is going to be, if it can
	}
	if c.state != stateOpen || c.peer != d.From || c.localPort != l.hostPort {
		return false
	}
	a, _, e := t.env.LocalAddr(c.sock.FD)
	return e == 0 && (a == *local || local.IsZero())
}

// Ports that flows have towards the guest in place of their own.
const (
	firstAlias = 49152
	aliasTries = 64
	// aliasWait is how long the guest may take for its first answer to such a port
	// before it may become that of a peer that really has it, in nanoseconds.
	aliasWait = int64(5_000_000_000)
)

// givesPortBack tells whether a flow has a port in place of its own that it need
// not keep from a peer that really has it: the guest has not answered, and is not
// about to. An answer to one of them must not reach the other.
func (t *Translator) givesPortBack(c *conn, port uint16) bool {
	return c.state == stateUnanswered && c.peerPort != port && t.env.Now()-c.last >= aliasWait
}

// another finds a source port for a flow that would look like another to the
// guest. That is so where a peer speaks to two of the host's addresses or ports
// from one of its own, and where two peers have the same address for the guest.
// It is below 1024 if the peer's is, and as a rule the same when a flow between
// these ends of the host comes again.
func (t *Translator) another(k, host *store.Key, port uint16) bool {
	remote, _ := k.Remote()
	guest, guestPort := k.Guest()
	first, ports := uint64(firstAlias), uint64(1<<16-firstAlias)
	if port < 1024 {
		first, ports = 1, 1023
	}
	start := maphash.Bytes(t.seed, host[:]) % ports
	for n := range uint64(aliasTries) {
		*k = store.MakeKey(&remote, &guest, uint16(first+(start+n)%ports), guestPort)
		if t.flows.Find(k) == store.None {
			return true
		}
	}
	return false
}

// openReply asks for the socket by which the guest's answers leave. It reports
// false if that is not possible now.
func (t *Translator) openReply(i uint32, c *conn) bool {
	l := t.listenerOf(c)
	if l != nil && l.replies >= maxReplies {
		t.evictReply(c.listener)
	}
	t.open = ipc.Open{
		Token: t.token(i), Proto: ipc.ProtoUDP, Listener: c.listener,
		Src: c.local, Dst: c.peer, SrcPort: c.localPort, DstPort: c.peerPort, Scope: c.scope,
	}
	if !t.makeRoom() || !t.env.Open(&t.open) {
		t.Stats.NoRoom++
		return false
	}
	t.unlist(i, c)
	c.state = stateOpening
	t.enlist(i)
	if l != nil {
		l.replies++
	}
	return true
}

// evictReply removes the flow of a listener that was not used for longest.
func (t *Translator) evictReply(listener uint32) {
	for i := t.ages.Oldest(); i != store.None; i = t.ages.Newer(i) {
		if t.flows.At(i).listener == listener {
			t.evict(i)
			return
		}
	}
}
