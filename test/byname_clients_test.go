// SPDX-License-Identifier: Apache-2.0

package test

import (
	"context"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"aldente/test/fetcher"
	"aldente/test/netlab"
)

// goHostsArg makes the test binary a client with Go's own resolver: NAME....
const goHostsArg = "go-hosts"

// pureGo looks names up without the C library, whatever this was built with.
var pureGo = &net.Resolver{PreferGo: true}

// goHosts prints the first address of names.
func goHosts(names []string) int {
	for _, name := range names {
		all, err := pureGo.LookupNetIP(context.Background(), "ip4", name)
		if err != nil {
			fmt.Println(name, "-")
			continue
		}
		fmt.Println(name, all[0].Unmap())
	}
	return 0
}

// byNameScript has all three clients fetch what rules allow and what they do not, by one IP
// version.
func byNameScript(version string) string {
	return fetcher.Script(filepath.Join(netlab.Stage(), "hold"), version, "http://pypi.test:443/", "http://PyPI.test.:443/", "http://deep.files.pythonhosted.test:443/",
		"http://cdn.pythonhosted.test:443/", "http://pypi.test:80/", "http://pythonhosted.test:443/", "http://other.test:443/")
}

// byNameWant is what that prints.
func byNameWant(at string) string {
	text := ""
	for _, client := range fetcher.Clients {
		text += client + "\n" + strings.Repeat("served by "+net.JoinHostPort(at, "443")+"\n", 4) +
			"none http://pypi.test:80/\nnone http://pythonhosted.test:443/\nnone http://other.test:443/\n"
	}
	return text
}

// TestByNameClients: curl, Python and Go's own resolver fetch what rules by name allow, by
// IPv4 and IPv6, asking a resolver by either; and nothing else, of which no resolver hears.
func TestByNameClients(t *testing.T) {
	needOurs(t)
	netlab.Have(t, "curl", "/usr/bin/python3")
	lab, z := namesLab(t)
	for _, tt := range []struct{ version, resolver, at string }{
		{"4", "192.0.2.9", named4}, {"6", "192.0.2.9", named6}, {"4", "2001:db8:1::9", named4}, {"6", "2001:db8:1::9", named6},
	} {
		p := inside(t, lab, netlab.GuestSpec{Resolv: "nameserver " + tt.resolver + "\n"}, byNameScript(tt.version), byName...)
		if got, want := p.Stdout(), byNameWant(tt.at); got != want {
			t.Errorf("IPv%s, resolver %s: got\n%s\nwant\n%s\nall:\n%s", tt.version, tt.resolver, got, want, p.Output())
		}
	}
	onlyAsked(t, z, "pypi.test", ".pythonhosted.test")
}

// onlyAsked checks that a resolver was asked for names only, or names that end so.
func onlyAsked(t *testing.T, z *netlab.Zone, names ...string) {
	t.Helper()
	for _, q := range z.Asked() {
		name, _, _ := strings.Cut(q, " ")
		if !slices.ContainsFunc(names, func(n string) bool { return name == n || n[0] == '.' && strings.HasSuffix(name, n) }) {
			t.Errorf("the resolver was asked for %s", q)
		}
	}
	if len(z.Asked()) == 0 {
		t.Error("the resolver was asked for nothing")
	}
}

// muslHosts is a program that prints the first address of names, by musl's resolver.
const muslHosts = `
#include <netdb.h>
#include <stdio.h>
int main(int n, char **name)
{
	for (int i = 1; i < n; i++) {
		struct addrinfo hints = { .ai_family = AF_INET, .ai_socktype = SOCK_STREAM }, *a;
		char text[64] = "-";
		if (!getaddrinfo(name[i], 0, &hints, &a))
			getnameinfo(a->ai_addr, a->ai_addrlen, text, sizeof text, 0, 0, NI_NUMERICHOST);
		printf("%s %s\n", name[i], text);
	}
}
`

