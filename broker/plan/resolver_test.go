// SPDX-License-Identifier: Apache-2.0

package plan

import (
	"fmt"
	"net/netip"
	"strings"
	"testing"

	"aldente/broker/cli"
	"aldente/broker/egress"
	"aldente/broker/hostnet"
	"aldente/ipc"
)

// homeNetwork is a host behind a router, 192.0.2.1 and fe80::1. 192.0.2.3 is
// another address of its interface, 172.17.0.1 one of another interface.
func homeNetwork() *hostnet.Network {
	a := netip.MustParseAddr
	return &hostnet.Network{
		V4: hostnet.Family{Link: hostnet.Link{Index: 2, Name: "eth0"}, Address: netip.MustParsePrefix("192.0.2.2/24"), Gateway: a("192.0.2.1"), Default: true,
			Locals: []netip.Addr{a("192.0.2.2"), a("192.0.2.3")}},
		V6: hostnet.Family{Link: hostnet.Link{Index: 2, Name: "eth0"}, Address: netip.MustParsePrefix("2001:db8:1::2/64"), Gateway: a("fe80::1"), Default: true,
			Locals: []netip.Addr{a("2001:db8:1::2")}},
		Own: []netip.Addr{a("127.0.0.1"), a("::1"), a("192.0.2.2"), a("192.0.2.3"), a("2001:db8:1::2"), a("172.17.0.1")},
	}
}

