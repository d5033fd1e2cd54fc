// SPDX-License-Identifier: Apache-2.0

package ports

import (
	"net"
	"testing"

	"golang.org/x/sys/unix"

	"aldente/broker/inet"
)

// bound opens a TCP listener and a UDP socket on one port.
func bound(t *testing.T, addr string) uint16 {
	t.Helper()
	l, err := net.Listen("tcp", net.JoinHostPort(addr, "0"))
	if err != nil {
		t.Skip(err)
	}
	t.Cleanup(func() { l.Close() })
	u, err := net.ListenPacket("udp", l.Addr().String())
	if err != nil {
		t.Skip(err)
	}
	t.Cleanup(func() { u.Close() })
	return uint16(l.Addr().(*net.TCPAddr).Port)
}

// TestScanner finds what is bound, and only that.
func TestScanner(t *testing.T) {
	s, err := Open()
	if err != nil {
		t.Skip(err)
	}
	defer s.Close()
	for _, addr := range []string{"127.0.0.1", "::1"} {
		port := bound(t, addr)
		c, err := net.Dial("udp", net.JoinHostPort(addr, "9"))
		if err != nil {
			t.Fatal(err)
		}
		connected := c.LocalAddr().(*net.UDPAddr).AddrPort().Port()
		defer c.Close()
		// What holds a port for a guest is no service.
		anchor, err := inet.Anchor("lo", addr == "127.0.0.1", 0)
		if err != nil {
			t.Fatal(err)
		}
		held := inet.LocalPort(anchor)
		defer unix.Close(anchor)
		var tcp, udp Set
		if err := s.Scan(&tcp, &udp); err != nil {
			t.Skip(err)
		}
		if !tcp.Has(port) || !udp.Has(port) {
			t.Errorf("%s: port %d not found: TCP %v, UDP %v", addr, port, tcp.Has(port), udp.Has(port))
		}
		if udp.Has(held) && held != port {
			t.Errorf("%s: port %d found, which is held for a guest", addr, held)
		}
		if tcp.Has(connected) || udp.Has(connected) && connected != port {
			t.Errorf("%s: port %d of a client found", addr, connected)
		}
	}
}

// TestScanGivenUp begins a scan while another one has answers left to read.
func TestScanGivenUp(t *testing.T) {
	s, err := Open()
	if err != nil {
		t.Skip(err)
	}
	defer s.Close()
	port := bound(t, "127.0.0.1")
	for steps := range 4 {
		var unwanted, tcp, udp Set
		s.Begin(&unwanted, &unwanted)
		for range steps {
			if _, err := s.Step(); err != nil {
				t.Skip(err)
			}
		}
		_ = s.diag.List(&questions[0]) // and its answers are left, too
		if err := s.Scan(&tcp, &udp); err != nil || !tcp.Has(port) || !udp.Has(port) {
			t.Errorf("after %d steps: TCP %v, UDP %v, %v", steps, tcp.Has(port), udp.Has(port), err)
		}
	}
}

func TestSet(t *testing.T) {
	var p, q Set
	for _, n := range []uint16{1, 63, 64, 80, 65535} {
		p.Add(n)
	}
	q.Add(2)
	q.Merge(&p)
	q.Clear(80)
	var got []uint16
	for n := range q.All() {
		got = append(got, n)
		if !q.Has(n) {
			t.Errorf("%d is and is not in the set", n)
		}
	}
	if len(got) != 5 || got[0] != 1 || got[1] != 2 || got[4] != 65535 || q.Has(80) || q.Has(0) {
		t.Errorf("%v", got)
	}
}
