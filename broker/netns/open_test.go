// SPDX-License-Identifier: Apache-2.0

package netns

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

func TestTargetPaths(t *testing.T) {
	for _, c := range []struct {
		target    Target
		net, user string
	}{
		{Target{PID: 7}, "/proc/7/ns/net", "/proc/7/ns/user"},
		{Target{PID: 7, NetnsOnly: true}, "/proc/7/ns/net", ""},
		{Target{PID: 7, UserPath: "/u"}, "/proc/7/ns/net", "/u"},
		{Target{Path: "blue"}, "/run/netns/blue", ""},
		{Target{Path: "./blue"}, "./blue", ""},
		{Target{Path: "/proc/7/ns/net"}, "/proc/7/ns/net", ""},
		{Target{Path: "/n", UserPath: "/u"}, "/n", "/u"},
		{Target{Path: "/n", UserPath: "/u", NetnsOnly: true}, "/n", ""},
	} {
		if net, user := c.target.paths(); net != c.net || user != c.user {
			t.Errorf("%+v: %q, %q", c.target, net, user)
		}
	}
}

func TestOpenErrors(t *testing.T) {
	file := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	fifo := filepath.Join(t.TempDir(), "fifo")
	if err := unix.Mkfifo(fifo, 0o600); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		target Target
		want   string
	}{
		{Target{PID: 1 << 30}, "cannot open network namespace /proc/1073741824/ns/net"},
		{Target{Path: "no-such-name"}, "/run/netns/no-such-name: no such file"},
		{Target{Path: file}, "is not a network namespace"},
		{Target{Path: fifo}, "is not a network namespace"},
		{Target{Path: "/proc/self/ns/user"}, "is not a network namespace"},
		{Target{Path: "/proc/self/ns/net", UserPath: "/proc/self/ns/net"}, "is not a user namespace"},
		{Target{Path: "/proc/self/ns/net", UserPath: "/nowhere"}, "cannot open user namespace /nowhere"},
	} {
		n, err := Open(c.target)
		if err == nil {
			n.Close()
			t.Errorf("%+v: no error", c.target)
		} else if !strings.Contains(err.Error(), c.want) {
			t.Errorf("%+v: %v, want %q", c.target, err, c.want)
		}
	}
}

// TestOpenOwn finds our own namespaces, of which the user namespace is not to be
// joined.
func TestOpenOwn(t *testing.T) {
	n, err := Open(Target{PID: os.Getpid()})
	if err != nil {
		t.Fatal(err)
	}
	defer n.Close()
	if n.User != -1 || n.Net < 0 {
		t.Errorf("%+v", n)
	}
}

// probe starts the test binary as agent in the namespace and returns what it
// says about itself.
func probe(t *testing.T, n *Namespace) (string, *Agent, int) {
	t.Helper()
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	a, err := SpawnAgent(n, fds[1], -1, false)
	unix.Close(fds[1])
	if err != nil {
		t.Fatal(err)
	}
	b := make([]byte, 16<<10)
	m, err := fdReader(fds[0]).Read(b)
	if err != nil {
		if f := a.Failure(); f != nil {
			err = f
		}
		t.Fatalf("agent: %v", err)
	}
	if err := a.Failure(); err != nil {
		t.Errorf("failure of an agent that runs: %v", err)
	}
	return string(b[:m]), a, fds[0]
}

// TestSpawnAgent starts an agent in namespaces of a command, found by either
// way, with the caller as root, unprivileged, and in other user namespaces.
func TestSpawnAgent(t *testing.T) {
	c := create(t, "sleep", "60")
	defer c.Kill()
	opened, err := Open(Target{PID: c.PID})
	if err != nil {
		t.Fatal(err)
	}
	defer opened.Close()
	want := func(ns string) string {
		link, err := os.Readlink(fmt.Sprintf("/proc/%d/ns/%s", c.PID, ns))
		if err != nil {
			t.Fatal(err)
		}
		return ns + " " + link + "\n"
	}
	for name, n := range map[string]*Namespace{"created": &c.Namespace, "opened": opened} {
		text, a, channel := probe(t, n)
		for _, w := range []string{want("net"), want("user"), "cwd /\n", "leader true\n", "env 2\n", "\nCapInh:\t0000000000001400\nCapPrm:\t0000000000001400\n" +
			"CapEff:\t0000000000001400\nCapBnd:\t0000000000000000\nCapAmb:\t0000000000001400\n", "\nSigBlk:\t0000000000000000\n"} {
			if !strings.Contains(text, w) {
				t.Errorf("%s: %q is missing in\n%s", name, w, text)
			}
		}
		// It ends when the channel does.
		unix.Close(channel)
		if ws, err := a.Reap(); err != nil || ws.ExitStatus() != 0 {
			t.Errorf("%s: %v, %v", name, ws, err)
		}
		if _, err := a.Reap(); err != nil {
			t.Errorf("%s: second Reap: %v", name, err)
		}
	}
	asOthers(t)
}

