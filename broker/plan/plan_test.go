// SPDX-License-Identifier: Apache-2.0

package plan

import (
	"net/netip"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"aldente/broker/budget"
	"aldente/broker/cli"
	"aldente/broker/egress"
	"aldente/broker/hostnet"
	"aldente/broker/sockets"
	"aldente/ipc"
)

// home is a host on homeNetwork with a resolver elsewhere.
func home() Host {
	return Host{
		Network:   homeNetwork(),
		Resolvers: hostnet.ParseResolvers([]byte("nameserver 192.0.2.9\nnameserver 2001:db8:1::9\nsearch corp.example.org\n")),
		Local:     func(egress.Flow) bool { return false },

		Descriptors: 4096, Conntrack: 65536, ClientPorts: cli.PortRange{First: 32768, Last: 60999},
		UDPIdle: 30, UDPStream: 120, PeekOff4: true, PeekOff6: true,
	}
}

// parse reads a command line; "--" and a command stand behind those that take one.
func parse(t *testing.T, command string) *cli.Config {
	t.Helper()
	args := strings.Fields(command)
	if !strings.HasPrefix(command, "passt") && !strings.HasPrefix(command, "slirp4netns") {
		args = append(args, "--", "true")
	}
	cfg, err := cli.Parse(args)
	if err != nil {
		t.Fatal(err)
	}
	return cfg
}

func newPlan(t *testing.T, command string, h Host) *Plan {
	t.Helper()
	p, err := New(parse(t, command), h)
	if err != nil {
		t.Fatalf("%s: %v", command, err)
	}
	return p
}

// said writes an address of a record as text, "-" for none.
func said(a [16]byte) string {
	if a == [16]byte{} {
		return "-"
	}
	return netip.AddrFrom16(a).Unmap().String()
}

// TestLimits: what the guest may use up is planned from what the host has.
func TestLimits(t *testing.T) {
	p := newPlan(t, "passt --limit udp=77", home())
	host := budget.Host{Descriptors: 4096, Ephemeral: 28232, Conntrack: 65536}
	if p.Budget != host {
		t.Errorf("the host has %+v, want %+v", p.Budget, host)
	}
	want := budget.Defaults(host)
	want.UDP = 77
	if p.Limits != want {
		t.Errorf("limits %+v, want %+v", p.Limits, want)
	}
	if p.Worker.MaxFlows != uint32(want.Sockets) || p.Worker.MaxUDP != uint32(want.WorkerUDP()) || p.Factory.MaxListeners != 3072 {
		t.Errorf("the worker keeps to %d and %d, the factory to %d listeners", p.Worker.MaxFlows, p.Worker.MaxUDP, p.Factory.MaxListeners)
	}
}

// TestDescriptorsOfRings: a front-end passes descriptors, for which there has to be room beside
// those of flows.
func TestDescriptorsOfRings(t *testing.T) {
	for command, enough := range map[string]bool{
		"passt --limit sockets=128": true, "passt --vhost-user --limit sockets=255": false, "passt --vhost-user --limit sockets=256": true,
		"passt --vhost-user": true,
	} {
		if _, err := New(parse(t, command), home()); (err == nil) != enough || !enough && !strings.Contains(err.Error(), "--limit sockets=256") {
			t.Errorf("%s: %v", command, err)
		}
	}
}

