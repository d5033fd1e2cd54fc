// SPDX-License-Identifier: Apache-2.0

package main

import (
	"fmt"
	"net/netip"
	"os"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"aldente/broker/agent"
	"aldente/broker/cli"
	"aldente/broker/hostnet"
	"aldente/broker/sockets"
	"aldente/ipc"
)

// defaultMTU is the guest's MTU where none is asked for: the largest multiple
// of 8 below 64 KiB with room for an Ethernet header.
const defaultMTU = 65520

// minMTU6 is the least MTU with which an interface has IPv6, RFC 8200 section 5.
const minMTU6 = 1280

// guestNet is what the guest will see, settled from options and the host's
// network. The worker's configuration and the socket factory's are two views
// of it.
type guestNet struct {
	v4, v6 guestFamily
	linkLL netip.Addr // our link-local address
	search []string
	mtu    int
	tap    string // name of the guest's interface, where we make it

	noLoopback6 bool // the host has no ::1
}

// guestFamily is one address family of guestNet. Invalid addresses are absent.
type guestFamily struct {
	enabled         bool
	addr            netip.Prefix // the guest's
	fixed           bool         // given by -a: never learned from frames
	our             netip.Addr   // our address on the link
	gateway         netip.Addr   // the guest's default router
	mapHostLoopback netip.Addr
	mapGuestAddr    netip.Addr
	dnsForward      netip.Addr
	dnsHost         netip.Addr
	dnsGateway      bool         // dnsForward is mapHostLoopback, by our own choice
	dns             []netip.Addr // advertised
	locals          []netip.Addr // addresses that the guest has itself
	link            hostnet.Link
}

// settle derives the guest's network. Notes are lines worth telling the user.
func settle(cfg *cli.Config, n *hostnet.Network, r hostnet.Resolvers) (g guestNet, notes []string, err error) {
	g.mtu = cfg.MTU
	if g.mtu < 0 {
		g.mtu = defaultMTU
	}
	g.v4 = family(cfg, &n.V4, true)
	g.v6 = family(cfg, &n.V6, false)
	g.v4.enabled = !cfg.IPv6Only && !n.V4.Unsupported
	g.v6.enabled = !cfg.IPv4Only && !n.V6.Unsupported && (g.mtu == 0 || g.mtu >= minMTU6)
	if !g.v4.enabled && !g.v6.enabled {
		return g, nil, fmt.Errorf("neither IPv4 nor IPv6 is available")
	}
	g.v4.our, g.v6.our = ourAddress4(&g.v4), ourAddress6(&g.v6, &n.V6)
	g.linkLL = g.v6.our
	if g.tap = cfg.NSIfName; g.tap == "" {
		g.tap = n.TapName()
	}
	g.noLoopback6 = !slices.Contains(n.Own, netip.IPv6Loopback())
	g.names(cfg, r)
	switch {
	case cfg.SearchNone:
	case len(cfg.Search) > 0:
		g.search = cfg.Search
	default:
		g.search = r.Search
	}
	if n.V4.Multiple && g.v4.enabled || n.V6.Multiple && g.v6.enabled {
		notes = append(notes, "several default routes: using the first; choose with -i")
	}
	if n.V4.Local && g.v4.enabled && n.V6.Local {
		notes = append(notes, "no interface with a route: using link-local addresses")
	}
	return g, notes, nil
}

// family settles addresses of one family.
func family(cfg *cli.Config, h *hostnet.Family, v4 bool) guestFamily {
	f := guestFamily{addr: h.Address, gateway: h.Gateway, link: h.Link}
	given, loop, guest, fwd := cfg.Gateway6, cfg.MapHostLoopback6, cfg.MapGuestAddr6, cfg.DNSForward6
	if v4 {
		given, loop, guest, fwd = cfg.Gateway4, cfg.MapHostLoopback4, cfg.MapGuestAddr4, cfg.DNSForward4
	}
	for _, p := range cfg.Addresses {
		if p.Addr().Is4() == v4 {
			f.addr, f.fixed = p, true
		}
	}
	if v4 && !f.fixed && cfg.Netmask > 0 && f.addr.IsValid() {
		f.addr = netip.PrefixFrom(f.addr.Addr(), cfg.Netmask)
	}
	if given.IsValid() {
		f.gateway = given
	}
	f.mapHostLoopback, f.mapGuestAddr, f.dnsForward = loop, guest, fwd
	if !loop.IsValid() && !cfg.NoMapGW {
		f.mapHostLoopback = f.gateway
	}
	if f.addr.IsValid() {
		f.locals = []netip.Addr{f.addr.Addr()}
	}
	if cfg.ConfigNet && !f.fixed {
		f.locals = append(f.locals, h.Locals...)
	}
	return f
}

