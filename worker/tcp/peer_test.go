// SPDX-License-Identifier: Apache-2.0

package tcp

import (
	"fmt"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"aldente/ipc"
	"aldente/worker/packet"
	"aldente/worker/store"
)

// Both sides start shortly before sequence numbers wrap, so that every test is
// one of the arithmetic as well.
const (
	guestISN = ^uint32(0) - 100
	ourISN   = ^uint32(0) - 50
)

// peer is a guest's end of one connection, every segment of which the test
// writes. Expectations are about numbers relative to the initial ones.
type peer struct {
	t      testing.TB
	e      *env
	guest  packet.Addr
	remote packet.Addr
	port   uint16 // the guest's
	irs    uint32 // ours, as the guest calls it
	seq    uint32 // next to send
	ack    uint32 // next expected
	win    uint16
	sent   int // bytes of the stream
	s      *sock
}

func newPeer(e *env, port uint16) *peer {
	return &peer{t: e.t, e: e, guest: guest4, remote: remote4, port: port, seq: guestISN, win: 0xffff}
}

func newPeer6(e *env, port uint16) *peer {
	p := newPeer(e, port)
	p.guest, p.remote = guest6, remote6
	return p
}

func (p *peer) key() store.Key { return store.MakeKey(&p.remote, &p.guest, remotePort, p.port) }

// conn is the translator's side; nil if there is none.
func (p *peer) conn() *conn {
	k := p.key()
	if i := p.e.tr.flows.Find(&k); i != store.None {
		return p.e.tr.flows.At(i)
	}
	return nil
}

// input is one segment in a batch. Numbers are absolute.
func (p *peer) input(s packet.TCP) {
	s.SrcPort, s.DstPort = p.port, remotePort
	if s.Flags&packet.SYN == 0 {
		s.MSS, s.WScale = 0, -1
	}
	p.e.input(p.guest, p.remote, s)
}

// raw is one segment, alone in its batch.
func (p *peer) raw(s packet.TCP) {
	p.input(s)
	p.e.flush()
	p.e.settle()
}

// add sends the next n bytes of the stream within a batch.
func (p *peer) add(flags uint8, n int) {
	p.input(packet.TCP{Flags: flags | packet.ACK, Seq: p.seq, Ack: p.ack, Window: p.win, Payload: stream(p.sent, n)})
	p.seq += uint32(n)
	p.sent += n
	if flags&packet.FIN != 0 {
		p.seq++
	}
}

func (p *peer) end() {
	p.e.flush()
	p.e.settle()
}

// send is add alone in its batch.
func (p *peer) send(flags uint8, n int) {
	p.add(flags, n)
	p.end()
}

// at sends n bytes of the stream from off on, out of turn.
func (p *peer) at(off, n int, flags uint8) {
	p.raw(packet.TCP{Flags: flags | packet.ACK, Seq: p.seq + uint32(off-p.sent), Ack: p.ack, Window: p.win,
		Payload: stream(off, n)})
}

// acks acknowledges up to relative number n and opens the window to win.
func (p *peer) acks(n uint32, win uint16, sack ...uint32) {
	p.ack, p.win = p.irs+n, win
	s := packet.TCP{Flags: packet.ACK, Seq: p.seq, Ack: p.ack, Window: win}
	for k := 0; k < len(sack); k += 2 {
		s.SACK[s.NumSACK] = packet.SACKBlock{Left: p.irs + sack[k], Right: p.irs + sack[k+1]}
		s.NumSACK++
	}
	p.raw(s)
}

func (p *peer) syn() packet.TCP {
	return packet.TCP{Flags: packet.SYN, Seq: guestISN, Window: 0xffff, MSS: 1460, WScale: 4, SACKPermitted: true}
}