// TestByNameSearch: names are found by search lists, of which only one domain is allowed or
// none, with few dots and many, by the resolvers of glibc, musl, Go and Python; by a
// list that nobody has told of, too.
func TestByNameSearch(t *testing.T) {
	needOurs(t)
	netlab.Have(t, "musl-gcc", "getent", "/usr/bin/python3")
	musl := filepath.Join(netlab.Stage(), "musl-hosts")
	build := exec.Command("musl-gcc", "-static", "-o", musl, "-x", "c", "-")
	build.Stdin = strings.NewReader(muslHosts)
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	lab, z := namesLab(t)
	z.Set("build.b.test", 60, named4)
	z.Set("build.a.test", 60, other4)
	names := "build pypi.test files.pythonhosted.test pypi.test. nothing"
	const python = `
import socket, sys
for n in sys.argv[1:]:
    try: print(n, socket.getaddrinfo(n, None, socket.AF_INET)[0][4][0])
    except OSError: print(n, "-")
`
	clients := []struct{ name, script string }{
		{"glibc", "for n in " + names + "; do echo $n $(getent ahostsv4 $n | sed \"s/ .*//;q\" | grep . || echo -); done\n"},
		{"python", "/usr/bin/python3 -c '" + python + "' " + names + "\n"},
		{"musl", musl + " " + names + "\n"},
		{"go", filepath.Join(netlab.Stage(), "hold") + " " + goHostsArg + " " + names + "\n"},
	}
	rules := []string{"--allow", "tcp:pypi.test:443", "--allow", "tcp:*.pythonhosted.test:443", "--allow", "tcp:build.b.test:443", "--deny", "any"}
	want := "build " + named4 + "\npypi.test " + named4 + "\nfiles.pythonhosted.test " + named4 + "\npypi.test. " + named4 + "\nnothing -\n"
	for _, options := range []string{"ndots:1", "ndots:5"} {
		for _, c := range clients {
			t.Run(c.name+"/"+options, func(t *testing.T) {
				p := inside(t, lab.For(t), netlab.GuestSpec{Resolv: "nameserver 192.0.2.9\nsearch a.test b.test\noptions " + options + "\n"}, c.script, rules...)
				if got := p.Stdout(); got != want {
					t.Errorf("got\n%s\nwant\n%s", got, want)
				}
			})
		}
	}
	t.Run("untold", func(t *testing.T) {
		script := "export LOCALDOMAIN='x.svc.cluster.local svc.cluster.local' RES_OPTIONS=ndots:5\n" + clients[0].script + clients[1].script
		p := inside(t, lab.For(t), netlab.GuestSpec{}, script, rules...)
		want := strings.Replace(want, "build "+named4, "build -", 1)
		if got := p.Stdout(); got != want+want {
			t.Errorf("got\n%s\nwant twice\n%s", got, want)
		}
	})
	onlyAsked(t, z, "build.b.test", "pypi.test", ".pythonhosted.test")
}

