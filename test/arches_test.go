// SPDX-License-Identifier: Apache-2.0

package test

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// archRun is what is kept of one architecture by test/arches.sh: what was looked at, in that
// order, and what came of it.
type archRun struct {
	order []string
	found map[string]string
}

func (r *archRun) add(what, came string) {
	if _, ok := r.found[what]; !ok {
		r.order = append(r.order, what)
	}
	r.found[what] = came
}

// parseArchRun reads lines of a word and what goes with it.
func parseArchRun(text string) *archRun {
	r := &archRun{found: map[string]string{}}
	for line := range strings.Lines(text) {
		word, rest, _ := strings.Cut(strings.TrimSpace(line), " ")
		switch word {
		case "vet", "build", "by":
			r.add(word, rest)
		case "unit":
			pkg, came, _ := strings.Cut(rest, " ")
			r.add(pkg, came)
		}
	}
	return r
}

// archTable is the table of all files that a pattern matches, a column each, named by what
// the file's name has before its first dot.
func archTable(t *testing.T, pattern string) string {
	t.Helper()
	paths, err := filepath.Glob(pattern)
	if err != nil || len(paths) == 0 {
		t.Fatal(pattern, paths, err)
	}
	var runs []*archRun
	var order []string
	head, rule := "| |", "|---|"
	for _, path := range paths {
		r := parseArchRun(read(t, path))
		runs = append(runs, r)
		for _, what := range r.order {
			if !slices.Contains(order, what) {
				order = append(order, what)
			}
		}
		arch, _, _ := strings.Cut(filepath.Base(path), ".")
		head += " " + arch + " |"
		rule += "---|"
	}
	lines := []string{head, rule}
	for _, what := range order {
		line := "| " + what + " |"
		for _, r := range runs {
			line += strings.TrimRight(" "+r.found[what], " ") + " |"
		}
		lines = append(lines, line)
	}
	return strings.Join(lines, "\n") + "\n"
}

// TestArchitecturesTable: the table of docs/architectures.md is what the saved runs say.
func TestArchitecturesTable(t *testing.T) {
	doc, err := os.ReadFile("../docs/architectures.md")
	if err != nil {
		t.Fatal(err)
	}
	if want := archTable(t, "../docs/architectures/*.unit.txt"); !strings.Contains(string(doc), "\n"+want+"\n") {
		t.Errorf("docs/architectures.md does not have what docs/architectures/*.unit.txt say:\n%s", want)
	}
}
