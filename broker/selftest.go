// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"fmt"
	"log/slog"
	"strings"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"aldente/broker/cli"
	"aldente/broker/fork"
	"aldente/broker/supervise"
	"aldente/ipc"
	"aldente/policy"
)

// selfTest puts up the sandbox of all processes, with names, around a guest that never
// runs. It says what is in force, one line for each layer and process, and tries
// whether it holds; before that, what the kernel has that is done without where it has not.
// It returns the status to exit with: zero if no layer is missing.
func selfTest(given *cli.Config) int {
	r := &selfReport{}
	in := &instance{
		cfg: &cli.Config{
			Personality: cli.Aldente, LinkKind: ipc.LinkTap, MTU: -1, FD: -1, MAC: cli.DefaultMAC, NoMapGW: true, Debug: true, NoFollow: true,
			RunAs: given.RunAs, Target: cli.Target{Kind: cli.TargetSpawn}, Command: []string{"true"}, ControlPath: cli.NoControl,
			Egress: []cli.EgressOption{{Allow: true, Dest: "self-test.invalid"}},
		},
		log: slog.New(r), linkFD: -1, pidFile: -1, attached: make(chan struct{}), locked: make(chan struct{}),
		started: func() {}, // a signal ends it at any moment
	}
	if err := in.selfTest(r); err != nil {
		r.line("%v", err)
		r.missing++
	}
	if r.missing > 0 {
		r.line("%d missing", r.missing)
		return 1
	}
	r.line("all layers are in force")
	return 0
}

// selfTest follows run up to the point where a guest would be let loose.
func (in *instance) selfTest(r *selfReport) error {
	if unprivileged(in.cfg).changes() {
		policy.NonDumpable()
	}
	r.line("kernel: %s", kernelRelease())
	for _, f := range hostFeatures() {
		r.line("kernel: %v", f)
	}
	if err := in.setUp(-1); err != nil {
		return err
	}
	r.line("kernel: %v", tapFeature(in.link.Offload))
	r.probe("opening a file is refused", openRefused())
	r.probe("a forbidden system call ends the process", forbiddenKills())
	r.mu.Lock()
	r.quiet = true
	r.mu.Unlock()
	took, err := replace(in.worker)
	r.probe(fmt.Sprintf("a worker is replaced, within %v", took.Round(time.Millisecond)), err)
	took, err = replace(in.asking)
	r.probe(fmt.Sprintf("names is replaced, within %v", took.Round(time.Millisecond)), err)
	return nil
}

// openRefused tries to read a file that everybody may read.
func openRefused() error {
	fd, err := unix.Open("/etc/passwd", unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err == nil {
		unix.Close(fd)
		return fmt.Errorf("/etc/passwd can be opened")
	}
	return nil
}

// forbiddenKills has a child make a call that no list permits.
func forbiddenKills() error {
	l := fork.New(-1, 0)
	l.Try(unix.SYS_PTRACE, unix.PTRACE_TRACEME)
	pid, errno := l.Start(unix.CLONE_FILES, nil)
	if errno != 0 {
		return fmt.Errorf("no child can be made: %w", errno)
	}
	var ws syscall.WaitStatus
	if _, err := syscall.Wait4(pid, &ws, 0, nil); err != nil {
		return err
	}
	if !ws.Signaled() || ws.Signal() != unix.SIGSYS {
		return fmt.Errorf("it returned")
	}
	return nil
}

// replaceTime is how long a replacement may take: some milliseconds, and seconds on a
// machine that is emulated and busy.
const replaceTime = time.Minute

// replace kills a process and waits for the next.
func replace(s *supervise.Supervisor) (time.Duration, error) {
	start, old := time.Now(), s.Pid()
	s.Kill()
	for time.Since(start) < replaceTime {
		if pid := s.Pid(); pid > 0 && pid != old && s.Ready() {
			return time.Since(start), nil
		}
		time.Sleep(time.Millisecond)
	}
	return time.Since(start), fmt.Errorf("none came up again in %v", replaceTime)
}

// selfReport prints what the parts of the program log: layers, each behind the
// name of its process.
type selfReport struct {
	mu      sync.Mutex
	missing int
	quiet   bool // from now on: the layers of a replacement are those of the first
}

func (r *selfReport) line(format string, args ...any) { fmt.Printf(format+"\n", args...) }

// probe prints the outcome of one trial.
func (r *selfReport) probe(what string, err error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if err != nil {
		r.line("broker: %s: FAILED: %v", what, err)
		r.missing++
		return
	}
	r.line("broker: %s", what)
}

// selfHandler is one process's handler.
type selfHandler struct {
	*selfReport
	component string
	quiet     bool
}

// Enabled implements slog.Handler.
func (r *selfReport) Enabled(context.Context, slog.Level) bool { return true }

// Handle implements slog.Handler: what the program itself says is left out.
func (r *selfReport) Handle(context.Context, slog.Record) error { return nil }

// WithGroup implements slog.Handler.
func (r *selfReport) WithGroup(string) slog.Handler { return r }

// WithAttrs implements slog.Handler.
func (r *selfReport) WithAttrs(attrs []slog.Attr) slog.Handler {
	for _, a := range attrs {
		if a.Key == "component" {
			r.mu.Lock()
			defer r.mu.Unlock()
			return &selfHandler{r, a.Value.String(), r.quiet}
		}
	}
	return r
}

// Handle implements slog.Handler.
func (h *selfHandler) Handle(_ context.Context, rec slog.Record) error {
	h.mu.Lock()
	defer h.mu.Unlock()
	if !h.quiet {
		h.line("%s: %s", h.component, rec.Message)
	}
	if strings.Contains(rec.Message, ": missing") {
		h.missing++
	}
	return nil
}

// WithAttrs implements slog.Handler: the component is known.
func (h *selfHandler) WithAttrs([]slog.Attr) slog.Handler { return h }
