// SPDX-License-Identifier: Apache-2.0

package dhcp

import (
	"bytes"
	"fmt"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/insomniacslk/dhcp/dhcpv4"
	"github.com/insomniacslk/dhcp/rfc1035label"
	"pgregory.net/rapid"

	"aldente/ipc"
	"aldente/worker/flow"
)

// One option of the offer for each configuration, as the oracle has it.
func TestOptions(t *testing.T) {
	long := strings.Repeat("n", 200)
	for _, tc := range []struct {
		name   string
		code   uint8
		change func(*flow.Guest)
		mods   []dhcpv4.Modifier
		want   string // hexadecimal, "-" for none
	}{
		{"mask", 1, nil, nil, "ffffff00"},
		{"mask of /0", 1, func(g *flow.Guest) { g.Prefix4 = 0 }, nil, "00000000"},
		{"mask of /32", 1, func(g *flow.Guest) { g.Prefix4 = 32 }, nil, "ffffffff"},
		{"mask of /27", 1, func(g *flow.Guest) { g.Prefix4 = 27 }, nil, "ffffffe0"},
		{"router", 3, nil, nil, "c0000201"},
		{"resolvers", 6, nil, nil, "c0000235c0000236"},
		{"no resolver", 6, func(g *flow.Guest) { g.NDNS4 = 0 }, nil, "-"},
		{"host name", 12, nil, nil, fmt.Sprintf("%x", "guest")},
		{"long host name", 12, func(g *flow.Guest) { setName(&g.Hostname, long) }, nil, fmt.Sprintf("%x", long)},
		{"no host name", 12, func(g *flow.Guest) { g.Hostname.Len = 0 }, nil, "-"},
		{"domain, not asked for", 15, nil, nil, "-"},
		{"domain", 15, nil, []dhcpv4.Modifier{raw(55, 15)}, fmt.Sprintf("%x", "corp.example")},
		{"domain by search list", 15, func(g *flow.Guest) { g.FQDN.Len = 0 }, []dhcpv4.Modifier{raw(55, 15)}, fmt.Sprintf("%x", "example.com")},
		{"no domain", 15, func(g *flow.Guest) { g.FQDN.Len, g.NSearch = 0, 0 }, []dhcpv4.Modifier{raw(55, 15)}, "-"},
		{"MTU", 26, nil, nil, "fff0"},
		{"no MTU", 26, func(g *flow.Guest) { g.MTU = 0 }, nil, "-"},
		{"MTU below the least", 26, func(g *flow.Guest) { g.MTU = 67 }, nil, "-"},
		{"lease", 51, nil, nil, "ffffffff"},
		{"type", 53, nil, nil, "02"},
		{"server", 54, nil, nil, "c0000201"},
		{"FQDN", 81, nil, nil, "0cffff" + "05677565737404636f7270076578616d706c6500"},
		{"FQDN with a dot at its end", 81, func(g *flow.Guest) { setName(&g.FQDN, "a.b.") }, nil, "0cffff" + "0161016200"},
		{"FQDN, wire format, S", 81, nil, []dhcpv4.Modifier{raw(81, 5, 0, 0)}, "0effff" + "05677565737404636f7270076578616d706c6500"},
		{"FQDN, ASCII", 81, nil, []dhcpv4.Modifier{raw(81, 0, 0, 0, 'x')}, "08ffff" + fmt.Sprintf("%x", "guest.corp.example")},
		{"FQDN, option too short", 81, nil, []dhcpv4.Modifier{raw(81, 1)}, "0cffff" + "05677565737404636f7270076578616d706c6500"},
		{"no FQDN", 81, func(g *flow.Guest) { g.FQDN.Len = 0 }, []dhcpv4.Modifier{raw(81, 4, 0, 0)}, "-"},
		{"impossible FQDN", 81, func(g *flow.Guest) { setName(&g.FQDN, "a..b") }, nil, "-"},
		{"search list", 119, nil, nil, "076578616d706c6503636f6d00" + "0161c000"},
		{"no search list", 119, func(g *flow.Guest) { g.NSearch = 0 }, nil, "-"},
		{"impossible domains", 119, func(g *flow.Guest) { setSearch(g, "", "a..b", ".") }, nil, "-"},
		{"gateway on the subnet", 121, nil, []dhcpv4.Modifier{raw(55, 121)}, "-"},
		{"gateway off the subnet", 121, func(g *flow.Guest) { g.Prefix4 = 32 }, nil, "20c000020100000000" + "00c0000201"},
		{"router, off the subnet", 3, func(g *flow.Guest) { g.Prefix4 = 32 }, nil, "c0000201"},
		{"gateway on the subnet of all", 121, func(g *flow.Guest) { g.Prefix4 = 0 }, nil, "-"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			g := guest()
			if tc.change != nil {
				tc.change(g)
			}
			a := read(t, exchange(t, g, query(t, dhcpv4.MessageTypeDiscover, tc.mods...).ToBytes()))
			got := "-"
			if code := dhcpv4.GenericOptionCode(tc.code); a.Options.Has(code) {
				got = fmt.Sprintf("%x", a.Options.Get(code))
			}
			if got != tc.want {
				t.Errorf("option %d is %s, want %s", tc.code, got, tc.want)
			}
		})
	}
}

