// SPDX-License-Identifier: Apache-2.0

package qemu

import (
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"aldente/test/netlab"
)

// soonEnough is how long a change may take to reach a machine that is emulated. On one that is
// not it takes less than a second.
const soonEnough = 30 * time.Second

// comesTrue waits until something is so, and says how long that took.
func comesTrue(t *testing.T, what string, so func() bool) {
	t.Helper()
	start := time.Now()
	for !so() {
		if time.Since(start) > soonEnough {
			t.Fatalf("after %v still not: %s", soonEnough, what)
		}
		time.Sleep(50 * time.Millisecond)
	}
	t.Logf("%v: %s", time.Since(start).Round(10*time.Millisecond), what)
}

// addresses6 are the machine's global addresses that are good for new connections, and
// those that are not any more.
func (v *vm) addresses6(t *testing.T) (now, old string) {
	t.Helper()
	for line := range strings.Lines(v.must(t, "ip", "-6", "addr", "show", "dev", "eth0", "scope", "global")) {
		if _, a, ok := strings.Cut(line, "inet6 "); ok {
			if strings.Contains(line, "deprecated") {
				old += " " + a
			} else {
				now += " " + a
			}
		}
	}
	return now, old
}

// sees has the machine connect, and returns from which address the peer sees it.
func (v *vm) sees(t *testing.T, ln net.Listener) string {
	t.Helper()
	from := make(chan string, 1)
	go func() {
		_ = ln.(*net.TCPListener).SetDeadline(time.Now().Add(soonEnough))
		c, err := ln.Accept()
		if err != nil {
			from <- err.Error()
			return
		}
		host, _, _ := net.SplitHostPort(c.RemoteAddr().String())
		c.Close()
		from <- host
	}()
	if st, out := v.run("guest", "ask", ln.Addr().String(), ""); st != 0 {
		t.Logf("connecting to %v: %s", ln.Addr(), out)
	}
	return <-from
}

// trickle sends to the first who connects, a little at a time, until stop is closed.
func trickle(ln net.Listener, stop <-chan struct{}) {
	c, err := ln.Accept()
	if err != nil {
		return
	}
	defer c.Close()
	for {
		if _, err := c.Write([]byte("tick\n")); err != nil {
			return
		}
		select {
		case <-stop:
			_, _ = c.Write([]byte("end\n"))
			return
		case <-time.After(20 * time.Millisecond):
		}
	}
}

