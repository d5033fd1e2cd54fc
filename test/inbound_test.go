// SPDX-License-Identifier: Apache-2.0

package test

import (
	"fmt"
	"net"
	"net/netip"
	"strings"
	"testing"
	"time"

	"aldente/test/netlab"
)

// tellPeer serves connections and datagrams by answering with the peer's
// address and the server's port.
func tellPeer(n *netlab.NS, addr string) {
	ln, pc := n.Listen("tcp", addr), n.ListenUDP("udp", addr)
	go func() {
		for {
			c, err := ln.Accept()
			if err != nil {
				return
			}
			_, _ = c.Read(make([]byte, 16)) // unread data would turn the close into a reset
			peer := c.RemoteAddr().(*net.TCPAddr).AddrPort().Addr().Unmap()
			fmt.Fprintf(c, "%v %d", peer, c.LocalAddr().(*net.TCPAddr).Port)
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
			port := pc.LocalAddr().(*net.UDPAddr).Port
			_, _ = pc.WriteToUDPAddrPort([]byte(fmt.Sprintf("%v %d", from.Addr().Unmap(), port)), from)
		}
	}()
}

func TestInbound(t *testing.T) {
	lab := netlab.New(t, netlab.Options{})
	for _, tt := range []struct {
		name, spec string
		ports      map[int]int // host's to guest's
		only4      bool
	}{
		{"single", "10001", map[int]int{10001: 10001}, false},
		{"list", "10001,10005", map[int]int{10001: 10001, 10005: 10005}, false},
		{"range", "10010-10012", map[int]int{10010: 10010, 10011: 10011, 10012: 10012}, false},
		{"remapped", "10020:20020", map[int]int{10020: 20020}, false},
		{"range remapped", "10030-10031:20030-20031", map[int]int{10030: 20030, 10031: 20031}, false},
		{"address", netlab.Host4 + "/10040", map[int]int{10040: 10040}, true},
	} {
		t.Run(tt.name, func(t *testing.T) {
			lab := lab.For(t)
			g := lab.Guest("-t", tt.spec, "-u", tt.spec)
			for _, p := range tt.ports {
				tellPeer(g.NS, fmt.Sprintf(":%d", p))
			}
			for _, f := range families {
				if tt.only4 && f.name == "IPv6" {
					continue
				}
				for _, network := range []string{"tcp", "udp"} {
					for from, to := range tt.ports {
						got, err := netlab.Ask(lab.Remote, network, f.at(f.host, fmt.Sprint(from)), "?")
						if want := fmt.Sprintf("%s %d", f.remote, to); got != want {
							t.Errorf("%s %s port %d: %q, %v, want %q", network, f.name, from, got, err, want)
						}
					}
				}
			}
		})
	}
}

// TestInboundFromHost connects from the host itself: no such connection may
// appear to come from the guest's loopback.
func TestInboundFromHost(t *testing.T) {
	lab := netlab.New(t, netlab.Options{})
	g := lab.Guest("-t", "10001", "-u", "10001")
	tellPeer(g.NS, ":10001")
	for _, f := range families {
		for _, network := range []string{"tcp", "udp"} {
			for _, dest := range []string{f.lo, f.host} {
				t.Run(network+"/"+dest, func(t *testing.T) {
					got, err := netlab.Ask(lab.Host, network, f.at(dest, "10001"), "?")
					peer, port, _ := strings.Cut(got, " ")
					a, perr := netip.ParseAddr(peer)
					if err != nil || perr != nil || a.IsLoopback() || port != "10001" {
						t.Errorf("got %q, %v", got, err)
					}
				})
			}
		}
	}
}

// TestInboundBulk moves data both ways on connections that the remote opened, and
// expects an error where nothing listens in the guest.
func TestInboundBulk(t *testing.T) {
	lab := netlab.New(t, netlab.Options{})
	g := lab.Guest("-t", "10001-10002")
	size := int64(256 << 20)
	if testing.Short() {
		size = 16 << 20
	}
	for _, f := range families {
		for _, dir := range []string{"in", "out"} {
			t.Run(f.name+"/"+dir, func(t *testing.T) {
				err := netlab.Transfer(lab.Remote, g.NS, ":10001", f.at(f.host, "10001"), size, dir == "out", 100*time.Second)
				if err != nil {
					t.Error(err)
				}
			})
		}
	}
	t.Run("nobody listens", func(t *testing.T) {
		if got, err := netlab.Ask(lab.Remote, "tcp", "192.0.2.2:10002", "?"); err == nil {
			t.Errorf("got %q without an error", got)
		}
	})
}

// TestMappedHost reaches the host's loopback by the gateway's address, and
// not when told so.
func TestMappedHost(t *testing.T) {
	lab := netlab.New(t, netlab.Options{})
	tellPeer(lab.Host, "127.0.0.1:8080")
	tellPeer(lab.Host, "[::1]:8080")
	tellPeer(lab.Host, netlab.Host4+":8081")
	tellPeer(lab.Remote, netlab.Gateway4+":8080")
	for _, tt := range []struct {
		name string
		args []string
		addr string
		want string
	}{
		{"gateway IPv4", nil, "192.0.2.1:8080", "127.0.0.1 8080"},
		{"gateway IPv6", nil, "[fe80::1%DEV]:8080", "::1 8080"},
		{"no gateway mapping", []string{"--no-map-gw"}, "192.0.2.1:8080", "192.0.2.2 8080"},
		{"own address", []string{"--map-host-loopback", "203.0.113.77"}, "203.0.113.77:8080", "127.0.0.1 8080"},
		{"guest address", []string{"--map-guest-addr", "203.0.113.78"}, "203.0.113.78:8081", "192.0.2.2 8081"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			lab := lab.For(t)
			g := lab.Guest(tt.args...)
			addr := strings.Replace(tt.addr, "DEV", g.Interface(), 1)
			for _, network := range []string{"tcp", "udp"} {
				if got, err := netlab.Ask(g.NS, network, addr, "?"); got != tt.want {
					t.Errorf("%s: %q, %v, want %q", network, got, err, tt.want)
				}
			}
		})
	}
}
