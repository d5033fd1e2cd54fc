// SPDX-License-Identifier: Apache-2.0

package sockets

import (
	"net"
	"net/netip"
	"sync"
	"testing"

	"golang.org/x/sys/unix"

	"aldente/broker/egress"
	"aldente/ipc"
)

// homeNamespace is our own, in place of a guest's: with a socket at hand or not.
type homeNamespace struct {
	spare bool
	late  chan func() // answers that wait to be given

	mu    sync.Mutex
	asked []ipc.AgentOpen
}

func (h *homeNamespace) make(o ipc.AgentOpen) int {
	domain, typ := unix.AF_INET6, unix.SOCK_STREAM
	if o.Flags&ipc.AgentOpenIPv4 != 0 {
		domain = unix.AF_INET
	}
	if o.Proto == ipc.ProtoUDP {
		typ = unix.SOCK_DGRAM
	}
	fd, err := unix.Socket(domain, typ|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		return -1
	}
	return fd
}

func (h *homeNamespace) Take(proto uint8, v4 bool) int {
	if !h.spare {
		return -1
	}
	o := ipc.AgentOpen{Proto: proto}
	if v4 {
		o.Flags = ipc.AgentOpenIPv4
	}
	return h.make(o)
}

func (h *homeNamespace) Open(o ipc.AgentOpen, done func(fd int, err error)) {
	h.mu.Lock()
	h.asked = append(h.asked, o)
	h.mu.Unlock()
	if h.late != nil {
		h.late <- func() { done(h.make(o), nil) }
		return
	}
	go done(h.make(o), nil)
}

// servers listens by both protocols on an address of ours.
func servers(t *testing.T, addr string) uint16 {
	t.Helper()
	l, err := net.Listen("tcp", net.JoinHostPort(addr, "0"))
	if err != nil {
		t.Skip(err)
	}
	t.Cleanup(func() { l.Close() })
	p, err := net.ListenPacket("udp", l.Addr().String())
	if err != nil {
		t.Skip(err)
	}
	t.Cleanup(func() { p.Close() })
	return l.Addr().(*net.TCPAddr).AddrPort().Port()
}

func as16(s string) [16]byte { return netip.MustParseAddr(s).As16() }

// TestBypass asks for far ends, rightly and not.
func TestBypass(t *testing.T) {
	port := servers(t, "127.0.0.1")
	const (
		inbound = 1 + iota
		inboundUDP
		plain
		outbound
		outboundUDP
		outboundTarget
	)
	for _, tt := range []struct {
		name   string
		o      ipc.Open
		loToLo bool
		rules  []egress.Rule
		errno  unix.Errno // zero: connected
	}{
		// Packets would leave by the namespace's default route, and nobody answer.
		{"address that the namespace lacks", ipc.Open{Listener: inbound, Src: as16("192.0.2.5"), Dst: as16("127.0.0.1")}, false, nil, unix.EADDRNOTAVAIL},
		{"the same, UDP", ipc.Open{Proto: ipc.ProtoUDP, Listener: inboundUDP, Src: as16("192.0.2.5"), Dst: as16("127.0.0.1")}, false, nil, unix.EADDRNOTAVAIL},
		{"no listener", ipc.Open{Listener: 99, Src: as16("192.0.2.5"), Dst: as16("127.0.0.1")}, false, nil, unix.EINVAL},
		{"listener without bypass", ipc.Open{Listener: plain, Src: as16("192.0.2.5"), Dst: as16("127.0.0.1")}, false, nil, unix.EINVAL},
		{"listener of another protocol", ipc.Open{Listener: inboundUDP, Src: as16("192.0.2.5"), Dst: as16("127.0.0.1")}, false, nil, unix.EINVAL},
		{"remote peer", ipc.Open{Listener: inbound, Src: as16("192.0.2.5"), Dst: as16("192.0.2.9")}, false, nil, unix.EINVAL},
		{"two families", ipc.Open{Listener: inbound, Src: as16("2001:db8::5"), Dst: as16("127.0.0.1")}, false, nil, unix.EINVAL},
		{"loopback not asked for", ipc.Open{Listener: inbound, Src: as16("127.0.0.1"), Dst: as16("127.0.0.1")}, false, nil, unix.EACCES},
		{"loopback asked for", ipc.Open{Listener: inbound, Src: as16("127.0.0.1"), Dst: as16("127.0.0.1")}, true, nil, 0},
		{"no address", ipc.Open{Listener: inbound, Src: as16("0.0.0.0"), Dst: as16("127.0.0.1")}, true, nil, unix.EACCES},
		{"multicast", ipc.Open{Listener: inbound, Src: as16("224.0.0.1"), Dst: as16("127.0.0.1")}, true, nil, unix.EACCES},
		{"UDP", ipc.Open{Proto: ipc.ProtoUDP, Listener: inboundUDP, Src: as16("127.0.0.1"), Dst: as16("127.0.0.1")}, true, nil, 0},
		{"the namespace is not judged", ipc.Open{Listener: inbound, Src: as16("127.0.0.1"), Dst: as16("127.0.0.1")}, true, []egress.Rule{{Dest: "any"}}, 0},

		{"to the host", ipc.Open{Listener: outbound, Src: as16("127.0.0.1"), Dst: as16("127.0.0.1")}, false, nil, 0},
		{"to the host, UDP", ipc.Open{Proto: ipc.ProtoUDP, Listener: outboundUDP, Src: as16("127.0.0.1"), Dst: as16("127.0.0.1")}, false, nil, 0},
		{"to the host, denied", ipc.Open{Listener: outbound, Src: as16("127.0.0.1"), Dst: as16("127.0.0.1")}, false, []egress.Rule{{Dest: "host"}}, unix.EACCES},
		{"to the host, allowed", ipc.Open{Listener: outbound, Src: as16("127.0.0.1"), Dst: as16("127.0.0.1")}, false,
			[]egress.Rule{{Allow: true, Dest: "tcp:127.0.0.0/8"}, {Dest: "host"}}, 0},
		{"to another address of the host", ipc.Open{Listener: outbound, Src: as16("192.0.2.2"), Dst: as16("127.0.0.1")}, false, nil, unix.EACCES},
		{"from no loopback", ipc.Open{Listener: outbound, Src: as16("127.0.0.1"), Dst: as16("192.0.2.5")}, false, nil, unix.EINVAL},
		{"to the rule's target", ipc.Open{Listener: outboundTarget, Src: as16("127.0.0.9"), Dst: as16("127.0.0.1")}, false, nil, 0},
	} {
		for _, spare := range []bool{true, false} {
			t.Run(tt.name, func(t *testing.T) {
				w := work(t, tt.rules...)
				w.cfg().LoToLo = tt.loToLo
				w.SetNamespace(&homeNamespace{spare: spare}, 0)
				for _, l := range []Listener{
					inbound - 1:        {Proto: ipc.ProtoTCP, Splice: true},
					inboundUDP - 1:     {Proto: ipc.ProtoUDP, Splice: true},
					plain - 1:          {Proto: ipc.ProtoTCP},
					outbound - 1:       {Proto: ipc.ProtoTCP, Namespace: true},
					outboundUDP - 1:    {Proto: ipc.ProtoUDP, Namespace: true},
					outboundTarget - 1: {Proto: ipc.ProtoTCP, Namespace: true, Target: netip.MustParseAddr("127.0.0.1")},
				} {
					l.FD, l.GuestPort = -1, port
					w.Adopt(l)
				}
				tt.o.Flags |= ipc.OpenBypass
				if tt.o.Proto == 0 {
					tt.o.Proto = ipc.ProtoTCP
				}
				a, fd := w.ask(t, tt.o)
				if fd >= 0 {
					defer unix.Close(fd)
				}
				if unix.Errno(a.Errno) == unix.ENETUNREACH && tt.errno == unix.EADDRNOTAVAIL {
					return // without a route it fails by itself
				}
				if unix.Errno(a.Errno) != tt.errno || (fd >= 0) != (tt.errno == 0) {
					t.Fatalf("errno %v, descriptor %d, want %v", unix.Errno(a.Errno), fd, tt.errno)
				}
				if tt.errno == unix.EACCES && len(tt.rules) > 0 && a.Flags&ipc.OpenedProhibited == 0 {
					t.Error("a refusal by the egress rules is not told as such")
				}
				if fd >= 0 && tt.o.Src == as16("127.0.0.1") {
					if sa, err := unix.Getpeername(fd); err != nil || sa.(*unix.SockaddrInet4).Port != int(port) {
						t.Errorf("connected to %v, %v, want port %d", sa, err, port)
					}
				}
			})
		}
	}
}

