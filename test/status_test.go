// SPDX-License-Identifier: Apache-2.0

package test

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"aldente/broker/control/api"
	"aldente/test/netlab"
)

// aldentectl runs our client on the host, as a user, and returns its status and what it
// prints.
func aldentectl(t *testing.T, lab *netlab.Lab, user *netlab.User, args ...string) (int, string) {
	t.Helper()
	if user == netlab.Root {
		user = nil
	}
	p := lab.For(t).Host.Start(netlab.Spec{Args: append([]string{filepath.Join(netlab.Stage(), "aldentectl")}, args...), User: user})
	return p.Wait(), p.Output()
}

// instanceSays is what an instance says of itself.
func instanceSays(t *testing.T, lab *netlab.Lab, user *netlab.User, args ...string) (s api.StatusReply) {
	t.Helper()
	st, out := aldentectl(t, lab, user, append([]string{"status", "--json"}, args...)...)
	if err := json.Unmarshal([]byte(out), &s); st != 0 || err != nil {
		t.Fatalf("status %v: status %d, %v: %s", args, st, err, out)
	}
	return s
}

// statusSockets are the names of those in the host's network namespace.
func statusSockets(lab *netlab.Lab) (all []string) {
	for line := range strings.Lines(lab.Host.Read("/proc/net/unix")) {
		if f := strings.Fields(line); len(f) == 8 && strings.HasPrefix(f[7], "@"+api.Prefix) && f[3] == "00010000" {
			all = append(all, f[7])
		}
	}
	return all
}

// TestStatus: each personality says by its status socket what it is, started by root and
// by a user; and to its own user and to root only.
func TestStatus(t *testing.T) {
	needOurs(t)
	lab := netlab.New(t, netlab.Options{NoRemote: true})
	for _, user := range []*netlab.User{netlab.Nobody, netlab.Root} {
		for _, program := range []string{"pasta", "aldente"} {
			t.Run(fmt.Sprintf("%s, user %d", program, user.UID), func(t *testing.T) {
				g := lab.For(t).GuestWith(netlab.GuestSpec{Binary: filepath.Join(netlab.Stage(), program), User: user, Args: []string{"--config-net"}})
				s := instanceSays(t, lab, user)
				processes := g.Processes()
				if s.Personality != program || s.PID != g.Proc.PID || !slices.Contains(processes, s.WorkerPID) || s.WorkerPID == s.PID || s.Restarts != 0 ||
					!s.Connected || s.Link != "tap" || s.MTU != 65520 || s.Control || s.ControlPath != "" || s.Interface != g.Interface() ||
					!strings.HasPrefix(s.Guest, "command ") || len(s.Limits) == 0 || s.LogLevel != "warning" {
					t.Errorf("%+v", s)
				}
				for _, a := range append(s.Addresses, s.Gateways...) {
					address, _, _ := strings.Cut(a, "/")
					if !strings.Contains(g.Must("ip", "address")+g.Must("ip", "route")+g.Must("ip", "-6", "route"), address) {
						t.Errorf("the guest does not know %s", a)
					}
				}
				if len(s.Addresses) != 2 || len(s.Gateways) != 2 {
					t.Errorf("addresses %q, gateways %q", s.Addresses, s.Gateways)
				}
				if at, err := time.Parse(time.RFC3339, s.Started); err != nil || time.Since(at) < 0 || time.Since(at) > time.Hour {
					t.Errorf("started %s, %v", s.Started, err)
				}
				if (s.Egress == "everywhere") != (program == "pasta") {
					t.Errorf("egress: %s", s.Egress)
				}
				st, out := aldentectl(t, lab, user, "list")
				if lines := strings.Split(out, "\n"); st != 0 || len(lines) != 3 || !strings.HasPrefix(lines[1], strconv.Itoa(g.Proc.PID)+" ") || !strings.Contains(lines[1], program) {
					t.Errorf("list: status %d\n%s", st, out)
				}
				if !netlab.Nested() {
					instanceSays(t, lab, netlab.Root) // root may look at all
				}

				// The worker's end is told.
				if err := syscall.Kill(s.WorkerPID, syscall.SIGKILL); err != nil {
					t.Fatal(err)
				}
				for deadline := time.Now().Add(20 * time.Second); ; time.Sleep(20 * time.Millisecond) {
					now := instanceSays(t, lab, user, "--pid", strconv.Itoa(g.Proc.PID))
					if now.Restarts == 1 && now.WorkerPID > 0 && now.WorkerPID != s.WorkerPID && strings.Contains(now.LastDeath, "killed") {
						break
					}
					if time.Now().After(deadline) {
						t.Fatalf("after its worker was killed: %+v", now)
					}
				}
			})
		}
		t.Run(fmt.Sprintf("passt, user %d", user.UID), func(t *testing.T) {
			path, control := filepath.Join(socketDir(t), "s"), filepath.Join(socketDir(t), "c")
			p := lab.For(t).StartPasta(netlab.GuestSpec{Binary: filepath.Join(netlab.Stage(), "passt"), User: user}, "-f", "-s", path, "--control", control)
			awaitSocket(t, p, path)
			s := instanceSays(t, lab, user)
			if s.Personality != "passt" || s.PID != p.PID || s.Connected || s.Link != "stream socket" || s.Guest != "socket "+path || s.ControlPath != control || s.LogLevel != "info" {
				t.Errorf("%+v", s)
			}
			c, err := lab.Host.DialError("unix", path, 5*time.Second)
			if err != nil {
				t.Fatal(err)
			}
			defer c.Close()
			for deadline := time.Now().Add(10 * time.Second); !instanceSays(t, lab, user).Connected; time.Sleep(20 * time.Millisecond) {
				if time.Now().After(deadline) {
					t.Fatal("a machine is connected, and it does not say so")
				}
			}
			if s := instanceSays(t, lab, user, "--socket", control); !s.Control {
				t.Errorf("by the socket of --control: %+v", s)
			}
		})
	}
}

