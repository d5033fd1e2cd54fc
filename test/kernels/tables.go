// SPDX-License-Identifier: Apache-2.0

package kernels

import (
	"fmt"
	"os"
	"regexp"
	"slices"
	"strings"
)

// Markers of a generated part of a document, which is named between them.
const (
	begin = "<!-- results: %s (made by `make %s`) -->\n"
	end   = "<!-- end of results -->\n"
)

// Fill returns a document with its part of that name made anew.
func Fill(doc, name, target, text string) (string, error) {
	mark := fmt.Sprintf(begin, name, target)
	before, rest, ok := strings.Cut(doc, mark)
	_, after, ended := strings.Cut(rest, end)
	if !ok || !ended {
		return "", fmt.Errorf("no marker %q, or no end of it", strings.TrimSpace(mark))
	}
	return before + mark + "\n" + text + "\n" + end + after, nil
}

// Document returns docs/kernels.md with its tables made of the saved results. All paths
// are from root, the repository's.
func Document(root string) (text string, err error) {
	runs, err := ReadAll(root+"/test/kernels/runs", root+"/docs/kernels")
	if err != nil {
		return "", err
	}
	b, err := os.ReadFile(root + "/docs/kernels.md")
	if err != nil {
		return "", err
	}
	text = string(b)
	for name, part := range map[string]string{"features": Features(runs), "runs": Outcomes(runs), "said": Said(runs)} {
		if text, err = Fill(text, name, "test-kernels", part); err != nil {
			return "", err
		}
	}
	return text, nil
}

// columns are what a kernel has or lacks: the heading, and how the self-test says it.
var columns = []struct{ heading, line string }{
	{"IPv6", `^kernel: IPv6: (yes|no)`},
	{"pings", `^kernel: pings: (yes|no)`},
	{"SO_PEEK_OFF IPv4", `^kernel: SO_PEEK_OFF, TCP and IPv4: (yes|no)`},
	{"IPv6", `^kernel: SO_PEEK_OFF, TCP and IPv6: (yes|no)`},
	{"UDP_GRO", `^kernel: UDP_GRO: (yes|no)`},
	{"UDP segments by the tap", `^kernel: segmentation of UDP by the tap: (yes|no)`},
	{"a socket's namespace", `^kernel: SO_NETNS_COOKIE: (yes|no)`},
	{"Landlock", `^worker: landlock: .*(ABI \d+|missing)`},
	{"MDWE", `^worker: memory-deny-write-execute: (in force|partly|missing)`},
	{"seccomp", `^worker: seccomp worker: (in force|partly|missing)`},
	{"namespaces", `^worker: namespaces: (in force|partly|missing)`},
}

// Features is a table of what each kernel has, by the self-test of an ordinary user; where
// that cannot start, of root.
func Features(runs []*Run) string {
	var b strings.Builder
	b.WriteString("| run | kernel |")
	for _, c := range columns {
		b.WriteString(" " + c.heading + " |")
	}
	b.WriteString("\n|---|---|" + strings.Repeat("---|", len(columns)) + "\n")
	for _, r := range runs {
		if !r.Ran() {
			continue
		}
		fmt.Fprintf(&b, "| %s | %s |", r.Name, r.One("release"))
		for _, c := range columns {
			b.WriteString(" " + r.found(regexp.MustCompile(c.line)) + " |")
		}
		b.WriteString("\n")
	}
	return b.String()
}

// found is what a line of the self-test says, a dash if there is none.
func (r *Run) found(line *regexp.Regexp) string {
	for _, who := range []string{"self-test-user", "self-test-root"} {
		for _, l := range r.Lines[who] {
			if m := line.FindStringSubmatch(l); m != nil {
				return m[1]
			}
		}
	}
	return "–"
}

// Outcomes is a table of what was run where, and how it went.
func Outcomes(runs []*Run) string {
	var b strings.Builder
	b.WriteString("| run | condition | command line | self-test: user, root | programs: user, root | tests |\n|---|---|---|---|---|---|\n")
	for _, r := range runs {
		cmdline := r.One("cmdline")
		if cmdline != "" {
			cmdline = "`" + cmdline + "`"
		}
		if !r.Ran() {
			fmt.Fprintf(&b, "| %s | %s | %s | not run so far | | |\n", r.Name, r.One("what"), cmdline)
			continue
		}
		fmt.Fprintf(&b, "| %s | %s | %s | %s, %s | %s, %s | %s |\n", r.Name, r.One("what"), cmdline,
			r.status("user"), r.status("root"), r.works("user"), r.works("root"), r.passed())
	}
	return b.String()
}

func (r *Run) status(who string) string {
	switch r.One("self-test-" + who + "-status") {
	case "":
		return "–"
	case "0":
		return "all in force"
	}
	return "something is missing"
}

func (r *Run) works(who string) string {
	good, all := 0, 0
	for _, l := range r.Lines["smoke"] {
		if strings.HasPrefix(l, who+": ") {
			all++
			if strings.HasSuffix(l, ": yes") {
				good++
			}
		}
	}
	if all == 0 {
		return "–"
	}
	return fmt.Sprintf("%d of %d", good, all)
}

// passed counts tests, without their parts.
func (r *Run) passed() string {
	n := map[string]int{}
	for _, l := range r.Lines["test"] {
		if what, name, _ := strings.Cut(l, ": "); !strings.Contains(name, "/") {
			n[what]++
		}
	}
	if len(n) == 0 {
		return "–"
	}
	text := fmt.Sprintf("%d passed", n["PASS"])
	if n["SKIP"] > 0 {
		text += fmt.Sprintf(", %d left out", n["SKIP"])
	}
	if n["FAIL"] > 0 {
		text += fmt.Sprintf(", %d failed", n["FAIL"])
	}
	return text
}

// Said lists what programs say where something is missing.
func Said(runs []*Run) string {
	var b strings.Builder
	for _, r := range runs {
		var said []string
		add := func(l string) {
			if !slices.Contains(said, l) {
				said = append(said, l)
			}
		}
		for _, who := range []string{"user", "root"} {
			for _, l := range missing(r.Lines["self-test-"+who]) {
				if !strings.HasSuffix(l, " missing") {
					add(who + ", `--self-test`: " + l)
				}
			}
		}
		for _, l := range r.Lines["smoke"] {
			if !strings.HasSuffix(l, ": yes") {
				add(l)
			}
		}
		if len(said) == 0 {
			continue
		}
		fmt.Fprintf(&b, "**%s**: %s\n\n", r.Name, r.One("what"))
		for _, l := range said {
			b.WriteString("- " + l + "\n")
		}
		b.WriteString("\n")
	}
	return strings.TrimSuffix(b.String(), "\n")
}