// ask sends one request and waits for its answer.
func (w *atWork) ask(t *testing.T, o ipc.Open) (ipc.Opened, int) {
	t.Helper()
	o.Token = 42
	if err := ipc.Send(w.worker, encode(o), -1); err != nil {
		t.Fatal(err)
	}
	b := make([]byte, ipc.MaxRecord)
	n, fd, err := ipc.Receive(w.worker, b, 0)
	if err != nil {
		t.Fatal(err)
	}
	var a ipc.Opened
	if err := a.Decode(b[:n]); err != nil || a.Token != 42 {
		t.Fatalf("answer %+v, %v", a, err)
	}
	return a, fd
}

// TestBypassDoesNotBlock serves other requests while one waits for the namespace,
// and survives a worker that is gone by then.
func TestBypassDoesNotBlock(t *testing.T) {
	port := servers(t, "127.0.0.1")
	w := work(t)
	w.cfg().LoToLo = true
	ns := &homeNamespace{late: make(chan func(), 10)}
	w.SetNamespace(ns, 0)
	in := w.Adopt(Listener{Proto: ipc.ProtoTCP, Splice: true, GuestPort: port, FD: -1})
	out := w.Adopt(Listener{Proto: ipc.ProtoTCP, Namespace: true, GuestPort: port, FD: -1})
	wait := ipc.Open{Token: 1, Proto: ipc.ProtoTCP, Flags: ipc.OpenBypass, Listener: in.ID, Src: as16("127.0.0.1"), Dst: as16("127.0.0.1")}
	if err := ipc.Send(w.worker, encode(wait), -1); err != nil {
		t.Fatal(err)
	}
	first := <-ns.late
	direct := wait
	direct.Listener = out.ID
	if a, fd := w.ask(t, direct); a.Errno != 0 {
		t.Errorf("%+v", a)
	} else {
		unix.Close(fd)
	}
	if err := ipc.Send(w.worker, encode(wait), -1); err != nil {
		t.Fatal(err)
	}
	second := <-ns.late
	first()
	b := make([]byte, ipc.MaxRecord)
	if _, fd, err := ipc.Receive(w.worker, b, 0); err != nil || fd < 0 {
		t.Errorf("late answer: %v", err)
	} else {
		unix.Close(fd)
	}
	_ = unix.Shutdown(w.worker, unix.SHUT_RDWR)
	if err := w.end(t); err == nil {
		t.Error("serving ended without an error")
	}
	second() // goes nowhere
}
