// SPDX-License-Identifier: Apache-2.0

package sockets

import (
	"log/slog"
	"math"
	"math/rand/v2"
	"net/netip"
	"testing"

	"aldente/broker/egress"
	"aldente/ipc"
)

// ruled is a factory with rules and no worker.
func ruled(t *testing.T, rules ...egress.Rule) (*Factory, *egress.RuleSet) {
	t.Helper()
	set, err := egress.New(rules, nil)
	if err != nil {
		t.Fatal(err)
	}
	f := New(Config{
		Logger: slog.New(slog.DiscardHandler), Egress: set,
		V4: Family{Enabled: true, MapHostLoopback: netip.MustParseAddr("192.0.2.77")}, V6: Family{Enabled: true},
	})
	t.Cleanup(f.Close)
	return f, set
}

// outTo is a flow of the guest's as a worker has it.
func outTo(proto uint8, state ipc.FlowState, to string) *ipc.Flow {
	dst := netip.MustParseAddrPort(to)
	guest := "10.0.0.1"
	if dst.Addr().Is6() {
		guest = "2001:db8::99"
	}
	return &ipc.Flow{Proto: proto, State: state, Guest: as16(guest), GuestPort: 4000, Remote: dst.Addr().As16(), RemotePort: dst.Port()}
}

// TestFlowRule: of what the guest has begun, the rule is that for where its socket
// leads; of what came by a listener, that for its port.
func TestFlowRule(t *testing.T) {
	f, _ := ruled(t, egress.Rule{Allow: true, Dest: "tcp:198.51.100.0/24:443"}, egress.Rule{Allow: true, Dest: "udp:[2001:db8::9]:53"},
		egress.Rule{Allow: true, Dest: "icmp:any"}, egress.Rule{Allow: true, Dest: "127.0.0.1:80"}, egress.Rule{Dest: "private"})
	in := f.Adopt(Listener{Proto: ipc.ProtoTCP, Port: 8080, GuestPort: 80, FD: -1}).ID
	udp := f.Adopt(Listener{Proto: ipc.ProtoUDP, Port: 5353, GuestPort: 53, FD: -1}).ID
	out := f.Adopt(Listener{Proto: ipc.ProtoTCP, Port: 9090, GuestPort: 90, Namespace: true, FD: -1}).ID
	outUDP := f.Adopt(Listener{Proto: ipc.ProtoUDP, Port: 9091, GuestPort: 91, Namespace: true, FD: -1}).ID
	by := func(proto uint8, d ipc.FlowDirection, state ipc.FlowState, listener uint32) *ipc.Flow {
		return &ipc.Flow{Proto: proto, Direction: d, State: state, Listener: listener}
	}
	for name, tt := range map[string]struct {
		flow *ipc.Flow
		want string
	}{
		"TCP":                    {outTo(ipc.ProtoTCP, ipc.FlowEstablished, "198.51.100.7:443"), "--allow tcp:198.51.100.0/24:443"},
		"TCP, under way":         {outTo(ipc.ProtoTCP, ipc.FlowSynSent, "198.51.100.7:443"), "--allow tcp:198.51.100.0/24:443"},
		"no rule fits":           {outTo(ipc.ProtoTCP, ipc.FlowEstablished, "198.51.100.7:80"), ""},
		"UDP, IPv6":              {outTo(ipc.ProtoUDP, ipc.FlowOpen, "[2001:db8::9]:53"), "--allow udp:[2001:db8::9]:53"},
		"echo":                   {outTo(ipc.ProtoICMP, ipc.FlowOpen, "198.51.100.7:0"), "--allow icmp:any"},
		"echo, IPv6":             {outTo(ipc.ProtoICMPv6, ipc.FlowOpen, "[2001:db8::9]:0"), "--allow icmp:any"},
		"translated":             {outTo(ipc.ProtoTCP, ipc.FlowEstablished, "192.0.2.77:80"), "--allow 127.0.0.1:80"},
		"refused":                {outTo(ipc.ProtoUDP, ipc.FlowRefused, "10.0.0.9:53"), "--deny private"},
		"open, and is not to be": {outTo(ipc.ProtoUDP, ipc.FlowOpen, "10.0.0.9:53"), ""},
		"refused by the host":    {outTo(ipc.ProtoUDP, ipc.FlowRefused, "[2001:db8::9]:53"), ""},
		"loopback":               {outTo(ipc.ProtoUDP, ipc.FlowRefused, "127.0.0.1:80"), ""},
		"in":                     {by(ipc.ProtoTCP, ipc.FlowIn, ipc.FlowEstablished, in), "-t 8080"},
		"in, UDP":                {by(ipc.ProtoUDP, ipc.FlowIn, ipc.FlowUnanswered, udp), "-u 5353"},
		"in, past the link":      {by(ipc.ProtoTCP, ipc.FlowBypassIn, ipc.FlowEstablished, in), "-t 8080"},
		"in, UDP past it":        {by(ipc.ProtoUDP, ipc.FlowBypassIn, ipc.FlowOpen, udp), "-u 5353"},
		"out past it":            {by(ipc.ProtoTCP, ipc.FlowBypassOut, ipc.FlowEstablished, out), "-T 9090"},
		"out past it, UDP":       {by(ipc.ProtoUDP, ipc.FlowBypassOut, ipc.FlowOpen, outUDP), "-U 9091"},
		"in, refused":            {by(ipc.ProtoUDP, ipc.FlowIn, ipc.FlowRefused, udp), ""},
		"in, nobody knows how":   {by(ipc.ProtoTCP, ipc.FlowIn, ipc.FlowTimeWait, 0), ""},
		"the guest has done":     {&ipc.Flow{Proto: ipc.ProtoTCP, State: ipc.FlowLastAck}, ""},
	} {
		if got := f.FlowRule(tt.flow); got != tt.want {
			t.Errorf("%s: %q, want %q", name, got, tt.want)
		}
	}
	if f.cfg().Egress = nil; f.FlowRule(outTo(ipc.ProtoTCP, ipc.FlowEstablished, "198.51.100.7:443")) != "" {
		t.Error("a rule where there are none")
	}
}

