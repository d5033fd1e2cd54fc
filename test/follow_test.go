// SPDX-License-Identifier: Apache-2.0

package test

import (
	"errors"
	"io"
	"net"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"aldente/test/netlab"
)

// soonEnough is how long a change may take on a machine that has other things to do. On
// one that has not it takes a third of a second.
const soonEnough = 15 * time.Second

// comesTrue waits until something is so, and says how long that took.
func comesTrue(t *testing.T, what string, so func() bool) {
	t.Helper()
	start := time.Now()
	for !so() {
		if time.Since(start) > soonEnough {
			t.Fatalf("after %v still not: %s", soonEnough, what)
		}
		time.Sleep(20 * time.Millisecond)
	}
	t.Logf("%v: %s", time.Since(start).Round(10*time.Millisecond), what)
}

// ipSays tells whether ip(8) in a namespace says something.
func ipSays(n *netlab.NS, say string, args ...string) bool {
	_, out := n.Run(append([]string{"ip"}, args...)...)
	return strings.Contains(out, say)
}

// sees connects from a guest and returns from which address the peer sees it.
func sees(t *testing.T, guest *netlab.NS, ln net.Listener) string {
	t.Helper()
	c, err := guest.DialError("tcp", ln.Addr().String(), soonEnough/2)
	if err != nil {
		return err.Error()
	}
	defer c.Close()
	_ = ln.(*net.TCPListener).SetDeadline(time.Now().Add(soonEnough))
	peer, err := ln.Accept()
	if err != nil {
		return err.Error()
	}
	defer peer.Close()
	host, _, _ := net.SplitHostPort(peer.RemoteAddr().String())
	return host
}

// held is a connection from the guest that is open, of which both ends are known.
type held struct{ guest, peer net.Conn }

func hold(t *testing.T, guest *netlab.NS, ln net.Listener) held {
	t.Helper()
	h := held{guest: guest.Dial("tcp", ln.Addr().String())}
	_ = ln.(*net.TCPListener).SetDeadline(time.Now().Add(soonEnough))
	var err error
	if h.peer, err = ln.Accept(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { h.peer.Close() })
	if err := h.talks(); err != nil {
		t.Fatal(err)
	}
	return h
}

// talks sends a word each way.
func (h held) talks() error {
	for _, c := range []struct{ from, to net.Conn }{{h.guest, h.peer}, {h.peer, h.guest}} {
		if _, err := c.from.Write([]byte("word")); err != nil {
			return err
		}
		_ = c.to.SetReadDeadline(time.Now().Add(soonEnough))
		if _, err := io.ReadFull(c.to, make([]byte, 4)); err != nil {
			return err
		}
	}
	return nil
}

// isReset waits for the guest's end to be reset.
func (h held) isReset(t *testing.T) {
	t.Helper()
	start := time.Now()
	_ = h.guest.SetReadDeadline(start.Add(soonEnough))
	if _, err := h.guest.Read(make([]byte, 1)); !errors.Is(err, syscall.ECONNRESET) {
		t.Errorf("a connection whose address is gone: %v", err)
	}
	t.Logf("%v: reset", time.Since(start).Round(10*time.Millisecond))
}

