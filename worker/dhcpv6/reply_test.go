// SPDX-License-Identifier: Apache-2.0

package dhcpv6

import (
	"fmt"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	dhcp "github.com/insomniacslk/dhcp/dhcpv6"
	"pgregory.net/rapid"

	"aldente/ipc"
	"aldente/worker/flow"
	"aldente/worker/packet"
)

// One option for each configuration, of the replies that carry it.
func TestConfiguration(t *testing.T) {
	const name = "05677565737404636f7270076578616d706c6500"
	for _, tc := range []struct {
		name   string
		code   dhcp.OptionCode
		change func(*flow.Guest)
		opts   []dhcp.Option
		want   string // hexadecimal, "-" for none
	}{
		{"resolvers", 23, nil, nil, "20010db800000000000000000000005320010db8000000000000000000000054"},
		{"no resolver", 23, func(g *flow.Guest) { g.NDNS6 = 0 }, nil, "-"},
		{"search list", 24, nil, nil, "076578616d706c6503636f6d000161076578616d706c6503636f6d00"},
		{"no search list", 24, func(g *flow.Guest) { g.NSearch = 0 }, nil, "-"},
		{"impossible domains", 24, func(g *flow.Guest) { setName(&g.Search[0], "a..b"); g.NSearch = 1 }, nil, "-"},
		{"FQDN, not asked for", 39, nil, nil, "-"},
		{"FQDN, asked for", 39, nil, []dhcp.Option{generic(6, 0, 23, 0, 39)}, "04" + name},
		{"FQDN, another option asked for", 39, nil, []dhcp.Option{generic(6, 0, 23)}, "-"},
		{"FQDN, sent", 39, nil, []dhcp.Option{generic(39, 0, 1, 'x', 0)}, "04" + name},
		{"FQDN, sent, S", 39, nil, []dhcp.Option{generic(39, 1)}, "06" + name},
		{"no FQDN", 39, func(g *flow.Guest) { g.FQDN.Len = 0 }, []dhcp.Option{generic(39, 1)}, "-"},
		{"impossible FQDN", 39, func(g *flow.Guest) { setName(&g.FQDN, ".") }, []dhcp.Option{generic(39, 1)}, "-"},
		{"server", 2, nil, nil, "000100011234567" + "89a559a559a55"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			g := guest()
			if tc.change != nil {
				tc.change(g)
			}
			for _, kind := range []dhcp.MessageType{dhcp.MessageTypeSolicit, dhcp.MessageTypeRebind, dhcp.MessageTypeInformationRequest} {
				m := read(t, exchange(t, g, query(t, kind, append(tc.opts, client())...).ToBytes()))
				got := "-"
				if o := m.GetOneOption(tc.code); o != nil {
					got = fmt.Sprintf("%x", o.ToBytes())
				}
				if got != tc.want {
					t.Errorf("%v: option %d is %s, want %s", kind, tc.code, got, tc.want)
				}
			}
		})
	}
}

// The oracle's own reading, and what replies about bindings leave out.
func TestOracle(t *testing.T) {
	m := read(t, exchange(t, guest(), query(t, dhcp.MessageTypeSolicit, client(), generic(39, 0)).ToBytes()))
	got := fmt.Sprint(m.Options.DNS(), m.Options.DomainSearchList().Labels, m.Options.FQDN().DomainName.Labels, m.Options.FQDN().Flags)
	if want := "[2001:db8::53 2001:db8::54] [example.com a.example.com] [guest.corp.example] 4"; got != want {
		t.Errorf("%s, want %s", got, want)
	}
	m = read(t, exchange(t, guest(), query(t, dhcp.MessageTypeRelease, client(), server(), na(1, guestIP)).ToBytes()))
	if m.GetOneOption(dhcp.OptionDNSRecursiveNameServer) != nil {
		t.Error("a released lease comes with resolvers")
	}
}

// Whatever is asked for, the reply stays within its packet: what does not fit
// is missing, and the domains are those from the start of the list.
func TestSize(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		g := guest()
		g.MTU = rapid.SampledFrom([]uint16{0, 68, 1280, 1400, 1500, 65520}).Draw(rt, "mtu")
		var want []string
		for i := range rapid.IntRange(0, ipc.MaxSearch).Draw(rt, "domains") {
			part := strings.Repeat(fmt.Sprint(i), rapid.IntRange(1, 63).Draw(rt, "label"))
			want = append(want, strings.Join([]string{part, part, part}, "."))
			setName(&g.Search[i], want[i])
		}
		g.NSearch = uint8(len(want))
		opts := []dhcp.Option{client()}
		for i := range rapid.IntRange(0, 60).Draw(rt, "associations") {
			addrs := make([]packet.Addr, rapid.IntRange(0, 8).Draw(rt, "addresses"))
			for j := range addrs {
				addrs[j] = packet.Addr{0: 0x20, 14: uint8(i), 15: uint8(j)}
			}
			opts = append(opts, na(uint8(i), addrs...))
		}
		b := exchange(t, g, query(t, dhcp.MessageTypeRebind, opts...).ToBytes())
		limit := min(max(g.LinkMTU(), 1280), 1500) + packet.EthernetLen
		if len(b) > limit {
			rt.Fatalf("frame of %d bytes", len(b))
		}
		m := read(t, b)
		var got []string
		if l := m.Options.DomainSearchList(); l != nil {
			got = l.Labels
		}
		for _, w := range want {
			if len(got) > 0 && got[0] == w {
				got = got[1:]
			} else if len(b)+4+len(w)+2 <= limit {
				rt.Fatalf("%q is missing from a frame of %d bytes", w, len(b))
			}
		}
		if len(got) > 0 {
			rt.Fatalf("%q of %q", got, want)
		}
		if len(opts) > 1 && (m.Options.OneIANA() == nil || m.Options.OneIANA().Options.OneAddress() == nil) {
			rt.Fatalf("no lease in %v", m.Summary())
		}
	})
}

// The identifier depends on the configuration alone.
func TestDUID(t *testing.T) {
	a, b := guest(), guest()
	b.Addr6 = otherIP
	if diff := cmp.Diff(serverDUID(a), serverDUID(b)); diff != "" {
		t.Error(diff)
	}
	b.DUIDTime++
	if serverDUID(a) == serverDUID(b) {
		t.Error("the time makes no difference")
	}
}
