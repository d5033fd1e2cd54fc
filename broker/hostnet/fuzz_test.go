// SPDX-License-Identifier: Apache-2.0

package hostnet

import (
	"bytes"
	"encoding/binary"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"aldente/broker/rtnl"
	"aldente/fuzz"
)

// pieces frames messages for FuzzTables: type, length, body.
func pieces(messages ...rtnl.Message) (b []byte) {
	for _, m := range messages {
		b = append(b, byte(m.Type), byte(len(m.Body)>>8), byte(len(m.Body)))
		b = append(b, m.Body...)
	}
	return b
}

// fuzzTables are the tables of a host.
func fuzzTables() [][]byte {
	address := func(af, bits, flags, scope byte, index uint32, local netip.Addr, more ...byte) rtnl.Message {
		b := binary.NativeEndian.AppendUint32([]byte{af, bits, flags, scope}, index)
		b = rtnl.AppendAttr(rtnl.AppendAttr(b, unix.IFA_ADDRESS, local.AsSlice()), unix.IFA_LOCAL, local.AsSlice())
		b = rtnl.AppendAttr(rtnl.AppendAttrUint32(b, unix.IFA_FLAGS, uint32(flags)), unix.IFA_LABEL, []byte("eth0\x00"))
		return rtnl.Message{Type: unix.RTM_NEWADDR, Body: append(b, more...)}
	}
	path := func(af, bits, proto, typ byte, attrs ...[]byte) rtnl.Message {
		b := []byte{af, bits, 0, 0, unix.RT_TABLE_MAIN, proto, 0, typ, 0, 0, 0, 0}
		return rtnl.Message{Type: unix.RTM_NEWROUTE, Body: append(b, slices.Concat(attrs...)...)}
	}
	elsewhere := func(m rtnl.Message, table, srcLen byte) rtnl.Message {
		m.Body[2], m.Body[4] = srcLen, table
		return m
	}
	attr := func(typ uint16, v []byte) []byte { return rtnl.AppendAttr(nil, typ, v) }
	index := func(n uint32) []byte { return rtnl.AppendAttrUint32(nil, unix.RTA_OIF, n) }
	a4, g4 := netip.MustParseAddr("10.1.0.5"), netip.MustParseAddr("10.1.0.1")
	a6, g6, l6 := netip.MustParseAddr("2001:db8::5"), netip.MustParseAddr("fe80::1"), netip.MustParseAddr("fe80::5")
	hop := func(n uint32, weight byte) []byte {
		b := binary.NativeEndian.AppendUint32([]byte{16, 0, 0, weight}, n)
		return append(b, attr(unix.RTA_GATEWAY, g4.AsSlice())...)
	}
	const in, in6 = unix.AF_INET, unix.AF_INET6
	object := func(af byte, id uint32, oif []byte, gateway netip.Addr) rtnl.Message {
		b := rtnl.AppendAttrUint32([]byte{af, 0, 0, 0, unix.RTNH_F_ONLINK, 0, 0, 0}, unix.NHA_ID, id)
		return rtnl.Message{Type: unix.RTM_NEWNEXTHOP, Body: slices.Concat(b, attr(unix.NHA_OIF, oif), attr(unix.NHA_GATEWAY, gateway.AsSlice()))}
	}
	return [][]byte{
		pieces(address(in, 24, unix.IFA_F_PERMANENT, 0, 2, a4), path(in, 0, unix.RTPROT_BOOT, unix.RTN_UNICAST, attr(unix.RTA_GATEWAY, g4.AsSlice()), index(2)),
			path(in, 24, unix.RTPROT_KERNEL, unix.RTN_UNICAST, attr(unix.RTA_DST, []byte{10, 1, 0, 0}), attr(unix.RTA_PREFSRC, a4.AsSlice()), index(2))),
		pieces(address(in6, 64, unix.IFA_F_PERMANENT, 0, 2, a6), address(in6, 64, unix.IFA_F_PERMANENT, unix.RT_SCOPE_LINK, 2, l6),
			path(in6, 0, unix.RTPROT_RA, unix.RTN_UNICAST, attr(unix.RTA_GATEWAY, g6.AsSlice()), index(2)),
			path(in6, 64, unix.RTPROT_KERNEL, unix.RTN_UNICAST, attr(unix.RTA_DST, netip.MustParseAddr("fe80::").AsSlice()), index(2))),
		pieces(address(in, 24, 0, 0, 2, a4), path(in, 0, unix.RTPROT_STATIC, unix.RTN_UNICAST, attr(unix.RTA_MULTIPATH, slices.Concat(hop(2, 0), hop(3, 9)))),
			path(in, 8, 0, unix.RTN_UNICAST, attr(unix.RTA_MULTIPATH, slices.Concat(hop(2, 0), hop(2, 9))), attr(unix.RTA_DST, []byte{10, 0, 0, 0}))),
		pieces(address(in, 32, unix.IFA_F_DEPRECATED, unix.RT_SCOPE_LINK, 2, a4), path(in, 16, 0, unix.RTN_BLACKHOLE, index(2)),
			path(in, 0, 0, unix.RTN_UNICAST, rtnl.AppendAttrUint32(nil, unix.RTA_TABLE, 77), index(2))),
		pieces(address(in, 24, unix.IFA_F_SECONDARY, 0, 2, a4), address(in6, 64, unix.IFA_F_TENTATIVE, 0, 2, a6), path(in, 0, 0, unix.RTN_UNICAST, index(2)),
			path(in6, 0, 0, unix.RTN_UNICAST, index(2))),
		pieces(address(in, 24, 0, 0, 2, a4), elsewhere(path(in, 0, 0, unix.RTN_UNICAST, index(2)), 77, 0), path(in, 8, 0, unix.RTN_UNICAST, rtnl.AppendAttrUint32(nil, unix.RTA_TABLE, 77), index(2)), address(in6, 64, 0, 0, 2, a6),
			elsewhere(path(in6, 0, 0, unix.RTN_UNICAST, attr(unix.RTA_SRC, a6.AsSlice()), index(2)), unix.RT_TABLE_MAIN, 64)),
		pieces(address(in, 24, 0, 0, 2, a4), path(in, 0, 0, unix.RTN_UNICAST, rtnl.AppendAttrUint32(nil, rtnl.RtaNhID, 3)),
			path(in, 8, 0, unix.RTN_UNICAST, rtnl.AppendAttrUint32(nil, rtnl.RtaNhID, 1), attr(unix.RTA_DST, []byte{10, 0, 0, 0})),
			object(in, 1, index(2)[4:], g4), object(in6, 2, index(2)[4:], g6), rtnl.Message{Type: unix.RTM_NEWNEXTHOP, Body: slices.Concat(make([]byte, 8),
				rtnl.AppendAttrUint32(nil, unix.NHA_ID, 3), attr(unix.NHA_GROUP, []byte{1, 0, 0, 0, 4, 0, 0, 0, 2, 0, 0, 0, 9, 1, 0, 0, 9}))}),
		pieces(rtnl.Message{Type: unix.RTM_NEWADDR, Body: []byte{10, 64}}, rtnl.Message{Type: unix.RTM_NEWROUTE, Body: []byte{2}}, rtnl.Message{Type: 99}),
	}
}

