// SPDX-License-Identifier: Apache-2.0

package udp

import (
	"syscall"

	"aldente/worker/datagram"
	"aldente/worker/flow"
	"aldente/worker/packet"
)

const (
	// readBatch is how many datagrams, each perhaps several that UDP_GRO
	// joined, are read with one call.
	readBatch = 32
	// maxDatagram is the longest payload there is, in IPv6.
	maxDatagram = 65535 - 8
	// turnRounds and turnBytes bound what one flow may send to the guest
	// before others have their turn.
	turnRounds = 4
	turnBytes  = 1 << 20
)

// Ready is called for events on a flow's socket.
func (t *Translator) Ready(token uint64, events uint32) {
	_, gen, i := flow.SplitToken(token)
	if m := t.memberOf(i); m != nil {
		if m.fd >= 0 && !m.ready {
			t.receiveGroup(m)
		}
		return
	}
	if !t.flows.Live(i, gen) {
		return
	}
	c := t.flows.At(i)
	if c.state != stateOpen {
		return
	}
	if events&flow.Failed != 0 {
		t.drainErrors(i, c)
	}
	if events&flow.Readable != 0 && c.state == stateOpen && !c.ready {
		t.receive(i, c)
	}
}

// receive passes what the socket holds on to the guest, for one turn.
func (t *Translator) receive(i uint32, c *conn) {
	if c.group {
		t.receiveAnswers(i, c)
		return
	}
	taken, most := 0, c.most()
	for range turnRounds {
		if taken >= turnBytes || !t.env.CanSend() {
			break
		}
		n, e := t.env.RecvDatagrams(c.sock.FD, t.datagrams[:most])
		switch {
		case e == syscall.EAGAIN:
			return
		case e != 0: // an error that some datagram of ours has caused
			if t.drainErrors(i, c); c.state != stateOpen {
				return
			}
			continue
		}
		for k := range n {
			taken += t.datagrams[k].N
		}
		t.touch(i, c)
		d, others := datagram.FromPeer(t.datagrams[:n], c.peer, c.peerPort)
		for k := range others {
			t.stray(c, others[k:k+1])
		}
		if len(d) > 0 && c.state == stateOpen {
			t.deliver(i, c, d)
			t.rest(i, c)
		}
		if !c.bulk && (n == most || t.datagrams[0].Segment > 0) {
			t.isBulk(c)
		}
		if n < most {
			return // more would raise a new event
		}
		most = readBatch
	}
	t.makeReady(i, c)
}

// fewDatagrams is what is asked of a socket at first: preparing a call for many
// costs more than getting one.
const fewDatagrams = 2

func (c *conn) most() int {
	if c.bulk {
		return readBatch
	}
	return fewDatagrams
}

// bulkBuffer is the room, in bytes, that the sockets of a flow get once
// datagrams come in numbers, as far as net.core.rmem_max and wmem_max allow.
// What comes while the lane does something else waits there.
const bulkBuffer = 4 << 20

// isBulk notes that datagrams come in numbers.
func (t *Translator) isBulk(c *conn) {
	c.bulk = true
	t.env.Option(c.sock.FD, flow.OptionRecvBuffer, bulkBuffer)
	t.env.Option(c.sock.FD, flow.OptionSendBuffer, bulkBuffer)
}

// deliver sends datagrams of one flow to the guest.
func (t *Translator) deliver(i uint32, c *conn, d []flow.Datagram) {
	k := t.flows.Key(i)
	t.ends = packet.Ends{SrcMAC: t.g.OurMAC, DstMAC: t.g.MAC, TTL: datagram.GuestTTL, DF: true}
	t.ends.Src, t.ports[0] = k.Remote()
	t.ends.Dst, t.ports[1] = k.Guest()
	c.in = min(c.in+uint8(min(len(d), 2)), 2)
	if t.pass(d, &c.Traffic) {
		c.in = 2
	}
}

// pass sends datagrams to the guest, between the ends that are set. It tells whether one
// of them was several.
func (t *Translator) pass(d []flow.Datagram, c *flow.Traffic) (several bool) {
	limit := t.maxPayload()
	for len(d) > 0 {
		n := datagram.Run(d, limit, datagram.MaxWrite-20)
		for k := range n {
			c.In(d[k].N, flow.Packets(d[k].N, d[k].Segment))
		}
		switch first := &d[0]; {
		case first.Truncated:
			t.Stats.Truncated++
		case n > 1:
			size := 0
			for k := range n {
				size += copy(t.joined[size:], d[k].Buf[:d[k].N])
			}
			t.sendRun(t.joined[:size], first.N, limit)
		default:
			several = several || first.Segment > 0 && first.Segment < first.N
			t.sendRun(first.Buf[:first.N], first.Segment, limit)
		}
		d = d[n:]
	}
	return several
}

// maxPayload is the largest payload that reaches the guest in one packet.
func (t *Translator) maxPayload() int { return t.g.LinkMTU() - t.ipLen() - 8 }

func (t *Translator) ipLen() int {
	if t.ends.Src.Is4() {
		return 20
	}
	return 40
}

// longest is the largest payload that an IP packet can say to have: IPv4's
// length counts the header, IPv6's does not.
func (t *Translator) longest() int {
	if t.ends.Src.Is4() {
		return datagram.MaxWrite
	}
	return maxDatagram
}

// sendRun sends data, which are datagrams of size bytes, the last may be
// shorter, or with size zero one datagram. What fits into the link's MTU goes
// as one super-frame, the rest one by one in fragments.
func (t *Translator) sendRun(data []byte, size, limit int) {
	if size == 0 || size >= len(data) {
		t.sendDatagram(data, limit)
		return
	}
	most := size
	if size <= limit {
		most = (65535 - t.ipLen() - 8) / size * size
	}
	for len(data) > 0 {
		part := data[:min(most, len(data))]
		data = data[len(part):]
		if len(part) <= size {
			t.sendDatagram(part, limit)
			continue
		}
		n := packet.PutUDP(t.hdr[:], &t.ends, t.ports[0], t.ports[1], len(part), &t.offload)
		packet.SetGSO(&t.offload, &t.ends, packet.ProtoUDP, size)
		t.Stats.ToGuest += uint64((len(part) + size - 1) / size)
		t.send(t.hdr[:n], part)
	}
}

// sendDatagram sends one datagram, in fragments if need be.
func (t *Translator) sendDatagram(data []byte, limit int) {
	t.Stats.ToGuest++
	if len(data) <= limit {
		n := packet.PutUDP(t.hdr[:], &t.ends, t.ports[0], t.ports[1], len(data), &t.offload)
		t.send(t.hdr[:n], data)
		return
	}
	if len(data) > t.longest() {
		t.Stats.Truncated++
		return
	}
	whole := t.ends
	t.ends.DF = false
	n := packet.PutUDPFull(t.frame, &t.ends, t.ports[0], t.ports[1], data)
	t.ends = whole
	t.offload = packet.Offload{}
	t.fragID++
	t.frag.Fragment(t.frame[:n], t.g.LinkMTU(), t.fragID, t.emit)
}

func (t *Translator) sendFragment(headers, payload []byte) { t.send(headers, payload) }

func (t *Translator) send(headers, payload []byte) {
	if !t.env.Send(&t.offload, headers, payload) {
		t.Stats.SendFailed++
	}
}
