// SPDX-License-Identifier: Apache-2.0

package netns

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

func TestCreateStatus(t *testing.T) {
	dir := t.TempDir()
	os.Chmod(dir, 0o755)
	write := func(name, text string, mode os.FileMode) string {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, []byte(text), mode); err != nil {
			t.Fatal(err)
		}
		return path
	}
	plain := write("plain", "exit 3\n", 0o755)
	data := write("data", "exit 3\n", 0o644)
	t.Setenv("PATH", "/nowhere:"+dir+":/usr/bin:/bin")
	for _, c := range []struct {
		name   string
		args   []string
		status int
		err    error
	}{
		{"success", []string{"true"}, 0, nil},
		{"status", []string{"sh", "-c", "exit 7"}, 7, nil},
		{"path", []string{"/bin/sh", "-c", "exit 8"}, 8, nil},
		{"signal", []string{"sh", "-c", "sh -c 'kill -TERM $$'; exit $?"}, 143, nil},
		{"not found", []string{"no-such-command"}, 127, unix.ENOENT},
		{"path not found", []string{"/no/such/command"}, 127, unix.ENOENT},
		{"not executable", []string{data}, 126, unix.EACCES},
		{"not executable, in PATH", []string{"data"}, 126, unix.EACCES},
		{"script without header", []string{plain}, 3, nil},
		{"script without header, in PATH", []string{"plain"}, 3, nil},
		{"empty", []string{""}, 127, unix.ENOENT},
	} {
		t.Run(c.name, func(t *testing.T) {
			child := create(t, c.args...)
			defer child.Close()
			if err := child.Release(); err != nil {
				t.Fatal(err)
			}
			status, err := child.Wait()
			if status != c.status || !errors.Is(err, c.err) {
				t.Errorf("status %d, error %v; want %d, %v", status, err, c.status, c.err)
			}
			var e *ExecError
			if errors.As(err, &e) && e.Status != c.status {
				t.Errorf("error's status %d", e.Status)
			}
		})
	}
}

// TestCreateSignal kills the command from outside.
func TestCreateSignal(t *testing.T) {
	c := create(t, "sleep", "60")
	defer c.Close()
	c.Release()
	unix.Kill(c.PID, unix.SIGKILL)
	if status, err := c.Wait(); status != 128+9 || err != nil {
		t.Errorf("status %d, %v", status, err)
	}
}

// inspect prints what a command can see of its surroundings.
const inspect = `
id -u; id -g; hostname; cat /proc/sys/net/ipv4/ping_group_range
echo $$; readlink /proc/self/exe >/dev/null && echo proc
ls /proc/self/fd | wc -l
ulimit -Sn
grep -E '^(Sig(Blk|Ign)|CapEff|NoNewPrivs):' /proc/self/status
for n in user net mnt pid ipc uts; do readlink /proc/self/ns/$n; done
`

// TestCreateSurroundings checks everything that a command is promised, as root,
// unprivileged, and inside another user namespace.
func TestCreateSurroundings(t *testing.T) {
	out, err := os.CreateTemp("", "aldente")
	if err != nil {
		t.Fatal(err)
	}
	defer os.Remove(out.Name())
	stdout, err := unix.FcntlInt(1, unix.F_DUPFD_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	leak, err := unix.Dup(0) // not close-on-exec, as a careless caller leaves it
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(leak)
	unix.Dup3(int(out.Fd()), 1, 0)
	c, err := Create(Command{Path: "sh", Args: []string{"sh", "-c", inspect}, HostnamePrefix: "test-",
		UID: os.Geteuid(), GID: os.Getegid()})
	unix.Dup3(stdout, 1, 0)
	if err != nil {
		t.Skipf("needs user namespaces: %v", err)
	}
	warnings, err := c.Ready()
	if err != nil {
		c.Kill()
		t.Skipf("needs user namespaces: %v", err)
	}
	if len(warnings) > 0 {
		t.Errorf("warnings: %q", warnings)
	}
	c.Release()
	if status, err := c.Wait(); status != 0 || err != nil {
		t.Fatalf("status %d, %v", status, err)
	}
	c.Close()
	b, _ := os.ReadFile(out.Name())
	lines := strings.Split(strings.TrimSpace(string(b)), "\n")
	if len(lines) != 18 {
		t.Fatalf("%d lines:\n%s", len(lines), b)
	}
	host, _ := os.Hostname()
	want := []string{"0", "0", "test-" + host, "0\t0", "1", "proc", "4", "", "SigBlk:\t0000000000000000", "SigIgn:\t",
		"CapEff:\t", "NoNewPrivs:\t0"}
	for i, w := range want {
		if !strings.HasPrefix(lines[i], w) {
			t.Errorf("line %d: %q, want %q", i, lines[i], w)
		}
	}
	if strings.HasSuffix(lines[10], "0000000000000000") {
		t.Errorf("no capabilities: %s", lines[10])
	}
	for i, ns := range []string{"user", "net", "mnt", "pid", "ipc", "uts"} {
		if ours, _ := os.Readlink("/proc/self/ns/" + ns); lines[12+i] == ours {
			t.Errorf("%s namespace is ours", ns)
		}
	}
	asOthers(t)
}

// TestCreateLimit starts a process with a low soft limit on open files, which Go
// raises, and expects the command to have the low one again.
func TestCreateLimit(t *testing.T) {
	create(t, "true").Kill()
	cmd := self("create", "sh", "-c", "ulimit -Sn")
	var out, diag bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &diag
	var old unix.Rlimit
	if err := unix.Prlimit(0, unix.RLIMIT_NOFILE, nil, &old); err != nil {
		t.Fatal(err)
	}
	// A shell sets the limit: this process would raise its child's again.
	cmd.Path = "/bin/sh"
	cmd.Args = append([]string{"sh", "-c", `ulimit -Sn 77; exec "$0" "$@"`, exe(t)}, cmd.Args[1:]...)
	if err := cmd.Run(); err != nil {
		t.Fatalf("%v: %s", err, diag.String())
	}
	if got := strings.TrimSpace(out.String()); got != "77" {
		t.Errorf("soft limit %s, want 77", got)
	}
}

func exe(t *testing.T) string {
	t.Helper()
	path, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	return path
}

// TestCreateNobody gives the namespace to another user, as root does.
func TestCreateNobody(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root")
	}
	secret := filepath.Join(t.TempDir(), "secret")
	if err := os.WriteFile(secret, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	c, err := Create(Command{Path: "sh", Args: []string{"sh", "-c", "id -u; cat " + secret + " && exit 1; exit 0"}, UID: 65534, GID: 65534})
	if err != nil {
		t.Skipf("needs user namespaces: %v", err)
	}
	if _, err := c.Ready(); err != nil {
		t.Fatal(err)
	}
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", c.PID))
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"Uid:\t65534\t65534\t65534\t65534", "Gid:\t65534\t65534\t65534\t65534", "Groups:\t \n"} {
		if !strings.Contains(string(status), want) {
			t.Errorf("%q is missing in\n%s", want, status)
		}
	}
	c.Release()
	if status, err := c.Wait(); status != 0 || err != nil {
		t.Errorf("status %d, %v", status, err)
	}
	c.Close()
}

