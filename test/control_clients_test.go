// SPDX-License-Identifier: Apache-2.0

package test

import (
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"aldente/broker/control/api"
	"aldente/test/netlab"
)

// TestLogLevel: by the socket of --control the log shows more and less, at once.
func TestLogLevel(t *testing.T) {
	needOurs(t)
	lab := netlab.New(t, netlab.Options{})
	path := filepath.Join(socketDir(t), "s")
	g := lab.Guest("--control", path, "--deny", "tcp:any:9001-9010")
	port := 9000
	// refused has the egress rules refuse a destination, of which they tell once, and
	// reports whether the log has it.
	refused := func(wanted bool) {
		t.Helper()
		port++
		at := fmt.Sprintf("%s:%d", lab.Remote4, port)
		if c, err := g.DialError("tcp", at, 5*time.Second); err == nil {
			c.Close()
			t.Errorf("%s is not refused", at)
		}
		shown := func() bool { return strings.Contains(g.Proc.Output(), "to="+at) }
		if wanted && !eventually(10*time.Second, shown) || !wanted && eventually(200*time.Millisecond, shown) {
			t.Errorf("%s is shown: %v\n%s", at, !wanted, g.Proc.Output())
		}
	}
	set := func(args ...string) {
		t.Helper()
		if st, out := aldentectl(t, lab, netlab.Nobody, append([]string{"log-level"}, args...)...); st != 0 || out != "" {
			t.Fatalf("log-level %q: status %d: %s", args, st, out)
		}
	}
	refused(true)
	set("error") // it finds the path by itself
	refused(false)
	if s := instanceSays(t, lab, netlab.Nobody); s.LogLevel != "error" {
		t.Errorf("%+v", s)
	}
	set("debug", "--socket", path)
	refused(true)
	if out := g.Proc.Output(); strings.Count(out, "changed by a client") != 1 {
		t.Errorf("who changed it: %s", out)
	}
	for _, level := range []string{"trace", "loud"} {
		if st, out := aldentectl(t, lab, netlab.Nobody, "log-level", level); st != 1 || strings.Count(out, "\n") != 1 {
			t.Errorf("%s: status %d: %s", level, st, out)
		}
	}
}

// TestControlSocket: where the socket of --control may be, and that it goes with the
// instance, however that ends.
func TestControlSocket(t *testing.T) {
	needOurs(t)
	lab := netlab.New(t, netlab.Options{NoRemote: true})
	dir := socketDir(t)
	path := filepath.Join(dir, "s")
	for name, want := range map[string]string{
		"/dev/null": "another path with --control", dir: "another path with --control", filepath.Join(dir, "none", "s"): "create the directory",
		strings.Repeat("x", 120): "at most 107 bytes",
	} {
		p := lab.For(t).StartPasta(netlab.GuestSpec{User: netlab.Nobody}, "--control", name, "--config-net", "--", "true")
		if st := p.Wait(); st != 1 || !strings.Contains(p.Output(), want) {
			t.Errorf("--control %s: status %d: %s", name, st, p.Output())
		}
	}
	p := lab.For(t).StartPasta(netlab.GuestSpec{User: netlab.Nobody}, "--control", path, "-c", path, "--config-net", "--", "true")
	if st := p.Wait(); st != 1 || !strings.Contains(p.Output(), "a path of its own") {
		t.Errorf("one path for both: status %d: %s", st, p.Output())
	}
	for _, end := range []syscall.Signal{syscall.SIGTERM, syscall.SIGKILL} {
		g := lab.Guest("--control", path)
		if st, err := os.Lstat(path); err != nil || st.Mode() != os.ModeSocket|0o600 {
			t.Errorf("the socket is %v, %v", st.Mode(), err)
		}
		_ = g.Proc.Signal(end)
		g.Proc.WaitFor(5 * time.Second)
		for deadline := time.Now().Add(5 * time.Second); ; time.Sleep(10 * time.Millisecond) {
			if _, err := os.Lstat(path); errors.Is(err, os.ErrNotExist) {
				break
			}
			if time.Now().After(deadline) {
				t.Fatalf("the socket is left after %v", end)
			}
		}
	}
}

