// SPDX-License-Identifier: Apache-2.0

package test

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"aldente/broker/control/api"
	"aldente/test/netlab"

	"golang.org/x/sys/unix"
)

// What has brought other user-mode networks down, by their guests or by
// peers; docs/testing.md lists where each kind is tested.

// TestNoHelpers speaks the protocols that slirp rewrote in passing (FTP, IRC's
// DCC, ident and others, CVE-2019-6778, CVE-2020-7039, CVE-2020-8608): here
// bytes are bytes.
func TestNoHelpers(t *testing.T) {
	lab := netlab.New(t, netlab.Options{})
	g := lab.Guest("-t", "10001")
	long := strings.Repeat("9", 2000)
	for port, said := range map[int]string{
		21:   "PORT 192,0,2,2,200,13\r\n227 Entering Passive Mode (192,0,2,2,200,13)\r\nPORT " + long + "\r\n",
		113:  "50000, 113\r\n" + long + ", " + long + "\r\n",
		514:  "0\x00root\x00root\x00" + long + "\x00",
		544:  "50000\x00" + long + "\x00",
		6667: "\x01DCC CHAT chat 3221225986 50000\x01\r\n\x01DCC SEND f 3221225986 50000 " + long + "\x01\r\n",
		7070: "PNA\x00\x0a\x00\x01\x00\x04" + long,
		5060: "INVITE sip:a@192.0.2.2 SIP/2.0\r\nContact: <sip:a@192.0.2.2:5060>\r\n\r\n",
	} {
		go netlab.Echo(lab.Remote.Listen("tcp", fmt.Sprintf("192.0.2.9:%d", port)))
		if got, err := netlab.Ask(g.NS, "tcp", fmt.Sprintf("192.0.2.9:%d", port), said); err != nil || got != said {
			t.Errorf("port %d: %d bytes of %d came back, or others; %v", port, len(got), len(said), err)
		}
	}
}

// TestNowhereElse looks for sockets by which anybody could command an instance
// (CVE-2021-4024 was a control port open to the network): it listens on the
// ports that it was asked to forward, and by one local socket that shows and changes
// nothing.
func TestNowhereElse(t *testing.T) {
	needOurs(t)
	lab := netlab.New(t, netlab.Options{})
	g := lab.Guest("-t", "10001")
	ours := map[string]bool{}
	for _, p := range g.Processes() {
		fds, _ := filepath.Glob(fmt.Sprintf("/proc/%d/fd/*", p))
		for _, fd := range fds {
			if l, _ := os.Readlink(fd); strings.HasPrefix(l, "socket:[") {
				ours[strings.TrimSuffix(l[len("socket:["):], "]")] = true
			}
		}
	}
	// Column 9 of these tables is the inode, column 3 the state, 0A: listens.
	listens := 0
	for _, table := range []string{"tcp", "tcp6", "udp", "udp6", "raw", "raw6"} {
		for line := range strings.Lines(lab.Host.Read("/proc/net/" + table)) {
			f := strings.Fields(line)
			if len(f) < 10 || !ours[f[9]] {
				continue
			}
			_, port, _ := strings.Cut(f[1], ":")
			if listens++; port != fmt.Sprintf("%04X", 10001) || !strings.HasPrefix(table, "tcp") {
				t.Errorf("a socket in %s: %s", table, line)
			}
		}
	}
	if listens == 0 {
		t.Error("the forwarded port was not found")
	}
	status := 0
	for line := range strings.Lines(lab.Host.Read("/proc/net/unix")) {
		// Flags 0x10000: it accepts connections. A path or an abstract name
		// would be the eighth field.
		f := strings.Fields(line)
		switch {
		case len(f) < 7 || !ours[f[6]] || f[3] != "00010000" && len(f) == 7:
		case len(f) == 8 && slices.Contains(g.Processes(), pidOf(f[7])):
			status++ // whom that one answers is for TestStatusOtherUsers and TestStatusGuest
		default:
			t.Errorf("a local socket that others can reach: %s", line)
		}
	}
	if status != 1 {
		t.Errorf("%d status sockets", status)
	}
}

// pidOf is the process number in the name of a status socket, as /proc/net/unix shows
// it; zero if it is another name.
func pidOf(name string) int {
	pid, _ := strings.CutPrefix(name, "@"+api.Prefix)
	n, _ := strconv.Atoi(pid)
	return n
}

