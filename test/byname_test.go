// SPDX-License-Identifier: Apache-2.0

package test

import (
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"aldente/test/netlab"
)

// Addresses of the remote by which it serves what is allowed by name, and something else.
const (
	named4, named6 = "198.51.100.20", "2001:db8:2::20"
	other4, other6 = "198.51.100.30", "2001:db8:2::30"
)

// byName are the rules of the examples: two kinds of names, and nothing else.
var byName = []string{"--allow", "tcp:pypi.test:443", "--allow", "tcp:*.pythonhosted.test:443", "--deny", "any"}

// namesLab has a remote with a resolver and with servers.
func namesLab(t *testing.T) (*netlab.Lab, *netlab.Zone) {
	t.Helper()
	lab := netlab.New(t, netlab.Options{})
	lab.Remote.IP("addr add "+named4+"/32 dev lo", "addr add "+other4+"/32 dev lo",
		"addr add "+named6+"/128 dev lo nodad", "addr add "+other6+"/128 dev lo nodad", "addr add 10.1.2.3/32 dev lo", "addr add 169.254.169.254/32 dev lo")
	for _, port := range []string{"80", "443"} {
		l := lab.Remote.Listen("tcp", "[::]:"+port)
		go http.Serve(l, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			at := r.Context().Value(http.LocalAddrContextKey).(net.Addr).String()
			fmt.Fprintln(w, "served by", at)
		}))
	}
	z := netlab.NewZone()
	z.Set("pypi.test", 60, named4, named6)
	z.Set("files.pythonhosted.test", 60, named4, named6)
	z.Set("deep.files.pythonhosted.test", 60, named4, named6)
	z.Set("pythonhosted.test", 60, named4, named6)
	z.Set("other.test", 60, other4, other6)
	z.Alias("cdn.pythonhosted.test", "edge.cdn.test")
	z.Set("edge.cdn.test", 60, named4, named6)
	z.Set("rebind.pythonhosted.test", 60, "10.1.2.3", "169.254.169.254", "127.0.0.1", netlab.Host4, named4)
	for _, at := range []string{"192.0.2.9:53", "[2001:db8:1::9]:53"} {
		z.Serve(lab.Remote, at)
	}
	return lab, z
}

// inside runs a script as the command of an instance whose host has the resolver given.
func inside(t *testing.T, lab *netlab.Lab, s netlab.GuestSpec, script string, args ...string) *netlab.Proc {
	t.Helper()
	if s.User == nil {
		s.User = netlab.Nobody
	}
	if s.Resolv == "" {
		s.Resolv = "nameserver 192.0.2.9\n"
	}
	p := lab.For(t).StartPasta(s, slices.Concat(netlab.NoForward(args...), []string{"--config-net"}, args, []string{"--", "sh", "-c", script})...)
	p.Wait()
	return p
}

// fetch is a command that says where a URL was served from, or that it was not.
func fetch(how, url string) string {
	return fmt.Sprintf("curl -s -m 10 %s %s || echo 'none %s'\n", how, url, url)
}