// TestByNameDig: what dig sees of the answers: their code and flags, that names come in the
// case in which they were asked for, and that a refusal says who refuses.
func TestByNameDig(t *testing.T) {
	needOurs(t)
	netlab.Have(t, "dig")
	lab, z := namesLab(t)
	var addrs []string
	for i := range 200 {
		addrs = append(addrs, fmt.Sprintf("203.0.113.%d", i))
	}
	z.Set("many.pythonhosted.test", 60, addrs...)
	long := strings.Repeat("a", 63)
	for _, nx := range []bool{false, true} {
		args, rcode := byName, "status: REFUSED"
		if nx {
			args, rcode = append([]string{"--names-nxdomain"}, byName...), "status: NXDOMAIN"
		}
		g := lab.GuestWith(netlab.GuestSpec{Args: append([]string{"--config-net"}, args...), Resolv: "nameserver 192.0.2.9\n"})
		for _, tt := range []struct {
			query string
			want  []string
			not   string
		}{
			{"PyPi.tEst A", []string{"status: NOERROR", "PyPi.tEst.", named4, "ANSWER: 1", "flags: qr rd ra;"}, ""},
			{"pypi.test ANY +notcp", []string{"status: NOERROR", "RFC8482"}, named4},
			{"pypi.test TXT", []string{"status: NOERROR", "ANSWER: 0"}, ""},
			{"pypi.test AXFR +notcp", []string{"Transfer failed"}, named4},
			{"pypi.test NAPTR", []string{"status: NOERROR", "ANSWER: 0"}, ""},
			{"pypi.test WKS", []string{"status: NOTIMP"}, ""},
			{"other.test NAPTR", []string{rcode}, ""},
			{"-c CH version.bind TXT", []string{"status: REFUSED"}, ""},
			{"nothing.pythonhosted.test A", []string{"status: NXDOMAIN", "ANSWER: 0"}, "EDE"},
			{"other.test A", []string{rcode, "EDE: 15 (Blocked)"}, other4},
			{"other.test A +noedns", []string{rcode}, "EDE"},
			{"other.test NULL", []string{rcode}, ""},
			{"other.test ANY +notcp", []string{rcode}, ""},
			{". NS", []string{rcode}, ""},
			{long + "." + long + "." + long + ".pypi.test A +tcp", []string{rcode}, ""},
			{"many.pythonhosted.test A", []string{"status: NOERROR", "ANSWER: 64"}, "Truncated"},
			{"many.pythonhosted.test A +noedns", []string{"Truncated, retrying in TCP mode", "ANSWER: 64"}, ""},
			{"many.pythonhosted.test A +noedns +ignore", []string{"flags: qr tc rd ra;"}, "ANSWER: 64"},
			{"many.pythonhosted.test A +tcp +keepopen", []string{"ANSWER: 64"}, ""},
			{"pypi.test A +ednsopt=10:0011223344556677 +dnssec +cdflag", []string{"flags: qr rd ra cd;", named4}, "RRSIG"},
			{"pypi.test A +edns=1 +noednsnegotiation", []string{"status: BADVERS"}, named4},
			{"pypi.test A +opcode=status", []string{"status: NOTIMP"}, named4},
			{"-x " + named4, []string{"status: NOERROR", "PTR\tpypi.test."}, ""},
			{"-x " + named6, []string{rcode}, ""},
			{"-x " + other4, []string{rcode}, ""},
		} {
			_, out := g.Run(slices.Concat([]string{"dig", "@192.0.2.9", "+time=3", "+tries=2"}, strings.Fields(tt.query))...)
			for _, want := range tt.want {
				if !strings.Contains(out, want) {
					t.Errorf("%v, dig %s: no %q in\n%s", nx, tt.query, want, out)
				}
			}
			if tt.not != "" && strings.Contains(out, tt.not) {
				t.Errorf("%v, dig %s: %q in\n%s", nx, tt.query, tt.not, out)
			}
		}
	}
	onlyAsked(t, z, "pypi.test", ".pythonhosted.test")
}

// TestByNameOldSocket: a socket that has asked before a thousand others is answered as before.
func TestByNameOldSocket(t *testing.T) {
	needOurs(t)
	lab, _ := namesLab(t)
	g := lab.GuestWith(netlab.GuestSpec{Args: append([]string{"--config-net"}, byName...), Resolv: "nameserver 192.0.2.9\n"})
	question := []byte("\x12\x34\x01\x00\x00\x01\x00\x00\x00\x00\x00\x00\x04pypi\x04test\x00\x00\x01\x00\x01")
	ask := func(c net.Conn) error {
		b := make([]byte, 512)
		var err error
		for range 3 { // a datagram may be lost
			_ = c.SetDeadline(time.Now().Add(3 * time.Second))
			if _, err = c.Write(question); err == nil {
				_, err = c.Read(b)
			}
			if err == nil || !os.IsTimeout(err) {
				break
			}
		}
		return err
	}
	first := g.Dial("udp", "192.0.2.9:53")
	if err := ask(first); err != nil {
		t.Fatal(err)
	}
	for i := range 1000 {
		c := g.Dial("udp", "192.0.2.9:53")
		if err := ask(c); err != nil {
			t.Fatalf("socket %d: %v", i, err)
		}
		c.Close()
	}
	if err := ask(first); err != nil {
		t.Error(err)
	}
}
