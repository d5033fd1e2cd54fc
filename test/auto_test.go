// SPDX-License-Identifier: Apache-2.0

package test

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"aldente/test/netlab"
)

// autoDelay is within what time a port is forwarded, or not any more, after it
// was bound or let go.
const autoDelay = 1500 * time.Millisecond

// becomes tries until the answer is as wanted, "" for an error, and fails if
// that takes too long. The original may take a scan more.
func becomes(t *testing.T, ns *netlab.NS, network, addr, want string) {
	t.Helper()
	got := ""
	start := time.Now()
	for {
		if got = askSoon(ns, network, addr); got == want {
			return
		}
		if time.Since(start) > soonEnough {
			t.Errorf("%s %s: %q after %v, want %q", network, addr, got, soonEnough, want)
			return
		}
		time.Sleep(20 * time.Millisecond)
	}
}

// askSoon returns the answer to a message, "" if there is none soon: a datagram
// to a port that is forwarded and not bound just vanishes.
func askSoon(ns *netlab.NS, network, addr string) string {
	c, err := ns.DialError(network, addr, time.Second)
	if err != nil {
		return ""
	}
	defer c.Close()
	b := make([]byte, 16)
	if _, err := c.Write([]byte("?")); err != nil {
		return ""
	}
	n, _ := readWithin(c, b, 200*time.Millisecond)
	return string(b[:n])
}

// tellOnce is tellPeer for one protocol, to be closed.
func tellOnce(ns *netlab.NS, network, addr string) func() {
	if network == "udp" {
		pc := ns.ListenUDP("udp", addr)
		go netlab.EchoUDP(pc)
		return func() { pc.Close() }
	}
	ln := ns.Listen("tcp", addr)
	go netlab.Echo(ln)
	return func() { ln.Close() }
}

// TestAutoInbound binds a port in the guest, where it is forwarded to, and lets
// it go.
func TestAutoInbound(t *testing.T) {
	lab := netlab.New(t, netlab.Options{})
	g := lab.Guest("-t", "auto", "-u", "auto")
	for _, network := range []string{"tcp", "udp"} {
		for _, f := range families {
			t.Run(network+"/"+f.name, func(t *testing.T) {
				addr := f.at(f.host, "8080")
				becomes(t, lab.Remote, network, addr, "")
				closeIt := tellOnce(g.NS, network, ":8080")
				becomes(t, lab.Remote, network, addr, "?")
				becomes(t, lab.Host, network, f.at(f.lo, "8080"), "?")
				closeIt()
				becomes(t, lab.Remote, network, addr, "")
			})
		}
	}
}

// TestAutoOutbound is the same for a port of the host, from the namespace's
// loopback.
func TestAutoOutbound(t *testing.T) {
	lab := netlab.New(t, netlab.Options{})
	g := lab.Guest("-T", "auto", "-U", "auto")
	for _, network := range []string{"tcp", "udp"} {
		for _, f := range families {
			t.Run(network+"/"+f.name, func(t *testing.T) {
				addr := f.at(f.lo, "8080")
				becomes(t, g.NS, network, addr, "")
				closeIt := tellOnce(lab.Host, network, f.at(f.lo, "8080"))
				becomes(t, g.NS, network, addr, "?")
				closeIt()
				becomes(t, g.NS, network, addr, "")
			})
		}
	}
}

// TestAutoFollowsTCP forwards a UDP port whose number a TCP service has.
func TestAutoFollowsTCP(t *testing.T) {
	lab := netlab.New(t, netlab.Options{})
	g := lab.Guest("-t", "none", "-u", "auto")
	tellOnce(g.NS, "tcp", ":8080")
	becomes(t, lab.Host, "tcp", netlab.Host4+":8080", "")
	comesTrue(t, "the host has the UDP port", func() bool { return socketsOn(lab.Host, 8080) > 0 })
	tellOnce(g.NS, "udp", ":8080")
	if got, err := netlab.Ask(lab.Remote, "udp", netlab.Host4+":8080", "?"); got != "?" {
		t.Errorf("%q, %v", got, err)
	}
}

// TestAutoForms limits what is forwarded automatically.
func TestAutoForms(t *testing.T) {
	lab := netlab.New(t, netlab.Options{})
	t.Run("address", func(t *testing.T) {
		lab := lab.For(t)
		g := lab.Guest("-t", "::1/auto")
		tellOnce(g.NS, "tcp", ":8080")
		becomes(t, lab.Host, "tcp", "[::1]:8080", "?")
		becomes(t, lab.Host, "tcp", "127.0.0.1:8080", "")
	})
	t.Run("range", func(t *testing.T) {
		lab := lab.For(t)
		g := lab.Guest("-t", "8000-8010,auto")
		for _, p := range []int{8003, 8011} {
			tellOnce(g.NS, "tcp", fmt.Sprintf(":%d", p))
		}
		becomes(t, lab.Remote, "tcp", netlab.Host4+":8003", "?")
		for _, p := range []int{8004, 8011} {
			becomes(t, lab.Remote, "tcp", fmt.Sprintf("%s:%d", netlab.Host4, p), "")
		}
	})
	t.Run("remapped", func(t *testing.T) {
		needOurs(t) // passt(1) has the target's ports count; not so the program
		lab := lab.For(t)
		g := lab.Guest("-t", "9000-9010:8000-8010,auto")
		tellOnce(g.NS, "tcp", ":8003")
		becomes(t, lab.Remote, "tcp", netlab.Host4+":9003", "?")
	})
}

