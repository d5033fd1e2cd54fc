// SPDX-License-Identifier: Apache-2.0

package test

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"net"
	"syscall"
	"testing"
	"time"

	"aldente/test/netlab"
)

// TestBypassTransfer moves bulk both ways through both bypasses.
func TestBypassTransfer(t *testing.T) {
	size := int64(256 << 20)
	if testing.Short() {
		size = 64 << 20
	}
	lab := netlab.New(t, netlab.Options{})
	g := lab.Guest("-t", "10001", "-T", "10002")
	for _, f := range families {
		for _, down := range []bool{false, true} {
			for _, tt := range []struct {
				name           string
				client, server *netlab.NS
				port           string
			}{{"in", lab.Host, g.NS, "10001"}, {"out", g.NS, lab.Host, "10002"}} {
				t.Run(fmt.Sprintf("%s/%s/down=%v", tt.name, f.name, down), func(t *testing.T) {
					listen := ":" + tt.port
					if tt.name == "out" {
						listen = f.at(f.lo, tt.port)
					}
					if err := netlab.Transfer(tt.client, tt.server, listen, f.at(f.lo, tt.port), size, down, time.Minute); err != nil {
						t.Error(err)
					}
				})
			}
		}
	}
}

// TestBypassEnds has resets, refusals and half-closes travel through the bypass.
func TestBypassEnds(t *testing.T) {
	lab := netlab.New(t, netlab.Options{})
	g := lab.Guest("-t", "10001-10002", "-T", "10003-10004")
	for _, tt := range []struct {
		name           string
		client, server *netlab.NS
		listen, addr   string
		dead           string
	}{
		{"in", lab.Host, g.NS, ":10001", "127.0.0.1:10001", "127.0.0.1:10002"},
		{"out", g.NS, lab.Host, "127.0.0.1:10003", "127.0.0.1:10003", "127.0.0.1:10004"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			ln := tt.server.Listen("tcp", tt.listen)
			accept := func() *net.TCPConn {
				c, err := ln.Accept()
				if err != nil {
					t.Fatal(err)
				}
				_ = c.SetDeadline(time.Now().Add(5 * time.Second))
				return c.(*net.TCPConn)
			}
			dial := func() *net.TCPConn {
				c := tt.client.Dial("tcp", tt.addr).(*net.TCPConn)
				_ = c.SetDeadline(time.Now().Add(5 * time.Second))
				return c
			}
			b := make([]byte, 16)

			c, s := dial(), accept()
			_ = c.CloseWrite()
			if _, err := s.Read(b); err != io.EOF {
				t.Errorf("half-close arrived as %v", err)
			}
			_, _ = s.Write([]byte("late"))
			s.Close()
			if got, err := io.ReadAll(c); string(got) != "late" || err != nil {
				t.Errorf("after the half-close: %q, %v", got, err)
			}
			c.Close()

			c, s = dial(), accept()
			_ = c.SetLinger(0)
			c.Close()
			if _, err := s.Read(b); !errors.Is(err, syscall.ECONNRESET) {
				t.Errorf("the client's reset arrived as %v", err)
			}
			s.Close()

			c, s = dial(), accept()
			_ = s.SetLinger(0)
			s.Close()
			if _, err := c.Read(b); !errors.Is(err, syscall.ECONNRESET) {
				t.Errorf("the server's reset arrived as %v", err)
			}
			c.Close()

			// The connection is made before the far end is: then it is reset.
			if d, err := tt.client.DialError("tcp", tt.dead, 5*time.Second); err == nil {
				_ = d.SetDeadline(time.Now().Add(5 * time.Second))
				if _, err := d.Read(b); !errors.Is(err, syscall.ECONNRESET) {
					t.Errorf("a refused connection: %v", err)
				}
				d.Close()
			} else if !errors.Is(err, syscall.ECONNREFUSED) && !errors.Is(err, syscall.ECONNRESET) {
				t.Errorf("a refused connection: %v", err)
			}
		})
	}
}

// TestBypassDatagrams sends many datagrams of many sizes through the bypass, and
// has as many peers as one would expect of a resolver.
func TestBypassDatagrams(t *testing.T) {
	lab := netlab.New(t, netlab.Options{})
	g := lab.Guest("-u", "10001", "-U", "10002")
	for _, tt := range []struct {
		name           string
		client, server *netlab.NS
		listen, addr   string
	}{
		{"in", lab.Host, g.NS, netlab.Host4 + ":10001", "127.0.0.1:10001"},
		{"in IPv6", lab.Host, g.NS, "[" + netlab.Host6 + "]:10001", "[::1]:10001"},
		{"out", g.NS, lab.Host, "127.0.0.1:10002", "127.0.0.1:10002"},
		{"out IPv6", g.NS, lab.Host, "[::1]:10002", "[::1]:10002"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			go netlab.EchoUDP(tt.server.ListenUDP("udp", tt.listen))
			for range 40 {
				c := tt.client.Dial("udp", tt.addr)
				_ = c.SetDeadline(time.Now().Add(10 * time.Second))
				got := make([]byte, 1<<16)
				for i, size := range []int{1, 0, 100, 1400, 9000, 40_000, 65_507} {
					want := bytes.Repeat([]byte{byte(i)}, size)
					if _, err := c.Write(want); err != nil {
						t.Fatal(err)
					}
					if n, err := c.Read(got); err != nil || !bytes.Equal(got[:n], want) {
						t.Fatalf("%d bytes came back as %d, %v", size, n, err)
					}
				}
				c.Close()
			}
		})
	}
}

// TestSourcePort keeps a peer's UDP port on the other side.
func TestSourcePort(t *testing.T) {
	lab := netlab.New(t, netlab.Options{})
	g := lab.Guest("-u", "10001", "-U", "10002")
	for _, tt := range []struct {
		client, server *netlab.NS
		listen, addr   string
	}{{lab.Host, g.NS, ":10001", "127.0.0.1:10001"}, {g.NS, lab.Host, "127.0.0.1:10002", "127.0.0.1:10002"}} {
		pc := tt.server.ListenUDP("udp", tt.listen)
		c := tt.client.Dial("udp", tt.addr)
		_, _ = c.Write([]byte("?"))
		_ = pc.SetReadDeadline(time.Now().Add(5 * time.Second))
		_, from, err := pc.ReadFromUDPAddrPort(make([]byte, 16))
		if want := c.LocalAddr().(*net.UDPAddr).AddrPort().Port(); err != nil || from.Port() != want {
			t.Errorf("%s: from %v, %v, want port %d", tt.addr, from, err, want)
		}
	}
}
