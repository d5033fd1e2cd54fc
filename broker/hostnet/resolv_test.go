// SPDX-License-Identifier: Apache-2.0

package hostnet

import (
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"
)

var compareAddr = cmp.Comparer(func(a, b netip.Addr) bool { return a == b })

func addrs(s ...string) []netip.Addr {
	var all []netip.Addr
	for _, a := range s {
		all = append(all, netip.MustParseAddr(a))
	}
	return all
}

func TestParseResolvers(t *testing.T) {
	for _, c := range []struct {
		name, text string
		want       Resolvers
	}{
		{"empty", "", Resolvers{}},
		{"zones that are none", "nameserver fe80::1%a\x01\nnameserver fe80::2%" + strings.Repeat("x", 128) + "\nnameserver fe80::3%" + strings.Repeat("x", 127) + "\n",
			Resolvers{Servers6: addrs("fe80::3%" + strings.Repeat("x", 127)), IPv6First: true}},
		{"both families, zones of links", "nameserver 192.0.2.53\nnameserver fd00::53%eth0\nnameserver fe80::1%eth0\n",
			Resolvers{Servers4: addrs("192.0.2.53"), Servers6: addrs("fd00::53", "fe80::1%eth0")}},
		{"IPv6 first", "nameserver ::1\nnameserver 192.0.2.53\n",
			Resolvers{Servers4: addrs("192.0.2.53"), Servers6: addrs("::1"), IPv6First: true}},
		{"this host", "nameserver 0.0.0.0\nnameserver ::\nnameserver 127.0.0.53\n",
			Resolvers{Servers4: addrs("127.0.0.1", "127.0.0.53"), Servers6: addrs("::1")}},
		{"groups are no servers", "nameserver 224.0.0.251\nnameserver 255.255.255.255\nnameserver ff02::fb\nnameserver 192.0.2.53\n",
			Resolvers{Servers4: addrs("192.0.2.53")}},
		{"options and lines of others", "; written by hand\n# and commented\noptions edns0 trust-ad\nsortlist 130.155.160.0\nlookup file bind\nnameserver 192.0.2.53\n\n",
			Resolvers{Servers4: addrs("192.0.2.53")}},
		{"ports and other garbage", "nameserver 192.0.2.53#53\nnameserver 192.0.2.53:53\nnameserver [::1]\nnameserver fe80::1%\nnameserver 192.0.2.053\n" +
			"nameserver \x00\xff\n\xef\xbb\xbfnameserver 1.1.1.1\nnameserver -\nnameserver 300.1.1.1\n", Resolvers{}},
		{"carriage returns alone", "nameserver 1.1.1.1\rnameserver 2.2.2.2\r", Resolvers{Servers4: addrs("1.1.1.1")}},
		{"three of a family", "nameserver 1.1.1.1\nnameserver 2.2.2.2\nnameserver ::1\nnameserver 3.3.3.3\nnameserver 4.4.4.4",
			Resolvers{Servers4: addrs("1.1.1.1", "2.2.2.2", "3.3.3.3"), Servers6: addrs("::1")}},
		{"mapped address is IPv4", "nameserver ::ffff:1.2.3.4\n", Resolvers{Servers4: addrs("1.2.3.4")}},
		{"tabs, comment behind, carriage return", "nameserver\t1.1.1.1 # first\nnameserver 2.2.2.2\r\n",
			Resolvers{Servers4: addrs("1.1.1.1", "2.2.2.2")}},
		{"keyword starts the line", " nameserver 1.1.1.1\n#nameserver 2.2.2.2\n;nameserver 3.3.3.3\nnameservers 4.4.4.4\n", Resolvers{}},
		{"not an address", "nameserver dns.example\nnameserver 1.2.3\nnameserver\n", Resolvers{}},
		{"six names", "search a b c d e f g\n", Resolvers{Search: []string{"a", "b", "c", "d", "e", "f"}}},
		{"last counts", "search a b\ndomain c.example.\n", Resolvers{Search: []string{"c.example"}}},
		{"domain has one", "domain a b\n", Resolvers{Search: []string{"a"}}},
		{"empty labels", "search .. a..b .c d.. e.\n", Resolvers{Search: []string{"e"}}},
		{"root and junk", "search . a\x01b " + strings.Repeat("x", 256) + " ok\n", Resolvers{Search: []string{"ok"}}},
	} {
		if d := cmp.Diff(c.want, ParseResolvers([]byte(c.text)), compareAddr); d != "" {
			t.Errorf("%s: (-want +got)\n%s", c.name, d)
		}
	}
}

