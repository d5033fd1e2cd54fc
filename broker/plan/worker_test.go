// SPDX-License-Identifier: Apache-2.0

package plan

import (
	"net/netip"
	"strings"
	"testing"

	"aldente/broker/cli"
	"aldente/broker/hostnet"
	"aldente/ipc"
)

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
