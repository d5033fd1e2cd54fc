// SPDX-License-Identifier: Apache-2.0

package test

import (
	"fmt"
	"io"
	"net"
	"slices"
	"strings"
	"testing"

	"aldente/test/netlab"
)

// lookup is a command that looks a name up in all ways that its resolv.conf
// offers: by the C library, and by datagrams and streams.
const lookup = `getent ahosts name.example; for way in +notcp +tcp; do dig +short +time=5 +tries=3 $way name.example A || echo $?; done`

// TestNamesBehindRouter starts commands on hosts as they stand in homes and
// offices: the resolver is the router, a stub on the host's loopback, or the
// host itself. Each resolver answers otherwise, so that it shows who was asked.
func TestNamesBehindRouter(t *testing.T) {
	needOurs(t)
	netlab.Have(t, "getent", "dig")
	lab := netlab.New(t, netlab.Options{})
	lab.Resolvers()
	const (
		none   = "-T none -U none"
		router = netlab.Gateway4
		far    = "192.0.2.9"
	)
	for _, tt := range []struct {
		resolv, options string
		want            string // who answers, "": nobody
	}{
		{router, "", router},
		{router, none, router},
		{router, none + " --no-map-gw", router},
		{router, none + " -4", router},
		{router, none + " -6", router},
		{router, none + " -g 192.0.2.77", router},
		{router, none + " --map-host-loopback 192.0.2.77", router},
		{router, none + " --dns-host " + far, far},
		{router, none + " --dns-forward 169.254.1.1", router},
		{netlab.Gateway6 + "%h0", none, netlab.Gateway6},
		{"127.0.0.53", "", "127.0.0.53"},
		{"127.0.0.53", none, "127.0.0.53"},
		{"127.0.0.53", none + " -I other0", "127.0.0.53"},
		{"127.0.0.53", none + " -6", "127.0.0.53"},
		{"127.0.0.53", none + " -6 -I other0", "127.0.0.53"},
		{"127.0.0.53", none + " --no-map-gw", ""},
		{"127.0.0.53", none + " --no-map-gw --dns-forward 169.254.1.1", "127.0.0.53"},
		{"127.0.0.53", none + " -g 192.0.2.77", "127.0.0.53"},
		{"127.0.0.53", none + " --dns none", ""},
		{"127.0.0.53", none + " --deny host", ""},
		{"127.0.0.1", none, "127.0.0.1"},
		{"127.0.0.1", "", "127.0.0.1"},
		{"::1", "", "::1"},
		{"::1", none, "::1"},
		{"::1", none + " -4", "::1"},
		{netlab.Host4, none, netlab.Host4},
		{netlab.Host4, "", netlab.Host4},
		{netlab.Host4, none + " -a 192.0.2.5", netlab.Host4},
		{"127.0.0.53", none + " --outbound-if4 h0 -o " + netlab.Host4, "127.0.0.53"},
		{"", none + " --dns 127.0.0.1", ""},
		{netlab.Host4, none + " --no-map-gw --map-guest-addr 169.254.1.2", netlab.Host4},
		{netlab.Host6, none, netlab.Host6},
		{far, none, far},
		{far + " 127.0.0.53", none, far},
		{"127.0.0.53 " + router, none, "127.0.0.53"},
		{"::1 " + router, none, "::1"},
		{"", none, ""},
	} {
		t.Run(fmt.Sprintf("%s/%s", tt.resolv, tt.options), func(t *testing.T) {
			t.Parallel()
			lab := lab.For(t)
			text := "options timeout:5 attempts:3\n"
			for _, s := range strings.Fields(tt.resolv) {
				text += "nameserver " + s + "\n"
			}
			command := lookup
			if tt.want == "" {
				command = "timeout 1 getent ahosts name.example; timeout 1 dig +short +time=1 +tries=1 name.example"
			}
			p := lab.StartPasta(netlab.GuestSpec{Resolv: text, User: netlab.Nobody}, slices.Concat(
				[]string{"--config-net", "-t", "none", "-u", "none"}, strings.Fields(tt.options), []string{"--", "sh", "-c", command})...)
			p.Wait()
			got := p.Stdout()
			if tt.want == "" {
				if strings.Contains(got, "198.51.100.1") || strings.Contains(got, "2001:db8::") {
					t.Errorf("names resolve: %s", got)
				}
				return
			}
			v4, v6 := netlab.ResolverAnswer(tt.want)
			ways := v4.String() + "\n" + v4.String() + "\n"
			if !strings.HasSuffix(got, ways) || !strings.Contains(strings.TrimSuffix(got, ways), v4.String()) &&
				!strings.Contains(got, v6.String()) {
				t.Errorf("%s is to answer with %s and %s; got\n%s", tt.want, v4, v6, p.Output())
			}
		})
	}
}

