// SPDX-License-Identifier: Apache-2.0

// Package kernels reads what virtual machines with other kernels have said of our
// programs (run.sh), keeps it as files, and makes tables of these for docs/kernels.md.
package kernels

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
)

// Run is what one machine has said: for each word the lines of that kind, in order.
type Run struct {
	Name  string              // the file's, without suffix
	Lines map[string][]string // by their word, see kinds
}

// kinds are the words that are kept, in the order of a file.
var kinds = []string{
	"release", "machine", "modules", "note",
	"self-test-user", "self-test-user-status", "self-test-root", "self-test-root-status",
	"label", "smoke", "test", "tests", "kernel-log", "denied",
}

// sorted are those whose order is that of processes that start side by side.
var sorted = []string{"self-test-user", "self-test-root"}

// varies matches what differs from run to run and means nothing.
var varies = regexp.MustCompile(`, within [0-9.]+m?s|\bpid \d+|^\[ *[0-9.]+\] `)

// Read reads the lines of one machine or file: a word, a tab, and what it says. From a line
// of the kind "condition" on it is another run, whose name has that behind a hyphen.
func Read(name string, r io.Reader) (runs []*Run, err error) {
	run := &Run{Name: name, Lines: map[string][]string{}}
	runs = append(runs, run)
	in := bufio.NewScanner(r)
	in.Buffer(nil, 1<<20)
	for in.Scan() {
		kind, text, ok := strings.Cut(in.Text(), "\t")
		if strings.HasPrefix(kind, "#") || !ok {
			continue
		}
		if kind == "condition" {
			run = &Run{Name: name + "-" + text, Lines: map[string][]string{}}
			runs = append(runs, run)
			continue
		}
		run.Lines[kind] = append(run.Lines[kind], varies.ReplaceAllString(strings.TrimSpace(text), ""))
	}
	for _, run := range runs {
		for _, kind := range sorted {
			slices.Sort(run.Lines[kind])
		}
	}
	return runs, in.Err()
}

// fields are what a line of the list of runs has, behind its name.
var fields = []string{"suite", "arch", "cmdline", "what", "expect"}

// List reads the list of runs: what is told of each, and nothing that it says.
func List(file string) (runs []*Run, err error) {
	b, err := os.ReadFile(file)
	if err != nil {
		return nil, err
	}
	for line := range strings.Lines(string(b)) {
		line = strings.TrimSuffix(line, "\n")
		f := strings.SplitN(line, "|", 1+len(fields))
		if strings.HasPrefix(line, "#") {
			continue
		}
		if len(f) != 1+len(fields) {
			return nil, fmt.Errorf("%s: %q has not %d fields", file, line, 1+len(fields))
		}
		run := &Run{Name: f[0], Lines: map[string][]string{}}
		for i, kind := range fields {
			if f[1+i] != "" {
				run.Lines[kind] = []string{f[1+i]}
			}
		}
		runs = append(runs, run)
	}
	return runs, nil
}

// ReadAll reads the list of runs, and what each has said, from a folder; one that has no
// file there says nothing (Run.Ran). A file that no line is for is an error.
func ReadAll(list, dir string) (runs []*Run, err error) {
	if runs, err = List(list); err != nil {
		return nil, err
	}
	files, err := filepath.Glob(filepath.Join(dir, "*.txt"))
	if err != nil {
		return nil, err
	}
	for _, run := range runs {
		file := filepath.Join(dir, run.Name+".txt")
		f, err := os.Open(file)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return nil, err
		}
		said, err := Read(run.Name, f)
		f.Close()
		if err != nil || len(said) != 1 {
			return nil, fmt.Errorf("%s: %d runs, %w", file, len(said), err)
		}
		said[0].Tell(run)
		*run = *said[0]
		files = slices.DeleteFunc(files, func(f string) bool { return f == file })
	}
	if len(files) > 0 {
		return nil, fmt.Errorf("%s has no line for %v", list, files)
	}
	return runs, nil
}

// Ran tells whether there are results.
func (r *Run) Ran() bool { return r.One("release") != "" }

// Tell adds what the list has of a run.
func (r *Run) Tell(listed *Run) {
	for _, kind := range fields {
		if l := listed.Lines[kind]; l != nil {
			r.Lines[kind] = l
		}
	}
}

// Write writes what is kept of a run.
func (r *Run) Write(w io.Writer) error {
	var b strings.Builder
	b.WriteString("# SPDX-License-Identifier: Apache-2.0\n# Said by a virtual machine.\n")
	for _, kind := range kinds {
		for _, text := range r.Lines[kind] {
			fmt.Fprintf(&b, "%s\t%s\n", kind, text)
		}
	}
	_, err := io.WriteString(w, b.String())
	return err
}

// One returns the only line of a kind, or nothing.
func (r *Run) One(kind string) string {
	if l := r.Lines[kind]; len(l) > 0 {
		return l[0]
	}
	return ""
}

// Faults are the lines that should not be there: tests that fail, programs that do not
// work where the run does not expect that, layers that are missing unexpectedly, calls
// that the kernel has killed a process for, what a security module has denied.
func (r *Run) Faults() (faults []string, err error) {
	expected := regexp.MustCompile(`^$`)
	if e := r.One("expect"); e != "" {
		if expected, err = regexp.Compile(e); err != nil {
			return nil, fmt.Errorf("what %s expects: %w", r.Name, err)
		}
	}
	add := func(text string) {
		if !expected.MatchString(text) {
			faults = append(faults, text)
		}
	}
	for _, who := range []string{"user", "root"} {
		lines := r.Lines["self-test-"+who]
		if len(lines) == 0 && len(r.Lines["smoke"]) > 0 {
			faults = append(faults, who+": no self-test")
		}
		for _, l := range missing(lines) {
			add(who + ": self-test: " + l)
		}
	}
	for _, l := range r.Lines["smoke"] {
		if !strings.HasSuffix(l, ": yes") {
			add(l)
		}
	}
	for _, l := range r.Lines["test"] {
		if strings.HasPrefix(l, "FAIL") {
			add(l)
		}
	}
	for _, l := range r.Lines["tests"] {
		if !strings.HasSuffix(l, " status 0") {
			add("tests: " + l)
		}
	}
	for _, l := range slices.Concat(r.Lines["kernel-log"], r.Lines["denied"]) {
		add("kernel: " + l)
	}
	return faults, nil
}

// missing are the lines of a self-test that tell of what it counts, and of an error.
func missing(lines []string) (out []string) {
	for _, l := range lines {
		who, what, ok := strings.Cut(l, ": ")
		known := ok && slices.Contains([]string{"worker", "names", "agent", "broker", "kernel"}, who)
		if l == "all layers are in force" || known && !strings.Contains(what, ": missing") && !strings.Contains(what, "FAILED") {
			continue
		}
		out = append(out, l)
	}
	return out
}
