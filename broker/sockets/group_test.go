// SPDX-License-Identifier: Apache-2.0

package sockets

import (
	"net/netip"
	"testing"

	"golang.org/x/sys/unix"

	"aldente/broker/egress"
	"aldente/ipc"
)

// TestDecideGroups: a group is reached by UDP alone, where that was said, and heard where
// it was named; a worker that is captured gets no other.
func TestDecideGroups(t *testing.T) {
	deny := func(rules ...string) *egress.RuleSet {
		var all []egress.Rule
		for _, r := range rules {
			all = append(all, egress.Rule{Dest: r})
		}
		set, err := egress.New(all, []netip.Addr{netip.MustParseAddr("192.0.2.2")})
		if err != nil {
			t.Fatal(err)
		}
		set.SetLocal(func(f egress.Flow) bool { return true }) // as the kernel says of groups
		return set
	}
	mdns := netip.MustParseAddrPort("224.0.0.251:5353")
	all := Multicast{Send: true, Broadcast: true, Groups: []netip.AddrPort{mdns, netip.MustParseAddrPort("[ff02::fb]:5353")}}
	for _, tt := range []struct {
		name   string
		m      Multicast
		rules  *egress.RuleSet
		proto  uint8
		dst    string
		member bool
		want   unix.Errno
		group  bool
	}{
		{name: "group", m: Multicast{Send: true}, proto: ipc.ProtoUDP, dst: "239.1.2.3:99", group: true},
		{name: "group of IPv6", m: Multicast{Send: true}, proto: ipc.ProtoUDP, dst: "[ff05::1:3]:99", group: true},
		{name: "not asked for", proto: ipc.ProtoUDP, dst: "239.1.2.3:99", want: unix.EACCES},
		{name: "of this host alone", m: all, proto: ipc.ProtoUDP, dst: "[ff01::1]:99", want: unix.EACCES},
		{name: "of no scope", m: all, proto: ipc.ProtoUDP, dst: "[ff00::1]:99", want: unix.EACCES},
		{name: "TCP", m: all, proto: ipc.ProtoTCP, dst: "239.1.2.3:99", want: unix.EACCES},
		{name: "echo", m: all, proto: ipc.ProtoICMP, dst: "239.1.2.3:0", want: unix.EACCES},
		{name: "DHCP", m: all, proto: ipc.ProtoUDP, dst: "255.255.255.255:67", want: unix.EACCES},
		{name: "DHCPv6", m: all, proto: ipc.ProtoUDP, dst: "[ff02::1:2]:547", want: unix.EACCES},
		{name: "port 0", m: all, proto: ipc.ProtoUDP, dst: "239.1.2.3:0", want: unix.EACCES},
		{name: "everybody", m: all, proto: ipc.ProtoUDP, dst: "255.255.255.255:99", group: true},
		{name: "everybody on the network", m: all, proto: ipc.ProtoUDP, dst: "192.0.2.255:99", group: true},
		{name: "everybody, not asked for", m: Multicast{Send: true}, proto: ipc.ProtoUDP, dst: "255.255.255.255:99", want: unix.EACCES},
		{name: "an address like any", m: Multicast{Send: true}, proto: ipc.ProtoUDP, dst: "192.0.2.255:99"},
		{name: "denied", m: all, rules: deny("239.0.0.0/8"), proto: ipc.ProtoUDP, dst: "239.1.2.3:99", want: unix.EACCES},
		{name: "a group is not the host", m: all, rules: deny("host"), proto: ipc.ProtoUDP, dst: "239.1.2.3:99", group: true},
		{name: "everybody is the host, too", m: all, rules: deny("host"), proto: ipc.ProtoUDP, dst: "192.0.2.255:99", want: unix.EACCES},
		{name: "member", m: all, proto: ipc.ProtoUDP, dst: mdns.String(), member: true},
		{name: "member, rules are of where the guest connects", m: all, rules: deny("any"), proto: ipc.ProtoUDP, dst: mdns.String(), member: true},
		{name: "member of another group", m: all, proto: ipc.ProtoUDP, dst: "224.0.0.252:5353", member: true, want: unix.EACCES},
		{name: "member by another port", m: all, proto: ipc.ProtoUDP, dst: "224.0.0.251:53", member: true, want: unix.EACCES},
		{name: "member of what is no group", m: all, proto: ipc.ProtoUDP, dst: "192.0.2.9:5353", member: true, want: unix.EACCES},
		{name: "member of nothing", m: Multicast{Send: true}, proto: ipc.ProtoUDP, dst: mdns.String(), member: true, want: unix.EACCES},
	} {
		c := Config{V4: Family{Enabled: true, Scope: 2, Broadcast: netip.MustParseAddr("192.0.2.255")}, V6: Family{Enabled: true, Scope: 2}, Multicast: tt.m}
		if tt.rules != nil {
			c.Egress = tt.rules
		}
		dst := netip.MustParseAddrPort(tt.dst)
		r := request{proto: tt.proto, dst: dst, member: tt.member, src: netip.MustParseAddrPort("192.0.2.2:1000")}
		if dst.Addr().Is6() {
			r.src = netip.MustParseAddrPort("[2001:db8::2]:1000")
		}
		if d := c.decide(&r); d.refused != tt.want || d.group != tt.group && tt.want == 0 {
			t.Errorf("%s: %v, group %t", tt.name, d.refused, d.group)
		}
	}
	c := Config{V4: Family{Enabled: true}, Multicast: all}
	r := request{proto: ipc.ProtoUDP, dst: mdns, member: true, src: mdns}
	if d := c.decide(&r); d.refused != unix.ENODEV {
		t.Errorf("without an interface: %v", d.refused)
	}
}