// TestFactory: what the socket factory is told.
func TestFactory(t *testing.T) {
	h := home()
	h.Network.Own = []netip.Addr{netip.MustParseAddr("127.0.0.1")}
	p := newPlan(t, "pasta -o 192.0.2.3 --outbound-if6 eth0 --freebind --host-lo-to-ns-lo --dns-forward 192.0.2.99", h)
	a := netip.MustParseAddr
	want := sockets.Config{
		V4: sockets.Family{Enabled: true, Source: a("192.0.2.3"), Scope: 2, DNSForward: a("192.0.2.99"), DNSHost: a("192.0.2.9"),
			MapHostLoopback: a("192.0.2.1"), GuestAddr: a("192.0.2.2"), Freebind: true},
		V6: sockets.Family{Enabled: true, Interface: "eth0", Scope: 2, DNSHost: a("2001:db8:1::9"),
			MapHostLoopback: a("fe80::1"), GuestAddr: a("2001:db8:1::2"), Freebind: true},
		Multicast:    sockets.Multicast{Send: true},
		MaxListeners: 3072, LoToLo: true, NoLoopback6: true, ClientPorts: sockets.PortRange{First: 32768, Last: 60999},
	}
	if p.Factory.Local == nil {
		t.Error("nobody tells what is local")
	}
	p.Factory.Local = nil
	same := cmp.Options{cmp.Comparer(func(a, b netip.Addr) bool { return a == b }), cmp.Comparer(func(a, b netip.Prefix) bool { return a == b })}
	if d := cmp.Diff(want, p.Factory, same); d != "" {
		t.Errorf("-want +got:\n%s", d)
	}
	if p.Egress != nil || HasEgressRules(parse(t, "pasta")) {
		t.Error("egress rules that nobody asked for")
	}

	// slirp4netns's resolver is the host's, of whichever family that has one; without
	// one, or if it was turned off, nothing is there.
	p = newPlan(t, "slirp4netns -6 4711 tap0", h)
	virtual4, virtual6 := netip.MustParsePrefix("10.0.2.0/24"), netip.MustParsePrefix("fd00::/64")
	want = sockets.Config{
		V4: sockets.Family{Enabled: true, Scope: 2, DNSForward: a("10.0.2.3"), DNSHost: a("192.0.2.9"),
			MapHostLoopback: a("10.0.2.2"), GuestAddr: a("10.0.2.100"), Virtual: virtual4},
		V6: sockets.Family{Enabled: true, Scope: 2, DNSForward: a("fd00::3"), DNSHost: a("2001:db8:1::9"),
			MapHostLoopback: a("fd00::2"), GuestAddr: a("fd00::64"), Virtual: virtual6},
		MaxListeners: 3072, NoLoopback6: true, ClientPorts: sockets.PortRange{First: 32768, Last: 60999},
	}
	p.Factory.Local = nil
	if d := cmp.Diff(want, p.Factory, same); d != "" {
		t.Errorf("-want +got:\n%s", d)
	}
	for _, tt := range []struct{ resolv, command, v4, v6 string }{
		{"nameserver 192.0.2.9\n", "slirp4netns -6 4711 tap0", "192.0.2.9", "192.0.2.9"},
		{"nameserver 2001:db8:1::9\n", "slirp4netns 4711 tap0", "2001:db8:1::9", "2001:db8:1::9"},
		{"nameserver 127.0.0.53\n", "slirp4netns --disable-host-loopback 4711 tap0", "127.0.0.53", "127.0.0.53"},
	} {
		h.Resolvers = hostnet.ParseResolvers([]byte(tt.resolv))
		if f := newPlan(t, tt.command, h).Factory; f.V4.DNSHost.String() != tt.v4 || f.V6.DNSHost.String() != tt.v6 {
			t.Errorf("%s, %s: %v, %v", tt.command, tt.resolv, f.V4.DNSHost, f.V6.DNSHost)
		}
	}
	if f := newPlan(t, "slirp4netns --disable-dns 4711 tap0", h).Factory; f.V4.DNSForward.IsValid() {
		t.Errorf("--disable-dns: %v is forwarded", f.V4.DNSForward)
	}
}