// TestResolvers goes through what a host's resolv.conf may name and what options
// make of it: the resolvers that the guest is told of, where the queries go that
// are forwarded, and which a command finds in its own file, if it gets one.
func TestResolvers(t *testing.T) {
	const (
		pasta   = "pasta --config-net -T none -U none "
		auto    = "pasta --config-net "
		passt   = "passt "
		aldente = "aldente --config-net "
	)
	for _, tt := range []struct {
		name, resolv, command string
		dns                   string // what the guest is told of
		forward               string // where queries go that are forwarded
		own                   string // servers of the command's own resolv.conf, "": it has the host's
	}{
		{"on the router", "192.0.2.1", pasta, "192.0.2.1", "192.0.2.1>192.0.2.1", ""},
		{"on the router, virtual machine", "192.0.2.1", passt, "192.0.2.1", "192.0.2.1>192.0.2.1", ""},
		{"on the router, not mapped", "192.0.2.1", pasta + "--no-map-gw", "192.0.2.1", "", ""},
		{"on the router, aldente", "192.0.2.1", aldente, "192.0.2.1", "", ""},
		{"on the router, aldente with that mapped", "192.0.2.1", aldente + "--map-host-loopback 192.0.2.1", "169.254.1.1", "169.254.1.1>192.0.2.1", "169.254.1.1"},
		{"on the router, another mapped", "192.0.2.1", pasta + "--map-host-loopback 192.0.2.77", "192.0.2.1", "", ""},
		{"on the router, another given", "192.0.2.1", pasta + "-g 192.0.2.77", "192.0.2.1", "", ""},
		{"on the router, IPv6", "fe80::1%2", pasta, "fe80::1", "fe80::1>fe80::1%2", ""},
		{"on the router, IPv6, on any link", "fe80::1", pasta, "fe80::1", "fe80::1>fe80::1", ""},
		{"on the router, IPv4 only", "192.0.2.1", pasta + "-4", "192.0.2.1", "192.0.2.1>192.0.2.1", ""},
		{"on the router, IPv6 only", "192.0.2.1", pasta + "-6", "fe80::1", "fe80::1>192.0.2.1", "fe80::1%eth0"},
		{"on the router, IPv6 only, not mapped", "192.0.2.1", pasta + "-6 --no-map-gw", "", "", ""},
		{"on the router, IPv6 only, virtual machine", "192.0.2.1", passt + "-6", "fe80::1", "fe80::1>192.0.2.1", ""},
		{"on the router, IPv6 only, aldente", "192.0.2.1", aldente + "-6", "fd61:6c64:656e:7465::53", "fd61:6c64:656e:7465::53>192.0.2.1", "fd61:6c64:656e:7465::53"},

		{"stub", "127.0.0.53", pasta, "192.0.2.1", "192.0.2.1>127.0.0.53", "192.0.2.1"},
		{"stub, reached by -U auto", "127.0.0.53", auto, "192.0.2.1", "192.0.2.1>127.0.0.53", ""},
		{"stub, reached by -U 53", "127.0.0.53", pasta + "-U 53", "192.0.2.1", "192.0.2.1>127.0.0.53", ""},
		{"stub, not reached by -U 53:54", "127.0.0.53", pasta + "-U 53:54", "192.0.2.1", "192.0.2.1>127.0.0.53", "192.0.2.1"},
		{"stub, not reached by -T", "127.0.0.53", pasta + "-T 53", "192.0.2.1", "192.0.2.1>127.0.0.53", "192.0.2.1"},
		{"stub, -U without UDP", "127.0.0.53", auto + "--no-udp", "192.0.2.1", "192.0.2.1>127.0.0.53", "192.0.2.1"},
		{"stub, guest configures itself", "127.0.0.53", "pasta -U none", "192.0.2.1", "192.0.2.1>127.0.0.53", ""},
		{"stub, virtual machine", "127.0.0.53", passt, "192.0.2.1", "192.0.2.1>127.0.0.53", ""},
		{"stub, aldente", "127.0.0.53", aldente, "169.254.1.1", "169.254.1.1>127.0.0.53", "169.254.1.1"},
		{"stub, not mapped", "127.0.0.53", pasta + "--no-map-gw", "", "", ""},
		{"stub, virtual machine, not mapped", "127.0.0.53", passt + "--no-map-gw", "", "", ""},
		{"stub, mapped otherwise", "127.0.0.53", pasta + "--map-host-loopback 192.0.2.77", "192.0.2.77", "192.0.2.77>127.0.0.53", "192.0.2.77"},
		{"stub, IPv6 only", "127.0.0.53", pasta + "-6", "fe80::1", "fe80::1>127.0.0.53", "fe80::1%eth0"},
		{"stub, IPv6 only by -U auto", "127.0.0.53", auto + "-6 -I tap7", "fe80::1", "fe80::1>127.0.0.53", "fe80::1%tap7"},
		{"stub on 127.0.0.1", "127.0.0.1", pasta, "192.0.2.1", "192.0.2.1>127.0.0.1", "192.0.2.1"},
		{"stub on ::1", "::1", pasta, "fe80::1", "fe80::1>::1", "fe80::1%eth0"},
		{"stub on ::1, virtual machine", "::1", passt, "fe80::1", "fe80::1>::1", ""},
		{"stub on ::1, IPv4 only", "::1", pasta + "-4", "192.0.2.1", "192.0.2.1>::1", "192.0.2.1"},
		{"stub on ::1, aldente", "::1", aldente, "fd61:6c64:656e:7465::53", "fd61:6c64:656e:7465::53>::1", "fd61:6c64:656e:7465::53"},
		{"stub on 0.0.0.0", "0.0.0.0", pasta, "192.0.2.1", "192.0.2.1>127.0.0.1", "192.0.2.1"},
		{"stub on ::", "::", pasta, "fe80::1", "fe80::1>::1", "fe80::1%eth0"},

		{"own address", "192.0.2.2", pasta, "192.0.2.1", "192.0.2.1>192.0.2.2", "192.0.2.1"},
		{"own address, -U auto does not help", "192.0.2.2", auto, "192.0.2.1", "192.0.2.1>192.0.2.2", "192.0.2.1"},
		{"own address, virtual machine", "192.0.2.2", passt, "192.0.2.1", "192.0.2.1>192.0.2.2", ""},
		{"own address, not mapped", "192.0.2.2", passt + "--no-map-gw", "192.0.2.2", "", ""},
		{"own address, aldente", "192.0.2.2", aldente, "169.254.1.1", "169.254.1.1>192.0.2.2", "169.254.1.1"},
		{"own address, mapped by itself", "192.0.2.2", pasta + "--no-map-gw --map-guest-addr 169.254.1.2", "169.254.1.2", "", "169.254.1.2"},
		{"own address, guest has another", "192.0.2.2", pasta + "-a 192.0.2.5", "192.0.2.2", "", ""},
		{"own address, IPv6", "2001:db8:1::2", pasta, "fe80::1", "fe80::1>2001:db8:1::2", "fe80::1%eth0"},
		{"own second address", "192.0.2.3", pasta, "192.0.2.1", "192.0.2.1>192.0.2.3", "192.0.2.1"},
		{"own second address, virtual machine", "192.0.2.3", passt, "192.0.2.3", "", ""},
		{"address of another interface", "172.17.0.1", pasta, "172.17.0.1", "", ""},

		{"elsewhere", "192.0.2.9", pasta, "192.0.2.9", "", ""},
		{"elsewhere, link-local", "fe80::9%eth0", pasta, "fe80::9", "", ""},
		{"on this link, by number", "fe80::9%2", pasta, "fe80::9", "", ""},
		{"on this link, which has another name", "fe80::9%2", pasta + "-I tap7", "fe80::9", "", "fe80::9%tap7"},
		{"on another link", "fe80::9%3", pasta, "fe80::1", "fe80::1>fe80::9%3", "fe80::1%eth0"},
		{"on another link, the router's address", "fe80::1%3", pasta, "fe80::1", "fe80::1>fe80::1%3", "fe80::1%eth0"},
		{"on another link, virtual machine", "fe80::9%3", passt, "fe80::1", "fe80::1>fe80::9%3", ""},
		{"on another link, not mapped", "fe80::9%3", pasta + "--no-map-gw", "", "", ""},
		{"on another link, IPv4 only", "fe80::9%3", pasta + "-4", "192.0.2.1", "192.0.2.1>fe80::9%3", "192.0.2.1"},
		{"on another link, aldente", "fe80::9%3", aldente, "fd61:6c64:656e:7465::53", "fd61:6c64:656e:7465::53>fe80::9%3", "fd61:6c64:656e:7465::53"},
		{"on another link, --dns-forward", "fe80::9%3", pasta + "--dns-forward fd00::53", "fd00::53", "fd00::53>fe80::9%3", "fd00::53"},
		{"on another link, by name", "fe80::9%3", aldente + "--allow a.test", "fd61:6c64:656e:7465::53", "fd61:6c64:656e:7465::53>fe80::9%3", "fd61:6c64:656e:7465::53"},
		{"elsewhere, then stub", "192.0.2.9 127.0.0.53", pasta, "192.0.2.9 192.0.2.1", "192.0.2.1>127.0.0.53", "192.0.2.9 192.0.2.1"},
		{"elsewhere, then the router", "192.0.2.9 192.0.2.1", pasta, "192.0.2.9 192.0.2.1", "192.0.2.1>192.0.2.1", ""},
		{"stub, then the router: both are the mapped gateway", "127.0.0.53 192.0.2.1", pasta, "192.0.2.1", "192.0.2.1>127.0.0.53", "192.0.2.1"},
		{"one each", "::1 192.0.2.1 192.0.2.9", pasta, "192.0.2.1 192.0.2.9 fe80::1", "192.0.2.1>192.0.2.1 fe80::1>::1", "fe80::1%eth0 192.0.2.1 192.0.2.9"},
		{"one each, IPv4 first", "192.0.2.9 ::1", pasta, "192.0.2.9 fe80::1", "fe80::1>::1", "192.0.2.9 fe80::1%eth0"},
		{"other family in vain", "192.0.2.9 2001:db8:1::9", pasta + "-4", "192.0.2.9", "", ""},
		{"none", "", pasta, "", "", ""},
		{"none, --dns", "", pasta + "--dns 192.0.2.9", "192.0.2.9", "", ""},
		{"none, virtual machine", "", passt, "", "", ""},
		{"none, aldente", "", aldente, "", "", ""},

		{"--dns-forward", "127.0.0.53", pasta + "--dns-forward 192.0.2.99", "192.0.2.99", "192.0.2.99>127.0.0.53", "192.0.2.99"},
		{"--dns-forward leaves the gateway alone", "192.0.2.1", pasta + "--dns-forward 192.0.2.99", "192.0.2.99", "192.0.2.99>192.0.2.1", "192.0.2.99"},
		{"--dns-forward, not mapped, as podman has it", "127.0.0.53", pasta + "--dns-forward 169.254.1.1 --no-map-gw", "169.254.1.1", "169.254.1.1>127.0.0.53", "169.254.1.1"},
		{"--dns-host", "127.0.0.53", pasta + "--dns-host 192.0.2.9", "192.0.2.1", "192.0.2.1>192.0.2.9", "192.0.2.1"},
		{"--dns-host alone", "192.0.2.9", pasta + "--dns-host 127.0.0.1", "192.0.2.9", "192.0.2.1>127.0.0.1", ""},
		{"--dns-host alone, the router", "192.0.2.9", pasta + "--dns-host 192.0.2.1", "192.0.2.9", "192.0.2.1>192.0.2.1", ""},
		{"--dns-host alone, elsewhere", "192.0.2.9", pasta + "--dns-host 192.0.2.8", "192.0.2.9", "", ""},
		{"--dns", "127.0.0.53", pasta + "--dns 192.0.2.9", "192.0.2.9", "192.0.2.1>127.0.0.53", "192.0.2.9"},
		{"--dns, virtual machine", "192.0.2.1", passt + "--dns 192.0.2.9", "192.0.2.9", "192.0.2.1>192.0.2.1", ""},
		{"--dns of the guest's own", "192.0.2.9", passt + "--dns 127.0.0.1", "127.0.0.1", "", ""},
		{"--dns of the router", "192.0.2.9", passt + "--dns 192.0.2.1", "192.0.2.1", "", ""},
		{"--dns and --dns-forward", "192.0.2.9", passt + "--dns 192.0.2.99 --dns-forward 192.0.2.99", "192.0.2.99", "192.0.2.99>192.0.2.9", ""},
		{"--dns and --dns-forward without a host's", "", passt + "--dns 192.0.2.9 --dns-forward 192.0.2.99", "192.0.2.9", "192.0.2.99>192.0.2.9", ""},
		// With a rule by name there has to be somebody whom the guest asks.
		{"by name, stub, not mapped", "127.0.0.53", pasta + "--no-map-gw --allow a.test", "169.254.1.1", "169.254.1.1>127.0.0.53", "169.254.1.1"},
		{"by name, stub, IPv6, not mapped", "::1", pasta + "--no-map-gw --allow a.test", "fd61:6c64:656e:7465::53", "fd61:6c64:656e:7465::53>::1", "fd61:6c64:656e:7465::53"},
		{"by name, stub, virtual machine, not mapped", "127.0.0.53", passt + "--no-map-gw --deny a.test", "169.254.1.1", "169.254.1.1>127.0.0.53", ""},
		{"by name, stub, IPv6 only, not mapped", "127.0.0.53", pasta + "-6 --no-map-gw --allow a.test", "fd61:6c64:656e:7465::53", "fd61:6c64:656e:7465::53>127.0.0.53", "fd61:6c64:656e:7465::53"},
		{"by name, stub, reached by -U auto past us", "127.0.0.53", auto + "--allow a.test", "192.0.2.1", "192.0.2.1>127.0.0.53", "192.0.2.1"},
		{"by name, elsewhere", "192.0.2.9", pasta + "--no-map-gw --allow a.test", "192.0.2.9", "", ""},
		{"by name, elsewhere, all denied", "192.0.2.9", aldente + "--allow a.test --deny any", "169.254.1.1", "169.254.1.1>192.0.2.9", "169.254.1.1"},
		{"by name, private, which is denied by default then", "10.0.0.53", aldente + "--allow a.test", "169.254.1.1", "169.254.1.1>10.0.0.53", "169.254.1.1"},
		{"private, without a rule by name", "10.0.0.53", aldente, "10.0.0.53", "", ""},
		{"by name, none but --dns-host", "", aldente + "--allow a.test --dns-host 192.0.2.9", "169.254.1.1", "169.254.1.1>192.0.2.9", "169.254.1.1"},
		{"by name, --dns none with --dns-forward", "127.0.0.53", pasta + "--dns none --dns-forward 192.0.2.99 --allow a.test", "", "192.0.2.99>127.0.0.53", ""},
		{"--dns none", "127.0.0.53", pasta + "--dns none", "", "", ""},
		{"--dns none, virtual machine", "192.0.2.1", passt + "--dns none", "", "", ""},
		{"--dns none, aldente", "127.0.0.53", aldente + "--dns none", "", "", ""},
	} {
		t.Run(tt.name, func(t *testing.T) {
			cfg, err := cli.Parse(append(strings.Fields(tt.command), "--", "true")[:len(strings.Fields(tt.command))+commandWords(tt.command)])
			if err != nil {
				t.Fatal(err)
			}
			text := []byte("options edns0\n" + lines(tt.resolv) + "search corp.example.org\n")
			r := hostnet.ParseResolvers(text)
			r.Text = text
			p, err := New(cfg, Host{Network: homeNetwork(), Resolvers: r})
			if err != nil {
				t.Fatal(err)
			}
			var dns, forward []string
			for _, a := range p.net.dns(false) {
				dns = append(dns, a.String())
			}
			for _, f := range []*guestFamily{&p.net.v4, &p.net.v6} {
				if f.enabled && f.dnsForward.IsValid() {
					forward = append(forward, fmt.Sprintf("%s>%s", f.dnsForward, f.dnsHost))
				}
			}
			if got := strings.Join(dns, " "); got != tt.dns {
				t.Errorf("the guest is told of %q, want %q", got, tt.dns)
			}
			if got := strings.Join(forward, " "); got != tt.forward {
				t.Errorf("queries go %q, want %q", got, tt.forward)
			}
			want := ""
			if tt.own != "" {
				want = "options edns0\nsearch corp.example.org\n" + lines(tt.own)
			}
			if got := string(p.ResolvConf); got != want {
				t.Errorf("the command's resolv.conf:\n%s\nwant\n%s", got, want)
			}
		})
	}
}

