// SPDX-License-Identifier: Apache-2.0

package egress

import (
	"fmt"
	"strings"
	"testing"
)

func lint(t *testing.T, rules ...Rule) (text []string, warnings map[int][]string) {
	t.Helper()
	found, err := Lint(rules, func(i int) string { return fmt.Sprintf("#%d", i+1) })
	if err != nil {
		t.Fatal(err)
	}
	warnings = map[int][]string{}
	for i, f := range found {
		text = append(text, f.Text)
		if f.Warnings != nil {
			warnings[i] = f.Warnings
		}
	}
	return text, warnings
}

// TestNormal: each rule has one form, which is read as the rule is.
func TestNormal(t *testing.T) {
	for in, want := range map[string]string{
		"any": "any", "host": "host", "private": "private", "metadata": "metadata", "link-local": "link-local",
		"tcp:any:80-80": "tcp:any:80", "udp:private:1-1023": "udp:private:1-1023", "icmp:host": "icmp:host",
		"10.0.0.1/32": "10.0.0.1", "::ffff:10.0.0.0/104": "10.0.0.0/8", "[2001:DB8::]/32:443": "[2001:db8::]/32:443", "[::2]": "::2", "tcp:[::2]:5": "tcp:[::2]:5",
		"tcp:PyPI.test.:443": "tcp:pypi.test:443", "*.Test": "*.test", "printer.": "printer.",
	} {
		got, _ := lint(t, Rule{Allow: true, Dest: in})
		if got[0] != "allow "+want {
			t.Errorf("%s is %s, want %s", in, got[0], want)
		}
		if again, _ := lint(t, Rule{Dest: want}); again[0] != "deny "+want {
			t.Errorf("%s is not read as it was: %s", want, again[0])
		}
	}
}

// TestLint: what never decides, or not what it seems to, is found, and nothing else.
func TestLint(t *testing.T) {
	for _, tt := range []struct {
		rules string // + allows, - denies, = is the program's own
		want  string // index from 1 and a part of the warning; empty: none
	}{
		{"+10.0.0.1 -10.0.0.0/8 -any", ""},
		{"-10.0.0.0/8 +10.0.0.1", "2 #1 stands before it and denies all of it"},
		{"+tcp:10.0.0.0/8:1-100 -tcp:10.1.0.0/16:80", "2 #1 stands before it and allows all of it"},
		{"+tcp:10.0.0.0/8:1-100 -10.1.0.0/16:80", ""}, {"+tcp:10.0.0.0/8:1-100 -tcp:10.1.0.0/16", ""}, {"+tcp:10.0.0.0/8:1-100 -tcp:10.1.0.0/16:80-101", ""},
		{"+icmp:any -icmp:10.0.0.1", "2 #1 stands"},
		{"-any +tcp:pypi.test:443", "2 #1 stands before it and denies all of it"},
		{"-any:1-1023 +tcp:pypi.test:443", "2 #1 stands"}, {"-any:1-1023 +tcp:pypi.test:8443 +tcp:x.test:443", "3 #1 stands"},
		{"+tcp:*.pypi.test:443 +tcp:a.pypi.test:443", "2 #1 stands"}, {"+tcp:*.pypi.test:443 +tcp:pypi.test:443", ""},
		{"-*.test +tcp:a.test:443", "2 #1 stands"}, {"+tcp:a.test:443 -*.test", ""},
		{"-tcp:*.test:80 +udp:a.test:80", "1 the name is resolved all the same"},
		{"-private -tcp:host", ""}, {"-host +127.0.0.1", "2 #1 stands"}, {"+127.0.0.0/8 -host", ""}, {"-host =host", ""}, {"-any =host =metadata", ""},
		{"-private -private:80", "2 #1 stands"}, {"-private -10.0.0.0/8", "2 #1 stands"}, {"-10.0.0.0/8 -private", ""},
		{"+a.test -any", "1 all ports and protocols"}, {"+tcp:nas.lan:443 =private", "1 names below lan"}, {"+tcp:nas.lan:443", ""}, {"+tcp:x.internal:443 =private", "1 names below internal"},
	} {
		var rules []Rule
		for r := range strings.FieldsSeq(tt.rules) {
			one := Rule{Allow: r[0] == '+', Dest: r[1:], Source: ByFile}
			if r[0] == '=' {
				one.Source, one.Guard = ByDefault, true
			}
			rules = append(rules, one)
		}
		_, warnings := lint(t, rules...)
		number, part, _ := strings.Cut(tt.want, " ")
		n := 0
		for i, all := range warnings {
			n += len(all)
			if tt.want != "" && (fmt.Sprint(i+1) != number || !strings.Contains(all[0], part)) {
				t.Errorf("%s: rule %d: %q, want %q", tt.rules, i+1, all, tt.want)
			}
		}
		if (tt.want != "") != (n == 1) {
			t.Errorf("%s: %v, want %q", tt.rules, warnings, tt.want)
		}
	}
}
