// SPDX-License-Identifier: Apache-2.0

package test

import (
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
)

// TestSignalAtAnyMoment ends start-up by a signal, at moments all over it: while
// options are read, the namespace is found or made, the agent and the worker come up,
// the process in the foreground waits for the other. It ends soon and with the status
// that it should have, and of an instance that was not up yet nothing is left.
func TestSignalAtAnyMoment(t *testing.T) {
	needOurs(t)
	lab := netlab.New(t, netlab.Options{})
	const command, kept, background = 0, 1, 2 // who waits: a command, the caller, or the process in the foreground
	for _, tt := range []struct {
		name    string
		program string
		args    []string // DIR stands for a folder, PID for a process
		kind    int
	}{
		{"command", "pasta", []string{"--config-net", "-P", "DIR/pid", "--", "sleep", "300"}, command},
		{"command, hidden sockets", "aldente", []string{"--config-net", "-P", "DIR/pid", "--", "sleep", "300"}, command},
		{"process", "pasta", []string{"-f", "--config-net", "-P", "DIR/pid", "PID"}, kept},
		{"process, in the background", "pasta", []string{"--config-net", "-P", "DIR/pid", "PID"}, background},
		{"path that is polled", "pasta", []string{"-f", "--config-net", "-P", "DIR/pid", "--userns", "/proc/PID/ns/user", "--netns", "/proc/PID/ns/net"}, kept},
		{"virtual machine", "passt", []string{"-f", "-s", "DIR/socket", "-P", "DIR/pid"}, kept},
		{"virtual machine, in the background", "passt", []string{"-s", "DIR/socket", "-P", "DIR/pid"}, background},
	} {
		t.Run(tt.name, func(t *testing.T) {
			lab := lab.For(t)
			start := func(dir string) *netlab.Proc {
				args := []string{filepath.Join(filepath.Dir(netlab.Pasta()), tt.program)}
				if tt.program != "passt" {
					args = append(args, netlab.NoForward()...)
				}
				pid := 0
				if strings.Contains(strings.Join(tt.args, " "), "PID") {
					pid = holder(t, lab)
				}
				for _, a := range tt.args {
					args = append(args, strings.NewReplacer("PID", strconv.Itoa(pid), "DIR", dir).Replace(a))
				}
				return lab.Host.Start(netlab.Spec{Args: args, User: netlab.Nobody, Timeout: time.Minute})
			}
			// How long it takes, to the PID file, which comes last.
			dir := openDir(t)
			began := time.Now()
			p := start(dir)
			if !eventually(20*time.Second, func() bool { return pidIn(dir) > 0 }) {
				t.Fatalf("not up:\n%s", p.Output())
			}
			whole := time.Since(began)
			endStarted(t, p, dir)
			const moments = 8
			for n := range moments + 2 {
				for _, signal := range []syscall.Signal{syscall.SIGTERM, syscall.SIGINT} {
					dir := openDir(t)
					p := start(dir)
					time.Sleep(whole * time.Duration(n) / moments)
					up := pidIn(dir) > 0
					if up && tt.kind == command && signal == syscall.SIGINT {
						endStarted(t, p, dir) // interrupts are the command's
						continue
					}
					children := append(netlab.Children(p.PID), p.PID)
					_ = p.Signal(signal)
					status, ended := p.WaitFor(wait(tt.kind == command && signal == syscall.SIGINT))
					what := fmt.Sprintf("%v after %d of %d parts of %v", signal, n, moments, whole)
					upSince := pidIn(dir) > 0
					if !ended && tt.kind == command && signal == syscall.SIGINT && upSince {
						_ = p.Signal(syscall.SIGTERM) // the command's by then
						status, ended = p.WaitFor(10 * time.Second)
					}
					allowed := []int{128 + int(signal)}
					switch {
					case signal == syscall.SIGTERM && tt.kind != background, upSince:
						allowed = append(allowed, 0)
					}
					if !ended || !slices.Contains(allowed, status) && status != -int(signal) {
						t.Errorf("%s: ended=%t, status %d, up before %t and after %t\n%s", what, ended, status, up, upSince, p.Output())
					}
					if tt.kind == background && status == 0 {
						endStarted(t, p, dir)
						continue
					}
					for _, pid := range children {
						if !gone(pid, 10*time.Second) {
							t.Errorf("%s: process %d of %v lives on", what, pid, children)
						}
					}
					// One that was made as the signal came is not among the children.
					left := func() []string { l, _ := filepath.Glob(dir + "/*"); return l }
					if !upSince && !eventually(10*time.Second, func() bool { return len(left()) == 0 }) {
						t.Errorf("%s: left are %q", what, left())
					}
				}
			}
		})
	}
}

// pidIn is the number in a folder's PID file, zero if there is none yet.
func pidIn(dir string) int {
	b, _ := os.ReadFile(filepath.Join(dir, "pid"))
	n, _ := strconv.Atoi(strings.TrimSpace(string(b)))
	return n
}

// endStarted ends an instance that is up, wherever it is.
func endStarted(t *testing.T, p *netlab.Proc, dir string) {
	t.Helper()
	pid := pidIn(dir)
	_ = syscall.Kill(pid, syscall.SIGTERM)
	p.WaitFor(10 * time.Second)
	if !gone(pid, 10*time.Second) {
		t.Errorf("process %d lives on", pid)
	}
}

// wait is how long an instance may take to end. One with a command that is up leaves
// interrupts to that.
func wait(perhapsNot bool) time.Duration {
	if perhapsNot {
		return 2 * time.Second
	}
	return 10 * time.Second
}
