// SPDX-License-Identifier: Apache-2.0

package policy

import (
	"fmt"
	"go/build"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

func TestCheckVector(t *testing.T) {
	for name, tt := range map[string]struct {
		v    [][2]uintptr
		want error
	}{
		"static":           {[][2]uintptr{{3, 0x400040}, {7, 0}, {9, 0x401000}, {0, 0}}, nil},
		"with interpreter": {[][2]uintptr{{3, 0x400040}, {7, 0x7f000000}, {9, 0x401000}, {0, 0}}, ErrNotStatic},
		"the last pair":    {[][2]uintptr{{0, 0}, {7, 1}}, ErrNotStatic},
		"a value of 7":     {[][2]uintptr{{3, 7}, {9, 7}}, nil},
		"empty":            {nil, nil},
	} {
		if got := checkVector(tt.v); got != tt.want {
			t.Errorf("%s: %v, want %v", name, got, tt.want)
		}
	}
}

// TestExecutableKinds builds a program in each way and has it look at itself.
func TestExecutableKinds(t *testing.T) {
	dir := t.TempDir()
	source := filepath.Join(dir, "main.go")
	text := "package main\n\nimport \"aldente/policy\"\n\nfunc main() {\n\tif err := policy.CheckExecutable(); err != nil {\n\t\tpanic(err)\n\t}\n}\n"
	if err := os.WriteFile(source, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct {
		mode string
		fine bool
	}{{"exe", true}, {"pie", false}} {
		exe := filepath.Join(dir, tt.mode)
		cmd := exec.Command("go", "build", "-buildmode="+tt.mode, "-o", exe, source)
		cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Skipf("%v\n%s", err, out)
		}
		out, err := exec.Command(exe).CombinedOutput()
		if tt.fine != (err == nil) || !tt.fine && !strings.Contains(string(out), "CGO_ENABLED=0") {
			t.Errorf("-buildmode=%s: %v\n%s", tt.mode, err, out)
		}
	}
}

// TestOtherArchitectures: whatever has no filters does not build, for the reason
// that arch_other.go gives.
func TestOtherArchitectures(t *testing.T) {
	for _, arch := range []string{"386", "amd64", "arm", "arm64", "loong64", "mips", "mips64le", "ppc64le", "riscv64", "s390x"} {
		c := build.Default
		c.GOARCH, c.GOOS = arch, "linux"
		stops, err := c.MatchFile(".", "arch_other.go")
		if err != nil {
			t.Fatal(err)
		}
		_, missing := fs.Stat(filters, "filters/"+FilterBroker+filterSuffix+"_"+arch+".bpf")
		if stops != (missing != nil) {
			t.Errorf("%s: the build stops: %v; filters: %v", arch, stops, missing)
		}
	}
	cmd := exec.Command("go", "build", ".")
	cmd.Env = append(os.Environ(), "GOARCH=loong64", "CGO_ENABLED=0")
	if testing.Short() {
		t.Skip("builds the standard library for another architecture")
	}
	out, err := cmd.CombinedOutput()
	if err == nil || !strings.Contains(string(out), "there_are_no_seccomp_filters_for_this_architecture") {
		t.Errorf("%v\n%s", err, out)
	}
}

// TestExecHint: a program that a kernel or a security module does not let us execute.
func TestExecHint(t *testing.T) {
	for err, want := range map[error]string{
		unix.ENOENT:                         "tomoyo",
		unix.ENOEXEC:                        "no program",
		fmt.Errorf("exec: %w", unix.EACCES): "security module",
		unix.ENOMEM:                         "",
	} {
		if got := ExecHint(err); want == "" && got != "" || !strings.Contains(got, want) {
			t.Errorf("%v: %q", err, got)
		}
	}
}
