// SPDX-License-Identifier: Apache-2.0

package main

import (
	"fmt"
	"net/netip"
	"strings"

	"aldente/broker/cli"
)

// summary says what the guest got, one line each, as the original does.
func (in *instance) summary(tap string) {
	line := func(format string, args ...any) { in.log.Info(fmt.Sprintf(format, args...)) }
	var via []string
	for _, f := range []struct {
		name string
		fam  *guestFamily
	}{{"IPv4", &in.net.v4}, {"IPv6", &in.net.v6}} {
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
	m := in.cfg.MAC
	line("    host: %02x:%02x:%02x:%02x:%02x:%02x", m[0], m[1], m[2], m[3], m[4], m[5])
	in.familySummary(line, "DHCP", "127.0.0.1", &in.net.v4, !in.cfg.NoDHCP)
	in.familySummary(line, "NDP/DHCPv6", "::1", &in.net.v6, !in.cfg.NoNDP || !in.cfg.NoDHCPv6)
	if in.cfg.DHCPSearch && len(in.net.search) > 0 {
		line("DNS search list:")
		for _, s := range in.net.search {
			line("    %s", s)
		}
	}
	showRules(line, "Inbound forwarding rules (HOST):", in.rules(inbound))
	showRules(line, "Outbound forwarding rules (SPLICE):", in.rules(outbound))
}

func showRules(line func(string, ...any), title string, rules []*cli.Rule) {
	if len(rules) > 0 {
		line("%s", title)
	}
	for _, r := range rules {
		line("    %s", r)
	}
}

func (in *instance) familySummary(line func(string, ...any), title, loopback string, f *guestFamily, served bool) {
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
	if len(f.dns) > 0 && in.cfg.DHCPDNS {
		line("DNS:")
		for _, a := range f.dns {
			line("    %s", a)
		}
	}
}
