// SPDX-License-Identifier: Apache-2.0

package rulesfile

import (
	"bytes"
	"fmt"
	"slices"
	"strings"
	"testing"

	"aldente/fuzz"
)

// TestParse: comments, blank lines, ends of lines of all kinds, and where words stand.
func TestParse(t *testing.T) {
	text := "\xef\xbb\xbf# what a build needs\r\n" +
		"\r\n" +
		"allow tcp:*.pypi.test:443 # packages\r\n" +
		"\t deny\tany#thing \n" +
		"   # indented \xff\x00 comment\n" +
		"direct-only\n" +
		"allow [::1]:80"
	want := []Rule{
		{"allow", "tcp:*.pypi.test:443", 3, 1, 7}, {"deny", "any#thing", 4, 3, 8}, {"direct-only", "", 6, 1, 1}, {"allow", "[::1]:80", 7, 1, 7},
	}
	got, errs := Parse("f", []byte(text))
	if errs != nil || !slices.Equal(got, want) {
		t.Errorf("%+v, %v; want %+v", got, errs, want)
	}
	if got, errs := Parse("f", nil); got != nil || errs != nil {
		t.Errorf("an empty file: %v, %v", got, errs)
	}
}

// TestErrors: each error says where it is and what to do, and all are told.
func TestErrors(t *testing.T) {
	text := "allow a b c\n" +
		"ok x\n" +
		"allow p\xc3\xbcppe.test\n" +
		"  allow\x1b[2J x\n" +
		"allow x\ry\n" +
		"allow \xff\n" +
		strings.Repeat("x", MaxLine+1) + "\n" +
		strings.Repeat("x", MaxLine) + "\r\n"
	want := []string{
		`f:1:9: "b" is one word too many (a rule has a line of its own, and a comment begins with #)`,
		`f:3:8: '\u00fc' does not belong here (names are written in their ASCII form, xn--...)`,
		`f:4:8: '\x1b' does not belong here`,
		`f:5:8: '\r' does not belong here`,
		`f:6:7: '\ufffd' does not belong here`,
		`f:7:1025: a line of more than 1024 bytes (a rule has a line of its own)`,
	}
	rules, errs := Parse("f", []byte(text))
	if got := strings.Split(errs.Error(), "\n"); !slices.Equal(got, want) {
		t.Errorf("%q, want %q", got, want)
	}
	if len(rules) != 2 {
		t.Errorf("%d rules beside the errors", len(rules))
	}
}

// TestBounds: a file of any size costs what a file may cost.
func TestBounds(t *testing.T) {
	if _, errs := Parse("f", bytes.Repeat([]byte("\n"), MaxSize)); errs != nil {
		t.Error(errs)
	}
	if rules, errs := Parse("f", bytes.Repeat([]byte("\n"), MaxSize+1)); rules != nil || len(errs) != 1 || errs[0].Line != 0 {
		t.Errorf("%v, %v", rules, errs)
	}
	if rules, errs := Parse("f", bytes.Repeat([]byte("a b\n"), MaxRules)); len(rules) != MaxRules || errs != nil {
		t.Errorf("%d rules, %v", len(rules), errs)
	}
	rules, errs := Parse("f", bytes.Repeat([]byte("a b\n"), MaxRules+5))
	if len(rules) != MaxRules || len(errs) != 1 || errs[0].Line != MaxRules+1 {
		t.Errorf("%d rules, %v", len(rules), errs)
	}
	_, errs = Parse("f", bytes.Repeat([]byte("a b c\n"), 1000))
	if len(errs) != MaxErrors+1 || !strings.Contains(errs[MaxErrors].Msg, "too many errors") {
		t.Errorf("%d errors, the last %v", len(errs), errs[len(errs)-1])
	}
}

// TestPrint: what is printed is read as it was.
func TestPrint(t *testing.T) {
	rules := []Rule{{"allow", "tcp:any:443", 1, 1, 7}, {"on", "", 2, 1, 1}, {"deny", "any", 3, 1, 6}}
	if got, errs := Parse("f", Print(rules)); errs != nil || !slices.Equal(got, rules) {
		t.Errorf("%+v, %v", got, errs)
	}
}

// FuzzRulesFile: whatever the bytes, there is no panic and no rule out of bounds, each rule
// stands where it says that it does, and what is printed is read as it was.
func FuzzRulesFile(f *testing.F) {
	for _, s := range []string{
		"allow tcp:*.pypi.test:443 # c\r\ndeny any\n", "\xef\xbb\xbf# x\n\n\tdeny\tany", "allow a b\n\x00\xff\r\r\n", "a#b #c",
	} {
		fuzz.Add(f, []byte(s))
	}
	f.Fuzz(func(t *testing.T, text []byte) {
		rules, errs := Parse("f", text)
		if len(rules) > MaxRules || len(errs) > MaxErrors+1 {
			t.Fatalf("%d rules, %d errors", len(rules), len(errs))
		}
		lines := bytes.Split(bytes.TrimPrefix(text, []byte("\xef\xbb\xbf")), []byte("\n"))
		for _, e := range errs {
			if e.Line > 0 && (e.Line > len(lines) || e.Column < 1 || e.Column > len(lines[e.Line-1])+1) {
				t.Fatalf("an error outside of the text: %v", e)
			}
		}
		for i := range rules {
			r := &rules[i]
			last := r.Verb
			if r.Arg != "" {
				last = r.Arg
			}
			if !bytes.HasPrefix(lines[r.Line-1][r.Column-1:], []byte(last)) {
				t.Fatalf("%+v is not in %q", r, lines[r.Line-1])
			}
		}
		again, errs := Parse("f", Print(rules))
		if errs != nil || len(again) != len(rules) {
			t.Fatalf("printed: %v, %d rules of %d", errs, len(again), len(rules))
		}
		for i := range again {
			if again[i].String() != rules[i].String() {
				t.Fatalf("%q was %q", again[i], rules[i])
			}
		}
	})
}

func ExampleError() {
	fmt.Println(&Error{File: "build.rules", Line: 3, Column: 7, Msg: `"tcp:" has no destination`, Next: "give one"})
	// Output: build.rules:3:7: "tcp:" has no destination (give one)
}
