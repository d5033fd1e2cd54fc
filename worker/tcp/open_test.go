// SPDX-License-Identifier: Apache-2.0

package tcp

import (
	"fmt"
	"slices"
	"syscall"
	"testing"
	"time"

	"aldente/ipc"
	"aldente/worker/flow"
	"aldente/worker/packet"
	"aldente/worker/store"
)

const second = int64(time.Second)

func TestDial(t *testing.T) {
	for _, tt := range []struct {
		name   string
		v6     bool
		change func(s *packet.TCP)
		want   string
		mss    uint16
		window uint32 // of the guest, after its ACK with 0xffff
	}{
		{"all options", false, func(s *packet.TCP) {}, "SA 0 ack 1 mss 1460 ws 7 sack true", 1460, 0xffff << 4},
		{"IPv6", true, func(s *packet.TCP) {}, "SA 0 ack 1 mss 1440 ws 7 sack true", 1440, 0xffff << 4},
		{"no window scale", false, func(s *packet.TCP) { s.WScale = -1 }, "SA 0 ack 1 mss 1460 ws -1 sack true", 1460, 0xffff},
		{"no SACK", false, func(s *packet.TCP) { s.SACKPermitted = false }, "SA 0 ack 1 mss 1460 ws 7 sack false", 1460, 0xffff << 4},
		{"no MSS", false, func(s *packet.TCP) { s.MSS = 0 }, "SA 0 ack 1 mss 1460 ws 7 sack true", 536, 0xffff << 4},
		{"no MSS, IPv6", true, func(s *packet.TCP) { s.MSS = 0 }, "SA 0 ack 1 mss 1440 ws 7 sack true", 1220, 0xffff << 4},
		{"MSS of one byte", false, func(s *packet.TCP) { s.MSS = 1 }, "SA 0 ack 1 mss 1460 ws 7 sack true", 48, 0xffff << 4},
		{"MSS beyond the link", false, func(s *packet.TCP) { s.MSS = 65535 }, "SA 0 ack 1 mss 1460 ws 7 sack true", 1460, 0xffff << 4},
		{"largest window scale", false, func(s *packet.TCP) { s.WScale = 14 }, "SA 0 ack 1 mss 1460 ws 7 sack true", 1460, 0xffff << 14},
	} {
		t.Run(tt.name, func(t *testing.T) {
			e := newEnv(t)
			p := newPeer(e, guestPort)
			if tt.v6 {
				p = newPeer6(e, guestPort)
			}
			syn := p.syn()
			tt.change(&syn)
			p.start(syn)
			p.want() // nothing before the host has answered
			if len(e.opens) != 1 {
				t.Fatalf("%d requests", len(e.opens))
			}
			r := e.opens[0]
			if r.Proto != ipc.ProtoTCP || r.Src != p.guest || r.Dst != p.remote || r.SrcPort != guestPort || r.DstPort != remotePort {
				t.Fatalf("request %+v", r)
			}
			p.s = e.newSock()
			p.s.connecting = true
			e.answer(0, ipc.Opened{Flags: ipc.OpenedInProgress}, p.s)
			e.settle()
			p.want()
			p.s.connected()
			e.settle()
			f := p.want(tt.want)
			if w := f[0].tcp.Window; w != 65280 {
				t.Errorf("window of SYN-ACK %d", w)
			}
			p.send(0, 0)
			if c := p.conn(); c.state != stateOpen || c.mss != tt.mss || c.sndWnd != tt.window {
				t.Errorf("state %d, MSS %d, window %d", c.state, c.mss, c.sndWnd)
			}
			p.s.say(10)
			e.settle()
			p.want("A 1+10 ack 1")
			p.send(0, 100)
			p.want("A 11 ack 101")
			if p.s.txTotal != 100 {
				t.Errorf("%d bytes to the host", p.s.txTotal)
			}
		})
	}
}

func TestAccept(t *testing.T) {
	for _, tt := range []struct {
		name   string
		change func(s *packet.TCP)
		mss    uint16
		window uint32 // SYN-ACK's is not scaled
		scale  uint8
		sack   bool
	}{
		{"all options", func(s *packet.TCP) {}, 1460, 0xffff, 7, true},
		{"no window scale", func(s *packet.TCP) { s.WScale = -1 }, 1460, 0xffff, 0, true},
		{"no SACK, no MSS", func(s *packet.TCP) { s.SACKPermitted, s.MSS = false, 0 }, 536, 0xffff, 7, false},
	} {
		t.Run(tt.name, func(t *testing.T) {
			e := newEnv(t)
			p := e.accepted()
			p.want("S 0 mss 1460 ws 7 sack true")
			s := p.syn()
			s.Flags, s.Ack = packet.SYN|packet.ACK, p.ack
			tt.change(&s)
			p.raw(s)
			p.want("A 1 ack 1")
			p.seq = s.Seq + 1
			c := p.conn()
			if c.mss != tt.mss || c.sndWnd != tt.window || c.rcvScale != tt.scale || c.has(flagSACK) != tt.sack {
				t.Errorf("MSS %d, window %d, scale %d, SACK %t", c.mss, c.sndWnd, c.rcvScale, c.has(flagSACK))
			}
			p.s.say(10)
			e.settle()
			p.want("A 1+10 ack 1")
		})
	}
}

