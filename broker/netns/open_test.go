// SPDX-License-Identifier: Apache-2.0

package netns

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"

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
