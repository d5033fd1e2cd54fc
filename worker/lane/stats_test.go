// SPDX-License-Identifier: Apache-2.0

package lane

import (
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"math/rand/v2"
	"os"
	"path/filepath"
	"reflect"
	"regexp"
	"strings"
	"testing"

	"aldente/ipc"
)

// TestStatsLine: what has grown is named with its growth, once.
func TestStatsLine(t *testing.T) {
	l := newWorld(t, rand.New(rand.NewPCG(1, 1)), ipc.LinkTap, 1500, true).l
	s := newStatsLog(l, 5)
	if got := s.line(); got != "" {
		t.Errorf("%q, nothing was counted", got)
	}
	l.Stats.Frames += 7
	l.tcp.Stats.Retransmits += 2
	l.bypass.Stats.Dropped++
	if got, want := s.line(), "lane.Frames=7 tcp.Retransmits=2 bypass.Dropped=1"; got != want {
		t.Errorf("%q, want %q", got, want)
	}
	if got := s.line(); got != "" {
		t.Errorf("%q, told already", got)
	}
}

// TestLinksCounted: what a link has counted is not lost with it, and the next begins
// where it was.
func TestLinksCounted(t *testing.T) {
	w := newWorld(t, rand.New(rand.NewPCG(1, 1)), ipc.LinkStream, 1500, true)
	w.turn() // it has its link then
	s := newStatsLog(w.l, 5)
	w.l.link.Counters().Refused += 3
	w.breakLink()
	w.connectLink()
	w.turn()
	w.l.link.Counters().Refused += 4
	w.l.sumLinks()
	if got := s.line(); !strings.Contains(got, "link.Refused=7") {
		t.Errorf("%q, want link.Refused=7", got)
	}
}

// TestEverythingIsTold: what any part of the worker counts, --stats names, and what
// it names is counted somewhere.
func TestEverythingIsTold(t *testing.T) {
	told := map[string]reflect.Type{}
	for _, c := range newStatsLog(newWorld(t, rand.New(rand.NewPCG(1, 1)), ipc.LinkTap, 1500, true).l, 5).all {
		of := reflect.TypeOf(c.now())
		told[strings.TrimPrefix(of.PkgPath(), "aldente/worker/")+"."+of.Name()] = of
	}
	code := map[string]string{} // by package
	err := filepath.WalkDir("..", func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() || !strings.HasSuffix(path, ".go") || strings.HasSuffix(path, "_test.go") {
			return err
		}
		b, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		f, err := parser.ParseFile(token.NewFileSet(), path, b, 0)
		if err != nil {
			return err
		}
		pkg, _ := filepath.Rel("..", filepath.Dir(path))
		code[pkg] += string(b)
		ast.Inspect(f, func(n ast.Node) bool {
			s, ok := n.(*ast.TypeSpec)
			if ok && (strings.HasSuffix(s.Name.Name, "Stats") || strings.HasSuffix(s.Name.Name, "Counters")) && told[pkg+"."+s.Name.Name] == nil {
				t.Errorf("nobody is told of %s.%s", pkg, s.Name.Name)
			}
			return true
		})
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	if len(told) < 7 {
		t.Errorf("only %d kinds of counters", len(told))
	}
	for name, of := range told {
		pkg, _, _ := strings.Cut(name, ".")
		for i := range of.NumField() {
			field := of.Field(i).Name
			if !regexp.MustCompile(`tats\.` + field + `(\+\+| \+= )|ounters\.` + field + `(\+\+| \+= )`).MatchString(code[pkg]) {
				t.Errorf("%s.%s is counted nowhere", name, field)
			}
		}
	}
}
