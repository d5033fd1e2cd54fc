// SPDX-License-Identifier: Apache-2.0

package stream

import (
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"aldente/test/machine"
	"aldente/test/netlab"
)

// ends waits for the program's end and checks its status.
func ends(t *testing.T, p *netlab.Proc, within time.Duration) {
	t.Helper()
	since := time.Now()
	st, ok := p.WaitFor(within)
	if !ok || st != 0 {
		t.Fatalf("ended %v with status %d", ok, st)
	}
	t.Logf("ended after %v", time.Since(since).Round(time.Millisecond))
}

func TestSecondClientRefused(t *testing.T) {
	p := start(t, netlab.New(t, netlab.Options{NoRemote: true}))
	first := p.connect(t)
	first.works()
	for range 3 {
		second := p.connect(t)
		if !second.ended() {
			t.Error("a second client is not turned away")
		}
		second.Close()
		first.works()
	}
	first.Close()
	p.nextWorks(t)
}

func TestOneOff(t *testing.T) {
	p := start(t, netlab.New(t, netlab.Options{NoRemote: true}), "--one-off")
	c := p.connect(t)
	c.works()
	c.Close()
	ends(t, p.Proc, 10*time.Second)
}

func TestTerminated(t *testing.T) {
	for _, sig := range []syscall.Signal{syscall.SIGTERM, syscall.SIGQUIT} {
		for _, connected := range []bool{false, true} {
			t.Run(fmt.Sprintf("%v/connected=%v", sig, connected), func(t *testing.T) {
				p := start(t, netlab.New(t, netlab.Options{NoRemote: true}))
				if connected {
					p.connect(t).works()
				}
				if err := p.Signal(sig); err != nil {
					t.Fatal(err)
				}
				ends(t, p.Proc, 10*time.Second)
			})
		}
	}
}

// TestBackground is libvirt's contract: status 0 means that the socket accepts
// clients and that the PID file is there, and nothing keeps the standard
// streams open.
func TestBackground(t *testing.T) {
	lab := netlab.New(t, netlab.Options{NoRemote: true})
	dir := machine.OpenDir(t)
	path, pidFile, logFile := filepath.Join(dir, "socket"), filepath.Join(dir, "pid"), filepath.Join(dir, "log")
	since := time.Now()
	run := lab.Host.Start(netlab.Spec{User: netlab.Nobody, Args: []string{machine.Program(t), "--one-off", "--socket", path, "--pid", pidFile,
		"--log-file", logFile, "--mtu", "9000", "--interface", "h0", "--hostname", "vm", "--fqdn", "vm.example.net",
		"--address", "192.0.2.5", "--netmask", "24", "--gateway", netlab.Gateway4, "--tcp-ports", "2222-2225:22-25", "--udp-ports", "2224:24"}})
	ends(t, run, 10*time.Second)
	took := time.Since(since)
	if run.Leaked() {
		t.Error("a process left behind keeps standard output or error open")
	}
	t.Logf("ready after %v", took.Round(time.Millisecond))
	pid := readPID(t, pidFile)
	for _, f := range []string{path, pidFile, logFile} {
		if st, err := os.Stat(f); err != nil || st.Mode().Perm() != 0o600 {
			t.Errorf("%s: %v, mode %v, want 0600", f, err, st.Mode())
		}
	}
	if f := netlab.Stat(pid); len(f) < 4 || f[3] != strconv.Itoa(pid) {
		t.Errorf("process %d is not in a session of its own: %v", pid, f)
	}
	p := &passt{&machine.Passt{Proc: run, Path: path}}
	c := p.connect(t)
	c.works()
	all := netlab.Children(pid)
	c.Close()
	gone(t, all, 10*time.Second)
}

// TestGivenDescriptor is QEMU's contract for -netdev passt: it gives an end of
// a pair of sockets under any number, and reads the PID file.
func TestGivenDescriptor(t *testing.T) {
	lab := netlab.New(t, netlab.Options{NoRemote: true})
	for _, number := range []int{3, 4, 9} {
		t.Run(fmt.Sprint(number), func(t *testing.T) {
			pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
			if err != nil {
				t.Fatal(err)
			}
			theirs, ours := os.NewFile(uintptr(pair[0]), "passt's"), os.NewFile(uintptr(pair[1]), "QEMU's")
			defer ours.Close()
			pidFile := filepath.Join(machine.OpenDir(t), "pid")
			cmd := exec.Command(machine.Program(t), "--quiet", "--pid", pidFile, "--fd", fmt.Sprint(number))
			cmd.ExtraFiles = make([]*os.File, number-2)
			cmd.ExtraFiles[number-3] = theirs
			if !netlab.Nested() {
				cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: netlab.Nobody.UID, Gid: netlab.Nobody.GID}}
			}
			var out []byte
			err = lab.For(t).Host.Do(func() (err error) { out, err = cmd.CombinedOutput(); return })
			theirs.Close()
			if err != nil || len(out) > 0 {
				t.Fatalf("%v: %s", err, out)
			}
			pid := readPID(t, pidFile)
			conn, err := net.FileConn(ours)
			if err != nil {
				t.Fatal(err)
			}
			ours.Close()
			c := &client{UnixConn: conn.(*net.UnixConn), t: t}
			c.works()
			all := netlab.Children(pid)
			c.Close()
			gone(t, all, 10*time.Second)
		})
	}
}

// readPID reads a PID file; the process is killed when the test ends.
func readPID(t *testing.T, path string) int {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	pid, err := strconv.Atoi(strings.TrimSuffix(string(b), "\n"))
	if err != nil {
		t.Fatalf("PID file: %q", b)
	}
	t.Cleanup(func() { _ = syscall.Kill(pid, syscall.SIGKILL) })
	return pid
}

