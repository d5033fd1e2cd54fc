// SPDX-License-Identifier: Apache-2.0

// Package tcptest is a guest's TCP for tests of the translators: an endpoint
// that trusts nothing and checks every byte it receives.
package tcptest

import (
	"bytes"
	"math/rand/v2"
	"testing"

	"aldente/worker/packet"
)

// Nanoseconds.
const (
	ms     = int64(1_000_000)
	second = 1000 * ms
)

// dupThreshold is how many duplicate acknowledgments mean loss, RFC 5681
// section 3.2.
const dupThreshold = 3

// State is where a connection is.
type State int

// States of a guest's connection.
const (
	Listens State = iota
	SynSent
	SynRcvd
	Open // until the end; it answers as in TIME-WAIT then
	Reset
)

// Guest is one connection of a guest's TCP written for tests alone: plain,
// trusting nothing, never sending again what was reported by SACK, with a
// receive window that does not shrink. What its application writes is Stream;
// what it receives has to be.
type Guest struct {
	// Set before the first call.
	T        testing.TB
	Now      *int64           // nanoseconds
	Rand     *rand.Rand       // of all that it leaves to chance
	Send     func(packet.TCP) // takes its segments
	MSS      int              // that it offers
	Scale    int8             // -1: not offered
	WantSACK bool             // offers SACK
	TSO      bool             // sends super-frames
	ISS      uint32           // its initial sequence number
	Buf      int              // size of the receive buffer

	// To be read.
	State    State
	IRS      uint32 // the other's
	Una, Max uint32 // oldest number not acknowledged, and behind the highest sent
	Total    int    // bytes the application has written
	Closed   bool   // and no more will come
	Unread   int    // bytes the application has not read
	RcvAdv   uint32 // right edge of the window as announced
	GotFIN   bool   // taken in order
	Timeouts int    // of data
	Received int    // bytes in order
	ResetBy  string // "": by nobody

	sack      bool
	theirs    int8
	nxt       uint32
	wnd, cwnd uint32
	wl1, wl2  uint32
	sacked    spans
	dups      int
	rto       int64 // deadline, 0: none
	backoff   int
	rcvNxt    uint32
	early     spans
	fin       bool // seen at finAt
	finAt     uint32
	owed      int // segments not acknowledged
}

// Never is a time that does not come.
const Never = int64(1<<63 - 1)

// Connect sends the SYN.
func (g *Guest) Connect() {
	g.State = SynSent
	g.Una, g.nxt, g.Max = g.ISS, g.ISS+1, g.ISS+1
	g.sendSYN()
}

func (g *Guest) sendSYN() {
	s := packet.TCP{Flags: packet.SYN, Seq: g.ISS, MSS: uint16(g.MSS), WScale: g.Scale, SACKPermitted: g.WantSACK,
		Window: uint16(min(g.Buf, 65535))}
	if g.State == SynRcvd {
		s.Flags |= packet.ACK
		s.Ack = g.rcvNxt
		s.SACKPermitted = g.sack
		if g.theirs < 0 {
			s.WScale = -1
		}
		g.RcvAdv = g.rcvNxt + uint32(s.Window)
	}
	g.Send(s)
	g.arm()
}

func (g *Guest) arm() { g.rto = *g.Now + min(250*ms<<g.backoff, 8*second) }

// Deadline is when Expire is to be called.
func (g *Guest) Deadline() int64 {
	if g.rto == 0 {
		return Never
	}
	return g.rto
}

// Expire does what is due at Deadline.
func (g *Guest) Expire() {
	if g.rto == 0 || *g.Now < g.rto {
		return
	}
	g.backoff = min(g.backoff+1, 10)
	switch {
	case g.State == SynSent || g.State == SynRcvd:
		g.sendSYN()
	case g.State != Open:
		g.rto = 0
	case g.Una == g.Max || g.wnd == 0 && g.Una == g.nxt:
		g.rto = 0
		if g.wnd == 0 && g.Una != g.end() {
			g.probe()
			g.arm()
		}
	default:
		g.Timeouts++
		g.rto = 0
		g.nxt, g.cwnd = g.Una, uint32(2*g.MSS)
		if g.wnd == 0 {
			g.probe()
			g.arm()
		}
		g.output()
	}
}

// probe asks a closed window, as Linux does or as BSD does.
func (g *Guest) probe() {
	if g.Rand.IntN(2) == 0 || g.Una == g.dataEnd() {
		g.segment(g.Una-1, 0, 0)
		return
	}
	g.segment(g.Una, 1, 0)
	g.Max = later(g.Max, g.Una+1)
}

