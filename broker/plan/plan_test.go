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

// TestWorkerAddresses: what a worker is told of addresses, for each personality,
// with the options that change it, and for hosts that lack something.
func TestWorkerAddresses(t *testing.T) {
	no4 := func(h *Host) { h.Network.V4 = hostnet.Family{Unsupported: true} }
	no6 := func(h *Host) { h.Network.V6 = hostnet.Family{Unsupported: true} }
	noInterface := func(h *Host) {
		h.Network.V4 = hostnet.Family{Local: true, Address: hostnet.LocalAddress4, Gateway: hostnet.LocalGateway4}
		h.Network.V6 = hostnet.Family{Local: true, Gateway: hostnet.LocalGateway6}
	}
	globalGateway := func(h *Host) {
		h.Network.V6.Gateway = netip.MustParseAddr("2001:db8:1::1")
		h.Network.V6.LinkLocal = netip.MustParseAddr("fe80::2")
	}
	noGateway := func(h *Host) { h.Network.V4.Gateway, h.Network.V6.Gateway = netip.Addr{}, netip.Addr{} }
	const none = "- - - -"
	for _, tt := range []struct {
		name, command string
		change        func(*Host)
		v4, v6        string // the guest's, ours, the host's loopback, the guest's address on the host
	}{
		{"passt", "passt", nil, "192.0.2.2/24 192.0.2.1 192.0.2.1 -", "2001:db8:1::2/64 fe80::1 fe80::1 -"},
		{"pasta", "pasta", nil, "192.0.2.2/24 192.0.2.1 192.0.2.1 -", "2001:db8:1::2/64 fe80::1 fe80::1 -"},
		{"aldente", "aldente", nil, "192.0.2.2/24 192.0.2.1 - -", "2001:db8:1::2/64 fe80::1 - -"},
		{"IPv4 only", "pasta -4", nil, "192.0.2.2/24 192.0.2.1 192.0.2.1 -", none},
		{"IPv6 only", "pasta -6", nil, none, "2001:db8:1::2/64 fe80::1 fe80::1 -"},
		{"kernel without IPv4", "pasta", no4, none, "2001:db8:1::2/64 fe80::1 fe80::1 -"},
		{"kernel without IPv6", "passt", no6, "192.0.2.2/24 192.0.2.1 192.0.2.1 -", none},
		{"an MTU too small for IPv6", "pasta -m 1279", nil, "192.0.2.2/24 192.0.2.1 192.0.2.1 -", none},
		{"no interface", "passt", noInterface, "169.254.2.1/16 169.254.2.2 169.254.2.2 -", "-/0 fe80::1 fe80::1 -"},
		{"address given", "pasta -a 10.0.2.15/24 -a 2001:db8:2::15", nil, "10.0.2.15/24 192.0.2.1 192.0.2.1 -", "2001:db8:2::15/64 fe80::1 fe80::1 -"},
		{"netmask given", "pasta -n 28", nil, "192.0.2.2/28 192.0.2.1 192.0.2.1 -", "2001:db8:1::2/64 fe80::1 fe80::1 -"},
		{"gateways given", "pasta -g 192.0.2.77 -g fe80::77", nil, "192.0.2.2/24 192.0.2.77 192.0.2.77 -", "2001:db8:1::2/64 fe80::77 fe80::77 -"},
		{"gateway with a global address", "pasta", globalGateway, "192.0.2.2/24 192.0.2.1 192.0.2.1 -", "2001:db8:1::2/64 fe80::2 2001:db8:1::1 -"},
		{"no gateway", "pasta", noGateway, "192.0.2.2/24 169.254.2.2 - -", "2001:db8:1::2/64 fe80::1 - -"},
		{"mapped", "aldente --map-host-loopback 192.0.2.7 --map-guest-addr 192.0.2.8 --map-guest-addr fd00::8", nil,
			"192.0.2.2/24 192.0.2.1 192.0.2.7 192.0.2.8", "2001:db8:1::2/64 fe80::1 - fd00::8"},
		{"loopback only", "pasta --splice-only", nil, none, none},
		{"slirp4netns", "slirp4netns 4711 tap0", nil, "10.0.2.100/24 10.0.2.2 10.0.2.2 -", none},
		{"slirp4netns with IPv6", "slirp4netns -6 4711 tap0", nil, "10.0.2.100/24 10.0.2.2 10.0.2.2 -", "fd00::64/64 fe80::1 fd00::2 -"},
		{"slirp4netns elsewhere", "slirp4netns -6 --cidr 10.9.8.0/24 4711 tap0", noInterface, "10.9.8.100/24 10.9.8.2 10.9.8.2 -", "fd00::64/64 fe80::1 fd00::2 -"},
		{"slirp4netns without loopback", "slirp4netns -6 --disable-host-loopback 4711 tap0", nil, "10.0.2.100/24 10.0.2.2 - -", "fd00::64/64 fe80::1 - -"},
		{"slirp4netns for a tap", "slirp4netns --netns-type=tapfd 5", nil, "10.0.2.100/24 10.0.2.2 10.0.2.2 -", none},
	} {
		t.Run(tt.name, func(t *testing.T) {
			h := home()
			if tt.change != nil {
				tt.change(&h)
			}
			w := &newPlan(t, tt.command, h).Worker
			show := func(a [16]byte, bits uint8, rest ...[16]byte) string {
				s := said(a)
				if bits > 0 || s == "-" && rest[0] != [16]byte{} {
					s = s + "/" + prefixBits(bits)
				}
				for _, r := range rest {
					s += " " + said(r)
				}
				return s
			}
			if got := show(w.Addr4, w.Prefix4, w.Our4, w.MapHostLoopback4, w.MapGuestAddr4); got != tt.v4 {
				t.Errorf("IPv4: %q, want %q", got, tt.v4)
			}
			if got := show(w.Addr6, w.Prefix6, w.OurLL6, w.MapHostLoopback6, w.MapGuestAddr6); got != tt.v6 {
				t.Errorf("IPv6: %q, want %q", got, tt.v6)
			}
		})
	}
}

