// SPDX-License-Identifier: Apache-2.0

package test

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"aldente/test/netlab"
)

// boundUDP opens a datagram socket with options set before it is bound, as the
// user given: zero is the tests' own.
func boundUDP(n *netlab.NS, network, addr string, uid int, options ...int) (c *net.UDPConn, err error) {
	lc := net.ListenConfig{Control: func(_, _ string, rc syscall.RawConn) (err error) {
		e := rc.Control(func(fd uintptr) {
			for _, o := range options {
				err = errors.Join(err, unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, o, 1))
			}
			if uid != 0 {
				err = errors.Join(err, unix.Fchown(int(fd), uid, uid))
			}
		})
		return errors.Join(e, err)
	}}
	err = n.Do(func() error {
		p, err := lc.ListenPacket(context.Background(), network, addr)
		if err == nil {
			c = p.(*net.UDPConn)
		}
		return err
	})
	return c, err
}

// udp is the network of the family's datagram sockets.
func (f family) udp() string {
	if f.name == "IPv6" {
		return "udp6"
	}
	return "udp4"
}

// tellSource serves datagrams by answering with the address and port that they
// came from.
func tellSource(n *netlab.NS, addr string) {
	c := n.ListenUDP("udp", addr)
	go func() {
		b := make([]byte, 2048)
		for {
			k, from, err := c.ReadFromUDPAddrPort(b)
			if err != nil {
				return
			}
			_, _ = c.WriteToUDPAddrPort(fmt.Appendf(nil, "%s %d", b[:k], from.Port()), from)
		}
	}()
}

// exchange sends from a socket to an address and returns the next answer.
func exchange(c *net.UDPConn, to, text string) string {
	a := net.UDPAddrFromAddrPort(netip.MustParseAddrPort(to))
	b := make([]byte, 2048)
	for range 3 {
		if _, err := c.WriteToUDP([]byte(text), a); err != nil {
			return err.Error()
		}
		_ = c.SetReadDeadline(time.Now().Add(5 * time.Second))
		if n, _, err := c.ReadFromUDPAddrPort(b); err == nil {
			return string(b[:n])
		}
	}
	return "nothing"
}

func reads(c *net.UDPConn) string {
	b := make([]byte, 2048)
	_ = c.SetReadDeadline(time.Now().Add(5 * time.Second))
	n, _, err := c.ReadFromUDPAddrPort(b)
	if err != nil {
		return err.Error()
	}
	return string(b[:n])
}

// TestHostsPortsStay: what a program of the host has bound, with whatever options,
// by whichever user, no flow of a guest's comes from, and nothing for it is lost.
func TestHostsPortsStay(t *testing.T) {
	needOurs(t)
	lab := netlab.New(t, netlab.Options{})
	for _, f := range families {
		tellSource(lab.Remote, f.at(f.remote, "7"))
	}
	g := lab.Guest()
	port := 20100 // none that the kernel gives away: the guest's flows take such ones instead
	for _, f := range families {
		for _, o := range [][]int{nil, {unix.SO_REUSEADDR}, {unix.SO_REUSEPORT}, {unix.SO_REUSEADDR, unix.SO_REUSEPORT}} {
			for _, uid := range []int{0, int(netlab.Nobody.UID)} {
				for _, local := range []string{f.any, f.host} {
					if uid != 0 && netlab.Nested() {
						continue // there are no others
					}
					port++
					name := fmt.Sprintf("%s, options %v, user %d", f.at(local, fmt.Sprint(port)), o, uid)
					daemon, err := boundUDP(lab.Host, f.udp(), f.at(strings.Trim(local, "[]"), fmt.Sprint(port)), uid, o...)
					if err != nil {
						t.Fatalf("%s: %v", name, err)
					}
					defer daemon.Close()
					c := g.ListenUDP("udp", fmt.Sprintf(":%d", port))
					for range 2 { // a second flow from there is no reason to share
						got := exchange(c, f.at(f.remote, "7"), "q")
						if !strings.HasPrefix(got, "q ") || got == fmt.Sprint("q ", port) {
							t.Errorf("%s: %q", name, got)
						}
					}
					r := lab.Remote.Dial("udp", f.at(f.host, fmt.Sprint(port)))
					fmt.Fprint(r, "for the daemon")
					if got := reads(daemon); got != "for the daemon" {
						t.Errorf("%s: %q", name, got)
					}
				}
			}
		}
	}
}

