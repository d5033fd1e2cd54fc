// SPDX-License-Identifier: Apache-2.0

package netns

import (
	"errors"
	"fmt"
	"os"

	"golang.org/x/sys/unix"

	"aldente/broker/fork"
	"aldente/policy"
)

// AgentName is the argv[0] by which our own executable knows that it is the
// agent.
const AgentName = "aldente-agent"

// AgentChannel is the descriptor that the agent finds its channel on.
const AgentChannel = 3

// selfPath leads to the running executable even if its file was replaced.
const selfPath = "/proc/self/exe"

// firstSpare is above every descriptor that the agent's are moved to.
const firstSpare = 10

// Agent is the agent's process.
type Agent struct {
	PID int // as the broker sees it

	steps  *fork.List
	status int
	name   string
	pidfd  int // -1: kernel without, or it was reaped
}

// SpawnAgent starts our own executable as agent inside the namespace, with only
// the capabilities that it needs. channel becomes its descriptor 3, stderr its
// standard error, or /dev/null if negative; the caller keeps both. It returns
// once the process exists: whether it could join is told by Failure, when
// the channel ends. The agent is killed when the thread that called ends. With
// bare it has no files, but AgentTun, as far as the system permits.
func SpawnAgent(n *Namespace, channel, stderr int, bare bool) (*Agent, error) {
	s := &agentSpec{
		user: n.User, net: n.Net, bare: bare,
		setIDs: n.agentIDs, inside: n.agentIDsInside, uid: n.agentUID, gid: n.agentGID,
		argv: []string{AgentName},
		env:  []string{"GOMAXPROCS=1", "GODEBUG=containermaxprocs=0,updatemaxprocs=0,decoratemappings=0"},
	}
	s.exePath, _ = os.Readlink(selfPath)

	var status [2]int
	var temporary []int
	defer func() {
		for _, fd := range temporary {
			unix.Close(fd)
		}
	}()
	if err := unix.Pipe2(status[:], unix.O_CLOEXEC); err != nil {
		return nil, fmt.Errorf("pipe: %w", err)
	}
	temporary = append(temporary, status[1])
	null, err := unix.Open("/dev/null", unix.O_RDWR|unix.O_CLOEXEC, 0)
	if err != nil {
		unix.Close(status[0])
		return nil, fmt.Errorf("/dev/null: %w", err)
	}
	temporary = append(temporary, null)
	// By its descriptor: the new identity may not be allowed to walk to it.
	exe, err := unix.Open(selfPath, unix.O_PATH|unix.O_CLOEXEC, 0)
	if err != nil {
		unix.Close(status[0])
		return nil, fmt.Errorf("%s: %w", selfPath, err)
	}
	temporary = append(temporary, exe)
	if stderr < 0 {
		stderr = null
	}
	for _, m := range []struct {
		to   *int
		from int
	}{{&s.channel, channel}, {&s.null, null}, {&s.stderr, stderr}, {&s.status, status[1]}, {&s.exe, exe}, {&s.user, n.User}, {&s.net, n.Net}} {
		if m.from < 0 {
			continue // no user namespace to join
		}
		if *m.to, err = unix.FcntlInt(uintptr(m.from), unix.F_DUPFD_CLOEXEC, firstSpare); err != nil {
			unix.Close(status[0])
			return nil, fmt.Errorf("descriptors for the agent: %w", err)
		}
		temporary = append(temporary, *m.to)
	}
	steps, err := agentSteps(s)
	if err != nil {
		unix.Close(status[0])
		return nil, fmt.Errorf("cannot start the agent: %w", err)
	}
	pidfd := new(int32)
	*pidfd = -1
	pid, errno := steps.Start(unix.CLONE_PIDFD, pidfd)
	if errno != 0 {
		unix.Close(status[0])
		return nil, fmt.Errorf("cannot start the agent: %w", errno)
	}
	return &Agent{PID: pid, steps: steps, status: status[0], name: n.name, pidfd: int(*pidfd)}, nil
}

// Failure waits until the process has become the agent and returns why it could
// not, or nil if it did.
func (a *Agent) Failure() error {
	if a.status < 0 {
		return nil
	}
	r, err := a.steps.Read(fdReader(a.status))
	unix.Close(a.status)
	a.status = -1
	if err != nil || r.Failed == nil {
		return nil
	}
	return a.explain(r.Failed)
}

// explain is the error of a step that failed.
func (a *Agent) explain(f *fork.Failure) error {
	switch f.Phase {
	case phaseUser:
		return fmt.Errorf("cannot join the user namespace of %s: %w%s", a.name, f, hint(f.Errno))
	case phaseNet:
		if errors.Is(f, unix.EPERM) {
			return fmt.Errorf("cannot join network namespace %s: %w"+
				" (run as the owner of its user namespace and name that with --userns, or as root)", a.name, f)
		}
		return fmt.Errorf("cannot join network namespace %s: %w", a.name, f)
	case phaseExec:
		return fmt.Errorf("cannot execute the agent, %s: %w%s", selfPath, f, policy.ExecHint(f))
	}
	return fmt.Errorf("cannot %s: %w", f.Phase, f)
}

// Kill ends the process at once, by its descriptor, as the broker's filter
// permits. Reap comes later.
func (a *Agent) Kill() {
	if a.pidfd >= 0 {
		_ = unix.PidfdSendSignal(a.pidfd, unix.SIGKILL, nil, 0)
	}
}

// Reap waits for the process to end. Calling it twice is harmless.
func (a *Agent) Reap() (unix.WaitStatus, error) {
	if a.status >= 0 {
		unix.Close(a.status)
		a.status = -1
	}
	if a.pidfd >= 0 {
		unix.Close(a.pidfd)
		a.pidfd = -1
	}
	var ws unix.WaitStatus
	for {
		_, err := unix.Wait4(a.PID, &ws, 0, nil)
		if err == unix.EINTR {
			continue
		}
		if errors.Is(err, unix.ECHILD) {
			err = nil
		}
		return ws, err
	}
}
