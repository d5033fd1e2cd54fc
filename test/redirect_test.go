// SPDX-License-Identifier: Apache-2.0

package test

import (
	"errors"
	"fmt"
	"net"
	"path/filepath"
	"regexp"
	"strings"
	"syscall"
	"testing"
	"time"

	"aldente/broker/control/api"
	"aldente/test/netlab"
)

// TestRedirect: what the guest sends to one place goes to another, of either family,
// by TCP and UDP, and answers come from where the guest has asked.
func TestRedirect(t *testing.T) {
	needOurs(t)
	lab := netlab.New(t, netlab.Options{})
	tellPeer(lab.Remote, ":8080")
	tellPeer(lab.Remote, ":80")
	tellPeer(lab.Host, "127.0.0.1:8081")
	tellPeer(lab.Host, "[::1]:8081")
	file := filepath.Join(openDir(t), "flows")
	args := []string{"--config-net", "--flow-log", file, "--map-host-loopback", "192.0.2.77", "-a", "192.0.2.50", "-a", "2001:db8:1::50"}
	for _, r := range []string{
		"203.0.113.1:80=192.0.2.9:8080", "203.0.113.2=192.0.2.9", "198.18.0.0/15:1-1000=192.0.2.9:8080",
		"[2001:db8:f::1]:80=[2001:db8:1::9]:8080", "203.0.113.3=[2001:db8:1::9]:8080", "2001:db8:f::3=192.0.2.9:8080",
		"203.0.113.4:80=127.0.0.1:8081", "2001:db8:f::4=[::1]:8081",
		"tcp:203.0.113.5:80=192.0.2.9:8080", "203.0.113.6=192.0.2.66", "203.0.113.7=192.0.2.9:9",
		"2001:db8:f::7=[2001:db8:1::9]:9",
	} {
		args = append(args, "--redirect", r)
	}
	g := lab.GuestWith(netlab.GuestSpec{Binary: aldente(), Args: append(args, "--deny", "192.0.2.66")})
	for _, tt := range []struct{ to, want string }{
		{"203.0.113.1:80", "192.0.2.2 8080"},
		{"203.0.113.2:80", "192.0.2.2 80"},
		{"198.19.255.7:999", "192.0.2.2 8080"},
		{"[2001:db8:f::1]:80", "2001:db8:1::2 8080"},
		{"203.0.113.3:7777", "2001:db8:1::2 8080"},
		{"[2001:db8:f::3]:7777", "192.0.2.2 8080"},
		{"203.0.113.4:80", "127.0.0.1 8081"}, // the host's loopback, since a redirect names it
		{"[2001:db8:f::4]:80", "::1 8081"},
	} {
		for _, network := range []string{"tcp", "udp"} {
			if got, err := netlab.Ask(g.NS, network, tt.to, "?"); got != tt.want {
				t.Errorf("%s %s: %q, %v, want %q", network, tt.to, got, err, tt.want)
			}
			if allow, why := because(t, lab, g, network+" "+tt.to); !allow {
				t.Errorf("%s %s: %s", network, tt.to, why)
			}
		}
	}
	for what, want := range map[string]string{
		"tcp 203.0.113.6:80": prohibited, "udp 203.0.113.6:80": prohibited, // by the rule for where it goes
		"tcp 192.0.2.77:8081": open, "tcp 192.0.2.77:8082": prohibited, // no more of the host than is named
		"tcp 203.0.113.7:80": refused, "udp 203.0.113.7:80": refused, // an ICMP error about it is one about what was asked
		"tcp [2001:db8:f::7]:80": refused, "udp [2001:db8:f::7]:80": refused,
		"udp 203.0.113.5:80": silent, // of another protocol: nobody has that address
	} {
		if got := reach(g, what); got != want {
			t.Errorf("%s: %s, want %s", what, got, want)
		}
	}
	if allow, why := because(t, lab, g, "tcp 203.0.113.6:80"); allow || !strings.Contains(why, "--deny 192.0.2.66") {
		t.Errorf("%v: %s", allow, why)
	}
	if hits := hitsBy(t, lab, g)["--redirect 203.0.113.1:80=192.0.2.9:8080 before the rules, which judge where it goes"]; hits != 2 {
		t.Errorf("%d redirected, of two", hits)
	}
	flowLine(t, file, `flow ended protocol=tcp direction=out .* remote=203\.0\.113\.4:80 to=127\.0\.0\.1:8081 verdict=allowed `+
		`rule="--redirect 203\.0\.113\.4:80=127\.0\.0\.1:8081, --allow tcp:\[127\.0\.0\.1\]:8081" .*`)
}

