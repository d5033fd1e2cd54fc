// SPDX-License-Identifier: Apache-2.0

package stream

import (
	"errors"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/net/ipv6"

	"aldente/test/machine"
	"aldente/test/netlab"
	"aldente/test/stream/standin"
)

// TestNamesAdvertised has virtual machines ask for their configuration on hosts
// whose resolver is the router, a stub on the host's loopback, or the host
// itself; what they are told of must answer, by datagrams and by streams.
func TestNamesAdvertised(t *testing.T) {
	machine.NeedOurs(t)
	netlab.Have(t, "dhclient", "dig")
	lab := netlab.New(t, netlab.Options{})
	lab.Resolvers()
	const mapped4, mapped6 = netlab.Gateway4, netlab.Gateway6
	for _, tt := range []struct {
		resolv, options string
		v4, v6          string // advertised
		want            string // who answers
	}{
		{netlab.Gateway4, "", mapped4, "", netlab.Gateway4},
		{netlab.Gateway4, "--no-map-gw", netlab.Gateway4, "", netlab.Gateway4},
		{netlab.Gateway4, "-6", "", mapped6, netlab.Gateway4},
		{netlab.Gateway6, "", "", mapped6, netlab.Gateway6},
		{"127.0.0.53", "", mapped4, "", "127.0.0.53"},
		{"127.0.0.53", "-4", mapped4, "", "127.0.0.53"},
		{"127.0.0.53", "-6", "", mapped6, "127.0.0.53"},
		{"127.0.0.53", "--no-map-gw", "", "", ""},
		{"127.0.0.53", "--no-map-gw --dns-forward 192.0.2.99", "192.0.2.99", "", "127.0.0.53"},
		{"::1", "", "", mapped6, "::1"},
		{"::1", "-4", mapped4, "", "::1"},
		{netlab.Host4, "", mapped4, "", netlab.Host4},
		{netlab.Host6, "", "", mapped6, netlab.Host6},
		{"192.0.2.9", "", "192.0.2.9", "", "192.0.2.9"},
		{"none", "", "", "", ""},
	} {
		t.Run(tt.resolv+"/"+tt.options, func(t *testing.T) {
			t.Parallel()
			p := startWith(t, lab, "nameserver "+tt.resolv+"\n", strings.Fields(tt.options)...)
			g := p.join(t, 1500)
			if !slices.Contains(strings.Fields(tt.options), "-6") {
				if got := g.leased(t, "-4", "domain-name-servers", "new_domain_name_servers"); got != tt.v4 {
					t.Errorf("DHCP: %q, want %q", got, tt.v4)
				}
			}
			if !slices.Contains(strings.Fields(tt.options), "-4") {
				if got := g.leased(t, "-6", "dhcp6.name-servers", "new_dhcp6_name_servers"); got != tt.v6 {
					t.Errorf("DHCPv6: %q, want %q", got, tt.v6)
				}
				if got := g.solicit(t); got != tt.v6 {
					t.Errorf("router advertisement: %q, want %q", got, tt.v6)
				}
			}
			if tt.want == "" {
				return
			}
			server := tt.v4
			if server == "" {
				server = tt.v6 + "%" + standin.Interface
			}
			want, _ := netlab.ResolverAnswer(tt.want)
			for _, way := range []string{"+notcp", "+tcp"} {
				if got := g.Must("dig", "+short", "+time=5", "+tries=3", way, "@"+server, "name.example", "A"); strings.TrimSpace(got) != want.String() {
					t.Errorf("%s %s: %q, want %s", way, server, got, want)
				}
			}
		})
	}
}

// leased asks for a configuration by DHCP or DHCPv6 and returns one variable of
// dhclient-script(8).
func (g *guest) leased(t *testing.T, version, option, variable string) string {
	t.Helper()
	dir := t.TempDir()
	at := func(name string) string { return filepath.Join(dir, name) }
	script := "#!/bin/sh\ncase $reason in BOUND|BOUND6) echo \"$" + variable + "\" >" + at("part") + "; mv " + at("part") + " " + at("got") + ";; esac\nexit 0\n"
	for name, text := range map[string]string{"script": script, "conf": "request subnet-mask, " + option + ";\n"} {
		if version == "-6" {
			text = strings.Replace(text, "subnet-mask, ", "", 1)
		}
		if err := os.WriteFile(at(name), []byte(text), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	p := g.Start(netlab.Spec{Args: []string{"dhclient", version, "-d", "-1", "-cf", at("conf"), "-lf", at("leases"), "-pf", at("pid"),
		"-sf", at("script"), standin.Interface}, Timeout: 30 * time.Second})
	defer p.Kill()
	for range 200 {
		if b, err := os.ReadFile(at("got")); err == nil {
			return strings.TrimSpace(string(b))
		}
		time.Sleep(100 * time.Millisecond)
	}
	t.Fatalf("no lease in 20 s:\n%s", p.Output())
	return ""
}

// solicit asks for a router advertisement and returns its first resolver (RFC
// 8106 section 5.1), or "".
func (g *guest) solicit(t *testing.T) string {
	t.Helper()
	var c net.PacketConn
	err := g.Do(func() (err error) {
		if c, err = net.ListenPacket("ip6:ipv6-icmp", "::"); err != nil {
			return err
		}
		dev, err := net.InterfaceByName(standin.Interface)
		if err != nil {
			return err
		}
		p := ipv6.NewPacketConn(c)
		return errors.Join(p.SetMulticastHopLimit(255), p.SetMulticastInterface(dev), p.JoinGroup(dev, &net.IPAddr{IP: net.ParseIP("ff02::1")}))
	})
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	b := make([]byte, 1500)
	for range 10 { // a load may swallow one
		if _, err := c.WriteTo([]byte{133, 0, 0, 0, 0, 0, 0, 0}, &net.IPAddr{IP: net.ParseIP("ff02::2")}); err != nil {
			t.Fatal(err)
		}
		_ = c.SetReadDeadline(time.Now().Add(2 * time.Second))
		for {
			n, _, err := c.ReadFrom(b)
			if err != nil {
				break
			}
			if b[0] == 134 && n >= 16 {
				return rdnss(b[16:n])
			}
		}
	}
	t.Fatal("no router advertisement")
	return ""
}

func rdnss(options []byte) string {
	for len(options) >= 8 && options[1] > 0 && len(options) >= int(options[1])*8 {
		if options[0] == 25 && options[1] >= 3 {
			return netip.AddrFrom16([16]byte(options[8:24])).String()
		}
		options = options[int(options[1])*8:]
	}
	return ""
}
