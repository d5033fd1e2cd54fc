// SPDX-License-Identifier: Apache-2.0

package tcp

import (
	"syscall"
	"time"

	"aldente/worker/flow"
	"aldente/worker/packet"
)

// From the host to the guest. What the guest has not acknowledged stays in the
// socket's receive queue: it is peeked at to send it, and again to send it
// once more.

const (
	bulk          = 16 << 10 // bytes from the host that make a flow one of bulk
	directLeast   = 8 << 10  // bytes from which on it pays to have them written where they are to go
	dequeueLazily = 16 << 10 // bytes acknowledged before a call to dequeue pays

	// dequeuePieces is how many acknowledgments make up for bytes: a peek walks past
	// all that is queued before it, piece by piece as it came.
	dequeuePieces = 128

	// urgentTries is how often a read is tried again that finds nothing where
	// there was an urgent byte. A signal that is about to be delivered makes the
	// read fail at that byte; it is delivered between two calls.
	urgentTries = 2

	// dequeueWithin bounds how long fewer bytes than that stay: a small
	// receive buffer may be full of them.
	dequeueWithin = int64(50 * time.Millisecond)
)

// begin fills the fields every segment of a flow has.
func (t *Translator) begin(i uint32, c *conn, flags uint8, seq uint32) {
	remote, guest := t.guestEnds(i, &t.ends)
	t.fields = packet.TCPFields{
		SrcPort: remote, DstPort: guest,
		Seq: seq, Ack: c.rcvNxt, Flags: flags, WScale: -1,
	}
}

// emit sends the segment described by ends and fields.
func (t *Translator) emit(payload []byte) bool {
	n := packet.PutTCP(t.hdr[:], &t.ends, &t.fields, len(payload), &t.offload)
	return t.env.Send(&t.offload, t.hdr[:n], payload)
}

// ackSeq is the sequence number of segments without data. While data are sent
// again the guest may have more than sndNxt, and would drop what is older.
func (c *conn) ackSeq() uint32 {
	if edge := c.sndUna + c.sndWnd; before(edge, c.sndMax) {
		return edge
	}
	return c.sndMax
}

// sendAck sends a segment without data: acknowledgment, window, SACK. If the
// link takes none, it is owed until it does: the guest may wait for it.
func (t *Translator) sendAck(i uint32, c *conn) {
	if c.state == stateEnded {
		return
	}
	t.begin(i, c, packet.ACK, c.ackSeq())
	if c.state == stateOpen {
		t.fields.Window = t.advertise(c)
	}
	if c.held != 0 && c.has(flagSACK) {
		n := t.sets[c.held-1].blocks(&t.sackBuf)
		t.fields.SACK = t.sackBuf[:n]
	}
	if !t.emit(nil) && !t.env.CanSend() {
		c.set(flagAckNow)
		t.makeReady(i, c)
		return
	}
	c.ReceivedPackets++
	c.acked()
}

// sendSYN sends our SYN, with ACK unless we are the first to speak.
func (t *Translator) sendSYN(i uint32, c *conn) {
	flags := uint8(packet.SYN)
	if c.state == stateSynAckSent {
		flags |= packet.ACK
	}
	t.begin(i, c, flags, c.iss)
	ip := 40
	if t.ends.Dst.Is4() {
		ip = 20
	}
	t.fields.MSS = uint16(t.g.LinkMTU() - ip - 20)
	wnd := min(c.windowLimit(), 65535)
	if flags&packet.ACK == 0 {
		t.fields.Ack = 0
		t.fields.SACKPermitted = true
		t.fields.WScale = rcvScale
	} else {
		t.fields.SACKPermitted = c.has(flagSACK)
		if c.rcvScale != 0 {
			t.fields.WScale = int8(c.rcvScale)
		}
		c.rcvEdge = later(c.rcvEdge, c.rcvNxt+wnd)
	}
	t.fields.Window = uint16(wnd)
	t.emit(nil)
	c.ReceivedPackets++
}

// sendRST resets the guest's side: in sequence, so that it is believed.
func (t *Translator) sendRST(i uint32, c *conn) {
	if c.has(flagDetached) || c.state == stateEnded {
		return
	}
	seq := c.sndMax
	switch c.state {
	case stateOpening, stateConnecting:
		seq = 0 // answers a SYN: acknowledgment is what counts
	case stateOpen:
		seq = c.ackSeq()
	}
	t.begin(i, c, packet.RST|packet.ACK, seq)
	if c.state == stateSynSent {
		t.fields.Flags, t.fields.Ack = packet.RST, 0 // nothing to acknowledge yet
	}
	t.emit(nil)
}

