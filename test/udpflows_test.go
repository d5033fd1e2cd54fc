// SPDX-License-Identifier: Apache-2.0

package test

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"net"
	"net/netip"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"aldente/test/netlab"
)

// burst has many clients send one datagram each, within a tenth of a second, and
// returns how many got no answer, and how many got another's.
func burst(t *testing.T, from *netlab.NS, network, addr string, clients int) (lost, crossed int) {
	t.Helper()
	to := net.UDPAddrFromAddrPort(netip.MustParseAddrPort(addr))
	all := make([]*net.UDPConn, clients)
	number := bursts.Add(1)
	for i := range all {
		err := from.Do(func() (err error) { all[i], err = net.DialUDP(network, nil, to); return })
		if err != nil {
			t.Fatal(err)
		}
		defer all[i].Close()
	}
	for i, c := range all {
		if i%100 == 99 {
			time.Sleep(5 * time.Millisecond) // or the first queue in the way holds too few of them
		}
		_, _ = c.Write(question(number, i))
	}
	deadline := time.Now().Add(3 * time.Second)
	var mu sync.Mutex
	var wg sync.WaitGroup
	for i, c := range all {
		wg.Add(1)
		go func() {
			defer wg.Done()
			_ = c.SetReadDeadline(deadline)
			b := make([]byte, 16)
			n, err := c.Read(b)
			for err == nil && n == 8 && binary.BigEndian.Uint32(b) < number {
				n, err = c.Read(b) // a late one, to whoever had this port in an earlier burst
			}
			mu.Lock()
			defer mu.Unlock()
			switch {
			case err != nil:
				lost++
			case !bytes.Equal(b[:n], question(number, i)):
				crossed++
			}
		}()
	}
	wg.Wait()
	return lost, crossed
}

// bursts counts them.
var bursts atomic.Uint32

// question is what a client of a burst asks: no two are alike.
func question(burst uint32, client int) []byte {
	return binary.BigEndian.AppendUint32(binary.BigEndian.AppendUint32(nil, burst), uint32(client))
}

// roomy has a server's socket hold a burst, as far as we may say so.
func roomy(t *testing.T, c *net.UDPConn) {
	t.Helper()
	rc, err := c.SyscallConn()
	if err == nil {
		err = rc.Control(func(fd uintptr) {
			if unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, 8<<20) != nil {
				_ = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_RCVBUF, 8<<20)
			}
		})
	}
	if err != nil {
		t.Fatal(err)
	}
}

// TestManyClientsAtOnce: 2,000 clients of a forwarded port speak in one burst. No
// answer reaches another client, and no more is lost than by a server of the host's
// own.
func TestManyClientsAtOnce(t *testing.T) {
	needOurs(t)
	const clients = 2000
	lab := netlab.New(t, netlab.Options{})
	control := lab.Host.ListenUDP("udp", ":46802")
	roomy(t, control)
	go netlab.EchoUDP(control)
	for _, f := range families {
		for from, addr := range map[*netlab.NS]string{lab.Host: f.lo, lab.Remote: f.host} {
			t.Run(f.name+" from "+from.Name, func(t *testing.T) {
				g := lab.For(t).Guest("-u", "46801")
				server := g.ListenUDP("udp", ":46801")
				roomy(t, server)
				go netlab.EchoUDP(server)
				// A burst that meets a busy machine says little of who lost it.
				const tries = 5
				for try := 1; ; try++ {
					direct, _ := burst(t, from, "udp", f.at(addr, "46802"), clients)
					lost, crossed := burst(t, from, "udp", f.at(addr, "46801"), clients)
					t.Logf("lost %d, directly %d", lost, direct)
					if crossed > 0 {
						t.Fatalf("%d answers reached another client", crossed)
					}
					if lost <= direct {
						return
					}
					if try == tries {
						t.Fatalf("lost %d, directly %d", lost, direct)
					}
				}
			})
		}
	}
}

// TestOneClientTwoServers: one socket asks two addresses of the host, and two ports
// that lead to one of the guest's. Each answer comes from where it was asked for.
func TestOneClientTwoServers(t *testing.T) {
	needOurs(t)
	lab := netlab.New(t, netlab.Options{})
	lab.Host.IP("addr add 192.0.2.3/24 dev h0", "addr add 2001:db8:1::3/64 dev h0 nodad")
	for _, args := range [][]string{nil, {"--host-lo-to-ns-lo"}} {
		t.Run(fmt.Sprint(args), func(t *testing.T) {
			lab := lab.For(t)
			g := lab.Guest(append([]string{"-u", "46901,46902:46901"}, args...)...)
			go netlab.EchoUDP(g.ListenUDP("udp", ":46901"))
			for _, tt := range []struct {
				name  string
				from  *netlab.NS
				hosts []string
			}{
				{"remote, IPv4", lab.Remote, []string{"192.0.2.2", "192.0.2.3"}},
				{"remote, IPv6", lab.Remote, []string{"[2001:db8:1::2]", "[2001:db8:1::3]"}},
				{"loopback", lab.Host, []string{"127.0.0.1", "127.0.0.2"}},
				{"loopback, IPv6", lab.Host, []string{"[::1]"}},
			} {
				if len(args) > 0 && tt.name == "loopback" {
					tt.hosts = tt.hosts[:1] // a wildcard server does not answer from the other
				}
				t.Run(tt.name, func(t *testing.T) { oneClient(t, tt.from.For(t), tt.hosts, "46901", "46902") })
			}
		})
	}
}

