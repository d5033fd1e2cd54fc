// SPDX-License-Identifier: Apache-2.0

package ndp

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/gopacket/gopacket/layers"
	"github.com/insomniacslk/dhcp/rfc1035label"
	"pgregory.net/rapid"

	"aldente/ipc"
	"aldente/worker/flow"
	"aldente/worker/packet"
)

// advert is a router advertisement as the oracle reads it.
type advert struct {
	HopLimit, Flags uint8
	Lifetime        uint16
	Options         []string // type and value
}

func readAdvert(t *testing.T, frame []byte) advert {
	t.Helper()
	_, _, p := parse(t, frame)
	ra, ok := p.Layer(layers.LayerTypeICMPv6RouterAdvertisement).(*layers.ICMPv6RouterAdvertisement)
	if !ok {
		t.Fatalf("no advertisement in %x", frame)
	}
	a := advert{HopLimit: ra.HopLimit, Flags: ra.Flags, Lifetime: ra.RouterLifetime}
	for _, o := range ra.Options {
		a.Options = append(a.Options, fmt.Sprintf("%d %x", o.Type, o.Data))
	}
	return a
}

const (
	prefixOption = "3 40c0ffffffffffffffff0000000020010db8000000010000000000000000"
	macOption    = "1 9a559a559a55"
	mtuOption    = "5 00000000fff0"
	dnsOption    = "25 0000ffffffff20010db800000000000000000000005320010db8000000000000000000000054"
	searchOption = "31 0000ffffffff076578616d706c6503636f6d00000000"
)

func TestAdvertisement(t *testing.T) {
	whole := []string{prefixOption, macOption, mtuOption, dnsOption, searchOption}
	for _, tc := range []struct {
		name   string
		change func(*flow.Guest)
		want   advert
	}{
		{"whole", func(*flow.Guest) {}, advert{255, 0x80, 65535, whole}},
		{"no DHCPv6", func(g *flow.Guest) { g.Flags &^= ipc.FlagDHCPv6 }, advert{255, 0, 65535, whole}},
		{"no address", func(g *flow.Guest) { g.Addr6 = [16]byte{} }, advert{255, 0x40, 65535, whole[1:]}},
		{"link-local address", func(g *flow.Guest) { g.Addr6 = addr("fe80::9") }, advert{255, 0x40, 65535, whole[1:]}},
		{"prefix of 128 on the host", func(g *flow.Guest) { g.Prefix6 = 128 }, advert{255, 0x80, 65535, whole}},
		{"no MTU", func(g *flow.Guest) { g.MTU = 0 }, advert{255, 0x80, 65535, []string{prefixOption, macOption, dnsOption, searchOption}}},
		{"MTU below IPv6's", func(g *flow.Guest) { g.MTU = 1279 }, advert{255, 0x80, 65535, []string{prefixOption, macOption, dnsOption, searchOption}}},
		{"no resolver", func(g *flow.Guest) { g.NDNS6 = 0 }, advert{255, 0x80, 65535, []string{prefixOption, macOption, mtuOption, searchOption}}},
		{"no search list", func(g *flow.Guest) { g.NSearch = 0 }, advert{255, 0x80, 65535, whole[:4]}},
		{"impossible domains only", func(g *flow.Guest) { setName(&g.Search[0], "a..b") }, advert{255, 0x80, 65535, whole[:4]}},
		{"no way out", func(g *flow.Guest) { g.Flags |= ipc.FlagNoRouter6 }, advert{255, 0x80, 0, whole}},
		{"an address before, and one that the host has still", func(g *flow.Guest) {
			g.Former6 = [ipc.MaxFormer][16]byte{addr("2001:db8:9::2"), addr("2001:db8:8::2"), addr("2001:db8:9::3"), addr("2001:db8:0:1::7")}
			g.Kept6 = 1 << 1
		}, advert{255, 0x80, 65535, slices.Concat(whole[:1], []string{
			"3 40c0000000000000000000000000" + "20010db8000900000000000000000000",
			"3 40c0ffffffff0000000000000000" + "20010db8000800000000000000000000"}, whole[1:])}},
		{"resolvers and domains of before", func(g *flow.Guest) {
			g.Withdrawn.DNS6[0], g.Withdrawn.DNS6[1], g.Withdrawn.NDNS6 = addr("2001:db8:9::2"), addr("2001:db8:8::2"), 2
			setName(&g.Withdrawn.Search[0], "abc.de")
			g.Withdrawn.NSearch = 1
		}, advert{255, 0x80, 65535, slices.Concat(whole[:4:4], []string{
			"25 000000000000" + "20010db8000900000000000000000002" + "20010db8000800000000000000000002"}, whole[4:], []string{"31 0000000000000361626302646500"})}},
		{"search list of whole units", func(g *flow.Guest) { setName(&g.Search[0], "abc.de") },
			advert{255, 0x80, 65535, append(whole[:4:4], "31 0000ffffffff0361626302646500")}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			g := guest()
			tc.change(g)
			out := bytes.Repeat([]byte{0xee}, MaxFrame)
			unsolicited := bytes.Clone(out[:Advertise(g, out)])
			if diff := cmp.Diff(tc.want, readAdvert(t, unsolicited)); diff != "" {
				t.Errorf("unsolicited (-want +got):\n%s", diff)
			}
			if diff := cmp.Diff(tc.want, readAdvert(t, handle(t, g, routerSolicit(t, guestLL, 255)))); diff != "" {
				t.Errorf("solicited (-want +got):\n%s", diff)
			}
		})
	}
}

