// SPDX-License-Identifier: Apache-2.0

package udp

import (
	"bytes"
	"syscall"
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
	loop4   = packet.AddrFrom4([4]byte{127, 0, 0, 1})
	guest6  = packet.Addr{0: 0x20, 1: 1, 2: 0xd, 3: 0xb8, 15: 2}
	our6    = packet.Addr{0: 0xfe, 1: 0x80, 15: 1}
	remote6 = packet.Addr{0: 0x20, 1: 1, 2: 0xd, 3: 0xb8, 4: 9, 15: 9}
	router6 = packet.Addr{0: 0x20, 1: 1, 2: 0xd, 3: 0xb8, 4: 7, 15: 1}
)

// rig is a translator with a scripted host.
type rig struct {
	testing.TB
	*Translator
	host  *flowtest.Host
	guest flow.Guest
	wheel *store.Wheel
	pool  *store.Pool
	fds   map[uint64]*flowtest.Socket // by token
	ttl   uint8
	tos   uint8
}

const (
	timerBase = 7
	rigFlows  = 32
	rigOwn    = rigFlows - rigFlows/unansweredPart // that the guest wants
	rigChunks = 256
)

func newRig(t testing.TB) *rig {
	r := &rig{TB: t, host: flowtest.New(), fds: make(map[uint64]*flowtest.Socket), ttl: 64}
	r.guest = flow.Guest{
		Config: ipc.Config{
			OurMAC: ourMAC, MTU: 1500, Addr4: guest4, Prefix4: 24, Addr6: guest6, Prefix6: 64,
			Our4: our4, Our6: our6, MapHostLoopback4: our4,
		},
		MAC: guestMAC, Seen4: guest4, Seen6: guest6,
	}
	r.wheel = store.NewWheel(timerBase+rigFlows, r.host.Time)
	r.pool = store.NewPool(make([]byte, rigChunks*store.ChunkSize))
	r.Translator = New(r.host, &r.guest, r.wheel, timerBase, r.pool, rigFlows)
	return r
}

// frame is a datagram from the guest.
func (r *rig) frame(remote packet.Addr, srcPort, dstPort uint16, payload []byte) []byte {
	e := packet.Ends{SrcMAC: guestMAC, DstMAC: ourMAC, Src: guest4, Dst: remote, TTL: r.ttl, TrafficClass: r.tos}
	if !remote.Is4() {
		e.Src = guest6
	}
	b := make([]byte, len(payload)+packet.MaxHeaders)
	return b[:packet.PutUDPFull(b, &e, srcPort, dstPort, payload)]
}

func (r *rig) input(frame []byte, gso int) {
	r.Helper()
	var p packet.Packet
	var u packet.UDP
	var o packet.Offload
	if err := p.Decode(frame); err != nil {
		r.Fatalf("frame does not decode: %v", err)
	}
	err := u.Decode(p.Payload())
	if gso > 0 {
		o.GSOType, o.GSOSize = packet.GSOUDPL4, uint16(gso)
		err = u.DecodeGSO(p.Payload())
	}
	if err != nil {
		r.Fatalf("datagram does not decode: %v", err)
	}
	r.Input(&p, &o, &u)
}

// say is a datagram from the guest, from port 1000 to port 2000.
func (r *rig) say(remote packet.Addr, payload string) {
	r.Helper()
	r.input(r.frame(remote, 1000, 2000, []byte(payload)), 0)
}

// answer has the broker open a socket for request o, connected to where it says.
func (r *rig) answer(o ipc.Open) *flowtest.Socket {
	s := r.host.Socket()
	r.fds[o.Token] = s
	r.Opened(o.Token, s.FD, &ipc.Opened{Token: o.Token, Addr: o.Dst})
	return s
}

func (r *rig) refuse(o ipc.Open, e syscall.Errno, flags uint16) {
	r.Opened(o.Token, -1, &ipc.Opened{Token: o.Token, Errno: uint16(e), Flags: flags})
}

// connect makes a flow with its socket, without any datagram.
func (r *rig) connect(remote packet.Addr) (*flowtest.Socket, uint64) {
	r.Helper()
	r.say(remote, "x")
	o := r.oneOpen()
	s := r.answer(o)
	s.Writes = nil
	return s, o.Token
}

