// SPDX-License-Identifier: Apache-2.0

package supervise

import (
	"bytes"
	"fmt"
	"syscall"

	"golang.org/x/sys/unix"

	"aldente/broker/fork"
	"aldente/policy"
)

// The broker that starts the first worker is not yet confined; the one that
// replaces it is. It may open no file, so it cannot write the maps of a new user
// namespace. Its Landlock domain, which children inherit, forbids them to mount
// or pivot_root. A replacement therefore moves into the user and mount
// namespaces of the first worker, of which the broker holds descriptors. Nothing
// in them can be changed, since the file system is empty and read-only. All
// other namespaces are its own.

// So does a broker that is going to be another user than it is. Its first worker
// is made by the same helper, which takes the other identity first. So the other
// user owns the worker's user namespace, and no process of the broker has to be
// dumpable for that.

// home is what the first worker leaves to those after it.
type home struct{ user, mnt int }

// keep takes hold of the namespaces of the first worker, if it was granted all.
func (s *Supervisor) keep(pid int, spaces uintptr) {
	const own = unix.CLONE_NEWUSER | unix.CLONE_NEWNS | unix.CLONE_NEWPID
	if s.home != nil || spaces != s.spaces || spaces&own != own {
		return
	}
	var err error
	if s.home, err = claim(pid); err != nil {
		s.opts.Logger.Warn("the namespaces cannot be kept for a replacement", "component", s.opts.Program.Name, "error", err)
	}
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

// respawnSpec is what the helper and the worker are made of. The descriptors are
// above those that they become.
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
	status    int  // takes reports
	argv      []string
	entered   []string // argv of a process that has done what a first image would; nil: it does not
}

// What the helper's steps are for, in words for errors.
const (
	phaseIDs   = "taking the worker's identity"
	phaseUser  = "joining the worker's user namespace"
	phaseMount = "joining the worker's mount namespace"
	phaseClone = "new namespaces"
)

// slotPID is where the worker's process identifier is.
const slotPID fork.Slot = 0

// helperSteps are those of the process that joins the namespaces, makes the worker,
// tells, and ends. It shares its table of descriptors with us, so that the worker's
// pidfd arrives in ours.
func helperSteps(s *respawnSpec) (*fork.List, error) {
	worker, err := workerSteps(s)
	if err != nil {
		return nil, err
	}
	l := fork.New(s.status, 1)
	if s.setIDs {
		takeIdentity(l, s)
	}
	if s.user >= 0 {
		l.Phase(phaseUser)
		l.Must(unix.SYS_SETNS, s.user, unix.CLONE_NEWUSER)
		l.Phase(phaseMount)
		l.Must(unix.SYS_SETNS, s.mnt, unix.CLONE_NEWNS)
	}
	l.Phase(phaseClone)
	pidfd := new(int32)
	l.Clone(s.spaces|unix.CLONE_PARENT|unix.CLONE_PIDFD, pidfd, worker).Into(slotPID)
	l.Tell(slotPID, pidfd)
	return l, nil
}

// takeIdentity takes the worker's. A process that is not privileged may choose among
// those that it has.
func takeIdentity(l *fork.List, s *respawnSpec) {
	l.Phase(phaseIDs)
	if s.keepCaps {
		l.Try(unix.SYS_PRCTL, unix.PR_SET_KEEPCAPS, 1)
		l.Must(unix.SYS_SETGROUPS, 0, nil)
	}
	l.Must(unix.SYS_SETRESGID, s.gid, s.gid, s.gid)
	l.Must(unix.SYS_SETRESUID, s.uid, s.uid, s.uid)
	// The change leaves it to fs.suid_dumpable.
	l.Try(unix.SYS_PRCTL, unix.PR_SET_DUMPABLE, 0)
	if s.keepCaps {
		l.RaiseCapabilities()
	}
}

