// SPDX-License-Identifier: Apache-2.0

package control

import (
	"fmt"
	"os"

	"golang.org/x/sys/unix"

	"aldente/broker/fork"
	"aldente/policy"
)

// remover is a process that removes a socket when this process ends, in whichever way:
// once this one is confined it may remove nothing. It waits for the end of a pipe,
// looks whether the socket is still the one that it was started for, and ends. It
// reads nothing, and may make no other call.
type remover struct {
	pipe int // closed: remove it; -1: it was
	pid  int
}

// removerName is what the process is called.
const removerName = "aldente-socket"

// newRemover starts the process for the file of that name in a folder.
func newRemover(folder int, name string) (*remover, error) {
	was, is := new(unix.Statx_t), new(unix.Statx_t)
	if err := unix.Statx(folder, name, unix.AT_SYMLINK_NOFOLLOW, unix.STATX_INO, was); err != nil {
		return nil, os.NewSyscallError("statx", err)
	}
	var pipe [2]int
	if err := unix.Pipe2(pipe[:], unix.O_CLOEXEC); err != nil {
		return nil, os.NewSyscallError("pipe2", err)
	}
	l := fork.New(-1, 1)
	l.WithoutHeap()
	// What ends this program's process group must not end this process before.
	l.Try(unix.SYS_RT_SIGPROCMASK, unix.SIG_SETMASK, fork.Pointer(&[8]byte{255, 255, 255, 255, 255, 255, 255, 255}), nil, 8)
	low, high := min(pipe[0], folder), max(pipe[0], folder)
	for _, others := range [][2]uintptr{{0, uintptr(low) - 1}, {uintptr(low) + 1, uintptr(high) - 1}, {uintptr(high) + 1, fork.AllFDs}} {
		if others[0] <= others[1] && others[1] != ^uintptr(0) {
			l.Must(unix.SYS_CLOSE_RANGE, others[0], others[1], 0)
		}
	}
	l.Try(unix.SYS_SETSID)
	l.Try(unix.SYS_CHDIR, "/")
	l.Try(unix.SYS_PRCTL, unix.PR_SET_NAME, removerName)
	l.Must(unix.SYS_PRCTL, unix.PR_SET_DUMPABLE, 0, 0, 0, 0)
	l.Must(unix.SYS_PRCTL, unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
	// Where there are no filters it goes without, as all others do, who report it.
	if prog, err := policy.Program(policy.FilterRemover); err == nil {
		l.Try(unix.SYS_SECCOMP, unix.SECCOMP_SET_MODE_FILTER, 0, fork.Filter(prog))
	}
	l.Try(unix.SYS_READ, pipe[0], fork.Pointer(new([8]byte)), 1)
	another := l.Label()
	l.Quit(unix.SYS_STATX, folder, name, unix.AT_SYMLINK_NOFOLLOW, unix.STATX_INO, fork.Pointer(is))
	l.Same(&was.Ino, &is.Ino).Else(another)
	l.Quit(unix.SYS_UNLINKAT, folder, name, 0)
	l.At(another)
	l.Exit(0)
	pid, errno := l.Start(0, nil)
	unix.Close(pipe[0])
	if errno != 0 {
		unix.Close(pipe[1])
		return nil, fmt.Errorf("a process to remove it: %w", os.NewSyscallError("clone", errno))
	}
	return &remover{pipe: pipe[1], pid: pid}, nil
}

// remove has the process do its work, and waits for that.
func (r *remover) remove() {
	if r.pipe < 0 {
		return
	}
	unix.Close(r.pipe)
	r.pipe = -1
	for {
		if _, err := unix.Wait4(r.pid, nil, 0, nil); err != unix.EINTR {
			return
		}
	}
}
