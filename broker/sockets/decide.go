// SPDX-License-Identifier: Apache-2.0

package sockets

import (
	"net/netip"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"aldente/broker/egress"
	"aldente/broker/hostnet"
	"aldente/broker/inet"
	"aldente/ipc"
)

// request is what a worker asks for, as far as it counts for the decision.
type request struct {
	proto    uint8
	token    uint64         // the worker's name for it, for the answer
	splice   bool           // the far end of the bypass
	scope    uint32         // with listener: index of the interface that a link-local peer is on, zero: unknown
	listener Listener       // on whose behalf; without ID: a flow of the guest's own
	src      netip.AddrPort // guest's address; with listener: local address that was spoken to
	dst      netip.AddrPort // destination as the guest sees it; with listener: the remote peer

	member bool // what comes to a port of a group

	connected func(fd int) // takes the socket once its connect has ended; nil: the worker waits for that

	asked *[]egress.Asked // for Why: the egress rules that were asked; nil: nobody wants to know
	shown bool            // for display: a flow that there is, or was
}

// decision says what to open, or why nothing is opened.
type decision struct {
	refused   unix.Errno // zero: open
	byRules   bool       // it is the egress rules that refuse
	verdict   egress.Verdict
	lifted    bool             // it refuses, and --audit allows it
	always    always           // it is refused whatever the rules say
	meaning   meaning          // how a flow's destination was translated
	redirect  *egress.Redirect // with redirected: by which
	group     bool             // it goes to a group, or to everybody on a network
	names     bool             // it goes to aldente-names, whatever the egress rules say of the resolver
	client    bool             // allowed to a client of the host's own, whatever the egress rules say
	namespace bool             // in the guest's namespace, not on the host
	via       *Via             // it goes by this proxy; nil: by none
	unproxied string           // it is refused, since the proxy does not take it: why; empty: it is not
	to        netip.AddrPort
	from      netip.AddrPort // where it comes from: address and port, as far as they are decided
	path
}

// path is how a socket of the host reaches its destination.
type path struct {
	Source    netip.Addr // zero: the kernel's choice
	Interface string     // empty: the kernel's choice
	Scope     uint32     // interface index for link-local destinations
	Freebind  bool
}

// inet is the path as the recipes of sockets want it.
func (m *path) inet() inet.Path {
	return inet.Path{Device: m.Interface, Scope: m.Scope, Freebind: m.Freebind}
}

func refuse(e unix.Errno) decision { return decision{refused: e} }

// meaning is what an address is to the guest.
type meaning uint8

const (
	itself       meaning = iota
	hostResolver         // DNSForward
	hostLoopback         // MapHostLoopback
	guestOnHost          // MapGuestAddr
	redirected           // Redirects
)

// always is why nothing leads where a flow of the guest's wants to go, whatever the
// egress rules say.
type always uint8

const (
	possible always = iota
	noFamily
	noPort
	isLoopback
	isUnspecified
	isMulticast
	isBroadcast
	isPrivateDNS
	isVirtual
	numAlways
)

// broadcast is the address of all on a link, RFC 919 section 7.
var broadcast = netip.AddrFrom4([4]byte{255, 255, 255, 255})

// decide is the one place that says where a socket may go. It opens nothing and
// changes nothing; whatever opens a socket for a worker asks it first and opens
// what it says.
func (c *Config) decide(r *request) decision {
	switch {
	case r.member:
		return c.decideMember(r)
	case r.splice:
		return c.decideBypass(r)
	case r.listener.ID != 0:
		return c.decideReply(r)
	}
	return c.decideOut(r)
}