func TestRouterDestination(t *testing.T) {
	out := make([]byte, MaxFrame)
	for _, tc := range []struct {
		name, ip, mac string
		frame         []byte
	}{
		{"unsolicited", "ff02::1", "33:33:00:00:00:01", out[:Advertise(guest(), out)]},
		{"to the guest", "fe80::5054:ff:fe12:3456", "52:54:00:12:34:56", handle(t, guest(), routerSolicit(t, guestLL, 255, slla()))},
		{"to a global address", "2001:db8:0:1::5", "52:54:00:12:34:56", handle(t, guest(), routerSolicit(t, guestIP, 255))},
		{"without address", "ff02::1", "33:33:00:00:00:01", handle(t, guest(), routerSolicit(t, packet.Addr{}, 255))},
	} {
		eth, ip, _ := parse(t, tc.frame)
		if ip.DstIP.String() != tc.ip || eth.DstMAC.String() != tc.mac || ip.SrcIP.String() != "fe80::1" {
			t.Errorf("%s: from %v to %v %v", tc.name, ip.SrcIP, ip.DstIP, eth.DstMAC)
		}
	}
	if n := Advertise(withoutLL(), out); n != 0 {
		t.Errorf("advertised %d bytes without a link-local address", n)
	}
	if len(handle(t, withoutLL(), routerSolicit(t, guestLL, 255))) != 0 {
		t.Error("advertised without a link-local address, solicited")
	}
	if Advertise(guest(), out[:MaxFrame-1]) != 0 {
		t.Error("wrote to a buffer that is too small")
	}
}

// options walks the options of an advertisement strictly: each has a length,
// and they fill the message exactly.
func searchOf(t interface{ Fatalf(string, ...any) }, frame []byte) []byte {
	var search []byte
	for b := frame[54+16:]; len(b) > 0; {
		if len(b) < 2 || b[1] == 0 || int(b[1])*8 > len(b) {
			t.Fatalf("option %x", b)
		}
		if b[0] == 31 {
			if lifetime := binary.BigEndian.Uint32(b[4:]); lifetime != 0xffffffff {
				t.Fatalf("lifetime %#x", lifetime)
			}
			search = b[8 : int(b[1])*8]
		}
		b = b[int(b[1])*8:]
	}
	return search
}

// For any search list: the option is well-formed, holds the domains from the
// start of the list that fit, in order, and the frame fits its link.
func TestSearchList(t *testing.T) {
	label := rapid.StringMatching(`[a-z0-9-]{1,63}`)
	name := rapid.Custom(func(t *rapid.T) string {
		n := strings.Join(rapid.SliceOfN(label, 1, 8).Draw(t, "labels"), ".")
		return n[:min(len(n), 253)]
	}).Filter(func(s string) bool { return !strings.HasSuffix(s, ".") })
	rapid.Check(t, func(t *rapid.T) {
		g := guest()
		g.MTU = rapid.SampledFrom([]uint16{0, 576, 1280, 1400, 1500, 65520}).Draw(t, "mtu")
		want := rapid.SliceOfN(name, 0, ipc.MaxSearch).Draw(t, "search")
		g.NSearch = uint8(len(want))
		for i, s := range want {
			if rapid.Bool().Draw(t, "dot") {
				s += "."
			}
			setName(&g.Search[i], s)
		}
		out := bytes.Repeat([]byte{0xee}, MaxFrame)
		n := Advertise(g, out)
		limit := min(max(g.LinkMTU(), 1280), 1500) + 14
		if n > limit {
			t.Fatalf("frame of %d bytes", n)
		}
		search := searchOf(t, out[:n])
		trimmed := bytes.TrimRight(search, "\x00")
		if len(search)-len(trimmed) > 8 {
			t.Fatalf("padded too far: %x", search)
		}
		var got []string
		if len(trimmed) > 0 {
			l, err := rfc1035label.FromBytes(append(trimmed, 0))
			if err != nil {
				t.Fatalf("%x: %v", trimmed, err)
			}
			got = l.Labels
		}
		if !subsequence(got, want) {
			t.Fatalf("%q of %q", got, want)
		}
		total := 0
		for _, s := range want {
			total += len(s) + 2
		}
		if n-len(search)+total+8 < 1280 && len(got) != len(want) {
			t.Fatalf("%q of %q, in %d bytes", got, want, n)
		}
	})
}

func subsequence(got, want []string) bool {
	for _, w := range want {
		if len(got) > 0 && got[0] == w {
			got = got[1:]
		}
	}
	return len(got) == 0
}

func TestNext(t *testing.T) {
	const low, high = 200e9, 600e9
	rapid.Check(t, func(t *rapid.T) {
		if n := Next(guest(), rapid.Uint64().Draw(t, "rand")); n < low || n > high {
			t.Fatalf("%d ns", n)
		}
	})
	if Next(guest(), 0) != low || Next(guest(), high-low) != high {
		t.Error("the ends of the range are not reached")
	}
	g := guest()
	g.Flags &^= ipc.FlagRA
	if Next(g, 1) != 0 || Next(withoutLL(), 1) != 0 {
		t.Error("an interval without advertisements")
	}
}
