// SPDX-License-Identifier: Apache-2.0

package tcp

import (
	"aldente/ipc"
	"aldente/worker/flow"
	"aldente/worker/packet"
	"aldente/worker/store"
)

// Input takes one segment from the guest, whose checksum is good. Its payload
// is used until Flush.
func (t *Translator) Input(p *packet.Packet, s *packet.TCP) {
	k := store.MakeKey(&p.Dst, &p.Src, s.DstPort, s.SrcPort)
	i := t.flows.Find(&k)
	if i == store.None || s.SrcPort == 0 || s.DstPort == 0 { // that would be a detached flow's key
		t.noFlow(&k, p, s)
		return
	}
	c := t.flows.At(i)
	c.seenAt = t.env.Now()
	c.SentPackets++
	switch c.state {
	case stateOpen:
		if s.Flags&packet.SYN != 0 && t.reusePort(i, c, s) {
			t.noFlow(&k, p, s)
			return
		}
		t.segment(i, c, s)
	case stateSynAckSent:
		t.inputSynAckSent(i, c, s, p.IPVersion == 4)
	case stateSynSent:
		t.inputSynSent(i, c, s, p.IPVersion == 4)
	case stateTimeWait:
		t.inputTimeWait(i, c, &k, p, s)
	default:
		// The host has not answered yet. A repeated SYN waits for the same
		// answer; a reset means that the guest gave up.
		if s.Flags&packet.RST != 0 && (s.Seq == c.rcvNxt || s.Seq == c.rcvNxt-1) {
			t.abort(i, c)
		} else if isSYN(s) {
			t.repeatedSYN(c, s, p.IPVersion == 4)
		}
	}
}

func isSYN(s *packet.TCP) bool {
	return s.Flags&(packet.SYN|packet.ACK|packet.FIN|packet.RST) == packet.SYN
}

// repeatedSYN takes a SYN for a connection that the guest does not have yet. It may
// have given up its first attempt without a word, and ask anew from the same
// port: the connection that is made for the one serves the other.
func (t *Translator) repeatedSYN(c *conn, s *packet.TCP, v4 bool) {
	if s.Seq == c.rcvNxt-1 {
		return // the same
	}
	c.clear(flagSACK)
	c.rcvScale = rcvScale
	t.options(c, s, v4)
}

// reusePort makes room for a connection between the ports of one that is over for
// the guest, RFC 9293 section 3.6.1. It reports whether there is room.
func (t *Translator) reusePort(i uint32, c *conn, s *packet.TCP) bool {
	if !isSYN(s) || !c.guestDone() || !after(s.Seq, c.rcvNxt) {
		return false
	}
	t.detach(i, c)
	return true
}

// detach takes a flow that is over for the guest out of the guest's reach. The
// host still gets what it has not taken. Preconditions: guestDone.
func (t *Translator) detach(i uint32, c *conn) {
	if t.batch.of(i) {
		t.writeBatch() // which may be the end
	}
	if !c.over() {
		t.dequeueAll(c)
	}
	if c.over() || c.has(flagShutdown) {
		t.end(i, c)
		return
	}
	c.rtoAt, c.ackAt, c.deqAt = 0, 0, 0
	c.clear(flagAckNow | flagAckLater | flagHostFirst)
	c.set(flagDetached)
	c.seenAt = t.env.Now() // from now on: when the host took something last
	// A key that no frame has: there is no port zero.
	k := store.Key{16: byte(i >> 24), 17: byte(i >> 16), 18: byte(i >> 8), 19: byte(i)}
	t.flows.Rename(i, &k)
	t.arm(i, c)
}

// dequeueAll counts all that was sent to the guest as acknowledged.
func (t *Translator) dequeueAll(c *conn) {
	c.sndUna, c.sndNxt = c.sndMax, c.sndMax
	t.dequeue(c, 0)
}

// noFlow answers a segment that belongs to nothing, RFC 9293 section 3.10.7.1.
func (t *Translator) noFlow(k *store.Key, p *packet.Packet, s *packet.TCP) {
	switch {
	case s.Flags&packet.RST != 0:
		return
	case s.Flags&(packet.SYN|packet.ACK|packet.FIN) == packet.SYN:
		t.openOut(k, p, s)
		return
	}
	t.Stats.NoFlow++
	if !unicast(&p.Src) || !unicast(&p.Dst) {
		return
	}
	t.ends = packet.Ends{SrcMAC: t.g.OurMAC, DstMAC: p.SrcMAC, Src: p.Dst, Dst: p.Src, TTL: 255, DF: true}
	t.fields = packet.TCPFields{SrcPort: s.DstPort, DstPort: s.SrcPort, Flags: packet.RST, WScale: -1}
	if s.Flags&packet.ACK != 0 {
		t.fields.Seq = s.Ack
	} else {
		n := uint32(s.Len())
		if s.Flags&packet.SYN != 0 {
			n++
		}
		if s.Flags&packet.FIN != 0 {
			n++
		}
		t.fields.Flags |= packet.ACK
		t.fields.Ack = s.Seq + n
	}
	t.emit(nil)
}

