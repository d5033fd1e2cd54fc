// SPDX-License-Identifier: Apache-2.0

package tcp

import (
	"bytes"
	"math/rand/v2"
	"testing"

	"aldente/worker/packet"
)

// span is a range of sequence numbers, and spans a set of them, in order.
type span = packet.SACKBlock
type spans []span

func (s spans) add(left, right uint32) spans {
	var out spans
	for _, x := range s {
		if before(x.Right, left) || after(x.Left, right) {
			continue
		}
		if before(x.Left, left) {
			left = x.Left
		}
		right = later(right, x.Right)
	}
	placed := false
	for _, x := range s {
		switch {
		case before(x.Right, left):
			out = append(out, x)
		case after(x.Left, right):
			if !placed {
				out, placed = append(out, span{Left: left, Right: right}), true
			}
			out = append(out, x)
		}
	}
	if !placed {
		out = append(out, span{Left: left, Right: right})
	}
	return out
}

// over returns the end of the span that seq is in, or seq.
func (s spans) over(seq uint32) uint32 {
	for _, x := range s {
		if notAfter(x.Left, seq) && before(seq, x.Right) {
			return x.Right
		}
	}
	return seq
}

// from drops what lies before seq.
func (s spans) from(seq uint32) spans {
	for len(s) > 0 && notAfter(s[0].Right, seq) {
		s = s[1:]
	}
	return s
}

type guestState int

const (
	guestListens guestState = iota
	guestSynSent
	guestSynRcvd
	guestOpen // until the end; it answers as in TIME-WAIT then
	guestReset
)

// guestTCP is a guest's TCP written for tests alone: plain, trusting nothing,
// never sending again what was reported by SACK, with a receive window that
// does not shrink.
type guestTCP struct {
	t    testing.TB
	now  *int64
	r    *rand.Rand
	send func(packet.TCP)

	state          guestState
	mss            int
	wantSACK, sack bool
	scale, theirs  int8 // -1: not offered
	iss, irs       uint32
	una, nxt, max  uint32
	wnd, cwnd      uint32
	wl1, wl2       uint32
	total          int  // bytes the application has written
	closed         bool // and no more will come
	sacked         spans
	dups           int
	rto            int64 // deadline, 0: none
	backoff        int
	tso            bool // sends super-frames
	buf, unread    int
	rcvNxt, rcvAdv uint32
	early          spans
	fin, gotFIN    bool // seen at finAt; taken in order
	finAt          uint32
	owed           int // segments not acknowledged
	timeouts       int // of data
	resetBy        string
	received       int
}

const never = int64(1<<63 - 1)

func (g *guestTCP) connect() {
	g.state = guestSynSent
	g.una, g.nxt, g.max = g.iss, g.iss+1, g.iss+1
	g.sendSYN()
}

func (g *guestTCP) sendSYN() {
	s := packet.TCP{Flags: packet.SYN, Seq: g.iss, MSS: uint16(g.mss), WScale: g.scale, SACKPermitted: g.wantSACK,
		Window: uint16(min(g.buf, 65535))}
	if g.state == guestSynRcvd {
		s.Flags |= packet.ACK
		s.Ack = g.rcvNxt
		s.SACKPermitted = g.sack
		if g.theirs < 0 {
			s.WScale = -1
		}
		g.rcvAdv = g.rcvNxt + uint32(s.Window)
	}
	g.send(s)
	g.arm()
}

func (g *guestTCP) arm() { g.rto = *g.now + min(250*ms<<g.backoff, 8*second) }

// deadline is when expire is to be called.
func (g *guestTCP) deadline() int64 {
	if g.rto == 0 {
		return never
	}
	return g.rto
}

