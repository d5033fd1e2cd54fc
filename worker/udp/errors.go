// SPDX-License-Identifier: Apache-2.0

package udp

import (
	"syscall"

	"aldente/ipc"
	"aldente/worker/packet"
	"aldente/worker/store"
)

// drainErrors empties the socket's error queue and reports each entry to the
// guest. A flow whose queue cannot be emptied ends.
func (t *Translator) drainErrors(i uint32, c *conn) {
	if c.group { // of what was sent to many nobody is told, RFC 1122 section 3.2.2
		t.env.TakeError(c.sock.FD)
		return
	}
	if !t.notices.Drain(c.sock.FD, t.flows.Key(i), c.peer) {
		t.Stats.Broken++
		c.how = ipc.EndReset
		t.remove(i, c)
	}
}

// pending is drainErrors for the writer.
func (t *Translator) pending(i uint32) { t.drainErrors(i, t.flows.At(i)) }

// failed tells the guest of a datagram that could not be sent, where the error
// queue did not.
func (t *Translator) failed(i uint32, e syscall.Errno, data []byte) {
	if c := t.flows.At(i); !c.group {
		t.notices.Errno(e, t.flows.Key(i), c.peer, data)
	}
}

// notice sends an ICMP message to the guest.
func (t *Translator) notice(frame []byte) {
	t.offload = packet.Offload{}
	t.Stats.Errors++
	t.send(frame, nil)
}

// quote writes a datagram of a flow as the guest sent it.
func quote(b []byte, e *packet.Ends, k *store.Key, payload []byte) int {
	_, remotePort := k.Remote()
	_, guestPort := k.Guest()
	return packet.PutUDPFull(b, e, guestPort, remotePort, payload)
}
