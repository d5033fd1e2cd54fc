// SPDX-License-Identifier: Apache-2.0

package test

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"aldente/test/netlab"
)

// TestRulesReloadByName: which names resolve, and where they lead, follows rules that are
// changed; connections of names that stay do not notice, and what was granted for them
// stands; those of names that go end.
func TestRulesReloadByName(t *testing.T) {
	needOurs(t)
	netlab.Have(t, "dig")
	lab, z := namesLab(t)
	dir := socketDir(t)
	g := &ruledGuest{t: t, lab: lab, file: filepath.Join(dir, "rules"), control: filepath.Join(dir, "s")}
	g.write("allow tcp:pypi.test:443\nallow tcp:other.test:443\ndeny any\n")
	g.Guest = lab.GuestWith(netlab.GuestSpec{Resolv: "nameserver 192.0.2.9\n", Args: []string{"--config-net", "-d", "--rules", g.file, "--control", g.control}})
	resolves := func(name, want string) {
		t.Helper()
		if got := askIn(g.Guest, "+notcp", name, "A", "192.0.2.9"); got != want {
			t.Errorf("%s is %q, want %q", name, got, want)
		}
	}
	resolves("pypi.test", named4)
	resolves("other.test", other4)
	resolves("files.pythonhosted.test", "")
	stays, goes := g.Dial("tcp", named4+":443"), g.Dial("tcp", other4+":443")
	defer stays.Close()
	defer goes.Close()

	g.write("allow tcp:pypi.test:443\nallow tcp:*.pythonhosted.test:443\ndeny any\n")
	g.hangUp("egress rules were loaded")
	g.ends("other.test", goes)
	if got := reach(g.Guest, "tcp "+other4+":443"); got != prohibited {
		t.Errorf("a connection to what other.test was: %s", got)
	}
	if _, err := stays.Write([]byte("GET / HTTP/1.0\r\n\r\n")); err != nil {
		t.Error(err)
	}
	if n, err := stays.Read(make([]byte, 512)); n == 0 {
		t.Errorf("pypi.test has ended: %v", err)
	}
	asked := len(z.Asked())
	if c, err := g.DialError("tcp", named4+":443", 5*time.Second); err != nil {
		t.Errorf("what was granted for a rule that stays is forgotten: %v", err)
	} else {
		c.Close()
	}
	resolves("files.pythonhosted.test", named4)
	resolves("other.test", "")
	for _, q := range z.Asked()[asked:] {
		if strings.HasPrefix(q, "other.test") {
			t.Errorf("the resolver was asked for %s", q)
		}
	}
	if st, out := g.load("allow tcp:pypi.test:443\nallow tcp:a..test:443\n"); st != 1 || !strings.Contains(out, ".load:2:7: ") {
		t.Errorf("status %d: %s", st, out)
	}

	plain := ruled(t, lab, "deny any\n")
	if st, out := plain.load("allow tcp:pypi.test:443\ndeny any\n"); st != 1 || !strings.Contains(out, "no rule was by name at the start") {
		t.Errorf("the first rule by name: status %d: %s", st, out)
	}
}

// TestAuditByName: what is recorded of names becomes rules by name, under which the same
// run does the same, and another does not.
func TestAuditByName(t *testing.T) {
	needOurs(t)
	netlab.Have(t, "curl")
	lab, z := namesLab(t)
	dir := socketDir(t)
	record, rules := filepath.Join(dir, "record"), filepath.Join(dir, "rules")
	script := fetch("-4", "http://pypi.test:443/") + fetch("-6", "http://pypi.test:443/") + fetch("-4", "http://files.pythonhosted.test:443/") +
		fetch("-6", "http://deep.files.pythonhosted.test:443/") + fetch("-4", "http://cdn.pythonhosted.test:443/") + fetch("", "http://"+other4+":80/")
	learned := inside(t, lab, netlab.GuestSpec{}, script, "--audit", record, "--deny", "any")
	if strings.Contains(learned.Stdout(), "none") || strings.Count(learned.Stdout(), "served by") != 6 {
		t.Fatalf("learning:\n%s", learned.Output())
	}
	for flags, want := range map[string]string{
		"": "allow tcp:pypi.test:443 # 2 connections, 2 addresses\nallow tcp:files.pythonhosted.test:443 # 1 connection, 1 address\n" +
			"allow tcp:cdn.pythonhosted.test:443 # 1 connection, 1 address\nallow tcp:deep.files.pythonhosted.test:443 # 1 connection, 1 address\n" +
			"allow tcp:" + other4 + ":80 # 1 connection\ndeny any\n",
		"--wildcards=2": "allow tcp:pypi.test:443 # 2 connections, 2 addresses\n" +
			"allow tcp:*.pythonhosted.test:443 # 2 connections, 1 address: cdn.pythonhosted.test files.pythonhosted.test\n" +
			"allow tcp:deep.files.pythonhosted.test:443 # 1 connection, 1 address\nallow tcp:" + other4 + ":80 # 1 connection\ndeny any\n",
	} {
		st, out := aldentectl(t, lab, netlab.Nobody, append([]string{"rules", "suggest", record}, strings.Fields(flags)...)...)
		if _, got, _ := strings.Cut(out, "used.\n"); st != 0 || !sameLines(got, want) {
			t.Errorf("%s: status %d:\n%s\nwant\n%s", flags, st, out, want)
		}
		if err := os.WriteFile(rules, []byte(out), 0o644); err != nil {
			t.Fatal(err)
		}
		check := lab.StartPasta(netlab.GuestSpec{User: netlab.Nobody}, "--check-rules", rules)
		if st := check.Wait(); st != 0 {
			t.Errorf("status %d: %s", st, check.Output())
		}
		if again := inside(t, lab, netlab.GuestSpec{}, script, "--rules", rules); again.Stdout() != learned.Stdout() {
			t.Errorf("%s: under the rules\n%s\nas it was\n%s", flags, again.Output(), learned.Stdout())
		}
		had := len(z.Asked())
		if other := inside(t, lab, netlab.GuestSpec{}, fetch("", "http://other.test:443/")+fetch("", "http://"+other4+":443/"), "--rules", rules); strings.Contains(other.Stdout(), "served") {
			t.Errorf("%s: more is allowed than was learned: %s", flags, other.Stdout())
		}
		if now := z.Asked(); len(now) != had {
			t.Errorf("the resolver was asked for %q", now[had:])
		}
	}
}

// sameLines compares texts but for the order of lines.
func sameLines(a, b string) bool {
	count := map[string]int{}
	for l := range strings.Lines(a) {
		count[l]++
	}
	for l := range strings.Lines(b) {
		count[l]--
	}
	for _, n := range count {
		if n != 0 {
			return false
		}
	}
	return true
}
