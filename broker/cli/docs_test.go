// SPDX-License-Identifier: Apache-2.0

package cli

import (
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

// TestDocumentedCommands: every command line of the documents and of the manual page
// is one that is accepted.
func TestDocumentedCommands(t *testing.T) {
	docs, err := filepath.Glob("../../docs/*.md")
	if err != nil {
		t.Fatal(err)
	}
	docs = append(docs, "../../README.md", "../../SECURITY.md", "../../man/aldente.1")
	command := regexp.MustCompile("(?m)^(?:\\.Dl [$#] )?((?:pasta|passt|aldente) -.*)$|`((?:pasta|passt|aldente) -[^`]*)`")
	n := 0
	for _, doc := range docs {
		b, err := os.ReadFile(doc)
		if err != nil {
			t.Fatal(err)
		}
		text := regexp.MustCompile(`\\e\n\.Dl " *(.*)"`).ReplaceAllString(string(b), "$1") // lines that go on
		for _, m := range command.FindAllStringSubmatch(text, -1) {
			line := m[1] + m[2]
			n++
			if _, err := parse(t, operandsOf(line)); err != nil {
				t.Errorf("%s: %s: %v", filepath.Base(doc), line, err)
			}
		}
	}
	if n < 25 {
		t.Errorf("only %d commands are found", n)
	}
}

// TestUnits: the command lines of the units for systemd are accepted, as each would be
// with options of its file, and say that they tell when they are ready.
func TestUnits(t *testing.T) {
	units, err := filepath.Glob("../../packaging/systemd/*/*.service")
	if err != nil || len(units) < 5 {
		t.Fatal(units, err)
	}
	for _, unit := range units {
		b, err := os.ReadFile(unit)
		if err != nil {
			t.Fatal(err)
		}
		m := regexp.MustCompile(`(?m)^ExecStart=(?:@/usr/bin/aldente |/usr/bin/)((?:aldente|passt) .*)$`).FindStringSubmatch(string(b))
		if m == nil {
			t.Errorf("%s: no ExecStart", unit)
			continue
		}
		line := strings.NewReplacer("/run/netns/%i", "/run/netns/blue", " %i", " 4711", "$OPTIONS", "-t 8080:80 --deny private", "$COMMAND", "true").Replace(m[1])
		c, err := parse(t, operandsOf(line))
		if err != nil || !c.SDNotify || !strings.Contains(string(b), "\nType=notify\n") {
			t.Errorf("%s: %s: %v, sd_notify %v", unit, line, err, c != nil && c.SDNotify)
		}
	}
}

// operandsOf is a line without what is the shell's, or the command's.
func operandsOf(line string) string {
	for _, end := range []string{" -- ", ";", " #", "…"} {
		line, _, _ = strings.Cut(line, end)
	}
	return strings.NewReplacer("$!", "4711", "--fd M", "--fd 5").Replace(strings.TrimSpace(line))
}

// manEntry is what the manual page says of an option, and under which heading.
type manEntry struct{ section, text string }

func manEntries(t *testing.T) map[string]manEntry {
	b, err := os.ReadFile("../../man/aldente.1")
	if err != nil {
		t.Fatal(err)
	}
	all := map[string]manEntry{}
	for _, section := range strings.Split(string(b), "\n.Ss ")[1:] {
		heading, _, _ := strings.Cut(section, "\n.It ")
		for _, entry := range strings.Split(section, "\n.It ")[1:] {
			first, _, _ := strings.Cut(entry, "\n")
			for _, m := range regexp.MustCompile(`Fl Fl ([a-z0-9-]+)`).FindAllStringSubmatch(first, -1) {
				all[m[1]] = manEntry{heading, entry}
			}
		}
	}
	return all
}

// TestManualPageAgrees: the manual page says by which names an option is known, and
// has the defaults that the usage text has.
func TestManualPageAgrees(t *testing.T) {
	entries := manEntries(t)
	value := regexp.MustCompile(`\(default:\s+([^)]*)\)`)
	for i := range options {
		o := &options[i]
		e := entries[o.long]
		switch {
		case o.in == passtOnly && !strings.Contains(e.section+e.text, ".Nm passt\nonly."):
			t.Errorf("--%s: that only passt has it is not said", o.long)
		case o.in == pastaOnly && !strings.Contains(e.section+e.text, "Not in\n.Nm passt ."):
			t.Errorf("--%s: that passt does not have it is not said", o.long)
		case o.in == both && strings.Contains(e.section+e.text, "Not in\n.Nm passt ."), o.in == both && strings.Contains(e.section+e.text, ".Nm passt\nonly."):
			t.Errorf("--%s: that all have it is denied", o.long)
		}
		m := value.FindStringSubmatch(o.help)
		if m == nil {
			continue
		}
		if !strings.Contains(e.text, "Default") {
			t.Errorf("--%s: no default, which is %q", o.long, m[1])
		}
		for _, number := range regexp.MustCompile(`\d[0-9a-f.:]+|nobody|random|tap0|resolv\.conf`).FindAllString(m[1], -1) {
			if !strings.Contains(e.text, number) {
				t.Errorf("--%s: its default %s is not in its entry", o.long, number)
			}
		}
	}
}
