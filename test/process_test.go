// SPDX-License-Identifier: Apache-2.0

package test

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"aldente/test/netlab"

	"golang.org/x/sys/unix"
)

// pastaRun starts pasta with nothing forwarded and waits for its end.
func pastaRun(t *testing.T, lab *netlab.Lab, stdin string, args ...string) (int, *netlab.Proc) {
	t.Helper()
	argv := slices.Concat([]string{netlab.Pasta()}, netlab.NoForward(args...), args)
	user := netlab.Nobody
	p := lab.Host.Start(netlab.Spec{Args: argv, Stdin: strings.NewReader(stdin), User: user, Timeout: 20 * time.Second, Env: []string{"SHELL=/bin/sh"}})
	return p.Wait(), p
}

func TestExitStatus(t *testing.T) {
	lab := netlab.New(t, netlab.Options{})
	for _, tt := range []struct {
		name  string
		stdin string
		args  []string
		want  int
		out   string
	}{
		{"success", "", []string{"--config-net", "--", "true"}, 0, ""},
		{"failure", "", []string{"--config-net", "--", "false"}, 1, ""},
		{"status 42", "", []string{"--config-net", "--", "sh", "-c", "exit 42"}, 42, ""},
		{"options end at the command", "", []string{"--config-net", "sh", "-c", "exit 43"}, 43, ""},
		{"no such command", "", []string{"--config-net", "--", "/nonexistent"}, 1, "o such file or directory"},
		{"default shell", "exit 9\n", []string{"--config-net"}, 9, ""},
		{"standard input", "hello", []string{"--config-net", "--", "cat"}, 0, "hello"},
		{"unknown option", "", []string{"--bogus"}, 1, "unrecognized option '--bogus'"},
		{"bad port", "", []string{"-t", "70000", "true"}, 1, "70000"},
		{"version", "", []string{"--version"}, 0, "pasta"},
		{"no such process", "", []string{"999999999"}, 1, ""},
		{"new PID namespace", "", []string{"--config-net", "--", "sh", "-c", "test $$ -lt 10"}, 0, ""},
		{"same PID namespace", "", []string{"--config-net", "--no-pidns", "--", "sh", "-c", "test $$ -gt 10"}, 0, ""},
		{"root in the namespace", "", []string{"--config-net", "--", "sh", "-c", "test $(id -u) = 0"}, 0, ""},
		{"ping allowed", "", []string{"--config-net", "--", "cat", "/proc/sys/net/ipv4/ping_group_range"}, 0, "0\t0"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			st, p := pastaRun(t, lab.For(t), tt.stdin, tt.args...)
			if st != tt.want || !strings.Contains(p.Output(), tt.out) {
				t.Errorf("status %d, want %d, and %q in\n%s", st, tt.want, tt.out, p.Output())
			}
		})
	}
}

func TestCommandKilled(t *testing.T) {
	lab := netlab.New(t, netlab.Options{})
	for _, tt := range []struct {
		sig  syscall.Signal
		args []string
	}{
		{syscall.SIGKILL, nil}, // the only one that the first process of a PID namespace cannot ignore
		{syscall.SIGKILL, []string{"--no-pidns"}},
		{syscall.SIGTERM, []string{"--no-pidns"}},
	} {
		t.Run(tt.sig.String()+strings.Join(tt.args, ""), func(t *testing.T) {
			g := lab.For(t).Guest(tt.args...)
			if err := syscall.Kill(g.Holder, tt.sig); err != nil {
				t.Fatal(err)
			}
			st, ok := g.Proc.WaitFor(10 * time.Second)
			if want := 128 + int(tt.sig); !ok || st != want {
				t.Errorf("ended %v with status %d, want %d", ok, st, want)
			}
		})
	}
}

// holder starts a process in user and network namespaces of its own, for
// pasta to join, and returns its process id.
func holder(t *testing.T, lab *netlab.Lab) int {
	t.Helper()
	return holderWith(t, lab, "")
}

// holderWith is holder with commands of a shell that are run there before.
func holderWith(t *testing.T, lab *netlab.Lab, before string) int {
	t.Helper()
	p := lab.Host.Start(netlab.Spec{Args: []string{"unshare", "-Urn", "sh", "-ec", before + "\nexec sleep 300"}, User: netlab.Nobody, Timeout: 5 * time.Minute})
	host := fmt.Sprintf("net:[%d]", lab.Host.Inode())
	for range 200 {
		comm, _ := os.ReadFile(fmt.Sprintf("/proc/%d/comm", p.PID))
		link, err := os.Readlink(fmt.Sprintf("/proc/%d/ns/net", p.PID))
		if strings.TrimSpace(string(comm)) == "sleep" && err == nil && link != host {
			return p.PID
		}
		time.Sleep(5 * time.Millisecond)
	}
	t.Fatal("unshare did not get that far")
	return 0
}

