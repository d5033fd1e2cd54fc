// SPDX-License-Identifier: Apache-2.0

package icmp

import (
	"encoding/binary"
	"syscall"

	"aldente/worker/flow"
	"aldente/worker/packet"
	"aldente/worker/store"
)

// Ready is called for events on a flow's socket.
func (t *Translator) Ready(token uint64, events uint32) {
	_, gen, i := flow.SplitToken(token)
	if !t.flows.Live(i, gen) {
		return
	}
	c := t.flows.At(i)
	if c.state != stateOpen {
		return
	}
	if events&flow.Failed != 0 && !t.drainErrors(i, c) {
		return
	}
	if events&flow.Readable != 0 {
		t.receive(i, c)
	}
}

// Flush needs nothing: a request is on its way when Input returns.
func (t *Translator) Flush() {}

// Pending reports that no reply is read in turns: timers and Resume go on.
func (t *Translator) Pending() bool { return false }

// Poll has nothing to go on with.
func (t *Translator) Poll() {}

// Sweep needs nothing: a flow is freed as it ends.
func (t *Translator) Sweep() {}

// Evict reports that no flow gives way for want of descriptors.
func (t *Translator) Evict() bool { return false }

// Freed needs nothing: no request waits for a descriptor.
func (t *Translator) Freed() {}

// Resume is called when the link takes frames again.
func (t *Translator) Resume() {
	for i := uint32(0); t.more > 0 && int(i) < t.flows.Cap() && t.env.CanSend(); i++ {
		if c := t.flows.At(i); c.more {
			t.receive(i, c)
		}
	}
}

func (t *Translator) setMore(c *conn, more bool) {
	switch {
	case more && !c.more:
		t.more++
	case !more && c.more:
		t.more--
	}
	c.more = more
}

// receive passes replies on to the guest, for one turn. If there are more, the
// flow's timer goes on with them.
func (t *Translator) receive(i uint32, c *conn) {
	for range turnReplies {
		if !t.env.CanSend() {
			t.setMore(c, true) // Resume goes on
			return
		}
		n, e := t.env.Recv(c.fd, t.buf, flow.MsgDontWait)
		switch {
		case e == syscall.EAGAIN:
			if c.more {
				t.setMore(c, false)
				t.wheel.Set(t.timer+i, c.last+idleLife)
			}
			return
		case e != 0: // an error that some request of ours has caused
			if !t.drainErrors(i, c) {
				return
			}
		default:
			c.last = t.env.Now()
			t.reply(i, t.buf[:n])
		}
	}
	t.setMore(c, true)
	t.wheel.Set(t.timer+i, t.env.Now()+store.Tick)
}

// reply sends an echo reply to the guest, with the guest's own identifier.
func (t *Translator) reply(i uint32, msg []byte) {
	k := t.flows.Key(i)
	remote, id := k.Remote()
	guest, _ := k.Guest()
	want, limit := uint8(packet.ICMPv6EchoReply), 65535
	if remote.Is4() {
		want, limit = packet.ICMPEchoReply, 65535-20
	}
	if len(msg) < headerLen || len(msg) > limit || msg[0] != want || msg[1] != 0 {
		t.Stats.Strange++
		return
	}
	t.ends = packet.Ends{SrcMAC: t.g.OurMAC, DstMAC: t.g.MAC, Src: remote, Dst: guest, TTL: guestTTL}
	seq := binary.BigEndian.Uint16(msg[6:])
	n := packet.PutEcho(t.frame, &t.ends, false, id, seq, msg[headerLen:])
	t.Stats.ToGuest++
	if n-packet.EthernetLen <= t.g.LinkMTU() {
		t.send(t.frame[:n], nil)
		return
	}
	t.fragID++
	t.frag.Fragment(t.frame[:n], t.g.LinkMTU(), t.fragID, t.emit)
}

func (t *Translator) send(headers, payload []byte) {
	if !t.env.Send(&t.offload, headers, payload) {
		t.Stats.SendFailed++
	}
}

// drainErrors empties the socket's error queue and reports each entry to the
// guest. It reports false if the flow is gone: its queue cannot be emptied.
func (t *Translator) drainErrors(i uint32, c *conn) bool {
	remote, _ := t.flows.Key(i).Remote()
	if t.errors.Drain(t.env, c.fd, t.g, c.peer, remote, func(m flow.ICMPError, quote []byte) { t.sendError(i, m, quote) }) {
		return true
	}
	t.Stats.Broken++
	t.remove(i, c)
	return false
}

// reportErrno tells the guest of an error number, if it is one that routers
// have a message for.
func (t *Translator) reportErrno(i uint32, c *conn, e syscall.Errno, quote []byte) {
	remote, _ := t.flows.Key(i).Remote()
	if m, ok := t.g.Error(e, c.peer, remote); ok {
		t.sendError(i, m, quote)
	}
}

// sendRefusal tells the guest why there is no socket.
func (t *Translator) sendRefusal(i uint32, c *conn, quote []byte) {
	if !c.silent {
		remote, _ := t.flows.Key(i).Remote()
		t.sendError(i, flow.ICMPError{Type: c.icmpType, Code: c.icmpCode, Src: t.g.Offender(packet.Addr{}, c.peer, remote)}, quote)
	}
}

// sendError sends an ICMP or ICMPv6 error from src that quotes the echo request
// msg, its header first, as the guest sent it.
func (t *Translator) sendError(i uint32, m flow.ICMPError, msg []byte) {
	k := t.flows.Key(i)
	remote, id := k.Remote()
	guest, _ := k.Guest()
	seq := uint16(0)
	if len(msg) >= headerLen {
		seq = binary.BigEndian.Uint16(msg[6:])
	}
	msg = msg[min(headerLen, len(msg)):]
	t.quoted = packet.Ends{Src: guest, Dst: remote, TTL: packet.DefaultTTL}
	n := packet.PutEcho(t.frame, &t.quoted, true, id, seq, msg)
	t.ends = packet.Ends{SrcMAC: t.g.OurMAC, DstMAC: t.g.MAC, Src: m.Src, Dst: guest, TTL: guestTTL}
	size := packet.PutICMPError(t.errFrame[:], &t.ends, m.Type, m.Code, m.Info, t.frame[packet.EthernetLen:n])
	t.Stats.Errors++
	t.send(t.errFrame[:size], nil)
}