// TestResolverScope: the socket factory gets a resolver's link, and no address with a zone.
func TestResolverScope(t *testing.T) {
	for resolv, scope := range map[string]uint32{"fe80::9%3": 3, "fe80::9%2": 2, "fe80::9": 0, "2001:db8:9::9": 0} {
		h := home()
		h.Resolvers = hostnet.ParseResolvers([]byte("nameserver " + resolv + "\n"))
		p := newPlan(t, "aldente --config-net --allow a.test --dns-forward fd00::53", h)
		f := p.Factory.V6
		if f.DNSHost.Zone() != "" || !f.DNSHost.IsValid() || f.DNSHostScope != scope {
			t.Errorf("%s: %v on %d", resolv, f.DNSHost, f.DNSHostScope)
		}
		if r := p.Names.Resolvers; len(r) != 1 || hostnet.ScopeOf(r[0]) != int(scope) {
			t.Errorf("%s: aldente-names asks %v", resolv, r)
		}
		for _, a := range p.Factory.Resolvers {
			if a.Zone() != "" {
				t.Errorf("%s: the guest's name %v", resolv, a)
			}
		}
	}
}

// TestOwnAddresses: the worker hears of all addresses that the guest has, or may give
// itself, and of no others.
func TestOwnAddresses(t *testing.T) {
	for command, want := range map[string]string{
		"pasta --config-net":                 "192.0.2.2 192.0.2.3 2001:db8:1::2",
		"passt":                              "192.0.2.2 192.0.2.3 2001:db8:1::2",
		"pasta --config-net -4":              "192.0.2.2 192.0.2.3",
		"pasta --config-net -a 10.0.2.15/24": "10.0.2.15 2001:db8:1::2",
		"pasta --splice-only":                "",
	} {
		w := &newPlan(t, command, home()).Worker
		var got []string
		for _, a := range w.Own[:w.NOwn] {
			got = append(got, said(a))
		}
		if s := strings.Join(got, " "); s != want {
			t.Errorf("%s: %s, want %s", command, s, want)
		}
	}
	h := home()
	for k := range 1000 {
		h.Network.V4.Locals = append(h.Network.V4.Locals, netip.AddrFrom4([4]byte{10, 0, byte(k >> 8), byte(k)}))
	}
	if w := &newPlan(t, "passt", h).Worker; w.NOwn != ipc.MaxOwn {
		t.Errorf("%d of 1002 addresses", w.NOwn)
	}
}

