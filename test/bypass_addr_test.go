// SPDX-License-Identifier: Apache-2.0

package test

import (
	"fmt"
	"io"
	"net"
	"net/netip"
	"strings"
	"testing"
	"time"

	"aldente/test/netlab"
)

// tellBoth serves connections and datagrams by answering with the peer's
// address and the address that was spoken to.
func tellBoth(n *netlab.NS, addr string) {
	ln, pc := n.Listen("tcp", addr), n.ListenUDP("udp", addr)
	go func() {
		for {
			c, err := ln.Accept()
			if err != nil {
				return
			}
			_, _ = c.Read(make([]byte, 16))
			peer, local := c.RemoteAddr().(*net.TCPAddr).AddrPort(), c.LocalAddr().(*net.TCPAddr).AddrPort()
			fmt.Fprintf(c, "%v %v", peer.Addr().Unmap(), local.Addr().Unmap())
			c.Close()
		}
	}()
	go func() {
		b := make([]byte, 2048)
		for {
			_, from, err := pc.ReadFromUDPAddrPort(b)
			if err != nil {
				return
			}
			_, _ = pc.WriteToUDPAddrPort([]byte(from.Addr().Unmap().String()), from)
		}
	}()
}

// TestBypassAddresses has what PASST.md and passt(1) say on the addresses of the
// bypass, inbound.
func TestBypassAddresses(t *testing.T) {
	lab := netlab.New(t, netlab.Options{})
	lab.Host.IP("addr add 127.0.0.5/8 dev lo")
	for _, tt := range []struct {
		name string
		args []string
		addr string // on the host
		from string // local address of the connection, "" for the kernel's choice
		want string // peer and local address in the guest; "-" neither answer nor loopback peer
	}{
		{"IPv4", nil, "127.0.0.1", "", netlab.Host4 + " " + netlab.Host4},
		{"IPv4, another loopback address", nil, "127.0.0.5", "", netlab.Host4 + " " + netlab.Host4},
		{"IPv6", nil, "::1", "", netlab.Host6 + " " + netlab.Host6},
		{"host's address, from loopback", nil, netlab.Host4, "127.0.0.1", netlab.Host4 + " " + netlab.Host4},
		{"loopback, from the host's address", nil, "127.0.0.1", netlab.Host4, "192.0.2.1 " + netlab.Host4},
		{"loopback to loopback", []string{"--host-lo-to-ns-lo"}, "127.0.0.1", "", "127.0.0.1 127.0.0.1"},
		{"loopback to loopback, another address", []string{"--host-lo-to-ns-lo"}, "127.0.0.5", "", "127.0.0.1 127.0.0.5"},
		{"loopback to loopback, IPv6", []string{"--host-lo-to-ns-lo"}, "::1", "", "::1 ::1"},
		{"loopback to loopback, host's address", []string{"--host-lo-to-ns-lo"}, netlab.Host4, "127.0.0.1", netlab.Host4 + " " + netlab.Host4},
		{"no splice", []string{"--no-splice"}, "127.0.0.1", "", "192.0.2.1 " + netlab.Host4},
		{"splice only", []string{"--splice-only"}, "127.0.0.1", "", "127.0.0.1 127.0.0.1"},
		{"splice only, IPv6", []string{"--splice-only"}, "::1", "", "::1 ::1"},
		{"splice only, host's address", []string{"--splice-only"}, netlab.Host4, "127.0.0.1", "127.0.0.1 127.0.0.1"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			lab := lab.For(t)
			g := lab.Guest(append([]string{"-t", "8080", "-u", "8080"}, tt.args...)...)
			tellBoth(g.NS, ":8080")
			var src netip.Addr
			if tt.from != "" {
				src = netip.MustParseAddr(tt.from)
			}
			at := netip.AddrPortFrom(netip.MustParseAddr(tt.addr), 8080)
			got, err := askFrom(lab.Host, "tcp", src, at)
			if got != tt.want {
				t.Errorf("tcp: %q, %v, want %q", got, err, tt.want)
			}
			if strings.HasSuffix(tt.want, "127.0.0.5") {
				return // a wildcard server does not answer from there
			}
			got, err = askFrom(lab.Host, "udp", src, at)
			if want, _, _ := strings.Cut(tt.want, " "); got != want {
				t.Errorf("udp: %q, %v, want %q", got, err, want)
			}
		})
	}
}

