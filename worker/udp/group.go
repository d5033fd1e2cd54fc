// SPDX-License-Identifier: Apache-2.0

package udp

import (
	"hash/maphash"
	"syscall"

	"aldente/ipc"
	"aldente/worker/datagram"
	"aldente/worker/flow"
	"aldente/worker/packet"
)

// What the guest sends to a group, or to everybody, is a flow as any other: its socket is
// connected to the group, so that it receives nothing, and has another beside it, on the
// same port, for what is answered to the guest itself. What comes to a group that the
// guest has joined comes by a socket of that group and port, which belongs to no flow.

// Ports of DHCP and DHCPv6. What we do not answer ourselves does not leave either: the
// host's network would take the guest for a host of its own.
func configures(port uint16) bool {
	return port == 67 || port == 68 || port == 546 || port == 547
}

// mayLeave tells whether a datagram to more than one receiver is forwarded.
func (t *Translator) mayLeave(p *packet.Packet, u *packet.UDP) bool {
	switch {
	case configures(u.DstPort):
		return false
	case p.Dst.IsMulticast():
		// Of interface-local scope, or of none that is assigned: RFC 4291 section 2.7.
		return t.g.Has(ipc.FlagMulticast) && (p.Dst.Is4() || p.Dst[1]&15 > 1)
	}
	return t.g.Has(ipc.FlagBroadcast) && t.g.IsBroadcast(&p.Dst)
}

// isGroup tells whether a flow leads to more than one receiver.
func (t *Translator) isGroup(dst *packet.Addr) bool { return dst.IsMulticast() || t.g.IsBroadcast(dst) }

// answersCame takes the socket for answers of a flow to a group, whose own comes next.
func (t *Translator) answersCame(c *conn, token uint64, fd int32) {
	switch {
	case fd < 0:
		return
	case !c.group || c.answers != 0 || t.env.Watch(fd, token, flow.Readable) != 0:
		t.env.Close(fd)
		return
	}
	c.answers = fd + 1
	t.g.Shares.Take(flow.ShareUDP, 1)
}

// closeAnswers ends what answersCame has begun.
func (t *Translator) closeAnswers(c *conn) {
	if c.answers != 0 {
		t.env.Close(c.answers - 1)
		t.g.Shares.Take(flow.ShareUDP, -1)
		c.answers = 0
	}
}

// receiveAnswers passes what was answered to a flow to a group on to the guest, for one
// turn.
func (t *Translator) receiveAnswers(i uint32, c *conn) {
	if c.answers == 0 {
		return
	}
	more := true
	for range turnRounds {
		var n int
		if n, more = t.take(c.answers - 1); n == 0 {
			break
		}
		k := t.flows.Key(i)
		to, port := k.Guest()
		if d := t.toHost(t.datagrams[:n]); len(d) > 0 {
			t.touch(i, c)
			c.in = 2
			t.hand(d, to, port, &c.Traffic)
		}
		if !more {
			break
		}
	}
	if more { // than one turn allows, or than the link takes
		t.makeReady(i, c)
	}
}

// toHost leaves of datagrams those that were sent to the host itself. Others for the same
// port, to groups that somebody of the host has joined, and to everybody, are no answers:
// what the guest has sent to them is among them.
func (t *Translator) toHost(d []flow.Datagram) []flow.Datagram {
	n := 0
	for k := range d {
		if to := &d[k].To; !to.IsMulticast() && !t.g.IsBroadcast(to) {
			d[n], d[k] = d[k], d[n] // all keep their memory
			n++
		}
	}
	return d[:n]
}

// take reads from a socket that is connected to nobody, and tells whether there may be
// more.
func (t *Translator) take(fd int32) (n int, more bool) {
	if !t.env.CanSend() {
		return 0, true
	}
	n, e := t.env.RecvDatagrams(fd, t.datagrams[:])
	if e != 0 && e != syscall.EAGAIN {
		t.env.TakeError(fd)
	}
	return n, n == readBatch
}