func (g *Guest) dataEnd() uint32 { return g.ISS + 1 + uint32(g.Total) }

// end is the number behind all there is to send, FIN included.
func (g *Guest) end() uint32 {
	if g.Closed {
		return g.dataEnd() + 1
	}
	return g.dataEnd()
}

// segment sends n bytes of the stream.
func (g *Guest) segment(seq uint32, n int, flags uint8) {
	s := packet.TCP{Flags: packet.ACK | flags, Seq: seq, Ack: g.rcvNxt, Window: g.window(), WScale: -1}
	if n > 0 {
		s.Payload = Stream(int(seq-g.ISS-1), n)
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
	g.Send(s)
}

// window announces free space; the edge never moves left.
func (g *Guest) window() uint16 {
	shift := max(g.Scale, 0)
	if g.theirs < 0 {
		shift = 0
	}
	edge := g.rcvNxt + uint32(max(g.Buf-g.Unread, 0))
	if after(edge, g.RcvAdv) && int(edge-g.RcvAdv) >= min(g.MSS, g.Buf/2) {
		g.RcvAdv = edge
	}
	w := uint32(0)
	if after(g.RcvAdv, g.rcvNxt) {
		w = min((g.RcvAdv-g.rcvNxt+1<<shift-1)>>shift, 65535)
	}
	g.RcvAdv = later(g.RcvAdv, g.rcvNxt+w<<shift)
	return uint16(w)
}

// output sends what windows allow.
func (g *Guest) output() {
	if g.State != Open {
		return
	}
	for {
		g.nxt = g.sacked.over(g.nxt)
		left := g.dataEnd() - g.nxt
		if after(g.nxt, g.dataEnd()) {
			break
		}
		if left == 0 {
			if g.Closed && g.nxt == g.dataEnd() {
				g.segment(g.nxt, 0, packet.FIN)
				g.nxt++
				g.Max = later(g.Max, g.nxt)
			}
			break
		}
		room := g.Una + min(g.wnd, g.cwnd) - g.nxt
		if int32(room) <= 0 || room < uint32(g.MSS) && room < left && g.nxt != g.Una {
			break
		}
		size := g.MSS
		if g.TSO {
			size = max(g.MSS, min(40000, g.MSS*(1+g.Rand.IntN(20))))
		}
		n := min(left, room, uint32(size))
		for _, x := range g.sacked {
			if after(x.Left, g.nxt) {
				n = min(n, x.Left-g.nxt)
			}
		}
		flags := uint8(0)
		fin := g.Closed && n == left
		if fin {
			flags = packet.FIN
		}
		g.segment(g.nxt, int(n), flags)
		g.nxt += n
		if fin {
			g.nxt++
		}
		g.Max = later(g.Max, g.nxt)
	}
	if g.rto == 0 && (g.Una != g.Max || g.wnd == 0 && g.Una != g.end()) {
		g.arm()
	}
}

// Abort is a reset by the application.
func (g *Guest) Abort() {
	if g.State == Open {
		g.Send(packet.TCP{Flags: packet.RST | packet.ACK, Seq: g.nxt, Ack: g.rcvNxt, WScale: -1})
	}
	g.State, g.rto, g.ResetBy = Reset, 0, "guest"
}

// Read has the application take n bytes.
func (g *Guest) Read(n int) {
	n = min(n, g.Unread)
	was := int(g.RcvAdv - g.rcvNxt)
	g.Unread -= n
	if g.State == Open && n > 0 && was < g.MSS && g.Buf-g.Unread >= min(g.MSS, g.Buf/2) {
		g.segment(g.nxt, 0, 0) // a window update
	}
}

// Write has the application give n bytes, and perhaps close.
func (g *Guest) Write(n int, done bool) {
	g.Total += n
	g.Closed = done
	g.output()
}

// Receive takes a segment from the network.
func (g *Guest) Receive(s *packet.TCP) {
	switch g.State {
	case Reset:
		if s.Flags&packet.RST == 0 {
			g.Send(packet.TCP{Flags: packet.RST, Seq: s.Ack, WScale: -1})
		}
	case Listens:
		if s.Flags&(packet.SYN|packet.ACK) == packet.SYN {
			g.start(s)
			g.State = SynRcvd
			g.Una, g.nxt, g.Max = g.ISS, g.ISS+1, g.ISS+1
			g.sendSYN()
		}
	case SynSent:
		g.receiveSynSent(s)
	case SynRcvd:
		switch {
		case s.Flags&packet.RST != 0:
			if s.Seq == g.rcvNxt {
				g.reset()
			}
		case s.Flags&packet.SYN != 0:
			g.sendSYN()
		case s.Flags&packet.ACK != 0 && s.Ack == g.ISS+1:
			g.opened(s)
			g.receiveOpen(s)
		}
	default:
		g.receiveOpen(s)
	}
}

func (g *Guest) start(s *packet.TCP) {
	g.IRS, g.rcvNxt, g.RcvAdv = s.Seq, s.Seq+1, s.Seq+1+uint32(min(g.Buf, 65535))
	g.theirs = s.WScale
	if g.Scale < 0 {
		g.theirs = -1
	}
	g.sack = g.WantSACK && s.SACKPermitted
	g.MSS = min(g.MSS, int(s.MSS))
}

func (g *Guest) opened(s *packet.TCP) {
	g.State = Open
	g.Una, g.backoff, g.rto = g.ISS+1, 0, 0
	g.cwnd = uint32(10 * g.MSS)
	g.wl1, g.wl2 = s.Seq-1, s.Ack
}

func (g *Guest) receiveSynSent(s *packet.TCP) {
	ok := s.Flags&packet.ACK != 0 && s.Ack == g.ISS+1
	switch {
	case s.Flags&packet.ACK != 0 && !ok:
		if s.Flags&packet.RST == 0 {
			g.Send(packet.TCP{Flags: packet.RST, Seq: s.Ack, WScale: -1})
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

func (g *Guest) reset() {
	g.State, g.rto = Reset, 0
	if g.ResetBy == "" {
		g.ResetBy = "translator"
	}
}

func (g *Guest) receiveOpen(s *packet.TCP) {
	n := uint32(len(s.Payload))
	end := s.Seq + n + uint32(s.Flags&packet.FIN)
	switch {
	case before(end, g.rcvNxt) || after(s.Seq, g.RcvAdv):
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

func (g *Guest) receiveAck(s *packet.TCP, n uint32) {
	if after(s.Ack, g.Max) || before(s.Ack, g.Una) {
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
	case s.Ack != g.Una:
		g.cwnd = min(g.cwnd+s.Ack-g.Una, 1<<20)
		g.Una = s.Ack
		g.nxt = later(g.nxt, g.Una)
		g.sacked = g.sacked.from(g.Una)
		g.dups, g.backoff, g.rto = 0, 0, 0
		if g.Una != g.Max {
			g.arm()
		}
	case n == 0 && g.Una != g.Max && g.wnd == old && s.Flags&packet.FIN == 0:
		if g.dups++; g.dups == dupThreshold && before(g.Una, g.dataEnd()) {
			k := min(uint32(g.MSS), g.dataEnd()-g.Una, g.Max-g.Una)
			if len(g.sacked) > 0 {
				k = min(k, g.sacked[0].Left-g.Una)
			}
			g.segment(g.Una, int(k), 0)
		}
	}
}

// receiveData takes payload and FIN; every byte is checked where it stands.
func (g *Guest) receiveData(s *packet.TCP) {
	n := uint32(len(s.Payload))
	for at := uint32(0); at < n; at += 1 << 15 {
		k := min(n-at, 1<<15)
		if !bytes.Equal(s.Payload[at:at+k], Stream(int(s.Seq+at-g.IRS-1), int(k))) {
			g.T.Fatalf("wrong bytes to the guest at %d", s.Seq+at-g.IRS-1)
		}
	}
	if s.Flags&packet.FIN != 0 {
		if g.fin && g.finAt != s.Seq+n {
			g.T.Fatalf("FIN at %d and at %d", g.finAt-g.IRS, s.Seq+n-g.IRS)
		}
		g.fin, g.finAt = true, s.Seq+n
	}
	end := s.Seq + n
	if after(end, g.RcvAdv) {
		end = g.RcvAdv // what was not asked for is dropped
	}
	if g.GotFIN || after(s.Seq, g.rcvNxt) {
		if after(end, s.Seq) && !g.GotFIN {
			g.early = g.early.add(s.Seq, end)
		}
		g.segment(g.nxt, 0, 0)
		return
	}
	was := g.rcvNxt
	g.rcvNxt = later(g.rcvNxt, end)
	g.rcvNxt = g.early.over(g.rcvNxt)
	g.early = g.early.from(g.rcvNxt)
	g.Unread += int(g.rcvNxt - was)
	g.Received += int(g.rcvNxt - was)
	if g.fin && g.rcvNxt == g.finAt {
		g.GotFIN = true
		g.rcvNxt++
	}
	g.owed++
}

// Acknowledge ends a batch of segments received.
func (g *Guest) Acknowledge() {
	if g.owed > 0 && g.State == Open {
		g.segment(g.nxt, 0, 0)
	}
}