// given is the address that -a gave, invalid if none.
func (f *guestFamily) given() netip.Prefix {
	if f.fixed {
		return f.addr
	}
	return netip.Prefix{}
}

// reach lets the guest's routes lead to the addresses that only we know.
func (f *guestFamily) reach(to *agent.Family) {
	if f.enabled {
		to.Reach(f.dnsForward)
		to.Reach(f.mapHostLoopback)
		to.Reach(f.mapGuestAddr)
	}
}

// ourAddress4 is what we are on the link: the guest's gateway.
func ourAddress4(f *guestFamily) netip.Addr {
	if f.gateway.IsValid() {
		return f.gateway
	}
	return hostnet.LocalGateway4
}

// ourAddress6 is link-local, since advertisements come from it: the gateway if
// that is, else the host's own.
func ourAddress6(f *guestFamily, h *hostnet.Family) netip.Addr {
	switch {
	case f.gateway.IsValid() && f.gateway.IsLinkLocalUnicast():
		return f.gateway
	case h.LinkLocal.IsValid():
		return h.LinkLocal
	}
	return hostnet.LocalGateway6
}

// workerConfig is the worker's view.
func (g *guestNet) workerConfig(cfg *cli.Config, mac [6]byte) (*ipc.Config, error) {
	c := &ipc.Config{
		Flags:    g.flags(cfg),
		OurMAC:   cfg.MAC,
		GuestMAC: mac,
		MTU:      uint16(g.mtu),
		LinkKind: ipc.LinkTap,
		MaxFlows: uint32(descriptors()),
		DUIDTime: duidTime(),
		SYNRetry: 6,
	}
	if cfg.Personality == cli.Passt {
		c.LinkKind = ipc.LinkStream
	}
	c.UDPIdle, c.UDPStream = udpTimeouts()
	put := func(to *[16]byte, a netip.Addr) {
		if a.IsValid() {
			*to = a.As16()
		}
	}
	if g.v4.enabled && !cfg.SpliceOnly {
		put(&c.Addr4, g.v4.addr.Addr())
		c.Prefix4 = uint8(max(g.v4.addr.Bits(), 0))
		put(&c.Our4, g.v4.our)
		put(&c.MapHostLoopback4, g.v4.mapHostLoopback)
		put(&c.MapGuestAddr4, g.v4.mapGuestAddr)
		put(&c.DNSForward4, g.v4.dnsForward)
	}
	if g.v6.enabled && !cfg.SpliceOnly {
		put(&c.Addr6, g.v6.addr.Addr())
		c.Prefix6 = uint8(max(g.v6.addr.Bits(), 0))
		put(&c.Our6, g.v6.our)
		put(&c.OurLL6, g.linkLL)
		put(&c.MapHostLoopback6, g.v6.mapHostLoopback)
		put(&c.MapGuestAddr6, g.v6.mapGuestAddr)
		put(&c.DNSForward6, g.v6.dnsForward)
	}
	if cfg.DHCPDNS {
		for _, a := range g.v4.dns {
			put(&c.DNS4[c.NDNS4], a)
			c.NDNS4++
		}
		for _, a := range g.v6.dns {
			put(&c.DNS6[c.NDNS6], a)
			c.NDNS6++
		}
	}
	if cfg.DHCPSearch {
		for _, s := range g.search[:min(len(g.search), ipc.MaxSearch)] {
			name, err := ipc.MakeName(s)
			if err != nil {
				return nil, fmt.Errorf("search domain: %w", err)
			}
			c.Search[c.NSearch] = name
			c.NSearch++
		}
	}
	var err error
	if c.Hostname, err = ipc.MakeName(cfg.Hostname); err != nil {
		return nil, fmt.Errorf("host name: %w", err)
	}
	if c.FQDN, err = ipc.MakeName(cfg.FQDN); err != nil {
		return nil, fmt.Errorf("FQDN: %w", err)
	}
	return c, nil
}

