// SPDX-License-Identifier: Apache-2.0

package stream

import (
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"aldente/test/machine"
	"aldente/test/netlab"
	"aldente/test/stream/standin"
)

// guest is a namespace behind the stream socket.
type guest struct {
	*netlab.NS
	in *standin.Process
}

// join makes a guest with the host's addresses.
func (p *passt) join(t *testing.T, mtu int) *guest {
	t.Helper()
	g := newGuest(t)
	g.attach(t, p, mtu)
	return g
}

func newGuest(t *testing.T) *guest {
	t.Helper()
	g := &guest{NS: netlab.NewNS(t, "guest")}
	g.Sysctl("net/ipv6/conf/default/accept_ra", "0") // it has all it needs
	return g
}

// attach gives the guest a network card that is joined to passt.
func (g *guest) attach(t *testing.T, p *passt, mtu int) {
	t.Helper()
	g.attachBy(t, mtu, func() (*standin.Process, error) { return standin.Start(p.Path) })
}

// attachSame is attach by a process that is always the same client to passt.
func (g *guest) attachSame(t *testing.T, p *passt, mtu int) {
	t.Helper()
	c := p.connect(t)
	defer c.Close()
	f, err := c.File()
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if err := unix.SetNonblock(int(f.Fd()), false); err != nil {
		t.Fatal(err)
	}
	g.attachBy(t, mtu, func() (*standin.Process, error) { return standin.StartOn(f) })
}

func (g *guest) attachBy(t *testing.T, mtu int, start func() (*standin.Process, error)) {
	t.Helper()
	err := g.Do(func() (err error) { g.in, err = start(); return })
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(g.in.Kill)
	dev := standin.Interface
	g.IP(fmt.Sprintf("link set %s address %s mtu %d txqueuelen 10000 up", dev, guestMAC, mtu),
		"addr add "+netlab.Host4+"/24 dev "+dev, "route add default via "+netlab.Gateway4,
		"addr add "+netlab.Host6+"/64 dev "+dev+" nodad", "-6 route add default via "+netlab.Gateway6+" dev "+dev)
}

var families = []struct{ name, remote string }{{"IPv4", "192.0.2.9"}, {"IPv6", "[2001:db8:1::9]"}}

// TestTransfer has guests that compute and verify every checksum.
func TestTransfer(t *testing.T) {
	for _, mtu := range []int{1280, 1500, 9000, 65520} {
		t.Run(fmt.Sprint(mtu), func(t *testing.T) {
			lab := netlab.New(t, netlab.Options{})
			g := start(t, lab, "-m", fmt.Sprint(mtu)).join(t, mtu)
			before := g.Counters()
			for _, f := range families {
				for _, down := range []bool{false, true} {
					addr := f.remote + ":5001"
					if err := netlab.Transfer(g.NS, lab.Remote, addr, addr, 64<<20, down, 30*time.Second); err != nil {
						t.Errorf("%s, down=%v: %v", f.name, down, err)
					}
				}
			}
			for k, v := range g.Since(before, "TcpInCsumErrors", "TcpExtTCPTimeouts", "IpInHdrErrors", "Ip6InHdrErrors") {
				// A loaded machine may keep an acknowledgment from a guest
				// for longer than its least time-out.
				if v > 0 && (k != "TcpExtTCPTimeouts" || v > 2) {
					t.Errorf("%s: %d", k, v)
				}
			}
		})
	}
}

// TestStalled stops the guest's side in the middle of transfers. passt has to
// wait for it, and must not lose the thread.
func TestStalled(t *testing.T) {
	for _, down := range []bool{false, true} {
		t.Run(fmt.Sprintf("down=%v", down), func(t *testing.T) {
			lab := netlab.New(t, netlab.Options{})
			p := start(t, lab, "-m", "1500")
			g := p.join(t, 1500)
			stop := make(chan struct{})
			done := make(chan struct{})
			go func() {
				defer close(done)
				for {
					_ = g.in.Signal(syscall.SIGSTOP)
					time.Sleep(100 * time.Millisecond)
					_ = g.in.Signal(syscall.SIGCONT)
					select {
					case <-stop:
						return
					case <-time.After(50 * time.Millisecond):
					}
				}
			}()
			const addr = "192.0.2.9:5001"
			err := netlab.Transfer(g.NS, lab.Remote, addr, addr, 128<<20, down, 60*time.Second)
			close(stop)
			<-done
			if err != nil {
				t.Error(err)
			}
		})
	}
}