// TestEgressRules: options in their order, then what aldente denies and allows.
func TestEgressRules(t *testing.T) {
	for _, tt := range []struct{ command, to, want string }{
		{"aldente", "127.0.0.1:80 169.254.169.254:80 198.51.100.1:80", "- - +"},
		{"aldente --allow 127.0.0.1", "127.0.0.1:80 127.0.0.2:80", "+ -"},
		{"aldente -T 80", "127.0.0.1:80 [::1]:80 127.0.0.1:81", "+ + -"},
		{"aldente -U 80", "127.0.0.1:80", "-"}, // of UDP alone
		{"aldente --redirect 192.0.2.7:80=127.0.0.1:8080", "127.0.0.1:8080 127.0.0.1:80 [::1]:8080", "+ - -"},
		{"aldente --redirect udp:any:53=127.0.0.1", "127.0.0.1:53", "-"},
		{"aldente --deny 127.0.0.1 --redirect any:53=127.0.0.1", "127.0.0.1:53", "-"},
		{"pasta --deny host --redirect any:53=127.0.0.1", "127.0.0.1:53", "-"},
		{"passt --deny any --allow any", "198.51.100.1:80", "-"},
		{"passt --deny 192.0.2.9", "192.0.2.9:53 198.51.100.1:80", "- +"},
	} {
		p := newPlan(t, tt.command, home())
		var got []string
		for _, to := range strings.Fields(tt.to) {
			if p.Egress.Allowed(ipc.ProtoTCP, netip.MustParseAddrPort(to)) {
				got = append(got, "+")
			} else {
				got = append(got, "-")
			}
		}
		if s := strings.Join(got, " "); s != tt.want {
			t.Errorf("%s: to %s %s, want %s", tt.command, tt.to, s, tt.want)
		}
		if !HasEgressRules(parse(t, tt.command)) || p.Factory.Egress == nil {
			t.Errorf("%s: nobody asks the egress rules", tt.command)
		}
	}
	// What the kernel says is local counts, though no address of the host's.
	h := home()
	h.Local = func(f egress.Flow) bool { return f.To.Addr() == netip.MustParseAddr("198.51.100.1") }
	if newPlan(t, "aldente", h).Egress.Allowed(ipc.ProtoTCP, netip.MustParseAddrPort("198.51.100.1:80")) {
		t.Error("a local destination is no host")
	}
	p := newPlan(t, "aldente", home())
	p.cfg.TCPNS.Rules = []cli.Rule{{Proto: ipc.ProtoTCP, PortRange: cli.PortRange{First: 80, Last: 80}, TargetPort: 80, TargetAddr: netip.MustParseAddr("10.1.2.3")}}
	if got := outboundAllowed(outbound(p.cfg)); len(got) == 0 || got[0].Dest != "tcp:[10.1.2.3]:80" {
		t.Errorf("a rule with a target allows %+v", got)
	}
}

// TestListeners: where ports of rules are listened on.
func TestListeners(t *testing.T) {
	a := netip.MustParseAddr
	p := newPlan(t, "pasta -t 127.0.0.1/8000-8001:9000-9001 -u 53 -T 5000:6000 -U none", home())
	if len(p.Inbound) != 2 || len(p.Outbound) != 1 || !p.NeedsClients() || p.Scans() {
		t.Fatalf("%d and %d rules, clients %v, scans %v", len(p.Inbound), len(p.Outbound), p.NeedsClients(), p.Scans())
	}
	same := cmp.Comparer(func(a, b netip.Addr) bool { return a == b })
	unexported := cmp.FilterPath(func(p cmp.Path) bool { return p.Last().String() == ".cookie" }, cmp.Ignore())
	want := sockets.Listener{Proto: ipc.ProtoTCP, Addr: a("127.0.0.1"), Port: 8001, GuestPort: 9001, Splice: true}
	if d := cmp.Diff(want, p.HostListener(p.Inbound[0], 8001), same, unexported); d != "" {
		t.Errorf("on the host: -want +got:\n%s", d)
	}
	want = sockets.Listener{Proto: ipc.ProtoTCP, Port: 5000, GuestPort: 6000, Namespace: true, FD: 7}
	if d := cmp.Diff(want, p.NamespaceListener(p.Outbound[0], 5000, 7), same, unexported); d != "" {
		t.Errorf("in the namespace: -want +got:\n%s", d)
	}
	for command, splice := range map[string]bool{"pasta -t 1": true, "pasta -t 1 --no-splice": false, "passt -t 1": false} {
		p := newPlan(t, command, home())
		if p.HostListener(p.Inbound[0], 1).Splice != splice {
			t.Errorf("%s: the bypass is not %v", command, splice)
		}
	}
	if p := newPlan(t, "pasta -u none", home()); !p.Scans() || p.NeedsClients() {
		t.Errorf("pasta: scans %v, clients %v", p.Scans(), p.NeedsClients())
	}
	if p := newPlan(t, "pasta -t none --no-udp", home()); p.Scans() || len(p.Inbound) != 0 {
		t.Errorf("without UDP: %d rules", len(p.Inbound))
	}
}