// commandWords is how many words of "-- true" a command line takes.
func commandWords(command string) int {
	if strings.HasPrefix(command, "passt") {
		return 0
	}
	return 2
}

func lines(servers string) (text string) {
	for _, s := range strings.Fields(servers) {
		text += "nameserver " + s + "\n"
	}
	return text
}

// TestNamesNeedAResolver: rules by name that could never fit are an error, with what to do.
func TestNamesNeedAResolver(t *testing.T) {
	for command, want := range map[string]string{
		"aldente --config-net --allow a.test --dns none -- true": "leave out --dns none, or give --dns-forward",
		"passt --deny *.a.test --dns none":                       "leave out --dns none, or give --dns-forward",
		"pasta --splice-only --allow a.test -- true":             "--splice-only gives it none",
		"pasta --allow *a.test -- true":                          "--allow *a.test: a star stands for whole labels",
		"passt --dns none --allow 192.0.2.1":                     "",
		"passt --dns none --dns-forward 192.0.2.99 --allow a.b":  "",
	} {
		cfg, err := cli.Parse(strings.Fields(command))
		if err != nil {
			t.Fatal(err)
		}
		_, err = New(cfg, Host{Network: homeNetwork(), Resolvers: hostnet.ParseResolvers([]byte("nameserver 127.0.0.53\n"))})
		if want == "" && err != nil || want != "" && (err == nil || !strings.Contains(err.Error(), want)) {
			t.Errorf("%s: %v, want %q", command, err, want)
		}
	}
}

