// SPDX-License-Identifier: Apache-2.0

package dhcpv6

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	dhcp "github.com/insomniacslk/dhcp/dhcpv6"

	"aldente/ipc"
	"aldente/worker/flow"
	"aldente/worker/packet"
)

// summary is what a reply says on addresses, in a form easy to compare.
func summary(m *dhcp.Message) []string {
	list := []string{m.Type().String()}
	add := func(kind string, id [4]byte, rest string, inner dhcp.Options) {
		s := fmt.Sprintf("%s %d%s", kind, id[3], rest)
		for _, o := range inner {
			switch o := o.(type) {
			case *dhcp.OptIAAddress:
				s += fmt.Sprintf(" %v %d/%d", o.IPv6Addr, uint32(o.PreferredLifetime.Seconds()), uint32(o.ValidLifetime.Seconds()))
			case *dhcp.OptStatusCode:
				s += " " + o.StatusCode.String()
			default:
				s += " ?"
			}
		}
		list = append(list, s)
	}
	for _, o := range m.Options.Options {
		switch o := o.(type) {
		case *dhcp.OptIANA:
			add("NA", o.IaId, fmt.Sprintf(" %d/%d", uint32(o.T1.Seconds()), uint32(o.T2.Seconds())), o.Options.Options)
		case *dhcp.OptIATA:
			add("TA", o.IaId, "", o.Options.Options)
		case *dhcp.OptIAPD:
			add("PD", o.IaId, fmt.Sprintf(" %d/%d", uint32(o.T1.Seconds()), uint32(o.T2.Seconds())), o.Options.Options)
		case *dhcp.OptStatusCode:
			list = append(list, o.StatusCode.String())
		}
	}
	if m.GetOneOption(dhcp.OptionRapidCommit) != nil {
		list = append(list, "rapid")
	}
	if p := m.GetOneOption(dhcp.OptionPreference); p != nil {
		list = append(list, fmt.Sprintf("preference %d", p.ToBytes()[0]))
	}
	return list
}

const (
	forEver = "4294967295/4294967295"
	lease   = forEver + " 2001:db8:0:1::5 " + forEver
)

