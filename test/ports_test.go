// SPDX-License-Identifier: Apache-2.0

package test

import (
	"bytes"
	"errors"
	"io"
	"net"
	"net/netip"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"aldente/test/netlab"
)

// dialFrom connects from a port that other connections may have, too. It waits for
// the client's own end of the one before.
func dialFrom(ns *netlab.NS, port int, addr string) (c net.Conn, err error) {
	from := &net.TCPAddr{IP: net.IPv6unspecified, Port: port}
	if netip.MustParseAddrPort(addr).Addr().Is4() {
		from.IP = net.IPv4zero
	}
	d := net.Dialer{Timeout: 10 * time.Second, LocalAddr: from, Control: func(_, _ string, raw syscall.RawConn) error {
		return raw.Control(func(fd uintptr) { _ = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_REUSEADDR, 1) })
	}}
	err = ns.Do(func() (err error) {
		for range 500 {
			if c, err = d.Dial("tcp", addr); !errors.Is(err, syscall.EADDRNOTAVAIL) && !errors.Is(err, syscall.EADDRINUSE) {
				return err
			}
			time.Sleep(10 * time.Millisecond)
		}
		return err
	})
	return c, err
}

// TestOneSourcePort speaks to two forwarded ports, and past the link to two
// addresses, from one port: to the guest both would be the same.
func TestOneSourcePort(t *testing.T) {
	needOurs(t)
	lab := netlab.New(t, netlab.Options{})
	g := lab.Guest("-t", "10001:80,10002:80")
	go netlab.Echo(g.NS.Listen("tcp", ":80"))
	for _, tt := range []struct {
		name string
		from *netlab.NS
		to   []string
	}{
		{"IPv4", lab.Remote, []string{netlab.Host4 + ":10001", netlab.Host4 + ":10002"}},
		{"IPv6", lab.Remote, []string{"[" + netlab.Host6 + "]:10001", "[" + netlab.Host6 + "]:10002"}},
		{"the host's own address", lab.Host, []string{netlab.Host4 + ":10001", netlab.Host4 + ":10002"}},
		{"bypass", lab.Host, []string{"127.0.0.1:10001", "127.0.0.2:10001", "127.0.0.1:10002"}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			var all []net.Conn
			for _, to := range tt.to {
				c, err := dialFrom(tt.from, 45000, to)
				if err != nil {
					t.Fatalf("%s: %v", to, err)
				}
				defer c.Close()
				_ = c.SetDeadline(time.Now().Add(10 * time.Second))
				all = append(all, c)
			}
			for range 3 {
				for i, c := range all {
					want := bytes.Repeat([]byte{byte(i)}, 5000)
					got := make([]byte, len(want))
					if _, err := c.Write(want); err != nil {
						t.Fatal(err)
					}
					if _, err := io.ReadFull(c, got); err != nil || !bytes.Equal(got, want) {
						t.Fatalf("%s: %v", tt.to[i], err)
					}
				}
			}
		})
	}
}

// TestPortInTurn makes connections one after the other from one port, each of which
// the server ends first: the guest's end of the one before is still closing, or in
// TIME-WAIT.
func TestPortInTurn(t *testing.T) {
	lab := netlab.New(t, netlab.Options{})
	g := lab.Guest("-t", "10001:80")
	ln := g.NS.Listen("tcp", ":80")
	answer := bytes.Repeat([]byte("answer"), 1000)
	go func() {
		for {
			c, err := ln.Accept()
			if err != nil {
				return
			}
			_, _ = io.ReadFull(c, make([]byte, 1))
			_, _ = c.Write(answer)
			c.Close()
		}
	}()
	for _, tt := range []struct {
		from *netlab.NS
		to   string
	}{
		{lab.Remote, netlab.Host4 + ":10001"},
		{lab.Remote, "[" + netlab.Host6 + "]:10001"},
		{lab.Host, netlab.Host4 + ":10001"},
		{lab.Host, "127.0.0.1:10001"},
	} {
		for n := range 40 {
			c, err := dialFrom(tt.from, 45001, tt.to)
			if err != nil {
				t.Fatalf("%s, connection %d: %v", tt.to, n, err)
			}
			_ = c.SetDeadline(time.Now().Add(10 * time.Second))
			_, err = c.Write([]byte("?"))
			got, rerr := io.ReadAll(c)
			c.Close()
			if err := errors.Join(err, rerr); err != nil || !bytes.Equal(got, answer) {
				t.Fatalf("%s, connection %d: %d bytes, %v", tt.to, n, len(got), err)
			}
		}
	}
}