// The oracle's own reading of the options that have a structure.
func TestOracle(t *testing.T) {
	g := guest()
	g.Prefix4 = 32
	a := read(t, exchange(t, g, query(t, dhcpv4.MessageTypeDiscover).ToBytes()))
	got := map[string]string{
		"routes":    fmt.Sprint(a.ClasslessStaticRoute()),
		"router":    fmt.Sprint(a.Router()),
		"mask":      a.SubnetMask().String(),
		"dns":       fmt.Sprint(a.DNS()),
		"host name": a.HostName(),
		"search":    fmt.Sprint(a.DomainSearch().Labels),
		"next":      a.ServerIPAddr.String() + a.ServerHostName + a.BootFileName,
	}
	want := map[string]string{
		"routes":    "[route to 192.0.2.1/32 via 0.0.0.0 route to 0.0.0.0/0 via 192.0.2.1]",
		"router":    "[192.0.2.1]",
		"mask":      "ffffffff",
		"dns":       "[192.0.2.53 192.0.2.54]",
		"host name": "guest",
		"search":    "[example.com a.example.com]",
		"next":      "0.0.0.0",
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}

// The client's list gives the order, but a mask precedes a router.
func TestOrder(t *testing.T) {
	rest := []uint8{53, 54, 51, 1, 3, 6, 12, 26, 81, 119}
	for _, tc := range []struct {
		name   string
		wanted []byte
		want   []uint8
	}{
		{"no list", nil, rest},
		{"list", []byte{119, 6, 3, 1}, []uint8{53, 54, 51, 1, 119, 6, 3, 12, 26, 81}},
		{"repeated, and what we have not", []byte{12, 12, 42, 53, 255, 0, 54, 12, 26}, []uint8{53, 54, 51, 1, 12, 26, 3, 6, 81, 119}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			q := query(t, dhcpv4.MessageTypeDiscover)
			q.Options.Del(dhcpv4.OptionParameterRequestList)
			if tc.wanted != nil {
				q.UpdateOption(dhcpv4.OptGeneric(dhcpv4.OptionParameterRequestList, tc.wanted))
			}
			a := read(t, exchange(t, guest(), q.ToBytes()))
			if diff := cmp.Diff(tc.want, codes(a.payload)); diff != "" {
				t.Errorf("(-want +got):\n%s", diff)
			}
		})
	}
}