// TestRedirectFlows: the list of flows has what the guest asked for, and by which
// redirect it went elsewhere.
func TestRedirectFlows(t *testing.T) {
	needOurs(t)
	lab := netlab.New(t, netlab.Options{})
	g := lab.Guest("--redirect", "tcp:203.0.113.1:80=192.0.2.9:8080")
	ln := lab.Remote.Listen("tcp", "192.0.2.9:8080")
	c := g.Dial("tcp", "203.0.113.1:80")
	defer c.Close()
	if s, err := ln.Accept(); err != nil {
		t.Fatal(err)
	} else {
		defer s.Close()
	}
	for _, f := range asked[struct{ Flows []api.Flow }](t, lab, g, "flows").Flows {
		if f.Remote == "203.0.113.1:80" && f.Rule == "--redirect tcp:203.0.113.1:80=192.0.2.9:8080" {
			return
		}
	}
	_, out := ask(lab, g, "flows")
	t.Errorf("no such flow:\n%s", out)
}

// TestRedirectOnePort: two names that the guest has for one place are two flows, though
// the guest asks from one port: each has its answers.
func TestRedirectOnePort(t *testing.T) {
	needOurs(t)
	lab := netlab.New(t, netlab.Options{})
	for _, f := range families {
		t.Run(f.name, func(t *testing.T) {
			lab := lab.For(t)
			go netlab.EchoUDP(lab.Remote.ListenUDP("udp", f.at(f.remote, "5300")))
			names := []string{"203.0.113.1", "203.0.113.2", "203.0.113.3"}
			if f.name == "IPv6" {
				names = []string{"2001:db8:f::1", "2001:db8:f::2", "2001:db8:f::3"}
			}
			var args []string
			for _, n := range names {
				args = append(args, "--redirect", fmt.Sprintf("udp:%s=%s", f.at(n, "53"), f.at(f.remote, "5300")))
			}
			g := lab.Guest(args...)
			c := g.ListenUDP("udp", f.any+":4444")
			for round := range 3 {
				for _, n := range names {
					to, err := net.ResolveUDPAddr("udp", f.at(n, "53"))
					if err != nil {
						t.Fatal(err)
					}
					text := fmt.Sprint(n, round)
					if _, err := c.WriteTo([]byte(text), to); err != nil {
						t.Fatal(err)
					}
					b := make([]byte, 100)
					_ = c.SetReadDeadline(time.Now().Add(5 * time.Second))
					k, from, err := c.ReadFromUDP(b)
					if err != nil || string(b[:k]) != text || !from.IP.Equal(to.IP) || from.Port != 53 {
						t.Fatalf("%s: %q from %v, %v", text, b[:k], from, err)
					}
				}
			}
		})
	}
}

// TestRedirectRevoked: what is redirected to a place that becomes the host's own ends,
// as what the guest sends there by its own name.
func TestRedirectRevoked(t *testing.T) {
	needOurs(t)
	for _, f := range families {
		t.Run(f.name, func(t *testing.T) {
			lab := netlab.New(t, netlab.Options{})
			name, to, own := "203.0.113.1", "198.51.100.7", "addr add 198.51.100.7/32 dev lo"
			if f.name == "IPv6" {
				name, to, own = "2001:db8:f::1", "2001:db8:7::7", "addr add 2001:db8:7::7/128 dev lo nodad"
			}
			lab.Remote.IP(own)
			serve(lab.Remote, strings.TrimSuffix(f.at(to, ""), ":"), 7)
			heard := counted(lab.Host, "[::]:7")
			g := lab.Guest("--redirect", name+"="+to, "--deny", "host")
			c := g.Dial("udp", f.at(name, "7"))
			ask := func() error {
				_ = c.SetDeadline(time.Now().Add(5 * time.Second))
				if _, err := c.Write([]byte("?")); err != nil {
					return err
				}
				_, err := c.Read(make([]byte, 1))
				return err
			}
			if err := ask(); err != nil {
				t.Fatalf("before: %v", err)
			}
			lab.Host.IP(own)
			if !eventually(10*time.Second, func() bool { return errors.Is(ask(), prohibition[f.name == "IPv4"]) }) {
				t.Error("the flow goes on")
			}
			if n := heard.Load(); n > 2 { // before the broker heard of the address, see SECURITY.md
				t.Errorf("the host has heard %d datagrams", n)
			}
			if !regexp.MustCompile(`refused by the egress rules protocol=udp to=[^ ]*` + regexp.QuoteMeta(to)).MatchString(g.Proc.Output()) {
				t.Errorf("log:\n%s", g.Proc.Output())
			}
		})
	}
}

// TestRedirectNamed: a destination of which the guest's kernel says nothing by itself
// (an error from the far side) is one of the name that the guest has for it.
func TestRedirectNamed(t *testing.T) {
	needOurs(t)
	lab := netlab.New(t, netlab.Options{})
	g := lab.Guest("--redirect", "203.0.113.1=[2001:db8:1::9]", "--redirect", "2001:db8:f::1=192.0.2.9")
	for _, to := range []string{"203.0.113.1:9", "[2001:db8:f::1]:9"} {
		c := g.Dial("udp", to)
		if _, err := c.Write([]byte("?")); err != nil {
			t.Fatal(err)
		}
		_ = c.SetReadDeadline(time.Now().Add(5 * time.Second))
		if _, err := c.Read(make([]byte, 1)); !errors.Is(err, syscall.ECONNREFUSED) {
			t.Errorf("%s: %v", to, err)
		}
	}
}
