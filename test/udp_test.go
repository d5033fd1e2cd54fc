// SPDX-License-Identifier: Apache-2.0

package test

import (
	"bytes"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"net/netip"
	"strings"
	"syscall"
	"testing"
	"time"

	"aldente/test/netlab"
)

// serveDNS has a resolver there that knows one host.
func serveDNS(n *netlab.NS, addr string) {
	netlab.ServeDNS(n, addr, netip.MustParseAddr("198.51.100.7"), netip.MustParseAddr("2001:db8::7"))
}

func TestDig(t *testing.T) {
	netlab.Have(t, "dig")
	lab := netlab.New(t, netlab.Options{})
	for _, f := range families {
		serveDNS(lab.Remote, f.at(f.remote, "53"))
	}
	serveDNS(lab.Host, "127.0.0.1:53")
	g := lab.Guest("--dns-forward", "169.254.1.1", "--dns-host", "192.0.2.9")
	forward := lab.GuestWith(netlab.GuestSpec{Args: []string{"--config-net", "--dns-forward", "169.254.1.1"}, Resolv: "nameserver 127.0.0.1\n"})
	for _, tt := range []struct {
		name   string
		guest  *netlab.Guest
		server string
		args   []string
		want   string
	}{
		{"UDP over IPv4", g, "192.0.2.9", []string{"A", "+notcp"}, "198.51.100.7"},
		{"TCP over IPv4", g, "192.0.2.9", []string{"A", "+tcp"}, "198.51.100.7"},
		{"UDP over IPv6", g, "2001:db8:1::9", []string{"AAAA", "+notcp"}, "2001:db8::7"},
		{"TCP over IPv6", g, "2001:db8:1::9", []string{"AAAA", "+tcp"}, "2001:db8::7"},
		{"truncated, then TCP", g, "192.0.2.9", []string{"TXT"}, strings.Repeat("x", 250)},
		{"forwarded UDP", g, "169.254.1.1", []string{"A", "+notcp"}, "198.51.100.7"},
		{"forwarded TCP", g, "169.254.1.1", []string{"A", "+tcp"}, "198.51.100.7"},
		{"forwarded UDP to loopback", forward, "169.254.1.1", []string{"A", "+notcp"}, "198.51.100.7"},
		{"forwarded TCP to loopback", forward, "169.254.1.1", []string{"A", "+tcp"}, "198.51.100.7"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			args := append([]string{"dig", "+short", "+time=3", "+tries=2", "@" + tt.server, "name.example"}, tt.args...)
			if out := tt.guest.Must(args...); !strings.Contains(out, tt.want) {
				t.Errorf("got %q, want %s", out, tt.want)
			}
		})
	}
}

// TestDatagramSizes sends datagrams of growing size and expects them back:
// the large ones leave as fragments and come back as fragments. What the guest's kernel
// sends in one piece, since its own link takes it, and lets nobody cut, does not leave a
// host whose link is narrower: the guest's kernel hears that and goes on in fragments.
func TestDatagramSizes(t *testing.T) {
	for _, mtu := range []string{"1500", "65520"} {
		lab := netlab.New(t, netlab.Options{})
		g := lab.Guest("-m", mtu)
		for _, f := range families {
			go netlab.EchoUDP(lab.Remote.ListenUDP("udp", f.at(f.remote, "7")))
			for _, size := range []int{0, 1, 512, 1472, 1473, 9000, 60000} {
				t.Run(fmt.Sprintf("MTU %s/%s/%d", mtu, f.name, size), func(t *testing.T) {
					if !netlab.Ours() && size > 1400 && mtu == "1500" {
						t.Skip("this pasta drops fragments")
					}
					echoOnce(t, g.NS, f.at(f.remote, "7"), size)
				})
			}
		}
	}
}

func echoOnce(t *testing.T, n *netlab.NS, addr string, size int) {
	t.Helper()
	c := n.Dial("udp", addr)
	defer c.Close()
	msg := make([]byte, size)
	_, _ = rand.NewChaCha8([32]byte{}).Read(msg)
	got := make([]byte, 1<<16)
	k, err := 0, error(nil)
	for range 3 {
		wait := soonEnough
		if size > 1452 {
			wait = 3 * time.Second // a fragment may be lost
		}
		_ = c.SetDeadline(time.Now().Add(wait))
		if _, err := c.Write(msg); err != nil {
			t.Fatal(err)
		}
		if k, err = c.Read(got); err == nil || size <= 1452 {
			break
		}
	}
	if err != nil || !bytes.Equal(got[:k], msg) {
		t.Errorf("%d bytes back, %v", k, err)
	}
}

