// SPDX-License-Identifier: Apache-2.0

package supervise

import (
	"errors"
	"fmt"
	"strconv"
	"strings"
	"syscall"

	"aldente/policy"
)

// Exit tells how a worker ended.
type Exit struct {
	Program string             // Program.Name of what has ended
	Status  syscall.WaitStatus // as wait4(2) gives it
	Cause   string             // one line for the log
	Call    string             // name of the forbidden system call, where the kernel's log could be read
	Panic   []string           // what the runtime said as it died, bounded; its first line is in Cause

	Renewed bool // it was to end, by Renew

	wasReady bool
}

// Err returns the end of a worker as an error, of one line.
func (e *Exit) Err() error { return errors.New(e.Program + ": " + e.Cause) }

// trappedCall finds the name of the call in what the runtime says when a filter
// of a debugfilter build raised SIGSYS. The call's number is the first argument
// of the innermost function that is sure to show its arguments.
func trappedCall(death []string) string {
	if len(death) == 0 || !strings.HasPrefix(death[0], "SIGSYS") {
		return ""
	}
	for _, line := range death {
		_, args, ok := strings.Cut(line, "yscall6(0x")
		if !ok {
			continue
		}
		number, _, ok := strings.Cut(args, ",")
		if nr, err := strconv.ParseUint(number, 16, 32); ok && err == nil {
			return policy.CallName(int(nr))
		}
	}
	return ""
}

// waitStatus is what wait4 said.
type waitStatus struct {
	syscall.WaitStatus
	err error
}

func (w waitStatus) seccomp() bool {
	return w.err == nil && w.Signaled() && w.Signal() == syscall.SIGSYS
}

func (w waitStatus) killed() bool {
	return w.err == nil && w.Signaled() && w.Signal() == syscall.SIGKILL
}

func describe(w syscall.WaitStatus) string {
	switch {
	case w.Exited():
		return fmt.Sprintf("exit status %d", w.ExitStatus())
	case w.Signaled():
		return fmt.Sprintf("signal %d (%v)", int(w.Signal()), w.Signal())
	}
	return fmt.Sprintf("wait status %#x", uint32(w))
}