// awaitSocket waits for a socket that a process is to make, and for the process to be up.
func awaitSocket(t *testing.T, p *netlab.Proc, path string) {
	t.Helper()
	for range 400 {
		if _, err := os.Lstat(path); err == nil {
			return
		}
		if p.Exited() {
			break
		}
		time.Sleep(50 * time.Millisecond)
	}
	t.Fatalf("no socket %s\n%s", path, p.Output())
}

// TestStatusOfSeveral: with two instances one has to be chosen; one without a socket is
// not seen and runs as well; what has ended is gone.
func TestStatusOfSeveral(t *testing.T) {
	needOurs(t)
	lab := netlab.New(t, netlab.Options{NoRemote: true})
	if st, out := aldentectl(t, lab, netlab.Nobody, "status"); st != 1 || !strings.Contains(out, "no instance runs") {
		t.Errorf("none: status %d: %s", st, out)
	}
	hidden := lab.Guest("--control", "none")
	if n := statusSockets(lab); len(n) != 0 {
		t.Errorf("with --control none there are %q", n)
	}
	one, two := lab.Guest(), lab.Guest()
	for _, g := range []*netlab.Guest{one, two} {
		if s := instanceSays(t, lab, netlab.Nobody, "--pid", strconv.Itoa(g.Proc.PID)); s.PID != g.Proc.PID {
			t.Errorf("process %d says it is %d", g.Proc.PID, s.PID)
		}
	}
	st, out := aldentectl(t, lab, netlab.Nobody, "status")
	if st != 1 || !strings.Contains(out, "2 instances run") || !strings.Contains(out, fmt.Sprintf("--pid %d ", one.Proc.PID)) || strings.Contains(out, fmt.Sprint(hidden.Proc.PID)) {
		t.Errorf("two: status %d: %s", st, out)
	}
	if st, out := aldentectl(t, lab, netlab.Nobody, "status", "--pid", strconv.Itoa(hidden.Proc.PID)); st != 1 || !strings.Contains(out, "no instance") {
		t.Errorf("the hidden one: status %d: %s", st, out)
	}
	if st, out := aldentectl(t, lab, netlab.Nobody, "log-level", "debug", "--pid", strconv.Itoa(one.Proc.PID)); st != 1 || !strings.Contains(out, "without --control") {
		t.Errorf("a change without --control: status %d: %s", st, out)
	}
	if !netlab.Nested() {
		if st, out := aldentectl(t, lab, &netlab.User{UID: 61235, GID: 61235}, "list", "--json"); st != 0 || strings.TrimSpace(out) != "[]" {
			t.Errorf("another user sees: status %d: %s", st, out)
		}
	}
	_ = one.Proc.Signal(syscall.SIGKILL)
	one.Proc.WaitFor(5 * time.Second)
	if n := statusSockets(lab); len(n) != 1 {
		t.Errorf("once one was killed there are %q", n)
	}
	instanceSays(t, lab, netlab.Nobody)
}

