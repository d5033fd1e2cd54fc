// SPDX-License-Identifier: Apache-2.0

package netlab

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
	"time"

	"golang.org/x/sys/unix"
)

// Nobody is the unprivileged user that translators run as when the tests run
// as root. It needs no entry in passwd(5).
var Nobody = &User{UID: 61234, GID: 61234}

// Root runs a translator as the tests' own user.
var Root = &User{}

// NoForward returns the options that turn off what pasta forwards by default
// and args do not ask for, so that a lab does only what its test is about.
func NoForward(args ...string) []string {
	var off []string
	for _, o := range []string{"-t", "-u", "-T", "-U"} {
		if !slices.Contains(args, o) {
			off = append(off, o, "none")
		}
	}
	return off
}

// GuestSpec says how to start a translator.
type GuestSpec struct {
	Args     []string      // before the command; NoForward comes first
	Wrap     []string      // command that runs the translator, as unshare(1)
	User     *User         // nil: Nobody
	Resolv   string        // contents of the host's resolv.conf, empty: as it is
	ResolvAt string        // a file that stands for it, which may change; empty: Resolv counts
	Binary   string        // empty: the pasta under test
	Timeout  time.Duration // after which it is killed, zero: a default
}

// Guest is a namespace behind a translator.
type Guest struct {
	*NS
	Proc   *Proc // the translator
	Holder int   // process id of the command that keeps the namespace
	lab    *Lab
	conn   net.Conn
}

// Guest starts the translator on the host with --config-net and further
// arguments and waits until its command runs.
func (l *Lab) Guest(args ...string) *Guest {
	l.TB.Helper()
	return l.GuestWith(GuestSpec{Args: append([]string{"--config-net"}, args...)})
}

// GuestWith is Guest with every choice open.
func (l *Lab) GuestWith(s GuestSpec) *Guest {
	l.TB.Helper()
	s = l.defaults(s)
	sock := filepath.Join(stage, fmt.Sprintf("s%d", time.Now().UnixNano()))
	ln, err := net.ListenUnix("unix", &net.UnixAddr{Name: sock, Net: "unix"})
	if err != nil {
		l.TB.Fatalf("%v", err)
	}
	defer ln.Close()
	if err := os.Chmod(sock, 0o777); err != nil {
		l.TB.Fatalf("%v", err)
	}
	args := slices.Concat(s.Args, []string{"--", holder, helperArg, sock})
	g := &Guest{lab: l, Proc: l.StartPasta(s, args...)}
	if err := g.accept(ln); err != nil {
		g.Proc.Kill()
		g.Proc.WaitFor(5 * time.Second)
		l.TB.Fatalf("%s: guest not up: %v\n%s", strings.Join(s.Args, " "), err, g.Proc.Output())
	}
	g.NS = OpenNS(l.TB, "guest", fmt.Sprintf("/proc/%d/ns/net", g.Holder))
	g.SetCongestionControl()
	l.TB.Cleanup(g.Close)
	return g
}

func (l *Lab) defaults(s GuestSpec) GuestSpec {
	if s.User == nil {
		s.User = Nobody
	}
	if s.Timeout == 0 {
		s.Timeout = 10 * time.Minute
	}
	if s.Binary == "" {
		s.Binary = l.Binary
	}
	s.Args = slices.Concat(NoForward(s.Args...), s.Args)
	if filepath.Base(s.Binary) == "aldente" && !slices.Contains(s.Args, "--hide-sockets") {
		s.Args = append([]string{"--no-hide-sockets"}, s.Args...) // the holder tells by a socket that it is up
	}
	return s
}

// StartPasta starts the program under test in the host's namespace with
// exactly these arguments.
func (l *Lab) StartPasta(s GuestSpec, args ...string) *Proc {
	l.TB.Helper()
	if s.Binary == "" {
		s.Binary = l.Binary
	}
	if s.Binary == "" {
		l.TB.Fatalf("no pasta to test: %v", noBin)
	}
	argv := slices.Concat(s.Wrap, []string{s.Binary}, args)
	user := s.User
	if s.Resolv != "" || s.ResolvAt != "" {
		argv, user = withResolv(l.TB, s, argv)
	}
	if user == Root {
		user = nil
	}
	p := l.Host.Start(Spec{Args: argv, User: user, Timeout: s.Timeout})
	l.TB.Cleanup(func() {
		if l.TB.Failed() {
			l.TB.Logf("%s (%s)\n%s", strings.Join(argv, " "), p.State(), p.Output())
		}
	})
	return p
}

// withResolv wraps argv so that it runs in a mount namespace with another
// resolv.conf.
func withResolv(tb TB, s GuestSpec, argv []string) ([]string, *User) {
	f := s.ResolvAt
	if f == "" {
		f = filepath.Join(stage, fmt.Sprintf("resolv%d", time.Now().UnixNano()))
		if err := os.WriteFile(f, []byte(s.Resolv), 0o644); err != nil {
			tb.Fatalf("%v", err)
		}
	}
	pre := []string{"unshare", "-m", "sh", "-c", `mount --bind "$1" /etc/resolv.conf && shift && exec "$@"`, "sh", f}
	if u := s.User; u != nil && u != Root && !Nested() {
		pre = append(pre, "setpriv", fmt.Sprintf("--reuid=%d", u.UID), fmt.Sprintf("--regid=%d", u.GID), "--clear-groups")
	}
	return append(pre, argv...), nil
}

func (g *Guest) accept(ln *net.UnixListener) error {
	const usual = 15 * time.Second
	deadline := time.Now().Add(Patient(usual))
	for {
		_ = ln.SetDeadline(time.Now().Add(50 * time.Millisecond))
		c, err := ln.AcceptUnix()
		if err == nil {
			g.conn = c
			return g.peer(c)
		}
		if g.Proc.Exited() {
			return fmt.Errorf("translator ended with status %d", g.Proc.Wait())
		}
		if time.Now().After(deadline) {
			return fmt.Errorf("no sign of the command for %v", Patient(usual))
		}
	}
}

func (g *Guest) peer(c *net.UnixConn) error {
	_ = c.SetReadDeadline(time.Now().Add(Patient(5 * time.Second)))
	if _, err := io.ReadFull(c, make([]byte, 1)); err != nil {
		return err
	}
	rc, err := c.SyscallConn()
	if err != nil {
		return err
	}
	var cred *unix.Ucred
	var cerr error
	err = rc.Control(func(fd uintptr) {
		cred, cerr = unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED)
	})
	if err := errors.Join(err, cerr); err != nil {
		return err
	}
	g.Holder = int(cred.Pid)
	return nil
}

// Close ends the guest's command and waits for the translator to follow.
func (g *Guest) Close() {
	g.conn.Close()
	if _, ok := g.Proc.WaitFor(5 * time.Second); !ok {
		g.lab.TB.Logf("the translator outlived its command by 5 s")
		_ = g.Proc.Signal(syscall.SIGTERM)
		g.Proc.WaitFor(time.Second)
		g.Proc.Kill()
	}
}

// Interface returns the name of the guest's tap.
func (g *Guest) Interface() string {
	g.lab.TB.Helper()
	for line := range strings.Lines(g.Read("/proc/net/dev")) {
		name, _, ok := strings.Cut(line, ":")
		if name = strings.TrimSpace(name); ok && name != "lo" {
			return name
		}
	}
	g.lab.TB.Fatalf("the guest has no interface but lo")
	return ""
}
