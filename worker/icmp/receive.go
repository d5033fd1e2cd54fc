// SPDX-License-Identifier: Apache-2.0

package icmp

import (
	"encoding/binary"
	"syscall"

	"aldente/ipc"
	"aldente/worker/datagram"
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
	if events&flow.Failed != 0 {
		t.drainErrors(i, c)
	}
	if events&flow.Readable != 0 && c.state == stateOpen {
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
		n, e := t.env.Recv(c.sock.FD, t.buf, flow.MsgDontWait)
		switch {
		case e == syscall.EAGAIN:
			if c.more {
				t.setMore(c, false)
				t.wheel.Set(t.timer+i, c.last+idleLife)
			}
			return
		case e != 0: // an error that some request of ours has caused
			if t.drainErrors(i, c); c.state != stateOpen {
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
	t.ends = packet.Ends{SrcMAC: t.g.OurMAC, DstMAC: t.g.MAC, Src: remote, Dst: guest, TTL: datagram.GuestTTL}
	seq := binary.BigEndian.Uint16(msg[6:])
	n := packet.PutEcho(t.frame, &t.ends, false, id, seq, msg[headerLen:])
	t.Stats.ToGuest++
	t.flows.At(i).In(len(msg), 1)
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
// guest. A flow whose queue cannot be emptied ends.
func (t *Translator) drainErrors(i uint32, c *conn) {
	if !t.notices.Drain(c.sock.FD, t.flows.Key(i), c.peer) {
		t.Stats.Broken++
		c.how = ipc.EndReset
		t.remove(i, c)
	}
}

// pending is drainErrors for the writer.
func (t *Translator) pending(i uint32) { t.drainErrors(i, t.flows.At(i)) }

// failed tells the guest of a request that could not be sent, where the error
// queue did not.
func (t *Translator) failed(i uint32, e syscall.Errno, msg []byte) {
	t.notices.Errno(e, t.flows.Key(i), t.flows.At(i).peer, msg)
}

// notice sends an ICMP message to the guest.
func (t *Translator) notice(frame []byte) {
	t.Stats.Errors++
	t.send(frame, nil)
}

// quote writes the echo request msg, its header first, as the guest sent it.
func quote(b []byte, e *packet.Ends, k *store.Key, msg []byte) int {
	_, id := k.Remote()
	seq := uint16(0)
	if len(msg) >= headerLen {
		seq = binary.BigEndian.Uint16(msg[6:])
	}
	return packet.PutEcho(b, e, true, id, seq, msg[min(headerLen, len(msg)):])
}