func (g *guestTCP) expire() {
	if g.rto == 0 || *g.now < g.rto {
		return
	}
	g.backoff = min(g.backoff+1, 10)
	switch {
	case g.state == guestSynSent || g.state == guestSynRcvd:
		g.sendSYN()
	case g.state != guestOpen:
		g.rto = 0
	case g.una == g.max || g.wnd == 0 && g.una == g.nxt:
		g.rto = 0
		if g.wnd == 0 && g.una != g.end() {
			g.probe()
			g.arm()
		}
	default:
		g.timeouts++
		g.rto = 0
		g.nxt, g.cwnd = g.una, uint32(2*g.mss)
		if g.wnd == 0 {
			g.probe()
			g.arm()
		}
		g.output()
	}
}

// probe asks a closed window, as Linux does or as BSD does.
func (g *guestTCP) probe() {
	if g.r.IntN(2) == 0 || g.una == g.dataEnd() {
		g.segment(g.una-1, 0, 0)
		return
	}
	g.segment(g.una, 1, 0)
	g.max = later(g.max, g.una+1)
}

func (g *guestTCP) dataEnd() uint32 { return g.iss + 1 + uint32(g.total) }

// end is the number behind all there is to send, FIN included.
func (g *guestTCP) end() uint32 {
	if g.closed {
		return g.dataEnd() + 1
	}
	return g.dataEnd()
}

// segment sends n bytes of the stream.
func (g *guestTCP) segment(seq uint32, n int, flags uint8) {
	s := packet.TCP{Flags: packet.ACK | flags, Seq: seq, Ack: g.rcvNxt, Window: g.window(), WScale: -1}
	if n > 0 {
		s.Payload = stream(int(seq-g.iss-1), n)
	}
	if g.sack {
		for _, x := range g.early {
			if s.NumSACK < 3 {
				s.SACK[s.NumSACK] = x
				s.NumSACK++
			}
		}
	}
	g.owed = 0
	g.send(s)
}

// window announces free space; the edge never moves left.
func (g *guestTCP) window() uint16 {
	shift := max(g.scale, 0)
	if g.theirs < 0 {
		shift = 0
	}
	edge := g.rcvNxt + uint32(max(g.buf-g.unread, 0))
	if after(edge, g.rcvAdv) && int(edge-g.rcvAdv) >= min(g.mss, g.buf/2) {
		g.rcvAdv = edge
	}
	w := uint32(0)
	if after(g.rcvAdv, g.rcvNxt) {
		w = min((g.rcvAdv-g.rcvNxt+1<<shift-1)>>shift, 65535)
	}
	g.rcvAdv = later(g.rcvAdv, g.rcvNxt+w<<shift)
	return uint16(w)
}

// output sends what windows allow.
func (g *guestTCP) output() {
	if g.state != guestOpen {
		return
	}
	for {
		g.nxt = g.sacked.over(g.nxt)
		left := g.dataEnd() - g.nxt
		if after(g.nxt, g.dataEnd()) {
			break
		}
		if left == 0 {
			if g.closed && g.nxt == g.dataEnd() {
				g.segment(g.nxt, 0, packet.FIN)
				g.nxt++
				g.max = later(g.max, g.nxt)
			}
			break
		}
		room := g.una + min(g.wnd, g.cwnd) - g.nxt
		if int32(room) <= 0 || room < uint32(g.mss) && room < left && g.nxt != g.una {
			break
		}
		size := g.mss
		if g.tso {
			size = max(g.mss, min(40000, g.mss*(1+g.r.IntN(20))))
		}
		n := min(left, room, uint32(size))
		for _, x := range g.sacked {
			if after(x.Left, g.nxt) {
				n = min(n, x.Left-g.nxt)
			}
		}
		flags := uint8(0)
		fin := g.closed && n == left
		if fin {
			flags = packet.FIN
		}
		g.segment(g.nxt, int(n), flags)
		g.nxt += n
		if fin {
			g.nxt++
		}
		g.max = later(g.max, g.nxt)
	}
	if g.rto == 0 && (g.una != g.max || g.wnd == 0 && g.una != g.end()) {
		g.arm()
	}
}

