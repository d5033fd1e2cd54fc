// SPDX-License-Identifier: Apache-2.0

package main

import (
	"fmt"
	"net/netip"
	"strings"

	"aldente/broker/cli"
	"aldente/broker/sockets"
	"aldente/ipc"
)

// listen opens the listening sockets that -t and -u ask for.
func (in *instance) listen() error {
	for _, f := range []*cli.Forward{&in.cfg.TCPPorts, &in.cfg.UDPPorts} {
		for i := range f.Rules {
			if err := in.listenRule(&f.Rules[i]); err != nil {
				return err
			}
		}
	}
	return nil
}

// listenRule opens the sockets of one rule. A weak rule does with what it gets,
// unless that is nothing.
func (in *instance) listenRule(r *cli.Rule) error {
	if r.Auto || r.Proto == ipc.ProtoTCP && in.cfg.NoTCP || r.Proto == ipc.ProtoUDP && in.cfg.NoUDP {
		return nil
	}
	bound := 0
	var failed error
	for p := 0; p < r.Len(); p++ {
		_, err := in.factory.Listen(sockets.Listener{
			Proto: r.Proto, Addr: r.Addr, Interface: r.Interface,
			Port: r.First + uint16(p), GuestPort: r.TargetPort + uint16(p), Target: r.TargetAddr,
		})
		switch {
		case err == nil:
			bound++
		case !r.Weak:
			return fmt.Errorf("%w, for rule %s", err, r.String())
		default:
			failed = err
		}
	}
	if bound == 0 && failed != nil {
		return fmt.Errorf("no port could be bound for rule %s: %w", r.String(), failed)
	}
	return nil
}

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
	var rules []string
	for _, f := range []*cli.Forward{&in.cfg.TCPPorts, &in.cfg.UDPPorts} {
		for i := range f.Rules {
			if !f.Rules[i].Auto {
				rules = append(rules, f.Rules[i].String())
			}
		}
	}
	if len(rules) > 0 {
		line("Inbound forwarding rules (HOST):")
		for _, r := range rules {
			line("    %s", r)
		}
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
