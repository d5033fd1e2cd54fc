// SPDX-License-Identifier: Apache-2.0

package cli

import (
	"net/netip"
	"slices"
	"strings"

	"aldente/ipc"
)

// Multicast is what --multicast adds up to.
type Multicast struct {
	Send      bool             // what the guest sends to groups leaves; default in pasta and passt
	Broadcast bool             // and what it sends to everybody on its network
	Groups    []netip.AddrPort // ports of groups that it may hear, at most ipc.MaxGroups
}

// Groups that have names of their own: multicast DNS (RFC 6762), and the discovery of
// UPnP (UPnP Device Architecture 2.0 section 1, annex A).
var namedGroups = map[string][]netip.AddrPort{
	"mdns": {netip.MustParseAddrPort("224.0.0.251:5353"), netip.MustParseAddrPort("[ff02::fb]:5353")},
	"ssdp": {netip.MustParseAddrPort("239.255.255.250:1900"), netip.MustParseAddrPort("[ff02::c]:1900"), netip.MustParseAddrPort("[ff05::c]:1900")},
}

// setMulticast adds what the guest may have of groups; "none" takes back what was before.
func setMulticast(p *parser, arg string) error {
	m := &p.c.Multicast
	if arg == "none" {
		*m = Multicast{}
		return nil
	}
	for s := range strings.SplitSeq(arg, ",") {
		groups := namedGroups[s]
		switch {
		case s == "send", groups != nil:
		case s == "broadcast":
			m.Broadcast = true
		default:
			g, err := netip.ParseAddrPort(s)
			if err != nil || !g.Addr().IsMulticast() || g.Addr().Zone() != "" || g.Port() == 0 {
				return usagef("Invalid --multicast '%s': give none, send, broadcast, mdns, ssdp, or GROUP:PORT, as 239.1.2.3:5000 or [ff02::1:3]:5355", s)
			}
			groups = []netip.AddrPort{g}
		}
		m.Send = true
		for _, g := range groups {
			switch {
			case slices.Contains(m.Groups, g):
			case len(m.Groups) == ipc.MaxGroups:
				return usagef("Too many groups for --multicast: at most %d", ipc.MaxGroups)
			default:
				m.Groups = append(m.Groups, g)
			}
		}
	}
	return nil
}
