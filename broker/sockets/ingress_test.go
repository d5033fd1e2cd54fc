// SPDX-License-Identifier: Apache-2.0

package sockets

import (
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"aldente/broker/egress"
	"aldente/broker/hostnet"
	"aldente/broker/hostnet/nettest"
	"aldente/broker/inet"
	"aldente/broker/ingress"
	"aldente/ipc"
)

func inbound(t *testing.T, rules ...ingress.Rule) *ingress.RuleSet {
	t.Helper()
	s, err := ingress.New(rules)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// TestReplyIngress: a worker gets no socket that answers who may not connect, though
// the egress rules would let the guest speak to him.
func TestReplyIngress(t *testing.T) {
	c := hosts[0].config()
	c.Egress = nil
	c.Ingress = inbound(t, ingress.Rule{Allow: true, Source: "host"}, ingress.Rule{Allow: true, Source: "192.0.2.7:5300"}, ingress.Rule{Source: "192.0.2.0/24"}, ingress.Rule{Source: "::/0"})
	c.Local = func(f egress.Flow) bool { return f.To.Addr() == netip.MustParseAddr("192.0.2.3") }
	for _, tt := range []struct {
		peer, local string
		guestPort   uint16
		want        unix.Errno
	}{
		{"192.0.2.7:999", "192.0.2.1", 5300, 0},
		{"192.0.2.7:999", "192.0.2.1", 5301, unix.EACCES},
		{"192.0.2.8:999", "192.0.2.1", 5300, unix.EACCES},
		{"198.51.100.8:999", "192.0.2.1", 5300, 0},
		{"192.0.2.3:40000", "192.0.2.1", 5300, 0}, // on the host
		{"127.0.0.1:40000", "127.0.0.1", 5300, 0},
		{"[2001:db8::1]:999", "2001:db8::3", 5300, unix.EACCES},
	} {
		l := Listener{ID: 1, Proto: ipc.ProtoUDP, Port: heardPort, GuestPort: tt.guestPort}
		r := request{proto: ipc.ProtoUDP, listener: l, src: ap(tt.local, heardPort), dst: netip.MustParseAddrPort(tt.peer)}
		if d := c.decide(&r); d.refused != tt.want {
			t.Errorf("to %s for port %d: %v, want %v", tt.peer, tt.guestPort, d.refused, tt.want)
		}
	}
	// A client of the host's own is answered whatever the egress rules say, but not
	// whatever these do.
	c.Ingress = inbound(t, ingress.Rule{Source: "host"})
	r := request{proto: ipc.ProtoUDP, listener: Listener{ID: 1, Proto: ipc.ProtoUDP, Port: heardPort}, src: ap("192.0.2.3", heardPort), dst: ap("192.0.2.3", connectedPort)}
	if d := c.decide(&r); d.refused != unix.EACCES || d.client {
		t.Errorf("%+v", d)
	}
}

// isHeard tells whether a UDP socket hears who speaks to it within so many milliseconds.
func isHeard(t *testing.T, fd, within int) bool {
	t.Helper()
	c, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(c)
	to := &unix.SockaddrInet4{Port: int(inet.LocalPort(fd)), Addr: [4]byte{127, 0, 0, 1}}
	if err := unix.Sendto(c, []byte("?"), 0, to); err != nil {
		t.Fatal(err)
	}
	p := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}
	if n, err := unix.Poll(p, within); n != 1 || err != nil {
		return false
	}
	_, _, err = unix.Recvfrom(fd, make([]byte, 10), 0)
	return err == nil
}

// TestRefilter: the program of a UDP listener is that of the port which it leads to,
// from its beginning on, when it leads to another, and when the rules change.
func TestRefilter(t *testing.T) {
	f := New(Config{V4: Family{Enabled: true}, Logger: slog.New(slog.DiscardHandler), Ingress: inbound(t, ingress.Rule{Source: "any:81"})})
	t.Cleanup(f.Close)
	l, err := f.Listen(Listener{Proto: ipc.ProtoUDP, Addr: netip.MustParseAddr("127.0.0.1"), GuestPort: 80})
	if err != nil {
		t.Fatal(err)
	}
	defer f.Unlisten(l.ID)
	hears := func(want bool, when string) {
		t.Helper()
		if got := isHeard(t, l.FD, map[bool]int{true: 10_000, false: 200}[want]); got != want {
			t.Errorf("%s: heard %v, want %v", when, got, want)
		}
	}
	hears(true, "for a port without rules")
	f.Retarget(l.ID, Listener{GuestPort: 81})
	hears(false, "for another")
	f.Retarget(l.ID, Listener{GuestPort: 80})
	hears(true, "for the first again")
	if err := f.ReplaceIngress([]ingress.Rule{{Source: "tcp:host"}, {Source: "udp:any:80"}}); err != nil {
		t.Fatal(err)
	}
	hears(false, "by other rules")
	if err := f.ReplaceIngress([]ingress.Rule{{Source: "x"}}); err == nil {
		t.Error("rules that cannot be")
	}
	hears(false, "where others cannot be")
	if f.Dropped(l.ID) == 0 || f.Dropped(l.ID+1) != 0 {
		t.Errorf("%d and %d dropped", f.Dropped(l.ID), f.Dropped(l.ID+1))
	}
	if err := f.ReplaceIngress(nil); err != nil {
		t.Fatal(err)
	}
	hears(true, "without rules")
}