// TestFlowRuleChanges: after a change, no rule that is gone is shown, and none that
// took its place by number.
func TestFlowRuleChanges(t *testing.T) {
	f, set := ruled(t, egress.Rule{Allow: true, Dest: "tcp:any:443"}, egress.Rule{Dest: "any"})
	flow := outTo(ipc.ProtoTCP, ipc.FlowEstablished, "198.51.100.7:443")
	is := func(w *ipc.Flow, want string) {
		t.Helper()
		if got := f.FlowRule(w); got != want {
			t.Errorf("%q, want %q", got, want)
		}
	}
	is(flow, "--allow tcp:any:443")
	for _, tt := range []struct {
		rules []egress.Rule
		want  string
	}{
		{[]egress.Rule{{Allow: true, Dest: "udp:any"}, {Allow: true, Dest: "tcp:any:443"}}, "--allow tcp:any:443"},
		{[]egress.Rule{{Allow: true, Dest: "udp:any"}, {Dest: "any"}}, ""},
		{[]egress.Rule{{Dest: "tcp:any:443"}}, ""},
		{nil, ""},
	} {
		if err := set.Replace(tt.rules); err != nil {
			t.Fatal(err)
		}
		is(flow, tt.want)
	}
	l := f.Adopt(Listener{Proto: ipc.ProtoTCP, Port: 8080, GuestPort: 80, FD: -1})
	in := &ipc.Flow{Proto: ipc.ProtoTCP, Direction: ipc.FlowIn, State: ipc.FlowEstablished, Listener: l.ID, GuestPort: 80}
	is(in, "-t 8080")
	f.Retarget(l.ID, Listener{GuestPort: 81})
	is(in, "-t 8080")
	f.Unlisten(l.ID)
	is(in, "")
	f.Adopt(Listener{Proto: ipc.ProtoTCP, Port: 9999, GuestPort: 80, FD: -1})
	is(in, "")
}