// decideOut is for a flow's socket to where the guest wants it.
func (c *Config) decideOut(r *request) decision {
	fam := c.family(r.dst.Addr())
	if !fam.Enabled || r.src.Addr().Is4() != r.dst.Addr().Is4() {
		return decision{refused: unix.EAFNOSUPPORT, always: noFamily}
	}
	to, meaning, why := fam.translate(r.proto, r.dst)
	group := c.Multicast.reaches(fam, r.proto, r.dst)
	if why != possible && !(group && (why == isMulticast || why == isBroadcast)) {
		return decision{refused: unix.EACCES, always: why}
	}
	resolverScope := fam.DNSHostScope
	fam = c.family(to.Addr())                                    // a forwarded resolver may be of the other one, and what is redirected
	if c.asksNames(r.proto, r.dst) || c.asksNames(r.proto, to) { // by whichever of its names
		return decideNames(to, meaning)
	}
	redirect := c.Redirects.Find(r.proto, r.dst)
	if group = group && meaning == itself && redirect == nil; redirect != nil {
		to, meaning = redirect.To(r.dst.Port()), redirected
		fam = c.family(to.Addr())
		if c.asksNames(r.proto, to) {
			d := decideNames(to, meaning)
			d.redirect = redirect
			return d
		}
	}
	d := decision{to: to, meaning: meaning, redirect: redirect, group: group, from: netip.AddrPortFrom(inet.Any(to.Addr()), r.src.Port()), path: fam.path()}
	if to.Addr().IsLoopback() { // where --outbound and --outbound-if lead nowhere
		d.Source, d.Interface = netip.Addr{}, ""
	}
	if meaning == hostResolver {
		d.on(resolverScope)
	}
	if d.Source.IsValid() {
		d.from = netip.AddrPortFrom(d.Source, r.src.Port())
	}
	return c.byProxy(r, c.judged(r, d))
}

// on has a link-local destination be on an interface, if that is known, where --outbound
// and --outbound-if lead only if they are about the same.
func (d *decision) on(scope uint32) {
	if a := d.to.Addr(); scope != 0 && scope != d.Scope && a.Is6() && a.IsLinkLocalUnicast() {
		d.path = path{Scope: scope}
	}
}

// Ports of resolvers: DNS, and DNS over TLS and QUIC (RFC 7858, RFC 9250).
const (
	portDNS        = 53
	portPrivateDNS = 853
)

// asksNames tells whether a flow is to one of the resolvers for which aldente-names
// answers.
func (c *Config) asksNames(proto uint8, dst netip.AddrPort) bool {
	return (proto == ipc.ProtoTCP || proto == ipc.ProtoUDP) && (dst.Port() == portDNS || dst.Port() == portPrivateDNS) &&
		slices.Contains(c.Resolvers, dst.Addr())
}

// decideNames is for what asksNames tells of, and never leads to a resolver. What nobody
// but the resolver could read is refused: whoever asks goes on in plain, or not at all.
func decideNames(to netip.AddrPort, m meaning) decision {
	d := decision{to: to, meaning: m, names: true}
	if to.Port() == portPrivateDNS {
		d.refused, d.always = unix.EACCES, isPrivateDNS
		return d
	}
	d.verdict = egress.Verdict{Allowed: true, Rule: "answered by aldente-names"}
	return d
}

// decideUpstream is for a socket by which aldente-names asks a resolver. The guest has no
// say in which that is: the egress rules are about where the guest may connect.
func (c *Config) decideUpstream(resolver netip.Addr) decision {
	d := decision{to: netip.AddrPortFrom(resolver.WithZone(""), portDNS), path: c.family(resolver).path()}
	d.on(uint32(hostnet.ScopeOf(resolver)))
	if resolver.IsLoopback() {
		d.Source, d.Interface = netip.Addr{}, ""
	}
	return d
}

// decideReply is for the socket of answers to a datagram that came to a UDP
// listener: on the listener's port, connected to the peer. Only the worker knows
// whether there was such a datagram, so a peer is what the guest may reach in any
// case, or a client that the kernel knows.
func (c *Config) decideReply(r *request) decision {
	l, local, peer := &r.listener, r.src.Addr(), r.dst.Addr()
	fam := c.family(peer)
	if l.Proto != ipc.ProtoUDP || r.src.Port() != l.Port || r.dst.Port() == 0 || !fam.Enabled ||
		local.Is4() != peer.Is4() && !local.IsUnspecified() ||
		l.Addr.IsValid() && !l.Addr.IsUnspecified() && l.Addr.WithZone("") != local {
		return refuse(unix.EINVAL)
	}
	d := decision{to: r.dst, namespace: l.Namespace, path: fam.path()}
	if !l.Namespace {
		d.on(r.scope)
	}
	switch {
	case l.Namespace && (!local.IsLoopback() || !peer.IsLoopback()), peer.IsMulticast(), peer.IsUnspecified(), peer == broadcast:
		d.refused = unix.EACCES
		return d
	case !l.Namespace && c.asksNames(r.proto, r.dst): // who asks there is answered by aldente-names, and by nobody else
		d.refused = unix.EACCES
		return d
	case !l.Namespace:
		return c.decideHostReply(r, d)
	}
	d.from = netip.AddrPortFrom(local, l.Port)
	return d
}

