// SPDX-License-Identifier: Apache-2.0

package stream

import (
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"aldente/test/fetcher"
	"aldente/test/machine"
	"aldente/test/netlab"
)

// TestByNameFetched: a virtual machine fetches what rules by name allow, by curl, Python and Go's own
// resolver, by IPv4 and IPv6, and nothing else, of which no resolver hears; it asks the
// resolver that it is told of.
func TestByNameFetched(t *testing.T) {
	machine.NeedOurs(t)
	netlab.Have(t, "curl", "dig", "/usr/bin/python3")
	lab := netlab.New(t, netlab.Options{})
	const named4, named6, other4 = "198.51.100.20", "2001:db8:2::20", "198.51.100.30"
	lab.Remote.IP("addr add "+named4+"/32 dev lo", "addr add "+named6+"/128 dev lo nodad", "addr add "+other4+"/32 dev lo")
	l := lab.Remote.Listen("tcp", "[::]:443")
	go func() {
		_ = http.Serve(l, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			at, _ := r.Context().Value(http.LocalAddrContextKey).(net.Addr)
			_, _ = io.WriteString(w, at.String()+"\n")
		}))
	}()
	z := netlab.NewZone()
	z.Set("pypi.test", 60, named4, named6)
	z.Set("files.pythonhosted.test", 60, named4, named6)
	z.Set("other.test", 60, other4)
	z.Serve(lab.Remote, "192.0.2.9:53")
	p := startWith(t, lab, "nameserver 192.0.2.9\n", "--allow", "pypi.test:443", "--allow", "*.pythonhosted.test:443", "--deny", "any")
	g := p.join(t, 1500)
	resolver := g.leased(t, "-4", "domain-name-servers", "new_domain_name_servers")
	conf := filepath.Join(t.TempDir(), "resolv.conf")
	if err := os.WriteFile(conf, []byte("nameserver "+resolver+"\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	names := []string{"pypi.test", "files.pythonhosted.test", "pythonhosted.test", "other.test", other4}
	script := "mount --bind " + conf + " /etc/resolv.conf\n"
	want := ""
	for version, at := range map[string]string{"4": named4, "6": named6} {
		var urls []string
		for _, n := range names {
			urls = append(urls, "http://"+n+":443/")
		}
		script += fetcher.Script(filepath.Join(netlab.Stage(), "hold"), version, urls...)
		for _, client := range fetcher.Clients {
			want += client + "\n" + strings.Repeat(net.JoinHostPort(at, "443")+"\n", 2)
			for _, url := range urls[2:] {
				want += "none " + url + "\n"
			}
		}
	}
	script += "for w in +tcp +notcp; do for t in A TXT NULL ANY; do dig +short +time=2 +tries=1 $w SeCret.other.test $t; done; done\n"
	if got := g.Must("unshare", "-m", "sh", "-c", script); got != want {
		t.Errorf("got\n%s\nwant\n%s\n%s", got, want, p.Output())
	}
	for _, q := range z.Asked() {
		if !strings.HasPrefix(q, "pypi.test ") && !strings.HasPrefix(q, "files.pythonhosted.test ") {
			t.Errorf("the resolver was asked for %s", q)
		}
	}
}
