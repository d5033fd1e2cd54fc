// SPDX-License-Identifier: Apache-2.0

package sockets

import (
	"net/netip"
	"testing"

	"aldente/broker/egress"
	"aldente/ipc"
)

// TestDecideScope: a link-local destination is on the link where somebody has met it, if
// that is known: the one of resolv.conf, or a peer's of a listener. --outbound and
// --outbound-if are about the links that they name.
func TestDecideScope(t *testing.T) {
	var judged egress.Flow
	conf := func(resolverScope uint32) *Config {
		return &Config{
			V6: Family{Enabled: true, Scope: 3, Interface: "out0", Source: netip.MustParseAddr("2001:db8::4"),
				DNSForward: netip.MustParseAddr("fd00::53"), DNSHost: netip.MustParseAddr("fe80::53"), DNSHostScope: resolverScope},
			Egress: judge{func(f egress.Flow) { judged = f }},
		}
	}
	for _, tt := range []struct {
		name   string
		c      *Config
		q      request
		to     string
		scope  uint32
		device string
	}{
		{"resolver on another link", conf(7), request{dst: ap("fd00::53", 53)}, "fe80::53", 7, ""},
		{"resolver on that link", conf(3), request{dst: ap("fd00::53", 853)}, "fe80::53", 3, "out0"},
		{"resolver on any link", conf(0), request{dst: ap("fd00::53", 53)}, "fe80::53", 3, "out0"},
		{"not the resolver", conf(7), request{dst: ap("fd00::53", 80)}, "fd00::53", 3, "out0"},
		{"link-local", conf(7), request{dst: ap("fe80::53", 53)}, "fe80::53", 3, "out0"},
		{"peer on another link", conf(7), request{listener: Listener{ID: 1, Proto: ipc.ProtoUDP, Port: 777}, dst: ap("fe80::9", 53), scope: 8}, "fe80::9", 8, ""},
		{"peer on that link", conf(7), request{listener: Listener{ID: 1, Proto: ipc.ProtoUDP, Port: 777}, dst: ap("fe80::9", 53), scope: 3}, "fe80::9", 3, "out0"},
		{"peer on any link", conf(7), request{listener: Listener{ID: 1, Proto: ipc.ProtoUDP, Port: 777}, dst: ap("fe80::9", 53)}, "fe80::9", 3, "out0"},
		{"peer on no link", conf(7), request{listener: Listener{ID: 1, Proto: ipc.ProtoUDP, Port: 777}, dst: ap("2001:db8::9", 53), scope: 8}, "2001:db8::9", 3, "out0"},
	} {
		tt.q.proto, tt.q.src = ipc.ProtoUDP, ap("::", 777)
		judged = egress.Flow{}
		d := tt.c.decide(&tt.q)
		if d.refused != 0 || d.to.Addr() != netip.MustParseAddr(tt.to) || d.Scope != tt.scope || d.Interface != tt.device {
			t.Errorf("%s: %+v", tt.name, d)
		}
		if (d.from.Addr() == netip.MustParseAddr("2001:db8::4")) != (tt.device != "") {
			t.Errorf("%s: comes from %v", tt.name, d.from)
		}
		if judged.Scope != tt.scope || judged.To != d.to {
			t.Errorf("%s: the rules judge %+v", tt.name, judged)
		}
	}
	for resolver, scope := range map[string]uint32{"fe80::53%7": 7, "fe80::53%3": 3, "fe80::53": 3} {
		d := conf(0).decideUpstream(netip.MustParseAddr(resolver))
		if d.to != ap("fe80::53", 53) || d.Scope != scope || (d.Interface == "") != (scope == 7) {
			t.Errorf("aldente-names asks %s: %+v", resolver, d)
		}
	}
}

// judge allows everything and tells what it was asked.
type judge struct{ asked func(egress.Flow) }

func (j judge) Judge(f egress.Flow) egress.Verdict                     { j.asked(f); return egress.Verdict{Allowed: true} }
func (j judge) Explain(f egress.Flow) (egress.Verdict, []egress.Asked) { return j.Judge(f), nil }
func (j judge) List() []egress.Listed                                  { return nil }
