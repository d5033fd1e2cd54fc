// SPDX-License-Identifier: Apache-2.0

package test

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"net"
	"net/netip"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"aldente/test/netlab"
)

// is6 tells whether a row is of IPv6.
func (f family) is6() bool { return f.name == "IPv6" }

// setOption sets an integer option of a socket.
func setOption(t *testing.T, c net.Conn, level, name, value int) {
	t.Helper()
	raw, err := c.(syscall.Conn).SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	var e error
	if err := raw.Control(func(fd uintptr) { e = unix.SetsockoptInt(int(fd), level, name, value) }); err != nil || e != nil {
		t.Fatalf("setsockopt %d, %d: %v, %v", level, name, err, e)
	}
}

// classes is a raw socket that reports the traffic class of each packet of one
// protocol that comes to a namespace.
type classes struct {
	fd int
	v6 bool
}

func newClasses(t *testing.T, n *netlab.NS, f family, proto int) *classes {
	t.Helper()
	c := &classes{v6: f.is6()}
	err := n.Do(func() (err error) {
		domain, level, option := unix.AF_INET, unix.IPPROTO_IP, unix.IP_RECVTOS
		if c.v6 {
			domain, level, option = unix.AF_INET6, unix.IPPROTO_IPV6, unix.IPV6_RECVTCLASS
		}
		if c.fd, err = unix.Socket(domain, unix.SOCK_RAW|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, proto); err != nil {
			return err
		}
		return unix.SetsockoptInt(c.fd, level, option, 1)
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { unix.Close(c.fd) })
	return c
}

// of returns the class of the next packet that holds a text.
func (c *classes) of(t *testing.T, text string) int {
	t.Helper()
	for end := time.Now().Add(5 * time.Second); time.Now().Before(end); {
		b, oob := make([]byte, 1<<16), make([]byte, 256)
		n, k, _, _, err := unix.Recvmsg(c.fd, b, oob, 0)
		if err != nil {
			_, _ = unix.Poll([]unix.PollFd{{Fd: int32(c.fd), Events: unix.POLLIN}}, 100)
			continue
		}
		if !bytes.Contains(b[:n], []byte(text)) {
			continue
		}
		msgs, _ := unix.ParseSocketControlMessage(oob[:k])
		for _, m := range msgs {
			if m.Header.Type == unix.IP_TOS || m.Header.Type == unix.IPV6_TCLASS {
				return int(m.Data[0])
			}
		}
	}
	t.Fatalf("%q did not come", text)
	return 0
}

// TestTrafficClass: what a guest sends keeps its DSCP, also where it changes in
// the course of a flow: datagrams and echo requests, both families.
func TestTrafficClass(t *testing.T) {
	needOurs(t)
	lab := netlab.New(t, netlab.Options{})
	g := lab.Guest()
	const expedited, low = 46 << 2, 8 << 2 // EF, CS1
	for _, f := range families {
		t.Run("UDP/"+f.name, func(t *testing.T) {
			lab := lab.For(t)
			lab.Remote.ListenUDP("udp", f.at(f.remote, "9000"))
			seen := newClasses(t, lab.Remote, f, unix.IPPROTO_UDP)
			c := g.For(t).Dial("udp", f.at(f.remote, "9000"))
			level, name := unix.IPPROTO_IP, unix.IP_TOS
			if f.is6() {
				level, name = unix.IPPROTO_IPV6, unix.IPV6_TCLASS
			}
			for k, class := range []int{0, expedited, expedited, low, 0} {
				setOption(t, c, level, name, class)
				text := fmt.Sprintf("datagram %d", k)
				fmt.Fprint(c, text)
				if got := seen.of(t, text); got != class {
					t.Errorf("%s: traffic class %#x, sent as %#x", text, got, class)
				}
			}
		})
		t.Run("echo/"+f.name, func(t *testing.T) {
			netlab.Have(t, "ping")
			proto := unix.IPPROTO_ICMP
			if f.is6() {
				proto = unix.IPPROTO_ICMPV6
			}
			seen := newClasses(t, lab.Remote, f, proto)
			g := g.For(t)
			for _, class := range []int{expedited, low, 0} {
				pattern := fmt.Sprintf("%02x", 0x40+class>>2)
				if st, out := g.Run("ping", f.flag, "-n", "-c", "1", "-W", "5", "-Q", fmt.Sprint(class), "-p", pattern, f.remote); st != 0 {
					t.Fatalf("status %d\n%s", st, out)
				}
				if got := seen.of(t, strings.Repeat(string(rune(0x40+class>>2)), 16)); got != class {
					t.Errorf("echo request: traffic class %#x, sent as %#x", got, class)
				}
			}
		})
	}
}

// TestSegmentedDatagrams: datagrams that a guest hands to its kernel in one piece,
// with UDP_SEGMENT, arrive one by one, and leave the host in one call too.
func TestSegmentedDatagrams(t *testing.T) {
	lab := netlab.New(t, netlab.Options{})
	g := lab.Guest()
	const size, whole, tail = 1200, 12, 700
	for _, f := range families {
		t.Run(f.name, func(t *testing.T) {
			lab := lab.For(t)
			server := lab.Remote.ListenUDP("udp", f.at(f.remote, "9001"))
			c := g.For(t).Dial("udp", f.at(f.remote, "9001"))
			b := make([]byte, 1<<16)
			receive := func() []byte {
				t.Helper()
				_ = server.SetReadDeadline(time.Now().Add(5 * time.Second))
				n, err := server.Read(b)
				if err != nil {
					t.Fatal(err)
				}
				return b[:n]
			}
			fmt.Fprint(c, "first") // the flow has its socket then
			receive()
			setOption(t, c, unix.IPPROTO_UDP, unix.UDP_SEGMENT, size)
			data := make([]byte, whole*size+tail)
			_, _ = rand.NewChaCha8([32]byte{1}).Read(data)
			before := sentDatagrams(lab.Host, f)
			if _, err := c.Write(data); err != nil {
				t.Fatal(err)
			}
			for k := range whole + 1 {
				want := data[k*size:]
				want = want[:min(size, len(want))]
				if got := receive(); !bytes.Equal(got, want) {
					t.Fatalf("datagram %d: %d bytes, not %d, or others", k, len(got), len(want))
				}
			}
			// The kernel counts what is sent in one call as one. Before Linux 6.2 a
			// guest's kernel cuts it itself, and there may be several.
			if n := sentDatagrams(lab.Host, f) - before; netlab.Ours() && n > (whole+1)/2 {
				t.Errorf("%d calls for %d datagrams", n, whole+1)
			}
		})
	}
}

// sentDatagrams is how many calls have sent datagrams of a family.
func sentDatagrams(n *netlab.NS, f family) int {
	if !f.is6() {
		return int(n.Counters()["UdpOutDatagrams"])
	}
	for line := range strings.Lines(n.Read("/proc/net/snmp6")) {
		var v int
		if k, _ := fmt.Sscanf(line, "Udp6OutDatagrams %d", &v); k == 1 {
			return v
		}
	}
	return 0
}

// TestOutboundSource: with -o all that a guest sends comes from these addresses of
// the host's, and a connection takes a port from nobody: few ports serve many
// destinations.
func TestOutboundSource(t *testing.T) {
	needOurs(t)
	lab := netlab.New(t, netlab.Options{})
	lab.Host.IP("addr add 192.0.2.22/24 dev h0", "addr add 2001:db8:1::22/64 dev h0 nodad")
	lab.Host.Sysctl("net/ipv4/ip_local_port_range", "40000 40003")
	g := lab.Guest("-o", "192.0.2.22", "-o", "2001:db8:1::22")
	sources := map[string]string{"IPv4": "192.0.2.22", "IPv6": "2001:db8:1::22"}
	for _, f := range families {
		t.Run("TCP/"+f.name, func(t *testing.T) {
			lab, g := lab.For(t), g.For(t)
			for port := 9100; port < 9116; port++ {
				at := f.at(f.remote, fmt.Sprint(port))
				ln := lab.Remote.Listen("tcp", at)
				g.Dial("tcp", at) // stays open until the end
				_ = ln.(*net.TCPListener).SetDeadline(time.Now().Add(5 * time.Second))
				c, err := ln.Accept()
				if err != nil {
					t.Fatal(err)
				}
				t.Cleanup(func() { c.Close() })
				if got := c.RemoteAddr().(*net.TCPAddr).AddrPort().Addr(); got != netip.MustParseAddr(sources[f.name]) {
					t.Errorf("from %v, not %s", got, sources[f.name])
				}
			}
		})
		t.Run("UDP/"+f.name, func(t *testing.T) {
			lab, g := lab.For(t), g.For(t)
			tellPeer(lab.Remote, f.at(f.remote, "9200"))
			got, err := netlab.Ask(g, "udp", f.at(f.remote, "9200"), "?")
			if want := sources[f.name] + " 9200"; got != want {
				t.Errorf("%q, %v, want %q", got, err, want)
			}
		})
	}
}

// TestListenersOfOneAddress: a datagram port that is forwarded on one address has a
// socket of that address's family, and of no other.
func TestListenersOfOneAddress(t *testing.T) {
	lab := netlab.New(t, netlab.Options{})
	g := lab.Guest("-u", netlab.Host4+"/46951", "-u", netlab.Host6+"/46952")
	tellPeer(g.NS, ":46951")
	tellPeer(g.NS, ":46952")
	for _, tt := range []struct {
		f    family
		port string
		want string
	}{
		{families[0], "46951", "192.0.2.9 46951"},
		{families[1], "46952", "2001:db8:1::9 46952"},
		{families[0], "46952", ""},
		{families[1], "46951", ""},
	} {
		got, err := netlab.Ask(lab.Remote, "udp", tt.f.at(tt.f.host, tt.port), "?")
		if got != tt.want {
			t.Errorf("%s, port %s: %q, %v, want %q", tt.f.name, tt.port, got, err, tt.want)
		}
	}
}

// TestKeepAlivesPassOn: a guest that asks whether its peer still lives has the host
// ask as well. We answer the guest ourselves, so nobody else would.
func TestKeepAlivesPassOn(t *testing.T) {
	needOurs(t)
	lab := netlab.New(t, netlab.Options{})
	g := lab.Guest()
	for _, f := range families {
		t.Run(f.name, func(t *testing.T) {
			lab, g := lab.For(t), g.For(t)
			at := f.at(f.remote, "9400")
			go netlab.Echo(lab.Remote.Listen("tcp", at))
			c := g.Dial("tcp", at)
			if timer := tcpTimer(lab.Host, f, 9400); timer == keepAliveTimer {
				t.Error("the host asks without being told to")
			}
			setOption(t, c, unix.IPPROTO_TCP, unix.TCP_KEEPIDLE, 1)
			setOption(t, c, unix.IPPROTO_TCP, unix.TCP_KEEPINTVL, 1)
			setOption(t, c, unix.SOL_SOCKET, unix.SO_KEEPALIVE, 1)
			if !eventually(15*time.Second, func() bool { return tcpTimer(lab.Host, f, 9400) == keepAliveTimer }) {
				t.Error("the host does not ask")
			}
		})
	}
}

// keepAliveTimer is TIMER_KEEPALIVE in /proc/net/tcp, Documentation/networking/proc_net_tcp.rst.
const keepAliveTimer = "02"

// tcpTimer is the timer that runs for the namespace's connection to a port.
func tcpTimer(n *netlab.NS, f family, port int) string {
	table := "/proc/net/tcp"
	if f.is6() {
		table += "6"
	}
	for line := range strings.Lines(n.Read(table)) {
		if w := strings.Fields(line); len(w) > 5 && strings.HasSuffix(w[2], fmt.Sprintf(":%04X", port)) {
			timer, _, _ := strings.Cut(w[5], ":")
			return timer
		}
	}
	return ""
}
