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

// So does a broker that is going to be another user than it is. Its first worker
// is made by the same helper, which takes the other identity first: the owner of
// the worker's user namespace is then the other, and no process of the broker has
// to be dumpable for that.

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
	user, mnt int     // -1: none, spaces has them
	spaces    uintptr // CLONE_NEW* flags of the rest
	go1, go2  int     // the child waits until it can read from the first, -1: it does not
	setIDs    bool    // take this identity
	uid, gid  int
	keepCaps  bool // and keep the capabilities for clone(2)
	null      int  // becomes 0 and 1
	log       int  // becomes policy.LogFD
	control   int  // becomes policy.ControlFD
	exe       int  // becomes policy.ExecutableFD
	status    int  // takes the answer

	argv, envv []*byte
	path       [1]byte // empty: exec of the descriptor itself
	answer     respawnAnswer
	capHeader  unix.CapUserHeader
	capData    [2]unix.CapUserData
	buf        [1]byte
}

// respawnAnswer is how the helper did.
type respawnAnswer struct {
	Step, Errno int32 // Step zero: the rest counts
	PID, PidFD  int32
}

// Steps of the helper that can fail.
const (
	stepIDs = 1 + iota
	stepUser
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
	if s.setIDs {
		helperIdentity(s)
	}
	if s.user >= 0 {
		failOn(s, stepUser, fork.Call(unix.SYS_SETNS, uintptr(s.user), unix.CLONE_NEWUSER, 0, 0, 0))
		failOn(s, stepMount, fork.Call(unix.SYS_SETNS, uintptr(s.mnt), unix.CLONE_NEWNS, 0, 0, 0))
	}
	pid, errno := fork.Clone(s.spaces|unix.CLONE_PARENT|unix.CLONE_PIDFD, uintptr(unsafe.Pointer(&s.answer.PidFD)))
	if errno == 0 && pid == 0 {
		workerChild(s)
	}
	failOn(s, stepClone, errno)
	s.answer.PID = int32(pid)
	fork.Call(unix.SYS_WRITE, uintptr(s.status), uintptr(unsafe.Pointer(&s.answer)), unsafe.Sizeof(s.answer), 0, 0)
	fork.Exit(0)
}

// helperIdentity takes the worker's identity. A process that is not privileged may
// choose among those that it has.
//
//go:nosplit
//go:norace
func helperIdentity(s *respawnSpec) {
	uid, gid := uintptr(s.uid), uintptr(s.gid)
	if s.keepCaps {
		fork.Call(unix.SYS_PRCTL, unix.PR_SET_KEEPCAPS, 1, 0, 0, 0)
		failOn(s, stepIDs, fork.Call(unix.SYS_SETGROUPS, 0, 0, 0, 0, 0))
	}
	failOn(s, stepIDs, fork.Call(unix.SYS_SETRESGID, gid, gid, gid, 0, 0))
	failOn(s, stepIDs, fork.Call(unix.SYS_SETRESUID, uid, uid, uid, 0, 0))
	// The change leaves it to fs.suid_dumpable.
	fork.Call(unix.SYS_PRCTL, unix.PR_SET_DUMPABLE, 0, 0, 0, 0)
	if !s.keepCaps {
		return
	}
	header, data := uintptr(unsafe.Pointer(&s.capHeader)), uintptr(unsafe.Pointer(&s.capData))
	failOn(s, stepIDs, fork.Call(unix.SYS_CAPGET, header, data, 0, 0, 0))
	s.capData[0].Effective, s.capData[1].Effective = s.capData[0].Permitted, s.capData[1].Permitted
	failOn(s, stepIDs, fork.Call(unix.SYS_CAPSET, header, data, 0, 0, 0))
}