// inputSynAckSent waits for the guest's answer to our SYN-ACK.
func (t *Translator) inputSynAckSent(i uint32, c *conn, s *packet.TCP, v4 bool) {
	switch {
	case s.Flags&packet.RST != 0:
		if s.Seq == c.rcvNxt {
			t.abort(i, c)
		}
	case s.Flags&packet.SYN != 0:
		if isSYN(s) {
			t.repeatedSYN(c, s, v4)
			t.sendSYN(i, c) // our SYN-ACK was lost, or has crossed this
		}
	case s.Flags&packet.ACK == 0:
	case s.Ack != c.iss+1:
		t.sendRSTSeq(i, s.Ack)
	default:
		t.established(i, c, s)
		t.segment(i, c, s)
	}
}

// inputSynSent waits for the guest's SYN-ACK, RFC 9293 section 3.10.7.3.
func (t *Translator) inputSynSent(i uint32, c *conn, s *packet.TCP, v4 bool) {
	ackOK := s.Flags&packet.ACK != 0 && s.Ack == c.iss+1
	switch {
	case s.Flags&packet.ACK != 0 && !ackOK:
		if s.Flags&packet.RST == 0 {
			t.sendRSTSeq(i, s.Ack)
			t.repeatSYN(i, c, s)
		}
	case s.Flags&packet.RST != 0:
		if ackOK {
			t.abort(i, c)
		}
	case s.Flags&packet.SYN != 0 && ackOK:
		t.options(c, s, v4)
		t.established(i, c, s)
		c.set(flagAckNow)
		t.touch(i, c)
	}
}

// repeatSYN repeats our SYN at once, not after a second, where our reset has just
// ended an earlier connection between the same ports at the guest: one in
// TIME-WAIT, if our new sequence numbers do not lie beyond the old.
func (t *Translator) repeatSYN(i uint32, c *conn, s *packet.TCP) {
	if s.Flags&packet.SYN == 0 && !c.has(flagSYNRepeated) {
		c.set(flagSYNRepeated)
		t.sendSYN(i, c)
	}
}

// established ends the handshake on the guest's side.
func (t *Translator) established(i uint32, c *conn, s *packet.TCP) {
	c.state = stateOpen
	t.leaveHalfOpen(i, c)
	c.sndUna = c.iss + 1
	c.rtoAt, c.retries = 0, 0
	if s.Flags&packet.SYN == 0 {
		c.sndWnd = uint32(s.Window) << c.sndScale
	}
	c.sndWl1, c.sndWl2 = s.Seq, s.Ack
	t.touch(i, c)
}

// inputTimeWait answers what a guest may still send, RFC 9293 section 3.10.7.4
// and RFC 6191.
func (t *Translator) inputTimeWait(i uint32, c *conn, k *store.Key, p *packet.Packet, s *packet.TCP) {
	switch {
	case s.Flags&packet.RST != 0:
		if s.Seq == c.rcvNxt {
			t.end(i, c)
		}
	case s.Flags&(packet.SYN|packet.ACK) == packet.SYN && after(s.Seq, c.rcvNxt):
		t.end(i, c)
		t.openOut(k, p, s)
	case s.Len() > 0 || s.Flags&(packet.FIN|packet.SYN) != 0:
		// A SYN that may be an old one: a guest that means it resets us.
		c.rtoAt = t.env.Now() + timeWait
		c.set(flagAckNow)
		t.touch(i, c)
	}
}

