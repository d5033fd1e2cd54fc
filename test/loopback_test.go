// SPDX-License-Identifier: Apache-2.0

package test

import (
	"fmt"
	"strings"
	"testing"

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
