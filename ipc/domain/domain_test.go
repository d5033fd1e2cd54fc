// SPDX-License-Identifier: Apache-2.0

package domain

import (
	"strings"
	"testing"
)

// long is a name of n octets, of labels of 63 as far as that goes.
func long(n int) string {
	s := strings.Repeat(strings.Repeat("a", MaxLabel)+".", n/(MaxLabel+1)+1)[:n]
	if strings.HasSuffix(s, ".") {
		s = s[:n-1] + "a"
	}
	return s
}

func TestParse(t *testing.T) {
	for s, want := range map[string]Name{
		"pypi.test": "pypi.test", "PyPI.Test.": "pypi.test", "a": "a", "registry.": "registry", "_443._tcp.a.test": "_443._tcp.a.test",
		"xn--bcher-kva.test": "xn--bcher-kva.test", "XN--BCHER-KVA.test": "xn--bcher-kva.test", "10.0.0.1": "10.0.0.1", "-a-.test": "-a-.test",
		strings.Repeat("b", MaxLabel) + ".test": Name(strings.Repeat("b", MaxLabel) + ".test"), long(MaxName) + ".": Name(long(MaxName)),
	} {
		if got, err := Parse(s); err != nil || got != want {
			t.Errorf("%q: %q, %v", s, got, err)
		}
	}
	for s, word := range map[string]string{
		"": "no name", ".": "no name", "..": "label is empty", ".a": "label is empty", "a..b": "label is empty", "a.b..": "label is empty",
		"bücher.test": "xn--", "a.例え": "xn--", "\xff.test": "xn--", "a b": "is in no name", "a/b": "is in no name", "a\x00b": "is in no name", "*.a": "is in no name",
		"a\\.b": "is in no name", strings.Repeat("b", MaxLabel+1) + ".test": "label is longer than 63", long(MaxName + 1): "longer than 253",
	} {
		if got, err := Parse(s); err == nil || !strings.Contains(err.Error(), word) || strings.Contains(err.Error(), "\n") {
			t.Errorf("%q: %q, %v; want %q", s, got, err, word)
		}
	}
}

func TestPattern(t *testing.T) {
	for _, c := range []struct {
		pattern string
		yes, no []string
	}{
		{"pypi.test", []string{"pypi.test"}, []string{"www.pypi.test", "xpypi.test", "test", "pypi.test.test"}},
		{"*.pypi.test", []string{"www.pypi.test", "a.b.c.pypi.test", "_x.pypi.test"}, []string{"pypi.test", "xpypi.test", "www.pypi.test.example", "pypi"}},
		{"*.test.", []string{"pypi.test", "a.b.test"}, []string{"test", "atest", "test.example"}},
		{"*.PyPI.test", []string{"www.pypi.test"}, []string{"pypi.test"}},
		{"registry", []string{"registry"}, []string{"registry.test", "a.registry"}},
	} {
		p, err := ParsePattern(c.pattern)
		if err != nil {
			t.Fatalf("%s: %v", c.pattern, err)
		}
		for i, names := range [][]string{c.yes, c.no} {
			for _, s := range names {
				n, err := Parse(s)
				if err != nil || p.Matches(n) != (i == 0) {
					t.Errorf("%s for %s: %t, %v", c.pattern, s, p.Matches(n), err)
				}
			}
		}
		if again, err := ParsePattern(p.String()); err != nil || again != p {
			t.Errorf("%s: written as %q, which is read as %v, %v", c.pattern, p, again, err)
		}
	}
	if (Pattern{}).Matches("") || (Pattern{}).Matches("a") {
		t.Error("no pattern matches something")
	}
	for s, word := range map[string]string{
		"*": `"any" means all`, "*.": `"any" means all`, "*..": `"any" means all`, "*foo": "only in front", "*foo.test": "only in front", "a.*.b": "only in front",
		"*.*.b": "only in front", "a*": "only in front", "**.b": "only in front", "a.*": "only in front", "bücher.test": "xn--", "*.bücher.test": "xn--",
		"a..b": "label is empty", "*..a": "label is empty", ".a.test": "label is empty", "10.0.0": "ends in a number", "10.0.0.": "ends in a number",
		"256.1.1.1": "ends in a number", "*.0": "ends in a number", "": "no name", "*." + long(MaxName-1): "longer than 253", long(MaxName + 1): "longer than 253",
		strings.Repeat("b", MaxLabel+1) + ".test": "label is longer",
	} {
		if p, err := ParsePattern(s); err == nil || !strings.Contains(err.Error(), word) {
			t.Errorf("%q: %v, %v; want %q", s, p, err, word)
		}
	}
	if p, err := ParsePattern("*." + long(MaxName-2)); err != nil || len(p.String()) != MaxName {
		t.Errorf("the longest pattern: %v, %v", p, err)
	}
}

