// SPDX-License-Identifier: Apache-2.0

package test

import (
	"errors"
	"fmt"
	"net"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"aldente/broker/control/api"
	"aldente/test/netlab"
)

// steady is a UDP flow that asks and counts the answers until stop.
func steady(t *testing.T, g *netlab.Guest, to string) (stop func() (asked, answered int)) {
	t.Helper()
	c := g.Dial("udp", to)
	done, ended := make(chan struct{}), make(chan struct{})
	var asked, answered int
	go func() {
		defer close(ended)
		defer c.Close()
		b := make([]byte, 16)
		for {
			select {
			case <-done:
				return
			case <-time.After(20 * time.Millisecond):
			}
			asked++
			if _, err := c.Write([]byte("?")); err != nil {
				continue
			}
			_ = c.SetReadDeadline(time.Now().Add(5 * time.Second))
			if _, err := c.Read(b); err == nil {
				answered++
			}
		}
	}()
	return func() (int, int) {
		close(done)
		<-ended
		return asked, answered
	}
}

// senders counts from where a UDP service was asked. It answers.
func senders(ns *netlab.NS, at string) func() int {
	c := ns.ListenUDP("udp", at)
	var mu sync.Mutex
	from := map[string]bool{}
	go func() {
		b := make([]byte, 2048)
		for {
			n, a, err := c.ReadFrom(b)
			if err != nil {
				return
			}
			mu.Lock()
			from[a.String()] = true
			mu.Unlock()
			_, _ = c.WriteTo(b[:n], a)
		}
	}()
	return func() int {
		mu.Lock()
		defer mu.Unlock()
		return len(from)
	}
}

// turns are ways in which a remote's address becomes the host's own.
var turns = []struct {
	name, addr string
	turn       func(lab *netlab.Lab)
}{
	{"address", "198.51.100.7", func(l *netlab.Lab) { l.Host.IP("addr add 198.51.100.7/32 dev lo") }},
	{"IPv6 address", "2001:db8:7::7", func(l *netlab.Lab) { l.Host.IP("addr add 2001:db8:7::7/128 dev lo nodad") }},
	{"address on the network", "192.0.2.200", func(l *netlab.Lab) { l.Host.IP("addr add 192.0.2.200/24 dev h0") }},
	{"local route", "198.51.100.8", func(l *netlab.Lab) { l.Host.IP("route add local 198.51.100.8/32 dev lo") }},
	{"IPv6 local route", "2001:db8:8::8", func(l *netlab.Lab) { l.Host.IP("-6 route add local 2001:db8:8::/64 dev lo") }},
	{"rule", "198.51.100.10", func(l *netlab.Lab) {
		l.Host.IP("route add local 198.51.100.10/32 dev lo table 77", "rule add to 198.51.100.10/32 lookup 77 priority 100")
	}},
	{"more local than a route that is gone", "10.9.9.9", func(l *netlab.Lab) { l.Host.IP("route del 10.9.9.9/32") }},
}