// TestSpawnAgentNoRoot joins a user namespace that has no user 0: the
// capabilities must survive execve all the same.
func TestSpawnAgentNoRoot(t *testing.T) {
	cmd := exec.Command("sleep", "60")
	cmd.SysProcAttr = &syscall.SysProcAttr{
		Cloneflags:  syscall.CLONE_NEWUSER | syscall.CLONE_NEWNET,
		UidMappings: []syscall.SysProcIDMap{{ContainerID: 1000, HostID: os.Geteuid(), Size: 1}},
		GidMappings: []syscall.SysProcIDMap{{ContainerID: 1000, HostID: os.Getegid(), Size: 1}},
	}
	if err := cmd.Start(); err != nil {
		t.Skipf("needs user namespaces: %v", err)
	}
	defer cmd.Wait()
	defer cmd.Process.Kill()
	n, err := Open(Target{PID: cmd.Process.Pid})
	if err != nil {
		t.Fatal(err)
	}
	defer n.Close()
	text, a, channel := probe(t, n)
	defer a.Reap()
	defer unix.Close(channel)
	if w := "\nCapEff:\t0000000000001400\n"; !strings.Contains(text, w) {
		t.Errorf("%q is missing in\n%s", w, text)
	}
}

// TestSpawnAgentNetOnly joins a network namespace that our own user namespace
// owns, by path: podman's way, where we are user 0 of its user namespace.
func TestSpawnAgentNetOnly(t *testing.T) {
	cmd := exec.Command("sleep", "60")
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWNET}
	if err := cmd.Start(); err == nil {
		defer cmd.Wait()
		defer cmd.Process.Kill()
		path := fmt.Sprintf("/proc/%d/ns/net", cmd.Process.Pid)
		n, err := Open(Target{Path: path})
		if err != nil {
			t.Fatal(err)
		}
		defer n.Close()
		text, a, channel := probe(t, n)
		defer a.Reap()
		defer unix.Close(channel)
		link, _ := os.Readlink(path)
		for _, w := range []string{"net " + link + "\n", "\nCapEff:\t0000000000001400\n"} {
			if !strings.Contains(text, w) {
				t.Errorf("%q is missing in\n%s", w, text)
			}
		}
	} else if os.Geteuid() == 0 {
		t.Fatal(err)
	}
	asOthers(t)
}

// TestSpawnAgentNobody drops the agent to another user where no user namespace
// is joined.
func TestSpawnAgentNobody(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root")
	}
	c := create(t, "sleep", "60")
	defer c.Kill()
	n, err := Open(Target{PID: c.PID, NetnsOnly: true})
	if err != nil {
		t.Fatal(err)
	}
	defer n.Close()
	n.SetAgentIDs(65534, 65534)
	text, a, channel := probe(t, n)
	defer a.Reap()
	defer unix.Close(channel)
	for _, w := range []string{"\nUid:\t65534\t65534\t65534\t65534\n", "\nGroups:\t \n", "\nCapEff:\t0000000000001400\n"} {
		if !strings.Contains(text, w) {
			t.Errorf("%q is missing in\n%s", w, text)
		}
	}
}

// TestSpawnAgentRefused tries to join a namespace of root's without privileges.
func TestSpawnAgentRefused(t *testing.T) {
	if os.Geteuid() == 0 && os.Getenv("ALDENTE_TEST_OTHER") == "" {
		asOthers(t)
		return
	}
	n, err := Open(Target{Path: "/proc/self/ns/net"})
	if err != nil {
		t.Fatal(err)
	}
	defer n.Close()
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(fds[0])
	a, err := SpawnAgent(n, fds[1], -1, false)
	unix.Close(fds[1])
	if err != nil {
		t.Fatal(err)
	}
	defer a.Reap()
	if err := a.Failure(); err == nil || !strings.Contains(err.Error(), "cannot join network namespace") || !strings.Contains(err.Error(), "setns: ") {
		t.Errorf("error %v", err)
	}
}