// FuzzTables feeds arbitrary tables through derivation and copying. What is
// copied is well formed, of the right family, bound to no interface and no
// address of the host, and copying it again changes nothing.
func FuzzTables(f *testing.F) {
	for _, b := range fuzzTables() {
		fuzz.Add(f, b)
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		if len(b) > 1<<15 {
			return
		}
		tab := tables{nexthops: map[uint32]rtnl.Nexthop{}}
		for s := (&fuzz.Source{B: b}); len(s.B) > 0; {
			m := rtnl.Message{Type: uint16(s.Byte())}
			m.Body = s.Take(int(s.Uint16()))
			original := bytes.Clone(m.Body)
			tab.addAddr(m)
			tab.addRoute(&tab.routes4, unix.AF_INET, unix.RT_TABLE_MAIN, m)
			tab.addRoute(&tab.routes6, unix.AF_INET6, unix.RT_TABLE_MAIN, m)
			tab.addRoute(&tab.routes4, unix.AF_INET, 77, m)
			tab.addNexthop(m)
			if !bytes.Equal(m.Body, original) {
				t.Fatal("the message was written to")
			}
		}
		for _, af := range []uint8{unix.AF_INET, unix.AF_INET6} {
			tab.replaceNexthops(*tab.routes(af))
			for _, index := range []int{0, 2} {
				checkFamily(t, &tab, af, index, way{})
			}
			checkFamily(t, &tab, af, 2, way{index: 2, table: 77})
		}
	})
}

