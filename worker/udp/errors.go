// SPDX-License-Identifier: Apache-2.0

package udp

import (
	"syscall"

	"aldente/worker/flow"
	"aldente/worker/packet"
)

// maxErrors bounds the errors read at a time. A socket's buffer holds fewer.
const maxErrors = 4096

// drainErrors empties the socket's error queue and reports each entry to the
// guest. It reports false if the flow is gone: its queue cannot be emptied.
func (t *Translator) drainErrors(i uint32, c *conn) bool {
	for n := range maxErrors {
		e := &t.sockErr
		switch errno := t.env.RecvError(c.fd, e); errno {
		case 0:
			t.report(i, c, e)
		case syscall.EAGAIN:
			// What is left is an error without details.
			if errno := t.env.TakeError(c.fd); errno != 0 && n == 0 {
				t.reportErrno(i, c, errno, nil)
			}
			return true
		default:
			t.Stats.Broken++
			t.remove(i, c)
			return false
		}
	}
	t.Stats.Broken++
	t.remove(i, c)
	return false
}

// report tells the guest of an entry of the error queue. That holds the payload
// of the datagram it is about, as much as came back.
func (t *Translator) report(i uint32, c *conn, e *flow.SocketError) {
	remote, _ := t.flows.Key(i).Remote()
	typ, code, info, ok := e.Message(remote.Is4())
	if !ok {
		return
	}
	by := e.Offender
	if e.Origin == flow.OriginLocal {
		by = packet.Addr{}
	}
	t.sendError(i, typ, code, info, t.g.Offender(by, c.peer, remote), e.Buf[:min(e.N, len(e.Buf))])
}

// reportErrno tells the guest of an error number, if it is one that routers
// have a message for.
func (t *Translator) reportErrno(i uint32, c *conn, e syscall.Errno, quote []byte) {
	remote, _ := t.flows.Key(i).Remote()
	if typ, code, ok := flow.Unreachable(e, remote.Is4()); ok {
		t.sendError(i, typ, code, 0, t.g.Offender(packet.Addr{}, c.peer, remote), quote)
	}
}

// sendRefusal tells the guest why there is no socket.
func (t *Translator) sendRefusal(i uint32, c *conn, quote []byte) {
	if !c.silent {
		remote, _ := t.flows.Key(i).Remote()
		t.sendError(i, c.icmpType, c.icmpCode, 0, t.g.Offender(packet.Addr{}, c.peer, remote), quote)
	}
}

// sendError sends an ICMP or ICMPv6 error from src that quotes a datagram of
// the flow with this payload, as the guest sent it.
func (t *Translator) sendError(i uint32, typ, code uint8, info uint32, src packet.Addr, payload []byte) {
	k := t.flows.Key(i)
	remote, remotePort := k.Remote()
	guest, guestPort := k.Guest()
	t.quoted = packet.Ends{Src: guest, Dst: remote, TTL: packet.DefaultTTL}
	n := packet.PutUDPFull(t.frame, &t.quoted, guestPort, remotePort, payload)
	t.ends = packet.Ends{SrcMAC: t.g.OurMAC, DstMAC: t.g.MAC, Src: src, Dst: guest, TTL: guestTTL}
	m := packet.PutICMPError(t.errFrame[:], &t.ends, typ, code, info, t.frame[packet.EthernetLen:n])
	t.offload = packet.Offload{}
	t.Stats.Errors++
	t.send(t.errFrame[:m], nil)
}
