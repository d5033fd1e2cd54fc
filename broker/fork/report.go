// SPDX-License-Identifier: Apache-2.0

package fork

import (
	"encoding/binary"
	"fmt"
	"io"

	"golang.org/x/sys/unix"
)

// Failure is a step of a child that failed. It wraps the error's number.
type Failure struct {
	Phase string     // what it was for, as the list calls it
	Call  string     // the system call
	Errno unix.Errno // what the kernel answered
}

// Error names the step, and not what it was for: that is for those to say who know
// for whom it was.
func (f *Failure) Error() string { return fmt.Sprintf("%s: %v", f.Call, f.Errno) }

// Unwrap returns the error's number.
func (f *Failure) Unwrap() error { return f.Errno }

// Report is what a child tells.
type Report struct {
	Failed        *Failure // nil: it has come as far as a Tell
	Result, Extra int32    // what that told
}

// Read reads one report of the list's child. At the end, which execve(2) brings too,
// the error is that of io.ReadFull.
func (l *List) Read(from io.Reader) (Report, error) {
	var b [RecordSize]byte
	if _, err := io.ReadFull(from, b[:]); err != nil {
		return Report{}, err
	}
	word := func(i int) int32 { return int32(binary.NativeEndian.Uint32(b[4*i:])) }
	step, errno := word(0), word(1)
	if step < 0 || int(step) >= len(l.steps) {
		return Report{}, fmt.Errorf("step %d of %d: %w", step, len(l.steps), unix.EPROTO)
	}
	s := &l.steps[step]
	if s.op == opTell {
		return Report{Result: word(2), Extra: word(3)}, nil
	}
	return Report{Failed: &Failure{Phase: s.phase, Call: s.name(), Errno: unix.Errno(errno)}}, nil
}

// name is the step's call.
func (s *Step) name() string {
	switch s.op {
	case opClone, opNest:
		return "clone"
	case opExec:
		return "execve"
	}
	if name, ok := callNames[s.nr]; ok {
		return name
	}
	return fmt.Sprintf("system call %d", s.nr)
}

// callNames are those of the calls that children make.
var callNames = map[uintptr]string{
	unix.SYS_CAPGET: "capget", unix.SYS_CAPSET: "capset", unix.SYS_CHDIR: "chdir", unix.SYS_CLOSE: "close",
	unix.SYS_CLOSE_RANGE: "close_range", unix.SYS_DUP3: "dup3", unix.SYS_EXECVE: "execve", unix.SYS_EXECVEAT: "execveat",
	unix.SYS_FCHMOD: "fchmod", unix.SYS_FCHMODAT: "fchmodat", unix.SYS_FCNTL: "fcntl", unix.SYS_FSTAT: "fstat",
	unix.SYS_MKDIRAT: "mkdirat", unix.SYS_MKNODAT: "mknodat", unix.SYS_MOUNT: "mount", unix.SYS_MOUNT_SETATTR: "mount_setattr",
	unix.SYS_OPENAT: "openat", unix.SYS_OPEN_TREE: "open_tree", unix.SYS_PIVOT_ROOT: "pivot_root", unix.SYS_PRCTL: "prctl",
	unix.SYS_PRLIMIT64: "prlimit64", unix.SYS_SETGROUPS: "setgroups", unix.SYS_SETHOSTNAME: "sethostname", unix.SYS_SETNS: "setns",
	unix.SYS_SETRESGID: "setresgid", unix.SYS_SETRESUID: "setresuid", unix.SYS_SETSID: "setsid", unix.SYS_SYMLINKAT: "symlinkat",
	unix.SYS_UMOUNT2: "umount2", unix.SYS_UNSHARE: "unshare", unix.SYS_WRITE: "write",
}
