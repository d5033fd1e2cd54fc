// SPDX-License-Identifier: Apache-2.0

package supervise

import (
	"errors"
	"fmt"
	"io"
	"runtime"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"aldente/policy"
)

// Times between the end of a worker and the start of the next.
const (
	firstDelay = 100 * time.Millisecond // after the second end in a row
	maxDelay   = 5 * time.Second
	longLife   = time.Minute // a worker that lived this long starts afresh
)

// backoff says how long to wait before replacing a worker. The first
// replacement is immediate.
type backoff struct{ next time.Duration }

// after returns the delay, given how long the worker that ended has lived.
func (b *backoff) after(lived time.Duration) time.Duration {
	if lived >= longLife {
		b.next = 0
	}
	delay := b.next
	b.next = min(max(2*b.next, firstDelay), maxDelay)
	return delay
}

// run starts workers one after the other.
func (s *Supervisor) run() {
	// The kernel kills a child with Pdeathsig when the thread that made it
	// ends. Never unlocked: the thread ends with this function.
	runtime.LockOSThread()
	defer close(s.done)
	defer s.close()

	var b backoff
	for !s.stopping() {
		started := time.Now()
		exit := s.one()
		if s.stopping() {
			break
		}
		for _, line := range exit.Panic {
			s.opts.Logger.Debug(line, "component", s.opts.Program.Name)
		}
		if s.announce(exit.Err()) {
			return // the first worker did not come up: that is for the caller to tell
		}
		if s.takeRenewed() {
			s.opts.Logger.Debug(s.opts.Program.Name+" renewed", "lived", time.Since(started).Round(time.Millisecond))
			if exit.Renewed = true; s.opts.OnExit != nil {
				s.opts.OnExit(exit)
			}
			continue
		}
		if !exit.wasReady {
			// Start has returned; a replacement that fails is tried again.
			exit.Cause = errNotReady.Error() + ": " + exit.Cause
		}
		delay := b.after(time.Since(started))
		s.tellEnded("cause", exit.Cause, "lived", time.Since(started).Round(time.Millisecond), "restart_in", delay)
		if s.opts.OnExit != nil {
			s.opts.OnExit(exit)
		}
		select {
		case <-s.stop:
		case <-time.After(delay):
		}
	}
	s.announce(ErrStopped)
}

// tellEnded tells the log of an end, in words that people look for.
func (s *Supervisor) tellEnded(more ...any) {
	if s.opts.Program == Names {
		s.opts.Logger.Error("names ended", more...)
		return
	}
	s.opts.Logger.Error("worker ended", more...)
}

// tellMade closes made, the first time, with what became of the attempt.
func (s *Supervisor) tellMade(err error) {
	select {
	case <-s.made:
	default:
		s.failed = err
		close(s.made)
	}
}

// close gives up what starting workers takes.
func (s *Supervisor) close() {
	s.kernel.close()
	unix.Close(s.exe)
	unix.Close(s.null)
	if s.home != nil {
		s.home.close()
	}
}

// one runs a single worker from start to end.
func (s *Supervisor) one() Exit {
	l, err := s.spawn()
	s.tellMade(err)
	if err != nil {
		return Exit{Program: s.opts.Program.Name, Cause: err.Error()}
	}
	s.adopt(l)

	served := make(chan error, 1)
	go func() {
		err := s.serve(l)
		// Nobody listens any more. If the channel's end came with the end of
		// the process, its status is already settled and this changes nothing.
		// After Stop the worker has a moment to end by itself.
		if !s.stopping() {
			l.kill()
		}
		served <- err
	}()
	logged := make(chan struct{})
	go func() {
		l.log.read(l.logPipe)
		close(logged)
	}()

	status := l.wait()
	err = <-served
	s.disown()
	l.close()
	<-logged
	return s.explain(l, status, err)
}

// explain says why a worker ended.
func (s *Supervisor) explain(l *life, status waitStatus, served error) Exit {
	exit := Exit{
		Program:  s.opts.Program.Name,
		Status:   status.WaitStatus,
		Panic:    l.log.panicText(),
		wasReady: l.ready.Load(),
		Cause:    describe(status.WaitStatus),
	}
	if status.err != nil {
		exit.Cause = "unknown: " + status.err.Error()
	}
	if status.seccomp() {
		exit.Cause += ": forbidden system call"
		if call := s.kernel.forbiddenCall(l.pid); call != "" {
			exit.Call = call
			exit.Cause += " " + call
		}
	}
	if served != nil && !errors.Is(served, io.EOF) && status.killed() {
		exit.Cause = fmt.Sprintf("killed by the broker: %v", served)
	}
	switch line := l.log.lastError(); {
	case len(exit.Panic) > 0:
		exit.Cause += ": " + exit.Panic[0]
		switch call := trappedCall(exit.Panic); {
		case call != "":
			exit.Call = call
			exit.Cause += ": " + call
		case len(exit.Panic) > 1:
			exit.Cause += " (option -d shows where)"
		}
	case line != "" && status.Exited():
		exit.Cause += ": " + line
	case !exit.wasReady && status.err == nil && status.Exited():
		// Before there was a program of ours that could say so (workerSteps).
		errno := syscall.Errno(status.ExitStatus())
		if hint := policy.ExecHint(errno); hint != "" {
			exit.Cause += ": cannot execute its program: " + errno.Error() + hint
		}
	}
	return exit
}