// hand sends the guest datagrams of whomever, to an address and port.
func (t *Translator) hand(d []flow.Datagram, to packet.Addr, port uint16, tr *flow.Traffic) {
	for len(d) > 0 {
		n := samePeer(d)
		src := t.g.InboundSource(d[0].From)
		if !unicast(&src) || src.Is4() != to.Is4() || d[0].FromPort == 0 {
			t.Stats.NoTarget += uint64(n)
		} else {
			t.ends = packet.Ends{SrcMAC: t.g.OurMAC, DstMAC: t.g.MAC, TTL: datagram.GuestTTL, DF: true, Src: src, Dst: to}
			if to.IsMulticast() {
				t.ends.DstMAC = packet.GroupMAC(&to)
			}
			t.ports = [2]uint16{d[0].FromPort, port}
			t.pass(d[:n], tr)
		}
		d = d[n:]
	}
}

// member is a group's port that the guest hears, or may.
type member struct {
	group packet.Addr
	port  uint16
	fd    int32 // -1: there is none
	asked bool  // the broker was
	ready bool  // more to read than one turn allows
	heard int64 // when the guest said last that it wants it, in nanoseconds; zero: it does not
	again int64 // before that, the broker is not asked: it has refused
	flow.Traffic
}

// memberAgain is how long it is remembered that the broker has refused, in nanoseconds.
const memberAgain = 10 * int64(1e9)

// newMembers makes those that the configuration names.
func (t *Translator) newMembers() {
	for _, m := range t.g.Groups[:t.g.NGroups] {
		t.members = append(t.members, member{group: m.Addr, port: m.Port, fd: -1})
	}
}

// Tokens of members are behind those of flows.
func (t *Translator) memberToken(n int) uint64 {
	return flow.Token(flow.OwnerUDP, 0, uint32(t.flows.Cap()+n))
}

func (t *Translator) memberOf(index uint32) *member {
	if n := int(index) - t.flows.Cap(); n >= 0 && n < len(t.members) {
		return &t.members[n]
	}
	return nil
}

// Wants notes whether the guest wants to hear a group. Who leaves one that the guest has
// may not be the only one there that has it: Left tells that the guest is to be asked.
func (t *Translator) Wants(group packet.Addr, wanted bool) {
	for n := range t.members {
		m := &t.members[n]
		switch {
		case m.group != group:
		case !wanted:
			t.left = t.left || m.fd >= 0
			t.leave(m)
		default:
			m.heard = max(t.env.Now(), 1)
			t.joinGroup(n, m)
		}
	}
}

// Left tells whether the guest has left a group since it was asked last.
func (t *Translator) Left() bool {
	left := t.left
	t.left = false
	return left
}

// Forget leaves the groups that the guest has not asked for in so many nanoseconds.
func (t *Translator) Forget(after int64) {
	for n := range t.members {
		if m := &t.members[n]; m.heard != 0 && t.env.Now()-m.heard > after {
			t.leave(m)
		}
	}
}

// ForgetGroups leaves all groups, and ends what goes to any: the interface that they are
// on may be another from now on. Groups are joined again once the guest says so, also those
// that the broker has refused.
func (t *Translator) ForgetGroups() {
	for n := range t.members {
		t.leave(&t.members[n])
		t.members[n].again = 0
	}
	t.flows.Each(func(i uint32) {
		if c := t.flows.At(i); c.group && (c.state == stateOpen || c.state == stateRefused) {
			c.how = ipc.EndGone
			t.remove(i, c)
		}
	})
}

// joinGroup asks for the socket of a group, unless it is there or was asked for.
func (t *Translator) joinGroup(n int, m *member) {
	if m.fd >= 0 || m.asked || t.env.Now() < m.again {
		return
	}
	t.open = ipc.Open{
		Token: t.memberToken(n), Proto: ipc.ProtoUDP, Flags: ipc.OpenMember,
		Src: m.group, Dst: m.group, SrcPort: m.port, DstPort: m.port,
	}
	m.asked = t.env.Open(&t.open)
}