// askFrom is netlab.Ask from an address.
func askFrom(ns *netlab.NS, network string, src netip.Addr, at netip.AddrPort) (string, error) {
	var c net.Conn
	err := ns.Do(func() (err error) {
		d := net.Dialer{Timeout: 5 * time.Second}
		if src.IsValid() && network == "tcp" {
			d.LocalAddr = net.TCPAddrFromAddrPort(netip.AddrPortFrom(src, 0))
		} else if src.IsValid() {
			d.LocalAddr = net.UDPAddrFromAddrPort(netip.AddrPortFrom(src, 0))
		}
		c, err = d.Dial(network, at.String())
		return
	})
	if err != nil {
		return "", err
	}
	defer c.Close()
	_ = c.SetDeadline(time.Now().Add(5 * time.Second))
	if _, err := io.WriteString(c, "?"); err != nil {
		return "", err
	}
	b := make([]byte, 256)
	n, err := c.Read(b)
	return string(b[:n]), err
}

// TestNeverLoopback makes sure that what comes from a remote, or from an address
// of the host's, does not arrive as the guest's loopback: CVE-2021-20199.
func TestNeverLoopback(t *testing.T) {
	lab := netlab.New(t, netlab.Options{})
	for _, args := range [][]string{nil, {"--no-splice"}, {"--no-map-gw"}, {"--host-lo-to-ns-lo"}, {"--splice-only"}} {
		t.Run(fmt.Sprint(args), func(t *testing.T) {
			lab := lab.For(t)
			g := lab.Guest(append([]string{"-t", "8080", "-u", "8080"}, args...)...)
			tellBoth(g.NS, ":8080")
			for _, f := range families {
				for _, network := range []string{"tcp", "udp"} {
					for _, from := range []*netlab.NS{lab.Remote, lab.Host} {
						got := askSoonFull(from, network, f.at(f.host, "8080"))
						peer, _, _ := strings.Cut(got, " ")
						a, err := netip.ParseAddr(peer)
						switch {
						case err == nil && a.IsLoopback():
							t.Errorf("%s %s from %s: seen as %s", network, f.name, from.Name, peer)
						case from == lab.Remote && len(args) == 1 && args[0] == "--splice-only":
							if got != "" {
								t.Errorf("%s %s: answered without a link: %s", network, f.name, got)
							}
						case from == lab.Remote && peer != f.remote:
							t.Errorf("%s %s: remote %s seen as %q", network, f.name, f.remote, peer)
						}
					}
				}
			}
		})
	}
}

func askSoonFull(ns *netlab.NS, network, addr string) string {
	c, err := ns.DialError(network, addr, time.Second)
	if err != nil {
		return ""
	}
	defer c.Close()
	b := make([]byte, 256)
	if _, err := c.Write([]byte("?")); err != nil {
		return ""
	}
	n, _ := readWithin(c, b, 500*time.Millisecond)
	return string(b[:n])
}

// TestOutboundAddresses has -T and -U lead to the same address of the host's
// loopback, from loopback only.
func TestOutboundAddresses(t *testing.T) {
	lab := netlab.New(t, netlab.Options{})
	g := lab.Guest("-T", "9090,9091:9090", "-U", "9090,9091:9090")
	tellBoth(lab.Host, ":9090")
	for _, tt := range []struct{ addr, from, want string }{
		{"127.0.0.1:9090", "", "127.0.0.1 127.0.0.1"},
		{"127.0.0.1:9091", "", "127.0.0.1 127.0.0.1"},
		{"127.0.0.5:9090", "", "127.0.0.1 127.0.0.5"},
		{"[::1]:9090", "", "::1 ::1"},
		{"127.0.0.1:9090", netlab.Host4, ""},
		{"192.0.2.2:9090", "", ""},
	} {
		var src netip.Addr
		if tt.from != "" {
			src = netip.MustParseAddr(tt.from)
		}
		got, err := askFrom(g.NS, "tcp", src, netip.MustParseAddrPort(tt.addr))
		if got != tt.want {
			t.Errorf("tcp %s from %q: %q, %v, want %q", tt.addr, tt.from, got, err, tt.want)
		}
		if tt.want == "" || strings.HasPrefix(tt.addr, "127.0.0.5") {
			continue // a wildcard server does not answer from there
		}
		want, _, _ := strings.Cut(tt.want, " ")
		if got, err := askFrom(g.NS, "udp", src, netip.MustParseAddrPort(tt.addr)); got != want {
			t.Errorf("udp %s: %q, %v, want %q", tt.addr, got, err, want)
		}
	}
}
