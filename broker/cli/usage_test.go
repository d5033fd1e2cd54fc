// SPDX-License-Identifier: Apache-2.0

package cli

import (
	"os"
	"regexp"
	"strings"
	"testing"
)

func TestUsage(t *testing.T) {
	for _, p := range []Personality{Aldente, Pasta, Passt} {
		text := Usage(p, p.String())
		for line := range strings.Lines(text) {
			if len(strings.TrimSuffix(line, "\n")) > 80 {
				t.Errorf("%v: long line: %s", p, line)
			}
		}
		for i := range options {
			o := &options[i]
			listed := regexp.MustCompile(`(?m)^  (-.,|   ).* ?--` + o.long + `([, [ ]|$)`).MatchString(text)
			if want := o.in&p.bit() != 0; listed != want {
				t.Errorf("%v: --%s listed: %v, want %v", p, o.long, listed, want)
			}
		}
	}
}

// TestManualPage: every option has its entry, short form and argument as in
// the table, and no entry is of an option that is not there.
func TestManualPage(t *testing.T) {
	page, err := os.ReadFile("../../man/aldente.1")
	if err != nil {
		t.Fatal(err)
	}
	entries := map[string]string{} // long name to the line of its entry
	for line := range strings.Lines(string(page)) {
		if !strings.HasPrefix(line, ".It Fl") {
			continue
		}
		for _, m := range regexp.MustCompile(`Fl Fl ([a-z0-9-]+)`).FindAllStringSubmatch(line, -1) {
			entries[m[1]] = strings.TrimSpace(line)
		}
	}
	for i := range options {
		o := &options[i]
		entry, ok := entries[o.long]
		delete(entries, o.long)
		switch {
		case !ok:
			t.Errorf("--%s: no entry", o.long)
		case o.short != 0 && !strings.Contains(entry, ".It Fl "+string(o.short)+" "):
			t.Errorf("--%s: no -%c: %s", o.long, o.short, entry)
		case (o.arg != "") != strings.Contains(entry, " Ar "):
			t.Errorf("--%s: argument %q: %s", o.long, o.arg, entry)
		}
	}
	for name := range entries {
		t.Errorf("--%s: not an option", name)
	}
	for _, link := range []string{"pasta", "passt"} {
		b, err := os.ReadFile("../../man/" + link + ".1")
		if err != nil || !strings.Contains(string(b), ".so man1/aldente.1\n") {
			t.Errorf("%s.1: %v", link, err)
		}
	}
}

// TestLimitationsAreTold: what Unsupported refuses stands in the manual page.
func TestLimitationsAreTold(t *testing.T) {
	page, err := os.ReadFile("../../man/aldente.1")
	if err != nil {
		t.Fatal(err)
	}
	_, limits, _ := strings.Cut(string(page), ".Sh LIMITATIONS")
	words := strings.NewReplacer("Fl Fl ", "--", "Fl ", "-", "Cm ", "", ".Nm ", "", " Ns 's\n", "'s ", "\n", " ").Replace(limits)
	for _, u := range unsupported {
		if !strings.Contains(words, u.option) {
			t.Errorf("%s is not in LIMITATIONS", u.option)
		}
	}
}