// decideHostReply is decideReply for a listener on the host. What the user has
// said about sockets of the guest's flows, -o and --outbound-if, holds for answers
// too, where the listener has no address and no interface of its own.
func (c *Config) decideHostReply(r *request, d decision) decision {
	l, local, peer := &r.listener, r.src.Addr(), r.dst.Addr()
	source := d.Source
	d.Source = netip.Addr{} // it will be in from
	if l.Interface != "" || peer.IsLoopback() {
		d.Interface = l.Interface
	}
	if l.Addr.IsValid() && !l.Addr.IsUnspecified() || peer.IsLoopback() {
		source = netip.Addr{}
	}
	switch {
	case peer.IsLoopback() && l.Interface != "" && l.Interface != "lo", // nothing comes from there by another interface
		source.IsValid() && !local.IsUnspecified() && local != source:
		d.refused = unix.EACCES
		return d
	case source.IsValid():
		local = source
	case local.IsUnspecified():
		local = inet.Any(peer)
	}
	d.from = netip.AddrPortFrom(local, l.Port)
	if !c.mayBeAnswered(r, &d) {
		d.refused = unix.EACCES
		return d
	}
	if d = c.judged(r, d); d.verdict.Allowed && d.verdict.ByName && c.looksAt(d.to.Port()) {
		// Of answers nobody looks at the first bytes, and the worker alone knows that it is one.
		d.refused, d.byRules, d.verdict = unix.EACCES, true, egress.Verdict{Rule: "--verify-sni", Name: d.verdict.Name}
	}
	if !d.byRules && !c.strangeLoopback(r.dst) {
		return d
	}
	// A client of the host's own, by any of its addresses, is like a connection
	// that came by a TCP listener.
	if c.Client != nil && !local.IsUnspecified() && c.Client(r.dst, d.from) {
		d.refused, d.byRules, d.verdict, d.client = 0, false, egress.Verdict{}, true
	} else if !d.byRules {
		d.refused, d.verdict = unix.EACCES, egress.Verdict{}
	}
	return d
}

// strangeLoopback tells whether a peer is on loopback and has a port as services
// have. A guest may reach only what is mapped for it there. Clients that do not
// choose a port get one of a range of the kernel's.
func (c *Config) strangeLoopback(peer netip.AddrPort) bool {
	a := peer.Addr()
	if !a.IsLoopback() {
		return false
	}
	mapped := netip.IPv6Loopback()
	if a.Is4() {
		mapped = netip.AddrFrom4([4]byte{127, 0, 0, 1})
	}
	return !(a == mapped && c.family(a).MapHostLoopback.IsValid()) &&
		(peer.Port() < c.ClientPorts.First || peer.Port() > c.ClientPorts.Last)
}

// decideBypass is for the far end of a flow that came by a listener. The rule
// decides on the port, and on the address as far as it can. What it cannot know
// the worker says: which address the guest has, or which of loopback's was
// spoken to.
func (c *Config) decideBypass(r *request) decision {
	l, addr, peer := &r.listener, r.src.Addr(), r.dst.Addr()
	switch {
	case l.Proto != r.proto || !l.Splice && !l.Namespace || !peer.IsLoopback() || addr.Is4() != peer.Is4():
		return refuse(unix.EINVAL)
	case !c.family(addr).Enabled:
		return decision{refused: unix.EAFNOSUPPORT, always: noFamily}
	case l.Namespace && l.Target.IsValid():
		addr = l.Target
	case l.Namespace && !addr.IsLoopback(), !l.Namespace && addr.IsLoopback() && !c.LoToLo,
		addr.IsUnspecified(), addr.IsMulticast():
		return refuse(unix.EACCES)
	case l.Namespace && c.NoLoopback6 && addr == netip.IPv6Loopback():
		addr = netip.AddrFrom4([4]byte{127, 0, 0, 1})
	}
	d := decision{
		to: netip.AddrPortFrom(addr, l.GuestPort), from: netip.AddrPortFrom(inet.Any(addr), r.dst.Port()),
		namespace: !l.Namespace,
	}
	if d.namespace {
		d.Scope = c.NamespaceScope
		return d
	}
	return c.judged(r, d)
}