// TestFollow: a machine that learns its network by advertisements and DHCP has it as the
// host's changes: at once what is advertised, what is leased when it asks again. A
// connection that has its address still goes on.
func TestFollow(t *testing.T) {
	needImage(t)
	if !netlab.Ours() {
		t.Skip("the original's guest keeps what it had at first")
	}
	lab := netlab.New(t, netlab.Options{})
	vpn := netlab.NewNS(t, "vpn")
	resolv := filepath.Join(t.TempDir(), "resolv.conf")
	resolver := func(text string) {
		t.Helper()
		if err := os.WriteFile(resolv, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	resolver("nameserver 192.0.2.53\nnameserver 2001:db8::53\nsearch one.example\n")
	p := &passt{path: filepath.Join(socketFolder(t), "s")}
	p.Proc = lab.StartPasta(netlab.GuestSpec{Binary: program(t), ResolvAt: resolv, User: netlab.Nobody, Timeout: 10 * time.Minute}, "-f", "-s", p.path)
	comesTrue(t, "passt listens", func() bool { return listens(lab.Host, p.path) })
	v := boot(t, lab.Host, p.stream(t))
	v.must(t, "ip", "link", "set", "eth0", "up")
	v.must(t, "udhcpc", "-i", "eth0", "-s", "/etc/lease", "-b", "-p", "/tmp/udhcpc", "-T", "2", "-t", "10", "-O", "search")
	leased := func(addr, dns string) bool {
		return strings.Contains(v.must(t, "ip", "-4", "addr", "show", "dev", "eth0"), "inet "+addr+"/") && strings.Contains(v.must(t, "cat", "/etc/resolv.conf"), dns)
	}
	comesTrue(t, "the machine has its first addresses", func() bool {
		now, _ := v.addresses6(t)
		return leased("192.0.2.2", "search one.example\nnameserver 192.0.2.53") && strings.Contains(now, "2001:db8:1:")
	})
	near, stop, ended := lab.Remote.Listen("tcp", lab.Remote4+":5001"), make(chan struct{}), make(chan string, 1)
	go trickle(near, stop)
	go func() {
		st, out := v.run("guest", "ask", near.Addr().String(), "")
		ended <- fmt.Sprint(st, " ", out[max(len(out)-4, 0):])
	}()

	t.Log("a VPN comes up")
	netlab.Veth(lab.Host, "v0", vpn, "v1", 1400)
	vpn.IP("addr add 203.0.113.1/24 dev v1", "addr add 198.51.100.9/32 dev lo", "addr add fe80::9/64 dev v1 nodad", "addr add 2001:db8:2::9/128 dev lo nodad",
		"-6 route add 2001:db8:9::/64 dev v1")
	inside4, inside6 := vpn.Listen("tcp", "198.51.100.9:7"), vpn.Listen("tcp", "[2001:db8:2::9]:7")
	lab.Host.IP("addr add 203.0.113.2/24 dev v0", "route add default via 192.0.2.1 metric 600", "route del default via 192.0.2.1 metric 0",
		"route add default via 203.0.113.1 metric 50", "addr add 2001:db8:9::2/64 dev v0 nodad", "-6 route add default via fe80::9 dev v0 metric 50")
	comesTrue(t, "the machine has an address of the VPN's, and the other is deprecated", func() bool {
		now, old := v.addresses6(t)
		return strings.Contains(now, "2001:db8:9:") && strings.Contains(old, "2001:db8:1:") && !strings.Contains(now, "2001:db8:1:")
	})
	if a, b := v.sees(t, inside4), v.sees(t, inside6); a != "203.0.113.2" || b != "2001:db8:9::2" {
		t.Errorf("by the VPN connections come from %s and %s", a, b)
	}
	v.must(t, "sh", "-c", "kill -USR1 $(cat /tmp/udhcpc)") // it renews what the host has still
	lab.Host.IP("link del v0")
	comesTrue(t, "the machine has its first prefix again", func() bool {
		now, old := v.addresses6(t)
		return strings.Contains(now, "2001:db8:1:") && strings.Contains(old, "2001:db8:9:") && !strings.Contains(now, "2001:db8:9:")
	})
	if !leased("192.0.2.2", "nameserver") {
		t.Error("an address that the host has had all the time is not leased any more")
	}
	close(stop)
	if got := <-ended; got != "0 end\n" {
		t.Errorf("a connection that had its address all the time: %q", got)
	}

	t.Log("the address is renewed, and the resolvers are others")
	lab.Host.IP("addr del 192.0.2.2/24 dev h0", "addr add 192.0.2.7/24 dev h0", "route replace default via 192.0.2.1",
		"addr add 2001:db8:7::2/64 dev h0 nodad", "addr del 2001:db8:1::2/64 dev h0")
	comesTrue(t, "the machine has an address of the new prefix", func() bool {
		now, old := v.addresses6(t)
		return strings.Contains(now, "2001:db8:7:") && strings.Contains(old, "2001:db8:1:")
	})
	resolver("nameserver 192.0.2.54\nnameserver 2001:db8::54\nsearch two.example\n")
	comesTrue(t, "the resolver of before is withdrawn", func() bool {
		out := "\n" + v.must(t, "guest", "advertisement", "eth0")
		return strings.Contains(out, "\ndns 2001:db8::54") && strings.Contains(out, "\nno dns 2001:db8::53") &&
			strings.Contains(out, "\nsearch two.example") && strings.Contains(out, "\nno search one.example")
	})
	wants(t, v.must(t, "guest", "dhcpv6", "eth0"), "address 2001:db8:7::2", "dns 2001:db8::54", "search two.example")
	v.must(t, "sh", "-c", "kill -USR1 $(cat /tmp/udhcpc)") // as it would after some minutes
	comesTrue(t, "the machine has the new lease", func() bool { return leased("192.0.2.7", "search two.example\nnameserver 192.0.2.54") })
	ln := lab.Remote.Listen("tcp", lab.Remote4+":5002")
	if from := v.sees(t, ln); from != "192.0.2.7" {
		t.Errorf("new connections come from %s", from)
	}
}