// segment takes a segment on an established connection, in the order of RFC
// 9293 section 3.10.7.4: sequence, RST, SYN, ACK, data, FIN.
func (t *Translator) segment(i uint32, c *conn, s *packet.TCP) {
	n := uint32(s.Len())
	end := s.Seq + n
	if s.Flags&packet.FIN != 0 {
		end++
	}
	if s.Seq == c.rcvNxt-1 && n <= 1 && s.Flags&(packet.SYN|packet.FIN|packet.RST) == 0 && !c.has(flagKeepAlive) {
		// The guest asks whether its peer is alive, RFC 9293 section 3.8.4:
		// have the kernel ask further on.
		c.set(flagKeepAlive)
		t.env.Option(c.fd, flow.OptionKeepAlive, 1)
	}
	if before(end, c.rcvNxt) || after(s.Seq, c.rcvEdge) {
		t.outOfWindow(i, c, s)
		return
	}
	if s.Flags&packet.RST != 0 {
		// RFC 5961 section 3.2: only the exact number resets. Once all is said
		// and heard there is nothing to reset, but something to deliver.
		switch {
		case s.Seq != c.rcvNxt:
			t.challenge(i, c)
		case c.guestDone():
			t.detach(i, c)
		default:
			t.abort(i, c)
		}
		return
	}
	if s.Flags&packet.SYN != 0 {
		t.challenge(i, c) // RFC 5961 section 4.2
		return
	}
	if s.Flags&packet.ACK == 0 {
		return
	}
	if after(s.Ack, c.sndMax) || before(s.Ack, c.sndUna-(1<<30)) {
		t.challenge(i, c) // RFC 5961 section 5.2
		return
	}
	t.ack(i, c, s, n)
	if n > 0 || s.Flags&packet.FIN != 0 {
		t.data(i, c, s)
	}
}

// outOfWindow answers what cannot be accepted with where we are. Window probes
// and keep-alives are such segments, so the acknowledgment in it still counts.
func (t *Translator) outOfWindow(i uint32, c *conn, s *packet.TCP) {
	t.Stats.OutOfWindow++
	if s.Flags&packet.RST != 0 {
		return
	}
	c.set(flagAckNow)
	t.touch(i, c)
	if s.Flags&(packet.ACK|packet.SYN) == packet.ACK && notAfter(s.Ack, c.sndMax) && atLeast(s.Ack, c.sndUna) {
		t.ack(i, c, s, uint32(s.Len()))
	}
}

// challenge sends the ACK that makes a genuine peer correct itself.
func (t *Translator) challenge(i uint32, c *conn) {
	t.Stats.Challenges++
	c.set(flagAckNow)
	t.touch(i, c)
}

// Ready takes the readiness of a flow's socket.
func (t *Translator) Ready(token uint64, events uint32) {
	_, gen, i := flow.SplitToken(token)
	if !t.flows.Live(i, gen) {
		return
	}
	c := t.flows.At(i)
	released := events&flow.Released != 0
	if released {
		events = events&^flow.Released | flow.Writable
		c.clear(flagHeld)
	}
	if c.has(flagStaged) { // nothing else is reported of it by this name
		t.copyOut(i, c)
		return
	}
	if c.state == stateConnecting {
		if events&(flow.Failed|flow.HungUp) != 0 {
			if e := t.env.TakeError(c.fd); e != 0 {
				t.refuse(i, c, e, false)
				return
			}
		}
		if events&flow.Writable == 0 {
			return
		}
		t.connected(i, c)
		events &^= flow.Writable // may well be the last of this kind
	}
	if events&flow.Failed != 0 {
		if e := t.env.TakeError(c.fd); e != 0 {
			t.hostReset(i, c)
			return
		}
	}
	if events&flow.Urgent != 0 {
		t.urgent(c)
	}
	if events&(flow.Readable|flow.Urgent|flow.PeerClosed|flow.HungUp) != 0 {
		c.set(flagReadable)
		if events&flow.PeerClosed != 0 {
			c.set(flagHostClosed)
		}
	}
	if events&flow.Writable != 0 {
		c.set(flagWritable)
		if c.state == stateOpen {
			t.drain(i, c)
		}
		if events == flow.Writable && !released && c.has(flagWritable) {
			t.noRoomAwaited(i, c)
		}
	}
	if c.state == stateOpen {
		t.push(i, c)
		t.windowUpdate(i, c)
		t.arm(i, c)
	}
}

// noRoomAwaited ends reports of room, which nobody waits for.
func (t *Translator) noRoomAwaited(i uint32, c *conn) {
	if c.over() {
		return
	}
	c.clear(flagAwaitRoom)
	if t.env.Rewatch(c.fd, t.token(i), flow.Readable) != 0 {
		t.sendRST(i, c)
		t.abort(i, c)
	}
}

// token is under what the lane reports a flow's events.
func (t *Translator) token(i uint32) uint64 {
	return flow.Token(flow.OwnerTCP, t.flows.Gen(i), i)
}

// hostReset passes a reset of the host's side on to the guest.
func (t *Translator) hostReset(i uint32, c *conn) {
	t.sendRST(i, c)
	c.ends(ipc.EndReset)
	t.end(i, c)
}

// Timer takes the expiry of one of our timers.
func (t *Translator) Timer(id uint32) {
	i := id - t.timer
	c := t.flows.At(i)
	c.timerAt = 0
	if c.state == 0 || c.state == stateEnded {
		return
	}
	t.expire(i, c)
}
