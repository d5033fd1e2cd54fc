// SPDX-License-Identifier: Apache-2.0

package supervise

import (
	"fmt"
	"os"
	"syscall"

	"golang.org/x/sys/unix"

	"aldente/broker/fork"
	"aldente/policy"
)

// The first worker is made while nothing is confined yet. So what its program would do
// in a first image (policy/stage) its process does before it executes anything, and
// the start of an image is saved: it empties its file system and its capabilities, which
// in this process belong to its one thread. Where the system refuses a step the first
// image does it all as ever, and tells what was refused. Either way the program looks at
// what has been achieved before it relies on it.

// cloneFirst starts the first worker in new namespaces, as another user where Identity
// says so. The process waits until the maps of its user namespace are written.
func (s *Supervisor) cloneFirst(spaces uintptr, control, log int) (pid, pidfd int, err error) {
	var p [2]int
	if err := unix.Pipe2(p[:], unix.O_CLOEXEC); err != nil {
		return 0, -1, fmt.Errorf("pipe: %w", err)
	}
	defer unix.Close(p[0])
	defer unix.Close(p[1])
	spec := &respawnSpec{
		user: -1, mnt: -1, spaces: spaces, go1: p[0], go2: p[1],
		argv: s.arguments(policy.StageEnter, spaces),
	}
	if enters {
		spec.entered = s.arguments(policy.StageRun, spaces)
	}
	id := s.opts.Identity
	if id != nil {
		spec.keepCaps = true
		pid, pidfd, err = s.help(spec, control, log)
	} else {
		id = &Identity{UID: os.Geteuid(), GID: os.Getegid()}
		pid, pidfd, err = s.cloneSelf(spec, control, log)
	}
	if err != nil {
		return pid, pidfd, err
	}
	if spaces&unix.CLONE_NEWUSER != 0 {
		err = writeMaps(pid, id)
	}
	if err == nil {
		// Of a program that its user may not read they could not be kept once it is executed.
		s.keep(pid, spaces)
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

// cloneSelf makes the worker's process by this one, whose user it has.
func (s *Supervisor) cloneSelf(spec *respawnSpec, control, log int) (pid, pidfd int, err error) {
	done, err := s.arrange(spec, control, log)
	if err != nil {
		return 0, -1, err
	}
	defer done()
	steps, err := workerSteps(spec)
	if err != nil {
		return 0, -1, err
	}
	steps.WithoutHeap()
	made := int32(-1)
	where := &made
	pid, errno := steps.Start(spec.spaces|unix.CLONE_PIDFD, where)
	if errno != 0 {
		return 0, -1, fmt.Errorf("clone: %w", errno)
	}
	return pid, int(*where), nil
}

// enterSteps do what stage.Enter does, and become the program in the stage behind that.
// Steps behind these are for a process that could not.
func enterSteps(l *fork.List, s *respawnSpec) error {
	argv, err := fork.Strings(s.entered...)
	if err != nil {
		return err
	}
	envv, err := fork.Strings(policy.Environment...)
	if err != nil {
		return err
	}
	refused := l.Label()
	if s.spaces&unix.CLONE_NEWNS != 0 {
		l.PrivateMounts().Else(refused)
		l.EmptyRoot(refused)
	}
	// The first two fail without CAP_SETPCAP, that is, where there is nothing to lose.
	l.Try(unix.SYS_PRCTL, unix.PR_SET_SECUREBITS, policy.SecureNothing, 0, 0, 0)
	for c := range 64 { // as many as the kernel has: it ignores the others
		l.Try(unix.SYS_PRCTL, unix.PR_CAPBSET_DROP, c, 0, 0, 0)
	}
	l.Try(unix.SYS_PRCTL, unix.PR_CAP_AMBIENT, unix.PR_CAP_AMBIENT_CLEAR_ALL, 0, 0, 0)
	header := &unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	l.Try(unix.SYS_CAPSET, fork.Pointer(header), fork.Pointer(new([2]unix.CapUserData))).Else(refused)
	// Descriptors of the broker's. Kernels before 5.11 refuse: there the broker's own
	// close_range has to do.
	l.Try(unix.SYS_CLOSE_RANGE, policy.ExecutableFD+1, fork.AllFDs, fork.CloseRangeCloexec)
	l.Try(unix.SYS_FCNTL, policy.ExecutableFD, unix.F_SETFD, unix.FD_CLOEXEC)
	l.Try(unix.SYS_PRCTL, unix.PR_SET_PDEATHSIG, int(unix.SIGKILL))
	l.Quit(unix.SYS_EXECVEAT, policy.ExecutableFD, "", fork.Vector(argv), fork.Vector(envv), unix.AT_EMPTY_PATH)
	l.At(refused)
	return nil
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
