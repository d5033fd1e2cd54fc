// SPDX-License-Identifier: Apache-2.0

package test

import (
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"aldente/test/netlab"
)

// TestVersion: what a tree says it is, by its tag, its VERSION, or both; and nothing where they
// contradict each other.
func TestVersion(t *testing.T) {
	netlab.Have(t, "git")
	const day = "1700000000"
	run := func(dir string, args ...string) string {
		t.Helper()
		c := exec.Command(args[0], args[1:]...)
		c.Dir = dir
		c.Env = append(os.Environ(), "GIT_AUTHOR_DATE="+day+" +0000", "GIT_COMMITTER_DATE="+day+" +0000", "GIT_CONFIG_GLOBAL=/dev/null", "GIT_CONFIG_SYSTEM=/dev/null",
			"GIT_AUTHOR_NAME=a", "GIT_AUTHOR_EMAIL=a@example.org", "GIT_COMMITTER_NAME=a", "GIT_COMMITTER_EMAIL=a@example.org")
		out, err := c.CombinedOutput()
		if err != nil {
			return "error: " + string(out)
		}
		return strings.TrimSpace(string(out))
	}
	tree := func(dir, version string) {
		t.Helper()
		if err := os.MkdirAll(filepath.Join(dir, "packaging"), 0o755); err != nil {
			t.Fatal(err)
		}
		for name, text := range map[string]string{"packaging/version.sh": read(t, "../packaging/version.sh"), "VERSION": version + "\n"} {
			if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o755); err != nil {
				t.Fatal(err)
			}
		}
	}
	dir := t.TempDir()
	tree(dir, "1.2.3")
	check := func(what, dir, want string) {
		t.Helper()
		if got := run(dir, "packaging/version.sh"); got != want && !(strings.HasPrefix(want, "error: ") && strings.Contains(got, strings.TrimPrefix(want, "error: "))) {
			t.Errorf("%s: %q, want %q", what, got, want)
		}
	}
	check("no repository", dir, "1.2.3-dev unknown 0")
	run(dir, "git", "init", "-q")
	check("no commit", dir, "1.2.3-dev unknown 0")
	run(dir, "git", "add", ".")
	run(dir, "git", "commit", "-q", "-m", "x")
	head := run(dir, "git", "rev-parse", "HEAD")
	check("a commit", dir, "1.2.3-dev "+head+" "+day)
	run(dir, "git", "tag", "v1.2.3")
	check("a tag", dir, "1.2.3 "+head+" "+day)
	tree(dir, "1.2.4")
	check("changed since", dir, "error: the tag is v1.2.3, and VERSION has 1.2.4")
	tree(dir, "1.2.3")
	if err := os.WriteFile(filepath.Join(dir, "packaging/version.sh"), []byte(read(t, "../packaging/version.sh")+"#\n"), 0o755); err != nil {
		t.Fatal(err)
	}
	check("changed, with the tag", dir, "1.2.3-dev "+head+"-dirty "+day)
	// A source archive that was unpacked somewhere in there is no part of it.
	below := filepath.Join(dir, "build", "aldente")
	tree(below, "1.0.0 0123abc 42")
	check("an archive", below, "1.0.0 0123abc 42")
	tree(below, "1.0.0")
	check("below another repository", below, "1.0.0-dev unknown 0")
}

func read(t *testing.T, path string) string {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

// TestProgramsTellVersion: all programs, by each name, tell what they are built of.
func TestProgramsTellVersion(t *testing.T) {
	needOurs(t)
	const version = `\d+\.\d+\.\d+(-dev)?`
	const rest = `\n(commit: [0-9a-f]{40}(-dirty)?\n)?Licensed under the Apache License, Version 2\.0\. There is no warranty\.\n$`
	for name, first := range map[string]string{
		"aldente": "^aldente " + version, "pasta": "^pasta " + version + ` \(aldente\)`, "passt": "^passt " + version + ` \(aldente\)`,
		"slirp4netns": "^slirp4netns version " + version + ` \(aldente\)`, "aldentectl": "^aldentectl " + version + ` \(aldente\)`, "pesto": "^pesto " + version + ` \(aldente\)`,
	} {
		out, err := exec.Command(filepath.Join(netlab.Stage(), name), "--version").CombinedOutput()
		if err != nil || !regexp.MustCompile(first+rest).Match(out) {
			t.Errorf("%s: %v\n%s", name, err, out)
		}
	}
}

// TestPackagedLicenses: the Debian packages name the license of each module that comes along,
// and of no other.
func TestPackagedLicenses(t *testing.T) {
	// Known to the module, and no package of theirs is needed.
	without := map[string]bool{"github.com/vishvananda/netlink": true}
	modules := map[string]bool{}
	for _, m := range regexp.MustCompile(`(?m)^\t(\S+) v`).FindAllStringSubmatch(read(t, "../go.mod"), -1) {
		modules[m[1]] = !without[m[1]]
	}
	if len(modules) < 10 {
		t.Fatalf("go.mod: %v", modules)
	}
	for _, m := range regexp.MustCompile(`(?m)^Files: vendor/(\S+)/\*$`).FindAllStringSubmatch(read(t, "../packaging/debian/copyright"), -1) {
		if !modules[m[1]] {
			t.Errorf("packaging/debian/copyright has %s, and go.mod has not", m[1])
		}
		delete(modules, m[1])
	}
	for m, comes := range modules {
		if comes {
			t.Errorf("packaging/debian/copyright lacks %s", m)
		}
	}
}