// TestDefaultDenies: what aldente denies by default, names or not, is behind all options,
// and marked as what holds against names.
func TestDefaultDenies(t *testing.T) {
	for command, want := range map[string]string{
		"aldente -- true":                               "--deny host, --deny metadata",
		"aldente --allow 192.0.2.1 -- true":             "--allow 192.0.2.1, --deny host, --deny metadata",
		"aldente --allow a.test:443 --deny any -- true": "--allow a.test:443, --deny any, --deny host, --deny metadata, --deny private",
		"pasta --allow a.test -- true":                  "--allow a.test",
	} {
		cfg, err := cli.Parse(strings.Fields(command))
		if err != nil {
			t.Fatal(err)
		}
		rules := egressRules(cfg, nil)
		var got []string
		for _, r := range rules {
			option := "--deny "
			if r.Allow {
				option = "--allow "
			}
			got = append(got, option+r.Dest)
			if r.Guard != (r.Source == egress.ByDefault) {
				t.Errorf("%s: %+v", command, r)
			}
		}
		if s := strings.Join(got, ", "); s != want {
			t.Errorf("%s: %s, want %s", command, s, want)
		}
	}
}

// TestGatewayNamesStayJudged: that the mapped gateway stands for a resolver is
// nobody's wish to be let through to it; --dns-forward is.
func TestGatewayNamesStayJudged(t *testing.T) {
	for _, tt := range []struct {
		command string
		want    bool
	}{
		{"passt --deny host", false},
		{"passt --deny host --dns-forward 192.0.2.99", true},
		{"passt --allow udp:127.0.0.53:53 --deny host", true},
		{"aldente --config-net -- true", true},
	} {
		cfg, err := cli.Parse(strings.Fields(tt.command))
		if err != nil {
			t.Fatal(err)
		}
		p, err := New(cfg, Host{Network: homeNetwork(), Resolvers: hostnet.ParseResolvers([]byte("nameserver 127.0.0.53\n"))})
		if err != nil {
			t.Fatal(err)
		}
		if got := p.Egress.Allowed(17, netip.MustParseAddrPort("127.0.0.53:53")); got != tt.want {
			t.Errorf("%s: the stub resolver is reached: %v", tt.command, got)
		}
	}
}
