// SPDX-License-Identifier: Apache-2.0

package sockets

import (
	"fmt"
	"log/slog"
	"net/netip"
	"strings"
	"testing"

	"aldente/broker/egress"
	"aldente/ipc"
)

func redirects(t *testing.T, all ...string) *egress.Redirects {
	t.Helper()
	var parsed []egress.Redirect
	for _, s := range all {
		r, err := egress.ParseRedirect(s)
		if err != nil {
			t.Fatal(err)
		}
		parsed = append(parsed, r)
	}
	return egress.NewRedirects(parsed)
}

// TestDecideRedirect: the egress rules judge where a flow really goes; what nobody may
// name stays so; echo, and what comes by listeners, is not redirected.
func TestDecideRedirect(t *testing.T) {
	rules, err := egress.New([]egress.Rule{{Dest: "192.0.2.66"}, {Dest: "198.51.100.66"}}, nil)
	if err != nil {
		t.Fatal(err)
	}
	c := hosts[0].config()
	c.Egress = rules
	c.Redirects = redirects(t, "198.51.100.1=127.0.0.1:8080", "198.51.100.2=192.0.2.66", "198.51.100.66=192.0.2.5", "198.51.100.3=2001:db8::5",
		"2001:db8::3=192.0.2.5", "udp:any:53=192.0.2.53:5353")
	for _, tt := range []struct{ flow, want string }{
		{"tcp 198.51.100.1:80", "127.0.0.1:8080"},
		{"tcp 198.51.100.2:80", "by the rules"}, // denied where it really goes
		{"tcp 198.51.100.66:80", "192.0.2.5:80"},
		{"udp 198.51.100.3:80", "[2001:db8::5]:80"},
		{"tcp [2001:db8::3]:80", "192.0.2.5:80"},
		{"udp [2001:db8::9]:53", "192.0.2.53:5353"},
		{"udp " + worlds[0].gateway + ":53", "192.0.2.53:5353"}, // before what addresses mean otherwise
		{"udp 224.0.0.251:53", "always"},
		{"udp 127.0.0.1:53", "always"},
		{"tcp 198.51.100.1:0", "always"},
		{"icmp 198.51.100.1:0", "198.51.100.1:0"},
	} {
		name, to, _ := strings.Cut(tt.flow, " ")
		r := request{proto: map[string]uint8{"tcp": ipc.ProtoTCP, "udp": ipc.ProtoUDP, "icmp": ipc.ProtoICMP}[name], dst: netip.MustParseAddrPort(to)}
		r.src = ap(anyOf(r.dst), 777)
		d := c.decide(&r)
		got := d.to.String()
		switch {
		case d.always != possible:
			got = "always"
		case d.byRules:
			got = "by the rules"
		}
		if got != tt.want {
			t.Errorf("%s: %s, want %s", tt.flow, got, tt.want)
		}
		if (d.redirect != nil) != (d.meaning == redirected) {
			t.Errorf("%s: meaning %d, redirect %v", tt.flow, d.meaning, d.redirect)
		}
		if d.to.IsValid() && d.from.IsValid() && d.from.Addr().Is4() != d.to.Addr().Is4() {
			t.Errorf("%s: from %v to %v", tt.flow, d.from, d.to)
		}
	}
}

// TestRedirectTold: a redirect is listed with what it has redirected, and explained; the
// numbers of rules in an explanation are those of the list.
func TestRedirectTold(t *testing.T) {
	rules, err := egress.New([]egress.Rule{{Dest: "10.0.0.0/8"}, {Dest: "192.0.2.66"}}, nil)
	if err != nil {
		t.Fatal(err)
	}
	c := hosts[0].config()
	c.Logger, c.Egress, c.Redirects = slog.New(slog.DiscardHandler), rules, redirects(t, "198.51.100.1=192.0.2.66:81", "198.51.100.2=192.0.2.5")
	f := New(*c)
	dst := netip.MustParseAddrPort("198.51.100.1:80")
	e := f.Why(ipc.ProtoTCP, dst)
	all := fmt.Sprint(e.Steps)
	if e.Allowed || !strings.Contains(all, `tcp 198.51.100.1:80 leads to tcp 192.0.2.66:81 instead, by "--redirect 198.51.100.1=192.0.2.66:81"`) {
		t.Errorf("%s", all)
	}
	q := request{proto: ipc.ProtoTCP, src: ap("10.0.0.1", 777), dst: dst}
	d := f.cfg().decide(&q)
	f.hits.count(&q, &d)
	if n := ruleIn(e); n == 0 || f.Rules()[n-1].Text != "--deny 192.0.2.66" || f.Rules()[n-1].Hits != 1 {
		t.Errorf("rule %d of %+v", n, f.Rules())
	}
	counted := false
	for _, r := range f.Rules() {
		counted = counted || r.Text == "--redirect 198.51.100.1=192.0.2.66:81" && r.Hits == 1
	}
	if !counted {
		t.Errorf("%+v", f.Rules())
	}
	w := &ipc.Flow{Proto: ipc.ProtoTCP, Direction: ipc.FlowOut, State: ipc.FlowEstablished, GuestPort: 7, RemotePort: 80, Guest: as16("10.0.0.1"), Remote: as16("198.51.100.2")}
	if got := f.FlowRule(w); got != "--redirect 198.51.100.2=192.0.2.5" {
		t.Errorf("rule of a flow: %q", got)
	}
}
