// SPDX-License-Identifier: Apache-2.0

package plan

import (
	"fmt"
	"net/netip"
	"slices"

	"aldente/ipc"
)

// Keeps tells why the guest's packets of a protocol are not forwarded at all, whatever
// their destination, or "".
func (p *Plan) Keeps(proto uint8) string {
	switch {
	case proto == ipc.ProtoTCP && p.cfg.NoTCP:
		return "--no-tcp: none of it is forwarded"
	case proto == ipc.ProtoUDP && p.cfg.NoUDP:
		return "--no-udp: none of it is forwarded"
	case (proto == ipc.ProtoICMP || proto == ipc.ProtoICMPv6) && p.cfg.NoICMP:
		return "--no-icmp: none of it is forwarded"
	}
	return ""
}

// Linked tells whether the guest has an interface of ours.
func (p *Plan) Linked() bool { return !p.cfg.SpliceOnly }

// Knows says what is known of an address in the guest's view, and is worth telling
// whoever asks about it, one thing each.
func (p *Plan) Knows(a netip.Addr) (notes []string) {
	f, option := &p.net.v6, p.cfg.MapHostLoopback6
	if a.Is4() {
		f, option = &p.net.v4, p.cfg.MapHostLoopback4
	}
	if !f.enabled {
		return nil
	}
	note := func(format string, args ...any) { notes = append(notes, fmt.Sprintf(format, args...)) }
	if f.local {
		note("no interface of the host had a route of this family: the guest has a link-local address of it (local mode)")
	}
	switch {
	case a == f.mapHostLoopback && !option.IsValid() && a == f.gateway:
		note("%v is the guest's gateway, mapped to the host unless --no-map-gw is given", a)
	case a == f.gateway:
		note("%v is the guest's gateway, and is not mapped to the host", a)
	case a == f.dnsForward && f.dnsForward != p.forwardOption(a):
		note("%v was chosen, since the guest could not reach the host's resolver", a)
	case slices.Contains(f.locals, a):
		note("%v was given to the guest: packets to it stay in a guest that has it", a)
	}
	return notes
}

// forwardOption is --dns-forward of an address's family.
func (p *Plan) forwardOption(a netip.Addr) netip.Addr {
	if a.Is4() {
		return p.cfg.DNSForward4
	}
	return p.cfg.DNSForward6
}
