// SPDX-License-Identifier: Apache-2.0

package supervise

import (
	"encoding/binary"
	"fmt"
	"runtime"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"

	"aldente/broker/fork"
	"aldente/policy"
)

// The broker that starts the first worker is not yet confined, the one that
// replaces it is: it may open no file, so it cannot write the maps of a new user
// namespace, and a Landlock domain, which children inherit, forbids them to mount
// or pivot_root. A replacement therefore moves into the user and mount namespaces
// of the first worker, which the broker holds: the first made them, and nothing
// in them can be changed, since the file system is empty and read-only. All other
// namespaces are its own.

// home is what the first worker leaves to those after it.
type home struct{ user, mnt int }

// keep takes hold of the namespaces of the first worker, if it was granted all.
func (s *Supervisor) keep(pid int, spaces uintptr) (err error) {
	const own = unix.CLONE_NEWUSER | unix.CLONE_NEWNS | unix.CLONE_NEWPID
	if s.home == nil && spaces == s.spaces && spaces&own == own {
		s.home, err = claim(pid)
	}
	return err
}

// claim takes hold of a worker's namespaces.
func claim(pid int) (*home, error) {
	h := &home{-1, -1}
	var err error
	if h.user, err = openSpare(fmt.Sprintf("/proc/%d/ns/user", pid), unix.O_RDONLY); err != nil {
		return nil, err
	}
	if h.mnt, err = openSpare(fmt.Sprintf("/proc/%d/ns/mnt", pid), unix.O_RDONLY); err != nil {
		unix.Close(h.user)
		return nil, err
	}
	return h, nil
}

func (h *home) close() {
	unix.Close(h.user)
	unix.Close(h.mnt)
}

// respawnSpec is everything the children need between clone and exec, laid out
// before the first clone. The descriptors are above those that they become.
type respawnSpec struct {
	user, mnt int
	spaces    uintptr // CLONE_NEW* flags of the rest
	null      int     // becomes 0 and 1
	log       int     // becomes policy.LogFD
	control   int     // becomes policy.ControlFD
	exe       int     // becomes policy.ExecutableFD
	status    int     // takes the answer

	argv, envv []*byte
	path       [1]byte // empty: exec of the descriptor itself
	answer     respawnAnswer
}

// respawnAnswer is how the helper did.
type respawnAnswer struct {
	Step, Errno int32 // Step zero: the rest counts
	PID, PidFD  int32
}

// Steps of the helper that can fail.
const (
	stepUser = 1 + iota
	stepMount
	stepClone
)

// forkHelper starts the process that joins the namespaces and makes the worker,
// and returns its process identifier. They share a table of descriptors, so that
// the worker's pidfd arrives in ours.
//
//go:noinline
//go:norace
func forkHelper(s *respawnSpec) (int, syscall.Errno) {
	fork.Before()
	pid, errno := fork.Clone(unix.CLONE_FILES, 0)
	if errno != 0 || pid != 0 {
		fork.After()
		runtime.KeepAlive(s)
		return int(pid), errno
	}
	fork.InChild()
	helperChild(s)
	return 0, 0
}

// helperChild joins, clones, and ends. It never returns.
//
//go:nosplit
//go:norace
func helperChild(s *respawnSpec) {
	failOn(s, stepUser, fork.Call(unix.SYS_SETNS, uintptr(s.user), unix.CLONE_NEWUSER, 0, 0, 0))
	failOn(s, stepMount, fork.Call(unix.SYS_SETNS, uintptr(s.mnt), unix.CLONE_NEWNS, 0, 0, 0))
	pid, errno := fork.Clone(s.spaces|unix.CLONE_PARENT|unix.CLONE_PIDFD, uintptr(unsafe.Pointer(&s.answer.PidFD)))
	if errno == 0 && pid == 0 {
		workerChild(s)
	}
	failOn(s, stepClone, errno)
	s.answer.PID = int32(pid)
	fork.Call(unix.SYS_WRITE, uintptr(s.status), uintptr(unsafe.Pointer(&s.answer)), unsafe.Sizeof(s.answer), 0, 0)
	fork.Exit(0)
}