// rulesOf reads "+PATTERN" and "-PATTERN", with ":" behind what is narrow.
func rulesOf(t *testing.T, rest bool, rules ...string) *Rules {
	t.Helper()
	r := &Rules{Default: rest}
	for i, s := range rules {
		dest, narrow := strings.CutSuffix(s[1:], ":")
		p, err := ParsePattern(dest)
		if err != nil {
			t.Fatal(err)
		}
		r.List = append(r.List, Rule{Index: i, Pattern: p, Allow: s[0] == '+', Narrow: narrow})
	}
	return r
}

// TestJudge: the first rule that fits decides; ports keep a rule from denying a name,
// and not from allowing it; aliases are denied, and allow nothing.
func TestJudge(t *testing.T) {
	for _, c := range []struct {
		rules   string
		rest    bool
		names   string // the name and its aliases
		allowed bool
		rule    int
	}{
		{"+a.test", false, "a.test", true, 0},
		{"+a.test", false, "b.test", false, -1},
		{"-a.test", true, "b.test", true, -1},
		{"-a.test", true, "a.test", false, 0},
		{"-a.test: +a.test", false, "a.test", true, 1},
		{"-a.test:", true, "a.test", true, -1},
		{"-a.test:", false, "a.test", false, -1},
		{"+a.test:", false, "a.test", true, 0},
		{"-x.test +*.test", false, "x.test", false, 0},
		{"+*.test -x.test", false, "x.test", true, 0},
		{"-*.evil.test +a.test", false, "a.test c.evil.test", false, 0},
		{"-*.evil.test +a.test", false, "a.test b.test c.evil.test", false, 0},
		{"-*.evil.test: +a.test", false, "a.test c.evil.test", true, 1},
		{"+a.test -*.evil.test", false, "a.test c.evil.test", true, 0},
		{"-*.evil.test", true, "a.test c.evil.test", false, 0},
		{"+c.evil.test", false, "a.test c.evil.test", false, -1},
	} {
		f := strings.Fields(c.names)
		var aliases []Name
		for _, a := range f[1:] {
			aliases = append(aliases, Name(a))
		}
		if got := rulesOf(t, c.rest, strings.Fields(c.rules)...).Judge(Name(f[0]), aliases...); got != (Verdict{c.allowed, c.rule}) {
			t.Errorf("%s, else %t, for %s: %+v", c.rules, c.rest, c.names, got)
		}
	}
}

// TestJudgeAllocates: nothing, since a guest asks as often as it likes.
func TestJudgeAllocates(t *testing.T) {
	r := rulesOf(t, false, "-*.evil.test", "+*.pypi.test")
	aliases := []Name{"cdn.example", "edge.cdn.example"}
	if n := testing.AllocsPerRun(100, func() { r.Judge("www.pypi.test", aliases...) }); n != 0 {
		t.Errorf("%v allocations", n)
	}
	if n := testing.AllocsPerRun(100, func() { _, _ = Parse("www.pypi.test") }); n != 0 {
		t.Errorf("%v allocations to read a name", n)
	}
}