// TestWorkerOwn6: beside our link-local address stands one that routers behind the guest
// forward, where the guest's gateway is one.
func TestWorkerOwn6(t *testing.T) {
	for _, tt := range []struct{ command, own, link string }{
		{"pasta", "fe80::1", "fe80::1"},
		{"pasta -g fe80::77", "fe80::77", "fe80::77"},
		{"pasta -a fc00::3 -g fc00::1 --no-map-gw", "fc00::1", "fe80::1"},
		{"pasta -4", "-", "-"},
	} {
		h := home()
		w := &newPlan(t, tt.command, h).Worker
		if own, link := said(w.Our6), said(w.OurLL6); own != tt.own || link != tt.link {
			t.Errorf("%s: %s and %s, want %s and %s", tt.command, own, link, tt.own, tt.link)
		}
	}
}

func prefixBits(n uint8) string {
	p := netip.PrefixFrom(netip.IPv6Unspecified(), int(n)).String()
	return p[strings.IndexByte(p, '/')+1:]
}

// TestWorkerFlags: what each option turns on or off in a worker.
func TestWorkerFlags(t *testing.T) {
	const (
		ip    = ipc.FlagIPv4 | ipc.FlagIPv6
		all   = ipc.FlagTCP | ipc.FlagUDP | ipc.FlagICMP
		peek  = ipc.FlagPeekOff4 | ipc.FlagPeekOff6
		dhcp  = ipc.FlagDHCP | ipc.FlagDHCPv6
		ndp   = ipc.FlagNDP | ipc.FlagRA
		usual = uint64(ip | all | peek | dhcp | ndp | ipc.FlagMulticast)
	)
	for _, tt := range []struct {
		command string
		want    uint64
	}{
		{"passt", usual},
		{"pasta", usual},
		{"pasta --config-net", usual&^ipc.FlagRA | ipc.FlagConfigured},
		{"pasta --no-ra", usual &^ ipc.FlagRA},
		{"pasta --no-ndp", usual &^ ndp},
		{"passt --no-dhcp", usual &^ ipc.FlagDHCP},
		{"passt --no-dhcpv6", usual &^ ipc.FlagDHCPv6},
		{"passt --no-tcp", usual &^ ipc.FlagTCP},
		{"passt --no-udp", usual &^ ipc.FlagUDP},
		{"passt --no-icmp", usual &^ ipc.FlagICMP &^ ndp},
		{"passt -4", usual &^ ipc.FlagIPv6 &^ ipc.FlagDHCPv6},
		{"passt -6", usual &^ ipc.FlagIPv4 &^ ipc.FlagDHCP},
		{"passt -a 192.0.2.5", usual | ipc.FlagAddr4Fixed},
		{"passt -a 2001:db8::5", usual | ipc.FlagAddr6Fixed},
		{"passt -1", usual},
		{"passt -d", usual | ipc.FlagDebug},
		{"passt --trace", usual | ipc.FlagDebug | ipc.FlagTrace},
		{"pasta --host-lo-to-ns-lo", usual | ipc.FlagLoToLo},
		{"pasta --splice-only", usual | ipc.FlagSpliceOnly},
	} {
		if got := newPlan(t, tt.command, home()).Worker.Flags; got != tt.want {
			t.Errorf("%s: flags %#x, want %#x", tt.command, got, tt.want)
		}
	}
	h := home()
	h.PeekOff4, h.PeekOff6 = false, true
	if got := newPlan(t, "passt", h).Worker.Flags; got != usual&^ipc.FlagPeekOff4 {
		t.Errorf("without SO_PEEK_OFF for IPv4: flags %#x", got)
	}
	h = home()
	h.Network.V6.Address, h.Network.V6.Local = netip.Prefix{}, true
	if got := newPlan(t, "passt", h).Worker.Flags; got != usual&^ipc.FlagDHCPv6 {
		t.Errorf("without an address for DHCPv6: flags %#x", got)
	}
}

