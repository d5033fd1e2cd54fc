// SPDX-License-Identifier: Apache-2.0

// Package plan decides what each part of an instance is told: the worker, the
// agent, the socket factory, who listens, a command's resolv.conf, the egress
// rules and the user. It knows the options and what was read of the host before,
// and reads, opens and asks nothing by itself.
package plan

import (
	"encoding/binary"
	"net/netip"
	"slices"
	"sync/atomic"

	"aldente/broker/agent"
	"aldente/broker/budget"
	"aldente/broker/cli"
	"aldente/broker/egress"
	"aldente/broker/hostnet"
	"aldente/broker/ingress"
	"aldente/broker/sockets"
	"aldente/ipc"
)

// Host is what was read of the host.
type Host struct {
	Network   *hostnet.Network  // links, addresses, routes
	Resolvers hostnet.Resolvers // what resolv.conf names; empty: unknown

	// Local tells whether what a socket sends would stay on the host; nil: only
	// the addresses of Network do.
	Local func(egress.Flow) bool

	Descriptors int           // hard limit on open files
	Conntrack   int           // connections that the firewall keeps track of, zero: it does not
	ClientPorts cli.PortRange // net.ipv4.ip_local_port_range
	UDPIdle     uint32        // seconds that the firewall remembers a datagram without answer
	UDPStream   uint32        // seconds that it remembers datagrams both ways

	Via netip.AddrPort // the proxy of --via

	PeekOff4, PeekOff6 bool // SO_PEEK_OFF works on TCP sockets of the family
}

// Plan is what the parts of an instance are told.
type Plan struct {
	Worker     ipc.Config      // GuestMAC is for who makes the link to fill in
	Tap        agent.Setup     // the guest's interface, where we make it
	Factory    sockets.Config  // without logger and clients
	Egress     *egress.RuleSet // nil: everything is allowed
	Names      *Names          // nil: no rule is by name, and nobody needs to ask
	Inbound    []*cli.Rule     // -t, -u: from the host to the guest
	Outbound   []*cli.Rule     // -T, -U: from the namespace's loopback to the host's
	ResolvConf []byte          // of a command that we start, nil: the host's serves
	Budget     budget.Host     // what the limits depend on
	Limits     budget.Limits   // on what the guest may use up
	Notes      []string        // worth telling the user, one line each

	Redirects *egress.Redirects // nil: there are none
	Ingress   *ingress.RuleSet  // who may connect to the guest; nil: everybody

	cfg   *cli.Config
	host  Host                       // of which it was made
	ruled atomic.Pointer[cli.Config] // whose egress rules are in force
	net   guestNet

	answers bool // aldente-names answers the guest
}

// New makes the plan. An error says which of the options cannot be met.
func New(cfg *cli.Config, h Host) (*Plan, error) {
	p := &Plan{cfg: cfg, Inbound: inbound(cfg), Outbound: outbound(cfg)}
	p.ruled.Store(cfg)
	var err error
	if p.net, p.Notes, err = settle(cfg, h.Network, h.Resolvers); err != nil {
		return nil, err
	}
	if p.Egress, err = egressRuleSet(cfg, h); err != nil {
		return nil, err
	}
	if err = p.checkNames(); err != nil {
		return nil, err
	}
	p.answers = p.needsAnswers()
	p.Redirects = egress.NewRedirects(cfg.Redirects)
	if len(cfg.Ingress) > 0 {
		if p.Ingress, err = ingress.New(cfg.Ingress); err != nil {
			return nil, err
		}
	}
	p.Budget = budget.Host{
		Descriptors: h.Descriptors,
		Ephemeral:   int(h.ClientPorts.Last) - int(h.ClientPorts.First) + 1,
		Conntrack:   h.Conntrack,
	}
	p.Limits = budget.Defaults(p.Budget).With(cfg.Limits, p.Budget)
	if err := p.enoughDescriptors(); err != nil {
		return nil, err
	}
	return p, p.tellAll(h, nil)
}

// tellAll is what each part is told of a network that is settled. before is the plan that
// was in force, nil if there was none.
func (p *Plan) tellAll(h Host, before *Plan) error {
	p.host = h
	p.forwardResolvers(h.Network, h.Resolvers)
	if before != nil {
		p.net.v4.keepName(&before.net.v4)
		p.net.v6.keepName(&before.net.v6)
	}
	p.noteNames(h.Resolvers)
	if p.Egress != nil {
		p.pinResolvers()
	}
	p.planNames(h.Resolvers)
	p.ResolvConf = p.commandResolv(h.Resolvers)
	p.Factory = p.factoryConfig(h)
	p.Tap = p.tap(h.Network)
	return p.workerConfig(h)
}

// HasEgressRules tells whether options or defaults say where the guest may connect, or
// may later, so that Host.Local is asked.
func HasEgressRules(cfg *cli.Config) bool {
	return len(egressRules(cfg, nil)) > 0 || cfg.Reloads() || cfg.Audit != "" || cfg.Via != nil
}

