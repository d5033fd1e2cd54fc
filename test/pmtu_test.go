// SPDX-License-Identifier: Apache-2.0

package test

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"regexp"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"aldente/test/netlab"
)

// narrow is a lab whose remote is behind a link of 1,280 bytes, which only the router
// knows of.
func narrow(t *testing.T) *netlab.Lab {
	lab := netlab.New(t, netlab.Options{Shape: netlab.Routed})
	lab.Router.IP("link set q1 mtu 1280")
	lab.Remote.IP("link set r0 mtu 1280")
	lab.Router.Sysctl("net/ipv4/icmp_ratelimit", "0")
	lab.Router.Sysctl("net/ipv6/icmp/ratelimit", "0")
	return lab
}

// prober sends datagrams that nobody may cut, and reads what comes of them.
type prober struct {
	fd, headers int
	v4          bool
}

// newProber makes one in a namespace. With probe, its kernel sends what its own link
// takes, whatever it knows of the path.
func newProber(t *testing.T, n *netlab.NS, to netip.AddrPort, probe bool) *prober {
	t.Helper()
	p := &prober{headers: 48, v4: to.Addr().Is4()}
	domain, level, discover, recverr := unix.AF_INET6, unix.IPPROTO_IPV6, unix.IPV6_MTU_DISCOVER, unix.IPV6_RECVERR
	sa := unix.Sockaddr(&unix.SockaddrInet6{Addr: to.Addr().As16(), Port: int(to.Port())})
	if p.v4 {
		p.headers, domain, level, discover, recverr = 28, unix.AF_INET, unix.IPPROTO_IP, unix.IP_MTU_DISCOVER, unix.IP_RECVERR
		sa = &unix.SockaddrInet4{Addr: to.Addr().As4(), Port: int(to.Port())}
	}
	how := unix.IP_PMTUDISC_DO
	if probe {
		how = unix.IP_PMTUDISC_PROBE
	}
	err := n.Do(func() (err error) {
		p.fd, err = unix.Socket(domain, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
		if err == nil {
			err = unix.Connect(p.fd, sa)
		}
		return err
	})
	if err == nil {
		err = errors.Join(unix.SetsockoptInt(p.fd, level, discover, how), unix.SetsockoptInt(p.fd, level, recverr, 1))
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { unix.Close(p.fd) })
	return p
}

// try sends a packet of mtu bytes. It returns the length of the packet that came back, or
// the MTU that was told instead. What is longer than Ethernet takes may come back all the
// same: the host cuts it, for those who do not look. A write that fails with what was told
// about an earlier packet has sent nothing, and is made again: the kernel puts that in the
// queue first, where one may have read it, and then at the socket.
func (p *prober) try(t *testing.T, mtu int) (echoed, told int) {
	t.Helper()
	write := func() bool {
		_, err := unix.Write(p.fd, make([]byte, mtu-p.headers))
		if err != nil && err != unix.EMSGSIZE {
			t.Fatalf("%d bytes: %v", mtu, err)
		}
		return err == nil
	}
	sent := write()
	b, oob := make([]byte, 1<<16), make([]byte, 512)
	for end := time.Now().Add(5 * time.Second); time.Now().Before(end); {
		fds := []unix.PollFd{{Fd: int32(p.fd), Events: unix.POLLIN}}
		_, _ = unix.Poll(fds, 100)
		if n, err := unix.Read(p.fd, b); err == nil {
			if n += p.headers; n <= ethernet {
				return n, 0
			}
		}
		_, n, _, _, err := unix.Recvmsg(p.fd, b, oob, unix.MSG_ERRQUEUE)
		if err != nil {
			sent = sent || write()
			continue
		}
		all, err := unix.ParseSocketControlMessage(oob[:n])
		if err != nil {
			t.Fatal(err)
		}
		for _, m := range all {
			if len(m.Data) >= 16 && unix.Errno(binary.NativeEndian.Uint32(m.Data)) == unix.EMSGSIZE {
				if told := int(binary.NativeEndian.Uint32(m.Data[8:])); told < mtu { // else about an earlier one
					return 0, told
				}
			}
		}
	}
	return 0, 0
}

// find makes packets smaller as it is told, and returns what was told on the way and what
// passes in the end.
func (p *prober) find(t *testing.T, mtu int) (told []int, passes int) {
	t.Helper()
	for range 6 {
		echoed, next := p.try(t, mtu)
		if echoed != 0 || next == 0 || next >= mtu {
			return told, echoed
		}
		told = append(told, next)
		mtu = next
	}
	return told, 0
}

// TestPathMTU: who sends what nobody may cut learns what the path takes, from the host
// about its link and from a router about one behind it; and nothing larger arrives that
// is not larger than any path may be.
func TestPathMTU(t *testing.T) {
	needOurs(t)
	lab := narrow(t)
	g := lab.Guest()
	for _, f := range []struct{ name, at string }{{"IPv4", lab.Remote4}, {"IPv6", lab.Remote6}} {
		t.Run(f.name, func(t *testing.T) {
			to := netip.AddrPortFrom(netip.MustParseAddr(f.at), 7)
			largest := echoLargest(lab.Remote, to.String())
			p := newProber(t, g.NS, to, false)
			if told, passes := p.find(t, 9000); fmt.Sprint(told) != "[1500 1280]" || passes != 1280 {
				t.Errorf("told %v, %d bytes pass", told, passes)
			}
			// One that its own kernel does not hold back, of a flow of its own.
			p = newProber(t, g.NS, to, true)
			for _, mtu := range []int{1400, 1281, 9000} {
				if echoed, told := p.try(t, mtu); echoed != 0 || told != 1280 {
					t.Errorf("%d bytes: %d came back, told %d", mtu, echoed, told)
				}
			}
			if echoed, told := p.try(t, 1280); echoed != 1280 {
				t.Errorf("1280 bytes: %d came back, told %d", echoed, told)
			}
			if n := largest.Load(); n != int64(1280-p.headers) {
				t.Errorf("a datagram of %d bytes has arrived", n)
			}
		})
	}
}

// TestLongDatagrams: what the guest's link takes and the host's does not arrives, also the
// first, of a program that knows of no MTU; and its kernel is told.
func TestLongDatagrams(t *testing.T) {
	lab := netlab.New(t, netlab.Options{})
	g := lab.Guest()
	for _, f := range families {
		t.Run(f.name, func(t *testing.T) {
			echoLargest(lab.Remote, f.at(f.remote, "7"))
			c := g.Dial("udp", f.at(f.remote, "7"))
			defer c.Close()
			_ = c.SetDeadline(time.Now().Add(20 * time.Second))
			long := make([]byte, 9000)
			if _, err := c.Write(long); err != nil {
				t.Fatal(err)
			}
			n, err := c.Read(long)
			if netlab.Ours() && errors.Is(err, unix.EMSGSIZE) { // once
				n, err = c.Read(long)
			}
			if n != len(long) {
				t.Errorf("%d bytes came back, %v", n, err)
			}
		})
	}
}

// ethernet is what a packet on Ethernet has at most.
const ethernet = 1500

// echoLargest is an echo server that keeps the size of the largest datagram, of those that
// Ethernet takes whole.
func echoLargest(n *netlab.NS, at string) *atomic.Int64 {
	u, most := n.ListenUDP("udp", at), new(atomic.Int64)
	go func() {
		b := make([]byte, 1<<16)
		for {
			k, from, err := u.ReadFrom(b)
			if err != nil {
				return
			}
			if k+28 <= ethernet {
				most.Store(max(most.Load(), int64(k)))
			}
			_, _ = u.WriteTo(b[:k], from)
		}
	}()
	return most
}

// toldMTU is what ping prints of what it is told.
var toldMTU = regexp.MustCompile(`mtu ?[=:] ?1280`)

// TestTracepath: the programs that people find a path's MTU with.
func TestTracepath(t *testing.T) {
	needOurs(t)
	netlab.Have(t, "tracepath", "ping")
	lab := narrow(t)
	g := lab.Guest()
	for _, f := range []struct{ name, flag, at string }{{"IPv4", "-4", lab.Remote4}, {"IPv6", "-6", lab.Remote6}} {
		t.Run(f.name, func(t *testing.T) {
			out := g.Must("tracepath", f.flag, "-n", "-m", "5", f.at)
			if !strings.Contains(out, "Resume: pmtu 1280") || !strings.Contains(out, "reached") {
				t.Error(out)
			}
		})
		t.Run("ping "+f.name, func(t *testing.T) {
			_, out := g.Run("ping", f.flag, "-n", "-c", "3", "-i", "0.2", "-W", "2", "-M", "do", "-s", "1400", f.at)
			if !toldMTU.MatchString(out) || !strings.Contains(out, " 0 received") {
				t.Error(out)
			}
			out = g.Must("ping", f.flag, "-n", "-c", "2", "-i", "0.2", "-W", "2", "-M", "do", "-s", "1200", f.at)
			if !strings.Contains(out, " 0% packet loss") {
				t.Error(out)
			}
		})
	}
}

// TestHostMTUChanges: a link of the host's gets narrower. Connections go on, and who sends
// datagrams is told.
func TestHostMTUChanges(t *testing.T) {
	needOurs(t)
	lab := netlab.New(t, netlab.Options{})
	g := lab.Guest()
	for _, f := range families {
		ln := lab.Remote.Listen("tcp", f.at(f.remote, "9"))
		go func() {
			for {
				c, err := ln.Accept()
				if err != nil {
					return
				}
				go func() { _, _ = io.Copy(c, c); c.Close() }()
			}
		}()
	}
	type lasting struct {
		*prober
		net.Conn
	}
	all := map[string]lasting{}
	for _, f := range families {
		echoLargest(lab.Remote, f.at(f.remote, "7"))
		l := lasting{newProber(t, g.NS, netip.MustParseAddrPort(f.at(f.remote, "7")), true), g.Dial("tcp", f.at(f.remote, "9"))}
		defer l.Close()
		all[f.name] = l
		if echoed, told := l.try(t, 1500); echoed != 1500 {
			t.Fatalf("%s: %d bytes came back, told %d", f.name, echoed, told)
		}
		moves(t, l.Conn)
	}
	lab.Host.IP("link set h0 mtu 1400")
	lab.Remote.IP("link set r0 mtu 1400")
	for name, l := range all {
		if echoed, told := l.try(t, 1500); told != 1400 {
			t.Errorf("%s: %d bytes came back, told %d", name, echoed, told)
		}
		if echoed, told := l.try(t, 1400); echoed != 1400 {
			t.Errorf("%s: %d bytes came back, told %d", name, echoed, told)
		}
		moves(t, l.Conn)
	}
}

// moves sends a megabyte and expects it back.
func moves(t *testing.T, c net.Conn) {
	t.Helper()
	_ = c.SetDeadline(time.Now().Add(20 * time.Second))
	sent := bytes.Repeat([]byte("0123456789abcdef"), 1<<16)
	go func() { _, _ = c.Write(sent) }()
	got := make([]byte, len(sent))
	if _, err := io.ReadFull(c, got); err != nil || !bytes.Equal(got, sent) {
		t.Errorf("connection: %v", err)
	}
}