// TestGate: where rules say who may connect, the broker accepts, passes on what they
// let in, with all that the worker has to know, and resets the rest; a worker that is
// not there yet is waited for.
func TestGate(t *testing.T) {
	set := inbound(t, ingress.Rule{Source: "any:81"})
	f := New(Config{V4: Family{Enabled: true}, Logger: slog.New(slog.DiscardHandler), Ingress: set})
	t.Cleanup(f.Close)
	want := Listener{Proto: ipc.ProtoTCP, Addr: netip.MustParseAddr("127.0.0.1"), GuestPort: 80, Splice: true}
	l, err := f.Listen(want)
	if err != nil || !l.Guarded {
		t.Fatalf("%+v, %v", l, err)
	}
	type passed struct {
		in ipc.Incoming
		fd int
	}
	came := make(chan passed, 10)
	tries := 0
	f.PassOn(func(rec []byte, fd int) error {
		if tries++; tries < 3 {
			return unix.EPIPE
		}
		var p passed
		if err := p.in.Decode(rec); err != nil {
			t.Error(err)
		}
		p.fd, _ = unix.Dup(fd)
		came <- p
		return nil
	})
	dial := func() net.Conn {
		c, err := net.Dial("tcp", fmt.Sprintf("127.0.0.1:%d", inet.LocalPort(l.FD)))
		if err != nil {
			t.Fatal(err)
		}
		_ = c.SetDeadline(time.Now().Add(5 * time.Second))
		return c
	}
	c := dial()
	defer c.Close()
	p := <-came
	r := l.Record()
	if p.in.Listener != r || p.in.Port != uint16(c.LocalAddr().(*net.TCPAddr).Port) || netip.AddrFrom16(p.in.Peer).Unmap() != want.Addr {
		t.Errorf("%+v", p.in)
	}
	if v, err := unix.GetsockoptInt(p.fd, unix.IPPROTO_TCP, unix.TCP_NODELAY); v != 1 || err != nil {
		t.Errorf("waits for acknowledgments: %d, %v", v, err)
	}
	_, _ = unix.Write(p.fd, []byte("!"))
	unix.Close(p.fd)
	if n, err := c.Read(make([]byte, 1)); n != 1 {
		t.Errorf("%d, %v", n, err)
	}
	f.Retarget(l.ID, Listener{GuestPort: 81})
	refused, err := net.Dial("tcp", fmt.Sprintf("127.0.0.1:%d", inet.LocalPort(l.FD)))
	if err == nil { // the reset may be as fast as the connect
		_ = refused.SetDeadline(time.Now().Add(5 * time.Second))
		_, err = refused.Read(make([]byte, 1))
		refused.Close()
	}
	if !errors.Is(err, unix.ECONNRESET) {
		t.Errorf("refused: %v", err)
	}
	for end := time.Now().Add(5 * time.Second); f.Dropped(l.ID) == 0 && time.Now().Before(end); {
		time.Sleep(time.Millisecond) // the reset goes before the count
	}
	if n := f.Dropped(l.ID); n != 1 || len(came) != 0 || f.IngressRules()[0].Hits != 1 {
		t.Errorf("%d refused, %d passed on, %+v", n, len(came), f.IngressRules())
	}
	f.Shut() // which must not have it try for ever
	if got, ok := f.Unlisten(l.ID); !ok || got.ID != l.ID {
		t.Errorf("%+v", got)
	}
	again := inet.Listener{At: netip.AddrPortFrom(want.Addr, uint16(c.RemoteAddr().(*net.TCPAddr).Port))}
	fd, err := again.ListenTCP()
	if err != nil {
		t.Errorf("its port: %v", err)
	}
	unix.Close(fd)
}

// TestAcceptScope: whether a link-local client is on the host is asked for the interface
// that it came by, which need not be the template.
func TestAcceptScope(t *testing.T) {
	nettest.Host(t)
	nettest.Veth(t, "d0")
	nettest.IP(t, "addr add fe80::7/64 dev d0 nodad")
	index, err := hostnet.LinkIndex("d0")
	if err != nil {
		t.Fatal(err)
	}
	var asked egress.Flow
	f := New(Config{
		Logger: slog.New(slog.DiscardHandler), V6: Family{Enabled: true, Scope: 77},
		Ingress: inbound(t, ingress.Rule{Allow: true, Source: "host"}, ingress.Rule{Source: "::/0"}),
		Local:   func(f egress.Flow) bool { asked = f; return true },
	})
	t.Cleanup(f.Close)
	l, err := f.Listen(Listener{Proto: ipc.ProtoTCP})
	if err != nil {
		t.Fatal(err)
	}
	defer f.Unlisten(l.ID)
	c, err := unix.Socket(unix.AF_INET6, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(c)
	at := netip.MustParseAddr("fe80::7")
	if err := unix.Connect(c, &unix.SockaddrInet6{Addr: at.As16(), Port: int(inet.LocalPort(l.FD)), ZoneId: uint32(index)}); err != nil {
		t.Fatal(err)
	}
	passed := 0
	f.acceptSome(l.ID, func([]byte, int) error { passed++; return nil })
	if asked.Scope != uint32(index) || asked.To.Addr() != at || passed != 1 {
		t.Errorf("asked about %+v, want interface %d; %d passed on", asked, index, passed)
	}
}