func checkFamily(t *testing.T, tab *tables, af uint8, index int, w way) {
	t.Helper()
	fam := tab.derive(af, index, w)
	if af == unix.AF_INET && !fam.Address.IsValid() || fam.Local && len(fam.Addresses)+len(fam.Routes) != 0 {
		t.Fatalf("%+v", fam)
	}
	if v4 := af == unix.AF_INET; fam.Address.IsValid() && fam.Address.Addr().Is4() != v4 || fam.Gateway.IsValid() && fam.Gateway.Is4() != v4 {
		t.Fatalf("address %v, gateway %v for family %d", fam.Address, fam.Gateway, af)
	}
	for _, b := range append(fam.Routes, fam.Connected...) {
		r, ok := rtnl.RouteOf(b)
		if !ok {
			t.Fatalf("copied route %x", b)
		}
		attrs := r.Attrs()
		for _, typ := range []uint16{unix.RTA_PREFSRC, unix.RTA_OIF, unix.RTA_IIF, rtnl.RtaNhID, unix.RTA_CACHEINFO, unix.RTA_TABLE, unix.RTA_SRC, unix.RTA_ENCAP} {
			if attrs.Get(typ) != nil {
				t.Fatalf("attribute %d in copied route %x", typ, b)
			}
		}
		if r.Family() != af || !attrs.Whole() || r.Table() != unix.RT_TABLE_MAIN || r.SrcLen() != 0 || r.Type() != unix.RTN_UNICAST {
			t.Fatalf("copied route %x", b)
		}
		for h := range r.Hops().All() {
			if h.Index() != 0 {
				t.Fatalf("next hop by an interface of the host, %d, in %x", h.Index(), b)
			}
		}
	}
	for _, b := range fam.Addresses {
		a, ok := rtnl.AddrOf(b)
		if !ok {
			t.Fatalf("copied address %x", b)
		}
		flags, ok := a.Attrs().Uint32(unix.IFA_FLAGS)
		if a.Family() != af || a.Index() != 0 || !a.Attrs().Whole() || !ok || flags&unix.IFA_F_PERMANENT == 0 || flags&hostAddrFlags != 0 {
			t.Fatalf("copied address %x", b)
		}
		if again := copyAddr(&addr{Addr: a}); !bytes.Equal(again, b) {
			t.Fatalf("copied %x, copied again %x", b, again)
		}
		with, ok := rtnl.AddrOf(WithPrefixRoute(b))
		if !ok || len(with.Body()) != len(b) || with.Attrs().Get(unix.IFA_LABEL) != nil || with.Flags()&unix.IFA_F_NOPREFIXROUTE != 0 {
			t.Fatalf("%x with its prefix route is %x", b, with)
		}
	}
}

// FuzzResolvConf parses any text, given as it is or spelled with the words of
// the dictionary. What is found is what a file that says only that says, and
// does not depend on comments and foreign lines.
func FuzzResolvConf(f *testing.F) {
	words := fuzz.Words("cli")
	for _, s := range []string{
		"nameserver fe80::1%eth0\nsearch a. b\ndomain c\noptions edns0\n", "# x\nnameserver 192.0.2.1 # y\nnameserver ::ffff:192.0.2.2\n",
		"search a b c d e f g h\n", "search a #b\nsearch\nsearch \x01 ok\n", " nameserver 192.0.2.1\nnameserver\t2001:db8::1\r\nnameserver 1\n",
		strings.Repeat("nameserver 192.0.2.1\n", 5) + "domain " + strings.Repeat("a", 256), "",
	} {
		fuzz.Add(f, append([]byte{0}, s...))
		fuzz.Add(f, append([]byte{1}, fuzz.Unspell(s)...))
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		if len(b) == 0 || len(b) > MaxResolvConf {
			return
		}
		text := string(b[1:])
		if b[0]&1 != 0 {
			text = fuzz.Spell(b[1:], words)
		}
		r := ParseResolvers([]byte(text))
		if len(r.Servers4) > MaxServers || len(r.Servers6) > MaxServers || len(r.Search) > MaxSearch {
			t.Fatalf("too many: %+v", r)
		}
		var again strings.Builder
		for _, a := range slices.Concat(r.Servers4, r.Servers6) {
			if !a.IsValid() || a.Zone() != "" && (!a.IsLinkLocalUnicast() || !printable(a.Zone())) || a.Is4In6() {
				t.Fatalf("server %v", a)
			}
			again.WriteString("nameserver " + a.String() + "\n; nothing\noptions rotate\n")
		}
		for _, s := range r.Search {
			if s == "" || len(s) > maxName || strings.ContainsAny(s, " \t\r\n\x00\x7f") || strings.HasPrefix(s, "#") {
				t.Fatalf("name %q", s)
			}
		}
		again.WriteString("search " + strings.Join(r.Search, " ") + "\n")
		q := ParseResolvers([]byte(again.String()))
		if !slices.Equal(q.Servers4, r.Servers4) || !slices.Equal(q.Servers6, r.Servers6) || !sameNames(q.Search, r.Search) {
			t.Fatalf("%q: %+v\nwritten anew: %+v", text, r, q)
		}
	})
}

// sameNames compares lists, but for a final dot: a name may end in two, of which
// one is taken off each time.
func sameNames(a, b []string) bool {
	return slices.EqualFunc(a, b, func(a, b string) bool { return strings.TrimRight(a, ".") == strings.TrimRight(b, ".") })
}