// BOOTP clients get 300 bytes and nothing of DHCP, RFC 1534.
func TestBOOTP(t *testing.T) {
	q := query(t, 0)
	q.Options = dhcpv4.Options{}
	a := read(t, exchange(t, guest(), q.ToBytes()))
	if diff := cmp.Diff([]uint8{1, 3, 6, 12, 26, 119}, codes(a.payload)); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
	if len(a.payload) != 300 || !a.YourIPAddr.Equal(guestIP) {
		t.Errorf("%d bytes, %v", len(a.payload), a.YourIPAddr)
	}

	// Without the cookie, the vendor area is left alone; it may be short.
	plain := q.ToBytes()
	copy(plain[236:], make([]byte, 4))
	for _, m := range [][]byte{plain, plain[:239], plain[:236]} {
		b := exchange(t, guest(), m)
		if len(b) != 342 || !bytes.Equal(b[42+236:], make([]byte, 64)) || !bytes.Equal(b[42+16:42+20], guestIP) {
			t.Errorf("%d bytes: %x", len(m), b)
		}
	}
}

// The message is never longer than the client and the link take, and what
// does not fit is missing from the end of the client's list.
func TestSize(t *testing.T) {
	g := guest()
	var names []string
	for i := range ipc.MaxSearch {
		names = append(names, fmt.Sprintf("%s.d%d", strings.Repeat("x", 58+i), i))
	}
	setSearch(g, names...)
	setName(&g.Hostname, strings.Repeat("h", 250))
	for _, tc := range []struct {
		name        string
		size        []dhcpv4.Modifier
		mtu         uint16
		limit       int // of the IP packet
		host, names int
	}{
		{"default", nil, 65520, 576, 0, 4},
		{"below the least", []dhcpv4.Modifier{raw(57, 1, 0)}, 65520, 576, 0, 4},
		{"just so", []dhcpv4.Modifier{raw(57, 2, 0x41)}, 65520, 577, 0, 4},
		{"long", []dhcpv4.Modifier{raw(57, 5, 0xdc)}, 65520, 1500, 250, 6},
		{"longer than a frame", []dhcpv4.Modifier{raw(57, 255, 255)}, 0, 1500, 250, 6},
		{"longer than the link's", []dhcpv4.Modifier{raw(57, 255, 255)}, 700, 700, 0, 6},
		{"small link", nil, 400, 400, 0, 1},
		{"tiny link", nil, 68, 328, 0, 0},
	} {
		t.Run(tc.name, func(t *testing.T) {
			g.MTU = tc.mtu
			mods := append([]dhcpv4.Modifier{raw(55, 119, 12)}, tc.size...)
			a := read(t, exchange(t, g, query(t, dhcpv4.MessageTypeDiscover, mods...).ToBytes()))
			if int(a.ip.Length) > tc.limit || a.MessageType() != dhcpv4.MessageTypeOffer {
				t.Errorf("packet of %d bytes: %v", a.ip.Length, a.Summary())
			}
			count := 0
			if a.Options.Has(dhcpv4.OptionDNSDomainSearchList) {
				count = len(a.DomainSearch().Labels)
			}
			if len(a.HostName()) != tc.host || count != tc.names {
				t.Errorf("host name of %d bytes, %d domains", len(a.HostName()), count)
			}
		})
	}
}

// An option is there exactly if it fits, to the byte.
func TestExactFit(t *testing.T) {
	g := guest()
	g.NSearch, g.FQDN.Len = 0, 0
	q := query(t, dhcpv4.MessageTypeDiscover, raw(55, 6, 3, 26, 12), raw(61, make([]byte, 20)...)).ToBytes()
	g.Hostname.Len = 0
	used := 1 // the end
	for _, code := range codes(read(t, exchange(t, g, q)).payload) {
		used += 2 + map[uint8]int{61: 20, 53: 1, 54: 4, 51: 4, 1: 4, 3: 4, 6: 8, 26: 2}[code]
	}
	filled := false
	for n := 200; n <= ipc.MaxDomain; n++ {
		setName(&g.Hostname, strings.Repeat("h", n))
		a := read(t, exchange(t, g, q))
		if want := 28+240+used+2+n <= 576; (a.HostName() != "") != want {
			t.Errorf("%d bytes: host name %q", n, a.HostName())
		}
		filled = filled || a.ip.Length == 576
	}
	if !filled {
		t.Error("no message was filled")
	}
}