// TestGatewayIsHostBesidesNames: only the ports for names lead past the host's
// loopback, and only where a resolver needs it.
func TestGatewayIsHostBesidesNames(t *testing.T) {
	needOurs(t)
	lab := netlab.New(t, netlab.Options{})
	for _, port := range []string{"53", "853", "80"} {
		for ns, at := range map[*netlab.NS]string{lab.Host: "127.0.0.1", lab.Remote: netlab.Gateway4} {
			go answerWith(ns.Listen("tcp", at+":"+port), at)
		}
		go answerWith(lab.Host.Listen("tcp", "127.0.0.53:"+port), "127.0.0.53")
	}
	for _, tt := range []struct{ resolv, names string }{
		{netlab.Gateway4, netlab.Gateway4},
		{"127.0.0.53", "127.0.0.53"}, // though 127.0.0.1 has a service as well
		{"192.0.2.9", "127.0.0.1"},
	} {
		g := lab.GuestWith(netlab.GuestSpec{Args: []string{"--config-net"}, Resolv: "nameserver " + tt.resolv + "\n"})
		for port, want := range map[string]string{"53": tt.names, "853": tt.names, "80": "127.0.0.1"} {
			if got, err := netlab.Ask(g.NS, "tcp", netlab.Gateway4+":"+port, "?"); got != want {
				t.Errorf("resolver %s, gateway's port %s: %q, %v, want %q", tt.resolv, port, got, err, want)
			}
		}
	}
}

// answerWith tells each client the same.
func answerWith(ln net.Listener, text string) {
	for {
		c, err := ln.Accept()
		if err != nil {
			return
		}
		go func() {
			_, _ = io.Copy(io.Discard, c) // up to its half-close
			_, _ = io.WriteString(c, text)
			c.Close()
		}()
	}
}

// TestNamesWithoutDefaultRoute: addresses that only we know are reached by a
// route of their own where the host has no default route to copy.
func TestNamesWithoutDefaultRoute(t *testing.T) {
	needOurs(t)
	netlab.Have(t, "getent", "dig")
	for shape, name := range map[netlab.Shape]string{netlab.NoDefault: "no default route", netlab.NoInterface: "no interface"} {
		lab := netlab.New(t, netlab.Options{Shape: shape})
		serveDNS(lab.Host, "127.0.0.53:53")
		serveDNS(lab.Host, "[::1]:53")
		for _, tt := range []struct{ binary, options string }{
			{aldente(), ""},
			{aldente(), "-6"},
			{"", "--dns-forward 169.254.1.1"},
			{"", "-6 --dns-forward fd12::53 --dns-host ::1"},
		} {
			p := lab.StartPasta(netlab.GuestSpec{Binary: tt.binary, Resolv: "nameserver 127.0.0.53\n", User: netlab.Nobody},
				slices.Concat(netlab.NoForward(), []string{"--config-net"}, strings.Fields(tt.options), []string{"--", "sh", "-c", lookup})...)
			if p.Wait(); !strings.HasSuffix(p.Stdout(), "198.51.100.7\n198.51.100.7\n") {
				t.Errorf("%s, %s %s:\n%s", name, tt.binary, tt.options, p.Output())
			}
		}
	}
}