// TestFlowRuleLies: whatever a worker says, it gets an existing rule of the kind that
// it speaks of, or none; and nothing counts.
func TestFlowRuleLies(t *testing.T) {
	f, _ := ruled(t, egress.Rule{Allow: true, Dest: "198.51.100.0/24"}, egress.Rule{Dest: "any"})
	in := f.Adopt(Listener{Proto: ipc.ProtoTCP, Port: 8080, GuestPort: 80, FD: -1}).ID
	out := f.Adopt(Listener{Proto: ipc.ProtoTCP, Port: 9090, GuestPort: 90, Namespace: true, FD: -1}).ID
	tcp := ipc.Flow{Proto: ipc.ProtoTCP, State: ipc.FlowEstablished}
	for name, change := range map[string]func(*ipc.Flow){
		"no such listener":        func(w *ipc.Flow) { w.Direction, w.Listener = ipc.FlowIn, math.MaxUint32 },
		"the other direction's":   func(w *ipc.Flow) { w.Direction, w.Listener = ipc.FlowBypassOut, in },
		"the other direction's 2": func(w *ipc.Flow) { w.Direction, w.Listener = ipc.FlowIn, out },
		"the other direction's 3": func(w *ipc.Flow) { w.Direction, w.Listener = ipc.FlowBypassIn, out },
		"another protocol's": func(w *ipc.Flow) {
			*w = ipc.Flow{Proto: ipc.ProtoUDP, Direction: ipc.FlowIn, State: ipc.FlowOpen, Listener: in}
		},
		"of two families":    func(w *ipc.Flow) { w.Guest, w.Remote, w.RemotePort = as16("2001:db8::1"), as16("198.51.100.7"), 80 },
		"without port":       func(w *ipc.Flow) { w.Guest, w.Remote = as16("10.0.0.1"), as16("198.51.100.7") },
		"to a group":         func(w *ipc.Flow) { w.Guest, w.Remote, w.RemotePort = as16("10.0.0.1"), as16("224.0.0.1"), 80 },
		"control characters": func(w *ipc.Flow) { copy(w.Remote[:], "\x1b[2J\r\n"); w.Guest, w.RemotePort = as16("2001:db8::1"), 80 },
	} {
		w := tcp
		change(&w)
		if got := f.FlowRule(&w); got != "" {
			t.Errorf("%s: %q", name, got)
		}
	}
	r := rand.New(rand.NewPCG(3, 4))
	known := map[string]bool{"": true, "--allow 198.51.100.0/24": true, "--deny any": true, "-t 8080": true, "-T 9090": true}
	for range 20000 {
		w := ipc.Flow{
			Proto:     []uint8{ipc.ProtoTCP, ipc.ProtoUDP, ipc.ProtoICMP, ipc.ProtoICMPv6}[r.IntN(4)],
			Direction: ipc.FlowDirection(r.IntN(int(ipc.FlowDirections))), State: ipc.FlowState(1 + r.IntN(int(ipc.FlowStates)-1)),
			GuestPort: uint16(r.Uint32()), RemotePort: uint16(r.Uint32()), Listener: uint32(r.IntN(4)),
		}
		for _, a := range []*[16]byte{&w.Guest, &w.Remote} {
			for k := range a {
				a[k] = byte(r.Uint32())
			}
			if r.IntN(2) == 0 {
				*a = netip.AddrFrom4([4]byte(a[12:])).As16()
			}
		}
		if got := f.FlowRule(&w); !known[got] {
			t.Fatalf("%+v: %q", w, got)
		}
	}
	if _, sum := totals(f); sum != 0 {
		t.Errorf("%d hits by asking", sum)
	}
}

// TestFlowRuleAsDecided: the rule of a flow is the one by which it was decided,
// on whatever host and wherever it leads.
func TestFlowRuleAsDecided(t *testing.T) {
	r := rand.New(rand.NewPCG(5, 6))
	some, none := 0, 0
	for i := range hosts {
		c := hosts[i].config()
		c.Logger = slog.New(slog.DiscardHandler)
		f := New(*c)
		for range 2000 {
			proto, dst := aim(r)
			q := request{proto: proto, src: ap("192.0.2.2", 777), dst: dst}
			if dst.Addr().Is6() {
				q.src = ap("2001:db8::99", 777)
			}
			d := f.cfg().decide(&q)
			w := ipc.Flow{Proto: proto, State: ipc.FlowOpen, Guest: q.src.Addr().As16(), GuestPort: 777, Remote: dst.Addr().As16(), RemotePort: dst.Port()}
			if d.refused != 0 {
				w.State = ipc.FlowRefused
			}
			got := f.FlowRule(&w)
			if got != d.verdict.Rule {
				t.Fatalf("%s: %d to %v: %q, decided by %q", hosts[i].name, proto, dst, got, d.verdict.Rule)
			}
			if got == "" {
				none++
			} else {
				some++
			}
		}
	}
	if some < 500 || none < 500 {
		t.Errorf("%d by rules, %d by none: not all kinds were met", some, none)
	}
}