func TestReadResolvers(t *testing.T) {
	dir := t.TempDir()
	at := func(name string) string { return filepath.Join(dir, name) }
	const filler = "# filler\n" // MaxResolvConf is not a multiple of its length
	for name, text := range map[string]string{
		"empty": "",
		"short": "nameserver 1.1.1.1",
		"long":  "nameserver 1.1.1.1\n" + strings.Repeat(filler, MaxResolvConf/9) + "nameserver 2.2.2.2\n",
		// The limit is after "192.0.2.5", which would be another server.
		"cut":      strings.Repeat("#", MaxResolvConf-21) + "\nnameserver 192.0.2.53\n",
		"one line": strings.Repeat("x", 2*MaxResolvConf),
	} {
		if err := os.WriteFile(at(name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	for _, err := range []error{os.Symlink("short", at("link")), os.Symlink("nowhere", at("dangling")),
		os.Symlink("loop", at("loop")), unix.Mkfifo(at("pipe"), 0o600)} {
		if err != nil {
			t.Fatal(err)
		}
	}
	for _, tt := range []struct {
		path    string
		want    []netip.Addr
		noText  bool
		refused bool
	}{
		{path: at("none"), noText: true},
		{path: at("dangling"), noText: true},
		{path: at("none/none"), noText: true},
		{path: at("short/none"), noText: true, refused: true},
		{path: at("loop"), noText: true, refused: true},
		{path: dir, noText: true, refused: true},
		{path: at("pipe"), noText: true, refused: true},
		{path: os.DevNull},
		{path: at("empty")},
		{path: at("short"), want: addrs("1.1.1.1")},
		{path: at("link"), want: addrs("1.1.1.1")},
		{path: at("long"), want: addrs("1.1.1.1")},
		{path: at("cut")},
		{path: at("one line")},
	} {
		r, err := ReadResolvers(tt.path)
		if (err != nil) != tt.refused || (r.Text == nil) != tt.noText {
			t.Errorf("%s: error %v, %d bytes", tt.path, err, len(r.Text))
		}
		if d := cmp.Diff(tt.want, r.Servers4, compareAddr); d != "" {
			t.Errorf("%s: (-want +got)\n%s", tt.path, d)
		}
	}
}

// TestNumberZones: interfaces by name and by number; those that there are not, and what is
// asked by them.
func TestNumberZones(t *testing.T) {
	index := func(name string) (int, error) {
		if n := map[string]int{"lan1": 7, "12": 9}[name]; n != 0 {
			return n, nil
		}
		return 0, unix.ENODEV
	}
	r := Resolvers{Servers6: addrs("fe80::1%lan1", "fe80::2%gone", "fe80::3%5", "fe80::4", "2001:db8::1", "fe80::5%0", "fe80::6%-3", "fe80::7%4294967296", "fe80::8%12")}
	r.NumberZones(index)
	if d := cmp.Diff(addrs("fe80::1%7", "fe80::3%5", "fe80::4", "2001:db8::1", "fe80::8%9"), r.Servers6, compareAddr); d != "" {
		t.Errorf("-want +got\n%s", d)
	}
	for i, want := range []int{7, 5, 0, 0, 9} {
		if got := ScopeOf(r.Servers6[i]); got != want {
			t.Errorf("%v is on %d", r.Servers6[i], got)
		}
	}
}
