// SPDX-License-Identifier: Apache-2.0

package plan

import (
	"net/netip"
	"slices"
	"strings"
	"testing"

	"aldente/broker/hostnet"
	"aldente/ipc"
)

// elsewhere is homeNetwork after a VPN came up, which leaves the addresses.
func elsewhere() *hostnet.Network {
	n, a := homeNetwork(), netip.MustParseAddr
	n.V4 = hostnet.Family{Link: hostnet.Link{Index: 9, Name: "tun0"}, Address: netip.MustParsePrefix("10.8.0.5/24"), Gateway: a("10.8.0.1"), Default: true,
		Locals: []netip.Addr{a("10.8.0.5")}}
	n.Own = append(n.Own, a("10.8.0.5"))
	return n
}

func nowhere() *hostnet.Network {
	return &hostnet.Network{
		V4:  hostnet.Family{Local: true, Address: hostnet.LocalAddress4, Gateway: hostnet.LocalGateway4},
		V6:  hostnet.Family{Local: true, Gateway: hostnet.LocalGateway6},
		Own: []netip.Addr{netip.MustParseAddr("127.0.0.1"), netip.MustParseAddr("::1")},
	}
}

func again(t *testing.T, p *Plan, n *hostnet.Network, r hostnet.Resolvers) *Plan {
	t.Helper()
	q, err := p.Again(n, r)
	if err != nil {
		t.Fatal(err)
	}
	return q
}

// TestAgainSame: where nothing has changed, nobody is told anything.
func TestAgainSame(t *testing.T) {
	for _, command := range []string{"pasta", "pasta --config-net", "passt", "aldente --config-net", "aldente --config-net --allow a.example:443 --deny any",
		"slirp4netns 4711 tap0", "pasta --config-net --map-guest-addr 192.0.2.9 -a 10.0.0.2/24 -g 10.0.0.1"} {
		p := newPlan(t, command, home())
		q := again(t, p, homeNetwork(), home().Resolvers)
		if d := p.Difference(q); d.Any() || len(p.Lost(q)) > 0 {
			t.Errorf("%s: %+v, lost %v", command, d, p.Lost(q))
		}
	}
}

// TestAgain: what a guest is told after the host's network has changed, and whether it
// keeps what it had.
func TestAgain(t *testing.T) {
	p := newPlan(t, "pasta --config-net", home())
	q := again(t, p, elsewhere(), home().Resolvers)
	w := &q.Worker
	if said(w.Addr4) != "10.8.0.5" || said(w.Our4) != "10.8.0.1" || said(w.MapHostLoopback4) != "10.8.0.1" || said(w.Former4[0]) != "192.0.2.2" || w.Kept4 != 1 ||
		said(w.Addr6) != said(p.Worker.Addr6) || w.Former6 != [ipc.MaxFormer][16]byte{} || w.Kept6 != 0 {
		t.Errorf("%+v", w)
	}
	if f := &q.Factory; f.V4.MapHostLoopback.String() != "10.8.0.1" || f.V4.GuestAddr.String() != "10.8.0.5" || f.V4.Scope != 9 || f.V6 != p.Factory.V6 {
		t.Errorf("%+v", f)
	}
	if d := p.Difference(q); !d.Guest || !d.Worker || !d.Factory || !d.Link || d.Names || d.Asks {
		t.Errorf("%+v", d)
	}
	if q.Tap.Name != p.Tap.Name || q.Tap.MTU != p.Tap.MTU {
		t.Errorf("the interface is %+v, was %+v", q.Tap, p.Tap)
	}
	kept := []netip.Addr{netip.MustParseAddr("192.0.2.2"), netip.MustParseAddr("192.0.2.3")}
	if !slices.Equal(q.Tap.V4.Kept, kept) || len(q.Tap.V6.Kept) > 0 {
		t.Errorf("kept: %v, %v", q.Tap.V4.Kept, q.Tap.V6.Kept)
	}
	if q.Template() != "tun0 (IPv4), eth0 (IPv6)" || !q.Connected() {
		t.Errorf("template %q", q.Template())
	}
	if lines := strings.Join(p.Changes(q), "\n"); lines != "IPv4 is now 10.8.0.5/24 by tun0 via 10.8.0.1, was 192.0.2.2/24 by eth0 via 192.0.2.1" {
		t.Errorf("the log says %q", lines)
	}

	// Back home nothing is kept, since the VPN's address is gone; but it is remembered.
	r := again(t, q, homeNetwork(), home().Resolvers)
	if gone := q.Lost(r); len(gone) != 1 || gone[0].String() != "10.8.0.5" {
		t.Errorf("lost: %v", gone)
	}
	if len(r.Tap.V4.Kept) > 0 || said(r.Worker.Former4[0]) != "10.8.0.5" || r.Worker.Kept4 != 0 || said(r.Worker.Addr4) != "192.0.2.2" {
		t.Errorf("%v, %+v", r.Tap.V4.Kept, r.Worker)
	}
}