// TestNamespaceSockets: what the agent is asked for, by the families that are.
func TestNamespaceSockets(t *testing.T) {
	const base = ipc.AgentOpenBind | ipc.AgentOpenListen
	for _, tt := range []struct {
		command  string
		addr     string // of the rule
		flags    uint8
		loopback string
	}{
		{"pasta", "", base | ipc.AgentOpenDevice | ipc.AgentOpenDual, "127.0.0.1 ::1"},
		{"pasta -4", "", base | ipc.AgentOpenDevice | ipc.AgentOpenIPv4, "127.0.0.1"},
		{"pasta -6", "", base | ipc.AgentOpenDevice, "::1"},
		{"pasta", "127.0.0.1", base | ipc.AgentOpenDevice | ipc.AgentOpenIPv4, "127.0.0.1"},
		{"pasta", "::1", base | ipc.AgentOpenDevice, "::1"},
	} {
		r := &cli.Rule{Proto: ipc.ProtoTCP, PortRange: cli.PortRange{First: 80, Last: 80}, TargetPort: 80}
		if tt.addr != "" {
			r.Addr = netip.MustParseAddr(tt.addr)
		}
		p := newPlan(t, tt.command, home())
		if o := p.NamespaceSocket(r, 80); o.Flags != tt.flags || o.LocalPort != 80 || o.Proto != ipc.ProtoTCP || o.Local != [16]byte{} {
			t.Errorf("%s %s: asks for %+v", tt.command, tt.addr, o)
		}
		var got []string
		for _, o := range p.LoopbackSockets(r, 80) {
			a := netip.AddrFrom16(o.Local)
			if o.Flags&^ipc.AgentOpenIPv4 != base || a.Unmap().Is4() != (o.Flags&ipc.AgentOpenIPv4 != 0) || o.LocalPort != 80 {
				t.Errorf("%s %s: asks for %+v", tt.command, tt.addr, o)
			}
			got = append(got, a.Unmap().String())
		}
		if s := strings.Join(got, " "); s != tt.loopback {
			t.Errorf("%s %s: then for %q, want %q", tt.command, tt.addr, s, tt.loopback)
		}
	}
}

// TestTap: the guest's interface.
func TestTap(t *testing.T) {
	p := newPlan(t, "pasta --config-net -I tap7 --ns-mac-addr 02:00:00:00:00:07 -m 1500 -a 10.0.2.15/24 --map-guest-addr 169.254.1.2", home())
	s := &p.Tap
	if s.Name != "tap7" || s.MAC != [6]byte{2, 0, 0, 0, 0, 7} || s.MTU != 1500 || s.QueueLen != tapQueue || !s.Configure {
		t.Errorf("%+v", s)
	}
	if s.V4.Address.String() != "10.0.2.15/24" || len(s.V4.Routes) == 0 || s.V6.Address.IsValid() {
		t.Errorf("IPv4 %+v, IPv6 %+v", s.V4, s.V6)
	}
	if s := newPlan(t, "pasta", home()).Tap; s.Name != "eth0" || s.MTU != defaultMTU || s.Configure {
		t.Errorf("by default %+v", s)
	}
	if s := newPlan(t, "slirp4netns -c -m 9000 4711 tap7", home()).Tap; s.Name != "tap7" || s.MTU != 9000 || !s.Configure ||
		s.V4.Address.String() != "10.0.2.100/24" || s.V4.Gateway.String() != "10.0.2.2" || len(s.V4.Routes)+len(s.V4.Addresses) > 0 {
		t.Errorf("slirp4netns -c: %+v", s)
	}
	if s := newPlan(t, "slirp4netns -m 9000 4711 tap7", home()).Tap; s.MTU != 0 || s.Configure {
		t.Errorf("slirp4netns: %+v", s)
	}
	if s := newPlan(t, "pasta -m 0", home()).Tap; s.MTU != 0 {
		t.Errorf("-m 0: MTU %d", s.MTU)
	}
	h := home()
	h.Network.V4 = hostnet.Family{Local: true, Address: hostnet.LocalAddress4, Gateway: hostnet.LocalGateway4}
	h.Network.V6 = hostnet.Family{Local: true, Gateway: hostnet.LocalGateway6}
	if s := newPlan(t, "pasta --config-net", h).Tap; s.Name != hostnet.DefaultTapName || s.V4.Address != hostnet.LocalAddress4 || s.V6.Gateway != hostnet.LocalGateway6 {
		t.Errorf("without an interface %+v", s)
	}
}