func TestExchanges(t *testing.T) {
	const (
		solicit = dhcp.MessageTypeSolicit
		request = dhcp.MessageTypeRequest
		renew   = dhcp.MessageTypeRenew
		rebind  = dhcp.MessageTypeRebind
		confirm = dhcp.MessageTypeConfirm
		release = dhcp.MessageTypeRelease
		decline = dhcp.MessageTypeDecline
	)
	rapid := generic(dhcp.OptionRapidCommit)
	noAddress := func(g *flow.Guest) { g.Addr6 = [16]byte{} }
	for _, tc := range []struct {
		name   string
		kind   dhcp.MessageType
		opts   []dhcp.Option
		change func(*flow.Guest)
		want   []string // nil: no answer
	}{
		{"solicit", solicit, []dhcp.Option{client(), na(1)}, nil, []string{"ADVERTISE", "NA 1 " + lease, "preference 255"}},
		{"solicit, another address wished for", solicit, []dhcp.Option{client(), na(1, otherIP)}, nil, []string{"ADVERTISE", "NA 1 " + lease, "preference 255"}},
		{"solicit, rapid commit", solicit, []dhcp.Option{client(), rapid, na(1)}, nil, []string{"REPLY", "NA 1 " + lease, "rapid"}},
		{"solicit, all kinds", solicit, []dhcp.Option{client(), pd(3), ta(2), na(1), na(4)}, nil,
			[]string{"ADVERTISE", "PD 3 0/0 NoPrefixAvail", "TA 2 NoAddrsAvail", "NA 1 " + lease, "NA 4 0/0 NoAddrsAvail", "preference 255"}},
		{"solicit for a prefix", solicit, []dhcp.Option{client(), pd(3)}, nil, []string{"ADVERTISE", "PD 3 0/0 NoPrefixAvail"}},
		{"solicit, rapid commit for a prefix", solicit, []dhcp.Option{client(), rapid, pd(3)}, nil, []string{"ADVERTISE", "PD 3 0/0 NoPrefixAvail"}},
		{"solicit, no address to give", solicit, []dhcp.Option{client(), rapid, na(1)}, noAddress, []string{"ADVERTISE", "NA 1 0/0 NoAddrsAvail"}},
		{"solicit without client", solicit, []dhcp.Option{na(1)}, nil, nil},
		{"solicit with server", solicit, []dhcp.Option{client(), server(), na(1)}, nil, nil},

		{"request", request, []dhcp.Option{client(), server(), na(1, guestIP)}, nil, []string{"REPLY", "NA 1 " + lease}},
		{"request without address", request, []dhcp.Option{client(), server(), na(1)}, nil, []string{"REPLY", "NA 1 " + lease}},
		{"request for another address", request, []dhcp.Option{client(), server(), na(1, onLinkIP)}, nil, []string{"REPLY", "NA 1 " + lease}},
		{"request for another link", request, []dhcp.Option{client(), server(), na(1, otherIP)}, nil, []string{"REPLY", "NA 1 0/0 NotOnLink"}},
		{"request for both", request, []dhcp.Option{client(), server(), na(1), na(2, guestIP), ta(3, otherIP)}, nil,
			[]string{"REPLY", "NA 1 0/0 NoAddrsAvail", "NA 2 " + lease, "TA 3 NotOnLink"}},
		{"request, rapid commit", request, []dhcp.Option{client(), server(), rapid, na(1)}, nil, []string{"REPLY", "NA 1 " + lease}},
		{"request, no address to give", request, []dhcp.Option{client(), server(), na(1, otherIP)}, noAddress, []string{"REPLY", "NA 1 0/0 NoAddrsAvail"}},
		{"request without server", request, []dhcp.Option{client(), na(1)}, nil, nil},
		{"request to another server", request, []dhcp.Option{client(), dhcp.OptServerID(otherID), na(1)}, nil, nil},
		{"request without client", request, []dhcp.Option{server(), na(1)}, nil, nil},

		{"renew", renew, []dhcp.Option{client(), server(), na(1, guestIP)}, nil, []string{"REPLY", "NA 1 " + lease}},
		{"renew of other addresses", renew, []dhcp.Option{client(), server(), na(1, otherIP, onLinkIP)}, nil,
			[]string{"REPLY", "NA 1 " + lease + " 2001:db8:0:2::5 0/0 2001:db8:0:1::77 0/0"}},
		{"renew of all kinds", renew, []dhcp.Option{client(), server(), na(1, guestIP), na(2), ta(3), pd(4)}, nil,
			[]string{"REPLY", "NA 1 " + lease, "NA 2 0/0 NoBinding", "TA 3 NoBinding", "PD 4 0/0 NoBinding"}},
		{"renew, no address to give", renew, []dhcp.Option{client(), server(), na(1, otherIP)}, noAddress, []string{"REPLY", "NA 1 0/0 NoBinding"}},
		{"renew without server", renew, []dhcp.Option{client(), na(1, guestIP)}, nil, nil},
		{"renew at another server", renew, []dhcp.Option{client(), dhcp.OptServerID(otherID), na(1, guestIP)}, nil, nil},

		{"rebind", rebind, []dhcp.Option{client(), na(1, guestIP)}, nil, []string{"REPLY", "NA 1 " + lease}},
		{"rebind of another address", rebind, []dhcp.Option{client(), na(1, otherIP)}, nil, []string{"REPLY", "NA 1 " + lease + " 2001:db8:0:2::5 0/0"}},
		{"rebind with server", rebind, []dhcp.Option{client(), server(), na(1, guestIP)}, nil, nil},

		{"confirm", confirm, []dhcp.Option{client(), na(1, guestIP)}, nil, []string{"REPLY", "Success"}},
		{"confirm of another address", confirm, []dhcp.Option{client(), na(1, onLinkIP), ta(2, onLinkIP)}, nil, []string{"REPLY", "Success"}},
		{"confirm of another link", confirm, []dhcp.Option{client(), na(1, otherIP)}, nil, []string{"REPLY", "NotOnLink"}},
		{"confirm, one of two", confirm, []dhcp.Option{client(), na(1, otherIP, guestIP)}, nil, []string{"REPLY", "NotOnLink"}},
		{"confirm, one of two associations", confirm, []dhcp.Option{client(), na(1, guestIP), ta(1, otherIP)}, nil, []string{"REPLY", "NotOnLink"}},
		{"confirm of nothing", confirm, []dhcp.Option{client(), na(1)}, nil, nil},
		{"confirm, no address to compare", confirm, []dhcp.Option{client(), na(1, guestIP)}, noAddress, nil},
		{"confirm with server", confirm, []dhcp.Option{client(), server(), na(1, guestIP)}, nil, nil},
		{"confirm without client", confirm, []dhcp.Option{na(1, guestIP)}, nil, nil},

		{"release", release, []dhcp.Option{client(), server(), na(1, guestIP)}, nil, []string{"REPLY", "Success"}},
		{"release of what it has not", release, []dhcp.Option{client(), server(), na(1, otherIP), ta(2), pd(3)}, nil,
			[]string{"REPLY", "Success", "NA 1 0/0 NoBinding", "TA 2 NoBinding", "PD 3 0/0 NoBinding"}},
		{"release without server", release, []dhcp.Option{client(), na(1, guestIP)}, nil, nil},
		{"decline", decline, []dhcp.Option{client(), server(), na(1, guestIP)}, nil, []string{"REPLY", "Success"}},
		{"decline at another server", decline, []dhcp.Option{client(), dhcp.OptServerID(otherID), na(1, guestIP)}, nil, nil},

		{"information request", dhcp.MessageTypeInformationRequest, []dhcp.Option{client()}, nil, []string{"REPLY"}},
		{"information request without client", dhcp.MessageTypeInformationRequest, nil, nil, []string{"REPLY"}},
		{"information request with server", dhcp.MessageTypeInformationRequest, []dhcp.Option{server()}, nil, []string{"REPLY"}},
		{"information request to another server", dhcp.MessageTypeInformationRequest, []dhcp.Option{dhcp.OptServerID(otherID)}, nil, nil},
		{"information request for an address", dhcp.MessageTypeInformationRequest, []dhcp.Option{client(), na(1)}, nil, nil},

		{"advertise", dhcp.MessageTypeAdvertise, []dhcp.Option{client(), server(), na(1)}, nil, nil},
		{"reply", dhcp.MessageTypeReply, []dhcp.Option{client(), server(), na(1)}, nil, nil},
		{"reconfigure", dhcp.MessageTypeReconfigure, []dhcp.Option{client(), server()}, nil, nil},
		{"type zero", 0, []dhcp.Option{client()}, nil, nil},
	} {
		t.Run(tc.name, func(t *testing.T) {
			g := guest()
			if tc.change != nil {
				tc.change(g)
			}
			q := query(t, tc.kind, tc.opts...)
			b := exchange(t, g, q.ToBytes())
			if tc.want == nil {
				if len(b) != 0 {
					t.Fatalf("answered: %v", summary(read(t, b)))
				}
				return
			}
			m := read(t, b)
			if diff := cmp.Diff(tc.want, summary(m)); diff != "" {
				t.Errorf("(-want +got):\n%s", diff)
			}
			if m.TransactionID != q.TransactionID {
				t.Errorf("transaction %v", m.TransactionID)
			}
			if id := q.Options.ClientID(); (id == nil) != (m.Options.ClientID() == nil) || id != nil && !id.Equal(m.Options.ClientID()) {
				t.Errorf("client %v", m.Options.ClientID())
			}
		})
	}
}

