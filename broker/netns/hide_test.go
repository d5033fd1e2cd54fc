// SPDX-License-Identifier: Apache-2.0

package netns

import (
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"aldente/broker/fork"
)

// hidden runs a shell's script with hidden sockets, in a working directory, and
// returns what it prints.
func hidden(t *testing.T, dir, script string, change func(*Command)) string {
	t.Helper()
	out, err := os.CreateTemp(t.TempDir(), "out")
	if err != nil {
		t.Fatal(err)
	}
	defer out.Close()
	stdout, err := unix.FcntlInt(1, unix.F_DUPFD_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(stdout)
	t.Chdir(dir)
	c := Command{Path: "sh", Args: []string{"sh", "-c", script}, HideSockets: true, UID: os.Geteuid(), GID: os.Getegid()}
	if change != nil {
		change(&c)
	}
	unix.Dup3(int(out.Fd()), 1, 0)
	child, err := Create(c)
	unix.Dup3(stdout, 1, 0)
	if err != nil {
		t.Skipf("needs user namespaces: %v", err)
	}
	warnings, err := child.Ready()
	if err != nil {
		child.Kill()
		t.Skipf("needs mounts: %v", err)
	}
	if len(warnings) > 0 {
		t.Errorf("warnings: %q", warnings)
	}
	if err := child.Release(); err != nil {
		t.Fatal(err)
	}
	if status, err := child.Wait(); status != 0 || err != nil {
		t.Errorf("status %d, %v", status, err)
	}
	child.Close()
	b, err := os.ReadFile(out.Name())
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

// TestHiddenWorld: sockets of the host's are out of reach, what is beside them is
// there, and what is new is the command's to write.
func TestHiddenWorld(t *testing.T) {
	dir, err := os.MkdirTemp("/tmp", "aldente")
	if err != nil {
		t.Skip(err)
	}
	defer os.RemoveAll(dir)
	l, err := net.Listen("unix", filepath.Join(dir, "socket"))
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	dirs := hiddenDirs()
	if len(dirs) == 0 {
		t.Skip("nothing to hide")
	}
	t.Setenv("XDG_RUNTIME_DIR", dirs[0]+"/user/1")
	got := hidden(t, "/", `
		test -e `+dir+` && echo socket is there
		test -d /usr/bin && test -r /etc/passwd && echo files
		echo x >/tmp/new && test -s /tmp/new && echo writes /tmp
		test -d "$XDG_RUNTIME_DIR" && echo y >"$XDG_RUNTIME_DIR/new" && echo writes runtime
		(echo z >/new) 2>/dev/null && echo writes root
		umount /tmp 2>/dev/null && test -e `+dir+` && echo uncovered
		pwd
		for i in /run/* /var/run/*; do test -S "$i" && echo "$i"; done; :`, nil)
	if want := "files\nwrites /tmp\nwrites runtime\n/\n"; got != want {
		t.Errorf("%q, want %q", got, want)
	}
	if entries, err := os.ReadDir(dir); err != nil || len(entries) != 1 {
		t.Errorf("ours changed: %v, %v", entries, err)
	}
}

// TestHiddenKept: the working directory, the program and resolv.conf stay, though they
// are in hidden folders.
func TestHiddenKept(t *testing.T) {
	dir, err := os.MkdirTemp("/tmp", "aldente")
	if err != nil {
		t.Skip(err)
	}
	defer os.RemoveAll(dir)
	if err := os.WriteFile(filepath.Join(dir, "here"), []byte("mine\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	got := hidden(t, dir, "pwd; cat here; cat /etc/resolv.conf; ls /tmp", func(c *Command) { c.ResolvConf = []byte("nameserver 192.0.2.1\n") })
	if want := dir + "\nmine\nnameserver 192.0.2.1\n" + filepath.Base(dir) + "\n"; got != want {
		t.Errorf("%q, want %q", got, want)
	}
	program := filepath.Join(dir, "program")
	if err := os.WriteFile(program, []byte("#!/bin/sh\necho ran\nls /tmp\n"), 0o755); err != nil {
		t.Fatal(err)
	}
	if dirs := hiddenDirs(); !within(program, dirs) || within(program, dirs[:1]) {
		t.Skip("/tmp is where the new tree is put together")
	}
	got = hidden(t, "/", "", func(c *Command) { c.Path, c.Args = program, []string{program} })
	if want := "ran\n" + filepath.Base(dir) + "\n"; got != want {
		t.Errorf("%q, want %q", got, want)
	}
}

// TestPlanHiding: what the steps are, and that each folder is made once.
func TestPlanHiding(t *testing.T) {
	h, err := planHiding("sh")
	if err != nil {
		t.Fatal(err)
	}
	made, binds := map[string]int{}, map[string]bool{}
	for _, s := range h.plan {
		switch s.nr {
		case unix.SYS_MKDIRAT:
			made[s.args[1].(string)]++
		case unix.SYS_MOUNT:
			if from, ok := s.args[0].(string); ok && s.args[3].(int)&unix.MS_BIND != 0 {
				binds[from] = true
				if slices.Contains(h.dirs, from) || !strings.HasPrefix(s.args[1].(string), h.root) {
					t.Errorf("%v is mounted at %v", from, s.args[1])
				}
			}
		}
	}
	for path, n := range made {
		if n != 1 || !strings.HasPrefix(path, h.root+"/") {
			t.Errorf("%s is made %d times", path, n)
		}
	}
	entries, err := os.ReadDir("/")
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		path := "/" + e.Name()
		in := slices.ContainsFunc(h.dirs, func(d string) bool { return d == path || strings.HasPrefix(d, path+"/") })
		if e.IsDir() && binds[path] == in {
			t.Errorf("%s is mounted: %t", path, binds[path])
		}
	}
	first, last := h.plan[0], h.plan[len(h.plan)-1]
	if first.nr != unix.SYS_MOUNT || first.args[1] != any(h.root) || last.nr != unix.SYS_CHDIR || last.may != unix.EACCES {
		t.Errorf("begins with %+v and ends with %+v", first, last)
	}
	h.steps(fork.New(-1, 1)) // whose arguments are of types that there are
}

// TestHiddenEnvironment: what names a hidden place names a new one, or goes.
func TestHiddenEnvironment(t *testing.T) {
	dirs := hiddenDirs()
	if len(dirs) == 0 {
		t.Skip("nothing to hide")
	}
	for env, want := range map[string]string{
		"XDG_RUNTIME_DIR=" + dirs[0] + "/user/0":             "XDG_RUNTIME_DIR=" + dirs[0] + runtimeDir,
		"XDG_RUNTIME_DIR=/home/x":                            "XDG_RUNTIME_DIR=/home/x",
		"TMPDIR=/tmp/of/mine":                                "TMPDIR=/tmp",
		"TMP=/var/tmp":                                       "TMP=/var/tmp",
		"DBUS_SESSION_BUS_ADDRESS=unix:path=/run/user/0/bus": "",
		"SSH_AUTH_SOCK=/tmp/agent":                           "",
		"SSH_AGENT_PID=7":                                    "",
		"HOME=" + dirs[0] + "/home":                          "HOME=" + dirs[0] + "/home",
		"EMPTY=":                                             "EMPTY=",
		"no equals sign":                                     "no equals sign",
	} {
		got := strings.Join(hiddenEnvironment([]string{env}), "|")
		if got != want {
			t.Errorf("%s: %q, want %q", env, got, want)
		}
	}
}
