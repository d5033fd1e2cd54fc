// SPDX-License-Identifier: Apache-2.0

package tcp

import (
	"strings"
	"syscall"
	"testing"

	"aldente/ipc"
	"aldente/worker/flow"
	"aldente/worker/packet"
)

func TestAcceptBurst(t *testing.T) {
	e := newEnv(t, withFlows(512), withChunks(4096))
	l := e.listen(1, 80)
	m := e.listen(2, 81)
	for k := range 3 * acceptBurst {
		l.arrive(e.newSock(), remote4, uint16(1000+k))
	}
	e.tr.ListenerReady(l.token, 1)
	l.edge = false
	if n := e.tr.Len(); n != acceptBurst || !e.tr.Pending() {
		t.Fatalf("%d connections in one turn, pending %t", n, e.tr.Pending())
	}
	accepts := m.accepts
	e.settle()
	if n := e.tr.Len(); n != 3*acceptBurst {
		t.Errorf("%d connections", n)
	}
	if m.accepts > accepts+1 {
		t.Errorf("the other listener was asked %d times", m.accepts-accepts)
	}
	e.tr.RemoveListener(1)
	e.tr.RemoveListener(2)
	e.tr.RemoveListener(2)
	if l.closes != 1 || m.closes != 1 {
		t.Error("listeners not closed once")
	}
	e.tr.ListenerReady(l.token, 1) // late
	if e.tr.Len() != 3*acceptBurst {
		t.Error("connections ended with their listener")
	}
	e.tr.Close()
	e.empty()
}

// What does not fit waits in the backlog until a connection ends.
// What a peer has said before the guest answers goes with the acknowledgment of that
// answer. Nothing is looked for in vain, and small pieces do not wait in the socket.
func TestAcceptSpokenTo(t *testing.T) {
	e := newEnv(t)
	p := e.accepted()
	p.want("S 0 mss 1460 ws 7 sack true")
	p.s.say(5)
	e.settle()
	s := p.syn()
	s.Flags, s.Ack = packet.SYN|packet.ACK, p.ack
	p.raw(s)
	p.want("A 1+5 ack 1")
	if !p.s.noDelay {
		t.Error("TCP_NODELAY is not set")
	}
	late := accept(newEnv(t))
	late.s.say(5)
	late.e.settle()
	late.want("A 1+5 ack 1")
	if n := p.s.inVain + late.s.inVain; n != 0 {
		t.Errorf("%d reads found nothing", n)
	}
}

func TestAcceptTableFull(t *testing.T) {
	e := newEnv(t, withFlows(5)) // of which one is for the guest's own connections
	l := e.listen(1, 80)
	for k := range 6 {
		l.arrive(e.newSock(), remote4, uint16(1000+k))
	}
	e.settle()
	if e.tr.Len() != 4 || len(l.backlog) != 2 || e.tr.Pending() {
		t.Fatalf("%d connections, %d wait", e.tr.Len(), len(l.backlog))
	}
	e.take()
	for k := range 6 {
		e.input(guest4, remote4, packet.TCP{SrcPort: 80, DstPort: uint16(1000 + k), Flags: packet.RST | packet.ACK,
			Ack: e.issOf(80, uint16(1000+k)) + 1, WScale: -1})
		e.flush()
		e.settle()
	}
	if len(l.backlog) != 0 || e.tr.Len() != 0 {
		t.Errorf("%d connections, %d wait", e.tr.Len(), len(l.backlog))
	}
	e.tr.RemoveListener(1)
	e.empty()
}

// issOf is our initial sequence number of a connection.
func (e *env) issOf(guest, remote uint16) uint32 {
	var iss uint32
	e.tr.flows.Each(func(i uint32) {
		k := e.tr.flows.Key(i)
		_, r := k.Remote()
		if _, g := k.Guest(); r == remote && g == guest {
			iss = e.tr.flows.At(i).iss
		}
	})
	return iss
}

