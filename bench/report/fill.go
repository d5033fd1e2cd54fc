// SPDX-License-Identifier: Apache-2.0

package report

import (
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strings"
)

// marker is the line before a generated part of a document, an HTML comment: the
// file with the data, and which of its rows.
var marker = regexp.MustCompile("(?m)^<!-- results: (\\S+?)(?: rows=(\\S.*?))? \\(made by `make performance`\\) -->\n")

// markerEnd is the line after a generated part.
const markerEnd = "<!-- end of results -->\n"

// Fill returns a document with the tables between its markers made anew, from CSV
// files in a folder. A file in the folder that no marker names is an error: its
// results would be shown nowhere.
func Fill(doc, dir string) (string, error) {
	var b strings.Builder
	shown := map[string]bool{}
	for {
		m := marker.FindStringSubmatchIndex(doc)
		if m == nil {
			break
		}
		file := doc[m[2]:m[3]]
		var only *regexp.Regexp
		if m[4] >= 0 {
			var err error
			if only, err = regexp.Compile(doc[m[4]:m[5]]); err != nil {
				return "", fmt.Errorf("%s: %w", file, err)
			}
		}
		t, err := ReadFile(filepath.Join(dir, file))
		if err != nil {
			return "", err
		}
		if only != nil {
			t.Notes = nil // they stand where all rows are
		}
		table := t.Markdown(only)
		_, rest, ended := strings.Cut(doc[m[1]:], markerEnd)
		if !ended || table == "" {
			return "", fmt.Errorf("%s: no end of the marker, or no row", file)
		}
		// A list needs an empty line before it.
		b.WriteString(doc[:m[1]] + "\n" + table + "\n" + markerEnd)
		doc, shown[file] = rest, true
	}
	b.WriteString(doc)
	files, err := filepath.Glob(filepath.Join(dir, "*.csv"))
	if err != nil {
		return "", err
	}
	for _, f := range files {
		if !shown[filepath.Base(f)] {
			return "", fmt.Errorf("%s: no marker names it", f)
		}
	}
	return b.String(), nil
}

// PlotData is the file, in the folder of the results, that TapPlots are drawn of.
const PlotData = "tap-plots.csv"

// Render makes a document's tables and the folder's plots anew.
func Render(doc, dir string) error {
	b, err := os.ReadFile(doc)
	if err != nil {
		return err
	}
	text, err := Fill(string(b), dir)
	if err != nil {
		return err
	}
	t, err := ReadFile(filepath.Join(dir, PlotData))
	if err != nil {
		return err
	}
	if err := t.Draw(dir, TapPlots()); err != nil {
		return err
	}
	return os.WriteFile(doc, []byte(text), 0o644)
}
