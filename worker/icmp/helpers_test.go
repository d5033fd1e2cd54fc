// SPDX-License-Identifier: Apache-2.0

package icmp

import (
	"bytes"
	"encoding/binary"
	"testing"

	"aldente/ipc"
	"aldente/worker/flow"
	"aldente/worker/flow/flowtest"
	"aldente/worker/packet"
	"aldente/worker/store"
)

var (
	ourMAC   = packet.MAC{0x9a, 0x55, 0x9a, 0x55, 0x9a, 0x55}
	guestMAC = packet.MAC{2, 0, 0, 0, 0, 2}

	guest4  = packet.AddrFrom4([4]byte{10, 0, 0, 2})
	our4    = packet.AddrFrom4([4]byte{10, 0, 0, 1})
	remote4 = packet.AddrFrom4([4]byte{192, 0, 2, 9})
	router4 = packet.AddrFrom4([4]byte{203, 0, 113, 1})
	guest6  = packet.Addr{0: 0x20, 1: 1, 2: 0xd, 3: 0xb8, 15: 2}
	our6    = packet.Addr{0: 0xfe, 1: 0x80, 15: 1}
	remote6 = packet.Addr{0: 0x20, 1: 1, 2: 0xd, 3: 0xb8, 4: 9, 15: 9}
	router6 = packet.Addr{0: 0x20, 1: 1, 2: 0xd, 3: 0xb8, 4: 7, 15: 1}
)

const (
	timerBase = 5
	rigFlows  = 8
	guestID   = 0x1234 // what the guest's ping has chosen
	hostID    = 0x7777 // what the kernel has given the socket
)

type rig struct {
	testing.TB
	*Translator
	host  *flowtest.Host
	guest flow.Guest
	wheel *store.Wheel
	ttl   uint8
}

func newRig(t testing.TB) *rig {
	r := &rig{TB: t, host: flowtest.New(), ttl: 64}
	r.guest = flow.Guest{
		Config: ipc.Config{OurMAC: ourMAC, MTU: 1500, Addr4: guest4, Prefix4: 24, Addr6: guest6, Our4: our4, Our6: our6},
		MAC:    guestMAC, Seen4: guest4, Seen6: guest6,
	}
	r.wheel = store.NewWheel(timerBase+rigFlows, r.host.Time)
	r.Translator = New(r.host, &r.guest, r.wheel, timerBase, store.NewPool(make([]byte, 64*store.ChunkSize)), rigFlows)
	return r
}

func guestOf(remote packet.Addr) packet.Addr {
	if remote.Is4() {
		return guest4
	}
	return guest6
}

func (r *rig) frame(remote packet.Addr, id, seq uint16, data string) []byte {
	e := packet.Ends{SrcMAC: guestMAC, DstMAC: ourMAC, Src: guestOf(remote), Dst: remote, TTL: r.ttl}
	b := make([]byte, len(data)+packet.MaxHeaders)
	return b[:packet.PutEcho(b, &e, true, id, seq, []byte(data))]
}

func (r *rig) input(frame []byte) {
	r.Helper()
	var p packet.Packet
	var e packet.Echo
	if err := p.Decode(frame); err != nil {
		r.Fatalf("frame does not decode: %v", err)
	}
	if err := e.Decode(p.Payload()); err != nil {
		r.Fatalf("echo does not decode: %v", err)
	}
	r.Input(&p, &packet.Offload{}, &e)
}

func (r *rig) ping(remote packet.Addr, seq uint16, data string) {
	r.Helper()
	r.input(r.frame(remote, guestID, seq, data))
}

func (r *rig) oneOpen() ipc.Open {
	r.Helper()
	opens := r.host.TakeOpens()
	if len(opens) != 1 {
		r.Fatalf("%d requests, want 1", len(opens))
	}
	return opens[0]
}

func (r *rig) answer(o ipc.Open) *flowtest.Socket {
	s := r.host.Socket()
	r.Opened(o.Token, s.FD, &ipc.Opened{Token: o.Token, LocalPort: hostID, Addr: o.Dst})
	return s
}

func (r *rig) connect(remote packet.Addr) (*flowtest.Socket, uint64) {
	r.Helper()
	r.ping(remote, 0, "x")
	o := r.oneOpen()
	s := r.answer(o)
	s.Writes = nil
	return s, o.Token
}

func (r *rig) advance(seconds float64) {
	r.host.Time += int64(seconds * 1e9)
	r.wheel.Advance(r.host.Time, r.Timer)
}

// message is an ICMP message as sockets hold it.
func message(typ, code uint8, id, seq uint16, data string) []byte {
	b := []byte{typ, code, 0, 0, 0, 0, 0, 0}
	binary.BigEndian.PutUint16(b[4:], id)
	binary.BigEndian.PutUint16(b[6:], seq)
	return append(b, data...)
}

func reply(remote packet.Addr, seq uint16, data string) []byte {
	typ := uint8(packet.ICMPv6EchoReply)
	if remote.Is4() {
		typ = packet.ICMPEchoReply
	}
	return message(typ, 0, hostID, seq, data)
}

type echo struct {
	src, dst packet.Addr
	typ      uint8
	id, seq  uint16
	data     string
}

// received takes the messages sent to the guest, whole.
func (r *rig) received() []echo {
	r.Helper()
	var all []echo
	reasm := packet.NewReassembler()
	for _, f := range r.host.TakeFrames() {
		var p packet.Packet
		if err := p.Decode(f.Data); err != nil {
			r.Fatalf("frame to the guest does not decode: %v", err)
		}
		if f.Offload != (packet.Offload{}) || p.End-p.L3 > r.guest.LinkMTU() || p.DstMAC != guestMAC || p.SrcMAC != ourMAC {
			r.Errorf("frame of %d bytes, offload %+v", p.End-p.L3, f.Offload)
		}
		if p.Fragment {
			whole, ok := reasm.Reassemble(&p, 0)
			if !ok {
				continue
			}
			if err := p.Decode(bytes.Clone(whole)); err != nil {
				r.Fatalf("reassembled packet does not decode: %v", err)
			}
		}
		if !p.ChecksumOK(&packet.Offload{}) {
			r.Errorf("bad checksum")
		}
		var e packet.Echo
		if err := e.Decode(p.Payload()); err != nil {
			r.Fatal(err)
		}
		all = append(all, echo{p.Src, p.Dst, e.Type, e.ID, e.Seq, string(e.Payload)})
	}
	return all
}
