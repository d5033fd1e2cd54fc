// SPDX-License-Identifier: Apache-2.0

package plan

import (
	"fmt"
	"net/netip"
	"slices"

	"aldente/broker/cli"
	"aldente/ipc"
)

// synRetries is how often a SYN to the guest is sent again.
const synRetries = 6

// leastShared is how many descriptors a worker needs by whose link the guest's memory is shared: those
// that its monitor passes, what other workers need, and some for flows.
const leastShared = 256

// enoughDescriptors tells, by an error, that a worker may have too few.
func (p *Plan) enoughDescriptors() error {
	if n := p.Limits.Sockets; p.cfg.LinkKind == ipc.LinkVhostUser && n < leastShared {
		return fmt.Errorf("--vhost-user takes %[1]d descriptors, and there may be %d: raise them, by --limit sockets=%[1]d, ulimit -n or LimitNOFILE=", leastShared, n)
	}
	return nil
}

// workerConfig is the worker's view.
func (p *Plan) workerConfig(h Host) error {
	cfg, g, c := p.cfg, &p.net, &p.Worker
	*c = ipc.Config{
		Flags:     p.flags(h),
		OurMAC:    cfg.MAC,
		MTU:       uint16(g.mtu),
		LinkKind:  cfg.LinkKind,
		MaxFlows:  uint32(p.Limits.Sockets),
		MaxUDP:    uint32(p.Limits.WorkerUDP()),
		DUIDTime:  duidTime,
		UDPIdle:   h.UDPIdle,
		UDPStream: h.UDPStream,
		SYNRetry:  synRetries,
		Stats:     uint32(cfg.Stats),
		MaxConns:  uint32(max(p.Limits.Conns, 0)),
		NewConns:  uint32(max(p.Limits.NewConns.PerSecond, 0)),
		Bytes:     uint64(max(p.Limits.Bytes, 0)),
	}
	for _, m := range cfg.Multicast.Groups {
		if fam := &g.v6; m.Addr().Is4() && !g.v4.enabled || m.Addr().Is6() && !fam.enabled {
			continue
		}
		c.Groups[c.NGroups] = ipc.Group{Addr: m.Addr().As16(), Port: m.Port()}
		c.NGroups++
	}
	if p.leases() {
		c.Lease, c.Renew = lease, renew
	}
	put := func(to *[16]byte, a netip.Addr) {
		if a.IsValid() {
			*to = a.As16()
		}
	}
	if g.v4.enabled && !cfg.SpliceOnly {
		put(&c.Addr4, g.v4.addr.Addr())
		c.Prefix4 = uint8(max(g.v4.addr.Bits(), 0))
		g.v4.putFormer(&c.Former4, &c.Kept4)
		put(&c.Our4, g.v4.our)
		put(&c.MapHostLoopback4, g.v4.mapHostLoopback)
		put(&c.MapGuestAddr4, g.v4.mapGuestAddr)
		put(&c.DNSForward4, g.v4.dnsForward)
	}
	if g.v6.enabled && !cfg.SpliceOnly {
		put(&c.Addr6, g.v6.addr.Addr())
		c.Prefix6 = uint8(max(g.v6.addr.Bits(), 0))
		g.v6.putFormer(&c.Former6, &c.Kept6)
		put(&c.Our6, g.v6.our)
		put(&c.Our6, g.v6.gateway) // routers pass on what comes from it
		put(&c.OurLL6, g.linkLL)
		put(&c.MapHostLoopback6, g.v6.mapHostLoopback)
		put(&c.MapGuestAddr6, g.v6.mapGuestAddr)
		put(&c.DNSForward6, g.v6.dnsForward)
	}
	for _, f := range []*guestFamily{&g.v4, &g.v6} {
		for _, a := range f.own {
			if f.enabled && !cfg.SpliceOnly && c.NOwn < ipc.MaxOwn {
				put(&c.Own[c.NOwn], a)
				c.NOwn++
			}
		}
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
				return fmt.Errorf("search domain: %w", err)
			}
			c.Search[c.NSearch] = name
			c.NSearch++
		}
	}
	var err error
	if c.Hostname, err = ipc.MakeName(cfg.Hostname); err != nil {
		return fmt.Errorf("host name: %w", err)
	}
	if c.FQDN, err = ipc.MakeName(cfg.FQDN); err != nil {
		return fmt.Errorf("FQDN: %w", err)
	}
	return nil
}

// A guest that may have to change its address asks often whether it has, but can do
// without an answer for long: who renews an address is told of a new one.
const (
	lease = 600 // seconds
	renew = 60
)

// leases tells whether what the guest is assigned may change.
func (p *Plan) leases() bool { return !p.cfg.NoFollow && p.cfg.Personality != cli.Slirp }

// putFormer says which addresses the guest had, and which of them it may use.
func (f *guestFamily) putFormer(to *[ipc.MaxFormer][16]byte, kept *uint8) {
	for i, a := range f.former {
		to[i] = a.As16()
		if slices.Contains(f.kept, a) {
			*kept |= 1 << i
		}
	}
}

func (p *Plan) flags(h Host) uint64 {
	cfg, g := p.cfg, &p.net
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
		{h.PeekOff4, ipc.FlagPeekOff4},
		{h.PeekOff6, ipc.FlagPeekOff6},
		{g.v4.fixed, ipc.FlagAddr4Fixed},
		{g.v6.fixed, ipc.FlagAddr6Fixed},
		{cfg.Debug, ipc.FlagDebug},
		{cfg.Trace, ipc.FlagTrace},
		{cfg.HostLoToNSLo, ipc.FlagLoToLo},
		{cfg.SpliceOnly, ipc.FlagSpliceOnly},
		{cfg.FlowLog != "", ipc.FlagFlowLog},
		{cfg.Multicast.Send, ipc.FlagMulticast},
		{cfg.Multicast.Broadcast, ipc.FlagBroadcast},
		{cfg.ConfigNet, ipc.FlagConfigured},
		{p.leases() && g.v6.enabled && !h.Network.V6.Default, ipc.FlagNoRouter6},
	} {
		if b.on {
			f |= b.bit
		}
	}
	return f
}

// duidTime is the time part of the DHCPv6 server's identifier. It has to stay
// the same over restarts (RFC 8415 section 11), so it is that of no clock:
// the identifier is unique by our hardware address on the guest's link.
const duidTime = 0
