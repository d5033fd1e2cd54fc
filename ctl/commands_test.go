// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"os"
	"os/exec"
	"regexp"
	"slices"
	"strings"
	"testing"
)

// ctl runs the program.
func ctl(args ...string) (st int, out string) {
	var o, e bytes.Buffer
	st = run(append([]string{"aldentectl"}, args...), &o, &e)
	return st, o.String() + e.String()
}

// TestArguments: what is wrong with a command line is said in a line, with the next step.
func TestArguments(t *testing.T) {
	for args, want := range map[string]string{
		"status --nothing": "unrecognized option '--nothing'", "status -x": "invalid option '-x'", "status --pid": "option '--pid' requires an argument",
		"status --json=x": "option '--json' doesn't allow an argument", "status here": "'here'", "log-level": "LEVEL is missing",
		"log-level a b": "'b'", "status --pid x": "--pid x is no process number", "completion csh": "csh is none of bash, zsh, fish",
		"list --pid 3": "unrecognized option '--pid'", "\x1b[2J": "no command '?[2J'",
	} {
		st, out := ctl(strings.Split(args, " ")...)
		if st != 1 || !strings.Contains(out, want) || !strings.Contains(out, "--help'") || strings.Count(out, "\n") != 2 {
			t.Errorf("%s: status %d: %q, want %q", args, st, out, want)
		}
	}
	for _, args := range []string{"status --help", "log-level -h", "--help"} {
		st, out := ctl(strings.Fields(args)...)
		if st != 0 || !strings.HasPrefix(out, "Usage: aldentectl ") {
			t.Errorf("%s: status %d: %s", args, st, out)
		}
	}
	for i := range commands {
		if commands[i].run == nil {
			continue
		}
		for line := range strings.Lines(commands[i].usage("aldentectl") + usage("aldentectl")) {
			if len(line) > 80+len("\n") && !strings.HasPrefix(line, strings.ToUpper(commands[i].help[:1])) {
				t.Errorf("%s: a long line: %s", commands[i].name, line)
			}
		}
	}
}

// TestManualCommands: the manual page has the commands that there are, in their order,
// and the options of each.
func TestManualCommands(t *testing.T) {
	b, err := os.ReadFile("../man/aldentectl.1")
	if err != nil {
		t.Fatal(err)
	}
	page := string(b)
	var got, want []string
	for _, m := range regexp.MustCompile(`(?m)^\.It Cm ([a-z-]+)(.*)$`).FindAllStringSubmatch(page, -1) {
		got = append(got, m[1])
	}
	options := map[string]string{}
	for _, m := range regexp.MustCompile(`(?m)^\.It Fl Fl ([a-z-]+)(?: Ar ([a-z-]+))?`).FindAllStringSubmatch(page, -1) {
		options[m[1]] = m[2]
	}
	for i := range commands {
		c := &commands[i]
		want = append(want, c.name)
		for _, f := range c.all() {
			arg, ok := options[f.long]
			if f.long != flagHelp.long && (!ok || arg != strings.ToLower(f.arg)) {
				t.Errorf("%s: the page lacks --%s %s", c.name, f.long, f.arg)
			}
		}
		if c.run != nil && c.args != "" && !regexp.MustCompile(`(?m)^\.It Cm `+c.name+` .*\bAr `).MatchString(page) {
			t.Errorf("%s: the page lacks %s", c.name, c.args)
		}
	}
	if !slices.Equal(got, want) {
		t.Errorf("the page has %q, there are %q", got, want)
	}
	for name := range options {
		if !slices.ContainsFunc(commands, func(c command) bool {
			return slices.ContainsFunc(c.all(), func(f flag) bool { return f.long == name })
		}) {
			t.Errorf("--%s of the page is no option", name)
		}
	}
}

// TestCompletions: the scripts are accepted by their shells, and bash completes
// commands, their options, and values.
func TestCompletions(t *testing.T) {
	for _, shell := range []string{"bash", "zsh", "fish"} {
		st, script := ctl("completion", shell)
		if st != 0 {
			t.Fatalf("%s: status %d: %s", shell, st, script)
		}
		for i := range commands {
			c := &commands[i]
			for _, f := range c.all() {
				if !strings.Contains(script, c.name) || !strings.Contains(script, "-"+f.long) && !strings.Contains(script, "-l "+f.long) {
					t.Errorf("%s: %s --%s is not completed", shell, c.name, f.long)
				}
			}
		}
		if path, err := exec.LookPath(shell); err == nil {
			run := exec.Command(path, "-n")
			run.Stdin = strings.NewReader(script)
			if out, err := run.CombinedOutput(); err != nil {
				t.Errorf("%s: %v: %s", shell, err, out)
			}
		}
	}
	if _, err := exec.LookPath("bash"); err != nil {
		t.Skip("needs bash")
	}
	_, script := ctl("completion", "bash")
	for line, want := range map[string]string{
		"aldentectl sta": "status", "aldentectl status --j": "--json", "aldentectl log-level d": "debug", "aldentectl log-level --js": "--json",
		"aldentectl completion z": "zsh", "aldentectl --ver": "--version", "aldentectl pesto --cl": "--clear", "aldentectl status --socket ../man/pes": "../man/pesto.1",
	} {
		out, err := exec.Command("bash", "-c", script+`
			compopt() { :; }
			read -ra COMP_WORDS <<<"$1"; COMP_CWORD=$((${#COMP_WORDS[@]} - 1)); _aldentectl; echo "${COMPREPLY[*]}"`, "bash", line).CombinedOutput()
		if got := strings.TrimSpace(string(out)); err != nil || got != want {
			t.Errorf("%s: %q, %v, want %q", line, got, err, want)
		}
	}
}