// TestFollow: a namespace that was configured once has the host's addresses and routes as
// they change. Connections that have lost their address are reset, the others go on, and
// new ones take the new way.
func TestFollow(t *testing.T) {
	needOurs(t)
	lab := netlab.New(t, netlab.Options{})
	vpn := netlab.NewNS(t, "vpn")
	g := lab.Guest()
	far4, far6 := lab.Remote.Listen("tcp", "198.51.100.9:7"), lab.Remote.Listen("tcp", "[2001:db8:2::9]:7")
	near4, near6 := lab.Remote.Listen("tcp", lab.Remote4+":8"), lab.Remote.Listen("tcp", "["+lab.Remote6+"]:8")
	for _, ln := range []net.Listener{far4, far6} {
		t.Logf("the guest comes from %s", sees(t, g.NS, ln))
	}
	on4, on6 := hold(t, g.NS, far4), hold(t, g.NS, far6)

	t.Log("addresses are renewed")
	lab.Host.IP("addr del 192.0.2.2/24 dev h0", "addr add 192.0.2.7/24 dev h0", "route replace default via 192.0.2.1",
		"addr add 2001:db8:1::7/64 dev h0 nodad", "addr del 2001:db8:1::2/64 dev h0")
	on4.isReset(t)
	on6.isReset(t)
	comesTrue(t, "the guest has the new addresses", func() bool {
		return ipSays(g.NS, "192.0.2.7/24", "addr") && !ipSays(g.NS, "192.0.2.2/", "addr") &&
			ipSays(g.NS, "2001:db8:1::7/64", "addr") && !ipSays(g.NS, "2001:db8:1::2/", "addr")
	})
	comesTrue(t, "the guest has its default routes", func() bool {
		return ipSays(g.NS, "default via 192.0.2.1", "route") && ipSays(g.NS, "default via fe80::1", "-6", "route")
	})
	if a, b := sees(t, g.NS, far4), sees(t, g.NS, far6); a != "192.0.2.7" || b != "2001:db8:1::7" {
		t.Errorf("new connections come from %s and %s", a, b)
	}
	on4, on6 = hold(t, g.NS, near4), hold(t, g.NS, near6)

	t.Log("a VPN comes up")
	netlab.Veth(lab.Host, "v0", vpn, "v1", 1400)
	vpn.IP("addr add 203.0.113.1/24 dev v1", "addr add 198.51.100.9/32 dev lo", "addr add 2001:db8:9::1/64 dev v1 nodad",
		"addr add fe80::9/64 dev v1 nodad", "addr add 2001:db8:2::9/128 dev lo nodad")
	inside4, inside6 := vpn.Listen("tcp", "198.51.100.9:7"), vpn.Listen("tcp", "[2001:db8:2::9]:7")
	lab.Host.IP("route add default via 192.0.2.1 metric 600", "route del default via 192.0.2.1 metric 0",
		"addr add 203.0.113.2/24 dev v0", "route add default via 203.0.113.1 metric 50",
		"addr add 2001:db8:9::2/64 dev v0 nodad", "-6 route add default via fe80::9 dev v0 metric 50")
	comesTrue(t, "the guest has the VPN's addresses and routes", func() bool {
		return ipSays(g.NS, "203.0.113.2/24", "addr") && ipSays(g.NS, "default via 203.0.113.1", "route") &&
			ipSays(g.NS, "2001:db8:9::2/64", "addr") && ipSays(g.NS, "default via fe80::9", "-6", "route")
	})
	if a, b := sees(t, g.NS, inside4), sees(t, g.NS, inside6); a != "203.0.113.2" || b != "2001:db8:9::2" {
		t.Errorf("by the VPN connections come from %s and %s", a, b)
	}
	for _, c := range []held{on4, on6} {
		if err := c.talks(); err != nil {
			t.Errorf("a connection that has its address still: %v", err)
		}
	}
	on := hold(t, g.NS, inside4)

	t.Log("and goes")
	lab.Host.IP("link del v0")
	on.isReset(t)
	comesTrue(t, "the guest has its old routes", func() bool {
		return ipSays(g.NS, "default via 192.0.2.1", "route") && !ipSays(g.NS, "203.0.113.2", "addr") &&
			ipSays(g.NS, "default via fe80::1", "-6", "route") && !ipSays(g.NS, "2001:db8:9::2", "addr")
	})
	if a, b := sees(t, g.NS, far4), sees(t, g.NS, far6); a != "192.0.2.7" || b != "2001:db8:1::7" {
		t.Errorf("new connections come from %s and %s", a, b)
	}
	for _, c := range []held{on4, on6} {
		if err := c.talks(); err != nil {
			t.Errorf("a connection that has its address still: %v", err)
		}
	}

	t.Log("the interface is renamed, and removed")
	lab.Host.IP("link set h0 down", "link set h0 name wan0", "link set wan0 up", "route add default via 192.0.2.1", "addr add 2001:db8:1::7/64 dev wan0 nodad",
		"-6 route add default via fe80::1 dev wan0")
	comesTrue(t, "connections are made by it", func() bool { return sees(t, g.NS, far4) == "192.0.2.7" && sees(t, g.NS, far6) == "2001:db8:1::7" })
	if err := on4.talks(); err != nil {
		t.Errorf("a connection that has its address still: %v", err)
	}
	lab.Host.IP("link del wan0")
	on4.isReset(t)
	comesTrue(t, "the guest is not connected", func() bool { return !ipSays(g.NS, "192.0.2.7", "addr") && !ipSays(g.NS, "2001:db8:1::7", "addr") })
}