// oneClient asks each port of each host, and wants the answers from there.
func oneClient(t *testing.T, from *netlab.NS, hosts []string, ports ...string) {
	c := from.ListenUDP("udp", ":0")
	b := make([]byte, 2048)
	for round := range 3 {
		sent := map[string]netip.AddrPort{}
		for _, h := range hosts {
			for _, p := range ports {
				text := fmt.Sprint(round, h, p)
				sent[text] = netip.MustParseAddrPort(h + ":" + p)
				_, _ = c.WriteToUDPAddrPort([]byte(text), sent[text])
			}
		}
		for range len(sent) {
			_ = c.SetReadDeadline(time.Now().Add(soonEnough))
			n, from, err := c.ReadFromUDPAddrPort(b)
			from = netip.AddrPortFrom(from.Addr().Unmap(), from.Port())
			if err != nil || from != sent[string(b[:n])] {
				t.Errorf("round %d: %q from %v, %v", round, b[:n], from, err)
			}
		}
	}
}

// socketsOn counts the host's UDP sockets on a port.
func socketsOn(n *netlab.NS, port uint16) (count int) {
	for _, f := range []string{"/proc/net/udp", "/proc/net/udp6"} {
		for line := range strings.Lines(n.Read(f)) {
			if w := strings.Fields(line); len(w) > 1 && strings.HasSuffix(w[1], fmt.Sprintf(":%04X", port)) {
				count++
			}
		}
	}
	return count
}

// TestSourcesWithoutNumber sends from 10,000 ports to a forwarded one: the guest gets
// it all and answers none. No socket is opened for any, and neither what the guest
// has begun nor whom it has answered loses its socket.
func TestSourcesWithoutNumber(t *testing.T) {
	needOurs(t)
	lab := netlab.New(t, netlab.Options{})
	for _, f := range families {
		tellSource(lab.Remote, f.at(f.remote, "7"))
	}
	g := lab.Guest("-u", "47001")
	server := g.ListenUDP("udp", ":47001")
	go func() {
		b := make([]byte, 64)
		for {
			n, from, err := server.ReadFromUDPAddrPort(b)
			if err != nil {
				return
			}
			if string(b[:n]) == "q" {
				_, _ = server.WriteToUDPAddrPort([]byte("a"), from)
			}
		}
	}()
	for _, f := range families {
		answer := func(c net.Conn) {
			t.Helper()
			if _, err := fmt.Fprint(c, "q"); err != nil {
				t.Error(err)
			}
			b := make([]byte, 64)
			_ = c.SetReadDeadline(time.Now().Add(5 * time.Second))
			if n, err := c.Read(b); string(b[:n]) != "a" {
				t.Errorf("%s: %q, %v", f.name, b[:n], err)
			}
		}
		client := lab.Remote.Dial("udp", f.at(f.host, "47001"))
		answer(client)
		own := g.Dial("udp", f.at(f.remote, "7")).(*net.UDPConn)
		tell := func() string {
			b := make([]byte, 64)
			fmt.Fprint(own, "q")
			_ = own.SetReadDeadline(time.Now().Add(5 * time.Second))
			n, _ := own.Read(b)
			return string(b[:n])
		}
		port := tell()
		worker := g.Worker()
		fds, _ := os.ReadDir(fmt.Sprintf("/proc/%d/fd", worker))
		sockets := socketsOn(lab.Host, 47001)
		to := net.UDPAddrFromAddrPort(netip.MustParseAddrPort(f.at(f.host, "47001")))
		err := lab.Remote.Do(func() error {
			for p := range 10_000 {
				c, err := net.DialUDP("udp", &net.UDPAddr{Port: 20_000 + p}, to)
				if err != nil {
					continue // taken
				}
				_, _ = c.Write([]byte("forged"))
				c.Close()
			}
			return nil
		})
		if err != nil {
			t.Fatal(err)
		}
		now, _ := os.ReadDir(fmt.Sprintf("/proc/%d/fd", worker))
		if n := socketsOn(lab.Host, 47001); n != sockets || len(now) > len(fds) {
			t.Errorf("%s: %d sockets on the port, %d before; %d descriptors, %d before", f.name, n, sockets, len(now), len(fds))
		}
		time.Sleep(100 * time.Millisecond) // the guest's server takes what waits
		if got := tell(); got != port {
			t.Errorf("%s: a flow of the guest's came from %q, now %q", f.name, port, got)
		}
		answer(client)
		if n := socketsOn(lab.Host, 47001); n != sockets {
			t.Errorf("%s: %d sockets on the port, %d before", f.name, n, sockets)
		}
	}
}