// TestStatusSamePID: instances with the same process number in PID namespaces of their
// own both have a socket.
func TestStatusSamePID(t *testing.T) {
	needOurs(t)
	needRoot(t)
	lab := netlab.New(t, netlab.Options{NoRemote: true})
	for range 2 {
		lab.GuestWith(netlab.GuestSpec{User: netlab.Root, Wrap: []string{"unshare", "-p", "-f", "--kill-child", "--mount-proc"}, Args: []string{"--config-net", "--runas", "61234:61234"}})
	}
	names := statusSockets(lab)
	if len(names) != 2 || names[0] == names[1] {
		t.Fatalf("sockets %q", names)
	}
	for _, n := range []string{"@" + api.Prefix + "1", "@" + api.Prefix + "1-1"} {
		if !slices.Contains(names, n) {
			t.Errorf("%q, want %s among them", names, n)
		}
	}
	var all []api.StatusReply
	st, out := aldentectl(t, lab, netlab.Root, "list", "--json")
	if err := json.Unmarshal([]byte(out), &all); st != 0 || err != nil || len(all) != 2 {
		t.Errorf("status %d, %v: %s", st, err, out)
	}
	// The user that they run as may look at them, too.
	if st, out := aldentectl(t, lab, netlab.Nobody, "list"); st != 0 || strings.Count(out, "\n") != 3 {
		t.Errorf("status %d: %s", st, out)
	}
}

// TestStatusRootless: an instance in a user namespace, as rootless Podman starts it, is
// its user's outside, and not root's.
func TestStatusRootless(t *testing.T) {
	needOurs(t)
	lab := netlab.New(t, netlab.Options{NoRemote: true})
	g := lab.GuestWith(netlab.GuestSpec{Wrap: []string{"unshare", "-Ur", "-m"}, Args: []string{"--config-net"}})
	if s := instanceSays(t, lab, netlab.Nobody); s.PID != g.Proc.PID || s.User != 0 {
		t.Errorf("%+v", s)
	}
	if netlab.Nested() {
		return // there is no other root
	}
	if st, out := aldentectl(t, lab, netlab.Root, "status"); st != 1 || !strings.Contains(out, "1 more are other users'") {
		t.Errorf("root outside: status %d: %s", st, out)
	}
}

// TestStatusUnmapped: where the user namespace that an instance was started in does not
// know its user, all users look like that one: nobody is told anything.
func TestStatusUnmapped(t *testing.T) {
	needOurs(t)
	needRoot(t)
	lab := netlab.New(t, netlab.Options{NoRemote: true})
	path := filepath.Join(socketDir(t), "s")
	p := lab.Host.Start(netlab.Spec{User: netlab.Nobody, Timeout: time.Minute,
		Args: []string{"unshare", "-U", filepath.Join(netlab.Stage(), "passt"), "-f", "-s", path}})
	awaitSocket(t, p, path)
	names := statusSockets(lab)
	if len(names) != 1 {
		t.Fatalf("sockets %q\n%s", names, p.Output())
	}
	for _, user := range []int{61235, int(netlab.Nobody.UID)} {
		if err := lab.Host.Do(func() error { return toldNothing(user, names[0]) }); err != nil {
			t.Errorf("user %d: %v", user, err)
		}
	}
}

// asUser runs f as another user, on this thread, which has to be locked.
func asUser(user int, f func() error) error {
	keep := ^uintptr(0)
	if _, _, e := unix.RawSyscall(unix.SYS_SETRESUID, keep, uintptr(user), keep); e != 0 {
		return e
	}
	defer unix.RawSyscall(unix.SYS_SETRESUID, keep, 0, keep)
	return f()
}

// toldNothing asks by a status socket, as a user, and returns what is wrong if that is
// told anything.
func toldNothing(user int, name string) error {
	return asUser(user, func() error {
		fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
		if err != nil {
			return err
		}
		defer unix.Close(fd)
		tv := unix.Timeval{Sec: 5}
		_ = unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_SNDTIMEO, &tv)
		_ = unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &tv)
		if err := unix.Connect(fd, &unix.SockaddrUnix{Name: name}); err != nil {
			return err
		}
		b := make([]byte, 64)
		_, _ = unix.Write(fd, []byte(`{"version":1,"command":"status"}`+"\n"))
		n, err := unix.Read(fd, b)
		if n > 0 || err == unix.EAGAIN {
			return fmt.Errorf("it is told %q, %v", b[:max(n, 0)], err)
		}
		return nil
	})
}

// TestStatusOfProcess: an instance in the background, for the namespace of a process, by
// the number that its PID file has; no process that waits for it is held up.
func TestStatusOfProcess(t *testing.T) {
	needOurs(t)
	lab := netlab.New(t, netlab.Options{NoRemote: true})
	pid := holder(t, lab)
	file := filepath.Join(openDir(t), "pid")
	p := lab.For(t).StartPasta(netlab.GuestSpec{User: netlab.Nobody}, "--config-net", "-P", file, strconv.Itoa(pid))
	if st := p.Wait(); st != 0 || p.Leaked() {
		t.Fatalf("status %d, output still open %v: %s", st, p.Leaked(), p.Output())
	}
	broker := readPID(t, file)
	defer func() { _ = syscall.Kill(broker, syscall.SIGTERM) }()
	if s := instanceSays(t, lab, netlab.Nobody); s.PID != broker || s.Guest != fmt.Sprintf("namespace of process %d", pid) || !s.Connected || s.LogLevel != "info" {
		t.Errorf("%+v", s)
	}
}