// sendRSTSeq answers a segment that acknowledges what was never sent.
func (t *Translator) sendRSTSeq(i uint32, seq uint32) {
	t.begin(i, t.flows.At(i), packet.RST, seq)
	t.fields.Ack = 0
	t.emit(nil)
}

// sendUnreachable sends the ICMP error that ends a connection attempt. It
// quotes the SYN as far as the guest needs it to find its socket.
func (t *Translator) sendUnreachable(i uint32, c *conn, typ, code uint8) {
	k := t.flows.Key(i)
	var syn packet.Ends
	var remote uint16
	f := packet.TCPFields{Flags: packet.SYN, Seq: c.rcvNxt - 1, WScale: -1}
	syn.Dst, remote = k.Remote()
	syn.Src, f.SrcPort = k.Guest()
	f.DstPort = remote
	syn.TTL = 64
	n := packet.PutTCP(t.buf, &syn, &f, 0, &t.offload)
	t.ends = packet.Ends{SrcMAC: t.g.OurMAC, DstMAC: t.g.MAC, Dst: syn.Src, TTL: 255}
	t.ends.Src = t.g.Offender(packet.Addr{}, packet.Addr{}, syn.Dst)
	m := packet.PutICMPError(t.buf[n:], &t.ends, typ, code, 0, t.buf[packet.EthernetLen:n])
	t.offload = packet.Offload{}
	t.env.Send(&t.offload, t.buf[n:n+m], nil)
}

// usable is how much the guest's window and recovery allow now.
func (c *conn) usable() uint32 {
	w := min(c.sndWnd, c.cwnd)
	if f := c.inFlight(); f < w {
		return w - f
	}
	return 0
}

// owesFIN tells whether our FIN has yet to be sent, maybe again.
func (t *Translator) owesFIN(c *conn) bool {
	return c.has(flagHostEOF) && c.sndNxt == c.finSeq
}

// A host that is near is faster than we are. It fills whatever receive buffer
// the kernel allows, up to 64 MiB as some systems are set up. What waits there
// has left all caches when its turn comes. So a flow from there is promised a
// window that is as good as any over its path, and no more: nearWindow holds
// what 80 Gbit/s have in flight for nearRTT.
//
// The kernel raises the window with its buffer, so the buffer has to be fixed
// too. It is several times the window: packets that carry little take more room
// than was promised for them, and what a full buffer cannot take is lost.
const (
	nearRTT    = 100 * time.Microsecond
	nearWindow = 1 << 20 // TCP_WINDOW_CLAMP, tcp(7)
	nearBuffer = 4 << 20 // SO_RCVBUF, which the kernel doubles, socket(7)
)

// bound bounds the window of a near host's flow, early: before it is used.
func (t *Translator) bound(c *conn) {
	c.set(flagBounded)
	if rtt, e := t.env.RTT(c.fd); e == 0 && rtt > 0 && rtt <= nearRTT {
		t.env.Option(c.fd, flow.OptionWindowClamp, nearWindow)
		t.env.Option(c.fd, flow.OptionRecvBuffer, nearBuffer)
	}
}

// push sends the guest what the socket holds, as far as windows allow, unless others go first.
func (t *Translator) push(i uint32, c *conn) {
	if t.yields(c) {
		t.makeReady(i, c)
		return
	}
	t.pushAll(i, c)
	t.into = nil
}

func (t *Translator) pushAll(i uint32, c *conn) {
	if !c.has(flagBounded) && c.sndMax-c.iss > bulk {
		t.bound(c)
	}
	for turn := 0; ; turn++ {
		if t.owesFIN(c) {
			t.sendData(i, c, c.sndNxt, nil, true)
			return
		}
		if !c.has(flagReadable) && !before(c.sndNxt, c.sndMax) || c.has(flagHostEOF) && after(c.sndNxt, c.finSeq) {
			return
		}
		if turn == pushTurn || turn > 0 && (t.pushed >= t.most || t.yields(c)) || !t.env.CanSend() {
			t.makeReady(i, c)
			return
		}
		n := c.usable()
		if n < uint32(c.mss) && c.inFlight() > 0 && n < c.maxWnd/2 {
			return // more comes with the next acknowledgment
		}
		if n == 0 {
			t.startRTO(c) // the guest's window is closed: probe it
			return
		}
		if n > uint32(c.mss) {
			n = min(n-n%uint32(c.mss), t.superPayload(c))
		}
		if n = t.reserve(i, c, n); n == 0 {
			t.makeReady(i, c)
			return
		}
		b, fin := t.peek(i, c, c.sndNxt, int(n)), false
		if len(b) < int(n) {
			if b, fin = t.lastOf(i, c, b, int(n)); len(b) == 0 && !fin {
				return
			}
		}
		if !t.sendData(i, c, c.sndNxt, b, fin) {
			c.set(flagReadable) // it is still to be sent
			return
		}
	}
}

