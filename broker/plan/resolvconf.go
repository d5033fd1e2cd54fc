// SPDX-License-Identifier: Apache-2.0

package plan

import (
	"bytes"
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"aldente/broker/cli"
	"aldente/broker/hostnet"
	"aldente/ipc"
)

// commandResolv is the resolv.conf of a command that we start; nil where the
// host's serves. It is the host's with other servers.
func (p *Plan) commandResolv(r hostnet.Resolvers) []byte {
	if p.cfg.DNSNone || r.Text == nil { // a file that is not there cannot be mounted over
		return nil
	}
	switch p.cfg.Personality {
	case cli.Aldente:
	case cli.Pasta:
		// Without --config-net a DHCP client may want to write the file.
		if !p.cfg.ConfigNet || p.cfg.SpliceOnly || p.serves(r) {
			return nil
		}
	default:
		return nil
	}
	servers := p.net.dns(r.IPv6First)
	same := slices.Equal(servers, withoutZones(r.Servers())) && !slices.ContainsFunc(r.Servers(), p.strangeZone)
	if len(servers) == 0 || same && len(p.cfg.Search) == 0 {
		return nil
	}
	var b bytes.Buffer
	for line := range strings.Lines(string(r.Text)) {
		word, _, _ := strings.Cut(strings.TrimSpace(line), " ")
		switch word, _, _ = strings.Cut(word, "\t"); {
		case word == "nameserver", len(p.cfg.Search) > 0 && (word == "search" || word == "domain"):
		default:
			b.WriteString(strings.TrimSuffix(line, "\n") + "\n")
		}
	}
	if len(p.cfg.Search) > 0 {
		fmt.Fprintf(&b, "search %s\n", strings.Join(p.cfg.Search, " "))
	}
	for _, s := range servers {
		if s.Is6() && s.IsLinkLocalUnicast() {
			s = s.WithZone(p.net.tap)
		}
		fmt.Fprintf(&b, "nameserver %s\n", s)
	}
	return b.Bytes()
}

func withoutZones(all []netip.Addr) []netip.Addr {
	for i := range all {
		all[i] = all[i].WithZone("")
	}
	return all
}

// strangeZone tells whether a resolver is on an interface whose name means nothing, or
// something else, to the guest.
func (p *Plan) strangeZone(s netip.Addr) bool {
	return hostnet.ScopeOf(s) != 0 && (p.net.v6.elsewhere(s) || p.net.tap != p.net.v6.link.Name)
}

// serves tells whether the host's resolv.conf will do in the guest. It does if
// it names no servers, or one that the guest reaches and, of the guest's
// families, none that it does not reach.
func (p *Plan) serves(r hostnet.Resolvers) bool {
	all := r.Servers()
	some := len(all) == 0
	for _, s := range all {
		f := &p.net.v4
		if s.Is6() {
			f = &p.net.v6
		}
		switch {
		case !f.enabled:
		case p.strangeZone(s):
			return false
		case f.asks(s) || s.IsLoopback() && p.leadsOut(53) && !p.answers:
			some = true
		default:
			return false
		}
	}
	return some
}

// asks tells whether the guest's queries to an address of one of the host's
// resolvers arrive there.
func (f *guestFamily) asks(s netip.Addr) bool {
	return !f.hidden(s) || s.WithZone("") == f.mapHostLoopback && f.dnsGateway
}

// leadsOut tells whether datagrams to a port of the namespace's loopback go to
// the same port of the host's.
func (p *Plan) leadsOut(port uint16) bool {
	return slices.ContainsFunc(p.Outbound, func(r *cli.Rule) bool {
		return r.Proto == ipc.ProtoUDP && !r.TargetAddr.IsValid() && r.First <= port && port <= r.Last && r.TargetPort == r.First
	})
}
