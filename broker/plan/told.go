// SPDX-License-Identifier: Apache-2.0

package plan

import (
	"fmt"
	"slices"
	"strings"

	"aldente/broker/cli"
)

// Told is what the guest is told of its network, as text.
type Told struct {
	Interface string   // the guest's, where we make it
	MTU       int      // bytes, 0: none
	Addresses []string // with their length
	Gateways  []string // default routers
	Resolvers []string // as told, or as a command's resolv.conf has them
	Search    []string // domains
}

// Told returns it.
func (p *Plan) Told() Told {
	t := Told{MTU: p.net.mtu, Addresses: []string{}, Gateways: []string{}, Resolvers: []string{}} // lists in JSON, too
	if p.cfg.SpliceOnly {
		return t
	}
	if p.cfg.Target.Kind != cli.TargetNone {
		t.Interface = p.net.tap
	}
	for _, f := range []*guestFamily{&p.net.v4, &p.net.v6} {
		if !f.enabled {
			continue
		}
		if f.addr.IsValid() {
			t.Addresses = append(t.Addresses, f.addr.String())
		}
		router := f.our
		if f.gateway.IsValid() {
			router = f.gateway
		}
		t.Gateways = append(t.Gateways, router.String())
		if p.cfg.DHCPDNS {
			for _, a := range f.dns {
				t.Resolvers = append(t.Resolvers, a.String())
			}
		}
	}
	if p.cfg.DHCPSearch {
		t.Search = p.net.search
	}
	for line := range strings.Lines(string(p.ResolvConf)) {
		// A command has this file, and hears nothing else.
		switch word, rest, _ := strings.Cut(strings.TrimSpace(line), " "); word {
		case "nameserver":
			if !slices.Contains(t.Resolvers, rest) {
				t.Resolvers = append(t.Resolvers, rest)
			}
		case "search":
			t.Search = strings.Fields(rest)
		}
	}
	return t
}

// EgressLine says in a line where the guest may connect.
func (p *Plan) EgressLine() string {
	if p.Egress == nil {
		return "everywhere"
	}
	rules := p.Egress.Rules()
	if len(rules) == 0 {
		return "everywhere"
	}
	const most = 4
	if len(rules) > most {
		return fmt.Sprintf("%s and %d more rules, else allowed", strings.Join(rules[:most], ", "), len(rules)-most)
	}
	return strings.Join(rules, ", ") + ", else allowed"
}