// TestUDPErrors expects a connected socket of the guest to learn why nothing
// comes back.
func TestUDPErrors(t *testing.T) {
	lab := netlab.New(t, netlab.Options{})
	lab.Host.IP("route add unreachable 198.51.100.128/25")
	g := lab.Guest()
	g.IP("route flush type unreachable")
	for _, tt := range []struct {
		name, addr string
		want       error
		ours       bool
	}{
		{"port IPv4", "192.0.2.9:1", syscall.ECONNREFUSED, false},
		{"port IPv6", "[2001:db8:1::9]:1", syscall.ECONNREFUSED, false},
		{"host IPv4", "198.51.100.200:1", syscall.EHOSTUNREACH, true},
	} {
		t.Run(tt.name, func(t *testing.T) {
			if tt.ours {
				needOurs(t)
			}
			c := g.Dial("udp", tt.addr)
			wantErrors(t, c)
			_ = c.SetDeadline(time.Now().Add(soonEnough))
			fmt.Fprint(c, "x")
			_, err := c.Read(make([]byte, 1))
			if !errors.Is(err, tt.want) && !(tt.want == syscall.EHOSTUNREACH && errors.Is(err, syscall.ENETUNREACH)) {
				t.Errorf("got %v, want %v", err, tt.want)
			}
		})
	}
}

// wantErrors has the kernel report errors that it does not count as fatal for a
// datagram socket, "host unreachable" among them, ip(7) IP_RECVERR.
func wantErrors(t *testing.T, c net.Conn) {
	t.Helper()
	raw, err := c.(syscall.Conn).SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	if err := raw.Control(func(fd uintptr) {
		_ = syscall.SetsockoptInt(int(fd), syscall.IPPROTO_IP, syscall.IP_RECVERR, 1)
		_ = syscall.SetsockoptInt(int(fd), syscall.IPPROTO_IPV6, syscall.IPV6_RECVERR, 1)
	}); err != nil {
		t.Fatal(err)
	}
}

func TestTraceroute(t *testing.T) {
	netlab.Have(t, "traceroute")
	lab := netlab.New(t, netlab.Options{Shape: netlab.Routed})
	g := lab.Guest()
	for _, tt := range []struct{ name, flag, dest, router string }{
		{"IPv4", "-4", lab.Remote4, "192.0.2.1"},
		{"IPv6", "-6", lab.Remote6, "2001:db8:1::1"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			out := g.Must("traceroute", tt.flag, "-n", "-q", "1", "-w", "2", "-m", "4", tt.dest)
			var hops []string
			for line := range strings.Lines(out) {
				if f := strings.Fields(line); len(f) > 1 && f[0] != "traceroute" {
					hops = append(hops, f[1])
				}
			}
			if len(hops) != 2 || hops[0] != tt.router || hops[1] != tt.dest {
				t.Errorf("hops %v, want %s, %s\n%s", hops, tt.router, tt.dest, out)
			}
		})
	}
}

func TestPing(t *testing.T) {
	netlab.Have(t, "ping")
	lab := netlab.New(t, netlab.Options{})
	g := lab.Guest()
	for _, f := range families {
		for _, size := range []string{"0", "56", "1400"} {
			t.Run(f.name+"/"+size, func(t *testing.T) {
				out := g.Must("ping", f.flag, "-n", "-c", "3", "-i", "0.1", "-W", "2", "-s", size, f.remote)
				if !strings.Contains(out, " 0% packet loss") {
					t.Error(out)
				}
			})
		}
		t.Run(f.name+"/nobody there", func(t *testing.T) {
			dest := strings.Replace(f.remote, "9", "66", 1)
			if f.name == "IPv4" {
				dest = "192.0.2.66"
			}
			if st, out := g.Run("ping", f.flag, "-n", "-c", "1", "-W", "1", dest); st == 0 {
				t.Error(out)
			}
		})
	}
}
