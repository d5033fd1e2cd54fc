// SPDX-License-Identifier: Apache-2.0

package hostnet

import (
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
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
		{"both families, zones off", "nameserver 192.0.2.53\nnameserver fd00::53%eth0\nnameserver fe80::1%eth0\n",
			Resolvers{Servers4: addrs("192.0.2.53"), Servers6: addrs("fd00::53", "fe80::1")}},
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
	if r, err := ReadResolvers(filepath.Join(dir, "none")); err != nil || r.Servers4 != nil {
		t.Errorf("missing file: %v, %v", r, err)
	}
	if _, err := ReadResolvers(dir); err == nil {
		t.Error("a directory was read")
	}
	path := filepath.Join(dir, "resolv.conf")
	text := "nameserver 1.1.1.1\n" + strings.Repeat("# filler\n", maxResolv/9) + "nameserver 2.2.2.2\n"
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	r, err := ReadResolvers(path)
	if err != nil {
		t.Fatal(err)
	}
	if d := cmp.Diff(addrs("1.1.1.1"), r.Servers4, compareAddr); d != "" {
		t.Errorf("long file: (-want +got)\n%s", d)
	}
}