// workerChild becomes the worker. It never returns.
//
//go:nosplit
//go:norace
func workerChild(s *respawnSpec) {
	fork.Call(unix.SYS_SETSID, 0, 0, 0, 0, 0)
	fork.Call(unix.SYS_DUP3, uintptr(s.null), 0, 0, 0, 0)
	fork.Call(unix.SYS_DUP3, uintptr(s.null), 1, 0, 0, 0)
	fork.Call(unix.SYS_DUP3, uintptr(s.log), policy.LogFD, 0, 0, 0)
	fork.Call(unix.SYS_DUP3, uintptr(s.control), policy.ControlFD, 0, 0, 0)
	fork.Call(unix.SYS_DUP3, uintptr(s.exe), policy.ExecutableFD, 0, 0, 0)
	fork.Call(unix.SYS_PRCTL, unix.PR_SET_PDEATHSIG, uintptr(unix.SIGKILL), 0, 0, 0)
	errno := fork.Call(unix.SYS_EXECVEAT, policy.ExecutableFD, uintptr(unsafe.Pointer(&s.path)),
		uintptr(unsafe.Pointer(&s.argv[0])), uintptr(unsafe.Pointer(&s.envv[0])), unix.AT_EMPTY_PATH)
	fork.Exit(uintptr(errno))
}

// failOn ends the helper with a report if a step failed.
//
//go:nosplit
//go:norace
func failOn(s *respawnSpec, step int32, errno syscall.Errno) {
	if errno == 0 {
		return
	}
	s.answer.Step, s.answer.Errno = step, int32(errno)
	fork.Call(unix.SYS_WRITE, uintptr(s.status), uintptr(unsafe.Pointer(&s.answer)), unsafe.Sizeof(s.answer), 0, 0)
	fork.Exit(1)
}

// respawn starts a worker in the namespaces of the first.
func (s *Supervisor) respawn(control, log int) (pid, pidfd int, err error) {
	args := s.arguments(policy.StageReplace, s.spaces)
	spec := &respawnSpec{
		user: s.home.user, mnt: s.home.mnt,
		spaces: s.spaces &^ (unix.CLONE_NEWUSER | unix.CLONE_NEWNS),
		null:   s.null, exe: s.exe,
	}
	if spec.argv, err = syscall.SlicePtrFromStrings(args.Strings()); err != nil {
		return 0, -1, err
	}
	if spec.envv, err = syscall.SlicePtrFromStrings(nil); err != nil {
		return 0, -1, err
	}
	var status [2]int
	if err := unix.Pipe2(status[:], unix.O_CLOEXEC|unix.O_NONBLOCK); err != nil {
		return 0, -1, fmt.Errorf("pipe: %w", err)
	}
	temporary := status[:]
	defer func() {
		for _, fd := range temporary {
			unix.Close(fd)
		}
	}()
	spec.status = status[1]
	for _, m := range []struct {
		to   *int
		from int
	}{{&spec.log, log}, {&spec.control, control}} {
		if *m.to, err = unix.FcntlInt(uintptr(m.from), unix.F_DUPFD_CLOEXEC, firstSpare); err != nil {
			return 0, -1, fmt.Errorf("descriptors for the worker: %w", err)
		}
		temporary = append(temporary, *m.to)
	}
	helper, errno := forkHelper(spec)
	if errno != 0 {
		return 0, -1, fmt.Errorf("clone: %w", errno)
	}
	return answered(helper, status[0])
}

// answered waits for the helper, which ends at once, and reads what it wrote.
func answered(helper, status int) (pid, pidfd int, err error) {
	var ws syscall.WaitStatus
	for {
		if _, err := syscall.Wait4(helper, &ws, 0, nil); err != syscall.EINTR {
			break
		}
	}
	var b [unsafe.Sizeof(respawnAnswer{})]byte
	if n, err := unix.Read(status, b[:]); n != len(b) {
		return 0, -1, fmt.Errorf("helper ended without an answer: %s (%v)", describe(ws), err)
	}
	word := func(i int) int32 { return int32(binary.NativeEndian.Uint32(b[4*i:])) }
	switch step, errno := word(0), unix.Errno(word(1)); step {
	case 0:
		return int(word(2)), int(word(3)), nil
	case stepUser:
		return 0, -1, fmt.Errorf("joining the worker's user namespace: %w", errno)
	case stepMount:
		return 0, -1, fmt.Errorf("joining the worker's mount namespace: %w", errno)
	default:
		return 0, -1, fmt.Errorf("new namespaces: %w", errno)
	}
}
