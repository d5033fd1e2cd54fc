// SPDX-License-Identifier: Apache-2.0

package test

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"aldente/test/netlab"
)

// unconfigured starts a guest whose interface nobody has configured, with
// everything that the configuration protocols can tell.
func unconfigured(t *testing.T) *netlab.Guest {
	lab := netlab.New(t, netlab.Options{})
	return lab.GuestWith(netlab.GuestSpec{Args: []string{"--dhcp-dns", "--dhcp-search", "-m", "1400",
		"-D", "192.0.2.53", "-D", "2001:db8:1::53", "-S", "abc.de corp.example.org", "-H", "guesthost", "--fqdn", "guesthost.example.org"}})
}

// envScript writes a client's script that saves its environment.
func envScript(t *testing.T) (script, env string) {
	t.Helper()
	dir := t.TempDir()
	script, env = filepath.Join(dir, "script"), filepath.Join(dir, "env")
	text := "#!/bin/sh\nset >>" + env + ".part\ncase \"$1$reason\" in bound|BOUND|BOUND6) mv " + env + ".part " + env + ";; esac\nexit 0\n"
	if err := os.WriteFile(script, []byte(text), 0o755); err != nil {
		t.Fatal(err)
	}
	return script, env
}

// waitEnv waits for the script's record and returns its variables.
func waitEnv(t *testing.T, p *netlab.Proc, file string) map[string]string {
	t.Helper()
	for range 150 {
		if b, err := os.ReadFile(file); err == nil {
			m := map[string]string{}
			for line := range strings.Lines(string(b)) {
				if k, v, ok := strings.Cut(strings.TrimSpace(line), "="); ok {
					m[k] = strings.Trim(v, "'")
				}
			}
			return m
		}
		time.Sleep(100 * time.Millisecond)
	}
	t.Fatalf("no lease in 15 s:\n%s", p.Output())
	return nil
}

func wantEnv(t *testing.T, got, want map[string]string) {
	t.Helper()
	for k, w := range want {
		if strings.TrimSuffix(got[k], " ") != w {
			t.Errorf("%s is %q, want %q", k, got[k], w)
		}
	}
}

func TestUdhcpc(t *testing.T) {
	netlab.Have(t, "udhcpc")
	g := unconfigured(t)
	script, env := envScript(t)
	g.IP("link set " + g.Interface() + " up")
	p := g.Start(netlab.Spec{Args: []string{"udhcpc", "-f", "-q", "-n", "-t", "5", "-T", "1", "-i", g.Interface(), "-s", script,
		"-O", "mtu", "-O", "search", "-O", "hostname", "-O", "dns"}, Timeout: 20 * time.Second})
	wantEnv(t, waitEnv(t, p, env), map[string]string{"ip": netlab.Host4, "subnet": "255.255.255.0", "mask": "24", "router": netlab.Gateway4,
		"dns": "192.0.2.53", "mtu": "1400", "search": "abc.de corp.example.org", "hostname": "guesthost"})
}

func TestDhclient4(t *testing.T) {
	netlab.Have(t, "dhclient")
	g := unconfigured(t)
	script, env := envScript(t)
	g.IP("link set " + g.Interface() + " up")
	p := dhclient(t, g, script, "-4", "request subnet-mask, routers, domain-name-servers, interface-mtu, host-name;\n")
	wantEnv(t, waitEnv(t, p, env), map[string]string{"new_ip_address": netlab.Host4, "new_subnet_mask": "255.255.255.0",
		"new_routers": netlab.Gateway4, "new_domain_name_servers": "192.0.2.53", "new_interface_mtu": "1400", "new_host_name": "guesthost"})
}

func TestDhclient6(t *testing.T) {
	netlab.Have(t, "dhclient")
	g := unconfigured(t)
	script, env := envScript(t)
	ifUp(t, g)
	p := dhclient(t, g, script, "-6", "request dhcp6.name-servers;\n")
	wantEnv(t, waitEnv(t, p, env), map[string]string{"new_ip6_address": netlab.Host6, "new_dhcp6_name_servers": "2001:db8:1::53"})
}