// Only clients on the link are served, and by multicast (RFC 8415 section 16);
// who renews by unicast is told so.
func TestDestination(t *testing.T) {
	good := query(t, dhcp.MessageTypeRenew, client(), server(), na(1, guestIP)).ToBytes()
	solicit := query(t, dhcp.MessageTypeSolicit, client(), na(1)).ToBytes()
	for _, tc := range []struct {
		name     string
		src, dst packet.Addr
		message  []byte
		want     []string
	}{
		{"renew", guestLL, servers, good, []string{"REPLY", "NA 1 " + lease}},
		{"renew by unicast", guestLL, ourLL, good, []string{"REPLY", "UseMulticast"}},
		{"renew by unicast to the global address", guestLL, addr("2001:db8:0:1::1"), good, []string{"REPLY", "UseMulticast"}},
		{"renew elsewhere", guestLL, addr("2001:db8::547"), good, nil},
		{"renew in another group", guestLL, addr("ff05::1:3"), good, nil},
		{"solicit by unicast", guestLL, ourLL, solicit, nil},
		{"from nowhere", packet.Addr{}, servers, good, nil},
		{"from a group", addr("ff02::1"), servers, good, nil},
		{"from loopback", addr("::1"), servers, good, nil},
	} {
		t.Run(tc.name, func(t *testing.T) {
			b := deliver(t, guest(), frame(tc.src, tc.dst, tc.message))
			if tc.want == nil {
				if len(b) != 0 {
					t.Errorf("answered: %x", b)
				}
				return
			}
			if diff := cmp.Diff(tc.want, summary(read(t, b))); diff != "" {
				t.Errorf("(-want +got):\n%s", diff)
			}
		})
	}
}

