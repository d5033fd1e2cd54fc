// SPDX-License-Identifier: Apache-2.0

package test

import (
	"strings"
	"testing"

	"aldente/test/netlab"
)

// TestHostNetworks starts on hosts whose networks are not the usual ones.
func TestHostNetworks(t *testing.T) {
	for _, tt := range []struct {
		name   string
		shape  netlab.Shape
		v4, v6 bool   // the remote can be reached
		addr   string // is among the guest's addresses
		args   []string
	}{
		{"both versions", netlab.Dual, true, true, netlab.Host4, nil},
		{"only IPv4", netlab.OnlyIPv4, true, false, netlab.Host4, nil},
		{"only IPv6", netlab.OnlyIPv6, false, true, netlab.Host6, nil},
		{"-4", netlab.Dual, true, false, netlab.Host4, []string{"-4"}},
		{"-6", netlab.Dual, false, true, netlab.Host6, []string{"-6"}},
		{"no default route", netlab.NoDefault, true, true, netlab.Host4, nil},
		{"point to point", netlab.PointToPoint, true, true, netlab.Host4, nil},
		{"two default routes", netlab.TwoDefaults, true, true, netlab.Host4, nil},
		{"chosen interface", netlab.TwoDefaults, true, true, "203.0.113.2", []string{"-i", "h1"}},
		{"no interface", netlab.NoInterface, false, false, "169.254.2.1", nil},
	} {
		t.Run(tt.name, func(t *testing.T) {
			lab := netlab.New(t, netlab.Options{Shape: tt.shape})
			if tt.shape == netlab.OnlyIPv4 {
				lab.Host.Sysctl("net/ipv6/conf/all/disable_ipv6", "1")
			}
			g := lab.Guest(tt.args...)
			if out := g.Must("ip", "address"); !strings.Contains(out, tt.addr+"/") && !strings.Contains(out, tt.addr+" peer") {
				t.Errorf("no %s in\n%s", tt.addr, out)
			}
			if lab.Remote == nil {
				return
			}
			for i, f := range families {
				want := []bool{tt.v4, tt.v6}[i]
				go netlab.Echo(lab.Remote.Listen("tcp", f.at(f.remote, "7")))
				s, err := netlab.Ask(g.NS, "tcp", f.at(f.remote, "7"), "x")
				if (s == "x") != want {
					t.Errorf("%s: %q, %v, want it to work: %v\n%s", f.name, s, err, want, g.Must("ip", "route"))
				}
			}
		})
	}
}

// TestIdentities starts as different users.
func TestIdentities(t *testing.T) {
	lab := netlab.New(t, netlab.Options{})
	go netlab.Echo(lab.Remote.Listen("tcp", "192.0.2.9:7"))
	for _, tt := range []struct {
		name string
		spec netlab.GuestSpec
		root bool
	}{
		{"unprivileged user", netlab.GuestSpec{}, true},
		{"root", netlab.GuestSpec{User: netlab.Root}, true},
		{"--runas", netlab.GuestSpec{User: netlab.Root, Args: []string{"--runas", "61235:61235"}}, true},
		{"root of a user namespace", netlab.GuestSpec{Wrap: []string{"unshare", "-Ur"}}, false},
		{"mapped user of a user namespace", netlab.GuestSpec{Wrap: []string{"unshare", "-Uc"}}, false},
	} {
		t.Run(tt.name, func(t *testing.T) {
			if tt.root {
				needRoot(t)
			}
			if tt.spec.User == netlab.Root {
				needOurs(t) // the original starts no command as root
			}
			tt.spec.Args = append(tt.spec.Args, "--config-net")
			g := lab.For(t).GuestWith(tt.spec)
			if s, err := netlab.Ask(g.NS, "tcp", "192.0.2.9:7", "x"); s != "x" {
				t.Errorf("%q, %v", s, err)
			}
			if st, out := g.Run("ping", "-c", "1", "-W", "2", "192.0.2.9"); st != 0 && tt.name == "unprivileged user" {
				t.Error(out)
			}
		})
	}
}

// TestConfigured compares the guest's addresses and routes with the options.
func TestConfigured(t *testing.T) {
	lab := netlab.New(t, netlab.Options{})
	lab.Host.IP("addr add 192.0.2.3/24 dev h0", "route add 198.51.100.0/24 via 192.0.2.9", "-6 route add 2001:db8:77::/48 via fe80::1 dev h0")
	for _, tt := range []struct {
		name string
		args []string
		cmd  string
		want []string
	}{
		{"copied addresses", nil, "ip -4 address", []string{"192.0.2.2/24", "192.0.2.3/24"}},
		{"copied IPv6 addresses", nil, "ip -6 address", []string{"2001:db8:1::2/64"}},
		{"copied routes", nil, "ip route", []string{"default via 192.0.2.1", "198.51.100.0/24 via 192.0.2.9"}},
		{"copied IPv6 routes", nil, "ip -6 route", []string{"default via fe80::1", "2001:db8:77::/48 via fe80::1"}},
		{"default interface name", nil, "ip link", []string{" h0:", "mtu 65520"}},
		{"names and MTU", []string{"-I", "eth7", "-m", "1400", "--ns-mac-addr", "02:00:00:00:00:07"}, "ip link", []string{" eth7:", "mtu 1400", "02:00:00:00:00:07"}},
		{"given address", []string{"-a", "10.9.8.7", "-n", "24", "-g", "10.9.8.1"}, "ip address", []string{"10.9.8.7/24"}},
		{"given gateway", []string{"-a", "10.9.8.7/24", "-g", "10.9.8.1"}, "ip route", []string{"default via 10.9.8.1"}},
		{"rootlesskit's", []string{"--stderr", "--ns-ifname=tap0", "--mtu=65520", "--address=10.0.2.100", "--netmask=24", "--gateway=10.0.2.2",
			"--dns-forward=10.0.2.3", "--no-map-gw", "--ipv4-only"}, "ip address", []string{" tap0:", "10.0.2.100/24"}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			g := lab.For(t).Guest(tt.args...)
			out := g.Must(strings.Fields(tt.cmd)...)
			for _, w := range tt.want {
				if !strings.Contains(out, w) {
					t.Errorf("no %q in\n%s", w, out)
				}
			}
		})
	}
}
