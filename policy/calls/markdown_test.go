// SPDX-License-Identifier: Apache-2.0

package calls

import (
	"os"
	"strings"
	"testing"
)

// TestSecurityTables compares the tables of docs/security-calls.md with the lists: a list
// cannot be loosened without the document saying so.
func TestSecurityTables(t *testing.T) {
	b, err := os.ReadFile("../../docs/security-calls.md")
	if err != nil {
		t.Fatal(err)
	}
	want, err := Fill(string(b))
	if err != nil {
		t.Fatal(err)
	}
	if want != string(b) {
		t.Error("docs/security-calls.md is not what `make generate` makes of it")
	}
}

func TestTableNamesEverything(t *testing.T) {
	for _, l := range All() {
		text, err := l.Table()
		if err != nil {
			t.Error(err)
		}
		for _, r := range l.Rules {
			if !strings.Contains(text, "| `"+r.Call+"` |") {
				t.Errorf("%s: no row for %s", l.Name, r.Call)
			}
		}
	}
	unnamed := List{Name: "x", Rules: []Rule{{Call: "socket", Args: []Arg{is(0, 44)}}}}
	if _, err := unnamed.Table(); err == nil {
		t.Error("a value without a name is not noticed")
	}
}

// TestNamesUsed: what has a name is in a list.
func TestNamesUsed(t *testing.T) {
	tables, err := Tables()
	if err != nil {
		t.Fatal(err)
	}
	var all string
	for _, text := range tables {
		all += text
	}
	check := func(n naming) {
		for _, name := range n {
			if !strings.Contains(all, name) {
				t.Errorf("%s is in no list", name)
			}
		}
	}
	for _, args := range arguments {
		for _, a := range args {
			check(a.values)
		}
	}
	for _, n := range optionNames {
		check(n)
	}
}