func TestOff(t *testing.T) {
	solicit := query(t, dhcp.MessageTypeSolicit, client(), na(1)).ToBytes()
	for name, change := range map[string]func(*flow.Guest){
		"no DHCPv6":             func(g *flow.Guest) { g.Flags &^= ipc.FlagDHCPv6 },
		"no IPv6":               func(g *flow.Guest) { g.Flags &^= ipc.FlagIPv6 },
		"no link-local address": func(g *flow.Guest) { g.OurLL6 = [16]byte{} },
	} {
		g := guest()
		change(g)
		if len(exchange(t, g, solicit)) != 0 {
			t.Errorf("%s: answered", name)
		}
	}
	var p packet.Packet
	var u packet.UDP
	if p.Decode(frame(guestLL, servers, solicit)) != nil || u.Decode(p.Payload()) != nil {
		t.Fatal("not decoded")
	}
	out := make([]byte, MaxFrame)
	if Handle(guest(), &p, &u, out[:MaxFrame-1]) != 0 {
		t.Error("wrote to a buffer that is too small")
	}
	if u.DstPort = 546; Handle(guest(), &p, &u, out) != 0 {
		t.Error("answered what came to port 546")
	}
}

// option is one option as bytes, for what the oracle would not write.
func option(code uint16, v ...byte) []byte {
	b := binary.BigEndian.AppendUint16(nil, code)
	return append(binary.BigEndian.AppendUint16(b, uint16(len(v))), v...)
}

