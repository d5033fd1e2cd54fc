// SPDX-License-Identifier: Apache-2.0

package lane

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"math/rand/v2"
	"testing"

	"golang.org/x/sys/unix"

	"aldente/ipc"
	"aldente/worker/packet"
)

// secret is what lies in the lane's buffers when a frame comes that is shorter
// than it says.
var secret = []byte("left by another frame: nobody's business")

// TestNothingLeaks sends frames of each protocol, cut off at every length and
// with every length field wrong, behind frames full of a secret. Nothing that
// the lane answers may hold any of it, and what it pads it pads with zeros.
func TestNothingLeaks(t *testing.T) {
	for _, kind := range kinds {
		t.Run(fmt.Sprint(kind), func(t *testing.T) {
			w := newWorld(t, rand.New(rand.NewPCG(1, 1)), kind, 1500, true)
			w.calm, w.watch = true, w.innocent
			w.turn()
			for _, f := range w.talkative() {
				answers := w.answers
				w.put(f)
				if w.answers == answers {
					t.Errorf("no answer to %x", f)
				}
				for n := packet.EthernetLen; n <= len(f); n++ {
					w.poison()
					w.put(f[:n])
				}
				for at := packet.EthernetLen; at < min(len(f)-1, 80); at++ {
					for _, v := range []byte{0, 1, 0x3c, 0x7f, 0xff} {
						b := bytes.Clone(f)
						b[at] = v
						w.poison()
						w.put(correct(b))
					}
				}
			}
		})
	}
}

// put sends the lane one frame.
func (w *world) put(f []byte) {
	if w.peer < 0 || w.l.link == nil {
		w.connectLink()
		w.turn()
	}
	var b []byte
	switch w.kind {
	case ipc.LinkTap:
		b = make([]byte, packet.OffloadSize)
	case ipc.LinkStream:
		b = binary.BigEndian.AppendUint32(nil, uint32(len(f)))
	}
	if w.machine != nil {
		w.machine.transmit(w, append(make([]byte, packet.OffloadSize), f...))
	} else if _, err := unix.Write(w.peer, append(b, f...)); err != nil {
		w.t.Fatal(err)
	}
	w.turn()
	for _, o := range w.opens { // nobody is to be connected
		var rec [ipc.OpenedSize]byte
		(&ipc.Opened{Token: o.Token, Errno: uint16(unix.EMFILE)}).Encode(rec[:])
		w.tell(rec[:], -1)
	}
	w.opens = nil
	w.turn()
}

// poison fills the lane's buffers.
func (w *world) poison() {
	b := make([]byte, packet.MaxHeaders, 4096)
	n := packet.PutUDPFull(b[:cap(b)], &packet.Ends{SrcMAC: guestMAC, DstMAC: ourMAC, Src: guest4, Dst: packet.AddrFrom4([4]byte{224, 0, 0, 9})},
		1, 2, bytes.Repeat(secret, 30))
	w.put(b[:n])
}

// innocent checks a frame to the guest.
func (w *world) innocent(b []byte) {
	w.answers++
	for k := 0; k+8 <= len(secret); k++ {
		if bytes.Contains(b, secret[k:k+8]) {
			w.t.Fatalf("a frame to the guest holds %q: %x", secret[k:k+8], b)
		}
	}
	var p packet.Packet
	end := 42 // of ARP
	if err := p.Decode(b); err == nil && p.IPVersion != 0 {
		end = p.End
	}
	if pad := b[end:]; !bytes.Equal(pad, make([]byte, len(pad))) {
		w.t.Fatalf("padded with %x", pad)
	}
}

// correct gives a frame that was changed its checksums back, so that it gets
// past the first check.
func correct(b []byte) []byte {
	var p packet.Packet
	if len(b) > 34 && b[12] == 8 && b[13] == 0 {
		if n := int(b[14]&15) * 4; n >= 20 && 14+n <= len(b) {
			b[24], b[25] = 0, 0
			binary.BigEndian.PutUint16(b[24:], packet.Checksum(b[14:14+n]))
		}
	}
	if p.Decode(b) != nil || p.Fragment {
		return b
	}
	at := map[uint8]int{packet.ProtoTCP: 16, packet.ProtoUDP: 6, packet.ProtoICMP: 2, packet.ProtoICMPv6: 2}[p.Proto]
	l4 := p.Payload()
	if at == 0 || len(l4) < at+2 {
		return b
	}
	l4[at], l4[at+1] = 0, 0
	sum := uint64(0)
	if p.Proto != packet.ProtoICMP {
		sum = packet.PseudoSum(&p.Src, &p.Dst, p.Proto, len(l4))
	}
	binary.BigEndian.PutUint16(l4[at:], ^packet.Fold(packet.Sum(l4, sum)))
	return b
}

