// SPDX-License-Identifier: Apache-2.0

package podman

import (
	"fmt"
	"io"
	"net"
	"strings"
	"testing"
	"time"

	"golang.org/x/net/dns/dnsmessage"

	"aldente/test/netlab"
)

// answered is the address of every name.
const answered = "198.51.100.7"

// resolve answers DNS queries: every name has one IPv4 address.
func resolve(c *net.UDPConn) {
	buf := make([]byte, 1500)
	for {
		n, from, err := c.ReadFromUDPAddrPort(buf)
		if err != nil {
			return
		}
		var m dnsmessage.Message
		if m.Unpack(buf[:n]) != nil || len(m.Questions) != 1 {
			continue
		}
		m.Response, m.RecursionAvailable, m.Additionals = true, true, nil
		if q := m.Questions[0]; q.Type == dnsmessage.TypeA {
			a := dnsmessage.AResource{A: [4]byte(net.ParseIP(answered).To4())}
			m.Answers = []dnsmessage.Resource{{Header: dnsmessage.ResourceHeader{Name: q.Name, Class: q.Class, TTL: 60}, Body: &a}}
		}
		if b, err := m.Pack(); err == nil {
			_, _ = c.WriteToUDPAddrPort(b, from)
		}
	}
}

// serve answers at a port of the namespace, on all its addresses, by the
// client's address, a blank and what the client sent.
func serve(n *netlab.NS, network string, port int) {
	if network == "udp" {
		c := n.ListenUDP("udp", fmt.Sprintf(":%d", port))
		go func() {
			buf := make([]byte, 1<<16)
			for {
				k, from, err := c.ReadFromUDPAddrPort(buf)
				if err != nil {
					return
				}
				reply := fmt.Sprintf("%s %s", from.Addr().Unmap(), buf[:k])
				_, _ = c.WriteToUDPAddrPort([]byte(reply), from)
			}
		}()
		return
	}
	ln := n.Listen("tcp", fmt.Sprintf(":%d", port))
	go func() {
		for {
			c, err := ln.Accept()
			if err != nil {
				return
			}
			go func() {
				defer c.Close()
				b, _ := io.ReadAll(c)
				host, _, _ := net.SplitHostPort(c.RemoteAddr().String())
				fmt.Fprintf(c, "%s %s", host, b)
			}()
		}
	}()
}

// from asks such a server and returns the address that it saw.
func from(t *testing.T, n *netlab.NS, network, addr string) string {
	t.Helper()
	const message = "what is my address?"
	text, err := netlab.Ask(n, network, addr, message)
	if err != nil {
		t.Errorf("%s: %s %s: %v", n.Name, network, addr, err)
		return ""
	}
	seen, echoed, _ := strings.Cut(text, " ")
	if echoed != message {
		t.Errorf("%s: %s %s: %q came back", n.Name, network, addr, text)
	}
	return seen
}

// sees fails the test unless such a server sees want as the client's address.
func sees(t *testing.T, n *netlab.NS, network, addr, want string) {
	t.Helper()
	if got := from(t, n, network, addr); got != "" && got != want {
		t.Errorf("%s: %s %s: served to %s, not to %s", n.Name, network, addr, got, want)
	}
}

// silent fails the test if anything answers.
func silent(t *testing.T, n *netlab.NS, network, addr string) {
	t.Helper()
	c, err := n.DialError(network, addr, time.Second)
	if err != nil {
		return
	}
	defer c.Close()
	_ = c.SetDeadline(time.Now().Add(500 * time.Millisecond))
	_, _ = c.Write([]byte("anybody?"))
	if t, ok := c.(*net.TCPConn); ok {
		_ = t.CloseWrite()
	}
	b := make([]byte, 64)
	if k, _ := c.Read(b); k > 0 {
		t.Errorf("%s: %s %s answers: %q", n.Name, network, addr, b[:k])
	}
}