func TestCreateWithoutPIDNamespace(t *testing.T) {
	create(t, "true").Kill()
	ours, _ := os.Readlink("/proc/self/ns/pid")
	c, err := Create(Command{Path: "sh", Args: []string{"sh", "-c", `test "$(readlink /proc/self/ns/pid)" = "` + ours + `"`},
		NoPIDNS: true, UID: os.Geteuid(), GID: os.Getegid()})
	if err != nil {
		t.Fatal(err)
	}
	c.Ready()
	c.Release()
	if status, err := c.Wait(); status != 0 || err != nil {
		t.Errorf("status %d, %v", status, err)
	}
	c.Close()
}

// TestParentDies kills the process that called Create, before and after
// Release, and expects the command to end with it.
func TestParentDies(t *testing.T) {
	create(t, "true").Kill()
	for _, args := range [][]string{nil, {"release"}} {
		cmd := self("orphan", args...)
		out, err := cmd.StdoutPipe()
		if err != nil {
			t.Fatal(err)
		}
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		line := make([]byte, 64)
		n, _ := out.Read(line)
		pid, err := strconv.Atoi(strings.TrimSpace(string(line[:n])))
		if err != nil {
			t.Fatalf("%q", line[:n])
		}
		fd, err := unix.PidfdOpen(pid, 0)
		if err != nil {
			t.Fatal(err)
		}
		cmd.Process.Signal(syscall.SIGKILL)
		cmd.Wait()
		fds := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}
		start := time.Now()
		for {
			n, err := unix.Poll(fds, 2000)
			if err == unix.EINTR {
				continue
			}
			if n != 1 {
				t.Errorf("%v: the command lives on", args)
				unix.Kill(pid, unix.SIGKILL)
			}
			break
		}
		t.Logf("%v: ended after %v", args, time.Since(start))
		unix.Close(fd)
	}
}

// TestWaitWithoutReady leaves the warnings unread.
func TestWaitWithoutReady(t *testing.T) {
	create(t, "true").Kill()
	t.Setenv("PATH", "/usr/bin:/bin")
	c, err := Create(Command{Path: "no-such-command", UID: os.Geteuid(), GID: os.Getegid()})
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	c.Release()
	if status, err := c.Wait(); status != 127 || !errors.Is(err, unix.ENOENT) {
		t.Errorf("status %d, %v", status, err)
	}
}

// TestCreateForbidden turns user namespaces off, which works inside of one, and
// expects to be told how to turn them on.
func TestCreateForbidden(t *testing.T) {
	if os.Getenv("ALDENTE_TEST_OTHER") == "" {
		asOthers(t)
		return
	}
	const limit = "/proc/sys/user/max_user_namespaces"
	if err := os.WriteFile(limit, []byte("0"), 0); err != nil {
		t.Skipf("needs to own a user namespace: %v", err)
	}
	c, err := Create(Command{Path: "true", UID: os.Geteuid(), GID: os.Getegid()})
	if err == nil {
		c.Kill()
		t.Fatal("no error")
	}
	if !strings.Contains(err.Error(), "raise sysctl user.max_user_namespaces") {
		t.Errorf("error %v", err)
	}
}

func TestCreateBadArguments(t *testing.T) {
	for _, c := range []Command{
		{Path: "a\x00b"},
		{Path: "true", Args: []string{"true", "\x00"}},
		{Path: "true", Env: []string{"A=\x00"}},
	} {
		if child, err := Create(c); err == nil {
			child.Kill()
			t.Errorf("%+v: no error", c)
		}
	}
}

func TestCandidates(t *testing.T) {
	for _, c := range []struct {
		name, path string
		want       string
	}{
		{"sh", "PATH=/a:/b", "/a/sh /b/sh"},
		{"sh", "PATH=/a::", "/a/sh ./sh ./sh"},
		{"sh", "HOME=/", "/usr/local/bin/sh /bin/sh /usr/bin/sh"},
		{"./sh", "PATH=/a", "./sh"},
		{"", "PATH=/a", ""},
	} {
		if got := strings.Join(candidates(c.name, []string{c.path}), " "); got != c.want {
			t.Errorf("%s, %s: %q, want %q", c.name, c.path, got, c.want)
		}
	}
}