// TestGuestsPortsStay: nobody else gets a port that a flow of a guest's is on, nor
// one that it shares among several, nor that of a listener.
func TestGuestsPortsStay(t *testing.T) {
	needOurs(t)
	lab := netlab.New(t, netlab.Options{})
	for _, f := range families {
		tellSource(lab.Remote, f.at(f.remote, "7"))
		tellSource(lab.Remote, f.at(f.remote, "8"))
	}
	g := lab.Guest("-u", "46203")
	for _, f := range families {
		once, twice := g.ListenUDP(f.udp(), ":46201"), g.ListenUDP(f.udp(), ":46202")
		if got := exchange(once, f.at(f.remote, "7"), "q"); got != "q 46201" {
			t.Errorf("%s: %q", f.name, got)
		}
		for _, to := range []string{"7", "8"} {
			if got := exchange(twice, f.at(f.remote, to), "q"); got != "q 46202" {
				t.Errorf("%s: %q", f.name, got)
			}
		}
		for _, port := range []string{"46201", "46202", "46203"} {
			for _, local := range []string{f.any, f.host} {
				for _, o := range [][]int{nil, {unix.SO_REUSEADDR}, {unix.SO_REUSEPORT}, {unix.SO_REUSEADDR, unix.SO_REUSEPORT}} {
					if netlab.Nested() && len(o) > 0 && o[len(o)-1] == unix.SO_REUSEPORT {
						continue // it would be the same user's
					}
					c, err := boundUDP(lab.Host, f.udp(), f.at(strings.Trim(local, "[]"), port), 0, o...)
					if err == nil {
						c.Close()
						t.Errorf("%s port %s, options %v: another user has it too", local, port, o)
					}
				}
			}
		}
	}
}

// TestTwoGuestsOnePort has two guests of one user speak from the same port to the
// same peer, in turns: each gets its own answers.
func TestTwoGuestsOnePort(t *testing.T) {
	needOurs(t)
	lab := netlab.New(t, netlab.Options{})
	for _, f := range families {
		for _, p := range []string{"7", "8", "9"} {
			tellSource(lab.Remote, f.at(f.remote, p))
		}
	}
	guests := []*netlab.Guest{lab.Guest(), lab.Guest()}
	for _, f := range families {
		var ports [2]map[string]bool
		var socks [2]*net.UDPConn
		for k, g := range guests {
			ports[k] = map[string]bool{}
			socks[k] = g.ListenUDP(f.udp(), ":46301")
		}
		for round := range 3 {
			for _, p := range []string{"7", "8", "9"} {
				for k := range guests {
					q := fmt.Sprintf("%d-%d-%s", k, round, p)
					got := exchange(socks[k], f.at(f.remote, p), q)
					mine, port, _ := strings.Cut(got, " ")
					if mine != q {
						t.Errorf("%s, guest %d: %q to %q", f.name, k, got, q)
					}
					ports[k][port] = true
				}
			}
		}
		for p := range ports[0] {
			if ports[1][p] {
				t.Errorf("%s: both guests spoke from port %s", f.name, p)
			}
		}
		if !ports[0]["46301"] || len(ports[0]) != 1 {
			t.Errorf("%s: the first spoke from %v", f.name, ports[0])
		}
	}
}

// TestOnePortManyPeers: protocols that cross NATs need one port to have one name,
// whoever is spoken to.
func TestOnePortManyPeers(t *testing.T) {
	needOurs(t)
	lab := netlab.New(t, netlab.Options{})
	const peers = 300
	g := lab.Guest("-u", "46402")
	for _, f := range families {
		for p := range peers {
			tellSource(lab.Remote, f.at(f.remote, fmt.Sprint(20000+p)))
		}
		for _, port := range []string{"46401", "46402"} { // one that nobody listens on, and one of a listener's
			c := g.ListenUDP(f.udp(), ":"+port)
			for p := range peers {
				q := fmt.Sprint("q", p)
				if got := exchange(c, f.at(f.remote, fmt.Sprint(20000+p)), q); got != q+" "+port {
					t.Fatalf("%s, peer %d: %q", f.name, p, got)
				}
			}
		}
	}
}