// What the host's connect comes to decides what the guest sees.
func TestDialRefused(t *testing.T) {
	for _, tt := range []struct {
		name   string
		v6     bool
		errno  syscall.Errno
		flags  uint16
		answer string
	}{
		{"refused", false, syscall.ECONNREFUSED, 0, "RST"},
		{"reset", true, syscall.ECONNRESET, 0, "RST"},
		{"no address, or no port left", false, syscall.EADDRNOTAVAIL, 0, "ICMP 3/0"},
		{"too fast", false, syscall.EAGAIN, 0, "RST"},
		{"no address, or no port left", true, syscall.EADDRNOTAVAIL, 0, "ICMP 1/0"},
		{"network down", false, syscall.ENETDOWN, 0, "ICMP 3/0"},
		{"network down", true, syscall.ENETDOWN, 0, "ICMP 1/0"},
		{"family disabled", true, syscall.EAFNOSUPPORT, 0, "ICMP 1/0"},
		{"network unreachable", false, syscall.ENETUNREACH, 0, "ICMP 3/0"},
		{"network unreachable", true, syscall.ENETUNREACH, 0, "ICMP 1/0"},
		{"host unreachable", false, syscall.EHOSTUNREACH, 0, "ICMP 3/1"},
		{"host unreachable", true, syscall.EHOSTUNREACH, 0, "ICMP 1/3"},
		{"timed out", false, syscall.ETIMEDOUT, 0, "ICMP 3/1"},
		{"timed out", true, syscall.ETIMEDOUT, 0, "ICMP 1/3"},
		{"firewall", false, syscall.EPERM, 0, "ICMP 3/13"},
		{"firewall", true, syscall.EACCES, 0, "ICMP 1/1"},
		{"rules", false, syscall.EACCES, ipc.OpenedProhibited, "ICMP 3/13"},
		{"rules", true, syscall.EPERM, ipc.OpenedProhibited, "ICMP 1/1"},
	} {
		for _, late := range []bool{false, true} {
			if late && tt.flags != 0 {
				continue
			}
			name := tt.name
			if tt.v6 {
				name += ", IPv6"
			}
			if late {
				name += ", late"
			}
			t.Run(name, func(t *testing.T) {
				e := newEnv(t)
				p := newPeer(e, guestPort)
				if tt.v6 {
					p = newPeer6(e, guestPort)
				}
				p.start(p.syn())
				if late {
					p.s = e.newSock()
					p.s.connecting = true
					e.answer(0, ipc.Opened{Flags: ipc.OpenedInProgress}, p.s)
					e.settle()
					p.s.fail(tt.errno)
				} else {
					e.answer(0, ipc.Opened{Errno: uint16(tt.errno), Flags: tt.flags}, nil)
				}
				e.settle()
				frames, got := p.got()
				if len(frames) != 1 {
					t.Fatalf("answers: %q", got)
				}
				if tt.answer != "RST" {
					if got[0] != tt.answer {
						t.Fatalf("answer %q", got[0])
					}
					checkQuote(t, p, frames[0].icmp)
				} else if s := &frames[0].tcp; s.Flags != packet.RST|packet.ACK || s.Seq != 0 || s.Ack != guestISN+1 {
					t.Fatalf("answer %q", got[0])
				}
				p.gone()
			})
		}
	}
}

// checkQuote checks that the guest finds its socket by what the error quotes.
func checkQuote(t *testing.T, p *peer, icmp []byte) {
	t.Helper()
	whole := append(make([]byte, packet.EthernetLen), icmp[8:]...)
	whole[12], whole[13] = 0x08, 0x00
	if !p.guest.Is4() {
		whole[12], whole[13] = 0x86, 0xdd
	}
	var q packet.Packet
	var s packet.TCP
	if err := q.Decode(whole); err != nil {
		t.Fatal(err)
	}
	if err := s.Decode(q.Payload()); err != nil {
		t.Fatal(err)
	}
	if q.Src != p.guest || q.Dst != p.remote || s.SrcPort != p.port || s.DstPort != remotePort || s.Seq != guestISN || s.Flags != packet.SYN {
		t.Errorf("quotes %+v in %+v", s, q)
	}
}