// TestRulesOverTime: flows that the egress rules have allowed end when their destination
// becomes the host's own. What the guest sends then is refused, as it would be
// anew, and a service of the host hears nothing; other flows do not notice.
func TestRulesOverTime(t *testing.T) {
	needOurs(t)
	for _, tt := range turns {
		t.Run(tt.name, func(t *testing.T) {
			lab := netlab.New(t, netlab.Options{})
			lab.Remote.IP("addr add 198.51.100.7/32 dev lo", "addr add 198.51.100.8/32 dev lo", "addr add 198.51.100.10/32 dev lo",
				"addr add 192.0.2.200/32 dev lo", "addr add 10.9.9.9/32 dev lo",
				"addr add 2001:db8:7::7/128 dev lo nodad", "addr add 2001:db8:8::8/128 dev lo nodad")
			if strings.HasPrefix(tt.addr, "10.") {
				lab.Host.IP("route add local 10.9.9.0/24 dev lo", "route add 10.9.9.9/32 via 192.0.2.1")
			}
			serve(lab.Remote, strings.TrimSuffix(net.JoinHostPort(tt.addr, ""), ":"), 7)
			from := senders(lab.Remote, "[::]:9")
			heard := counted(lab.Host, "[::]:7")
			g := lab.GuestWith(netlab.GuestSpec{Binary: filepath.Join(filepath.Dir(netlab.Pasta()), "aldente"), Args: []string{"--config-net", "--no-follow"}}) // which would give the guest such an address, too
			c := g.Dial("udp", net.JoinHostPort(tt.addr, "7"))
			ask := func() error {
				_ = c.SetDeadline(time.Now().Add(soonEnough))
				if _, err := c.Write([]byte("?")); err != nil {
					return err
				}
				_, err := c.Read(make([]byte, 1))
				return err
			}
			if err := ask(); err != nil {
				t.Fatal(err)
			}
			stop := steady(t, g, lab.Remote4+":9")
			pings := make(chan string, 1)
			go func() {
				_, out := g.Run("ping", "-n", "-c", "30", "-i", "0.2", "-W", "1", tt.addr)
				pings <- out
			}()
			time.Sleep(time.Second)
			tt.turn(lab)
			named := func() bool {
				return strings.Contains(g.Proc.Output(), "refused by the egress rules protocol=udp to="+net.JoinHostPort(tt.addr, "7"))
			}
			if !eventually(10*time.Second, named) {
				t.Error("the log does not name the flow")
			}
			ended := func() bool { // the worker, too, has heard of it
				return !slices.ContainsFunc(flowsOf(t, lab), func(f api.Flow) bool {
					return f.Protocol == "udp" && f.Remote == net.JoinHostPort(tt.addr, "7")
				})
			}
			if !eventually(soonEnough, ended) {
				t.Errorf("the flow is there still: %+v", flowsOf(t, lab))
			}
			if err := ask(); !errors.Is(err, prohibition[!strings.Contains(tt.addr, ":")]) {
				t.Errorf("the old flow: %v", err)
			}
			if n := heard.Load(); n != 0 {
				t.Errorf("the host's own service has heard %d datagrams", n)
			}
			if out := <-pings; !strings.Contains(out, "Packet filtered") && !strings.Contains(out, "Administratively prohibited") ||
				!strings.Contains(out, "bytes from") {
				t.Errorf("pings go on:\n%s", out)
			}
			asked, answered := stop()
			if asked != answered || asked < 10 {
				t.Errorf("another flow: asked %d times, answered %d times", asked, answered)
			}
			if n := from(); n != 1 {
				t.Errorf("another flow came from %d ports", n)
			}
		})
	}
}

// TestConnectOverTime: a connection under way to what becomes the host's own does
// not reach a service of the host by a segment that is sent again.
func TestConnectOverTime(t *testing.T) {
	needOurs(t)
	lab := netlab.New(t, netlab.Options{})
	for _, tt := range []struct{ addr, line string }{
		{"198.51.100.77", "addr add 198.51.100.77/32 dev lo"},
		{"2001:db8:77::7", "addr add 2001:db8:77::7/128 dev lo nodad"},
	} {
		var accepted atomic.Int64
		l := lab.Host.Listen("tcp", net.JoinHostPort("::", "80"))
		go func() {
			for {
				c, err := l.Accept()
				if err != nil {
					return
				}
				accepted.Add(1)
				c.Close()
			}
		}()
		// The remote has neither the address nor a word for who wants it.
		lab.Remote.IP("route add blackhole 198.51.100.77/32", "-6 route replace blackhole 2001:db8:77::7/128")
		g := lab.Guest("--deny", "host")
		outcome := make(chan error, 1)
		go func() {
			c, err := g.DialError("tcp", net.JoinHostPort(tt.addr, "80"), 10*time.Second)
			if err == nil {
				c.Close()
			}
			outcome <- err
		}()
		time.Sleep(500 * time.Millisecond)
		lab.Host.IP(tt.line)
		var timeout net.Error
		if err := <-outcome; err == nil || errors.As(err, &timeout) && timeout.Timeout() {
			t.Errorf("%s: %v", tt.addr, err)
		}
		time.Sleep(time.Second)
		if n := accepted.Load(); n != 0 {
			t.Errorf("%s: the host's service has accepted %d connections", tt.addr, n)
		}
		lab.Remote.IP("route del blackhole 198.51.100.77/32")
		l.Close()
	}
}

// TestManyRoutes: ten thousand changes disturb no flow, and leave the broker able to
// notice the next.
func TestManyRoutes(t *testing.T) {
	needOurs(t)
	lab := egressLab(t)
	g := lab.Guest("--deny", "host")
	c := g.Dial("udp", "192.0.2.9:53")
	stop := steady(t, g, "192.0.2.9:7")
	if _, err := c.Write([]byte("?")); err != nil {
		t.Fatal(err)
	}
	var lines []string
	for n := range 10000 {
		lines = append(lines, fmt.Sprintf("route add local 10.%d.%d.0/24 dev lo", n>>8, n&0xff))
	}
	lab.Host.IP(lines...)
	lab.Host.IP("addr add 192.0.2.9/32 dev lo")
	if !eventually(20*time.Second, func() bool {
		return strings.Contains(g.Proc.Output(), "refused by the egress rules protocol=udp to=192.0.2.9:53")
	}) {
		t.Error("the change after the burst was not noticed")
	}
	if asked, answered := stop(); answered < asked/2 {
		t.Errorf("asked %d times, answered %d times", asked, answered)
	}
}