// TestStatusHeld: the broker alone has its sockets, and captured code in it, or in the
// agent, makes none to connect by.
func TestStatusHeld(t *testing.T) {
	needOurs(t)
	needRoot(t) // descriptors of processes that cannot be dumped
	lab := netlab.New(t, netlab.Options{NoRemote: true})
	path := filepath.Join(socketDir(t), "s")
	g := lab.Guest("--control", path)
	var sockets []string
	for line := range strings.Lines(lab.Host.Read("/proc/net/unix")) {
		if f := strings.Fields(line); len(f) == 8 && (f[7] == path || strings.HasPrefix(f[7], "@"+api.Prefix)) {
			sockets = append(sockets, "socket:["+f[6]+"]")
		}
	}
	if len(sockets) != 2 {
		t.Fatalf("sockets %q", sockets)
	}
	for _, pid := range append(g.Processes(), g.Holder) {
		held := 0
		dir := fmt.Sprintf("/proc/%d/fd/", pid)
		entries, err := os.ReadDir(dir)
		if err != nil {
			t.Fatal(err)
		}
		for _, e := range entries {
			if link, err := os.Readlink(dir + e.Name()); err == nil && slices.Contains(sockets, link) {
				held++
			}
		}
		if want := map[bool]int{true: 2}[pid == g.Proc.PID]; held != want {
			comm, _ := os.ReadFile(fmt.Sprintf("/proc/%d/comm", pid))
			t.Errorf("%s holds %d of the sockets, want %d", comm, held, want)
		}
	}
	for _, who := range []string{"broker", "agent"} {
		for _, attempt := range strings.Fields("socket-unix connect-status unlinkat") {
			if got := tryCaptive(t, lab, who, attempt, "--control", filepath.Join(socketDir(t), "s")); got != "killed" {
				t.Errorf("%s, with --control: %s: %s", who, attempt, got)
			}
		}
	}
}

// TestStatusOtherUsers: whoever is another user is told nothing by the status socket,
// which has no mode; and connecting without end it keeps neither the instance's user
// nor traffic from their turn.
func TestStatusOtherUsers(t *testing.T) {
	needOurs(t)
	needRoot(t)
	lab := netlab.New(t, netlab.Options{})
	g := lab.Guest()
	ln := lab.Remote.Listen("tcp", ":9000")
	go netlab.Echo(ln)
	name := statusSockets(lab)[0]
	stop := make(chan struct{})
	said := make(chan error, 1)
	go func() {
		said <- lab.Host.Do(func() error {
			for n := 0; ; n++ {
				select {
				case <-stop:
					if n < 10 {
						return fmt.Errorf("only %d connections", n)
					}
					return nil
				default:
				}
				if err := toldNothing(61235, name); err != nil {
					return err
				}
			}
		})
	}()
	for range 10 {
		if s := instanceSays(t, lab, netlab.Nobody); s.PID != g.Proc.PID {
			t.Errorf("%+v", s)
		}
		if got, err := netlab.Ask(g.NS, "tcp", lab.Remote4+":9000", "?"); err != nil || got != "?" {
			t.Errorf("%q, %v", got, err)
		}
	}
	close(stop)
	if err := <-said; err != nil {
		t.Errorf("another user: %v", err)
	}
	if out := g.Proc.Output(); !strings.Contains(out, "neither this instance's user nor root") || strings.Count(out, "refused") > 60 {
		t.Errorf("the log: %s", out)
	}
}