// lastOf looks behind a peek that brought less than was asked for. What comes
// later makes a new event, so the socket is left alone until then. But if the
// host's FIN is there, it goes with the last segment. The end has to be seen, since a
// short read may also end at urgent data. Of those the kernel may not have told: the
// urgent byte may have come, out of order, before the segment that announces it.
func (t *Translator) lastOf(i uint32, c *conn, b []byte, n int) (all []byte, fin bool) {
	if len(b) > 0 && c.has(flagHostClosed) {
		c.clear(flagEnd)
		b = t.buf[:len(b)+t.peekTo(i, c, c.sndNxt+uint32(len(b)), len(b), n)]
	}
	if c.has(flagEnd) {
		t.hostEOF(c, c.sndNxt+uint32(len(b)))
		fin = true
	}
	if fin || !c.has(flagHostClosed|flagUrgent) {
		c.clear(flagReadable)
	}
	return b, fin
}

// hostEOF notes where the host's stream ends.
func (t *Translator) hostEOF(c *conn, seq uint32) {
	c.set(flagHostEOF)
	c.finSeq = seq
	if !c.has(flagGuestFIN) {
		c.set(flagHostFirst)
	}
}

// reserve has what is peeked at next be written to where the guest will find it, if
// the link offers that and it is likely to be much: then into is that place. Of n
// bytes that may be sent it returns for how many there is room; zero: for no segment,
// until the link can be written again. What is peeked at then would be in vain.
func (t *Translator) reserve(i uint32, c *conn, n uint32) uint32 {
	t.into = nil
	if !c.has(flagBulk) || !c.has(flagPeekOff) || n < directLeast {
		return n
	}
	headers := packet.EthernetLen + 40 + 20
	remote, guest := t.guestEnds(i, &t.ends)
	if t.ends.Dst.Is4() {
		headers -= 20
	}
	into, room := t.env.Reserve(&t.ends, remote, guest, headers, int(n)), uint32(0)
	for _, b := range into {
		room += uint32(len(b))
	}
	if room < n {
		if room -= room % uint32(c.mss); room == 0 {
			if !t.env.CanSend() {
				return 0
			}
			return n
		}
		n = room
	}
	t.into = into
	return n
}

// peek reads up to n bytes of the host's stream from seq on, leaving them
// queued. An error of the socket ends the flow. If a place was reserved, they are
// there, and only the length of what is returned means something.
func (t *Translator) peek(i uint32, c *conn, seq uint32, n int) []byte {
	return t.buf[:t.peekTo(i, c, seq, 0, n)]
}

// peekTo puts them to [from, to) of buf or of the place that was reserved.
func (t *Translator) peekTo(i uint32, c *conn, seq uint32, from, to int) int {
	got, e := t.peekOnce(c, seq, from, to)
	for n := 0; e == syscall.EAGAIN && c.has(flagUrgent) && n < urgentTries; n++ {
		got, e = t.peekOnce(c, seq, from, to)
	}
	switch {
	case e == syscall.EAGAIN, e == 0 && got == 0 && t.behindUrgent(c, seq):
		c.clear(flagReadable)
		return 0
	case e != 0:
		t.hostReset(i, c)
		return 0
	case got == 0:
		c.set(flagEnd | flagHostClosed)
	}
	c.peekSeq += uint32(got)
	if got >= directLeast {
		c.set(flagBulk)
	} else if from == 0 {
		c.clear(flagBulk)
	}
	return got
}

func (t *Translator) peekOnce(c *conn, seq uint32, from, to int) (int, syscall.Errno) {
	if !c.has(flagPeekOff) {
		return t.env.RecvSkip(c.fd, int(seq-c.deqSeq), t.buf[from:to])
	}
	if c.peekSeq != seq {
		t.env.Option(c.fd, flow.OptionPeekOff, int(seq-c.deqSeq))
		c.peekSeq = seq
	}
	if t.into != nil {
		return t.env.RecvPieces(c.fd, t.pieces(from, to), flow.MsgPeek|flow.MsgDontWait)
	}
	return t.env.Recv(c.fd, t.buf[from:to], flow.MsgPeek|flow.MsgDontWait)
}