// TestAwkwardTraffic sends what has ended others by an assertion or a loop:
// broadcasts and multicasts, echo with identifier 0, bursts, ports and
// addresses where nobody is.
func TestAwkwardTraffic(t *testing.T) {
	needOurs(t)
	lab := netlab.New(t, netlab.Options{})
	g := lab.Guest()
	go netlab.Echo(lab.Remote.Listen("tcp", "192.0.2.9:7"))
	pid := mustWorker(t, g)
	u, err := rawUDP(g.NS)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(u)
	for _, to := range []string{"255.255.255.255", "192.0.2.255", "224.0.0.1", "239.255.255.250", "192.0.2.1", "192.0.2.9", "192.0.2.66", "0.0.0.0"} {
		sa := &unix.SockaddrInet4{Port: 9999, Addr: [4]byte(net.ParseIP(to).To4())}
		for n := range 300 {
			_ = unix.Sendto(u, bytes.Repeat([]byte{byte(n)}, n*4), 0, sa)
		}
	}
	if err := echoZero(g.NS, "192.0.2.9"); err != nil {
		t.Errorf("echo with identifier 0: %v", err)
	}
	if got, err := netlab.Ask(g.NS, "tcp", "192.0.2.9:7", "still there"); got != "still there" {
		t.Errorf("%q, %v", got, err)
	}
	if now := g.Worker(); now != pid {
		t.Errorf("worker %d has become %d\n%s", pid, now, g.Proc.Output())
	}
	calm(t, pid)
}

// rawUDP is a socket that may send to anybody.
func rawUDP(n *netlab.NS) (fd int, err error) {
	err = n.Do(func() error {
		fd, err = unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
		return err
	})
	if err == nil {
		err = unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_BROADCAST, 1)
	}
	return fd, err
}

// echoZero asks for an echo with identifier 0 and waits for the reply.
func echoZero(n *netlab.NS, to string) error {
	var c *net.IPConn
	err := n.Do(func() (err error) { c, err = net.ListenIP("ip4:icmp", nil); return })
	if err != nil {
		return err
	}
	defer c.Close()
	// What else comes, of hundreds of datagrams, is not to fill the buffer.
	raw, err := c.SyscallConn()
	if err != nil {
		return err
	}
	const icmpFilter = 1 // include/uapi/linux/icmp.h
	if e := raw.Control(func(fd uintptr) { err = unix.SetsockoptInt(int(fd), unix.SOL_RAW, icmpFilter, ^1) }); e != nil || err != nil {
		return errors.Join(e, err)
	}
	_ = c.SetDeadline(time.Now().Add(3 * time.Second))
	if _, err := c.WriteTo([]byte{8, 0, 0xf7, 0xfe, 0, 0, 0, 1}, &net.IPAddr{IP: net.ParseIP(to)}); err != nil {
		return err
	}
	for b := make([]byte, 1500); ; {
		k, _, err := c.ReadFrom(b)
		if err != nil {
			return err
		}
		if k >= 8 && b[0] == 0 && bytes.Equal(b[4:8], []byte{0, 0, 0, 1}) {
			return nil
		}
	}
}

// calm fails the test if a process goes on working though nothing happens.
func calm(t *testing.T, pid int) {
	t.Helper()
	time.Sleep(300 * time.Millisecond)
	before := netlab.Switches(pid)
	cpu := netlab.CPU(pid)
	time.Sleep(time.Second)
	if n, d := netlab.Switches(pid)-before, netlab.CPU(pid)-cpu; n > 200 || d > 200*time.Millisecond {
		t.Errorf("process %d: %d wake-ups and %v of processor time in a second without work", pid, n, d)
	}
}

// TestNoStorm leaves sockets readable, hung up and in error while the guest
// takes nothing: none of that may keep the worker busy.
func TestNoStorm(t *testing.T) {
	needOurs(t)
	lab := netlab.New(t, netlab.Options{})
	g := lab.Guest("-t", "10001")
	full := lab.Remote.Listen("tcp", "192.0.2.9:5000")
	ended := lab.Remote.Listen("tcp", "192.0.2.9:5001")
	for _, ln := range []net.Listener{full, ended} {
		c := g.Dial("tcp", ln.Addr().String()) // and nobody reads
		s, err := ln.Accept()
		if err != nil {
			t.Fatal(err)
		}
		defer s.Close()
		_ = c.(*net.TCPConn).SetReadBuffer(4096)
		_ = s.SetWriteDeadline(time.Now().Add(300 * time.Millisecond))
		_, _ = io.Copy(s, zeros{})
		if ln == ended {
			_ = s.(*net.TCPConn).CloseWrite()
		}
	}
	// Inbound: the guest accepts and does not read.
	in := g.Listen("tcp", ":10001")
	c := lab.Remote.Dial("tcp", netlab.Host4+":10001")
	if _, err := in.Accept(); err != nil {
		t.Fatal(err)
	}
	_ = c.SetWriteDeadline(time.Now().Add(300 * time.Millisecond))
	_, _ = io.Copy(c, zeros{})
	c.Close()
	// Errors wait on sockets of datagrams.
	for range 20 {
		fmt.Fprint(g.Dial("udp", "192.0.2.9:9"), "nobody")
	}
	calm(t, mustWorker(t, g))
}