func (r *rig) oneOpen() ipc.Open {
	r.Helper()
	opens := r.host.TakeOpens()
	if len(opens) != 1 {
		r.Fatalf("%d requests, want 1", len(opens))
	}
	return opens[0]
}

// advance moves the clock by seconds and fires timers.
func (r *rig) advance(seconds float64) {
	r.host.Time += int64(seconds * 1e9)
	r.wheel.Advance(r.host.Time, r.Timer)
}

// received is one that the guest has received.
type received struct {
	src, dst         packet.Addr
	srcPort, dstPort uint16
	data             string
}

// received takes the frames sent to the guest: cut up as the link does, put
// together if they are fragments, checksums completed and verified.
func (r *rig) received() []received {
	r.Helper()
	var all []received
	reasm := packet.NewReassembler()
	for _, f := range r.host.TakeFrames() {
		var p packet.Packet
		if err := p.Decode(f.Data); err != nil {
			r.Fatalf("frame to the guest does not decode: %v", err)
		}
		gso := f.Offload.GSOType == packet.GSOUDPL4
		if n := p.End - p.L3; !gso && n > r.guest.LinkMTU() {
			r.Errorf("packet of %d bytes, MTU is %d", n, r.guest.LinkMTU())
		}
		if p.End != len(f.Data) || p.SrcMAC != ourMAC || p.DstMAC != guestMAC {
			r.Errorf("frame of %d bytes from %v to %v, %d expected", len(f.Data), p.SrcMAC, p.DstMAC, p.End)
		}
		if p.Fragment {
			whole, ok := reasm.Reassemble(&p, 0)
			if !ok {
				continue
			}
			if err := p.Decode(bytes.Clone(whole)); err != nil {
				r.Fatalf("reassembled packet does not decode: %v", err)
			}
			if !p.ChecksumOK(&packet.Offload{}) {
				r.Errorf("checksum of a fragmented datagram")
			}
		} else if !gso {
			packet.CompleteChecksum(p.Frame, &f.Offload)
			if !p.ChecksumOK(&packet.Offload{}) {
				r.Errorf("checksum of a datagram")
			}
		}
		all = append(all, r.cut(&p, &f.Offload)...)
	}
	return all
}

// cut makes the datagrams of a super-frame.
func (r *rig) cut(p *packet.Packet, o *packet.Offload) []received {
	r.Helper()
	var u packet.UDP
	if p.Proto != packet.ProtoUDP {
		r.Fatalf("protocol %d to the guest", p.Proto)
	}
	if err := u.Decode(p.Payload()); err != nil {
		r.Fatalf("datagram to the guest: %v", err)
	}
	d := received{src: p.Src, dst: p.Dst, srcPort: u.SrcPort, dstPort: u.DstPort}
	data, size := u.Payload, len(u.Payload)
	if o.GSOType == packet.GSOUDPL4 {
		size = int(o.GSOSize)
		if size == 0 || size >= len(data) || p.L4-p.L3+8+size > r.guest.LinkMTU() {
			r.Errorf("super-frame of %d bytes in segments of %d", len(data), size)
		}
		if int(o.HdrLen) != p.L4+8 || o.Flags != packet.OffloadNeedsChecksum || int(o.CsumStart) != p.L4 || o.CsumOffset != 6 {
			r.Errorf("offload %+v", *o)
		}
	}
	var all []received
	for {
		one := data[:min(size, len(data))]
		data = data[len(one):]
		d.data = string(one)
		all = append(all, d)
		if len(data) == 0 {
			return all
		}
	}
}

// icmpError is an error that the guest has received.
type icmpError struct {
	src, dst  packet.Addr
	typ, code uint8
	info      uint32
	// of the datagram that is quoted
	qsrc, qdst         packet.Addr
	qsrcPort, qdstPort uint16
	qdata              string
}

