// SPDX-License-Identifier: Apache-2.0

package calls

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
)

var constant = regexp.MustCompile(`(?m)^\s+([A-Z][A-Z0-9_]+)\s+= (?:syscall\.Signal\()?(0x[0-9a-f]+|[0-9]+)\)?$`)

// constants returns what x/sys has for one architecture alone, by name.
func constants(t *testing.T, arch string) map[string]uint64 {
	t.Helper()
	out, err := exec.Command("go", "list", "-f", "{{.Dir}}", "golang.org/x/sys/unix").Output()
	if err != nil {
		t.Skipf("where x/sys is: %v", err)
	}
	all := map[string]uint64{}
	for _, file := range []string{"zerrors", "ztypes"} {
		b, err := os.ReadFile(filepath.Join(strings.TrimSpace(string(out)), file+"_linux_"+arch+".go"))
		if err != nil {
			t.Fatal(err)
		}
		for _, m := range constant.FindAllStringSubmatch(string(b), -1) {
			if all[m[1]], err = strconv.ParseUint(m[2], 0, 64); err != nil {
				t.Fatalf("%s: %v", m[0], err)
			}
		}
	}
	return all
}

// TestConstants compares what is named, and what differs elsewhere, with x/sys.
func TestConstants(t *testing.T) {
	var named []naming
	for _, args := range arguments {
		for _, a := range args {
			named = append(named, a.values)
		}
	}
	for _, n := range optionNames {
		named = append(named, n)
	}
	here := constants(t, "amd64")
	for _, arch := range Arches() {
		there, used := constants(t, arch), map[string]bool{}
		for _, n := range named {
			for v, name := range n {
				want, ok := there[name]
				if !ok {
					continue // the same on all architectures, or no constant of the kernel's
				}
				used[name] = true
				if v != here[name] {
					t.Errorf("%s: %#x, is %#x on amd64", name, v, here[name])
				}
				if got := (&argument{values: n}).on(arch, v); got != want {
					t.Errorf("%s: %s: %#x, is %#x", arch, name, got, want)
				}
			}
		}
		for name := range elsewhere[arch] {
			if !used[name] || here[name] == there[name] {
				t.Errorf("%s: %s is in no list, or the same as on amd64", arch, name)
			}
		}
	}
}

// TestConstantsAreCommon: what lists take from x/sys has one value on all
// architectures.
func TestConstantsAreCommon(t *testing.T) {
	files, err := filepath.Glob("*.go")
	if err != nil {
		t.Fatal(err)
	}
	taken := regexp.MustCompile(`\bunix\.([A-Z][A-Z0-9_]+)`)
	here := constants(t, "amd64")
	for _, arch := range Arches() {
		there := constants(t, arch)
		for _, file := range files {
			b, err := os.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			for _, m := range taken.FindAllStringSubmatch(string(b), -1) {
				if here[m[1]] != there[m[1]] {
					t.Errorf("%s: unix.%s is %#x on amd64 and %#x on %s", file, m[1], here[m[1]], there[m[1]], arch)
				}
			}
		}
	}
}

// TestFor: numbers written down once more, from the kernel's headers.
func TestFor(t *testing.T) {
	worker, vhost, reader, broker := Worker(), WorkerVhost(), Reader(), Broker()
	const cloexec, nonblock, noctty = 0o2000000, 0o4000, 0o400
	for _, tt := range []struct {
		list *List
		arch string
		call string
		args [6]uint64
		want bool
	}{
		{&worker, "amd64", "setsockopt", [6]uint64{0, 1, 18}, true}, // SO_RCVLOWAT
		{&worker, "ppc64le", "setsockopt", [6]uint64{0, 1, 16}, true},
		{&worker, "ppc64le", "setsockopt", [6]uint64{0, 1, 18}, false}, // SO_RCVTIMEO there
		{&worker, "riscv64", "setsockopt", [6]uint64{0, 1, 18}, true},
		{&vhost, "ppc64le", "mmap", [6]uint64{0, 0, 3, 0x1 | 0x40}, true},
		{&vhost, "ppc64le", "mmap", [6]uint64{0, 0, 3, 0x1 | 0x4000}, false},
		{&vhost, "riscv64", "mmap", [6]uint64{0, 0, 3, 0x1 | 0x4000}, true},
		{&reader, "amd64", "openat", [6]uint64{2: cloexec | nonblock | noctty | 0o400000}, true},
		{&reader, "amd64", "openat", [6]uint64{2: cloexec | nonblock | noctty | 0o100000}, false},
		{&reader, "arm64", "openat", [6]uint64{2: cloexec | nonblock | noctty | 0o100000}, true},
		{&reader, "arm64", "openat", [6]uint64{2: cloexec | nonblock | noctty | 0o400000}, false},
		{&reader, "riscv64", "openat", [6]uint64{2: cloexec | nonblock | noctty | 0o400000}, true},
		{&reader, "ppc64le", "openat", [6]uint64{2: cloexec | nonblock | noctty | 0o100000}, true},
		{&reader, "ppc64le", "openat", [6]uint64{2: cloexec | nonblock | noctty}, true},
		{&broker, "ppc64le", "getsockopt", [6]uint64{0, 1, 21}, true}, // SO_PEERCRED
		{&broker, "ppc64le", "setsockopt", [6]uint64{0, 1, 19}, true}, // SO_SNDTIMEO
		{&broker, "ppc64le", "open", [6]uint64{1: cloexec}, true},
		{&broker, "amd64", "open", [6]uint64{1: cloexec}, false},
		{&broker, "riscv64", "riscv_hwprobe", [6]uint64{}, true},
		{&broker, "s390x", "clone", [6]uint64{1: 0x400 | 17}, true}, // CLONE_FILES, SIGCHLD
		{&broker, "s390x", "clone", [6]uint64{0: 0x400 | 17}, false},
		{&broker, "amd64", "clone", [6]uint64{1: 0x400 | 17}, false},
		{&worker, "s390x", "mmap", [6]uint64{1 << 40}, true},
		{&broker, "arm64", "riscv_hwprobe", [6]uint64{}, false},
	} {
		l := tt.list.For(tt.arch)
		if got := l.Permits(tt.arch, tt.call, tt.args); got != tt.want {
			t.Errorf("%s on %s: %s%#o: %v", l.Name, tt.arch, tt.call, tt.args, got)
		}
	}
	if l := broker.For("arm64"); !slices.EqualFunc(l.Rules, broker.Rules, func(a, b Rule) bool { return fmt.Sprint(a) == fmt.Sprint(b) }) {
		t.Error("the broker's list differs between amd64 and arm64")
	}
}