// For any search list and room: the oracle reads the domains from its start
// that fit, in order, and names that share an end share its bytes.
func TestSearchList(t *testing.T) {
	label := rapid.StringMatching(`[ab]{1,3}|[a-z]{40,63}`)
	name := rapid.Custom(func(t *rapid.T) string {
		return strings.Join(rapid.SliceOfN(label, 1, 5).Draw(t, "labels"), ".")
	}).Filter(func(s string) bool { return len(s) <= 253 })
	rapid.Check(t, func(rt *rapid.T) {
		g := guest()
		g.Hostname.Len, g.FQDN.Len = 0, 0
		want := rapid.SliceOfN(name, 0, ipc.MaxSearch).Draw(rt, "search")
		setSearch(g, want...)
		size := rapid.IntRange(576, 1500).Draw(rt, "size")
		a := read(t, exchange(t, g, query(t, dhcpv4.MessageTypeDiscover, raw(57, uint8(size>>8), uint8(size))).ToBytes()))
		v := a.Options.Get(dhcpv4.OptionDNSDomainSearchList)
		var got []string
		if len(v) > 0 {
			l, err := rfc1035label.FromBytes(v)
			if err != nil {
				rt.Fatalf("%x: %v", v, err)
			}
			got = l.Labels
		}
		if len(got) > len(want) || !cmp.Equal(got, want[:len(got)]) && len(got) > 0 {
			rt.Fatalf("%q of %q", got, want)
		}
		plain := 0
		for _, s := range want[:len(got)] {
			plain += len(s) + 2
		}
		if len(v) > plain {
			rt.Fatalf("%d bytes where %d do without compression", len(v), plain)
		}
		if len(got) < len(want) && int(a.ip.Length)+len(want[len(got)])+2+4 < size {
			rt.Fatalf("%q of %q, in a packet of %d bytes where %d may be", got, want, a.ip.Length, size)
		}
	})
}

func TestPutName(t *testing.T) {
	for _, tc := range []struct {
		before []string
		name   string
		room   int
		want   string // hexadecimal
	}{
		{nil, "abc.de", 8, "0361626302646500"},
		{nil, "abc.de.", 8, "0361626302646500"},
		{nil, "abc.de", 7, ""},
		{nil, "a..b", 99, ""},
		{nil, ".a", 99, ""},
		{nil, "a..", 99, ""},
		{nil, ".", 99, ""},
		{nil, strings.Repeat("a", 64), 99, ""},
		{nil, strings.Repeat("a.", 126) + "ab", 999, ""},
		{[]string{"abc.de"}, "abc.de", 99, "c000"},
		{[]string{"abc.de"}, "de", 99, "c004"},
		{[]string{"abc.de"}, "x.de", 99, "0178c004"},
		{[]string{"abc.de", "x.de"}, "y.x.de", 99, "01790178c004"},
		{[]string{"abc.de", "x.de"}, "c.de", 99, "0163c004"},
		{[]string{"abc.de", "x.de"}, "abc", 99, "0361626300"},
		{[]string{"abc.de", "x.de", "q.r"}, "q.r", 99, "c00c"},
		{[]string{"b", "b.b"}, "b.b", 99, "0162c000"}, // no pointer to a pointer
		{[]string{"abc.de"}, "x.de", 11, ""},
		{[]string{"abc.de"}, "x.de", 12, "0178c004"},
		{[]string{"abc.de"}, "a..de", 99, ""},
	} {
		b := make([]byte, tc.room)
		n := 0
		for _, s := range tc.before {
			n = putName(b, n, []byte(s), true)
		}
		if got := fmt.Sprintf("%x", b[n:putName(b, n, []byte(tc.name), true)]); got != tc.want {
			t.Errorf("%q after %q: %s, want %s", tc.name, tc.before, got, tc.want)
		}
	}
}