// AsksLocal tells whether Host.Local is asked: by egress rules, or by rules for who may
// connect to the guest.
func AsksLocal(cfg *cli.Config) bool { return HasEgressRules(cfg) || len(cfg.Ingress) > 0 }

// NeedsClients tells whether the factory has to tell clients of the host's own from
// services: where UDP ports are forwarded to the guest, or may be later.
func (p *Plan) NeedsClients() bool {
	return p.Live() || slices.ContainsFunc(p.Inbound, func(r *cli.Rule) bool { return r.Proto == ipc.ProtoUDP })
}

// Scans tells whether a rule follows what is bound in the namespace, or may later.
func (p *Plan) Scans() bool {
	return p.LiveRules() || slices.ContainsFunc(p.Inbound, func(r *cli.Rule) bool { return r.Auto })
}

// tapQueue is the length of the tap's queue towards us, in packets. A tap has
// no back-pressure but windows: what 64 bulk flows have in flight, with the
// acknowledgments of as many others, has to fit.
const tapQueue = 16384

// tap describes the guest's interface.
func (p *Plan) tap(host *hostnet.Network) agent.Setup {
	cfg := p.cfg
	s := agent.Setup{Name: p.net.tap, MAC: cfg.NSMAC, MTU: p.net.mtu, QueueLen: tapQueue, Configure: cfg.ConfigNet}
	if cfg.Personality == cli.Slirp && !cfg.ConfigNet {
		s.MTU = 0 // it is for whoever configures the interface, before or after
	}
	if p.net.v4.enabled {
		s.V4 = agent.Copy(&host.V4, p.net.v4.given(), cfg.Gateway4)
		s.V4.Kept = p.net.v4.kept
	}
	if p.net.v6.enabled {
		s.V6 = agent.Copy(&host.V6, p.net.v6.given(), cfg.Gateway6)
		s.V6.Kept = p.net.v6.kept
	}
	if cfg.ConfigNet {
		p.net.v4.reach(&s.V4)
		p.net.v6.reach(&s.V6)
	}
	return s
}

// everybody is the broadcast address of an IPv4 network, if it has one, and if the guest
// may send to it.
func everybody(p netip.Prefix, may bool) netip.Addr {
	if !may || !p.Addr().Is4() || p.Bits() < 1 || p.Bits() > 30 {
		return netip.Addr{}
	}
	a, host := p.Addr().As4(), ^uint32(0)>>p.Bits()
	binary.BigEndian.PutUint32(a[:], binary.BigEndian.Uint32(a[:])|host)
	return netip.AddrFrom4(a)
}

// factoryConfig is the socket factory's view.
func (p *Plan) factoryConfig(h Host) sockets.Config {
	cfg, g := p.cfg, &p.net
	view := func(f *guestFamily, source netip.Addr, device string, virtual netip.Prefix) sockets.Family {
		return sockets.Family{
			Enabled: f.enabled, Source: source, Interface: device, Scope: uint32(f.scope),
			DNSForward: f.dnsForward, DNSHost: f.dnsHost.WithZone(""), DNSHostScope: uint32(hostnet.ScopeOf(f.dnsHost)),
			MapHostLoopback: f.mapHostLoopback, MapGuestAddr: f.mapGuestAddr, GuestAddr: f.addr.Addr(),
			Freebind: cfg.FreeBind, Virtual: virtual, Broadcast: everybody(f.addr, cfg.Multicast.Broadcast),
		}
	}
	var sni []sockets.PortRange
	for _, r := range cfg.VerifySNI {
		sni = append(sni, sockets.PortRange(r))
	}
	var via *sockets.Via
	if v := cfg.Via; v != nil {
		via = &sockets.Via{To: h.Via, Names: cfg.ViaNames, Except: cfg.ViaExcept, Text: v.String()}
	}
	return sockets.Config{
		VerifySNI:    sni,
		Via:          via,
		Multicast:    sockets.Multicast{Send: cfg.Multicast.Send, Broadcast: cfg.Multicast.Broadcast, Groups: cfg.Multicast.Groups},
		Egress:       asked(p.Egress),
		Redirects:    p.Redirects,
		Ingress:      p.Ingress,
		Local:        h.Local,
		MaxListeners: h.Descriptors / 4 * 3,
		LoToLo:       cfg.HostLoToNSLo || cfg.SpliceOnly,
		NoLoopback6:  g.noLoopback6,
		V4:           view(&g.v4, cfg.Outbound4, cfg.OutboundIf4, cfg.Virtual4),
		V6:           view(&g.v6, cfg.Outbound6, cfg.OutboundIf6, cfg.Virtual6),
		ClientPorts:  sockets.PortRange(h.ClientPorts),
		Resolvers:    p.answered(h.Resolvers),
	}
}