// Without a descriptor for them, connections wait until one is closed, and the
// lane does not spin meanwhile.
func TestAcceptNoDescriptors(t *testing.T) {
	for _, errno := range []syscall.Errno{syscall.EMFILE, syscall.ENFILE, syscall.ENOBUFS, syscall.ENOMEM} {
		e := newEnv(t)
		p := dial(e)
		l := e.listen(1, 80)
		l.acceptErr = errno
		l.arrive(e.newSock(), remote4, 1000)
		e.settle()
		if e.tr.Pending() || e.tr.Len() != 1 {
			t.Fatal("spins")
		}
		p.raw(packet.TCP{Flags: packet.RST, Seq: p.seq})
		if e.tr.Pending() || e.tr.Len() != 0 {
			t.Fatal("spins")
		}
		l.acceptErr = 0
		e.tr.Freed() // by another protocol
		e.settle()
		if e.tr.Len() != 1 || len(l.backlog) != 0 {
			t.Errorf("%v: %d connections wait", errno, len(l.backlog))
		}
		// The same with one of our own.
		l.acceptErr = errno
		l.arrive(e.newSock(), remote4, 1001)
		e.settle()
		l.acceptErr = 0
		e.input(guest4, remote4, packet.TCP{SrcPort: 80, DstPort: 1000, Flags: packet.RST | packet.ACK,
			Ack: e.issOf(80, 1000) + 1, WScale: -1})
		e.flush()
		e.settle()
		if e.tr.Len() != 1 || len(l.backlog) != 0 {
			t.Errorf("%v: %d connections wait", errno, len(l.backlog))
		}
	}
}

func TestAcceptErrors(t *testing.T) {
	for _, errno := range []syscall.Errno{syscall.EBADF, syscall.EINVAL, syscall.ENOTSOCK, syscall.EOPNOTSUPP} {
		e := newEnv(t)
		l := e.listen(1, 80)
		l.acceptErr = errno
		l.edge = true
		e.settle() // fails if there is always work
		if l.accepts > 2 {
			t.Errorf("%v: %d tries", errno, l.accepts)
		}
	}
}

func TestAcceptWhere(t *testing.T) {
	other := packet.AddrFrom4([4]byte{10, 0, 2, 77})
	local := packet.AddrFrom4([4]byte{127, 0, 0, 1})
	other6, ll6 := packet.Addr{0: 0xfd, 1: 9, 15: 0x77}, packet.Addr{0: 0xfe, 1: 0x80, 15: 1}
	for _, tt := range []struct {
		name     string
		peer     packet.Addr
		target   packet.Addr
		seen     packet.Addr // the guest's address as it is known
		src, dst packet.Addr // zero: the connection is reset
	}{
		{"the guest", remote4, packet.Addr{}, guest4, remote4, guest4},
		{"a target", remote4, other, guest4, remote4, other},
		{"from loopback", local, packet.Addr{}, guest4, our4, guest4},
		{"a target, from loopback", local, other, guest4, our4, other},
		{"a target, from loopback, IPv6", packet.Addr{15: 1}, other6, guest4, our6, other6},
		{"guest not known", remote4, packet.Addr{}, packet.Addr{}, packet.Addr{}, packet.Addr{}},
		{"other family", remote6, guest4, guest4, packet.Addr{}, packet.Addr{}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			e := newEnv(t)
			e.g.Seen4, e.g.OurLL6 = tt.seen, ll6
			l := e.newSock()
			l.listening = true
			e.tr.AddListener(&ipc.Listener{ID: 9, Proto: ipc.ProtoTCP, GuestPort: 80, Target: tt.target}, l.fd)
			s := e.newSock()
			l.arrive(s, tt.peer, 1234)
			e.settle()
			f := e.take()
			if tt.src.IsZero() {
				if len(f) != 0 || s.closes != 1 || !s.aborted {
					t.Error("not reset")
				}
				return
			}
			if len(f) != 1 || f[0].src != tt.src || f[0].dst != tt.dst || f[0].tcp.SrcPort != 1234 || f[0].tcp.DstPort != 80 {
				t.Fatalf("%+v", f)
			}
		})
	}
}

// A second connection that looks like the first to the guest has another source
// port there: its peer has closed the first, which the guest has still to take, or
// speaks to two addresses of the host from one port.
func TestAcceptSameEnds(t *testing.T) {
	for _, port := range []uint16{remotePort, 40000} {
		e := newEnv(t)
		l := e.listen(1, guestPort)
		var ports []uint16
		for range 3 {
			l.arrive(e.newSock(), remote4, port)
			e.settle()
			for _, f := range e.take() {
				if f.tcp.Flags != packet.SYN || f.src != remote4 || f.tcp.DstPort != guestPort {
					t.Fatalf("to the guest: %+v", f)
				}
				ports = append(ports, f.tcp.SrcPort)
			}
		}
		if len(ports) != 3 || ports[0] != port || ports[1] == port || ports[2] == port || ports[1] == ports[2] {
			t.Fatalf("source ports %d", ports)
		}
		for _, p := range ports {
			if (p < 1024) != (port < 1024) {
				t.Errorf("source port %d for %d", p, port)
			}
		}
		e.tr.Close()
		e.tr.RemoveListener(1)
		e.empty()
	}
}