// TestByName: what rules by name allow can be fetched, by IPv4 and IPv6, and nothing else;
// what they do not allow no resolver ever hears of.
func TestByName(t *testing.T) {
	needOurs(t)
	netlab.Have(t, "curl", "dig")
	lab, z := namesLab(t)
	script := fetch("-4", "http://pypi.test:443/") + fetch("-6", "http://pypi.test:443/") +
		fetch("-4", "http://files.pythonhosted.test:443/") + fetch("-6", "http://deep.files.pythonhosted.test:443/") +
		fetch("-4", "http://cdn.pythonhosted.test:443/") +
		fetch("", "http://pypi.test:80/") + fetch("", "http://pythonhosted.test:443/") + fetch("", "http://other.test:443/") +
		fetch("", "http://"+other4+":443/") + fetch("", "http://["+other6+"]:443/") + fetch("", "http://192.0.2.9:443/") +
		"for w in +notcp +tcp; do dig +short +time=5 +tries=2 $w pypi.test A @192.0.2.9; dig +short +time=5 +tries=2 $w pypi.test AAAA @192.0.2.9; done\n" +
		"for t in A AAAA TXT NULL ANY MX NS SRV HTTPS; do for w in +notcp +tcp; do for n in other.test SeCrEt.OTHER.test $(printf 'a%.0s' $(seq 60)).exfil.test; do dig +short +time=3 +tries=1 $w $n $t @192.0.2.9 >/dev/null; done; done; done\n"
	p := inside(t, lab, netlab.GuestSpec{}, script, byName...)
	want := strings.Join([]string{
		"served by " + named4 + ":443", "served by [" + named6 + "]:443", "served by " + named4 + ":443", "served by [" + named6 + "]:443",
		"served by " + named4 + ":443",
		"none http://pypi.test:80/", "none http://pythonhosted.test:443/", "none http://other.test:443/",
		"none http://" + other4 + ":443/", "none http://[" + other6 + "]:443/", "none http://192.0.2.9:443/",
		named4, named6, named4, named6,
	}, "\n") + "\n"
	if got := p.Stdout(); got != want {
		t.Errorf("got\n%s\nwant\n%s\nall:\n%s", got, want, p.Output())
	}
	for _, q := range z.Asked() {
		name, _, _ := strings.Cut(q, " ")
		if name != "pypi.test" && !strings.HasSuffix(name, ".pythonhosted.test") {
			t.Errorf("the resolver was asked for %s", q)
		}
	}
	if len(z.Asked()) == 0 {
		t.Error("the resolver was asked for nothing")
	}
}

// namesProcess returns the number of an instance's aldente-names.
func namesProcess(t *testing.T, pid int) int {
	t.Helper()
	found := 0
	eventually(5*time.Second, func() bool {
		for _, p := range netlab.Children(pid) {
			if comm, _ := os.ReadFile(fmt.Sprintf("/proc/%d/comm", p)); strings.TrimSpace(string(comm)) == "aldente-names" {
				found = p
			}
		}
		return found != 0
	})
	if found == 0 {
		t.Fatal("there is no aldente-names")
	}
	return found
}

// askIn asks a resolver by dig in a guest and returns what it says.
func askIn(g *netlab.Guest, how, name, typ, at string) string {
	_, out := g.Run("dig", "+short", "+time=2", "+tries=3", how, name, typ, "@"+at)
	return strings.TrimSpace(out)
}