// memberOpened takes the broker's answer.
func (t *Translator) memberOpened(m *member, token uint64, fd int32) {
	asked := m.asked
	m.asked = false
	switch {
	case fd < 0:
		m.again = t.env.Now() + memberAgain
		return
	case !asked || m.fd >= 0 || m.heard == 0, t.env.Watch(fd, token, flow.Readable) != 0:
		t.env.Close(fd)
		return
	}
	m.fd = fd
	t.g.Shares.Reduce(1)
}

// leave closes the socket of a group, by which the host leaves it.
func (t *Translator) leave(m *member) {
	m.heard = 0
	if m.ready {
		m.ready = false
		t.waiting--
	}
	if m.fd >= 0 {
		t.env.Close(m.fd)
		t.g.Shares.Reduce(-1)
		m.fd = -1
	}
}

// hears tells whether the guest hears a group's port by a member's socket.
func (t *Translator) hears(group *packet.Addr, port uint16) bool {
	for n := range t.members {
		if m := &t.members[n]; m.fd >= 0 && m.port == port && m.group == *group {
			return true
		}
	}
	return false
}

// receiveGroup passes what has come to a group on to the guest, for one turn.
func (t *Translator) receiveGroup(m *member) {
	for range turnRounds {
		n, more := t.take(m.fd)
		d := t.datagrams[:n]
		for k := 0; k < len(d); { // our own, which come back to all of the host
			if t.echoes.is(t.seed, m.group, m.port, &d[k], t.env.Now()) {
				own := d[k]
				copy(d[k:], d[k+1:])
				d[len(d)-1] = own // all keep their memory
				d = d[:len(d)-1]
			} else {
				k++
			}
		}
		t.hand(d, m.group, m.port, &m.Traffic)
		if !more {
			return
		}
		if n == 0 {
			break
		}
	}
	m.ready = true
	t.waiting++
}

// pollMembers goes on with groups of which there is more.
func (t *Translator) pollMembers() {
	for n := range t.members {
		if m := &t.members[n]; m.ready && t.env.CanSend() {
			m.ready = false
			t.waiting--
			t.receiveGroup(m)
		}
	}
}

// echoes are what was sent to groups a moment ago. The kernel gives a copy of each to
// every socket of the host that has joined the group, ours among them; the host's own
// services are to get theirs, so that this cannot be switched off.
type echoes struct {
	sums [32]uint64 // zero: none
	at   [32]int64  // when it was sent, in nanoseconds
	next int
}

// echoLife is how long a copy may take, in nanoseconds.
const echoLife = 2 * int64(1e9)

func sumOf(seed maphash.Seed, group packet.Addr, port uint16, data []byte) uint64 {
	var h maphash.Hash
	h.SetSeed(seed)
	h.Write(group[:])
	h.Write([]byte{byte(port), byte(port >> 8)})
	h.Write(data)
	return h.Sum64() | 1
}

// sent takes note of a datagram.
func (e *echoes) sent(seed maphash.Seed, group packet.Addr, port uint16, data []byte, now int64) {
	e.sums[e.next], e.at[e.next] = sumOf(seed, group, port, data), now
	e.next = (e.next + 1) % len(e.sums)
}

// is tells whether a datagram is a copy of one that was sent, and takes that away.
func (e *echoes) is(seed maphash.Seed, group packet.Addr, port uint16, d *flow.Datagram, now int64) bool {
	sum := sumOf(seed, group, port, d.Buf[:d.N])
	for k := range e.sums {
		if e.sums[k] == sum && now-e.at[k] <= echoLife {
			e.sums[k] = 0
			return true
		}
	}
	return false
}