// TestAutoLeavesServices: a port of the guest's that a service of the host has, too,
// is not forwarded; one on which the guest has called somebody before is.
func TestAutoLeavesServices(t *testing.T) {
	needOurs(t)
	lab := netlab.New(t, netlab.Options{})
	tellSource(lab.Remote, "192.0.2.9:7")
	service, err := boundUDP(lab.Host, "udp", ":10501", 0, unix.SO_REUSEADDR)
	if err != nil {
		t.Fatal(err)
	}
	defer service.Close()
	g := lab.Guest("-u", "auto")
	tellSource(g.NS, ":10501")
	caller := g.ListenUDP("udp4", ":10502")
	if got := exchange(caller, "192.0.2.9:7", "q"); got != "q 10502" {
		t.Errorf("%q", got)
	}
	go netlab.EchoUDP(caller)
	deadline := time.Now().Add(20 * time.Second)
	for got := ""; got != "hello"; got = askSoonFull2(lab.Remote, "192.0.2.2:10502", "hello") {
		if time.Now().After(deadline) {
			t.Fatal("the port that the guest has called from is not forwarded")
		}
	}
	time.Sleep(1500 * time.Millisecond) // another scan
	r := lab.Remote.Dial("udp", "192.0.2.2:10501")
	fmt.Fprint(r, "for the service")
	if got := reads(service); got != "for the service" {
		t.Errorf("the service got %q", got)
	}
}

// askSoonFull2 sends a text and returns what comes back within half a second.
func askSoonFull2(ns *netlab.NS, addr, text string) string {
	c, err := ns.DialError("udp", addr, time.Second)
	if err != nil {
		return ""
	}
	defer c.Close()
	_ = c.SetDeadline(time.Now().Add(500 * time.Millisecond))
	_, _ = c.Write([]byte(text))
	b := make([]byte, 2048)
	n, _ := c.Read(b)
	return string(b[:n])
}

// TestListenerTaken: the second who wants a port is told who has it.
func TestListenerTaken(t *testing.T) {
	needOurs(t)
	lab := netlab.New(t, netlab.Options{})
	lab.Guest("-u", "46601", "-t", "46601")
	daemon, err := boundUDP(lab.Host, "udp", ":46602", 0, unix.SO_REUSEADDR, unix.SO_REUSEPORT)
	if err != nil {
		t.Fatal(err)
	}
	defer daemon.Close()
	user := &netlab.User{UID: 61235, GID: 61235}
	if netlab.Nested() {
		user = netlab.Nobody
	}
	for _, tt := range []struct {
		name, option, port string
		user               *netlab.User
		want               string
	}{
		{"another user's", "-u", "46601", user, fmt.Sprintf("in use by a process of user %d", netlab.Nobody.UID)},
		{"its own", "-u", "46601", netlab.Nobody, fmt.Sprintf("user %d", netlab.Nobody.UID)},
		{"by TCP", "-t", "46601", netlab.Nobody, fmt.Sprintf("user %d", netlab.Nobody.UID)},
		{"a daemon's, asked by root", "-u", "46602", netlab.Root, fmt.Sprintf("(pid %d, user root)", os.Getpid())},
		{"one that only root may look at", "-u", "46602", user, "in use by a process of user root"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			args := append(netlab.NoForward(tt.option), "--config-net", tt.option, tt.port, "--", "true")
			p := lab.For(t).StartPasta(netlab.GuestSpec{User: tt.user, Timeout: time.Minute}, args...)
			if st := p.Wait(); st != 1 || !strings.Contains(p.Output(), "cannot listen on") || !strings.Contains(p.Output(), tt.want) && !netlab.Nested() {
				t.Errorf("status %d, want %q\n%s", st, tt.want, p.Output())
			}
		})
	}
}

// TestPortsAsRoot: started by root, ports of listeners are bound by another user than
// the answers'. A guest's own flows get no port that takes privileges.
func TestPortsAsRoot(t *testing.T) {
	needOurs(t)
	needRoot(t)
	lab := netlab.New(t, netlab.Options{})
	for _, f := range families {
		tellSource(lab.Remote, f.at(f.remote, "7"))
	}
	g := lab.GuestWith(netlab.GuestSpec{User: netlab.Root, Args: []string{"--config-net", "-u", "53,46701"}})
	tellSource(g.NS, ":53")
	tellSource(g.NS, ":46701")
	for _, f := range families {
		for _, port := range []string{"53", "46701"} {
			for from, addr := range map[*netlab.NS]string{lab.Remote: f.host, lab.Host: f.lo} {
				got, err := netlab.Ask(from, "udp", f.at(addr, port), "?")
				if err != nil || !strings.HasPrefix(got, "? ") {
					t.Errorf("%s, from %s: %q, %v", f.at(addr, port), from.Name, got, err)
				}
			}
		}
		c := g.ListenUDP(f.udp(), ":123")
		if got := exchange(c, f.at(f.remote, "7"), "q"); !strings.HasPrefix(got, "q ") || got == "q 123" {
			t.Errorf("%s, from a low port: %q", f.name, got)
		}
	}
}