func TestDialRepeatedSYN(t *testing.T) {
	e := newEnv(t)
	p := newPeer(e, guestPort)
	p.start(p.syn())
	p.raw(p.syn())
	p.s = e.newSock()
	p.s.connecting = true
	e.answer(0, ipc.Opened{Flags: ipc.OpenedInProgress}, p.s)
	p.raw(p.syn())
	p.want()
	if len(e.opens) != 1 {
		t.Fatalf("%d requests for one connection", len(e.opens))
	}
	p.s.connected()
	e.settle()
	p.want("SA 0 ack 1 mss 1460 ws 7 sack true")
	p.raw(p.syn()) // the guest has not seen it
	p.want("SA 0 ack 1 mss 1460 ws 7 sack true")
	e.advance(1200 * int64(time.Millisecond))
	p.want("SA 0 ack 1 mss 1460 ws 7 sack true")
	p.send(0, 0)
	p.want()
	if p.conn().state != stateOpen {
		t.Error("not established")
	}
}

func TestDialSYNACKLost(t *testing.T) {
	e := newEnv(t)
	p := newPeer(e, guestPort)
	p.start(p.syn())
	p.s = e.newSock()
	e.answer(0, ipc.Opened{}, p.s)
	e.settle()
	at := e.now
	var gaps []int64
	for range 200 {
		e.advance(second / 2)
		_, got := p.got()
		for range got {
			gaps = append(gaps, (e.now-at)/second)
			at = e.now
		}
	}
	// First the SYN-ACK itself, then one, two, four … seconds, rounded up by
	// half a second and late by an eighth at most.
	want := []int64{0, 1, 2, 4, 8, 16}
	if len(gaps) != len(want) {
		t.Fatalf("SYN-ACKs after %v", gaps)
	}
	for k, g := range gaps[1:] {
		if w := want[k+1]; g < w || g > w+w/4+1 {
			t.Errorf("SYN-ACK %d after %d s", k+1, g)
		}
	}
	if !p.s.aborted {
		t.Error("the host's side was not reset")
	}
	p.gone()
}

func TestAcceptNoAnswer(t *testing.T) {
	e := newEnv(t)
	p := e.accepted()
	n := 0
	for range 2000 {
		e.advance(second / 4)
		frames, got := p.got()
		n += len(frames)
		for _, g := range got {
			if g != "S 0 mss 1460 ws 7 sack true" {
				t.Fatalf("sent %q", g)
			}
		}
	}
	if n != 1+6 {
		t.Errorf("%d SYNs", n)
	}
	if !p.s.aborted {
		t.Error("the host's side was not reset")
	}
	e.tr.RemoveListener(1)
	p.gone()
}

// Payload of a SYN is not acknowledged: the guest sends it again.
func TestDialSYNPayloadIgnored(t *testing.T) {
	e := newEnv(t)
	p := newPeer(e, guestPort)
	syn := p.syn()
	syn.Payload = []byte("early")
	p.dial(syn)
	if p.s.txTotal != 0 {
		t.Error("payload of the SYN reached the host")
	}
	p.send(0, 100)
	p.want("A 1 ack 101")
}

// The ACK of our SYN-ACK may be lost; what comes next carries it.
func TestDialDataEndsHandshake(t *testing.T) {
	e := newEnv(t)
	p := newPeer(e, guestPort)
	p.start(p.syn())
	p.s = e.newSock()
	p.s.say(7)
	e.answer(0, ipc.Opened{}, p.s)
	e.settle()
	p.want("SA 0 ack 1 mss 1460 ws 7 sack true")
	p.send(packet.FIN, 100)
	p.want("A 1+7 ack 102")
	if p.s.txTotal != 100 || !p.s.shut {
		t.Errorf("%d bytes to the host, FIN %t", p.s.txTotal, p.s.shut)
	}
}

// All that a fast server has to say may be there when the connect is seen to
// have ended, in a single event.
func TestDialServerSpeaksAndCloses(t *testing.T) {
	for _, n := range []int{0, 5, 3000} {
		e := newEnv(t)
		p := newPeer(e, guestPort)
		p.start(p.syn())
		p.s = e.newSock()
		p.s.connecting = true
		e.answer(0, ipc.Opened{Flags: ipc.OpenedInProgress}, p.s)
		e.settle()
		p.s.say(n)
		p.s.fin()
		p.s.connected()
		e.settle()
		p.want("SA 0 ack 1 mss 1460 ws 7 sack true")
		p.send(0, 0)
		frames, got := p.got()
		if len(frames) == 0 || frames[len(frames)-1].tcp.Flags&packet.FIN == 0 {
			t.Errorf("%d bytes: %q", n, got)
		}
	}
}