// TestReconnect loses the guest's side in the middle of transfers; the same
// client comes back and the flows go on.
func TestReconnect(t *testing.T) {
	for _, down := range []bool{false, true} {
		t.Run(fmt.Sprintf("down=%v", down), func(t *testing.T) {
			lab := netlab.New(t, netlab.Options{})
			p := start(t, lab, "-m", "1500")
			g := newGuest(t)
			g.attachSame(t, p, 1500)
			const addr = "192.0.2.9:5001"
			result := make(chan error, 1)
			go func() {
				result <- netlab.Transfer(g.NS, lab.Remote, addr, addr, 256<<20, down, 60*time.Second)
			}()
			for range 2 {
				time.Sleep(100 * time.Millisecond)
				g.in.Kill()
				time.Sleep(50 * time.Millisecond)
				g.attachSame(t, p, 1500)
			}
			if err := <-result; err != nil {
				t.Error(err)
			}
		})
	}
}

// TestAnotherClient has another process take over: nothing of the first one's is
// left for it, neither flows nor the worker that served them.
func TestAnotherClient(t *testing.T) {
	machine.NeedOurs(t)
	lab := netlab.New(t, netlab.Options{})
	p := start(t, lab, "-m", "1500", "-t", "8080")
	ln := lab.Remote.Listen("tcp", ":5002")
	accepted := make(chan net.Conn, 1)
	go func() {
		if c, err := ln.Accept(); err == nil {
			accepted <- c
		}
	}()
	first := p.join(t, 1500)
	conn := first.Dial("tcp", "192.0.2.9:5002")
	if _, err := conn.Write([]byte("x")); err != nil {
		t.Fatal(err)
	}
	far := <-accepted
	defer far.Close()
	if _, err := io.ReadFull(far, make([]byte, 1)); err != nil {
		t.Fatal(err)
	}
	worker := p.Worker(t)
	first.in.Kill()
	_ = far.SetReadDeadline(time.Now().Add(300 * time.Millisecond))
	if _, err := far.Read(make([]byte, 1)); !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("ended before another client came: %v", err)
	}
	second := p.join(t, 1500)
	go netlab.Echo(second.Listen("tcp", ":8080"))
	_ = far.SetReadDeadline(time.Now().Add(10 * time.Second))
	if _, err := far.Read(make([]byte, 1)); errors.Is(err, os.ErrDeadlineExceeded) {
		t.Error("a connection of the first client lives on")
	}
	if st, out := second.Run("ping", "-c", "1", "-W", "5", "192.0.2.9"); st != 0 {
		t.Error(out)
	}
	if got, err := netlab.Ask(lab.Remote, "tcp", netlab.Host4+":8080", "?"); got != "?" {
		t.Errorf("a forwarded port: %q, %v", got, err)
	}
	if now := p.Worker(t); now == worker {
		t.Error("the worker of the first client serves the second")
	}
	if strings.Contains(p.Output(), "worker ended") {
		t.Errorf("taken for a failure:\n%s", p.Output())
	}

	second.in.Kill() // a client that comes back keeps the worker
	p.nextWorks(t)
	worker = p.Worker(t)
	for range 3 {
		p.nextWorks(t)
	}
	if now := p.Worker(t); now != worker {
		t.Error("a client that comes back gets another worker")
	}
}

// TestInboundBeforeGuestSpeaks connects to a guest that has sent nothing.
func TestInboundBeforeGuestSpeaks(t *testing.T) {
	lab := netlab.New(t, netlab.Options{})
	p := start(t, lab, "-t", "8080:80")
	g := p.join(t, 65520)
	for _, ln := range []string{"0.0.0.0:80", "[::]:80"} {
		network := "tcp4"
		if ln[0] == '[' {
			network = "tcp6"
		}
		go netlab.Echo(g.Listen(network, ln))
	}
	var errs error
	for _, addr := range []string{netlab.Host4, "[" + netlab.Host6 + "]"} {
		if got, err := netlab.Ask(lab.Remote, "tcp", addr+":8080", "hello"); err != nil || got != "hello" {
			errs = errors.Join(errs, fmt.Errorf("%s: %q, %v", addr, got, err))
		}
	}
	if errs != nil {
		t.Error(errs)
	}
}

// TestPing goes out through ping sockets.
func TestPing(t *testing.T) {
	lab := netlab.New(t, netlab.Options{})
	p := start(t, lab)
	g := p.join(t, 65520)
	for _, addr := range []string{"192.0.2.9", "2001:db8:1::9", "198.51.100.9", "2001:db8:2::9"} {
		if st, out := g.Run("ping", "-c", "2", "-i", "0.1", "-W", "2", addr); st != 0 {
			t.Errorf("%s: %s", addr, out)
		}
	}
}
