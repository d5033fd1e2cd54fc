// SPDX-License-Identifier: Apache-2.0

package plan

import (
	"fmt"
	"net/netip"
	"strings"

	"aldente/broker/cli"
)

// Summary says what the guest got, one line each, as the original does. tap is its
// interface, empty if there is none.
func (p *Plan) Summary(tap string) (lines []string) {
	line := func(format string, args ...any) { lines = append(lines, fmt.Sprintf(format, args...)) }
	var via []string
	for _, f := range []struct {
		name string
		fam  *guestFamily
	}{{"IPv4", &p.net.v4}, {"IPv6", &p.net.v6}} {
		if f.fam.enabled && f.fam.link.Name != "" {
			via = append(via, fmt.Sprintf("%s (%s)", f.fam.link.Name, f.name))
		}
	}
	if len(via) > 0 {
		line("Template interface: %s", strings.Join(via, ", "))
	}
	if tap != "" {
		line("Namespace interface: %s", tap)
	}
	line("MAC:")
	m := p.cfg.MAC
	line("    host: %02x:%02x:%02x:%02x:%02x:%02x", m[0], m[1], m[2], m[3], m[4], m[5])
	p.familySummary(line, "DHCP", "127.0.0.1", &p.net.v4, !p.cfg.NoDHCP)
	p.familySummary(line, "NDP/DHCPv6", "::1", &p.net.v6, !p.cfg.NoNDP || !p.cfg.NoDHCPv6)
	if p.cfg.DHCPSearch && len(p.net.search) > 0 {
		line("DNS search list:")
		for _, s := range p.net.search {
			line("    %s", s)
		}
	}
	showRules(line, "Inbound forwarding rules (HOST):", p.Inbound)
	showRules(line, "Outbound forwarding rules (SPLICE):", p.Outbound)
	return lines
}

func showRules(line func(string, ...any), title string, rules []*cli.Rule) {
	if len(rules) > 0 {
		line("%s", title)
	}
	for _, r := range rules {
		line("    %s", r)
	}
}

func (p *Plan) familySummary(line func(string, ...any), title, loopback string, f *guestFamily, served bool) {
	if !f.enabled {
		return
	}
	show := func(what string, a netip.Addr) {
		if a.IsValid() {
			line("    %s: %s", what, a)
		}
	}
	show("NAT to host "+loopback, f.mapHostLoopback)
	show("NAT to guest's address on the host", f.mapGuestAddr)
	if served && f.addr.IsValid() {
		line("%s:", title)
		line("    assign: %s", f.addr)
		show("router", f.our)
	}
	if len(f.dns) > 0 && p.cfg.DHCPDNS {
		line("DNS:")
		for _, a := range f.dns {
			line("    %s", a)
		}
	}
}