// rule is what decides on a flow, as people read it: where it was sent to, too.
func (d *decision) rule() string {
	switch {
	case d.via != nil:
		return strings.TrimPrefix(d.verdict.Rule+", --via "+d.via.Text, ", ")
	case d.redirect == nil:
		return d.verdict.Rule
	}
	return strings.TrimSuffix(d.redirect.String()+", "+d.verdict.Rule, ", ")
}

// judged applies the egress rules to the socket as it would be.
func (c *Config) judged(r *request, d decision) decision {
	switch {
	case c.Egress == nil:
		d.verdict.Allowed = true
		return d
	case r.asked != nil:
		d.verdict, *r.asked = c.Egress.Explain(judgedAs(r, &d))
	default:
		d.verdict = c.Egress.Judge(judgedAs(r, &d))
	}
	if !d.verdict.Allowed {
		if d.lifted = c.lifts(judgedAs(r, &d)); !d.lifted {
			d.refused, d.byRules = unix.EACCES, true
		}
	}
	return d
}

// lifts tells whether --audit allows what the rules refuse.
func (c *Config) lifts(f egress.Flow) bool {
	if c.Audit == nil {
		return false
	}
	f.Lifted = true
	return c.Egress.Judge(f).Allowed
}

// judgedAs is the socket as the egress rules see it.
func judgedAs(r *request, d *decision) egress.Flow {
	from := d.from
	if r.proto != ipc.ProtoUDP {
		from = netip.AddrPortFrom(from.Addr(), 0) // the kernel's choice
	}
	return egress.Flow{Proto: r.proto, To: d.to, From: from, Device: d.Interface, Scope: d.Scope, Mapped: d.meaning != itself || r.splice, Past: r.shown,
		Group: d.group && d.to.Addr().IsMulticast()}
}

func (c *Config) family(a netip.Addr) *Family {
	if a.Is4() {
		return &c.V4
	}
	return &c.V6
}

func (m *Family) path() path { return path{m.Source, m.Interface, m.Scope, m.Freebind} }

// translate maps the guest's view of a destination to the host's, and tells what it
// has found, or why no guest may name it: loopback addresses exist on the host only
// under the names the configuration gives them.
func (m *Family) translate(proto uint8, dst netip.AddrPort) (netip.AddrPort, meaning, always) {
	a, port := dst.Addr(), dst.Port()
	transport := proto == ipc.ProtoTCP || proto == ipc.ProtoUDP
	if transport && port == 0 {
		return dst, itself, noPort
	}
	switch {
	case m.DNSForward.IsValid() && a == m.DNSForward && transport && (port == 53 || port == 853) && m.DNSHost.IsValid():
		return netip.AddrPortFrom(m.DNSHost, port), hostResolver, possible
	case m.MapHostLoopback.IsValid() && a == m.MapHostLoopback:
		if a.Is4() {
			return netip.AddrPortFrom(netip.AddrFrom4([4]byte{127, 0, 0, 1}), port), hostLoopback, possible
		}
		return netip.AddrPortFrom(netip.IPv6Loopback(), port), hostLoopback, possible
	case m.MapGuestAddr.IsValid() && a == m.MapGuestAddr && m.GuestAddr.IsValid():
		return netip.AddrPortFrom(m.GuestAddr, port), guestOnHost, possible
	case a.IsLoopback():
		return dst, itself, isLoopback
	case a.IsUnspecified():
		return dst, itself, isUnspecified
	case a.IsMulticast():
		return dst, itself, isMulticast
	case a == broadcast:
		return dst, itself, isBroadcast
	case m.Virtual.Contains(a):
		return dst, itself, isVirtual
	}
	return dst, itself, possible
}