// openDir makes a folder that the translator's user may write to.
func openDir(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp(netlab.Stage(), "d")
	if err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(dir, 0o777); err != nil {
		t.Fatal(err)
	}
	return dir
}

// readPID reads a PID file, checks its form and has the process ended with
// the test.
func readPID(t *testing.T, file string) int {
	t.Helper()
	b, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	pid, err := strconv.Atoi(strings.TrimSuffix(string(b), "\n"))
	if err != nil || !strings.HasSuffix(string(b), "\n") {
		t.Fatalf("PID file holds %q", b)
	}
	if fi, err := os.Stat(file); err != nil || fi.Mode().Perm() != 0o600 {
		t.Errorf("PID file: %v, %v, want mode 0600", fi.Mode(), err)
	}
	t.Cleanup(func() { _ = syscall.Kill(pid, syscall.SIGKILL) })
	return pid
}

// gone waits for a process's end.
func gone(pid int, d time.Duration) bool {
	for end := time.Now().Add(d); time.Now().Before(end); time.Sleep(10 * time.Millisecond) {
		if s := netlab.Stat(pid); s == nil || s[0] == "Z" {
			return true
		}
	}
	return false
}

// TestBackground joins a process's namespace: when pasta returns, the network
// is there, no descriptor of the caller stays open, and the daemon lives
// until told to stop.
func TestBackground(t *testing.T) {
	lab := netlab.New(t, netlab.Options{})
	ns := holder(t, lab)
	file := filepath.Join(openDir(t), "pid")
	st, p := pastaRun(t, lab, "", "--config-net", "-P", file, strconv.Itoa(ns))
	if st != 0 {
		t.Fatalf("status %d\n%s", st, p.Output())
	}
	pid := readPID(t, file)
	if p.Leaked() {
		t.Error("standard output or error is still open")
	}
	guest := netlab.OpenNS(t, "guest", fmt.Sprintf("/proc/%d/ns/net", ns))
	if out := guest.Must("ip", "-4", "address"); !strings.Contains(out, netlab.Host4) {
		t.Errorf("address not there on return:\n%s", out)
	}
	for fd := range 3 {
		if l, _ := os.Readlink(fmt.Sprintf("/proc/%d/fd/%d", pid, fd)); l != "/dev/null" {
			t.Errorf("descriptor %d of the daemon is %s", fd, l)
		}
	}
	if s := netlab.Stat(pid); len(s) > 3 && s[3] != strconv.Itoa(pid) {
		t.Errorf("daemon %d is in session %s", pid, s[3])
	}
	if st, out := guest.Run("ping", "-c", "1", "-W", "2", "192.0.2.9"); st != 0 {
		t.Error(out)
	}
	if err := syscall.Kill(pid, syscall.SIGTERM); err != nil || !gone(pid, 10*time.Second) {
		t.Errorf("SIGTERM: %v, and the daemon lives on", err)
	}
}

// TestForeground ends a foreground instance by signals: status 0 for both.
func TestForeground(t *testing.T) {
	lab := netlab.New(t, netlab.Options{})
	for _, sig := range []syscall.Signal{syscall.SIGTERM, syscall.SIGQUIT} {
		t.Run(sig.String(), func(t *testing.T) {
			lab := lab.For(t)
			ns := holder(t, lab)
			file := filepath.Join(openDir(t), "pid")
			args := append(netlab.NoForward(), "-f", "--config-net", "-P", file, strconv.Itoa(ns))
			p := lab.StartPasta(netlab.GuestSpec{User: netlab.Nobody}, args...)
			for i := 0; i < 200 && !p.Exited(); i++ {
				if b, _ := os.ReadFile(file); len(b) > 0 {
					break
				}
				time.Sleep(10 * time.Millisecond)
			}
			if pid := readPID(t, file); pid != p.PID {
				t.Errorf("PID file says %d, started %d", pid, p.PID)
			}
			_ = p.Signal(sig)
			if st, ok := p.WaitFor(10 * time.Second); !ok || st != 0 {
				t.Errorf("ended %v with status %d\n%s", ok, st, p.Output())
			}
		})
	}
}

// TestNamespaceEnds expects the daemon to end with the process whose
// namespace it serves.
func TestNamespaceEnds(t *testing.T) {
	lab := netlab.New(t, netlab.Options{})
	ns := holder(t, lab)
	file := filepath.Join(openDir(t), "pid")
	if st, p := pastaRun(t, lab, "", "--config-net", "-P", file, strconv.Itoa(ns)); st != 0 {
		t.Fatalf("status %d\n%s", st, p.Output())
	}
	pid := readPID(t, file)
	_ = syscall.Kill(ns, syscall.SIGKILL)
	if !gone(pid, 10*time.Second) {
		t.Error("the daemon lives on without its namespace")
	}
}

