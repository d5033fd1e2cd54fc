// SPDX-License-Identifier: Apache-2.0

package test

import (
	"fmt"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"aldente/test/netlab"
)

// TestLoopbackWithoutFamily speaks to forwarded ports by the loopback addresses
// of hosts that lack IPv6, or IPv4, in one way or another. "localhost" is [::1]
// first, to most programs: a host that has it has all of it.
func TestLoopbackWithoutFamily(t *testing.T) {
	needOurs(t)
	const disable = "net/ipv6/conf/%s/disable_ipv6"
	for _, tt := range []struct {
		name    string
		shape   netlab.Shape
		without string   // interfaces without IPv6: its sysctl
		args    []string // besides ports
		in, out string   // families whose loopback address is to answer
	}{
		{"both", netlab.Dual, "", nil, "46", "46"},
		{"no address of IPv6", netlab.OnlyIPv4, "", nil, "46", "46"},
		{"IPv6 disabled on the interface", netlab.OnlyIPv4, "h0", nil, "46", "46"},
		{"the same by the link", netlab.OnlyIPv4, "h0", []string{"--no-splice"}, "46", "46"},
		{"the same by the link, not mapped", netlab.OnlyIPv4, "h0", []string{"--no-splice", "--no-map-gw"}, "46", "46"},
		{"IPv6 disabled on loopback", netlab.Dual, "lo", nil, "4", "46"},
		{"IPv6 disabled everywhere", netlab.OnlyIPv4, "all", nil, "4", "46"},
		{"no address of IPv4", netlab.OnlyIPv6, "", nil, "46", "46"},
		{"no interface", netlab.NoInterface, "", nil, "46", "46"},
		{"no default route", netlab.NoDefault, "", nil, "46", "46"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			lab := netlab.New(t, netlab.Options{Shape: tt.shape})
			if tt.without != "" {
				lab.Host.Sysctl(fmt.Sprintf(disable, tt.without), "1")
			}
			go netlab.Echo(lab.Host.Listen("tcp4", "127.0.0.1:9001"))
			go netlab.EchoUDP(lab.Host.ListenUDP("udp4", "127.0.0.1:9001"))
			if tt.in == "46" {
				go netlab.Echo(lab.Host.Listen("tcp6", "[::1]:9001"))
				go netlab.EchoUDP(lab.Host.ListenUDP("udp6", "[::1]:9001"))
			}
			g := lab.Guest(append([]string{"-t", "8001", "-u", "8001", "-T", "9001", "-U", "9001"}, tt.args...)...)
			go netlab.Echo(g.Listen("tcp4", "0.0.0.0:8001"))
			go netlab.EchoUDP(g.ListenUDP("udp4", "0.0.0.0:8001"))
			go netlab.Echo(g.Listen("tcp6", "[::]:8001"))
			go netlab.EchoUDP(g.ListenUDP("udp6", "[::]:8001"))
			for _, network := range []string{"tcp", "udp"} {
				for _, bad := range unanswered(lab.Host, network, "8001", tt.in) {
					t.Errorf("into the guest: %s %s", network, bad)
				}
				for _, bad := range unanswered(g.NS, network, "9001", tt.out) {
					t.Errorf("out of the guest: %s %s", network, bad)
				}
			}
		})
	}
}

// TestGuestWithoutFamily speaks to forwarded ports by both of the host's loopback
// addresses where the guest lacks one family, from the start or later: "localhost" is
// the guest's service all the same.
func TestGuestWithoutFamily(t *testing.T) {
	needOurs(t)
	netlab.Have(t, "ip")
	lab := netlab.New(t, netlab.Options{})
	no6 := "for i in all default lo; do echo 1 >/proc/sys/net/ipv6/conf/$i/disable_ipv6; done"
	for _, tt := range []struct {
		name          string
		before, later string // what is done in the guest's namespace
		lacks         string
		args          []string
	}{
		{"IPv6 disabled", no6, "", "6", nil},
		{"IPv6 disabled, by the link", no6, "", "6", []string{"--no-splice"}},
		{"IPv6 disabled, by the link, not mapped", no6, "", "6", []string{"--no-splice", "--no-map-gw"}},
		{"IPv6 disabled later", "", no6, "6", nil},
		{"no address of IPv6 any more", "", "ip -6 addr flush scope global; ip -6 addr flush scope link", "6", nil},
		{"no address of IPv4 any more", "", "ip -4 addr flush scope global", "4", nil},
		{"IPv6 disabled, loopback to loopback", no6, "", "6", []string{"--host-lo-to-ns-lo"}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			lab := lab.For(t)
			pid := holderWith(t, lab, tt.before)
			p := lab.StartPasta(netlab.GuestSpec{User: netlab.Nobody, Timeout: time.Minute}, slices.Concat(
				[]string{"-f", "--config-net", "-t", "8001", "-u", "8001", "-T", "none", "-U", "none"}, tt.args, []string{strconv.Itoa(pid)})...)
			g := netlab.OpenNS(t, "guest", fmt.Sprintf("/proc/%d/ns/net", pid))
			if !eventually(10*time.Second, func() bool {
				c, err := lab.Host.DialError("tcp", "127.0.0.1:8001", time.Second)
				if err == nil {
					c.Close()
				}
				return err == nil
			}) {
				t.Fatalf("not up:\n%s", p.Output())
			}
			if tt.later != "" {
				g.Must("sh", "-c", tt.later)
			}
			if tt.lacks != "4" {
				go netlab.Echo(g.Listen("tcp4", "0.0.0.0:8001"))
				go netlab.EchoUDP(g.ListenUDP("udp4", "0.0.0.0:8001"))
			}
			if tt.lacks != "6" {
				go netlab.Echo(g.Listen("tcp6", "[::]:8001"))
				go netlab.EchoUDP(g.ListenUDP("udp6", "[::]:8001"))
			}
			for _, network := range []string{"tcp", "udp"} {
				for _, bad := range unanswered(lab.Host, network, "8001", "46") {
					t.Errorf("%s %s", network, bad)
				}
			}
			_ = p.Signal(syscall.SIGTERM)
			p.WaitFor(5 * time.Second)
		})
	}
}

// unanswered lists those of the loopback addresses that do not answer on a port.
func unanswered(n *netlab.NS, network, port, families string) (bad []string) {
	for f, addr := range map[string]string{"4": "127.0.0.1:" + port, "6": "[::1]:" + port} {
		if !strings.Contains(families, f) {
			continue
		}
		if s, err := netlab.Ask(n, network, addr, "hello"); err != nil || s != "hello" {
			bad = append(bad, fmt.Sprintf("%s: %q, %v", addr, s, err))
		}
	}
	return bad
}
