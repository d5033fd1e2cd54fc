// SPDX-License-Identifier: Apache-2.0

package supervise

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"aldente/policy"
)

// TestSeenFromOutside reads /proc of a running worker, and of one that replaced
// it.
func TestSeenFromOutside(t *testing.T) {
	p := newPrison(t, func(o *Options) { o.Extra = "attempt=threads" })
	p.start(t)
	for _, which := range []string{"first", "replacement"} {
		p.await(t)
		p.outcome(t)
		if strings.Contains(p.log.String(), "missing") {
			t.Skipf("this system lacks a layer:\n%s", p.log)
		}
		t.Run(which, func(t *testing.T) { seenFromOutside(t, fmt.Sprintf("/proc/%d", p.Pid())) })
		p.Kill()
		p.died(t)
	}
}

func seenFromOutside(t *testing.T, proc string) {
	t.Run("namespaces", func(t *testing.T) {
		for _, n := range policy.Namespaces {
			own := readlink(t, "/proc/self/ns/"+n.Name)
			if its := readlink(t, filepath.Join(proc, "ns", n.Name)); its == own {
				t.Errorf("%s namespace is the broker's: %s", n.Name, its)
			}
		}
	})
	t.Run("root", func(t *testing.T) {
		entries, err := os.ReadDir(proc + "/root/")
		if err != nil || len(entries) != 0 {
			t.Errorf("%d entries, %v", len(entries), err)
		}
		mounts := strings.TrimSpace(readFile(t, proc+"/mountinfo"))
		if strings.Contains(mounts, "\n") || !strings.Contains(mounts, " / / ro,nosuid,nodev,noexec") {
			t.Errorf("mounts:\n%s", mounts)
		}
	})
	t.Run("threads", func(t *testing.T) {
		tasks, err := os.ReadDir(proc + "/task")
		if err != nil || len(tasks) == 0 {
			t.Fatalf("%d threads, %v", len(tasks), err)
		}
		for _, task := range tasks {
			checkStatus(t, filepath.Join(proc, "task", task.Name(), "status"))
		}
	})
	t.Run("environment", func(t *testing.T) {
		env := readFile(t, proc+"/environ")
		if want := "GODEBUG=asyncpreemptoff=1\x00GOMAXPROCS=1\x00"; env != want {
			// Not the text: it may be what the tests were started with.
			t.Errorf("%d variables in %d bytes, want %q", strings.Count(env, "\x00"), len(env), want)
		}
	})
	t.Run("limits", func(t *testing.T) {
		limits := readFile(t, proc+"/limits")
		for _, what := range []string{"Max core file size", "Max locked memory", "Max msgqueue size"} {
			if got := limitLine(limits, what); !strings.HasPrefix(got, "0 ") {
				t.Errorf("%s: %q", what, got)
			}
		}
		if got, want := limitLine(limits, "Max open files"), limitLine(readFile(t, "/proc/self/limits"), "Max open files"); got != want {
			t.Errorf("open files %q, want the broker's %q", got, want)
		}
	})
	t.Run("descriptors", func(t *testing.T) {
		checkDescriptors(t, proc)
	})
	t.Run("name", func(t *testing.T) {
		if got := strings.TrimSpace(readFile(t, proc+"/comm")); got != Worker.File {
			t.Errorf("comm %q", got)
		}
	})
}

// checkStatus wants a thread without any privilege.
func checkStatus(t *testing.T, path string) {
	t.Helper()
	const none = "0000000000000000"
	want := map[string]string{"CapInh": none, "CapPrm": none, "CapEff": none, "CapBnd": none, "CapAmb": none,
		"NoNewPrivs": "1", "Seccomp": "2", "Seccomp_filters": "2"}
	for line := range strings.Lines(readFile(t, path)) {
		key, value, _ := strings.Cut(line, ":")
		if w, ok := want[key]; ok {
			if got := strings.TrimSpace(value); got != w {
				t.Errorf("%s: %s %s, want %s", path, key, got, w)
			}
			delete(want, key)
		}
	}
	for key := range want {
		t.Errorf("%s: no %s", path, key)
	}
}

// checkDescriptors wants nothing that the broker did not pass: null, null, log
// pipe, channel, those of newHeld, and the runtime's own epoll and eventfd.
func checkDescriptors(t *testing.T, proc string) {
	t.Helper()
	entries, err := os.ReadDir(proc + "/fd")
	if err != nil {
		t.Fatal(err)
	}
	count := map[string]int{}
	for _, e := range entries {
		kind, _, _ := strings.Cut(readlink(t, filepath.Join(proc, "fd", e.Name())), ":[")
		if strings.HasPrefix(kind, os.TempDir()) {
			kind = "pcap"
		}
		count[kind]++
	}
	want := map[string]int{os.DevNull: 2, "pipe": 3, "socket": 5, "anon_inode": 2, "pcap": 1}
	for kind, n := range count {
		// One more where ping sockets are permitted.
		if want[kind] != n && !(kind == "socket" && n == 6) {
			t.Errorf("%d of %s, want %d", n, kind, want[kind])
		}
	}
}

func limitLine(limits, what string) string {
	for line := range strings.Lines(limits) {
		if rest, ok := strings.CutPrefix(line, what); ok {
			return strings.Join(strings.Fields(rest), " ")
		}
	}
	return "none"
}

func readlink(t *testing.T, path string) string {
	t.Helper()
	s, err := os.Readlink(path)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func readFile(t *testing.T, path string) string {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}
