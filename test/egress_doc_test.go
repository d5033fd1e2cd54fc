// SPDX-License-Identifier: Apache-2.0

package test

import (
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"aldente/test/netlab"
)

// TestEgressExample does what docs/egress.md does with its file of rules: checks it, runs
// a command under it, and makes one of a record.
func TestEgressExample(t *testing.T) {
	needOurs(t)
	netlab.Have(t, "curl")
	doc, err := os.ReadFile(filepath.Join("..", "docs", "egress.md"))
	if err != nil {
		t.Fatal(err)
	}
	find := func(pattern string) string {
		t.Helper()
		m := regexp.MustCompile(pattern).FindSubmatch(doc)
		if m == nil {
			t.Fatalf("the document has nothing like %s", pattern)
		}
		return string(m[1])
	}
	dir := socketDir(t)
	path := filepath.Join(dir, "build.rules")
	if err := os.WriteFile(path, []byte(find("(?s)```\n(# What the build needs.*?)```")), 0o644); err != nil {
		t.Fatal(err)
	}
	lab, z := namesLab(t)
	p := lab.Host.Start(netlab.Spec{Args: []string{aldente(), "--check-rules", "build.rules"}, Dir: dir, User: netlab.Nobody})
	if want := find("(?s)\\$ aldente --check-rules build.rules\n(.*?)```"); p.Wait() != 0 || p.Output() != want {
		t.Errorf("--check-rules says\n%s\nthe document\n%s", p.Output(), want)
	}
	for _, n := range []string{"pypi.test", "files.pythonhosted.test", "github.com", "tracker.example"} {
		z.Set(n, 60, named4, named6)
	}
	script := fetch("-4", "http://pypi.test:443/") + fetch("-6", "http://files.pythonhosted.test:443/") + fetch("-4", "http://github.com:443/")
	refused := fetch("", "http://github.com:80/") + fetch("", "http://tracker.example:443/") + fetch("", "http://"+other4+":443/")
	build := inside(t, lab, netlab.GuestSpec{Binary: aldente()}, script+refused, "--no-hide-sockets", "--rules", path)
	want := "served by " + named4 + ":443\nserved by [" + named6 + "]:443\nserved by " + named4 + ":443\n" +
		"none http://github.com:80/\nnone http://tracker.example:443/\nnone http://" + other4 + ":443/\n"
	if build.Stdout() != want {
		t.Errorf("the build says\n%s", build.Output())
	}
	for _, line := range []string{
		`name refused name=tracker.example type=A reason="egress rules"`, `refused by the egress rules protocol=tcp to=198.51.100.30:443 rule="--deny any"`,
	} {
		if !strings.Contains(build.Output(), line) || !strings.Contains(string(doc), line) {
			t.Errorf("%s: not in the log, or not in the document\n%s", line, build.Output())
		}
	}
	if asked := strings.Join(z.Asked(), "\n"); strings.Contains(asked, "tracker") {
		t.Errorf("a resolver has heard of it:\n%s", asked)
	}

	record := filepath.Join(dir, "build.audit")
	if p := inside(t, lab, netlab.GuestSpec{Binary: aldente()}, script, "--no-hide-sockets", "--audit", record, "--deny", "any"); strings.Count(p.Stdout(), "served") != 3 {
		t.Errorf("learning:\n%s", p.Output())
	}
	st, out := aldentectl(t, lab, netlab.Nobody, "rules", "suggest", record)
	for _, rule := range []string{"allow tcp:pypi.test:443 ", "allow tcp:files.pythonhosted.test:443 ", "allow tcp:github.com:443 ", "\ndeny any\n"} {
		if st != 0 || !strings.Contains(out, rule) {
			t.Errorf("status %d: no %q in\n%s", st, rule, out)
		}
	}
}