// errors takes the frames sent to the guest, all of which must be ICMP errors.
func (r *rig) errors() []icmpError {
	r.Helper()
	var all []icmpError
	for _, f := range r.host.TakeFrames() {
		var p, q packet.Packet
		if err := p.Decode(f.Data); err != nil {
			r.Fatalf("frame to the guest does not decode: %v", err)
		}
		if p.Proto != packet.ProtoICMP && p.Proto != packet.ProtoICMPv6 || !p.ChecksumOK(&f.Offload) || f.Offload.Flags != 0 {
			r.Fatalf("no ICMP error, or a bad checksum: protocol %d", p.Proto)
		}
		b := p.Payload()
		e := icmpError{src: p.Src, dst: p.Dst, typ: b[0], code: b[1]}
		e.info = uint32(b[4])<<24 | uint32(b[5])<<16 | uint32(b[6])<<8 | uint32(b[7])
		// The quoted packet may be cut short: make it whole again.
		quoted := append(append([]byte(nil), f.Data[:14]...), b[8:]...)
		quoted = append(quoted, make([]byte, 65536)...)
		if err := q.Decode(quoted); err != nil {
			r.Fatalf("quoted packet does not decode: %v", err)
		}
		var u packet.UDP
		if err := u.Decode(q.Payload()); err != nil {
			r.Fatalf("quoted datagram: %v", err)
		}
		e.qsrc, e.qdst, e.qsrcPort, e.qdstPort = q.Src, q.Dst, u.SrcPort, u.DstPort
		e.qdata = string(u.Payload[:min(len(u.Payload), len(b)-8-(q.L4-q.L3)-8)])
		all = append(all, e)
	}
	return all
}

// check verifies that lists, batches and queues agree with the flows.
func (r *rig) check() {
	r.Helper()
	t := r.Translator
	n, heard, inbound, replies, chunks := 0, 0, 0, 0, 0
	for i := t.unanswered.Oldest(); i != store.None; i = t.unanswered.Newer(i) {
		if c := t.flows.At(i); c.state != stateUnanswered || c.byHost == 0 || !r.wheel.Pending(timerBase+i) {
			r.Fatalf("flow %d among those not answered: %+v", i, *c)
		}
		heard++
	}
	for i := t.ages.Oldest(); i != store.None; i = t.ages.Newer(i) {
		c := t.flows.At(i)
		if c.state == 0 || c.state == stateUnanswered {
			r.Fatalf("flow %d is none", i)
		}
		if c.inbound {
			inbound++
			if t.listenerOf(c) != nil {
				replies++
			}
		}
		if c.rests && (c.state != stateOpen || c.SentPackets != c.ReceivedPackets || c.sock.FD < 0) {
			r.Fatalf("flow %d rests: %+v", i, *c)
		}
		if c.batch != 0 && t.batches[c.batch-1].flow != i {
			r.Fatalf("flow %d: its batch is of %d", i, t.batches[c.batch-1].flow)
		}
		if !r.wheel.Pending(timerBase + i) {
			r.Fatalf("flow %d has no timer", i)
		}
		if (c.state == stateOpen || c.state == stateStaged) != (c.sock.FD >= 0) {
			r.Fatalf("flow %d: state %d with descriptor %d", i, c.state, c.sock.FD)
		}
		chunks += c.queue.Chunks()
		n++
	}
	if n+heard != t.flows.Len() || heard != t.numUnanswered || heard > t.maxUnanswered {
		r.Fatalf("%d flows in the list, %d not answered, of %d and %d", n, heard, t.flows.Len(), t.numUnanswered)
	}
	for k := range t.listeners {
		replies -= t.listeners[k].replies
	}
	if inbound+heard != t.inboundFlows.Len() || replies != 0 {
		r.Fatalf("%d inbound flows of %d, %d answered ones not counted", inbound+heard, t.inboundFlows.Len(), replies)
	}
	if chunks != r.pool.Used() || chunks != t.queues.Used() {
		r.Fatalf("%d chunks in queues, %d counted, %d of the pool in use", chunks, t.queues.Used(), r.pool.Used())
	}
	open := 0
	for _, s := range r.fds {
		if s.Closes > 1 {
			r.Fatalf("descriptor %d closed %d times", s.FD, s.Closes)
		}
		if s.Closes == 0 {
			open++
		}
	}
	live := 0
	t.flows.Each(func(i uint32) {
		if t.flows.At(i).sock.FD >= 0 {
			live++
		}
	})
	if live != open {
		r.Fatalf("%d descriptors open, %d in flows", open, live)
	}
}
