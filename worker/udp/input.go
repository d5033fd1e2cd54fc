// SPDX-License-Identifier: Apache-2.0

package udp

import (
	"syscall"

	"aldente/ipc"
	"aldente/worker/datagram"
	"aldente/worker/flow"
	"aldente/worker/packet"
	"aldente/worker/store"
)

// Input takes a datagram from the guest, or with GSOUDPL4 in o several of
// o.GSOSize bytes each, whose checksum was found right. u.Payload must not
// change before the next Flush.
func (t *Translator) Input(p *packet.Packet, o *packet.Offload, u *packet.UDP) {
	if p.Fragment || u.DstPort == 0 || p.TTL == 0 || !unicast(&p.Src) {
		t.Stats.BadSource++
		return
	}
	if (!unicast(&p.Dst) || t.g.IsBroadcast(&p.Dst)) && !t.mayLeave(p, u) {
		t.Stats.NotUnicast++
		return
	}
	k := store.MakeKey(&p.Dst, &p.Src, u.DstPort, u.SrcPort)
	i := t.flows.Find(&k)
	if i == store.None {
		if i = t.openOut(&k, p, u); i == store.None {
			return
		}
	}
	c := t.flows.At(i)
	size := len(u.Payload)
	if o != nil && o.GSOType == packet.GSOUDPL4 && o.GSOSize != 0 && int(o.GSOSize) < size {
		size = int(o.GSOSize)
		c.out = 2
	}
	c.out = min(c.out+1, 2)
	c.Out(len(u.Payload), flow.Packets(len(u.Payload), size))
	t.rouse(i, c)
	switch c.state {
	case stateOpen:
		t.touch(i, c)
		t.collect(i, c, p, u.Payload, size)
	case stateUnanswered:
		if !t.openReply(i, c) {
			return
		}
		fallthrough
	case stateOpening:
		t.touch(i, c)
		t.await(c, p, u.Payload, size)
	case stateStaged:
		t.touch(i, c)
		t.awaitStaged(c, p, u.Payload, size)
	case stateRefused: // not touched: the broker is asked again in time
		t.notices.Refused(c.refusal, t.flows.Key(i), u.Payload[:size])
	}
}

func unicast(a *packet.Addr) bool {
	return !a.IsLoopback() && !a.IsUnspecified() && !a.IsMulticast() && !a.IsBroadcast()
}

// openOut makes a flow for a datagram from the guest and asks the broker for
// its socket.
func (t *Translator) openOut(k *store.Key, p *packet.Packet, u *packet.UDP) uint32 {
	i, c := t.insert(k, stateOpening)
	if c == nil {
		return store.None
	}
	c.group = t.isGroup(&p.Dst)
	t.open = ipc.Open{
		Token: t.token(i), Proto: ipc.ProtoUDP,
		Src: p.Src, Dst: p.Dst, SrcPort: u.SrcPort, DstPort: u.DstPort,
	}
	if t.reuse(i, c, k) {
		return i
	}
	if !t.env.Open(&t.open) {
		t.Stats.NoRoom++
		t.remove(i, c)
		return store.None
	}
	return i
}

// await queues datagrams until the socket is there.
func (t *Translator) await(c *conn, p *packet.Packet, data []byte, size int) {
	for {
		one := data[:min(size, len(data))]
		data = data[len(one):]
		if !t.queues.Add(&c.queue, one, datagram.MarkOf(p)) {
			t.Stats.QueueFull++
		}
		if len(data) == 0 {
			return
		}
	}
}

// Opened takes the broker's answer to the Open with this token.
func (t *Translator) Opened(token uint64, fd int32, o *ipc.Opened) {
	_, gen, i := flow.SplitToken(token)
	if m := t.memberOf(i); m != nil {
		t.memberOpened(m, token, fd)
		return
	}
	if !t.flows.Live(i, gen) || t.flows.At(i).state != stateOpening {
		if fd >= 0 {
			t.env.Close(fd)
		}
		return
	}
	c := t.flows.At(i)
	if o.Flags&ipc.OpenedAnswers != 0 {
		t.answersCame(c, token, fd)
		return
	}
	if o.Errno != 0 || fd < 0 {
		t.refuse(i, c, syscall.Errno(o.Errno), o.Flags&ipc.OpenedProhibited != 0)
		return
	}
	c.sock.FD = fd
	if c.group {
		c.sock.Group((*packet.Addr)(&o.Addr))
	}
	if o.Flags&ipc.OpenedStaged != 0 {
		t.stage(c, o)
		return
	}
	if e := t.env.Watch(fd, token, flow.Readable); e != 0 {
		t.Stats.NoRoom++
		t.remove(i, c)
		return
	}
	c.state = stateOpen
	c.localPort = o.LocalPort
	if !c.inbound {
		c.peer = o.Addr
		if o.PeerPort != 0 { // where the guest wanted to go leads elsewhere
			c.peerPort = o.PeerPort
		}
	}
	t.Stats.Opened++
	if o.Flags&ipc.OpenedNames != 0 {
		t.place(t.flows.Key(i))
		t.reusable(c)
	}
	t.drain(i, c)
}

// drain sends what has waited for the socket, in order.
func (t *Translator) drain(i uint32, c *conn) {
	for c.state == stateOpen && c.queue.Len() > 0 {
		n, m := t.queues.Next(&c.queue, t.joined)
		t.setHeader(c, &m, n)
		t.writeOne(i, c, t.joined[:n])
	}
	t.queues.Clear(&c.queue)
}

// refuse ends the wait for a socket: the guest is told why for what it has
// sent, and for a while for what it sends.
func (t *Translator) refuse(i uint32, c *conn, e syscall.Errno, prohibited bool) {
	t.Stats.Refused++
	if prohibited {
		e = syscall.EACCES
	}
	remote, _ := t.flows.Key(i).Remote()
	if c.refusal = flow.Refuse(e, remote.Is4()); c.refusal.Again {
		t.remove(i, c)
		return
	}
	c.refusal.Told = c.refusal.Told && !c.group // RFC 1122 section 3.2.2
	c.state = stateRefused
	if c.queue.Len() > 0 {
		n, _ := t.queues.Next(&c.queue, t.joined)
		t.notices.Refused(c.refusal, t.flows.Key(i), t.joined[:n])
	}
	t.queues.Clear(&c.queue)
	c.last = t.env.Now()
	t.wheel.Set(t.timer+i, c.last+datagram.RefusedLife)
}