// TestAgainConnected: no network is a state, from which and to which there is a way.
func TestAgainConnected(t *testing.T) {
	h := home()
	h.Network = nowhere()
	p := newPlan(t, "pasta", h)
	if p.Connected() || p.Template() != "" || p.Worker.Flags&ipc.FlagNoRouter6 == 0 || p.Worker.Flags&ipc.FlagDHCPv6 != 0 {
		t.Errorf("%q, flags %#x", p.Template(), p.Worker.Flags)
	}
	q := again(t, p, homeNetwork(), h.Resolvers)
	if !q.Connected() || q.Template() != "eth0" || q.Worker.Flags&ipc.FlagNoRouter6 != 0 || q.Worker.Flags&ipc.FlagDHCPv6 == 0 || said(q.Worker.Addr6) != "2001:db8:1::2" {
		t.Errorf("%q, %+v", q.Template(), q.Worker)
	}
	r := again(t, q, nowhere(), h.Resolvers)
	if r.Connected() || said(r.Worker.Addr4) != "169.254.2.1" || r.Worker.Flags&ipc.FlagNoRouter6 == 0 {
		t.Errorf("%+v", r.Worker)
	}
	if gone := q.Lost(r); len(gone) != 4 { // and 172.17.0.1
		t.Errorf("lost: %v", gone)
	}
}

// TestAgainResolvers: who is told when resolv.conf changes.
func TestAgainResolvers(t *testing.T) {
	local := hostnet.ParseResolvers([]byte("nameserver 127.0.0.53\n"))
	local.Text = []byte("nameserver 127.0.0.53\noptions edns0\n")
	other := hostnet.ParseResolvers([]byte("nameserver 192.0.2.77\n"))
	other.Text = []byte("nameserver 192.0.2.77\n")
	for _, tt := range []struct {
		command    string
		was, is    hostnet.Resolvers
		difference Difference
		host, text string // where what is forwarded goes, and what the command has
	}{
		{"aldente --config-net", local, other, Difference{Factory: true, Resolv: true}, "192.0.2.77", "nameserver 169.254.1.1\n"},
		{"aldente --config-net", other, local, Difference{Guest: true, Worker: true, Factory: true, Resolv: true}, "127.0.0.53", "options edns0\nnameserver 169.254.1.1\n"},
		{"pasta --config-net -T none -U none --dns-forward 169.254.1.1", other, local, Difference{Factory: true, Resolv: true}, "127.0.0.53", "options edns0\nnameserver 169.254.1.1\n"},
		{"aldente --config-net --allow a.example --deny any", other, local, Difference{Factory: true, Names: true, Resolv: true, Asks: true}, "127.0.0.53", "options edns0\nnameserver 169.254.1.1\n"},
	} {
		h := home()
		h.Resolvers = tt.was
		p := newPlan(t, tt.command, h)
		q := again(t, p, homeNetwork(), tt.is)
		if d := p.Difference(q); d != tt.difference {
			t.Errorf("%s: %+v, want %+v", tt.command, d, tt.difference)
		}
		if got := q.Factory.V4.DNSHost.String(); got != tt.host || string(q.ResolvText()) != tt.text {
			t.Errorf("%s: to %s, %q", tt.command, got, q.ResolvText())
		}
	}
}

// TestAgainFixed: what options have fixed does not follow.
func TestAgainFixed(t *testing.T) {
	p := newPlan(t, "pasta --config-net -a 10.0.0.2/24 -g 10.0.0.1", home())
	q := again(t, p, elsewhere(), home().Resolvers)
	if said(q.Worker.Addr4) != "10.0.0.2" || said(q.Worker.Our4) != "10.0.0.1" || len(q.Tap.V4.Kept) > 0 || q.Worker.Former4 != [ipc.MaxFormer][16]byte{} {
		t.Errorf("%+v", q.Worker)
	}
}

// TestAgainRules: who answers the guest's questions goes on to do so, whatever rules have
// been loaded meanwhile, and does not begin to.
func TestAgainRules(t *testing.T) {
	for _, tt := range []struct{ was, is string }{
		{"aldente --config-net --rules f --allow a.example:443 --deny any", "aldente --config-net --rules f --deny any"},
		{"aldente --config-net --rules f --deny any", "aldente --config-net --rules f --deny 192.0.2.1"},
	} {
		p := newPlan(t, tt.was, home())
		if _, err := p.ChangeRules(parse(t, tt.is), nil); err != nil {
			t.Fatal(err)
		}
		q := again(t, p, elsewhere(), home().Resolvers)
		if (q.Names != nil) != (p.Names != nil) || len(q.Factory.Resolvers) != len(p.Factory.Resolvers) {
			t.Errorf("%s, then %s: answered %t, asked at %v; before %t, %v", tt.was, tt.is, q.Names != nil, q.Factory.Resolvers, p.Names != nil, p.Factory.Resolvers)
		}
		if d := p.Difference(q); d.Names || d.Asks {
			t.Errorf("%s, then %s: %+v", tt.was, tt.is, d)
		}
	}
}

// TestLeases: leases end where the network is followed, and only there.
func TestLeases(t *testing.T) {
	for command, want := range map[string][2]uint32{"passt": {lease, renew}, "pasta": {lease, renew}, "passt --no-follow": {}, "slirp4netns 4711 tap0": {}} {
		if w := newPlan(t, command, home()).Worker; [2]uint32{w.Lease, w.Renew} != want {
			t.Errorf("%s: %d, %d", command, w.Lease, w.Renew)
		}
	}
}
