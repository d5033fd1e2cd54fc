// SPDX-License-Identifier: Apache-2.0

package test

import (
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/creack/pty"
	"golang.org/x/sys/unix"

	"aldente/test/netlab"
)

// terminal is a program at a terminal, in a namespace.
type terminal struct {
	cmd    *exec.Cmd
	master *os.File
	tty    *os.File
	before *unix.Termios
	done   chan error

	mu  sync.Mutex
	out []byte
}

func atTerminal(t *testing.T, n *netlab.NS, rows, columns uint16, env []string, args ...string) *terminal {
	t.Helper()
	master, tty, err := pty.Open()
	if err != nil {
		t.Skipf("no terminal to be had: %v", err)
	}
	x := &terminal{master: master, tty: tty, done: make(chan error, 1)}
	t.Cleanup(func() { master.Close(); tty.Close() })
	if err := pty.Setsize(master, &pty.Winsize{Rows: rows, Cols: columns}); err != nil {
		t.Fatal(err)
	}
	if x.before, err = unix.IoctlGetTermios(int(tty.Fd()), unix.TCGETS); err != nil {
		t.Fatal(err)
	}
	x.cmd = exec.Command(args[0], args[1:]...)
	x.cmd.Env = append(slices.DeleteFunc(os.Environ(), func(v string) bool { return strings.HasPrefix(v, "NO_COLOR=") || strings.HasPrefix(v, "COLORTERM=") }), env...)
	x.cmd.Stdin, x.cmd.Stdout, x.cmd.Stderr = tty, tty, tty
	x.cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true, Setctty: true}
	if err := n.Do(x.cmd.Start); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = x.cmd.Process.Kill() })
	go func() { x.done <- x.cmd.Wait() }()
	go func() {
		b := make([]byte, 64<<10)
		for {
			n, err := master.Read(b)
			x.mu.Lock()
			x.out = append(x.out, b[:n]...)
			x.mu.Unlock()
			if err != nil {
				return
			}
		}
	}()
	return x
}

func (x *terminal) since(n int) string {
	x.mu.Lock()
	defer x.mu.Unlock()
	return string(x.out[min(n, len(x.out)):])
}

func (x *terminal) size() int {
	x.mu.Lock()
	defer x.mu.Unlock()
	return len(x.out)
}

// await waits for text that is drawn from a place of the output on.
func (x *terminal) await(t *testing.T, from int, what string) {
	t.Helper()
	if !eventually(30*time.Second, func() bool { return strings.Contains(x.since(from), what) }) {
		t.Fatalf("no %q in %q", what, x.since(from))
	}
}

// TestTopAtTerminal: top at a real terminal draws, obeys keys, follows the terminal's
// size, and leaves the terminal as it was, however it ends.
func TestTopAtTerminal(t *testing.T) {
	needOurs(t)
	lab := netlab.New(t, netlab.Options{})
	busyGuest(t, lab)
	top := []string{filepath.Join(netlab.Stage(), "aldentectl"), "top", "--interval", "0.2"}
	for name, end := range map[string]func(x *terminal){
		"q":       func(x *terminal) { _, _ = x.master.WriteString("q") },
		"Ctrl-C":  func(x *terminal) { _, _ = x.master.WriteString("\x03") },
		"SIGTERM": func(x *terminal) { _ = x.cmd.Process.Signal(syscall.SIGTERM) },
		"SIGINT":  func(x *terminal) { _ = x.cmd.Process.Signal(syscall.SIGINT) },
		"SIGHUP":  func(x *terminal) { _ = x.cmd.Process.Signal(syscall.SIGHUP) },
		"SIGQUIT": func(x *terminal) { _ = x.cmd.Process.Signal(syscall.SIGQUIT) },
	} {
		t.Run(name, func(t *testing.T) {
			x := atTerminal(t, lab.For(t).Host, 30, 120, []string{"TERM=xterm-256color"}, top...)
			x.await(t, 0, "198.51.100.9:80")
			if name == "q" {
				from := x.size()
				if err := pty.Setsize(x.master, &pty.Winsize{Rows: 8, Cols: 60}); err != nil {
					t.Fatal(err)
				}
				x.await(t, from, "REMOTE")
				from = x.size()
				_, _ = x.master.WriteString("/udp\r")
				x.await(t, from, "198.51.100.9:53")
			}
			end(x)
			select {
			case err := <-x.done:
				if err != nil {
					t.Errorf("it ends with %v", err)
				}
			case <-time.After(30 * time.Second):
				t.Fatal("it does not end")
			}
			after, err := unix.IoctlGetTermios(int(x.tty.Fd()), unix.TCGETS)
			if err != nil || *after != *x.before {
				t.Errorf("the terminal is %+v, was %+v (%v)", after, x.before, err)
			}
			eventually(5*time.Second, func() bool { return strings.Contains(x.since(0), "\x1b[?1049l") })
			out := x.since(0)
			if in, left := strings.LastIndex(out, "\x1b[?1049h"), strings.LastIndex(out, "\x1b[?1049l"); in < 0 || left < in {
				t.Errorf("the alternate screen is not left: %q", out)
			}
			if shown, hidden := strings.LastIndex(out, "\x1b[?25h"), strings.LastIndex(out, "\x1b[?25l"); hidden > shown {
				t.Error("the cursor stays hidden")
			}
		})
	}
	coloured := regexp.MustCompile(`\x1b\[[0-9;]*3[1-6][;m]`)
	for env, want := range map[string]bool{"NO_COLOR=": true, "NO_COLOR=1": false} {
		x := atTerminal(t, lab.Host, 30, 120, []string{"TERM=xterm-256color", env}, top...)
		x.await(t, 0, "198.51.100.9:80")
		_, _ = x.master.WriteString("q")
		<-x.done
		if got := coloured.MatchString(x.since(0)); got != want {
			t.Errorf("%s: coloured %v: %q", env, got, x.since(0))
		}
	}
}
