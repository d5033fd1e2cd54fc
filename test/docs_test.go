// SPDX-License-Identifier: Apache-2.0

package test

import (
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

// TestDocumentedTests looks for each test that docs/testing.md names.
func TestDocumentedTests(t *testing.T) {
	doc, err := os.ReadFile(filepath.Join("..", "docs", "testing.md"))
	if err != nil {
		t.Fatal(err)
	}
	names := map[string]bool{}
	for _, m := range regexp.MustCompile("`((Test|Fuzz)[A-Za-z0-9]+)`").FindAllSubmatch(doc, -1) {
		names[string(m[1])] = true
	}
	if len(names) < 50 {
		t.Errorf("only %d tests are named", len(names))
	}
	function := regexp.MustCompile(`(?m)^func ((Test|Fuzz)[A-Za-z0-9]+)\(`)
	err = filepath.WalkDir("..", func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() || !strings.HasSuffix(path, "_test.go") {
			return err
		}
		b, err := os.ReadFile(path)
		for _, m := range function.FindAllSubmatch(b, -1) {
			delete(names, string(m[1]))
		}
		return err
	})
	if err != nil {
		t.Error(err)
	}
	for n := range names {
		t.Errorf("there is no %s", n)
	}
}
