// SPDX-License-Identifier: Apache-2.0

package policy

import (
	"errors"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/landlock-lsm/go-landlock/landlock"
	llsyscall "github.com/landlock-lsm/go-landlock/landlock/syscall"
	"golang.org/x/sys/unix"
)

func TestReport(t *testing.T) {
	var r Report
	r.Add(Layer{"a", InForce, ""}, Layer{"b", Partial, "old kernel"})
	if err := r.Err(); err != nil {
		t.Errorf("nothing is missing: %v", err)
	}
	r.Add(Layer{Name: "c", Detail: "refused"})
	err := r.Err()
	if !errors.Is(err, ErrNotConfined) || !strings.Contains(err.Error(), "c: missing (refused)") {
		t.Errorf("%v", err)
	}
	if got, want := r[1].String(), "b: partly in force (old kernel)"; got != want {
		t.Errorf("%q, want %q", got, want)
	}
}

// TestLandlockRights compares with the library's presets, which are built from
// the kernel's documentation independently of our table.
func TestLandlockRights(t *testing.T) {
	presets := []landlock.Config{{}, landlock.V1, landlock.V2, landlock.V3, landlock.V4, landlock.V5,
		landlock.V6, landlock.V7, landlock.V8, landlock.V9, landlock.V10}
	for abi, want := range presets {
		r := rights(abi)
		if r.fs != want.HandledAccessFS || r.net != want.HandledAccessNet || r.scope != want.Scoped {
			t.Errorf("ABI %d: %v %v %v, want %v", abi, r.fs, r.net, r.scope, want)
		}
	}
	newest := rights(len(presets) - 1)
	if r := rights(99); r.fs != newest.fs || r.net != newest.net || r.scope != newest.scope {
		t.Error("rights of an unknown ABI differ from the newest known")
	}
}

// TestSocketsGranted: a directory of sockets stays within reach where the kernel would take
// it away, and no rule is made where it could not, which it would refuse.
func TestSocketsGranted(t *testing.T) {
	for abi := range 11 {
		got := grants(llsyscall.AccessFSResolveUnix&rights(abi).fs, []string{"/", "/nonexistent"})
		if want := map[bool]int{true: 1}[abi >= 9]; len(got) != want {
			t.Errorf("ABI %d: %d rules, want %d", abi, len(got), want)
		}
	}
}

func TestArguments(t *testing.T) {
	all := ParseNamespaces("user,mnt,net,pid,ipc,uts,cgroup")
	for _, a := range []Arguments{
		{Stage: StageEnter, Mode: "tap", Namespaces: all},
		{Stage: StageRun, Mode: "stream", Strict: true, Files: 4096, Extra: "attempt=x y"},
		{Stage: StageRun, Mode: "tap", Namespaces: unix.CLONE_NEWNET, Debug: true, FileSize: -1},
		{Stage: StageReplace, Mode: "tap", FileSize: 1 << 40},
	} {
		got, err := ParseArguments(a.Strings())
		if err != nil {
			t.Errorf("%+v: %v", a, err)
		}
		if d := cmp.Diff(a, got); d != "" {
			t.Error(d)
		}
	}
	good := (&Arguments{Stage: StageRun, Mode: "tap"}).Strings()
	for i, bad := range []string{1: "fly", 2: "pigeon", 4: "perhaps", 5: "", 6: "much", 7: "-1"} {
		if bad == "" && i != 5 {
			continue
		}
		argv := append([]string(nil), good...)
		argv[i] = bad
		if _, err := ParseArguments(argv); err == nil {
			t.Errorf("accepted %q", argv)
		}
	}
	if _, err := ParseArguments([]string{"aldente-worker"}); err == nil {
		t.Error("accepted no arguments")
	}
}

func TestNamespaceNames(t *testing.T) {
	var all uintptr
	for _, n := range Namespaces {
		all |= n.Flag
	}
	const names = "user,mnt,net,pid,ipc,uts,cgroup"
	if got := NamespaceNames(all); got != names {
		t.Errorf("%s", got)
	}
	if got := ParseNamespaces(names); got != all {
		t.Errorf("%#x, want %#x", got, all)
	}
	if got := ParseNamespaces(""); got != 0 {
		t.Errorf("%#x of nothing", got)
	}
}

func TestAtLeast(t *testing.T) {
	if !atLeast(3, 0) || atLeast(1000, 0) {
		t.Error("kernel is older than 3.0 or newer than 1000.0")
	}
}
