// SPDX-License-Identifier: Apache-2.0

package supervise

import (
	"errors"
	"fmt"
	"os"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"aldente/broker/fork"
	"aldente/broker/limiter"
	"aldente/ipc"
	"aldente/ipc/sock"
	"aldente/policy"
)

// stopGrace is how long a worker may take to end once its channel is closed,
// to write out what it has buffered.
var stopGrace = 100 * time.Millisecond

// sendTimeout is how long a record may wait for a worker that does not read, in
// seconds. After that sending fails with EAGAIN.
const sendTimeout = 5

// life is one worker from clone to wait.
type life struct {
	pid     int
	pidfd   int
	control int
	logPipe *os.File
	log     *logReader
	ready   atomic.Bool

	mu     sync.Mutex
	reaped bool // the pid may belong to another process
}

// kill ends the worker at once.
func (l *life) kill() {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.reaped {
		return
	}
	_ = unix.PidfdSendSignal(l.pidfd, unix.SIGKILL, nil, 0)
}

// end asks the worker to end, and kills it if it does not.
func (l *life) end() {
	_ = sock.Shutdown(l.control, unix.SHUT_RDWR)
	time.AfterFunc(stopGrace, l.kill)
}

// wait blocks until the worker has ended.
func (l *life) wait() waitStatus {
	// Without reaping first, so that kill never meets another's pid.
	var info unix.Siginfo
	for unix.Waitid(unix.P_PID, l.pid, &info, unix.WEXITED|unix.WNOWAIT, nil) == unix.EINTR {
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	var w waitStatus
	for {
		_, w.err = syscall.Wait4(l.pid, &w.WaitStatus, 0, nil)
		if w.err != syscall.EINTR {
			break
		}
	}
	l.reaped = true
	return w
}

// close closes the broker's ends, after wait.
func (l *life) close() {
	unix.Close(l.control)
	unix.Close(l.pidfd)
}

// spawn starts a worker in new namespaces. The calling thread must be locked.
func (s *Supervisor) spawn() (*life, error) {
	ours, theirs, err := ipc.Pair()
	if err != nil {
		return nil, err
	}
	defer unix.Close(theirs)
	// A worker that stops reading must not stop the broker.
	if err := sock.SetsockoptTimeval(ours, unix.SOL_SOCKET, unix.SO_SNDTIMEO, &unix.Timeval{Sec: sendTimeout}); err != nil {
		unix.Close(ours)
		return nil, err
	}
	logRead, logWrite, err := os.Pipe()
	if err != nil {
		unix.Close(ours)
		return nil, err
	}
	defer logWrite.Close()

	pid, pidfd, err := s.clone(theirs, int(logWrite.Fd()))
	if err != nil {
		unix.Close(ours)
		logRead.Close()
		return nil, fmt.Errorf("starting %s: %w", s.opts.Executable, err)
	}
	l := &life{
		pid:     pid,
		pidfd:   pidfd,
		control: ours,
		logPipe: logRead,
	}
	l.log = newLogReader(s.opts.Logger.With("component", s.opts.Program.Name, "pid", pid), &l.ready)
	if s.opts.Trace {
		l.log.limit.Rate = limiter.Rate{PerSecond: -1} // whoever asks for each packet gets it
	}
	return l, nil
}

// clone starts the program: in the namespaces of the first worker, if there was
// one, else in new ones. It tries those that the system may grant, most first.
// What is missing in the end the worker reports, or refuses under Strict.
func (s *Supervisor) clone(control, log int) (pid, pidfd int, err error) {
	if s.home != nil {
		return s.respawn(control, log)
	}
	if s.opts.Identity == nil {
		defer fork.Dumpable()()
	}
	for _, spaces := range attempts(s.spaces) {
		pid, pidfd, err = s.cloneFirst(spaces, control, log)
		if !refused(err) {
			break
		}
	}
	if err == nil && pidfd < 0 {
		_ = unix.Kill(pid, unix.SIGKILL)
		_, _ = syscall.Wait4(pid, nil, 0, nil)
		err = fmt.Errorf("kernel without pidfd (before Linux 5.4): %w", unix.ENOSYS)
	}
	return pid, pidfd, err
}

// refused says whether err may come from the namespaces asked for: forbidden
// (EPERM), limited (ENOSPC, EUSERS), not in this kernel (EINVAL), or a map of
// users that may not be written (EACCES).
func refused(err error) bool {
	for _, e := range []error{unix.EPERM, unix.ENOSPC, unix.EUSERS, unix.EINVAL, unix.EACCES} {
		if errors.Is(err, e) {
			return true
		}
	}
	return false
}

// attempts lists the sets of namespaces to try.
func attempts(available uintptr) []uintptr {
	return []uintptr{
		available,
		available &^ unix.CLONE_NEWUSER, // where only the privileged may, and we are
		0,
	}
}

// availableNamespaces returns those that the running kernel has.
func availableNamespaces() (flags uintptr) {
	for _, n := range policy.Namespaces {
		if unix.Access("/proc/self/ns/"+n.Name, unix.F_OK) == nil {
			flags |= n.Flag
		}
	}
	return flags
}

// arguments are the command line of a worker.
func (s *Supervisor) arguments(stage string, spaces uintptr) []string {
	a := policy.Arguments{
		Stage:      stage,
		Mode:       s.opts.Mode,
		Namespaces: spaces,
		Strict:     s.opts.Strict,
		Debug:      s.opts.Debug,
		FileSize:   s.opts.FileSize,
		Files:      s.opts.Files,
		Extra:      s.opts.Extra,
	}
	return a.Strings()
}