// talkative are frames that the lane answers.
func (w *world) talkative() [][]byte {
	put := func(f func(b []byte) int) []byte {
		b := make([]byte, 2048)
		return b[:f(b)]
	}
	v4 := &packet.Ends{SrcMAC: guestMAC, DstMAC: ourMAC, Src: guest4, Dst: remote4, TTL: 64}
	v6 := &packet.Ends{SrcMAC: guestMAC, DstMAC: ourMAC, Src: guest6, Dst: remote6, TTL: 255}
	discover := make([]byte, 300)
	copy(discover, []byte{1, 1, 6, 0, 1, 2, 3, 4})
	copy(discover[28:], guestMAC[:])
	copy(discover[236:], []byte{99, 130, 83, 99, 53, 1, 1, 55, 4, 1, 3, 6, 15, 255})
	all := packet.AddrFrom4([4]byte{255, 255, 255, 255})
	solicit := append([]byte{packet.ICMPv6NeighborSolicit, 0, 0, 0, 0, 0, 0, 0}, our6[:]...)
	segment := func(e *packet.Ends, flags uint8) []byte {
		return put(func(b []byte) int {
			var o packet.Offload
			n := packet.PutTCP(b, e, &packet.TCPFields{SrcPort: 5, DstPort: 6, Seq: 7, Ack: 8, Flags: flags, WScale: -1}, 20, &o)
			packet.CompleteChecksum(b[:n+20], &o)
			return n + 20
		})
	}
	return [][]byte{
		put(func(b []byte) int {
			return packet.PutARP(b, 1, guestMAC, packet.MAC{255, 255, 255, 255, 255, 255}, guestMAC, guest4.As4(), packet.MAC{}, our4.As4())
		}),
		put(func(b []byte) int {
			e := *v4
			e.Src, e.Dst = packet.AddrFrom4([4]byte{}), all
			return packet.PutUDPFull(b, &e, 68, 67, discover)
		}),
		correct(put(func(b []byte) int {
			e := *v6
			e.Dst = our6
			n := packet.PutIP(b, &e, packet.ProtoICMPv6, len(solicit))
			return n + copy(b[n:], solicit)
		})),
		segment(v4, packet.ACK), segment(v6, packet.ACK), // to no connection: answered with RST
	}
}

// TestNothingLearned has frames that no guest's kernel would send try to steer
// what is for the guest: with a bad checksum, or from a source that cannot be.
func TestNothingLearned(t *testing.T) {
	w := newWorld(t, rand.New(rand.NewPCG(1, 1)), ipc.LinkStream, 1500, true)
	w.calm, w.watch = true, w.innocent
	w.turn()
	g := &w.l.guest
	mac, seen4, seen6 := g.MAC, g.Seen4, g.Seen6
	defer func() { g.MAC, g.Seen4, g.Seen6 = mac, seen4, seen6 }()
	thief := packet.MAC{2, 6, 6, 6, 6, 6}
	put := func(src, dst packet.Addr, spoil bool) {
		b := make([]byte, 200)
		n := packet.PutUDPFull(b, &packet.Ends{SrcMAC: thief, DstMAC: ourMAC, Src: src, Dst: dst}, 7, 7, []byte("payload"))
		if spoil {
			b[n-1] ^= 1
		}
		w.put(b[:n])
	}
	put(packet.AddrFrom4([4]byte{192, 0, 2, 66}), remote4, true)
	put(packet.Addr{0: 0xfd, 15: 0x66}, remote6, true)
	put(packet.AddrFrom4([4]byte{127, 0, 0, 1}), remote4, false)
	put(packet.AddrFrom4([4]byte{224, 0, 0, 1}), remote4, false)
	put(packet.Addr{15: 1}, remote6, false)
	put(packet.Addr{0: 0xff, 1: 2, 15: 1}, remote6, false)
	if g.MAC != mac || g.Seen4 != seen4 || g.Seen6 != seen6 {
		t.Errorf("learned %x, %v, %v", g.MAC, g.Seen4, g.Seen6)
	}
	put(packet.AddrFrom4([4]byte{192, 0, 2, 66}), remote4, false)
	if g.MAC != thief || g.Seen4 == seen4 {
		t.Error("a good frame taught nothing")
	}
	w.sleep(60 * second)
	w.turn()
}
