// SPDX-License-Identifier: Apache-2.0

package domain

import (
	"encoding/binary"
	"regexp"
	"strings"
	"testing"

	"aldente/fuzz"
)

// FuzzDomain reads any text as a name and as a pattern, and asks rules made of it. What is
// taken is what regular expressions say; it is the same in any case, with a dot behind
// it and when it was written and read again; a pattern is for a name as a regular
// expression made of it is, and for all that another is for if it is for samples of it;
// the first rule that fits decides.
func FuzzDomain(f *testing.F) {
	for _, s := range []string{
		"www.pypi.test\n+*.pypi.test;-ads.test:", "pypi.test.\n+*.pypi.test;+PyPI.test", "xypypi.test\n-*.pypi.test", "a.b\n*;*foo;a.*.b;*.;a..b;10.0.0;*.0;.a", "bücher.test\n-bücher.test;+xn--bcher-kva.test",
		"x.evil.test\n-*.evil.test:;-*.evil.test;+any.", "_a.-b-.c\n+_a.-b-.c;-*.c", long(MaxName) + ".\n+" + long(MaxName) + ";+*." + long(MaxName-2) + ";+" + long(MaxName+1) + ";+*." + long(MaxName),
		strings.Repeat("b", 64) + ".test\n-" + strings.Repeat("b", 63) + ".test", "a\x00b.test\n+a b;+a/b", "\n",
	} {
		fuzz.Add(f, []byte(s))
		fuzz.Add(f, append([]byte{1}, fuzz.Unspell(s)...))
	}
	words := fuzz.Words("cli")
	f.Fuzz(func(t *testing.T, b []byte) {
		text := string(b[:min(len(b), 2048)])
		if rest, ok := strings.CutPrefix(text, "\x01"); ok {
			text = fuzz.Spell([]byte(rest), words)
		}
		asked, list, _ := strings.Cut(text, "\n")
		name, err := Parse(asked)
		if (err == nil) != isName(asked) {
			t.Fatalf("%q: %q, %v, a second reading: %t", asked, name, err, err != nil)
		}
		if err == nil {
			again, err := Parse(strings.ToUpper(string(name)) + ".")
			if err != nil || again != name || string(name) != strings.ToLower(strings.TrimSuffix(asked, ".")) {
				t.Fatalf("%q: %q, once more: %q, %v", asked, name, again, err)
			}
		}
		var fitting []byte
		rules, want, at := Rules{Default: len(text)%2 == 0}, len(text)%2 == 0, -1
		for one := range strings.SplitSeq(list, ";") {
			dest, narrow := strings.CutSuffix(strings.TrimLeft(one, "+-"), ":")
			r := Rule{Index: len(rules.List), Allow: strings.HasPrefix(one, "+"), Narrow: narrow}
			r.Pattern, err = ParsePattern(dest)
			bare, below := strings.CutPrefix(dest, "*.")
			labels := strings.Split(strings.TrimSuffix(bare, "."), ".")
			ok := isName(bare) && !(below && len(strings.TrimSuffix(dest, ".")) > 253) && strings.Trim(labels[len(labels)-1], "0123456789") != ""
			if ok != (err == nil) {
				t.Fatalf("%q: %v, %v, a second reading: %t", dest, r.Pattern, err, ok)
			}
			if !ok {
				continue
			}
			if again, err := ParsePattern(r.Pattern.String()); err != nil || again != r.Pattern {
				t.Fatalf("%q: %v, once more: %v, %v", dest, r.Pattern, again, err)
			}
			expr := "^" + regexp.QuoteMeta(strings.ToLower(strings.TrimSuffix(bare, "."))) + "$"
			if below {
				expr = `^.+\.` + expr[1:]
			}
			fits := name != "" && regexp.MustCompile(expr).MatchString(string(name))
			if r.Pattern.Matches(name) != fits {
				t.Fatalf("%v for %q: %t, as an expression: %t", r.Pattern, name, !fits, fits)
			}
			if fits && at < 0 && (r.Allow || !narrow) {
				want, at = r.Allow, len(rules.List)
			}
			if fits {
				fitting = binary.LittleEndian.AppendUint16(fitting, uint16(len(rules.List)))
			}
			rules.List = append(rules.List, r)
		}
		if got := rules.Fitting(name); got != string(fitting) {
			t.Fatalf("%q of %q: %x fit, want %x", list, name, got, fitting)
		}
		checkCovers(t, rules.List)
		if got := rules.Judge(name); got != (Verdict{want, at}) {
			t.Fatalf("%q of %q: %+v, want %t by %d", list, name, got, want, at)
		}
		// As an alias it is denied by the same rules, and nothing allows it.
		if got := rules.Judge("", name); got.Allowed && got.Rule >= 0 || !got.Allowed && got.Rule >= 0 && rules.List[got.Rule].Allow {
			t.Fatalf("%q of the alias %q: %+v", list, name, got)
		}
	})
}

// checkCovers compares each two of the first patterns: one stands for all names of
// another if it does for two that have nothing else in common.
func checkCovers(t *testing.T, list []Rule) {
	list = list[:min(len(list), 16)]
	for i := range list {
		for k := range list {
			p, o := list[i].Pattern, list[k].Pattern
			one, two := o.name, o.name
			if o.below {
				one, two = "one."+o.name, "two."+o.name
			}
			if want := p.Matches(one) && p.Matches(two); p.Covers(o) != want {
				t.Fatalf("%v covers %v: %t, want %t", p, o, !want, want)
			}
		}
	}
}

var labels = regexp.MustCompile(`^[\w-]{1,63}(\.[\w-]{1,63})*$`)

func isName(s string) bool {
	s = strings.TrimSuffix(s, ".")
	return len(s) <= 253 && labels.MatchString(s)
}