// TestFollowLate: a host without a network is a state. What comes later comes to the guest.
func TestFollowLate(t *testing.T) {
	needOurs(t)
	lab := netlab.New(t, netlab.Options{Shape: netlab.NoInterface})
	g := lab.Guest()
	remote := netlab.NewNS(t, "remote")
	if s := instanceSays(t, lab, nil).Network; s == nil || s.Connected {
		t.Errorf("before: %+v", s)
	}
	netlab.Veth(lab.Host, "h0", remote, "r0", 1500)
	remote.IP("addr add 192.0.2.9/24 dev r0", "addr add 2001:db8:1::9/64 dev r0 nodad", "addr add fe80::1/64 dev r0 nodad", "addr add 192.0.2.1/24 dev r0")
	ln4, ln6 := remote.Listen("tcp", "192.0.2.9:7"), remote.Listen("tcp", "[2001:db8:1::9]:7")
	lab.Host.IP("addr add 192.0.2.2/24 dev h0", "route add default via 192.0.2.1", "addr add 2001:db8:1::2/64 dev h0 nodad", "-6 route add default via fe80::1 dev h0")
	comesTrue(t, "the guest is connected", func() bool {
		return ipSays(g.NS, "192.0.2.2/24", "addr") && ipSays(g.NS, "default via fe80::1", "-6", "route") && !ipSays(g.NS, "169.254.2.1", "addr")
	})
	if a, b := sees(t, g.NS, ln4), sees(t, g.NS, ln6); a != "192.0.2.2" || b != "2001:db8:1::2" {
		t.Errorf("connections come from %s and %s", a, b)
	}
	comesTrue(t, "status tells", func() bool {
		s := instanceSays(t, lab, nil).Network
		return s != nil && s.Connected && s.Template == "h0" && s.Changes > 0 && s.LastChange != ""
	})
}

// TestNoFollow: with --no-follow nothing changes.
func TestNoFollow(t *testing.T) {
	needOurs(t)
	lab := netlab.New(t, netlab.Options{})
	g := lab.Guest("--no-follow")
	before := g.Must("ip", "addr") + g.Must("ip", "route")
	lab.Host.IP("addr del 192.0.2.2/24 dev h0", "addr add 192.0.2.7/24 dev h0", "route replace default via 192.0.2.1")
	time.Sleep(time.Second)
	if after := g.Must("ip", "addr") + g.Must("ip", "route"); after != before {
		t.Errorf("was\n%s\nis\n%s", before, after)
	}
	if s := instanceSays(t, lab, nil); s.Network != nil {
		t.Errorf("status: %+v", s.Network)
	}
}

// resolves is a command that says again and again what a name is, and whom it asks.
const resolves = `while sleep 0.1; do echo "$(getent ahostsv4 host.example | cut -d' ' -f1 | sort -u) by" $(cat /etc/resolv.conf); done`