// The first connection is over for the guest: the second has its ports, and the
// host still gets what the guest said.
func TestAcceptOverGuest(t *testing.T) {
	e := newEnv(t)
	p := accept(e)
	p.doneUntaken()
	s := e.newSock()
	e.socks[0].arrive(s, remote4, remotePort)
	e.settle()
	if f := e.take(); len(f) != 1 || f[0].tcp.Flags != packet.SYN || f[0].tcp.SrcPort != remotePort {
		t.Fatalf("to the guest: %+v", f)
	}
	p.takesAll()
	e.tr.Close()
	e.tr.RemoveListener(1)
	e.empty()
}

// A port that a connection has towards the guest in place of its own may be that of
// another connection of the same remote: that one gets another in turn, and its own as
// soon as it is free.
func TestAcceptAliasTaken(t *testing.T) {
	e := newEnv(t)
	l := e.listen(1, guestPort)
	comes := func(port uint16) uint16 {
		t.Helper()
		l.arrive(e.newSock(), remote4, port)
		e.settle()
		f := e.take()
		if len(f) != 1 || f[0].tcp.Flags != packet.SYN || f[0].src != remote4 {
			t.Fatalf("to the guest: %+v", f)
		}
		return f[0].tcp.SrcPort
	}
	comes(40000)
	alias := comes(40000)
	real := comes(alias)
	if alias == 40000 || real == alias || real == 40000 || e.tr.Len() != 3 {
		t.Fatalf("source ports %d and %d, %d connections", alias, real, e.tr.Len())
	}
	e.input(guest4, remote4, packet.TCP{SrcPort: guestPort, DstPort: alias, Flags: packet.RST | packet.ACK,
		Ack: e.issOf(guestPort, alias) + 1, WScale: -1})
	e.flush()
	if got := comes(alias); got != alias || e.tr.Len() != 3 {
		t.Errorf("source port %d for %d, %d connections", got, alias, e.tr.Len())
	}
	e.tr.Close()
	e.tr.RemoveListener(1)
	e.empty()
}

func TestAcceptWatchFails(t *testing.T) {
	e := newEnv(t)
	l := e.listen(1, 80)
	e.noWatch = syscall.ENOSPC
	s := e.newSock()
	l.arrive(s, remote4, 1000)
	e.settle()
	if s.closes != 1 || e.tr.Len() != 0 {
		t.Error("not closed")
	}
	m := e.listen(2, 81)
	if m.closes != 1 {
		t.Error("a listener that cannot be watched was not closed")
	}
}

// A reset, a wrong ACK and a SYN-ACK while the SYN is out.
func TestAcceptAnswers(t *testing.T) {
	for _, tt := range []struct {
		name string
		s    packet.TCP
		want string // "-": nothing, flow alive; "gone": nothing, flow ended
	}{
		{"refused", packet.TCP{Flags: packet.RST | packet.ACK, Ack: ourISN + 1}, "gone"},
		{"RST without ACK", packet.TCP{Flags: packet.RST}, "-"},
		{"RST with a wrong ACK", packet.TCP{Flags: packet.RST | packet.ACK, Ack: ourISN + 2}, "-"},
		{"ACK of what was not sent", packet.TCP{Flags: packet.ACK, Ack: ourISN + 7}, "R 7,S 0 mss 1460 ws 7 sack true"},
		{"SYN-ACK of what was not sent", packet.TCP{Flags: packet.SYN | packet.ACK, Ack: ourISN, WScale: -1}, "R 0"},
		{"ACK alone", packet.TCP{Flags: packet.ACK, Ack: ourISN + 1}, "-"},
		{"SYN alone", packet.TCP{Flags: packet.SYN, WScale: -1}, "-"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			e := newEnv(t)
			p := e.accepted()
			p.want("S 0 mss 1460 ws 7 sack true")
			p.raw(tt.s)
			switch tt.want {
			case "gone":
				p.want()
				if p.conn() != nil || !p.s.aborted {
					t.Error("not reset")
				}
			case "-":
				p.want()
			default:
				p.want(strings.Split(tt.want, ",")...)
				p.raw(tt.s)
				p.want(strings.Split(tt.want, ",")[0]) // not for ever
			}
			if tt.want != "gone" && (p.conn() == nil || p.conn().state != stateSynSent) {
				t.Error("the flow is gone")
			}
			e.tr.Close()
			e.tr.RemoveListener(1)
			e.empty()
		})
	}
}