// TestNotes: what the user is told before anything is made.
func TestNotes(t *testing.T) {
	several := func(h *Host) { h.Network.V4.Multiple = true }
	nothing := func(h *Host) { h.Network.V4.Local, h.Network.V6.Local = true, true }
	noResolver := func(h *Host) { h.Resolvers = hostnet.Resolvers{} }
	hidden := func(h *Host) { h.Resolvers = hostnet.ParseResolvers([]byte("nameserver 127.0.0.53\n")) }
	for _, tt := range []struct {
		command string
		change  func(*Host)
		want    string // in the only line, "": there is none
	}{
		{"pasta", func(*Host) {}, ""},
		{"pasta", several, "several default routes"},
		{"pasta -6", several, ""},
		{"pasta", nothing, "no interface with a route"},
		{"passt", noResolver, "no resolver in /etc/resolv.conf: --dns ADDR"},
		{"passt --no-map-gw", hidden, "can reach no resolver of the host's (127.0.0.53)"},
		{"passt -D none", noResolver, ""},
		{"pasta --splice-only", noResolver, ""},
		{"slirp4netns 4711 tap0", nothing, "at 10.0.2.2: --disable-host-loopback"},
		{"slirp4netns --disable-host-loopback 4711 tap0", nothing, ""},
	} {
		h := home()
		tt.change(&h)
		got := newPlan(t, tt.command, h).Notes
		if tt.want == "" && len(got) > 0 || tt.want != "" && (len(got) != 1 || !strings.Contains(got[0], tt.want)) {
			t.Errorf("%s: %q, want %q", tt.command, got, tt.want)
		}
	}
}

// TestPlanFails: options that cannot be met.
func TestPlanFails(t *testing.T) {
	long := strings.Repeat("x", ipc.MaxDomain+1)
	for _, tt := range []struct {
		name   string
		change func(*cli.Config, *Host)
		want   string
	}{
		{"no family", func(_ *cli.Config, h *Host) {
			h.Network.V4.Unsupported, h.Network.V6.Unsupported = true, true
		}, "neither IPv4 nor IPv6"},
		{"IPv6 on too small a link", func(c *cli.Config, _ *Host) { c.IPv6Only, c.MTU = true, 1000 }, "neither IPv4 nor IPv6"},
		{"rule", func(c *cli.Config, _ *Host) { c.Egress = []cli.EgressOption{{Dest: "nowhere at all"}} }, "nowhere"},
		{"host name", func(c *cli.Config, _ *Host) { c.Hostname = long }, "host name: "},
		{"FQDN", func(c *cli.Config, _ *Host) { c.FQDN = long }, "FQDN: "},
		{"search", func(c *cli.Config, _ *Host) { c.Search = []string{long} }, "search domain: "},
	} {
		cfg, h := parse(t, "passt"), home()
		tt.change(cfg, &h)
		if _, err := New(cfg, h); err == nil || !strings.Contains(err.Error(), tt.want) {
			t.Errorf("%s: %v, want %q", tt.name, err, tt.want)
		}
	}
}

// TestSummary: what the user is told once all is made.
func TestSummary(t *testing.T) {
	for _, tt := range []struct{ command, tap, want string }{
		{"passt -t 22 -4 -M 02:00:00:00:00:01 --map-guest-addr 192.0.2.8", "", `Template interface: eth0 (IPv4)
MAC:
    host: 02:00:00:00:00:01
    NAT to host 127.0.0.1: 192.0.2.1
    NAT to guest's address on the host: 192.0.2.8
DHCP:
    assign: 192.0.2.2/24
    router: 192.0.2.1
DNS:
    192.0.2.9
DNS search list:
    corp.example.org
Inbound forwarding rules (HOST):
    `},
		{"pasta -6 --no-map-gw --no-ndp --no-dhcpv6 -t none -u none -T 80 -U none", "tap7", `Template interface: eth0 (IPv6)
Namespace interface: tap7
MAC:
    host: 9a:55:9a:55:9a:55
Outbound forwarding rules (SPLICE):
    `},
	} {
		lines := newPlan(t, tt.command, home()).Summary(tt.tap)
		got := strings.Join(lines, "\n")
		if !strings.HasPrefix(got, tt.want) || strings.Count(got, "\n") != strings.Count(tt.want, "\n") {
			t.Errorf("%s:\n%s\nwant\n%s", tt.command, got, tt.want)
		}
	}
}