// gone waits for the end of processes.
func gone(t *testing.T, pids []int, within time.Duration) {
	t.Helper()
	deadline := time.Now().Add(within)
	for _, p := range pids {
		for f := netlab.Stat(p); f != nil && f[0] != "Z"; f = netlab.Stat(p) {
			if time.Now().After(deadline) {
				t.Fatalf("process %d is still there after %v", p, within)
			}
			time.Sleep(time.Millisecond)
		}
	}
}

func TestStartFails(t *testing.T) {
	lab := netlab.New(t, netlab.Options{NoRemote: true})
	p := start(t, lab)
	dir := machine.OpenDir(t)
	for _, tt := range []struct {
		name string
		args []string
		want string
	}{
		{"socket in use", []string{"-s", p.Path}, p.Path},
		{"no such folder", []string{"-s", filepath.Join(dir, "none/socket")}, "none/socket"},
		{"PID file", []string{"-s", filepath.Join(dir, "a"), "-P", "/proc/none"}, "PID"},
		{"bad port", []string{"-s", filepath.Join(dir, "b"), "-t", "0"}, "0"},
		{"no such interface", []string{"-s", filepath.Join(dir, "c"), "-i", "none0"}, "none0"},
		{"unknown option", []string{"--bogus"}, "unrecognized option '--bogus'"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			for _, fore := range [][]string{nil, {"-f"}} {
				run := lab.For(t).Host.Start(netlab.Spec{User: netlab.Nobody, Args: append(append([]string{machine.Program(t)}, fore...), tt.args...)})
				st, ok := run.WaitFor(10 * time.Second)
				if !ok || st != 1 || !strings.Contains(run.Output(), tt.want) {
					t.Errorf("%v: ended %v with status %d, want 1, and %q in\n%s", fore, ok, st, tt.want, run.Output())
				}
				if netlab.Ours() && strings.Contains(run.Output(), "goroutine") {
					t.Errorf("panic: %s", run.Output())
				}
			}
		})
	}
	p.nextWorks(t)
}

// TestProbeIsNoClient has another passt look whether the socket is taken: the
// first must not mistake that for its only client.
func TestProbeIsNoClient(t *testing.T) {
	machine.NeedOurs(t)
	lab := netlab.New(t, netlab.Options{NoRemote: true})
	p := start(t, lab, "--one-off")
	for range 3 {
		second := lab.Host.Start(netlab.Spec{User: netlab.Nobody, Args: []string{machine.Program(t), "-f", "-s", p.Path}})
		if st, ok := second.WaitFor(10 * time.Second); !ok || st != 1 || !strings.Contains(second.Output(), "in use") {
			t.Fatalf("the second ended %v with status %d: %s", ok, st, second.Output())
		}
	}
	if p.Exited() {
		t.Fatalf("the first ended with status %d", p.Wait())
	}
	p.connect(t).works()
}

// TestDefaultSockets starts two without a path: each takes the first that is
// free.
func TestDefaultSockets(t *testing.T) {
	lab := netlab.New(t, netlab.Options{NoRemote: true})
	seen := map[string]bool{}
	for range 2 {
		run := lab.Host.Start(netlab.Spec{User: netlab.Nobody, Args: []string{machine.Program(t), "-f"}})
		path := ""
		for since := time.Now(); path == ""; time.Sleep(10 * time.Millisecond) {
			for line := range strings.Lines(lab.Host.Read("/proc/net/unix")) {
				f := strings.Fields(line)
				if len(f) == 8 && strings.HasPrefix(f[7], "/tmp/passt_") && !seen[f[7]] && machine.Listens(lab.Host, f[7]) {
					path = f[7]
				}
			}
			if run.Exited() || time.Since(since) > 10*time.Second {
				t.Fatalf("no socket after %v: %s", time.Since(since), run.Output())
			}
		}
		t.Cleanup(func() { _ = os.Remove(path) }) // left over, as the original leaves it
		var n int
		if _, err := fmt.Sscanf(path, "/tmp/passt_%d.socket", &n); err != nil || n < 1 || n > 64 {
			t.Errorf("socket %s", path)
		}
		seen[path] = true
		p := &passt{&machine.Passt{Proc: run, Path: path}}
		c := p.connect(t)
		c.works()
	}
}

// TestWorkerKilled loses the client, as nobody knows how far into a frame it
// was, and serves the next.
func TestWorkerKilled(t *testing.T) {
	machine.NeedOurs(t)
	p := start(t, netlab.New(t, netlab.Options{NoRemote: true}))
	c := p.connect(t)
	c.works()
	if err := syscall.Kill(p.Worker(t), syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	if !c.ended() {
		t.Error("the client is not told")
	}
	p.nextWorks(t)
}

// TestStaleSocket takes over a socket that nobody listens on.
func TestStaleSocket(t *testing.T) {
	lab := netlab.New(t, netlab.Options{NoRemote: true})
	p := start(t, lab)
	p.Kill()
	p.Wait()
	again := lab.Host.Start(netlab.Spec{User: netlab.Nobody, Args: []string{machine.Program(t), "-f", "-1", "-s", p.Path}})
	var c net.Conn
	for range 100 {
		var err error
		if c, err = net.Dial("unix", p.Path); err == nil {
			break
		}
		time.Sleep(20 * time.Millisecond)
	}
	if c == nil {
		t.Fatalf("no socket: %s", again.Output())
	}
	c.Close()
	ends(t, again, 10*time.Second)
}