// awaitGo waits until the user namespace has its maps, and ends if it gets none.
//
//go:nosplit
//go:norace
func awaitGo(s *respawnSpec) {
	fork.Call(unix.SYS_CLOSE, uintptr(s.go2), 0, 0, 0, 0)
	for {
		n, _, errno := syscall.RawSyscall(unix.SYS_READ, uintptr(s.go1), uintptr(unsafe.Pointer(&s.buf)), 1)
		if errno == syscall.EINTR {
			continue
		}
		if errno != 0 || n != 1 {
			fork.Exit(uintptr(errno))
		}
		return
	}
}

// workerChild becomes the worker. It never returns.
//
//go:nosplit
//go:norace
func workerChild(s *respawnSpec) {
	fork.Call(unix.SYS_SETSID, 0, 0, 0, 0, 0)
	if s.go1 >= 0 {
		awaitGo(s)
		fork.Call(unix.SYS_CHDIR, uintptr(unsafe.Pointer(&rootDir)), 0, 0, 0, 0)
	}
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

var rootDir = [2]byte{'/'}

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
	return s.help(&respawnSpec{
		user: s.home.user, mnt: s.home.mnt,
		spaces: s.spaces &^ (unix.CLONE_NEWUSER | unix.CLONE_NEWNS),
		go1:    -1,
	}, s.arguments(policy.StageReplace, s.spaces), control, log)
}

// cloneAs starts the first worker as another user, in new namespaces.
func (s *Supervisor) cloneAs(spaces uintptr, control, log int) (pid, pidfd int, err error) {
	var p [2]int
	if err := unix.Pipe2(p[:], unix.O_CLOEXEC); err != nil {
		return 0, -1, fmt.Errorf("pipe: %w", err)
	}
	defer unix.Close(p[0])
	defer unix.Close(p[1])
	pid, pidfd, err = s.help(&respawnSpec{
		user: -1, mnt: -1, spaces: spaces, go1: p[0], go2: p[1],
		keepCaps: true, capHeader: unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3},
	}, s.arguments(policy.StageEnter, spaces), control, log)
	if err != nil {
		return pid, pidfd, err
	}
	if spaces&unix.CLONE_NEWUSER != 0 {
		err = writeMaps(pid, s.opts.Identity)
	}
	if err == nil {
		_, err = unix.Write(p[1], []byte{0})
	}
	if err != nil {
		_ = unix.Kill(pid, unix.SIGKILL)
		_, _ = syscall.Wait4(pid, nil, 0, nil)
		unix.Close(pidfd)
		return 0, -1, err
	}
	return pid, pidfd, nil
}

// writeMaps makes the identity user and group 0 of a child's user namespace. Its
// process identifier stays its own until it is waited for.
func writeMaps(pid int, id *Identity) error {
	for _, f := range []struct{ name, text string }{
		{"setgroups", "deny"},
		{"gid_map", fmt.Sprintf("0 %d 1\n", id.GID)},
		{"uid_map", fmt.Sprintf("0 %d 1\n", id.UID)},
	} {
		fd, err := unix.Open(fmt.Sprintf("/proc/%d/%s", pid, f.name), unix.O_WRONLY|unix.O_CLOEXEC, 0)
		if err == nil {
			_, err = unix.Write(fd, []byte(f.text))
			unix.Close(fd)
		}
		if err != nil {
			return fmt.Errorf("%s of the worker's user namespace: %w", f.name, err)
		}
	}
	return nil
}

// help has the helper make a worker, as spec says what is particular to it.
func (s *Supervisor) help(spec *respawnSpec, args policy.Arguments, control, log int) (pid, pidfd int, err error) {
	spec.null, spec.exe = s.null, s.exe
	if id := s.opts.Identity; id != nil {
		spec.setIDs, spec.uid, spec.gid = true, id.UID, id.GID
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
	case stepIDs:
		return 0, -1, fmt.Errorf("taking the worker's identity: %w", errno)
	case stepUser:
		return 0, -1, fmt.Errorf("joining the worker's user namespace: %w", errno)
	case stepMount:
		return 0, -1, fmt.Errorf("joining the worker's mount namespace: %w", errno)
	default:
		return 0, -1, fmt.Errorf("new namespaces: %w", errno)
	}
}
