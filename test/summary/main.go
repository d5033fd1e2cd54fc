// SPDX-License-Identifier: Apache-2.0

// Command summary reads what "go test -json" prints and shows a line for each
// package, the output of what failed, and a last line with the totals. It
// fails when a test, a package or the build failed, and when no test ran.
package main

import (
	"bufio"
	"encoding/json"
	"fmt"
	"os"
	"strings"
)

// event is a line of test2json's output.
type event struct {
	Action     string
	Package    string
	ImportPath string // of build events
	Test       string
	Output     string
}

type summary struct {
	passed, failed, skipped int
	broken                  bool // a package failed, for whatever reason
	output                  map[string]*strings.Builder
}

func main() {
	s := summary{output: map[string]*strings.Builder{}}
	in := bufio.NewScanner(os.Stdin)
	in.Buffer(nil, 16<<20)
	for in.Scan() {
		var e event
		if err := json.Unmarshal(in.Bytes(), &e); err != nil {
			fmt.Println(in.Text()) // not of the test binary: pass it on
			continue
		}
		s.add(e)
	}
	fmt.Printf("%d passed, %d failed, %d skipped\n", s.passed, s.failed, s.skipped)
	if in.Err() != nil || s.broken || s.failed > 0 || s.passed == 0 {
		os.Exit(1)
	}
}

func (s *summary) add(e event) {
	key := e.Package + " " + e.Test
	switch e.Action {
	case "build-output":
		fmt.Print(e.Output)
	case "build-fail":
		s.broken = true
	case "output":
		if s.output[key] == nil {
			s.output[key] = &strings.Builder{}
		}
		s.output[key].WriteString(e.Output)
	case "pass", "fail", "skip":
		s.end(e, key)
	}
}

// end is called at the end of a test, or of a package, whose own output ends
// with go test's line about it.
func (s *summary) end(e event, key string) {
	text := ""
	if b := s.output[key]; b != nil {
		text = b.String()
		delete(s.output, key)
	}
	if e.Test == "" {
		if e.Action == "fail" {
			s.broken = true
			s.unfinished(e.Package)
			fmt.Print(text)
			return
		}
		for line := range strings.Lines(text) {
			if strings.HasPrefix(line, "ok") {
				fmt.Print(line)
			}
		}
		return
	}
	switch e.Action {
	case "pass":
		s.passed++
	case "skip":
		s.skipped++
		fmt.Printf("skipped %s %s%s", e.Package, e.Test, reason(text))
	case "fail":
		s.failed++
		fmt.Print(text)
	}
}

// unfinished shows what the tests of a package printed that have no end:
// those that ran when the test binary died.
func (s *summary) unfinished(pkg string) {
	for key, b := range s.output {
		if strings.HasPrefix(key, pkg+" ") {
			s.failed++
			fmt.Print(b.String())
			delete(s.output, key)
		}
	}
}

// reason returns the last message of a skipped test.
func reason(text string) string {
	last := "\n"
	for line := range strings.Lines(text) {
		if _, msg, ok := strings.Cut(line, "_test.go:"); ok {
			if _, msg, ok = strings.Cut(msg, ": "); ok {
				last = ": " + msg
			}
		}
	}
	return last
}