// workerSteps are those of the process that becomes the worker. It has nobody to
// report to: its exit status is the error.
func workerSteps(s *respawnSpec) (*fork.List, error) {
	argv, err := fork.Strings(s.argv...)
	if err != nil {
		return nil, err
	}
	envv, err := fork.Strings()
	if err != nil {
		return nil, err
	}
	l := fork.New(-1, 1)
	l.Try(unix.SYS_SETSID)
	if s.go1 >= 0 {
		// The user namespace gets its maps now, or none.
		l.Try(unix.SYS_CLOSE, s.go2)
		l.Await(s.go1)
		l.Try(unix.SYS_CHDIR, "/")
	}
	l.Try(unix.SYS_DUP3, s.null, 0, 0)
	l.Try(unix.SYS_DUP3, s.null, 1, 0)
	l.Try(unix.SYS_DUP3, s.log, policy.LogFD, 0)
	l.Try(unix.SYS_DUP3, s.control, policy.ControlFD, 0)
	l.Try(unix.SYS_DUP3, s.exe, policy.ExecutableFD, 0)
	if s.entered != nil {
		if err := enterSteps(l, s); err != nil {
			return nil, err
		}
	}
	l.Try(unix.SYS_PRCTL, unix.PR_SET_PDEATHSIG, int(unix.SIGKILL))
	l.Quit(unix.SYS_EXECVEAT, policy.ExecutableFD, "", fork.Vector(argv), fork.Vector(envv), unix.AT_EMPTY_PATH)
	return l, nil
}

// respawn starts a worker in the namespaces of the first.
func (s *Supervisor) respawn(control, log int) (pid, pidfd int, err error) {
	return s.help(&respawnSpec{
		user: s.home.user, mnt: s.home.mnt,
		spaces: s.spaces &^ (unix.CLONE_NEWUSER | unix.CLONE_NEWNS),
		go1:    -1,
		argv:   s.arguments(policy.StageReplace, s.spaces),
	}, control, log)
}

// help has the helper make a worker, as spec says what is particular to it.
func (s *Supervisor) help(spec *respawnSpec, control, log int) (pid, pidfd int, err error) {
	if id := s.opts.Identity; id != nil {
		spec.setIDs, spec.uid, spec.gid = true, id.UID, id.GID
	}
	var status [2]int
	if err := unix.Pipe2(status[:], unix.O_CLOEXEC|unix.O_NONBLOCK); err != nil {
		return 0, -1, fmt.Errorf("pipe: %w", err)
	}
	defer unix.Close(status[0])
	defer unix.Close(status[1])
	spec.status = status[1]
	done, err := s.arrange(spec, control, log)
	if err != nil {
		return 0, -1, err
	}
	defer done()
	steps, err := helperSteps(spec)
	if err != nil {
		return 0, -1, err
	}
	if spec.go1 >= 0 { // the first: this process is not confined yet
		steps.WithoutHeap()
	}
	helper, errno := steps.Start(unix.CLONE_FILES, nil)
	if errno != 0 {
		return 0, -1, fmt.Errorf("clone: %w", errno)
	}
	return answered(steps, helper, status[0])
}

// arrange completes spec with descriptors for the worker, above those that they become.
// Those made for that are closed by done.
func (s *Supervisor) arrange(spec *respawnSpec, control, log int) (done func(), err error) {
	spec.null, spec.exe = s.null, s.exe
	if spec.log, err = spare(log); err != nil {
		return nil, err
	}
	if spec.control, err = spare(control); err != nil {
		unix.Close(spec.log)
		return nil, err
	}
	return func() { unix.Close(spec.log); unix.Close(spec.control) }, nil
}

// spare duplicates a descriptor, from firstSpare on.
func spare(fd int) (int, error) {
	fd, err := unix.FcntlInt(uintptr(fd), unix.F_DUPFD_CLOEXEC, firstSpare)
	if err != nil {
		return -1, fmt.Errorf("descriptors for the worker: %w", err)
	}
	return fd, nil
}

// answered waits for the helper, which ends at once, and reads what it told.
func answered(steps *fork.List, helper, status int) (pid, pidfd int, err error) {
	var ws syscall.WaitStatus
	for {
		if _, err := syscall.Wait4(helper, &ws, 0, nil); err != syscall.EINTR {
			break
		}
	}
	var b [fork.RecordSize]byte
	n, err := unix.Read(status, b[:])
	if n != len(b) {
		return 0, -1, fmt.Errorf("helper ended without an answer: %s (%v)", describe(ws), err)
	}
	r, err := steps.Read(bytes.NewReader(b[:]))
	switch {
	case err != nil:
		return 0, -1, fmt.Errorf("helper's answer: %w", err)
	case r.Failed != nil:
		return 0, -1, fmt.Errorf("%s: %w", r.Failed.Phase, r.Failed)
	}
	return int(r.Result), int(r.Extra), nil
}
