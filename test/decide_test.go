// SPDX-License-Identifier: Apache-2.0

package test

import (
	"fmt"
	"net"
	"testing"
	"time"

	"aldente/test/netlab"
)

// TestEgressAnycast: on a host that forwards, the anycast addresses of its subnets
// lead to its own services, and are the host. The service hears, though its
// answers come from another address.
func TestEgressAnycast(t *testing.T) {
	needOurs(t)
	lab := netlab.New(t, netlab.Options{})
	lab.Host.Sysctl("net/ipv6/conf/all/forwarding", "1")
	lab.Host.IP("addr add fd70::5/64 dev h0 nodad")
	heard := counted(lab.Host, "[::]:9")
	send := func(ns *netlab.NS) error {
		c, err := ns.DialError("udp", "[fd70::]:9", time.Second)
		if err != nil {
			return err
		}
		defer c.Close()
		_, err = c.Write([]byte("?"))
		return err
	}
	hears := func(ns *netlab.NS, limit time.Duration) bool {
		before := heard.Load()
		return eventually(limit, func() bool {
			_ = send(ns)
			time.Sleep(20 * time.Millisecond)
			return heard.Load() > before
		})
	}
	if !hears(lab.Host, 10*time.Second) {
		t.Fatal("the host's own service does not hear by the anycast address")
	}
	if g := lab.Guest(); !hears(g.NS, 10*time.Second) {
		t.Error("without a rule, the guest does not reach it")
	}
	g := lab.Guest("--deny", "host")
	if hears(g.NS, time.Second) {
		t.Error("the guest reaches the host by an anycast address")
	}
	if got := reach(g, "udp [fd70::]:9"); got != prohibited {
		t.Errorf("%s, want %s", got, prohibited)
	}
}

// TestLocalClients: clients on the host itself speak to UDP ports of the guest
// under rules that deny the host, if the kernel knows them as clients, and
// without one in any case.
func TestLocalClients(t *testing.T) {
	needOurs(t)
	lab := netlab.New(t, netlab.Options{})
	for i, tt := range []struct {
		name   string
		binary string
		args   []string
		loose  bool // clients that are not connected get answers, too
	}{
		{"pasta", netlab.Pasta(), nil, true},
		{"pasta, not mapped", netlab.Pasta(), []string{"--no-map-gw"}, true},
		{"pasta, by the link", netlab.Pasta(), []string{"--no-map-gw", "--no-splice"}, true},
		{"aldente", aldente(), nil, false},
		{"aldente, by the link", aldente(), []string{"--no-splice"}, false},
		{"pasta --deny any", netlab.Pasta(), []string{"--deny", "any"}, false},
	} {
		t.Run(tt.name, func(t *testing.T) {
			port := fmt.Sprint(10500 + i)
			g := lab.For(t).GuestWith(netlab.GuestSpec{Binary: tt.binary, Args: append([]string{"--config-net", "-u", port}, tt.args...)})
			go netlab.EchoUDP(g.ListenUDP("udp", ":"+port))
			for _, addr := range []string{"127.0.0.1:" + port, "[::1]:" + port} {
				if got, err := netlab.Ask(lab.Host, "udp", addr, "?"); got != "?" {
					t.Errorf("connected, %s: %q, %v", addr, got, err)
				}
				if got := askLoosely(lab.Host, addr); (got == "?") != tt.loose {
					t.Errorf("not connected, %s: %q, want an answer: %v", addr, got, tt.loose)
				}
			}
		})
	}
}

// askLoosely sends by a socket that is not connected.
func askLoosely(ns *netlab.NS, addr string) string {
	network, local := "udp4", "127.0.0.1:0"
	if addr[0] == '[' {
		network, local = "udp6", "[::1]:0"
	}
	c := ns.ListenUDP(network, local)
	defer c.Close()
	to, err := net.ResolveUDPAddr(network, addr)
	if err != nil {
		return ""
	}
	b := make([]byte, 16)
	for range 5 {
		if _, err := c.WriteTo([]byte("?"), to); err != nil {
			return ""
		}
		if n, err := readWithin(c, b, 300*time.Millisecond); err == nil {
			return string(b[:n])
		}
	}
	return ""
}

// TestHostileReplies: without egress rules, a captured worker gets no socket to the
// services of the host's loopback by a UDP port of its guest.
func TestHostileReplies(t *testing.T) {
	needOurs(t)
	lab := netlab.New(t, netlab.Options{})
	services := []string{"127.0.0.1:53", "127.0.0.53:53", "[::1]:53"}
	for _, s := range services {
		n := counted(lab.Host, s)
		defer func() {
			if n.Load() != 0 {
				t.Errorf("%s was spoken to", s)
			}
		}()
	}
	lab.Host.IP("addr add 192.0.2.3/24 dev h0")
	for i, tt := range []struct {
		args  []string
		words map[string]string
	}{
		{[]string{"--no-map-gw"}, map[string]string{"reply=127.0.0.1,53": "EACCES", "reply=127.0.0.53,53": "EACCES", "reply=::1,53": "EACCES",
			"reply=127.0.0.1,53,127.0.0.1": "EACCES", "reply=255.255.255.255,67": "EACCES", "reply=192.0.2.9,7": "opened 192.0.2.9, written: <nil>"}},
		{[]string{"--no-map-gw", "--no-splice"}, map[string]string{"reply=127.0.0.1,53": "EACCES", "reply=::1,53": "EACCES"}},
		{[]string{"-o", "192.0.2.3"}, map[string]string{"reply=192.0.2.9,7,192.0.2.2": "EACCES", "reply=192.0.2.9,7": "opened 192.0.2.9, written: <nil>"}},
	} {
		t.Run(fmt.Sprint(tt.args), func(t *testing.T) {
			script := ""
			for w := range tt.words {
				script += " " + w
			}
			g := hostileGuest(t, lab, script[1:], append(tt.args, "-u", fmt.Sprint(10600+i))...)
			for w, want := range tt.words {
				if got := told(t, g, w); got != want {
					t.Errorf("%s: %s, want %s", w, got, want)
				}
			}
		})
	}
}

// TestAutoLowPorts: what the guest binds below 1024 is the host's only where a
// rule names it, whoever started us.
func TestAutoLowPorts(t *testing.T) {
	needOurs(t)
	needRoot(t)
	lab := netlab.New(t, netlab.Options{})
	for _, tt := range []struct {
		rule string
		low  string
	}{{"auto", ""}, {"443,8080,auto", "?"}} {
		t.Run(tt.rule, func(t *testing.T) {
			lab := lab.For(t)
			g := lab.GuestWith(netlab.GuestSpec{User: netlab.Root, Args: []string{"--config-net", "-t", tt.rule, "-u", tt.rule}})
			for _, network := range []string{"tcp", "udp"} {
				low, high := tellOnce(g.NS, network, ":443"), tellOnce(g.NS, network, ":8080")
				becomes(t, lab.Remote, network, netlab.Host4+":8080", "?")
				becomes(t, lab.Remote, network, netlab.Host4+":443", tt.low)
				becomes(t, lab.Host, network, "127.0.0.1:443", tt.low)
				low()
				high()
			}
		})
	}
}