// TestNamesReplaced kills aldente-names: the next answers, by sockets that the guest has
// asked by before, too, and what was granted stands.
func TestNamesReplaced(t *testing.T) {
	needOurs(t)
	netlab.Have(t, "dig")
	lab, _ := namesLab(t)
	g := lab.GuestWith(netlab.GuestSpec{Args: append([]string{"--config-net"}, byName...), Resolv: "nameserver 192.0.2.9\n"})
	if got := askIn(g, "+notcp", "pypi.test", "A", "192.0.2.9"); got != named4 {
		t.Fatalf("answer %q\n%s", got, g.Proc.Output())
	}
	old := namesProcess(t, g.Proc.PID)
	worker := mustWorker(t, g)
	// A socket of UDP with questions before and after, and a connection.
	u, c := g.Dial("udp", "192.0.2.9:53"), g.Dial("tcp", "192.0.2.9:53")
	question := []byte("\x12\x34\x01\x00\x00\x01\x00\x00\x00\x00\x00\x00\x04pypi\x04test\x00\x00\x01\x00\x01")
	answered := func(c net.Conn) bool {
		_ = c.SetDeadline(time.Now().Add(2 * time.Second))
		if _, err := c.Write(question); err != nil {
			return false
		}
		b := make([]byte, 512)
		n, err := c.Read(b)
		return err == nil && n > len(question)
	}
	if !eventually(soonEnough, func() bool { return answered(u) }) {
		t.Error("no answer before")
	}
	if err := syscall.Kill(old, syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	if !eventually(10*time.Second, func() bool {
		p := namesProcess(t, g.Proc.PID)
		return p != old
	}) {
		t.Fatalf("not replaced\n%s", g.Proc.Output())
	}
	_ = c.SetDeadline(time.Now().Add(10 * time.Second))
	if _, err := io.ReadAll(c); err != nil && !strings.Contains(err.Error(), "reset") {
		t.Errorf("the connection of before: %v", err)
	}
	if !eventually(15*time.Second, func() bool { return answered(u) }) {
		t.Error("no answer after, by the same socket")
	}
	for _, how := range []string{"+notcp", "+tcp"} {
		if got := askIn(g, how, "files.pythonhosted.test", "AAAA", "192.0.2.9"); got != named6 {
			t.Errorf("%s: %q", how, got)
		}
	}
	if _, err := g.DialError("tcp", named4+":443", 5*time.Second); err != nil {
		t.Errorf("what was granted before: %v", err)
	}
	if w := mustWorker(t, g); w != worker {
		t.Error("the worker was replaced, too")
	}
}

// TestNamesNeedLoopback: where a host's loopback has not the address that questions are
// answered at, a rule by name is an error that says what to do; others start. One that has
// lost it since says so, too.
func TestNamesNeedLoopback(t *testing.T) {
	needOurs(t)
	lab := netlab.New(t, netlab.Options{NoRemote: true})
	start := func(args ...string) (int, string) {
		p := lab.StartPasta(netlab.GuestSpec{User: netlab.Nobody, Resolv: "nameserver 192.0.2.9\n"}, slices.Concat([]string{"--config-net"}, args, []string{"--", "true"})...)
		return p.Wait(), p.Output()
	}
	lost := lab.GuestWith(netlab.GuestSpec{Args: append([]string{"--config-net"}, byName...), Resolv: "nameserver 192.0.2.9\n"})
	for _, setUp := range [][]string{{"addr del 127.0.0.1/8 dev lo", "addr add 127.0.0.1/32 dev lo"}, {"link set lo down"}} {
		lab.Host.IP(setUp...)
		if st, out := start(byName...); st == 0 || !strings.Contains(out, "127.53.53.53") || !strings.Contains(out, "ip address add 127.0.0.1/8 dev lo") {
			t.Errorf("%q: status %d\n%s", setUp, st, out)
		}
		if st, out := start("--allow", "192.0.2.9", "--deny", "any"); st != 0 {
			t.Errorf("%q, without names: status %d\n%s", setUp, st, out)
		}
	}
	// One that was there before says so once it is asked.
	const line = "questions for names cannot be answered"
	if !eventually(10*time.Second, func() bool {
		if c, err := lost.DialError("udp", "192.0.2.9:53", time.Second); err == nil {
			_, _ = c.Write([]byte("?"))
			c.Close()
		}
		return strings.Contains(lost.Proc.Output(), line)
	}) || !strings.Contains(lost.Proc.Output(), "127.53.53.53 on the host's loopback") {
		t.Errorf("nobody says why there are no answers:\n%s", lost.Proc.Output())
	}
}

// TestNamesOnlyWhereAsked: without a rule by name, there is no process for them.
func TestNamesOnlyWhereAsked(t *testing.T) {
	needOurs(t)
	lab := netlab.New(t, netlab.Options{NoRemote: true})
	for _, args := range [][]string{nil, {"--deny", "192.0.2.9"}} {
		g := lab.For(t).Guest(args...)
		for _, p := range g.Processes() {
			exe, _ := os.Readlink(fmt.Sprintf("/proc/%d/exe", p))
			if strings.Contains(filepath.Base(exe), "aldente-names") {
				t.Errorf("%v: there is one", args)
			}
		}
	}
}

// TestByNameEverywhere: rules by name hold however an instance is started, whoever it is, and
// wherever the host's resolver is. Whom the guest asks is the resolver's name in the guest.
func TestByNameEverywhere(t *testing.T) {
	needOurs(t)
	netlab.Have(t, "dig")
	lab, z := namesLab(t)
	z.Serve(lab.Host, "127.0.0.53:53")
	for _, tt := range []struct {
		name   string
		spec   netlab.GuestSpec
		args   []string
		asks   string // the guest's name for a resolver
		root   bool
		only6  bool
		others []string // that lead nowhere
	}{
		{name: "user", asks: "192.0.2.9"},
		{name: "root", spec: netlab.GuestSpec{User: netlab.Root}, asks: "192.0.2.9", root: true},
		{name: "runas", spec: netlab.GuestSpec{User: netlab.Root}, args: []string{"--runas", "61235:61235"}, asks: "192.0.2.9", root: true},
		{name: "aldente", spec: netlab.GuestSpec{Binary: aldente()}, asks: "192.0.2.9"},
		{name: "stub", spec: netlab.GuestSpec{Resolv: "nameserver 127.0.0.53\n"}, asks: "192.0.2.1"},
		{name: "stub, aldente", spec: netlab.GuestSpec{Binary: aldente(), Resolv: "nameserver 127.0.0.53\n"}, asks: "169.254.1.1"},
		{name: "forward", args: []string{"--dns-forward", "169.254.1.1", "--dns-host", "192.0.2.9"}, asks: "169.254.1.1", others: []string{"192.0.2.77"}},
		{name: "told of another", args: []string{"--dns", "192.0.2.9"}, spec: netlab.GuestSpec{Resolv: "nameserver 192.0.2.66\n"}, asks: "192.0.2.9"},
		{name: "by IPv6", spec: netlab.GuestSpec{Resolv: "nameserver 2001:db8:1::9\n"}, asks: "2001:db8:1::9"},
		{name: "IPv6 alone", args: []string{"-6"}, spec: netlab.GuestSpec{Resolv: "nameserver 2001:db8:1::9\n"}, asks: "2001:db8:1::9", only6: true},
		{name: "outbound", args: []string{"--outbound-if4", "h0", "-o", netlab.Host4}, asks: "192.0.2.9"},
		{name: "strict", args: []string{"--strict"}, asks: "192.0.2.9"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			if tt.root {
				needRoot(t)
			}
			s := tt.spec
			if s.Resolv == "" {
				s.Resolv = "nameserver 192.0.2.9\n"
			}
			s.Args = slices.Concat([]string{"--config-net"}, tt.args, byName)
			g := lab.For(t).GuestWith(s)
			allowedByName(t, g.NS, tt.asks, tt.only6)
			for _, other := range tt.others {
				if _, err := g.DialError("tcp", other+":53", 2*time.Second); err == nil {
					t.Errorf("connected to %s", other)
				}
			}
			if t.Failed() {
				t.Log(g.Proc.Output())
			}
		})
	}
}

