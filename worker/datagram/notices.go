// SPDX-License-Identifier: Apache-2.0

package datagram

import (
	"syscall"

	"aldente/worker/flow"
	"aldente/worker/packet"
	"aldente/worker/store"
)

// errorLen is how much of a datagram that an error is about is looked at, in bytes:
// more than ICMP quotes.
const errorLen = 2048

// Notices tell the guest what has become of datagrams that it has sent, by ICMP and
// ICMPv6 messages that quote them.
type Notices struct {
	env     flow.Errors
	g       *flow.Guest
	queue   flow.ErrorQueue
	quote   Quote
	frame   []byte
	out     [packet.EthernetLen + 1280]byte
	ends    packet.Ends
	about   packet.Ends
	tooLong bool
	send    func(message []byte)
}

// Quote writes a packet of a flow, as the guest has sent it, and returns its
// length: with a payload of which only the first bytes may be known.
type Quote func(b []byte, e *packet.Ends, k *store.Key, payload []byte) int

// NewNotices makes Notices that give what they say to send: whole frames, complete
// with checksums. What they quote is put together in frame, which has room for any
// packet.
func NewNotices(env flow.Errors, g *flow.Guest, frame []byte, q Quote, send func(message []byte)) Notices {
	n := Notices{env: env, g: g, frame: frame, quote: q, send: send}
	n.queue.Buf = make([]byte, errorLen)
	return n
}

// Drain empties the error queue of a socket of flow k, which is connected to peer,
// and tells the guest of each entry. It reports false if the queue cannot be
// emptied.
func (n *Notices) Drain(fd int32, k *store.Key, peer packet.Addr) bool {
	remote, _ := k.Remote()
	n.tooLong = false
	return n.queue.Drain(n.env, fd, n.g, peer, remote, func(m flow.ICMPError, payload []byte) {
		n.tooLong = n.tooLong || n.queue.TooLong()
		n.tell(k, m, payload)
	})
}

// TooLong tells whether the last Drain has found a datagram that was too long for the
// host to send.
func (n *Notices) TooLong() bool { return n.tooLong }

// Errno tells the guest of an error number, if there is a message for it.
func (n *Notices) Errno(e syscall.Errno, k *store.Key, peer packet.Addr, payload []byte) {
	remote, _ := k.Remote()
	if m, ok := n.g.Error(e, peer, remote); ok {
		n.tell(k, m, payload)
	}
}

// Refused tells the guest why there is no socket, if there is a message for it.
func (n *Notices) Refused(r flow.Refusal, k *store.Key, payload []byte) {
	if r.Told {
		remote, _ := k.Remote()
		n.tell(k, flow.ICMPError{Type: r.Type, Code: r.Code, Src: n.g.Offender(packet.Addr{}, packet.Addr{}, remote)}, payload)
	}
}

// tell sends a message that quotes a packet of flow k.
func (n *Notices) tell(k *store.Key, m flow.ICMPError, payload []byte) {
	n.about = packet.Ends{TTL: packet.DefaultTTL}
	n.about.Src, _ = k.Guest()
	n.about.Dst, _ = k.Remote()
	size := n.quote(n.frame, &n.about, k, payload)
	n.ends = packet.Ends{SrcMAC: n.g.OurMAC, DstMAC: n.g.MAC, Src: m.Src, Dst: n.about.Src, TTL: GuestTTL}
	size = packet.PutICMPError(n.out[:], &n.ends, m.Type, m.Code, m.Info, n.frame[packet.EthernetLen:size])
	n.send(n.out[:size])
}

// Discard empties a socket's error queue, which takes room from data, where nobody
// is to be told. Its entries are read into e.
func Discard(env flow.Errors, fd int32, e *flow.SocketError) {
	for range flow.MaxErrors {
		if env.RecvError(fd, e) != 0 {
			break
		}
	}
	env.TakeError(fd)
}