// TestAutoBoth has both directions on, as pasta has by default: what one listens
// on is not what the other looks for, nor does a port stay forwarded because of
// itself.
func TestAutoBoth(t *testing.T) {
	lab := netlab.New(t, netlab.Options{})
	g := lab.Guest("-t", "auto", "-u", "auto", "-T", "auto", "-U", "auto")
	closeGuest := tellOnce(g.NS, "tcp", ":8080")
	closeHost := tellOnce(lab.Host, "tcp", "127.0.0.1:9090")
	becomes(t, lab.Remote, "tcp", netlab.Host4+":8080", "?")
	becomes(t, g.NS, "tcp", "127.0.0.1:9090", "?")
	time.Sleep(2 * autoDelay)
	for _, tt := range []struct {
		ns   *netlab.NS
		addr string
	}{{lab.Remote, netlab.Host4 + ":8080"}, {g.NS, "127.0.0.1:9090"}} {
		if got, err := netlab.Ask(tt.ns, "tcp", tt.addr, "?"); got != "?" {
			t.Errorf("%s: %q, %v", tt.addr, got, err)
		}
	}
	closeGuest()
	closeHost()
	becomes(t, lab.Remote, "tcp", netlab.Host4+":8080", "")
	becomes(t, g.NS, "tcp", "127.0.0.1:9090", "")
}

// TestAutoTaken waits for a port that somebody else on the host has.
func TestAutoTaken(t *testing.T) {
	lab := netlab.New(t, netlab.Options{})
	g := lab.Guest("-t", "auto")
	taken := lab.Host.Listen("tcp", ":8080")
	tellOnce(g.NS, "tcp", ":8080")
	time.Sleep(autoDelay)
	taken.Close()
	becomes(t, lab.Remote, "tcp", netlab.Host4+":8080", "?")
}

// TestAutoAtStart forwards what is bound in a namespace before anything else
// happens: whoever waits for readiness finds it.
func TestAutoAtStart(t *testing.T) {
	needOurs(t)
	lab := netlab.New(t, netlab.Options{})
	ns := netlab.NewNS(t, "kept")
	tellOnce(ns, "tcp", ":8080")
	p := lab.StartPasta(netlab.GuestSpec{User: netlab.Root}, "--config-net", "-t", "auto", "-T", "none",
		"--netns-only", "--netns", ns.Path(), "-P", netlab.Stage()+"/auto.pid")
	if st := p.Wait(); st != 0 {
		t.Fatalf("status %d\n%s", st, p.Output())
	}
	t.Cleanup(func() { lab.Host.Run("pkill", "-F", netlab.Stage()+"/auto.pid") })
	if got, err := netlab.Ask(lab.Remote, "tcp", netlab.Host4+":8080", "?"); got != "?" {
		t.Errorf("%q, %v", got, err)
	}
}

// TestNoScan leaves an instance alone that forwards nothing automatically: no
// process wakes up, but the worker when the guest's kernel has something to say.
// What the Go runtime has left to do after a start may take some seconds; what
// looks for bound ports would wake up in each of them.
func TestNoScan(t *testing.T) {
	heavy(t)
	needOurs(t)
	lab := netlab.New(t, netlab.Options{})
	g := lab.Guest("-t", "8080", "-u", "8080", "-T", "9090", "-U", "9090")
	time.Sleep(2 * time.Second)
	for try := range 5 {
		noisy := wakeUps(lab, g, 5*time.Second)
		if noisy == "" {
			return
		}
		t.Logf("window %d: %s", try, noisy)
	}
	t.Error("never quiet for five seconds")
}

// wakeUps tells which processes of a guest's woke up more than once within a
// time, besides the worker.
func wakeUps(lab *netlab.Lab, g *netlab.Guest, d time.Duration) (noisy string) {
	before := map[int]int64{}
	for _, p := range g.Processes() {
		if p != g.Worker() {
			before[p] = netlab.Switches(p)
		}
	}
	time.Sleep(d)
	for p, n := range before {
		if n = netlab.Switches(p) - n; n > 1 {
			noisy += fmt.Sprintf("process %d (%s) woke up %d times; ", p, strings.TrimSpace(lab.Host.Read(fmt.Sprintf("/proc/%d/comm", p))), n)
		}
	}
	return noisy
}
