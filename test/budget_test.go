// SPDX-License-Identifier: Apache-2.0

package test

import (
	"context"
	"encoding/binary"
	"fmt"
	"net"
	"net/netip"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"aldente/test/netlab"
)

// Places behind the default route that swallow what is sent there.
const (
	silent4 = "198.51.100.50"
	silent6 = "2001:db8:2::50"
)

// synStorm sends n SYNs from the namespace to as many ports of dst, as a program
// with a raw socket does that waits for nothing.
func synStorm(t *testing.T, ns *netlab.NS, dst string, n int) {
	t.Helper()
	to := netip.MustParseAddr(dst)
	domain := unix.AF_INET
	var sa unix.Sockaddr = &unix.SockaddrInet4{Addr: [4]byte{}}
	if to.Is4() {
		sa = &unix.SockaddrInet4{Addr: to.As4()}
	} else {
		domain, sa = unix.AF_INET6, &unix.SockaddrInet6{Addr: to.As16()}
	}
	err := ns.Do(func() error {
		// Where the kernel would send from.
		c, err := net.Dial("udp", netip.AddrPortFrom(to, 9).String())
		if err != nil {
			return err
		}
		from := c.LocalAddr().(*net.UDPAddr).AddrPort().Addr().Unmap()
		c.Close()
		fd, err := unix.Socket(domain, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.IPPROTO_TCP)
		if err != nil {
			return err
		}
		defer unix.Close(fd)
		for i := range n {
			b := make([]byte, 20)
			binary.BigEndian.PutUint16(b, uint16(10000+i%50000))
			binary.BigEndian.PutUint16(b[2:], uint16(1+i/50000))
			binary.BigEndian.PutUint32(b[4:], uint32(i))
			b[12], b[13], b[14] = 5<<4, 2, 0xff
			binary.BigEndian.PutUint16(b[16:], ^sum16(from.AsSlice(), to.AsSlice(), []byte{0, unix.IPPROTO_TCP, 0, 20}, b))
			for unix.Sendto(fd, b, 0, sa) == unix.ENOBUFS {
				time.Sleep(time.Millisecond)
			}
			if i%100 == 99 { // 30,000 in about three seconds
				time.Sleep(9 * time.Millisecond)
			}
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
}

// sum16 is the ones' complement sum of RFC 1071.
func sum16(parts ...[]byte) uint16 {
	var s uint32
	for _, p := range parts {
		for i := 0; i+1 < len(p); i += 2 {
			s += uint32(binary.BigEndian.Uint16(p[i:]))
		}
	}
	for s>>16 != 0 {
		s = s&0xffff + s>>16
	}
	return uint16(s)
}

// answers tells whether a new connection from the namespace is served.
func answers(ns *netlab.NS, addr string) error {
	if got, err := netlab.Ask(ns, "tcp", addr, "hello"); err != nil || got != "hello" {
		return fmt.Errorf("answer %q, %v", got, err)
	}
	return nil
}

// inState counts the host's TCP sockets in a state of /proc/net/tcp.
func inState(ns *netlab.NS, state string) (n int) {
	for _, file := range []string{"/proc/net/tcp", "/proc/net/tcp6"} {
		for line := range strings.Lines(ns.Read(file)) {
			if f := strings.Fields(line); len(f) > 3 && f[3] == state {
				n++
			}
		}
	}
	return n
}

const synSent = "02"

// TestStormOfConnects: 30,000 connections that a guest begins and that nobody
// answers are a bounded number of the host's, in all and at a time, and the guest
// can open others right behind them.
func TestStormOfConnects(t *testing.T) {
	needOurs(t)
	for _, tt := range []struct{ dst, far string }{{silent4, "192.0.2.9:7"}, {silent6, "[2001:db8:1::9]:7"}} {
		t.Run(tt.dst, func(t *testing.T) {
			lab := netlab.New(t, netlab.Options{})
			go netlab.Echo(lab.Remote.Listen("tcp", tt.far))
			g := lab.Guest("--limit", "new=50/s")
			before, start := lab.Host.Counters(), time.Now()
			synStorm(t, g.NS, tt.dst, 30000)
			took := time.Since(start)
			opens := lab.Host.Since(before, "TcpActiveOpens")["TcpActiveOpens"]
			t.Logf("%d connects within %v, %d under way", opens, took, inState(lab.Host, synSent))
			if most := int64(400 + 50*(took.Seconds()+5)); opens > most || opens < 100 {
				t.Errorf("%d connects, %d are allowed", opens, most)
			}
			if !eventually(10*time.Second, func() bool { return answers(g.NS, tt.far) == nil }) {
				t.Errorf("no new connection: %v\n%s", answers(g.NS, tt.far), g.Proc.Output())
			}
			out := g.Proc.Output()
			if n := strings.Count(out, "TCP connections that nobody answers"); n < 1 || n > int(took.Seconds())+3 {
				t.Errorf("%d lines in the log:\n%s", n, out)
			}
		})
	}
}

// TestFilteredPort: without a limit on their number a second, connections that
// nobody answers end as new ones come, the oldest first.
func TestFilteredPort(t *testing.T) {
	needOurs(t)
	lab := netlab.New(t, netlab.Options{})
	go netlab.Echo(lab.Remote.Listen("tcp", "192.0.2.9:7"))
	g := lab.Guest("--limit", "half-open=100,new=none")
	synStorm(t, g.NS, silent4, 3000)
	if !eventually(10*time.Second, func() bool { n := inState(lab.Host, synSent); return n > 0 && n <= 101 }) {
		t.Errorf("%d connections under way", inState(lab.Host, synSent))
	}
	// Those that wait take nobody's place: at once, not when the kernel gives up.
	for range 20 {
		if err := answers(g.NS, "192.0.2.9:7"); err != nil {
			t.Fatalf("%v\n%s", err, g.Proc.Output())
		}
	}
}

// TestIdleInbound: with few descriptors, connections that come in and stay do not
// keep others from going out, by the link and past it.
func TestIdleInbound(t *testing.T) {
	heavy(t)
	needOurs(t)
	for name, from := range map[string]func(l *netlab.Lab) (*netlab.NS, string){
		"remote": func(l *netlab.Lab) (*netlab.NS, string) { return l.Remote, "192.0.2.2:10510" },
		"bypass": func(l *netlab.Lab) (*netlab.NS, string) { return l.Host, "127.0.0.1:10510" },
	} {
		t.Run(name, func(t *testing.T) {
			lab := netlab.New(t, netlab.Options{})
			go netlab.Echo(lab.Remote.Listen("tcp", "192.0.2.9:7"))
			go netlab.EchoUDP(lab.Remote.ListenUDP("udp", "192.0.2.9:7"))
			g := lab.GuestWith(netlab.GuestSpec{Args: []string{"--config-net", "-t", "10510"},
				Wrap: []string{"bash", "-c", `ulimit -n 1024; exec "$@"`, "bash"}})
			go netlab.Echo(g.Listen("tcp", ":10510"))
			ns, addr := from(lab)
			idle := 0
			for range 1100 {
				// Beyond what is taken they wait in the backlog, as connected.
				c, err := ns.DialError("tcp", addr, 2*time.Second)
				if err != nil {
					break
				}
				t.Cleanup(func() { c.Close() })
				idle++
			}
			if idle != 1100 {
				t.Errorf("%d of 1,100 connections wait, others were refused", idle)
			}
			for range 20 {
				c, err := g.DialError("tcp", "192.0.2.9:7", 5*time.Second)
				if err != nil {
					t.Fatalf("%v\n%s", err, g.Proc.Output())
				}
				t.Cleanup(func() { c.Close() })
			}
			if err := answers(g.NS, "192.0.2.9:7"); err != nil {
				t.Error(err)
			}
			if got, err := netlab.Ask(g.NS, "udp", "192.0.2.9:7", "hello"); err != nil || got != "hello" {
				t.Errorf("UDP: %q, %v", got, err)
			}
		})
	}
}

// TestHostileBudget: a captured worker opens as much as an honest one may, and no
// more.
func TestHostileBudget(t *testing.T) {
	needOurs(t)
	lab := netlab.New(t, netlab.Options{})
	for _, tt := range []struct{ script, want string }{
		{"hold=400,udp,192.0.2.9,7", "300 held, then none"},
		{"hold=400,udp,2001:db8:1::9,7", "300 held, then none"},
		{"hold=100,icmp,192.0.2.9,0", "20 held, then none"},
		{"hold=100,icmpv6,2001:db8:1::9,0", "20 held, then none"},
		{"hold=400,tcp," + silent4 + ",9", "400 held"},
		{"hold=400,tcp," + silent6 + ",9", "400 held"},
	} {
		t.Run(tt.script, func(t *testing.T) {
			g := hostileGuest(t, lab, tt.script, "--limit", "udp=300,icmp=20,half-open=30,new=none")
			if got := told(t, g, tt.script); got != tt.want {
				t.Errorf("said %q, want %q", got, tt.want)
			}
			if n := inState(lab.Host, synSent); n > 31 || strings.Contains(tt.script, "tcp") && n == 0 {
				t.Errorf("%d connections under way", n)
			}
			if g.Proc.Exited() {
				t.Error("the broker is gone")
			}
		})
	}
}

// bound counts how many of n clients on the host get a UDP port.
func bound(t *testing.T, ns *netlab.NS, n int) (got int) {
	t.Helper()
	_ = ns.Do(func() error {
		for range n {
			c, err := (&net.ListenConfig{}).ListenPacket(context.Background(), "udp", ":0")
			if err == nil {
				got++
				t.Cleanup(func() { c.Close() })
			}
		}
		return nil
	})
	return got
}

// TestThreeGuests: three guests that hold all they get, and go on asking, leave
// the host its ports and connections, and serve a fourth.
func TestThreeGuests(t *testing.T) {
	heavy(t)
	needOurs(t)
	lab := netlab.New(t, netlab.Options{})
	go netlab.Echo(lab.Remote.Listen("tcp", "192.0.2.9:7"))
	go netlab.EchoUDP(lab.Remote.ListenUDP("udp", "192.0.2.9:7"))
	fourth := lab.Guest()
	alone := perSecond(t, fourth.NS, "192.0.2.9:7")
	holds := "hold=12000,udp,192.0.2.9,7 hold=1500,tcp," + silent4 + ",9"
	script := holds + " burst=3000000,udp,192.0.2.9,7" // ends with its worker
	var worst []*netlab.Guest
	for range 3 {
		worst = append(worst, lab.GuestWith(netlab.GuestSpec{Binary: filepath.Join(captives(t, captiveWorker), "pasta"),
			Args: []string{"--config-net", "--hostname", script}}))
	}
	var wg sync.WaitGroup
	for _, g := range worst {
		wg.Go(func() {
			for word := range strings.FieldsSeq(holds) {
				t.Log(told(t, g, word))
			}
		})
	}
	wg.Wait()
	if n := bound(t, lab.Host, 500); n != 500 {
		t.Errorf("%d of 500 clients on the host have a port", n)
	}
	for range 100 {
		if err := answers(lab.Host, "192.0.2.9:7"); err != nil {
			t.Fatalf("a client on the host: %v", err)
		}
	}
	for range 100 {
		if err := answers(fourth.NS, "192.0.2.9:7"); err != nil {
			t.Fatalf("the fourth guest: %v", err)
		}
		if got, err := netlab.Ask(fourth.NS, "udp", "192.0.2.9:7", "hello"); err != nil || got != "hello" {
			t.Fatalf("the fourth guest: UDP %q, %v", got, err)
		}
	}
	t.Logf("the fourth guest's connections in a second: %d alone, %d beside the three", alone, perSecond(t, fourth.NS, "192.0.2.9:7"))
}

// perSecond counts the connections that ask and are answered within a second.
func perSecond(t *testing.T, n *netlab.NS, to string) (count int) {
	t.Helper()
	for end := time.Now().Add(time.Second); time.Now().Before(end); count++ {
		if err := answers(n, to); err != nil {
			t.Fatal(err)
		}
	}
	return count
}

// TestOrdinaryGuests: what ordinary guests do meets no limit: a resolver's 4,000
// questions from as many ports, and a build's 500 connections at a time.
func TestOrdinaryGuests(t *testing.T) {
	heavy(t)
	needOurs(t)
	lab := netlab.New(t, netlab.Options{})
	go netlab.Echo(lab.Remote.Listen("tcp", "192.0.2.9:7"))
	go netlab.EchoUDP(lab.Remote.ListenUDP("udp", "192.0.2.9:7"))
	g := lab.Guest()
	to := &unix.SockaddrInet4{Port: 7, Addr: [4]byte{192, 0, 2, 9}}
	var fds []int
	defer func() {
		for _, fd := range fds {
			unix.Close(fd)
		}
	}()
	if err := g.Do(func() error {
		for range 4000 {
			fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
			if err == nil {
				err = unix.Connect(fd, to)
			}
			if err != nil {
				return err
			}
			fds = append(fds, fd)
		}
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	open := map[int]bool{}
	for k, fd := range fds {
		open[fd] = true
		_, _ = unix.Write(fd, []byte("question"))
		if k%50 == 49 { // not faster than one queue of ours or the echo's takes them
			time.Sleep(5 * time.Millisecond)
		}
	}
	// Asked again where an answer is missing, by the same port: it is still its own.
	for range 10 {
		time.Sleep(500 * time.Millisecond)
		for fd := range open {
			var b [64]byte
			if n, err := unix.Read(fd, b[:]); err == nil && string(b[:n]) == "question" {
				delete(open, fd)
				continue
			}
			_, _ = unix.Write(fd, []byte("question"))
		}
	}
	if len(open) > 0 {
		t.Errorf("%d of 4,000 questions were never answered", len(open))
	}
	for range 500 {
		c, err := g.DialError("tcp", "192.0.2.9:7", 5*time.Second)
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
	}
	for _, bad := range []string{"as it may", "too fast", "few UDP ports", "no room"} {
		if out := g.Proc.Output(); strings.Contains(out, bad) {
			t.Errorf("%q in the log:\n%s", bad, out)
		}
	}
}
