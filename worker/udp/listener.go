// SPDX-License-Identifier: Apache-2.0

package udp

import (
	"syscall"

	"aldente/ipc"
	"aldente/worker/flow"
	"aldente/worker/packet"
)

// listener is a bound socket on the host that stands for a port of the guest.
type listener struct {
	id        uint32 // zero: not in use
	fd        int32
	flags     uint8 // ipc.Listener*
	hostPort  uint16
	guestPort uint16
	target    packet.Addr
	ready     bool // more to read than one turn allows
}

// AddListener takes over a bound socket.
func (t *Translator) AddListener(l *ipc.Listener, fd int32) {
	n := listener{id: l.ID, fd: fd, flags: l.Flags, hostPort: l.HostPort, guestPort: l.GuestPort, target: l.Target}
	at := len(t.listeners)
	if k := len(t.unused); k > 0 {
		at, t.unused = int(t.unused[k-1]), t.unused[:k-1]
		t.listeners[at] = n
	} else {
		t.listeners = append(t.listeners, n)
	}
	if e := t.env.Watch(fd, flow.Token(flow.OwnerUDPListener, l.ID, uint32(at)), flow.Readable); e != 0 {
		t.closeListener(at)
	}
}

// RemoveListener closes a listener; flows that came by it stay.
func (t *Translator) RemoveListener(id uint32) {
	for k := range t.listeners {
		if t.listeners[k].id == id {
			t.closeListener(k)
		}
	}
}

func (t *Translator) closeListener(at int) {
	l := &t.listeners[at]
	if l.id == 0 {
		return
	}
	if l.ready {
		t.waiting--
	}
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
			if flow.TakesBypass(l.flags, &d[0].From) {
				t.Bypass(l.id, l.flags, l.hostPort, d[:k])
			} else {
				t.inbound(l, d[:k])
			}
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
	for n < len(d) && d[n].From == d[0].From && d[n].FromPort == d[0].FromPort && d[n].To == d[0].To {
		n++
	}
	return n
}

// inbound delivers datagrams of one peer. The guest gets them at once; its
// answers need a socket, for which the broker is asked with the first one.
func (t *Translator) inbound(l *listener, d []flow.Datagram) {
	peer, port := d[0].From, d[0].FromPort
	remote := t.g.InboundSource(peer)
	guest := l.target
	if guest.IsZero() {
		guest = t.g.InboundTarget(&remote)
	}
	if guest.IsUnspecified() || guest.Is4() != remote.Is4() || !unicast(&remote) || port == 0 {
		t.Stats.NoTarget += uint64(len(d))
		return
	}
	k := flow.MakeKey(&remote, &guest, port, l.guestPort)
	i := t.flows.Find(&k)
	if i != flow.None {
		// Two peers may look the same to the guest. It answers the one it
		// has heard of last.
		if c := t.flows.At(i); c.inbound && c.peer != peer {
			t.remove(i, c)
			i = flow.None
		}
	}
	if i == flow.None {
		if i = t.openIn(&k, l, &d[0]); i == flow.None {
			return
		}
	}
	c := t.flows.At(i)
	if c.state != stateRefused {
		t.touch(i, c)
	}
	t.deliver(i, c, d)
}

// openIn makes a flow for a datagram that came by a listener.
func (t *Translator) openIn(k *flow.Key, l *listener, d *flow.Datagram) uint32 {
	i, c := t.insert(k)
	if c == nil {
		return flow.None
	}
	c.inbound = true
	c.peer = d.From
	local := d.To
	if !unicast(&local) && !local.IsLoopback() {
		local = packet.Addr{} // sent to a group: answered from any address
	}
	t.open = ipc.Open{
		Token: t.token(i), Proto: ipc.ProtoUDP, Listener: l.id,
		Src: local, Dst: d.From, SrcPort: l.hostPort, DstPort: d.FromPort,
	}
	if !t.env.Open(&t.open) {
		t.Stats.NoRoom++
		t.remove(i, c)
		return flow.None
	}
	t.Stats.Inbound++
	return i
}
