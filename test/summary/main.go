// SPDX-License-Identifier: Apache-2.0

// Command summary reads what "go test -json" prints and shows a line for each
// package, the output of what failed, and a last line with the totals. It
// fails when a test, a package or the build failed, and when no test ran.
//
// With a command behind its options, "go test -json" for one, it runs tests
// that failed once more, alone, if they are few: real kernels on shared
// machines stall now and then. What passes then is named in the end. It is a
// fault all the same, of the test or of what it tests.
package main

import (
	"bufio"
	"encoding/json"
	"flag"
	"fmt"
	"io"
	"os"
	"slices"
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
	broken                  bool // a package failed, and not for its tests alone
	mark                    string
	output                  map[string]*strings.Builder
	failures                failures
	passes                  map[test]bool // of tests that are no part of another
}

// test is one that is no part of another.
type test struct{ pkg, name string }

// failures are the tests that have failed, in their order, and for each how many
// failures it and its parts have made.
type failures struct {
	tests []test
	count map[test]int
}

func newSummary(mark string) *summary {
	return &summary{
		mark: mark, output: map[string]*strings.Builder{},
		failures: failures{count: map[test]int{}}, passes: map[test]bool{},
	}
}

func main() {
	most := flag.Int("again", 3, "run failed tests again if there are at most `N` of them, by the command behind")
	flag.Parse()
	mark := ""
	if flag.NArg() > 0 {
		mark = "| " // it may not be the last word
	}
	s := newSummary(mark)
	err := s.read(os.Stdin)
	var unsteady []test
	if flag.NArg() > 0 && err == nil && !s.broken {
		unsteady = s.again(*most, flag.Args())
	}
	if mark != "" {
		for _, t := range s.failures.tests {
			fmt.Printf("--- FAIL: %s %s\n", t.pkg, t.name)
		}
	}
	for _, t := range unsteady {
		fmt.Printf("failed, and passed when run again, a fault to mend: %s %s\n", t.pkg, t.name)
	}
	fmt.Printf("%d passed, %d failed, %d skipped\n", s.passed, s.failed, s.skipped)
	if err != nil || s.broken || s.failed > 0 || s.passed == 0 {
		os.Exit(1)
	}
}

// read adds all events of a stream.
func (s *summary) read(r io.Reader) error {
	in := bufio.NewScanner(r)
	in.Buffer(nil, 16<<20)
	for in.Scan() {
		var e event
		if err := json.Unmarshal(in.Bytes(), &e); err != nil {
			fmt.Println(in.Text()) // not of the test binary: pass it on
			continue
		}
		s.add(e)
	}
	return in.Err()
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
			s.packageFailed(e.Package, text)
			s.tell(text)
			return
		}
		for line := range strings.Lines(text) {
			if strings.HasPrefix(line, "ok") {
				fmt.Print(line)
			}
		}
		return
	}
	name, _, part := strings.Cut(e.Test, "/")
	t := test{e.Package, name}
	switch e.Action {
	case "pass":
		s.passed++
		s.passes[t] = s.passes[t] || !part
	case "skip":
		s.skipped++
		fmt.Printf("skipped %s %s%s", e.Package, e.Test, reason(text))
	case "fail":
		s.failed++
		s.failures.add(t)
		s.tell(text)
	}
}

func (f *failures) add(t test) {
	if f.count[t]++; f.count[t] == 1 {
		f.tests = append(f.tests, t)
	}
}

// packageFailed shows what the tests of a package printed that have no end: those
// that ran when the test binary died. One that came to its end says FAIL, in a line of
// its own: without, or without any failed test, it has failed for another reason, and
// there may be tests that never ran.
func (s *summary) packageFailed(pkg, text string) {
	known := false
	for _, t := range s.failures.tests {
		known = known || t.pkg == pkg
	}
	known = known && slices.Contains(strings.Split(text, "\n"), "FAIL")
	for key, b := range s.output {
		if strings.HasPrefix(key, pkg+" ") {
			s.failed++
			known = false
			s.tell(b.String())
			delete(s.output, key)
		}
	}
	s.broken = s.broken || !known
}

// tell prints the output of what failed.
func (s *summary) tell(text string) {
	for line := range strings.Lines(text) {
		fmt.Print(s.mark, line)
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