type zeros struct{}

func (zeros) Read(b []byte) (int, error) { clear(b); return len(b), nil }

// TestInterrupted sends the worker signals all the time that connections past
// the link move data: a call that was interrupted is made again, not for ever.
func TestInterrupted(t *testing.T) {
	needOurs(t)
	lab := netlab.New(t, netlab.Options{})
	g := lab.Guest("-t", "10001")
	pid := mustWorker(t, g)
	var over atomic.Bool
	signals := make(chan int)
	go func() {
		n := 0
		for ; !over.Load(); n++ {
			_ = syscall.Kill(pid, syscall.SIGURG) // which Go sends itself, to switch goroutines
			time.Sleep(50 * time.Microsecond)
		}
		signals <- n
	}()
	for _, down := range []bool{false, true} {
		if err := netlab.Transfer(lab.Host, g.NS, ":10001", "127.0.0.1:10001", 32<<20, down, time.Minute); err != nil {
			t.Error(err)
		}
	}
	over.Store(true)
	t.Logf("%d signals", <-signals)
	if now := g.Worker(); now != pid {
		t.Errorf("worker %d has become %d", pid, now)
	}
	calm(t, pid)
}

// TestDatagramRace has a stranger send to each port that a flow is about to
// have: between bind and connect its socket must not hear him, or the guest
// would take his datagrams for its peer's.
func TestDatagramRace(t *testing.T) {
	lab := netlab.New(t, netlab.Options{})
	g := lab.Guest()
	go netlab.EchoUDP(lab.Remote.ListenUDP("udp", "192.0.2.9:7"))
	stranger := lab.Remote.ListenUDP("udp", "192.0.2.9:666")
	const first, count = 40000, 400
	var over atomic.Bool
	var port atomic.Int32
	port.Store(first)
	defer over.Store(true)
	for range 2 {
		go func() {
			for !over.Load() {
				_, _ = stranger.WriteTo([]byte("stranger"), &net.UDPAddr{IP: net.ParseIP(netlab.Host4), Port: int(port.Load())})
			}
		}()
	}
	for k := range count {
		port.Store(int32(first + k))
		var c *net.UDPConn
		err := g.Do(func() (err error) {
			c, err = net.DialUDP("udp", &net.UDPAddr{Port: first + k}, &net.UDPAddr{IP: net.ParseIP("192.0.2.9"), Port: 7})
			return
		})
		if err != nil {
			t.Fatal(err)
		}
		b, n := make([]byte, 100), 0
		for range 5 { // in such a crowd one may be lost
			_ = c.SetDeadline(time.Now().Add(time.Second))
			fmt.Fprint(c, "friend")
			if n, err = c.Read(b); err == nil {
				break
			}
		}
		if string(b[:n]) != "friend" {
			t.Errorf("port %d: %q, %v", first+k, b[:n], err)
		}
		c.Close()
	}
}

// TestClosedDescriptors starts without standard input, output and error: what is
// opened first must not take their place.
func TestClosedDescriptors(t *testing.T) {
	lab := netlab.New(t, netlab.Options{NoRemote: true})
	for _, closed := range []string{"<&-", ">&-", "2>&-", "<&- >&- 2>&-"} {
		t.Run(closed, func(t *testing.T) {
			lab := lab.For(t)
			argv := append([]string{"sh", "-c", `exec "$@" ` + closed, "sh", netlab.Pasta()}, netlab.NoForward()...)
			argv = append(argv, "--config-net", "--", "sh", "-c", "ip route | grep -q default")
			p := lab.Host.Start(netlab.Spec{Args: argv, User: netlab.Nobody, Timeout: 20 * time.Second})
			if st := p.Wait(); st != 0 {
				t.Errorf("status %d\n%s", st, p.Output())
			}
		})
	}
}