// TestOneProcess has a process replaced by another of the same number between the
// steps in which its namespaces are found.
func TestOneProcess(t *testing.T) {
	start := func() *exec.Cmd {
		c := exec.Command("sleep", "60")
		if err := c.Start(); err != nil {
			t.Fatal(err)
		}
		return c
	}
	end := func(c *exec.Cmd) {
		c.Process.Kill()
		c.Wait()
	}
	c := start()
	pid := c.Process.Pid
	n := &Namespace{User: -1, Net: -1, pid: pid}
	defer n.Close()
	dir := fmt.Sprintf("/proc/%d/ns/", pid)
	fd, err := n.open(dir+"net", unix.CLONE_NEWNET)
	if err != nil {
		t.Fatal(err)
	}
	unix.Close(fd)
	end(c)
	// Only who may choose numbers has it replaced. Without that it is gone, which
	// counts as well.
	replaced := false
	for range 100 {
		if os.WriteFile("/proc/sys/kernel/ns_last_pid", []byte(strconv.Itoa(pid-1)), 0) != nil {
			break
		}
		c := start()
		defer end(c)
		if replaced = c.Process.Pid == pid; replaced {
			break
		}
	}
	t.Logf("replaced: %v", replaced)
	if fd, err := n.open(dir+"user", unix.CLONE_NEWUSER); err == nil {
		unix.Close(fd)
		t.Error("the user namespace of another process was opened")
	} else if !strings.Contains(err.Error(), "still there?") {
		t.Errorf("error %v", err)
	}
	w, err := n.Watch()
	if err != nil {
		t.Fatal(err)
	}
	defer w.Close()
	fires(t, w)
}

func TestWatchPID(t *testing.T) {
	for _, target := range []string{"pid", "path"} {
		c := create(t, "sleep", "60")
		tgt := Target{PID: c.PID, NetnsOnly: true}
		if target == "path" {
			tgt = Target{Path: "/proc/" + strconv.Itoa(c.PID) + "/ns/net"}
		}
		n, err := Open(tgt)
		if err != nil {
			t.Fatal(err)
		}
		w, err := n.Watch()
		if err != nil {
			t.Fatal(err)
		}
		n.Close()
		if w.fd < 0 || w.dir >= 0 {
			t.Errorf("%s: polls instead of waiting for the process", target)
		}
		quiet(t, w)
		c.Kill()
		fires(t, w)
		w.Close()
	}
}

// TestWatchPath watches a name in a directory, as ip-netns(8) and podman make
// them.
func TestWatchPath(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "name")
	touch := func() {
		t.Helper()
		if err := os.WriteFile(path, nil, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	watch := func() *Watcher {
		t.Helper()
		n := Namespace{User: -1, Net: -1, path: path}
		w, err := n.Watch()
		if err != nil {
			t.Fatal(err)
		}
		return w
	}
	touch()
	w := watch()
	os.WriteFile(filepath.Join(dir, "other"), nil, 0o600)
	os.Remove(filepath.Join(dir, "other"))
	quiet(t, w)
	os.Remove(path)
	touch() // made anew at once: still another namespace
	fires(t, w)
	w.Close()

	w = watch()
	os.Rename(path, path+"2")
	fires(t, w)
	w.Close()

	w = watch() // gone before it is watched
	fires(t, w)
	w.Close()

	touch()
	w = watch()
	w.Close()
	os.Remove(path)
	quiet(t, w)
	w.Close()
}

// TestWatchMount watches a bind mount of a namespace, which is unmounted before
// its name is removed.
func TestWatchMount(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root")
	}
	path := filepath.Join(t.TempDir(), "name")
	if err := os.WriteFile(path, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := unix.Mount("/proc/self/ns/net", path, "", unix.MS_BIND, ""); err != nil {
		t.Skipf("needs mount: %v", err)
	}
	n, err := Open(Target{Path: path})
	if err != nil {
		t.Fatal(err)
	}
	defer n.Close()
	w, err := n.Watch()
	if err != nil {
		t.Fatal(err)
	}
	defer w.Close()
	quiet(t, w)
	if err := unix.Unmount(path, unix.MNT_DETACH); err != nil {
		t.Fatal(err)
	}
	os.Remove(path)
	fires(t, w)
}

// unreadable makes a folder that we may search and write, and not read, for as
// long as the test lasts.
func unreadable(t *testing.T) string {
	t.Helper()
	parent := t.TempDir()
	dir := filepath.Join(parent, "dir")
	if err := errors.Join(os.Chmod(filepath.Dir(parent), 0o711), os.Chmod(parent, 0o711), os.Mkdir(dir, 0o700)); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.Chmod(dir, 0o700) })
	if err := os.Chmod(dir, 0o311); err != nil {
		t.Fatal(err)
	}
	return dir
}