// abort is a reset by the application.
func (g *guestTCP) abort() {
	if g.state == guestOpen {
		g.send(packet.TCP{Flags: packet.RST | packet.ACK, Seq: g.nxt, Ack: g.rcvNxt, WScale: -1})
	}
	g.state, g.rto, g.resetBy = guestReset, 0, "guest"
}

// read has the application take n bytes.
func (g *guestTCP) read(n int) {
	n = min(n, g.unread)
	was := int(g.rcvAdv - g.rcvNxt)
	g.unread -= n
	if g.state == guestOpen && n > 0 && was < g.mss && g.buf-g.unread >= min(g.mss, g.buf/2) {
		g.segment(g.nxt, 0, 0) // a window update
	}
}

// write has the application give n bytes, and perhaps close.
func (g *guestTCP) write(n int, done bool) {
	g.total += n
	g.closed = done
	g.output()
}

// receive takes a segment from the network.
func (g *guestTCP) receive(s *packet.TCP) {
	switch g.state {
	case guestReset:
		if s.Flags&packet.RST == 0 {
			g.send(packet.TCP{Flags: packet.RST, Seq: s.Ack, WScale: -1})
		}
	case guestListens:
		if s.Flags&(packet.SYN|packet.ACK) == packet.SYN {
			g.start(s)
			g.state = guestSynRcvd
			g.una, g.nxt, g.max = g.iss, g.iss+1, g.iss+1
			g.sendSYN()
		}
	case guestSynSent:
		g.receiveSynSent(s)
	case guestSynRcvd:
		switch {
		case s.Flags&packet.RST != 0:
			if s.Seq == g.rcvNxt {
				g.reset()
			}
		case s.Flags&packet.SYN != 0:
			g.sendSYN()
		case s.Flags&packet.ACK != 0 && s.Ack == g.iss+1:
			g.opened(s)
			g.receiveOpen(s)
		}
	default:
		g.receiveOpen(s)
	}
}

func (g *guestTCP) start(s *packet.TCP) {
	g.irs, g.rcvNxt, g.rcvAdv = s.Seq, s.Seq+1, s.Seq+1+uint32(min(g.buf, 65535))
	g.theirs = s.WScale
	if g.scale < 0 {
		g.theirs = -1
	}
	g.sack = g.wantSACK && s.SACKPermitted
	g.mss = min(g.mss, int(s.MSS))
}

func (g *guestTCP) opened(s *packet.TCP) {
	g.state = guestOpen
	g.una, g.backoff, g.rto = g.iss+1, 0, 0
	g.cwnd = uint32(10 * g.mss)
	g.wl1, g.wl2 = s.Seq-1, s.Ack
}

func (g *guestTCP) receiveSynSent(s *packet.TCP) {
	ok := s.Flags&packet.ACK != 0 && s.Ack == g.iss+1
	switch {
	case s.Flags&packet.ACK != 0 && !ok:
		if s.Flags&packet.RST == 0 {
			g.send(packet.TCP{Flags: packet.RST, Seq: s.Ack, WScale: -1})
		}
	case s.Flags&packet.RST != 0:
		if ok {
			g.reset()
		}
	case s.Flags&packet.SYN != 0 && ok:
		g.start(s)
		g.opened(s)
		g.wnd = uint32(s.Window)
		g.segment(g.nxt, 0, 0)
		g.output()
	}
}

func (g *guestTCP) reset() {
	g.state, g.rto = guestReset, 0
	if g.resetBy == "" {
		g.resetBy = "translator"
	}
}