func (g *guestNet) flags(cfg *cli.Config) uint64 {
	var f uint64
	for _, b := range []struct {
		on  bool
		bit uint64
	}{
		{g.v4.enabled, ipc.FlagIPv4},
		{g.v6.enabled, ipc.FlagIPv6},
		{!cfg.NoTCP, ipc.FlagTCP},
		{!cfg.NoUDP, ipc.FlagUDP},
		{!cfg.NoICMP, ipc.FlagICMP},
		{!cfg.NoDHCP && g.v4.enabled, ipc.FlagDHCP},
		{!cfg.NoDHCPv6 && g.v6.enabled && g.v6.addr.IsValid(), ipc.FlagDHCPv6},
		{!cfg.NoNDP, ipc.FlagNDP},
		{!cfg.NoRA && !cfg.NoNDP && !cfg.ConfigNet, ipc.FlagRA},
		{sockets.PeekOffWorks(unix.AF_INET), ipc.FlagPeekOff4},
		{sockets.PeekOffWorks(unix.AF_INET6), ipc.FlagPeekOff6},
		{g.v4.fixed, ipc.FlagAddr4Fixed},
		{g.v6.fixed, ipc.FlagAddr6Fixed},
		{cfg.Debug, ipc.FlagDebug},
		{cfg.Trace, ipc.FlagTrace},
		{cfg.OneOff, ipc.FlagOneOff},
		{cfg.HostLoToNSLo, ipc.FlagLoToLo},
		{cfg.SpliceOnly, ipc.FlagSpliceOnly},
	} {
		if b.on {
			f |= b.bit
		}
	}
	return f
}

// factoryConfig is the socket factory's view.
func (g *guestNet) factoryConfig(cfg *cli.Config) sockets.Config {
	view := func(f *guestFamily, src netip.Addr, device string) sockets.Family {
		return sockets.Family{
			Enabled: f.enabled, Source: src, Interface: device, Scope: uint32(f.link.Index),
			DNSForward: f.dnsForward, DNSHost: f.dnsHost,
			MapHostLoopback: f.mapHostLoopback, MapGuestAddr: f.mapGuestAddr, GuestAddr: f.addr.Addr(),
			Freebind: cfg.FreeBind,
		}
	}
	return sockets.Config{
		MaxListeners: int(descriptors() / 4 * 3),

		LoToLo:      cfg.HostLoToNSLo || cfg.SpliceOnly,
		NoLoopback6: g.noLoopback6,
		V4:          view(&g.v4, cfg.Outbound4, cfg.OutboundIf4),
		V6:          view(&g.v6, cfg.Outbound6, cfg.OutboundIf6),
		ClientPorts: sockets.PortRange(cli.EphemeralPorts(cli.PortRangeFile)),
	}
}

// descriptors raises the limit on open files to what is allowed and returns
// it.
func descriptors() uint64 {
	var r unix.Rlimit
	if unix.Getrlimit(unix.RLIMIT_NOFILE, &r) != nil {
		return 1024
	}
	return min(r.Max, 1<<20)
}

// duidTime is the time part of the DHCPv6 server's identifier. It has to stay
// the same over restarts (RFC 8415 section 11), so it is that of no clock:
// the identifier is unique by our hardware address on the guest's link.
func duidTime() uint32 { return 0 }

// udpTimeouts follows the host's connection tracking where it can be read.
func udpTimeouts() (idle, stream uint32) {
	return sysctl("nf_conntrack_udp_timeout", 30), sysctl("nf_conntrack_udp_timeout_stream", 120)
}

func sysctl(name string, otherwise uint32) uint32 {
	b, err := os.ReadFile("/proc/sys/net/netfilter/" + name)
	if err != nil {
		return otherwise
	}
	n, err := strconv.ParseUint(strings.TrimSpace(string(b)), 10, 31)
	if err != nil || n == 0 {
		return otherwise
	}
	return uint32(n)
}