// TestWatchUnreadable watches paths in a folder that cannot be watched: it says
// why, and notices all the same.
func TestWatchUnreadable(t *testing.T) {
	for name, end := range map[string]func(dir, path string) error{
		"removed": func(_, path string) error { return os.Remove(path) },
		"made anew": func(_, path string) error {
			return errors.Join(os.WriteFile(path+"2", nil, 0o600), os.Rename(path+"2", path))
		},
		"folder renamed":     func(dir, _ string) error { return os.Rename(dir, dir+"2") },
		"another in the way": func(dir, _ string) error { return errors.Join(os.Rename(dir, dir+"2"), os.WriteFile(dir, nil, 0o600)) },
		"stays":              nil,
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			dir := unreadable(t)
			path := filepath.Join(dir, "name")
			if err := os.WriteFile(path, nil, 0o600); err != nil {
				t.Fatal(err)
			}
			n := Namespace{User: -1, Net: -1, path: path}
			w := asOrdinary(t, &n)
			defer w.Close()
			if err := w.Polls(); !errors.Is(err, unix.EACCES) || !strings.Contains(err.Error(), "not read") {
				t.Errorf("polls because of %v", err)
			}
			quiet(t, w)
			if end == nil {
				time.Sleep(2200 * time.Millisecond)
				quiet(t, w)
				return
			}
			if err := end(dir, path); err != nil {
				t.Fatal(err)
			}
			fires(t, w)
			_ = os.Chmod(dir+"2", 0o700)
		})
	}
}

// asOrdinary starts watching without the right to read any folder.
func asOrdinary(t *testing.T, n *Namespace) *Watcher {
	t.Helper()
	type result struct {
		w   *Watcher
		err error
	}
	done := make(chan result)
	go func() {
		runtime.LockOSThread() // never unlocked: the thread ends with the goroutine
		if os.Geteuid() == 0 {
			_ = unix.Setfsuid(65534) // and the capabilities over files with it
		}
		w, err := n.Watch()
		done <- result{w, err}
	}()
	r := <-done
	if r.err != nil {
		t.Fatal(r.err)
	}
	return r.w
}

// TestWatchFolderMoved watches a path whose folder gets another name.
func TestWatchFolderMoved(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "dir")
	path := filepath.Join(dir, "name")
	if err := errors.Join(os.Mkdir(dir, 0o700), os.WriteFile(path, nil, 0o600)); err != nil {
		t.Fatal(err)
	}
	n := Namespace{User: -1, Net: -1, path: path}
	w, err := n.Watch()
	if err != nil {
		t.Fatal(err)
	}
	defer w.Close()
	if w.Polls() != nil {
		t.Skip(w.Polls())
	}
	quiet(t, w)
	if err := os.Rename(dir, dir+"2"); err != nil {
		t.Fatal(err)
	}
	fires(t, w)
}

// TestWatchDescriptor watches a path in procfs that goes before its process.
func TestWatchDescriptor(t *testing.T) {
	fd, err := unix.Open("/proc/self/ns/net", unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	n := Namespace{User: -1, Net: -1, path: fmt.Sprintf("/proc/%d/fd/%d", os.Getpid(), fd)}
	w, err := n.Watch()
	if err != nil {
		t.Fatal(err)
	}
	defer w.Close()
	quiet(t, w)
	unix.Close(fd)
	fires(t, w)
}

func fires(t *testing.T, w *Watcher) {
	t.Helper()
	select {
	case <-w.Gone():
	case <-time.After(20 * time.Second):
		t.Error("not noticed")
	}
}

func quiet(t *testing.T, w *Watcher) {
	t.Helper()
	select {
	case <-w.Gone():
		t.Error("fired too early")
	case <-time.After(50 * time.Millisecond):
	}
}