// TestFollowResolvers: when the host's resolv.conf changes, a command has names resolved
// by the new resolver, by the one that it was told of; and by another file of its own,
// where it needs one.
func TestFollowResolvers(t *testing.T) {
	needOurs(t)
	lab := netlab.New(t, netlab.Options{})
	lab.Resolvers()
	at := filepath.Join(t.TempDir(), "resolv.conf")
	write := func(text string) {
		t.Helper()
		if err := os.WriteFile(at, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	answer := func(at string) string {
		v4, _ := netlab.ResolverAnswer(at)
		return v4.String()
	}
	write("nameserver 127.0.0.53\noptions edns0 trust-ad\nsearch one.example\n")
	p := lab.StartPasta(netlab.GuestSpec{Binary: aldente(), ResolvAt: at, User: netlab.Nobody},
		append(netlab.NoForward(), "--config-net", "--", "sh", "-c", resolves)...)
	for _, tt := range []struct{ text, want string }{
		{"", answer("127.0.0.53") + " by options edns0 trust-ad search one.example nameserver 169.254.1.1"},
		{"nameserver 192.0.2.9\nsearch two.example\n", answer("192.0.2.9") + " by search two.example nameserver 169.254.1.1"},
		{"nameserver 192.0.2.1\n", answer("192.0.2.1") + " by nameserver 169.254.1.1"},
		{"nameserver 127.0.0.53\nsearch one.example two.example\n", answer("127.0.0.53") + " by search one.example two.example nameserver 169.254.1.1"},
	} {
		before := len(p.Output())
		if tt.text != "" {
			write(tt.text)
		}
		comesTrue(t, tt.want, func() bool { return strings.Contains(p.Output()[before:], tt.want+"\n") })
	}
}

// TestFollowNames: with rules by name, aldente-names asks the host's new resolver, and
// others of another number.
func TestFollowNames(t *testing.T) {
	needOurs(t)
	lab := netlab.New(t, netlab.Options{})
	lab.Resolvers()
	at := filepath.Join(t.TempDir(), "resolv.conf")
	if err := os.WriteFile(at, []byte("nameserver 127.0.0.53\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	p := lab.StartPasta(netlab.GuestSpec{Binary: aldente(), ResolvAt: at, User: netlab.Nobody},
		append(netlab.NoForward(), "--config-net", "--allow", "host.example", "--", "sh", "-c", resolves)...)
	for _, resolvers := range [][]string{nil, {"192.0.2.9"}, {"192.0.2.1", "192.0.2.9"}} {
		text, asked := "", "127.0.0.53"
		for i, r := range resolvers {
			if text += "nameserver " + r + "\n"; i == 0 {
				asked = r
			}
		}
		before := len(p.Output())
		if text != "" {
			if err := os.WriteFile(at, []byte(text), 0o644); err != nil {
				t.Fatal(err)
			}
		}
		v4, _ := netlab.ResolverAnswer(asked)
		comesTrue(t, "answers of "+asked, func() bool { return strings.Contains(p.Output()[before:], v4.String()+" by ") })
	}
}

// TestFollowInterface: a port that is forwarded on an interface of the host's is forwarded
// again when the interface has gone and another comes by its name.
func TestFollowInterface(t *testing.T) {
	needOurs(t)
	lab := netlab.New(t, netlab.Options{})
	far := netlab.NewNS(t, "far")
	lan := func() {
		netlab.Veth(lab.Host, "lan1", far, "f0", 1500)
		lab.Host.IP("addr add 203.0.113.2/24 dev lan1")
		far.IP("addr add 203.0.113.9/24 dev f0")
	}
	lan()
	g := lab.Guest("-t", "%lan1/8080", "-u", "%lan1/8080")
	go netlab.Echo(g.Listen("tcp", ":8080"))
	go netlab.EchoUDP(g.ListenUDP("udp", ":8080"))
	answers := func() bool {
		for _, network := range []string{"tcp", "udp"} {
			if got, err := netlab.Ask(far, network, "203.0.113.2:8080", "hello"); err != nil || got != "hello" {
				return false
			}
		}
		return true
	}
	comesTrue(t, "the port answers", answers)
	for range 2 {
		lab.Host.IP("link del lan1")
		lan()
		comesTrue(t, "the port answers again", answers)
	}
	lab.Host.IP("link set lan1 down", "link set lan1 name lan2", "link set lan2 name lan1", "link set lan1 up")
	comesTrue(t, "the port answers by its name", answers)
}

// configures is a script of udhcpc's that does what it is told.
const configures = `#!/bin/sh
case $1 in
deconfig) ip -4 addr flush dev $interface ;;
bound|renew) ip -4 addr flush dev $interface; ip addr add $ip/$mask dev $interface; ip route replace default via $router dev $interface ;;
esac
`

// TestFollowAsked: a guest that asks for its network is told of changes: at once by router
// advertisements, with the old prefix deprecated; by DHCP when it asks again. It is
// reached, and reaches others by the new way, before that.
func TestFollowAsked(t *testing.T) {
	needOurs(t)
	netlab.Have(t, "udhcpc")
	lab := netlab.New(t, netlab.Options{})
	ln := lab.Remote.Listen("tcp", "198.51.100.9:7")
	g := lab.GuestWith(netlab.GuestSpec{Args: []string{"-t", "8080"}})
	dev := g.Interface()
	ifUp(t, g)
	script := filepath.Join(t.TempDir(), "script")
	if err := os.WriteFile(script, []byte(configures), 0o755); err != nil {
		t.Fatal(err)
	}
	client := g.Start(netlab.Spec{Args: []string{"udhcpc", "-f", "-T", "1", "-i", dev, "-s", script}})
	comesTrue(t, "the guest has its first addresses", func() bool {
		return ipSays(g.NS, "192.0.2.2/24", "addr") && ipSays(g.NS, "2001:db8:1:", "addr") && ipSays(g.NS, "default via fe80::1", "-6", "route")
	})
	go netlab.Echo(g.Listen("tcp", "0.0.0.0:8080"))

	lab.Host.IP("addr del 192.0.2.2/24 dev h0", "addr add 192.0.2.7/24 dev h0", "route replace default via 192.0.2.1",
		"addr add 2001:db8:7::2/64 dev h0 nodad", "addr del 2001:db8:1::2/64 dev h0")
	comesTrue(t, "the guest has an address of the new prefix, and the old one is deprecated", func() bool {
		out := g.Must("ip", "-6", "-o", "addr", "show", "dev", dev)
		var now, old bool
		for line := range strings.Lines(out) {
			deprecated := strings.Contains(line, "deprecated")
			now = now || strings.Contains(line, "2001:db8:7:") && !deprecated
			old = old || strings.Contains(line, "2001:db8:1:") && deprecated
		}
		return now && old
	})
	// Its link is away for a moment, which this client does not look at.
	comesTrue(t, "before it has asked again, connections come from the new address", func() bool { return sees(t, g.NS, ln) == "192.0.2.7" })
	comesTrue(t, "before it has asked again, it answers", func() bool {
		got, err := netlab.Ask(lab.Remote, "tcp", "192.0.2.7:8080", "hello")
		return err == nil && got == "hello"
	})
	_ = client.Signal(syscall.SIGUSR1) // as it would after some minutes
	comesTrue(t, "the guest has the new lease", func() bool { return ipSays(g.NS, "192.0.2.7/24", "addr") && !ipSays(g.NS, "192.0.2.2/", "addr") })
	if got, err := netlab.Ask(lab.Remote, "tcp", "192.0.2.7:8080", "hello"); err != nil || got != "hello" {
		t.Errorf("with its new address it answers %q, %v", got, err)
	}

	lab.HostLink(false)
	comesTrue(t, "the guest has no default route of IPv6", func() bool { return !ipSays(g.NS, "default", "-6", "route") })
	lab.HostLink(true)
	comesTrue(t, "it has one again, and its first prefix", func() bool {
		out := g.Must("ip", "-6", "-o", "addr", "show", "dev", dev)
		for line := range strings.Lines(out) {
			if strings.Contains(line, "2001:db8:1:") && !strings.Contains(line, "deprecated") {
				return ipSays(g.NS, "default via fe80::1", "-6", "route")
			}
		}
		return false
	})
}