// TestSquattedName: a socket of another user's with an instance's name is not spoken to,
// nor listed.
func TestSquattedName(t *testing.T) {
	needOurs(t)
	needRoot(t)
	lab := netlab.New(t, netlab.Options{NoRemote: true})
	g := lab.Guest()
	const name = "@" + api.Prefix + "4242"
	squat := -1
	if err := lab.Host.Do(func() error {
		return asUser(61235, func() (err error) {
			if squat, err = unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0); err != nil {
				return err
			}
			if err = unix.Bind(squat, &unix.SockaddrUnix{Name: name}); err == nil {
				err = unix.Listen(squat, 5)
			}
			return err
		})
	}); err != nil {
		t.Fatal(err)
	}
	defer unix.Close(squat)
	if s := instanceSays(t, lab, netlab.Nobody); s.PID != g.Proc.PID {
		t.Errorf("%+v", s)
	}
	if st, out := aldentectl(t, lab, netlab.Nobody, "status", "--socket", name); st != 1 || !strings.Contains(out, "another user's") {
		t.Errorf("status %d: %s", st, out)
	}
	for range 2 { // both have connected
		fd, _, err := unix.Accept(squat)
		if err != nil {
			t.Fatal(err)
		}
		b := make([]byte, 64)
		if n, err := unix.Read(fd, b); n > 0 || err != nil {
			t.Errorf("it was told %q, %v", b[:max(n, 0)], err)
		}
		unix.Close(fd)
	}
}

// TestControlPathOfAnother: what says that another process's socket is its own has nobody
// speak to that one.
func TestControlPathOfAnother(t *testing.T) {
	needOurs(t)
	lab := netlab.New(t, netlab.Options{NoRemote: true})
	path := filepath.Join(socketDir(t), "s")
	lab.Guest("--control", path)
	const name = "@" + api.Prefix + "4242"
	ln := lab.Host.Listen("unix", name)
	go func() {
		for {
			c, err := ln.Accept()
			if err != nil {
				return
			}
			_, _ = c.Read(make([]byte, 4096))
			fmt.Fprintf(c, `{"status":{"personality":"pasta","control_path":%q}}`+"\n", path)
			c.Close()
		}
	}()
	if st, out := aldentectl(t, lab, netlab.Root, "log-level", "debug", "--socket", name); st != 1 || !strings.Contains(out, "is not the socket of process") {
		t.Errorf("status %d: %s", st, out)
	}
	if s := instanceSays(t, lab, netlab.Root, "--socket", path); s.LogLevel != "warning" {
		t.Errorf("%+v", s)
	}
}

// TestStatusClients: clients that are slow, or say nothing that makes sense, disturb
// neither traffic nor other clients.
func TestStatusClients(t *testing.T) {
	needOurs(t)
	lab := netlab.New(t, netlab.Options{})
	g := lab.Guest()
	ln := lab.Remote.Listen("tcp", ":9000")
	go netlab.Echo(ln)
	name := statusSockets(lab)[0]
	var held []net.Conn
	for i := range 40 {
		c, err := lab.Host.DialError("unix", name, 5*time.Second)
		if err != nil {
			t.Fatal(err)
		}
		held = append(held, c)
		_, _ = io.WriteString(c, []string{"", "{", "GET / HTTP/1.0\r\n\r\n", strings.Repeat("[", 60_000), "\x00\xff\n"}[i%5])
		if i%8 != 0 {
			continue
		}
		if got, err := netlab.Ask(g.NS, "tcp", lab.Remote4+":9000", "?"); err != nil || got != "?" {
			t.Errorf("beside %d clients: %q, %v", i+1, got, err)
		}
		instanceSays(t, lab, netlab.Nobody)
	}
	for _, c := range held {
		c.Close()
	}

	// Nothing is left of a client.
	ask := func(times int) {
		t.Helper()
		for range times {
			c, err := lab.Host.DialError("unix", name, 5*time.Second)
			if err != nil {
				t.Fatal(err)
			}
			_ = c.SetDeadline(time.Now().Add(10 * time.Second))
			_, _ = io.WriteString(c, `{"version":1,"command":"status"}`+"\n")
			if b, err := io.ReadAll(c); err != nil || !strings.Contains(string(b), "personality") {
				t.Fatalf("%q, %v", b, err)
			}
			c.Close()
		}
	}
	count := func() int {
		fds, _ := os.ReadDir(fmt.Sprintf("/proc/%d/fd", g.Proc.PID))
		return len(fds)
	}
	ask(200)
	fds, memory := count(), rss(g.Proc.PID)
	ask(1000)
	if !eventually(5*time.Second, func() bool { return count() <= fds }) || rss(g.Proc.PID) > memory+8<<10 {
		t.Errorf("%d descriptors and %d KiB after 1000 clients, %d and %d before", count(), rss(g.Proc.PID), fds, memory)
	}
}