// allowedByName looks names up in a guest and connects.
func allowedByName(t *testing.T, g *netlab.NS, asks string, only6 bool) {
	t.Helper()
	v4, v6 := named4, named6
	for _, how := range []string{"+notcp", "+tcp"} {
		for _, q := range [][2]string{{"A", v4}, {"AAAA", v6}} {
			if _, out := g.Run("dig", "+short", "+time=3", "+tries=3", how, "pypi.test", q[0], "@"+asks); strings.TrimSpace(out) != q[1] {
				t.Errorf("%s %s: %q", how, q[0], out)
			}
		}
		if _, out := g.Run("dig", "+time=3", "+tries=3", how, "other.test", "@"+asks); !strings.Contains(out, "REFUSED") {
			t.Errorf("%s: what is not allowed is answered:\n%s", how, out)
		}
	}
	for at, want := range map[string]bool{v4 + ":443": !only6, "[" + v6 + "]:443": true, v4 + ":80": false, "[" + v6 + "]:80": false,
		other4 + ":443": false, "[" + other6 + "]:443": false, net.JoinHostPort(asks, "853"): false} {
		c, err := g.DialError("tcp", at, soonEnough)
		if err == nil {
			c.Close()
		}
		if (err == nil) != want {
			t.Errorf("%s: %v", at, err)
		}
	}
	// Encrypted questions by UDP get no further.
	c, err := g.DialError("udp", net.JoinHostPort(asks, "853"), time.Second)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	_ = c.SetDeadline(time.Now().Add(3 * time.Second))
	if _, err = c.Write([]byte("?")); err == nil {
		_, err = c.Read(make([]byte, 1))
	}
	if err == nil {
		t.Error("answered on port 853")
	}
}

