// SPDX-License-Identifier: Apache-2.0

package plan

import (
	"net/netip"
	"strings"
	"testing"

	"aldente/broker/hostnet"
	"aldente/ipc"
)

// TestKnows: what is said of an address that means something to the guest, under each
// name of the program, by both families.
func TestKnows(t *testing.T) {
	alone := func(h *Host) {
		h.Network.V4 = hostnet.Family{Local: true, Address: hostnet.LocalAddress4, Gateway: hostnet.LocalGateway4}
		h.Network.V6 = hostnet.Family{Local: true, Gateway: hostnet.LocalGateway6}
	}
	hidden := func(h *Host) { h.Resolvers = hostnet.ParseResolvers([]byte("nameserver 127.0.0.53\n")) }
	for _, tt := range []struct {
		command string
		change  func(*Host)
		addr    string
		want    string // pieces of notes, by "|"; empty: there are none
	}{
		{"passt", nil, "198.51.100.7", ""},
		{"passt", nil, "192.0.2.1", "192.0.2.1 is the guest's gateway, mapped to the host"},
		{"pasta", nil, "fe80::1", "fe80::1 is the guest's gateway, mapped to the host"},
		{"pasta --no-map-gw", nil, "192.0.2.1", "192.0.2.1 is the guest's gateway, and is not mapped"},
		{"aldente", nil, "fe80::1", "fe80::1 is the guest's gateway, and is not mapped"},
		{"aldente", nil, "2001:db8:1::2", "2001:db8:1::2 was given to the guest"},
		{"pasta -4", nil, "2001:db8:1::2", ""},
		{"pasta --map-host-loopback 192.0.2.77", nil, "192.0.2.77", ""}, // the user has said so
		{"aldente", hidden, "169.254.1.1", "169.254.1.1 was chosen"},
		{"aldente --dns-forward 169.254.1.1", hidden, "169.254.1.1", ""},
		{"passt", alone, "198.51.100.7", "local mode"},
		{"pasta", alone, "2001:db8:9::7", "local mode"},
		{"aldente", alone, hostnet.LocalGateway4.String(), "local mode|is not mapped"},
	} {
		h := home()
		if tt.change != nil {
			tt.change(&h)
		}
		got := newPlan(t, tt.command, h).Knows(netip.MustParseAddr(tt.addr))
		var want []string
		if tt.want != "" {
			want = strings.Split(tt.want, "|")
		}
		ok := len(got) == len(want)
		for i := range want {
			ok = ok && strings.Contains(got[i], want[i])
		}
		if !ok {
			t.Errorf("%s: %s: %q, want %q", tt.command, tt.addr, got, want)
		}
	}
}

// TestKeeps: which protocols are not forwarded at all.
func TestKeeps(t *testing.T) {
	protos := map[string][]uint8{"": nil, "--no-tcp": {ipc.ProtoTCP}, "--no-udp": {ipc.ProtoUDP}, "--no-icmp": {ipc.ProtoICMP, ipc.ProtoICMPv6}}
	for option, kept := range protos {
		p := newPlan(t, "passt "+option, home())
		for _, proto := range []uint8{ipc.ProtoTCP, ipc.ProtoUDP, ipc.ProtoICMP, ipc.ProtoICMPv6} {
			want := false
			for _, k := range kept {
				want = want || k == proto
			}
			if why := p.Keeps(proto); (why != "") != want || want && !strings.HasPrefix(why, option) {
				t.Errorf("%s: %d: %q", option, proto, why)
			}
		}
	}
}
