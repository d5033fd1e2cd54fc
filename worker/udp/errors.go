// SPDX-License-Identifier: Apache-2.0

package udp

import (
	"syscall"

	"aldente/worker/flow"
	"aldente/worker/packet"
)

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

// sendError sends an ICMP or ICMPv6 error from src that quotes a datagram of
// the flow with this payload, as the guest sent it.
func (t *Translator) sendError(i uint32, m flow.ICMPError, payload []byte) {
	k := t.flows.Key(i)
	remote, remotePort := k.Remote()
	guest, guestPort := k.Guest()
	t.quoted = packet.Ends{Src: guest, Dst: remote, TTL: packet.DefaultTTL}
	n := packet.PutUDPFull(t.frame, &t.quoted, guestPort, remotePort, payload)
	t.ends = packet.Ends{SrcMAC: t.g.OurMAC, DstMAC: t.g.MAC, Src: m.Src, Dst: guest, TTL: guestTTL}
	size := packet.PutICMPError(t.errFrame[:], &t.ends, m.Type, m.Code, m.Info, t.frame[packet.EthernetLen:n])
	t.offload = packet.Offload{}
	t.Stats.Errors++
	t.send(t.errFrame[:size], nil)
}