// TestByNameJoined: the same in a namespace that was there before.
func TestByNameJoined(t *testing.T) {
	needOurs(t)
	netlab.Have(t, "dig")
	lab, _ := namesLab(t)
	ns := holder(t, lab)
	file := filepath.Join(openDir(t), "pid")
	args := slices.Concat(netlab.NoForward(), []string{"--config-net", "--dns-forward", "169.254.1.1", "--dns-host", "192.0.2.9", "-P", file}, byName, []string{fmt.Sprint(ns)})
	if st, p := pastaRun(t, lab, "", args...); st != 0 {
		t.Fatalf("status %d\n%s", st, p.Output())
	}
	pid := readPID(t, file)
	namesProcess(t, pid)
	allowedByName(t, netlab.OpenNS(t, "guest", fmt.Sprintf("/proc/%d/ns/net", ns)), "169.254.1.1", false)
}

// TestNamesShown: clients are told of aldente-names, which resolvers it asks, and what it has
// counted; where no rule is by name, of nothing.
func TestNamesShown(t *testing.T) {
	needOurs(t)
	netlab.Have(t, "dig")
	lab, _ := namesLab(t)
	g := lab.GuestWith(netlab.GuestSpec{Args: append([]string{"--config-net"}, byName...), Resolv: "nameserver 192.0.2.9\n"})
	for range 2 {
		askIn(g, "+notcp", "pypi.test", "A", "192.0.2.9")
	}
	askIn(g, "+notcp", "other.test", "A", "192.0.2.9")
	run := func(g *netlab.Guest, what string) string {
		_, out := aldentectl(t, lab, netlab.Nobody, what, "--pid", fmt.Sprint(g.Proc.PID))
		return out
	}
	want := fmt.Sprintf("names       process %d, replaced 0 times, asks 192.0.2.9\n", namesProcess(t, g.Proc.PID))
	if out := run(g, "status"); !strings.Contains(out, want) || !strings.Contains(out, "addresses of names: 1 of ") {
		t.Errorf("status without %q:\n%s", want, out)
	}
	events := func(out string) (n string) {
		for line := range strings.Lines(out) {
			if _, rest, ok := strings.Cut(line, `aldente_names_events_total{`); ok {
				for _, e := range []string{"question", "refused", "cached"} {
					if strings.Contains(rest, `event="`+e+`"`) {
						f := strings.Fields(line)
						n += e + " " + f[len(f)-1] + "; "
					}
				}
			}
		}
		return n
	}
	var out string
	if !eventually(10*time.Second, func() bool {
		out = run(g, "metrics")
		return events(out) == "question 3.0; refused 1.0; cached 1.0; "
	}) {
		t.Errorf("counted %q", events(out))
	}
	plain := lab.For(t).Guest()
	if out := run(plain, "status") + run(plain, "metrics"); strings.Contains(out, "names ") || strings.Contains(out, "_names_") {
		t.Errorf("without a rule by name:\n%s", out)
	}
}

// TestNamesCrowd: more sockets ask than aldente-names keeps. One that has been silent since, and
// asks again by the same port, as resolvers of a guest's own do, is answered.
func TestNamesCrowd(t *testing.T) {
	heavy(t)
	needOurs(t)
	lab, _ := namesLab(t)
	g := lab.GuestWith(netlab.GuestSpec{Args: append([]string{"--config-net"}, byName...), Resolv: "nameserver 192.0.2.9\n"})
	question := []byte("\x12\x34\x01\x00\x00\x01\x00\x00\x00\x00\x00\x00\x04pypi\x04test\x00\x00\x01\x00\x01")
	answered := func(c net.Conn) bool {
		_ = c.SetDeadline(time.Now().Add(time.Second))
		if _, err := c.Write(question); err != nil {
			return false
		}
		n, err := c.Read(make([]byte, 512))
		return err == nil && n > len(question)
	}
	first := g.Dial("udp", "192.0.2.9:53")
	if !eventually(10*time.Second, func() bool { return answered(first) }) {
		t.Fatalf("no answer\n%s", g.Proc.Output())
	}
	for range 600 {
		c, err := g.DialError("udp", "192.0.2.9:53", time.Second)
		if err != nil {
			t.Fatal(err)
		}
		if !answered(c) && !eventually(10*time.Second, func() bool { return answered(c) }) {
			t.Error("one of the crowd is not answered")
		}
		c.Close()
	}
	if !eventually(5*time.Second, func() bool { return answered(first) }) {
		t.Error("the first is not answered any more")
	}
}