// TestWorkerRest: what else a worker is told.
func TestWorkerRest(t *testing.T) {
	p := newPlan(t, "passt -H vm --fqdn vm.example.org -m 9000 -D 192.0.2.53 -D 2001:db8::53 -S a.example -S b.example", home())
	w := &p.Worker
	if w.LinkKind != ipc.LinkStream || w.MTU != 9000 || w.UDPIdle != 30 || w.UDPStream != 120 || w.SYNRetry != synRetries {
		t.Errorf("told of %+v", w)
	}
	if w.Hostname.String() != "vm" || w.FQDN.String() != "vm.example.org" || w.OurMAC != cli.DefaultMAC || w.GuestMAC != [6]byte{} {
		t.Errorf("names %q, %q, addresses %x, %x", w.Hostname.String(), w.FQDN.String(), w.OurMAC, w.GuestMAC)
	}
	if w.NDNS4 != 1 || said(w.DNS4[0]) != "192.0.2.53" || w.NDNS6 != 1 || said(w.DNS6[0]) != "2001:db8::53" {
		t.Errorf("%d and %d resolvers, %s and %s", w.NDNS4, w.NDNS6, said(w.DNS4[0]), said(w.DNS6[0]))
	}
	if w.NSearch != 2 || w.Search[0].String() != "a.example" || w.Search[1].String() != "b.example" {
		t.Errorf("%d domains", w.NSearch)
	}
	if got := newPlan(t, "passt", home()).Worker; got.NSearch != 1 || got.Search[0].String() != "corp.example.org" || got.MTU != defaultMTU {
		t.Errorf("by default %d domains, MTU %d", got.NSearch, got.MTU)
	}
	if got := newPlan(t, "passt -S none", home()).Worker; got.NSearch != 0 {
		t.Errorf("-S none: %d domains", got.NSearch)
	}
	// To a namespace nothing of that is advertised, but what is asked for.
	if got := newPlan(t, "pasta", home()).Worker; got.NDNS4 != 0 || got.NDNS6 != 0 || got.NSearch != 0 || got.LinkKind != ipc.LinkTap {
		t.Errorf("pasta: %d and %d resolvers, %d domains, link %d", got.NDNS4, got.NDNS6, got.NSearch, got.LinkKind)
	}
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