// pieces is [from, to) of the place that was reserved.
func (t *Translator) pieces(from, to int) [][]byte {
	p := t.part[:0]
	for _, b := range t.into {
		skip := min(from, len(b))
		b = b[skip:max(skip, min(len(b), to))]
		from, to = from-skip, to-skip-len(b)
		if len(b) > 0 && len(p) < cap(p) {
			p = append(p, b)
		}
	}
	return p
}

// behindUrgent tells whether a peek at seq that skipped all may have ended at an
// urgent byte, and not at the stream's end. A read that has begun before such a
// byte does not pass it, however much there is to skip. It is passed once what
// is before it was dequeued. That there is one is known no later than that the
// host has closed.
func (t *Translator) behindUrgent(c *conn, seq uint32) bool {
	return !c.has(flagPeekOff) && (!c.has(flagHostClosed) || c.has(flagUrgent) && seq != c.deqSeq)
}

// urgent notes that the host has sent an urgent byte. It stays where it stands in
// the stream, as the guest's do (RFC 6093 section 4); but reads end before it.
func (t *Translator) urgent(c *conn) {
	c.set(flagUrgent)
	if c.state == stateOpen {
		t.dequeue(c, dequeueLazily)
	}
}

// sendData sends bytes at seq, and our FIN behind them if fin says so. It
// reports false if the link did not take them: then nothing changed.
func (t *Translator) sendData(i uint32, c *conn, seq uint32, b []byte, fin bool) bool {
	if c.state == stateEnded {
		return false
	}
	flags := uint8(packet.ACK)
	if !c.has(flagReadable) || fin {
		flags |= packet.PSH
	}
	if fin {
		flags |= packet.FIN
	}
	t.begin(i, c, flags, seq)
	t.fields.Window = t.advertise(c)
	hdr := packet.PutTCP(t.hdr[:], &t.ends, &t.fields, len(b), &t.offload)
	if len(b) > int(c.mss) {
		packet.SetGSO(&t.offload, &t.ends, packet.ProtoTCP, int(c.mss))
	}
	if !t.sendBytes(t.hdr[:hdr], b) && !t.env.CanSend() {
		t.makeReady(i, c)
		return false
	}
	if c.held == 0 && seq == c.sndMax {
		c.acked() // carried, unless there is SACK to report or the segment may be old
	}
	c.noteReply(t.env.Now())
	c.ReceivedPackets++
	t.noteSent(c, len(b))
	end := seq + uint32(len(b))
	if after(end, c.sndMax) {
		c.Received += uint64(end - c.sndMax)
	}
	if fin {
		c.set(flagFINSent)
		end++
	}
	if after(end, c.sndMax) {
		if !c.has(flagTimedRTT) && seq == c.sndMax {
			c.set(flagTimedRTT)
			c.rttSeq, c.rttStart = end, t.env.Now()
		}
		c.sndMax = end
	} else {
		t.Stats.Retransmits++
		c.retransmits++
		c.clear(flagTimedRTT) // Karn's rule, RFC 6298 section 3
	}
	if seq == c.sndNxt {
		c.sndNxt = end
	}
	t.startRTO(c)
	return true
}

// sendBytes sends a segment with what peek has returned.
func (t *Translator) sendBytes(headers, b []byte) bool {
	if t.into != nil && len(b) > 0 {
		return t.env.SendReserved(&t.offload, headers, len(b))
	}
	return t.env.Send(&t.offload, headers, b)
}

// dequeue takes acknowledged bytes out of the socket's receive queue, if they
// are at least as many as given.
func (t *Translator) dequeue(c *conn, least uint32) {
	end := c.sndUna
	if c.has(flagHostEOF) && after(end, c.finSeq) {
		end = c.finSeq
	}
	n := end - c.deqSeq
	if n == 0 {
		return
	}
	waits := c.has(flagUrgent) && !c.has(flagPeekOff) // for what is before the urgent byte to go
	if n < least && c.pieces < dequeuePieces && !c.has(flagHostEOF) && !waits {
		if c.deqAt == 0 {
			c.deqAt = t.env.Now() + dequeueWithin
		}
		return
	}
	c.deqAt, c.pieces = 0, 0
	for tries := 0; c.deqSeq != end; {
		got, e := t.env.Discard(c.fd, int(end-c.deqSeq))
		if e == syscall.EAGAIN && c.has(flagUrgent) && tries < urgentTries {
			tries++
			continue
		}
		if e != 0 || got <= 0 {
			return // a reset, which its own event reports
		}
		c.deqSeq += uint32(got) // short before an urgent byte
	}
	if before(c.peekSeq, c.deqSeq) {
		c.peekSeq = c.deqSeq // the kernel's offset does not become negative
	}
	if waits {
		c.set(flagReadable)
	}
}
