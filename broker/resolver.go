// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"fmt"
	"net/netip"
	"os"
	"slices"
	"strings"

	"aldente/broker/cli"
	"aldente/broker/hostnet"
	"aldente/broker/sockets"
	"aldente/ipc"
)

// Addresses under which a command reaches a resolver of the host that it could
// not reach by its own: the one that podman uses, and a unique local one (RFC
// 4193) that spells our name.
var (
	dnsForward4 = netip.AddrFrom4([4]byte{169, 254, 1, 1})
	dnsForward6 = netip.MustParseAddr("fd61:6c64:656e:7465::53")
)

// forwardResolvers has names resolve out of the box for a command of aldente. A
// resolver of the host's that the guest cannot reach, since it is on loopback or
// the policy denies it, gets a name on the guest's side. Options of the user
// come first.
func (in *instance) forwardResolvers(host *hostnet.Network, r hostnet.Resolvers, policy sockets.Policy) {
	if in.cfg.Personality != cli.Aldente || in.cfg.DNSNone || in.cfg.SpliceOnly {
		return
	}
	given4, given6 := split(in.cfg.DNS)
	for _, f := range []struct {
		*guestFamily
		given, servers []netip.Addr
		forward        netip.Addr
	}{{&in.net.v4, given4, r.Servers4, dnsForward4}, {&in.net.v6, given6, r.Servers6, dnsForward6}} {
		if !f.enabled || f.dnsForward.IsValid() || len(f.given) > 0 {
			continue
		}
		far := func(a netip.Addr) bool { return !reachable(host, policy, a) }
		if !f.dnsHost.IsValid() || !slices.ContainsFunc(f.servers, far) {
			continue
		}
		f.dnsForward, f.dns = f.forward, nil
		f.resolvers(f.servers, f.servers, f.dnsHost, false)
	}
	in.net.borrowResolver(given4, given6)
}

// borrowResolver gives the only family of a guest that would have no resolver
// the one of the other: queries go to a host socket, whose family is the
// host's affair.
func (g *guestNet) borrowResolver(given4, given6 []netip.Addr) {
	f, other, name := &g.v6, &g.v4, dnsForward6
	if g.v4.enabled {
		f, other, name = other, f, dnsForward4
	}
	if other.enabled || len(given4)+len(given6) > 0 || len(f.dns) > 0 || f.dnsForward.IsValid() || !other.dnsHost.IsValid() {
		return
	}
	f.dnsForward, f.dnsHost, f.dns = name, other.dnsHost, []netip.Addr{name}
}

// reachable tells whether the guest may ask a resolver by its own address.
func reachable(host *hostnet.Network, policy sockets.Policy, a netip.Addr) bool {
	return !a.IsLoopback() && !a.IsUnspecified() && !a.IsLinkLocalUnicast() && !slices.Contains(host.Own, a) &&
		(policy == nil || policy.Allowed(ipc.ProtoUDP, netip.AddrPortFrom(a, 53)))
}

// commandResolv is the resolv.conf of a command that aldente starts; nil where
// the host's serves. It is the host's with other servers.
func (in *instance) commandResolv(path string) []byte {
	if in.cfg.Personality != cli.Aldente || in.cfg.DNSNone {
		return nil
	}
	text, err := os.ReadFile(path)
	if err != nil {
		return nil // nothing that could be mounted over
	}
	r := hostnet.ParseResolvers(text)
	var servers []netip.Addr
	for _, f := range []*guestFamily{&in.net.v4, &in.net.v6} {
		if f.enabled {
			servers = append(servers, f.dns...)
		}
	}
	if len(servers) == 0 || slices.Equal(servers, slices.Concat(r.Servers4, r.Servers6)) && len(in.cfg.Search) == 0 {
		return nil
	}
	var b bytes.Buffer
	for line := range strings.Lines(string(text)) {
		word, _, _ := strings.Cut(strings.TrimSpace(line), " ")
		switch word, _, _ = strings.Cut(word, "\t"); {
		case word == "nameserver", len(in.cfg.Search) > 0 && (word == "search" || word == "domain"):
		default:
			b.WriteString(strings.TrimSuffix(line, "\n") + "\n")
		}
	}
	if len(in.cfg.Search) > 0 {
		fmt.Fprintf(&b, "search %s\n", strings.Join(in.cfg.Search, " "))
	}
	for _, s := range servers {
		fmt.Fprintf(&b, "nameserver %s\n", s)
	}
	return b.Bytes()
}