// TestNetnsPath serves a namespace bound to a path, as ip-netns(8) and Podman
// make them, and ends when the path is removed.
func TestNetnsPath(t *testing.T) {
	lab := netlab.New(t, netlab.Options{})
	for _, tt := range []struct {
		name string
		args []string
		quit bool
	}{
		{"quits", nil, true},
		{"--no-netns-quit", []string{"--no-netns-quit"}, false},
	} {
		t.Run(tt.name, func(t *testing.T) {
			lab := lab.For(t)
			dir := openDir(t)
			path, file := filepath.Join(dir, "ns"), filepath.Join(dir, "pid")
			guest := netlab.NewNS(t, "guest")
			if err := os.WriteFile(path, nil, 0o644); err != nil {
				t.Fatal(err)
			}
			if err := unix.Mount(guest.Path(), path, "", unix.MS_BIND, ""); err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { _ = unix.Unmount(path, unix.MNT_DETACH) })
			args := append(append(netlab.NoForward(), "--config-net", "-P", file, "--netns", path), tt.args...)
			p := lab.StartPasta(netlab.GuestSpec{User: netlab.Root, Timeout: 20 * time.Second}, append(args, "--runas", "0")...)
			if st := p.Wait(); st != 0 {
				t.Fatalf("status %d\n%s", st, p.Output())
			}
			pid := readPID(t, file)
			if st, out := guest.Run("ping", "-c", "1", "-W", "2", "192.0.2.9"); st != 0 {
				t.Error(out)
			}
			_ = unix.Unmount(path, unix.MNT_DETACH)
			if err := os.Remove(path); err != nil {
				t.Fatal(err)
			}
			within := 10 * time.Second
			if !tt.quit {
				within = 1500 * time.Millisecond
			}
			if gone(pid, within) != tt.quit {
				t.Errorf("daemon ended with its path: %v, want %v", !tt.quit, tt.quit)
			}
		})
	}
}

// TestNetnsNotWatched serves a namespace bound to a path of which the kernel tells
// nothing: it says why, and ends with the path all the same.
func TestNetnsNotWatched(t *testing.T) {
	needOurs(t)
	lab := netlab.New(t, netlab.Options{})
	for _, tt := range []struct {
		name  string
		mode  os.FileMode
		limit string // of the user namespace, that is set to zero
		want  string
	}{
		{"unreadable folder", 0o711, "", "the folder may be searched, but not read"},
		{"no watch left", 0o755, "max_inotify_watches", "max_user_watches"},
		{"no instance left", 0o755, "max_inotify_instances", "max_user_instances"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			needRoot(t) // a folder of somebody else's, another user's limits
			lab := lab.For(t)
			dir := openDir(t)
			sub := filepath.Join(dir, "sub")
			path, file := filepath.Join(sub, "ns"), filepath.Join(dir, "pid")
			ns := holder(t, lab)
			guest := netlab.OpenNS(t, "guest", fmt.Sprintf("/proc/%d/ns/net", ns))
			if err := errors.Join(os.Mkdir(sub, 0o755), os.WriteFile(path, nil, 0o644)); err != nil {
				t.Fatal(err)
			}
			if err := unix.Mount(guest.Path(), path, "", unix.MS_BIND, ""); err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { _ = unix.Unmount(path, unix.MNT_DETACH) })
			if err := os.Chmod(sub, tt.mode); err != nil {
				t.Fatal(err)
			}
			// As Podman does: root of the user namespace that has the network's.
			wrap := []string{"nsenter", "-U", "-t", strconv.Itoa(ns), "-S", "0", "-G", "0"}
			if tt.limit != "" {
				wrap = append(wrap, "sh", "-c", `echo 0 >/proc/sys/user/$0 && exec "$@"`, tt.limit)
			}
			args := append(netlab.NoForward(), "--config-net", "-d", "-P", file, "--netns", path)
			p := lab.StartPasta(netlab.GuestSpec{User: netlab.Root, Timeout: 20 * time.Second, Wrap: wrap}, args...)
			if st := p.Wait(); st != 0 {
				t.Fatalf("status %d\n%s", st, p.Output())
			}
			if !strings.Contains(p.Output(), tt.want) {
				t.Errorf("no word of %q:\n%s", tt.want, p.Output())
			}
			pid := readPID(t, file)
			if st, out := guest.Run("ping", "-c", "1", "-W", "2", "192.0.2.9"); st != 0 {
				t.Error(out)
			}
			if gone(pid, 2500*time.Millisecond) {
				t.Fatal("ended before its path")
			}
			_ = unix.Unmount(path, unix.MNT_DETACH)
			if err := os.Remove(path); err != nil {
				t.Fatal(err)
			}
			if !gone(pid, 10*time.Second) {
				t.Error("the daemon lives on without its path")
			}
		})
	}
}