// describe prints a segment with numbers relative to the initial ones.
func (p *peer) describe(f *frame) string {
	if f.icmp != nil {
		return fmt.Sprintf("ICMP %d/%d", f.icmp[0], f.icmp[1])
	}
	s := &f.tcp
	var b strings.Builder
	for k, name := range "FSRPA" {
		if s.Flags&(1<<k) != 0 && name != 'P' {
			b.WriteRune(name)
		}
	}
	if s.Flags&packet.SYN != 0 && p.irs == 0 {
		p.irs = s.Seq
		p.ack = s.Seq + 1
	}
	fmt.Fprintf(&b, " %d", s.Seq-p.irs)
	if len(s.Payload) > 0 {
		fmt.Fprintf(&b, "+%d", len(s.Payload))
		off := int(s.Seq - p.irs - 1)
		if string(s.Payload) != string(stream(off, len(s.Payload))) {
			p.t.Errorf("wrong bytes to the guest at %d", off)
		}
	}
	if s.Flags&packet.ACK != 0 {
		fmt.Fprintf(&b, " ack %d", s.Ack-guestISN)
	} else if s.Ack != 0 {
		fmt.Fprintf(&b, " ack field %d", s.Ack)
	}
	if s.Flags&packet.SYN != 0 {
		fmt.Fprintf(&b, " mss %d ws %d sack %t", s.MSS, s.WScale, s.SACKPermitted)
	}
	for _, r := range s.SACK[:s.NumSACK] {
		fmt.Fprintf(&b, " [%d,%d)", r.Left-guestISN, r.Right-guestISN)
	}
	return b.String()
}

// got returns and describes what was sent to the guest since the last time.
func (p *peer) got() ([]frame, []string) {
	frames := p.e.take()
	var all []string
	for k := range frames {
		f := &frames[k]
		if f.src != p.remote && f.icmp == nil || f.dst != p.guest {
			p.t.Errorf("frame from %x to %x", f.src, f.dst)
		}
		all = append(all, p.describe(f))
	}
	return frames, all
}

// want compares all segments sent since the last time.
func (p *peer) want(segments ...string) []frame {
	p.t.Helper()
	frames, got := p.got()
	if d := cmp.Diff(segments, got); d != "" {
		p.t.Fatalf("segments to the guest (-want +got):\n%s", d)
	}
	return frames
}

// window is the window field of the only segment sent, in bytes.
func (p *peer) window() uint32 {
	p.t.Helper()
	frames, got := p.got()
	if len(frames) != 1 {
		p.t.Fatalf("one segment expected: %q", got)
	}
	c := p.conn()
	return uint32(frames[0].tcp.Window) << c.rcvScale
}

// start opens a connection from the guest as far as the SYN.
func (p *peer) start(syn packet.TCP) {
	if p.e.tr.Len() == 0 {
		p.e.isnAt(p.key(), ourISN)
	}
	p.raw(syn)
	p.seq = syn.Seq + 1
}

// dial opens a connection from the guest.
func (p *peer) dial(syn packet.TCP) *peer {
	p.t.Helper()
	p.start(syn)
	p.s = p.e.newSock()
	return p.dialled()
}

// dialled goes on from there, with the socket in p.s.
func (p *peer) dialled() *peer {
	p.t.Helper()
	p.e.answer(len(p.e.opens)-1, ipc.Opened{}, p.s)
	p.e.settle()
	if _, got := p.got(); len(got) != 1 || !strings.HasPrefix(got[0], "SA 0 ack 1 ") {
		p.t.Fatalf("answer to SYN: %q", got)
	}
	p.send(0, 0)
	p.want()
	return p
}

func dial(e *env) *peer {
	p := newPeer(e, guestPort)
	return p.dial(p.syn())
}

// listen has the translator take over a listening socket.
func (e *env) listen(id uint32, guestPort uint16) *sock {
	l := e.newSock()
	l.listening = true
	e.tr.AddListener(&ipc.Listener{ID: id, Proto: ipc.ProtoTCP, GuestPort: guestPort}, l.fd)
	return l
}

// arrive puts a connection into a listener's backlog.
func (l *sock) arrive(s *sock, from packet.Addr, port uint16) {
	l.backlog = append(l.backlog, backlogEntry{s, from, port})
	l.edge = true
}

// accepted opens a connection from the host as far as our SYN.
func (e *env) accepted() *peer {
	p := newPeer(e, guestPort)
	l := e.listen(1, guestPort)
	p.s = e.newSock()
	e.isnAt(p.key(), ourISN)
	l.arrive(p.s, remote4, remotePort)
	e.settle()
	return p
}

// accept opens a connection from the host.
func accept(e *env) *peer {
	e.t.Helper()
	p := e.accepted()
	p.want("S 0 mss 1460 ws 7 sack true")
	s := p.syn()
	s.Flags, s.Ack = packet.SYN|packet.ACK, p.ack
	p.raw(s)
	p.seq = s.Seq + 1
	p.want("A 1 ack 1")
	return p
}

// gone checks that the flow has ended and that nothing is left of it.
func (p *peer) gone() {
	p.t.Helper()
	if p.conn() != nil {
		p.t.Fatalf("the flow is still there: %+v", *p.conn())
	}
	p.e.empty()
}