func (g *guestTCP) receiveOpen(s *packet.TCP) {
	n := uint32(len(s.Payload))
	end := s.Seq + n + uint32(s.Flags&packet.FIN)
	switch {
	case before(end, g.rcvNxt) || after(s.Seq, g.rcvAdv):
		if s.Flags&packet.RST == 0 {
			g.segment(g.nxt, 0, 0)
		}
		return
	case s.Flags&packet.RST != 0:
		if s.Seq == g.rcvNxt {
			g.reset()
		} else {
			g.segment(g.nxt, 0, 0)
		}
		return
	case s.Flags&packet.SYN != 0:
		g.segment(g.nxt, 0, 0)
		return
	}
	g.receiveAck(s, n)
	if n > 0 || s.Flags&packet.FIN != 0 {
		g.receiveData(s)
	}
	g.output()
}

func (g *guestTCP) receiveAck(s *packet.TCP, n uint32) {
	if after(s.Ack, g.max) || before(s.Ack, g.una) {
		return
	}
	old := g.wnd
	if before(g.wl1, s.Seq) || g.wl1 == s.Seq && notAfter(g.wl2, s.Ack) {
		g.wnd = uint32(s.Window)
		if g.theirs > 0 {
			g.wnd <<= g.theirs
		}
		g.wl1, g.wl2 = s.Seq, s.Ack
	}
	for _, x := range s.SACK[:s.NumSACK] {
		if after(x.Left, s.Ack) {
			g.sacked = g.sacked.add(x.Left, x.Right)
		}
	}
	switch {
	case s.Ack != g.una:
		g.cwnd = min(g.cwnd+s.Ack-g.una, 1<<20)
		g.una = s.Ack
		g.nxt = later(g.nxt, g.una)
		g.sacked = g.sacked.from(g.una)
		g.dups, g.backoff, g.rto = 0, 0, 0
		if g.una != g.max {
			g.arm()
		}
	case n == 0 && g.una != g.max && g.wnd == old && s.Flags&packet.FIN == 0:
		if g.dups++; g.dups == dupThreshold && before(g.una, g.dataEnd()) {
			k := min(uint32(g.mss), g.dataEnd()-g.una, g.max-g.una)
			if len(g.sacked) > 0 {
				k = min(k, g.sacked[0].Left-g.una)
			}
			g.segment(g.una, int(k), 0)
		}
	}
}

// receiveData takes payload and FIN; every byte is checked where it stands.
func (g *guestTCP) receiveData(s *packet.TCP) {
	n := uint32(len(s.Payload))
	for at := uint32(0); at < n; at += 1 << 15 {
		k := min(n-at, 1<<15)
		if !bytes.Equal(s.Payload[at:at+k], stream(int(s.Seq+at-g.irs-1), int(k))) {
			g.t.Fatalf("wrong bytes to the guest at %d", s.Seq+at-g.irs-1)
		}
	}
	if s.Flags&packet.FIN != 0 {
		if g.fin && g.finAt != s.Seq+n {
			g.t.Fatalf("FIN at %d and at %d", g.finAt-g.irs, s.Seq+n-g.irs)
		}
		g.fin, g.finAt = true, s.Seq+n
	}
	end := s.Seq + n
	if after(end, g.rcvAdv) {
		end = g.rcvAdv // what was not asked for is dropped
	}
	if g.gotFIN || after(s.Seq, g.rcvNxt) {
		if after(end, s.Seq) && !g.gotFIN {
			g.early = g.early.add(s.Seq, end)
		}
		g.segment(g.nxt, 0, 0)
		return
	}
	was := g.rcvNxt
	g.rcvNxt = later(g.rcvNxt, end)
	g.rcvNxt = g.early.over(g.rcvNxt)
	g.early = g.early.from(g.rcvNxt)
	g.unread += int(g.rcvNxt - was)
	g.received += int(g.rcvNxt - was)
	if g.fin && g.rcvNxt == g.finAt {
		g.gotFIN = true
		g.rcvNxt++
	}
	g.owed++
}

// acknowledge ends a batch of segments received.
func (g *guestTCP) acknowledge() {
	if g.owed > 0 && g.state == guestOpen {
		g.segment(g.nxt, 0, 0)
	}
}
