// SPDX-License-Identifier: Apache-2.0

package netlab

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strings"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// Spec says how to start a process.
type Spec struct {
	Args    []string      // the program and its arguments
	Env     []string      // added to the environment
	Dir     string        // working directory, empty: the test's
	Stdin   io.Reader     // nil: /dev/null
	User    *User         // nil: the caller's own
	Timeout time.Duration // after which it is killed, zero: a default
	Setsid  bool          // in a session of its own
}

// User is the identity of a started process.
type User struct{ UID, GID uint32 }

// Proc is a running process. It is killed when the test ends or its time is
// up, and when the test binary dies.
type Proc struct {
	Args   []string // as started
	PID    int      // of the process itself
	cmd    *exec.Cmd
	out    safeBuffer // standard output
	all    safeBuffer // standard output and error, interleaved
	done   chan struct{}
	err    error
	timer  *time.Timer
	killed bool
	mu     sync.Mutex
}

// safeBuffer is a bytes.Buffer that a reader may look into while it fills.
type safeBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (s *safeBuffer) Write(p []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.b.Write(p)
}

func (s *safeBuffer) String() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.b.String()
}

// start runs on the thread whose namespace the process is to inherit.
func start(s Spec) (*Proc, error) {
	if s.Timeout == 0 {
		s.Timeout = Patient(60 * time.Second)
	}
	p := &Proc{Args: s.Args, done: make(chan struct{})}
	c := exec.Command(s.Args[0], s.Args[1:]...)
	c.Env = append(os.Environ(), s.Env...)
	c.Dir = s.Dir
	c.Stdin = s.Stdin
	c.Stdout = io.MultiWriter(&p.out, &p.all)
	c.Stderr = &p.all
	c.WaitDelay = 2 * time.Second
	c.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL, Setsid: s.Setsid}
	if u := s.User; u != nil && os.Geteuid() == 0 && !Nested() {
		c.SysProcAttr.Credential = &syscall.Credential{Uid: u.UID, Gid: u.GID}
		c.Env = append(c.Env, "HOME=/", "XDG_RUNTIME_DIR=")
	}
	if err := c.Start(); err != nil {
		return nil, fmt.Errorf("%s: %w", strings.Join(s.Args, " "), err)
	}
	p.cmd, p.PID = c, c.Process.Pid
	p.timer = time.AfterFunc(s.Timeout, p.Kill)
	go func() {
		p.err = c.Wait()
		p.timer.Stop()
		close(p.done)
	}()
	return p, nil
}

// Kill ends the process at once.
func (p *Proc) Kill() {
	p.mu.Lock()
	p.killed = true
	p.mu.Unlock()
	_ = p.cmd.Process.Kill()
}

// Signal sends sig.
func (p *Proc) Signal(sig syscall.Signal) error { return p.cmd.Process.Signal(sig) }

// Done is closed when the process has ended.
func (p *Proc) Done() <-chan struct{} { return p.done }

// Exited reports whether the process has ended.
func (p *Proc) Exited() bool {
	select {
	case <-p.done:
		return true
	default:
		return false
	}
}

// State tells what has become of the process.
func (p *Proc) State() string {
	if !p.Exited() {
		return "running"
	}
	return p.cmd.ProcessState.String()
}

// Wait waits for the end and returns the exit status, 128 plus the signal's
// number for a killed process, or -1 when its time was up.
func (p *Proc) Wait() int {
	<-p.done
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.killed {
		return -1
	}
	if p.err == nil || errors.Is(p.err, exec.ErrWaitDelay) {
		return 0
	}
	var ee *exec.ExitError
	if !errors.As(p.err, &ee) {
		return -1
	}
	if ws := ee.Sys().(syscall.WaitStatus); ws.Signaled() {
		return 128 + int(ws.Signal())
	}
	return ee.ExitCode()
}

// WaitFor is Wait bounded by d; ok is false when the process still runs.
func (p *Proc) WaitFor(d time.Duration) (status int, ok bool) {
	select {
	case <-p.done:
		return p.Wait(), true
	case <-time.After(d):
		return 0, false
	}
}

// Leaked reports whether standard output or error stayed open in another
// process for two seconds after the end of this one.
func (p *Proc) Leaked() bool {
	<-p.done
	return errors.Is(p.err, exec.ErrWaitDelay)
}

// Stdout returns what the process has written to standard output.
func (p *Proc) Stdout() string { return p.out.String() }

// Output returns what the process has written to standard output and error.
func (p *Proc) Output() string { return p.all.String() }

// CPU returns the processor time that a process and its waited-for children
// have used, all its threads together. The process's own is exact to the
// nanosecond, its children's to a tick of 10 ms.
func CPU(pid int) time.Duration {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return 0
	}
	f := strings.Fields(string(b[bytes.LastIndexByte(b, ')')+2:]))
	var ticks int64
	for _, s := range f[13:15] { // cutime, cstime
		var n int64
		fmt.Sscan(s, &n)
		ticks += n
	}
	var own unix.Timespec
	// The number of a process's clock: clock_getcpuclockid(3), CPUCLOCK_SCHED.
	if unix.ClockGettime(int32(^pid<<3|2), &own) != nil {
		return 0
	}
	return time.Duration(own.Nano()) + time.Duration(ticks)*(time.Second/100)
}