// dhclient runs the client in the foreground with files of its own.
func dhclient(t *testing.T, g *netlab.Guest, script, version, conf string) *netlab.Proc {
	t.Helper()
	dir := t.TempDir()
	cf := filepath.Join(dir, "conf")
	if err := os.WriteFile(cf, []byte(conf), 0o644); err != nil {
		t.Fatal(err)
	}
	return g.Start(netlab.Spec{Args: []string{"dhclient", version, "-d", "-1", "-cf", cf, "-lf", filepath.Join(dir, "leases"),
		"-pf", filepath.Join(dir, "pid"), "-sf", script, g.Interface()}, Timeout: 30 * time.Second})
}

// ifUp brings the guest's interface up and waits for its link-local address.
func ifUp(t *testing.T, g *netlab.Guest) {
	t.Helper()
	dev := g.Interface()
	g.Sysctl("net/ipv6/conf/"+dev+"/accept_dad", "0")
	g.IP("link set " + dev + " up")
	for range 50 {
		if out := g.Must("ip", "-6", "address", "show", "dev", dev, "scope", "link"); strings.Contains(out, "fe80:") && !strings.Contains(out, "tentative") {
			return
		}
		time.Sleep(100 * time.Millisecond)
	}
	t.Fatal("no link-local address")
}

func TestSLAAC(t *testing.T) {
	g := unconfigured(t)
	dev := g.Interface()
	ifUp(t, g)
	var addr, route, mtu string
	for range 80 {
		addr = g.Must("ip", "-6", "address", "show", "dev", dev, "scope", "global", "dynamic")
		route = g.Must("ip", "-6", "route", "show", "default")
		mtu = g.Read("/proc/sys/net/ipv6/conf/" + dev + "/mtu")
		if strings.Contains(addr, "2001:db8:1:") && strings.Contains(route, "proto ra") && mtu == "1400" {
			return
		}
		time.Sleep(100 * time.Millisecond)
	}
	t.Errorf("addresses %q, default route %q, MTU %s", addr, route, mtu)
}

// TestProtocolsOff checks that options which turn a protocol off do.
func TestProtocolsOff(t *testing.T) {
	netlab.Have(t, "udhcpc", "ping")
	lab := netlab.New(t, netlab.Options{})
	go netlab.Echo(lab.Remote.Listen("tcp", "192.0.2.9:7"))
	go netlab.EchoUDP(lab.Remote.ListenUDP("udp", "192.0.2.9:7"))
	for _, tt := range []struct {
		option         string
		tcp, udp, ping bool
	}{
		{"--no-tcp", false, true, true},
		{"--no-udp", true, false, true},
		{"--no-icmp", true, true, false},
	} {
		t.Run(tt.option, func(t *testing.T) {
			t.Parallel()
			lab := lab.For(t)
			g := lab.Guest(tt.option)
			wait := map[bool]time.Duration{true: soonEnough, false: 1500 * time.Millisecond}[tt.tcp]
			_, terr := g.DialError("tcp", "192.0.2.9:7", wait)
			s, uerr := netlab.Ask(g.NS, "udp", "192.0.2.9:7", "x")
			st, _ := g.Run("ping", "-c", "1", "-W", map[bool]string{true: "10", false: "1"}[tt.ping], "192.0.2.9")
			got := fmt.Sprint(terr == nil, uerr == nil && s == "x", st == 0)
			if want := fmt.Sprint(tt.tcp, tt.udp, tt.ping); got != want {
				t.Errorf("TCP, UDP, ping work: %s, want %s", got, want)
			}
		})
	}
}

// TestSlirpDHCP: a guest of slirp4netns's network that configures itself gets the address that
// forwarded ports lead to.
func TestSlirpDHCP(t *testing.T) {
	netlab.Have(t, "udhcpc")
	lab := netlab.New(t, netlab.Options{NoRemote: true})
	for args, dns := range map[string]string{"--mtu=1400": "10.0.2.3", "--mtu=1400 --disable-dns": ""} {
		s := startSlirp(t, lab, slirpSpec{Args: strings.Fields(args)})
		script, env := envScript(t)
		s.IP("link set tap0 up")
		p := s.Start(netlab.Spec{Args: []string{"udhcpc", "-f", "-q", "-n", "-t", "5", "-T", "1", "-i", "tap0", "-s", script, "-O", "mtu", "-O", "dns"}, Timeout: 20 * time.Second})
		wantEnv(t, waitEnv(t, p, env), map[string]string{"ip": "10.0.2.100", "mask": "24", "router": "10.0.2.2", "dns": dns, "mtu": "1400"})
	}
}