// A guest that has sent nothing yet when somebody connects by [::1] may turn out to have
// IPv4 only, or to have IPv6 after all. Whoever has connected otherwise keeps to it.
func TestAcceptEitherFamily(t *testing.T) {
	lo4, lo6 := packet.AddrFrom4([4]byte{127, 0, 0, 1}), flow.OtherLoopback(true)
	for _, tt := range []struct {
		name   string
		peer   packet.Addr
		target packet.Addr
		heard  string // by which families the guest speaks before each of the SYNs
		want   string // by which family they go
	}{
		{"IPv4 only", lo6, packet.Addr{}, "-44", "644"},
		{"IPv4 first, then IPv6", lo6, packet.Addr{}, "-46", "646"},
		{"nothing", lo6, packet.Addr{}, "---", "666"},
		{"IPv4 only, known", lo6, packet.Addr{}, "4--", "444"},
		{"another host", remote6, packet.Addr{}, "-44", "666"},
		{"by a rule's target", lo6, guest6, "-44", "666"},
		{"by IPv4", lo4, packet.Addr{}, "-66", "444"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			e := newEnv(t)
			e.g.Our6, e.g.OurLL6 = packet.Addr{0: 0xfd, 15: 1}, packet.Addr{0: 0xfe, 1: 0x80, 15: 1}
			l := e.listen(1, guestPort)
			e.tr.RetargetListener(&ipc.Listener{ID: 1, Proto: ipc.ProtoTCP, GuestPort: guestPort, Target: tt.target})
			s := e.newSock()
			got := ""
			for n, heard := range tt.heard {
				if heard != '-' {
					e.g.Learn(&packet.Packet{IPVersion: uint8(heard - '0'), SrcMAC: guestMAC})
				}
				if n == 0 {
					l.arrive(s, tt.peer, remotePort)
				} else {
					e.advance(int64(n) * 13e8)
				}
				e.settle()
				for _, f := range e.take() {
					got += map[bool]string{true: "4", false: "6"}[f.dst.Is4()]
					if f.src.Is4() != f.dst.Is4() || f.src.IsLoopback() {
						t.Errorf("from %v to %v", f.src, f.dst)
					}
				}
			}
			if got != tt.want || e.tr.Len() != 1 {
				t.Errorf("SYNs by %q, want %q; %d flows", got, tt.want, e.tr.Len())
			}
			e.tr.Close()
			e.tr.RemoveListener(1)
			e.empty()
		})
	}
}

// The guest repeats its SYN-ACK until it sees our ACK.
func TestAcceptAckLost(t *testing.T) {
	e := newEnv(t)
	p := accept(e)
	s := p.syn()
	s.Flags, s.Ack = packet.SYN|packet.ACK, p.ack
	p.raw(s)
	p.want("A 1 ack 1")
	if p.s.keepAlive {
		t.Error("a repeated SYN-ACK was taken for a keep-alive")
	}
}

// The host's client may have reset the connection before the guest answers.
func TestAcceptHostGone(t *testing.T) {
	e := newEnv(t)
	p := e.accepted()
	p.want("S 0 mss 1460 ws 7 sack true")
	p.s.fail(syscall.ECONNRESET)
	e.settle()
	p.want("R 1")
	e.tr.RemoveListener(1)
	p.gone()
}

// A listener may be given another target while it listens: what is accepted from then
// on is for that. Listeners are found in whatever order.
func TestRetargetListener(t *testing.T) {
	e := newEnv(t, withFlows(64))
	l, m := e.listen(1, 80), e.listen(2, 81)
	e.tr.RetargetListener(&ipc.Listener{ID: 2, Proto: ipc.ProtoTCP, GuestPort: 90})
	e.tr.RetargetListener(&ipc.Listener{ID: 3, Proto: ipc.ProtoTCP, GuestPort: 99}) // gone since
	l.arrive(e.newSock(), remote4, 1000)
	m.arrive(e.newSock(), remote4, 1001)
	e.settle()
	if e.issOf(80, 1000) == 0 || e.issOf(90, 1001) == 0 || e.tr.Len() != 2 {
		t.Errorf("%d connections, not one to port 80 and one to 90", e.tr.Len())
	}
	for _, id := range []uint32{2, 1, 1} {
		e.tr.RemoveListener(id)
	}
	if l.closes != 1 || m.closes != 1 {
		t.Error("listeners not closed once")
	}
	e.tr.Close()
	e.empty()
}