func TestDialGuestGivesUp(t *testing.T) {
	e := newEnv(t)
	p := newPeer(e, guestPort)
	p.start(p.syn())
	p.raw(packet.TCP{Flags: packet.RST, Seq: guestISN + 1})
	if p.conn() != nil {
		t.Fatal("still there")
	}
	s := e.newSock()
	e.answer(0, ipc.Opened{}, s) // the broker's answer comes too late
	p.want()
	s.handed = true
	p.gone()
}

func TestDialNoRequestFits(t *testing.T) {
	e := newEnv(t)
	e.noOpen = true
	p := newPeer(e, guestPort)
	p.start(p.syn())
	p.want()
	p.gone()
}

func TestDialWatchFails(t *testing.T) {
	e := newEnv(t)
	p := newPeer(e, guestPort)
	p.start(p.syn())
	p.s = e.newSock()
	e.noWatch = syscall.ENOSPC
	e.answer(0, ipc.Opened{}, p.s)
	e.settle()
	if f := e.take(); len(f) != 1 || f[0].tcp.Flags&packet.RST == 0 || !p.s.aborted {
		t.Errorf("%d answers, to the host reset=%t", len(f), p.s.aborted)
	}
	p.gone()
}

func TestDialToNobody(t *testing.T) {
	e := newEnv(t)
	for _, dst := range []packet.Addr{
		{}, {10: 0xff, 11: 0xff}, packet.AddrFrom4([4]byte{127, 0, 0, 1}), packet.AddrFrom4([4]byte{224, 0, 0, 1}),
		packet.AddrFrom4([4]byte{255, 255, 255, 255}), {15: 1}, {0: 0xff, 15: 1},
	} {
		p := newPeer(e, guestPort)
		p.remote = dst
		if !dst.Is4() {
			p.guest = guest6
		}
		p.raw(p.syn())
		p.raw(packet.TCP{Flags: packet.ACK, Seq: 1, Ack: 2})
		if len(e.opens) != 0 || len(e.take()) != 0 {
			t.Errorf("connection to %x", dst)
		}
	}
	for _, ports := range [][2]uint16{{0, 1}, {1, 0}} {
		e.input(guest4, remote4, packet.TCP{Flags: packet.SYN, SrcPort: ports[0], DstPort: ports[1], WScale: -1})
		e.flush()
	}
	if len(e.opens) != 0 || e.tr.Len() != 0 {
		t.Error("connection between ports of zero")
	}
}

// Every error number leads to one answer, at once or late, by both families: what
// flow.Refuse says of it.
func TestDialRefusedByAnything(t *testing.T) {
	pool := make([]byte, 64*store.ChunkSize)
	for errno := syscall.Errno(1); errno <= 133; errno++ {
		for _, v6 := range []bool{false, true} {
			for _, late := range []bool{false, true} {
				e := newEnv(t, withPool(pool))
				p := newPeer(e, guestPort)
				if v6 {
					p = newPeer6(e, guestPort)
				}
				p.start(p.syn())
				if late {
					p.s = e.newSock()
					p.s.connecting = true
					e.answer(0, ipc.Opened{Flags: ipc.OpenedInProgress}, p.s)
					e.settle()
					p.s.fail(errno)
				} else {
					e.answer(0, ipc.Opened{Errno: uint16(errno)}, nil)
				}
				e.settle()
				var want []string
				switch r := flow.Refuse(errno, !v6); {
				case r.Reset:
					want = []string{"RA 0 ack 1"}
				case r.Told:
					want = []string{fmt.Sprintf("ICMP %d/%d", r.Type, r.Code)}
				}
				if _, got := p.got(); !slices.Equal(got, want) {
					t.Errorf("%v, IPv6 %t, late %t: %q, want %q", errno, v6, late, got, want)
				}
				p.gone()
			}
		}
	}
}

// Where the guest knows no address of ours in the family, the message comes from
// whom it is about.
func TestDialRefusedWithoutAddress(t *testing.T) {
	for _, v6 := range []bool{false, true} {
		e := newEnv(t)
		e.g.Our4, e.g.Our6 = packet.Addr{}, packet.Addr{}
		p := newPeer(e, guestPort)
		if v6 {
			p = newPeer6(e, guestPort)
		}
		p.start(p.syn())
		e.answer(0, ipc.Opened{Errno: uint16(syscall.ENETUNREACH)}, nil)
		if f, got := p.got(); len(f) != 1 || f[0].icmp == nil || f[0].src != p.remote {
			t.Errorf("IPv6 %t: %q", v6, got)
		}
	}
}