// TestStatusGuest: a command in the guest, of the same user and with the same files,
// finds no instance, learns nothing and changes nothing, by any socket, in whatever
// namespaces of its own it asks.
func TestStatusGuest(t *testing.T) {
	needOurs(t)
	lab := netlab.New(t, netlab.Options{NoRemote: true})
	for _, program := range []string{"pasta", "aldente"} {
		t.Run(program, func(t *testing.T) {
			dir := socketDir(t)
			client := filepath.Join(dir, "ctl") // aldente leaves of /tmp the working directory
			b, err := os.ReadFile(filepath.Join(netlab.Stage(), "aldentectl"))
			if err == nil {
				err = os.WriteFile(client, b, 0o755)
			}
			if err != nil {
				t.Fatal(err)
			}
			var script strings.Builder
			script.WriteString("ls -l s c\n")
			for _, in := range []string{"", "unshare -Ur ", "unshare -Urn ", "unshare -Urmpf ", "nsenter -t 1 -n "} {
				fmt.Fprintf(&script, "%s./ctl list --json\n", in)
				for _, what := range []string{"status", "log-level debug", "log-level debug --socket s", "status --socket s", "status --socket c", "status --socket @aldente/$BROKER", "pesto -A -t 9002 c"} {
					fmt.Fprintf(&script, "%s./ctl %s; echo \"[$?]\"\n", in, what)
				}
			}
			script.WriteString("touch ready; while ! test -e go; do sleep 0.05; done\n")
			p := lab.For(t).StartPasta(netlab.GuestSpec{Binary: filepath.Join(netlab.Stage(), program), User: netlab.Nobody,
				Wrap: []string{"sh", "-c", `cd "$0" && BROKER=$$ exec "$@"`, dir}}, "--config-net", "-t", "none", "-u", "none", "-T", "none", "-U", "none",
				"--control", "s", "-c", "c", "--", "sh", "-c", script.String())
			awaitSocket(t, p, filepath.Join(dir, "ready"))
			s := instanceSays(t, lab, netlab.Nobody)
			if s.PID != p.PID || s.LogLevel != "warning" || s.ControlPath != filepath.Join(dir, "s") {
				t.Errorf("%+v", s)
			}
			if st, out := aldentectl(t, lab, netlab.Nobody, "log-level", "info"); st != 0 { // who is outside may
				t.Errorf("status %d: %s", st, out)
			}
			if err := os.WriteFile(filepath.Join(dir, "go"), nil, 0o644); err != nil {
				t.Fatal(err)
			}
			p.Wait()
			out := p.Output()
			if strings.Count(out, "srw-------") != 2 {
				t.Errorf("the guest does not see the sockets: the test shows nothing\n%s", out)
			}
			if strings.Contains(out, "[0]") || strings.Count(out, "[1]") < 7*4 || strings.Count(out, "[]") < 4 || strings.Contains(out, "personality") || strings.Contains(out, "HOST") {
				t.Errorf("not refused:\n%s", out)
			}
			if !strings.Contains(out, "in another network namespace") {
				t.Errorf("the log says nothing of it:\n%s", out)
			}
		})
	}
}

// TestBugReport: it has what it says, and with --redact no address.
func TestBugReport(t *testing.T) {
	needOurs(t)
	lab := netlab.New(t, netlab.Options{NoRemote: true})
	g := lab.Guest("--search", "corp.example")
	st, out := aldentectl(t, lab, netlab.Nobody, "bugreport")
	for _, want := range []string{"== About", "== System", "kernel ", "== Self-test", "all layers are in force", "== Status", strconv.Itoa(g.Proc.PID), netlab.Host4, "== Egress rules", "Max open files"} {
		if st != 0 || !strings.Contains(out, want) {
			t.Errorf("status %d, no %q\n%s", st, want, out)
		}
	}
	st, out = aldentectl(t, lab, netlab.Nobody, "bugreport", "--redact", "--json")
	var sections []struct{ Title, Text string }
	if err := json.Unmarshal([]byte(out), &sections); err != nil || len(sections) < 5 {
		t.Errorf("status %d, %v: %s", st, err, out)
	}
	if strings.Contains(out, netlab.Host4) || strings.Contains(out, netlab.Host6) || strings.Contains(out, "corp.example") || !strings.Contains(out, "ipv4-1") {
		t.Errorf("not redacted: %s", out)
	}
}