// Each row breaks a good SOLICIT.
func TestMalformed(t *testing.T) {
	id := option(1, 0, 3, 0, 1, 1, 2, 3, 4, 5, 6)
	head := []byte{1, 'a', 'b', 'c'}
	join := func(parts ...[]byte) []byte { return bytes.Join(append([][]byte{head}, parts...), nil) }
	ia := make([]byte, 12)
	address := append(option(5), make([]byte, 24)...)
	address[3] = 24
	for _, tc := range []struct {
		name    string
		message []byte
	}{
		{"empty", nil},
		{"head alone", head},
		{"short head", head[:3]},
		{"option head cut", join(id, []byte{0, 14, 0})},
		{"option beyond the end", join(id, []byte{0, 14, 0, 1})},
		{"option of 65535 bytes", join(id, []byte{0, 14, 255, 255})},
		{"client of no bytes", join(option(1))},
		{"client of two bytes", join(option(1, 0, 1))},
		{"client of 131 bytes", join(option(1, make([]byte, 131)...))},
		{"two clients", join(id, id)},
		{"IA_NA too short", join(id, option(3, ia[:11]...))},
		{"IA_TA too short", join(id, option(4, ia[:3]...))},
		{"IA_PD too short", join(id, option(25, ia[:11]...))},
		{"IA_NA with half an option", join(id, option(3, append(ia, 0, 5, 0)...))},
		{"IA_NA with an option too long", join(id, option(3, append(ia, 0, 5, 0, 24, 1)...))},
		{"IA_NA with half an address", join(id, option(3, append(ia, option(5, make([]byte, 23)...)...)...))},
		{"IA_TA with half an address", join(id, option(4, append(ia[:4:4], option(5, make([]byte, 15)...)...)...))},
		{"odd option request", join(id, option(6, 0, 23, 0))},
		{"FQDN of no bytes", join(id, option(39))},
		{"relay-forward", append([]byte{12}, make([]byte, 33)...)},
	} {
		t.Run(tc.name, func(t *testing.T) {
			if b := exchange(t, guest(), tc.message); len(b) != 0 {
				t.Errorf("answered: %x", b)
			}
		})
	}
	for _, m := range [][]byte{
		join(id), join(id, option(3, ia...)), join(option(1, make([]byte, 130)...)), join(option(1, 0, 9, 1)),
		join(id, option(3, append(ia, address...)...)), join(id, option(999, 1, 2, 3)),
	} {
		if len(exchange(t, guest(), m)) == 0 {
			t.Errorf("no answer to %x", m)
		}
	}
}

func TestAllocs(t *testing.T) {
	g := guest()
	out := make([]byte, MaxFrame)
	renew := frame(guestLL, servers, query(t, dhcp.MessageTypeRenew, client(), server(), na(1, otherIP), pd(1), generic(39, 0)).ToBytes())
	confirm := frame(guestLL, servers, query(t, dhcp.MessageTypeConfirm, client(), na(1, otherIP)).ToBytes())
	var p packet.Packet
	var u packet.UDP
	n := testing.AllocsPerRun(100, func() {
		for _, f := range [...][]byte{renew, confirm} {
			if p.Decode(f) != nil || u.Decode(p.Payload()) != nil || Handle(g, &p, &u, out) == 0 {
				t.Fatal("no answer")
			}
		}
	})
	if n != 0 {
		t.Errorf("%v allocations", n)
	}
}

// TestLease: where the address may change, the lease ends, and is to be renewed long
// before. With the new address comes the end of the old: at once if the host has lost it.
func TestLease(t *testing.T) {
	g := guest()
	g.Lease, g.Renew = 3600, 60
	g.Former6 = [ipc.MaxFormer][16]byte{otherIP, onLinkIP}
	g.Kept6 = 1 << 1
	m := query(t, dhcp.MessageTypeRenew, client(), server(), na(1, otherIP, onLinkIP, addr("2001:db8:7::7")))
	got := summary(read(t, exchange(t, g, m.ToBytes())))
	want := []string{"REPLY", "NA 1 60/3150 2001:db8:0:1::5 3600/3600 2001:db8:0:2::5 0/0 2001:db8:0:1::77 0/3600 2001:db8:7::7 0/0"}
	if d := cmp.Diff(want, got); d != "" {
		t.Errorf("-want +got:\n%s", d)
	}

	// After the link was away: what the host has lost is wrong, also of the link's own prefix; what it has is
	// right, also of another one.
	g.Kept6 = 1 << 0
	for a, want := range map[packet.Addr]string{
		otherIP: "REPLY Success", onLinkIP: "REPLY NotOnLink", guestIP: "REPLY Success", addr("2001:db8:7::7"): "REPLY NotOnLink",
	} {
		m := query(t, dhcp.MessageTypeConfirm, client(), na(1, a))
		if got := summary(read(t, exchange(t, g, m.ToBytes()))); strings.Join(got, " ") != want {
			t.Errorf("confirming %x: %v, want %s", a, got, want)
		}
	}
}
