// SPDX-License-Identifier: Apache-2.0

package netns

import (
	"runtime"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"

	"aldente/broker/fork"
)

// Capabilities of the agent: what configuring an interface, and binding low
// ports inside the namespace, need. Joining needs CAP_SYS_ADMIN, which does not
// outlive the join.
const agentCaps = 1<<unix.CAP_NET_ADMIN | 1<<unix.CAP_NET_BIND_SERVICE

// agentSpec is everything the agent's process needs between clone and execve,
// laid out before the clone. All descriptors are above 9, so that none is in the
// way of another.
type agentSpec struct {
	user, net int   // namespaces to join; user may be -1
	channel   int   // becomes 3
	null      int   // becomes 0 and 1
	stderr    int   // becomes 2
	status    int   // close-on-exec: agentFailure
	exe       int   // our own executable
	tun       int32 // becomes 4, -1: none, and the file system is what it was
	bare      bool  // without files

	setIDs   bool // take uid and gid in the namespace
	mustSet  bool // and fail if that is impossible
	uid, gid int

	argv    []*byte
	argvTun []*byte // with tun
	envv    []*byte

	capHeader unix.CapUserHeader
	capData   [2]unix.CapUserData
	failure   agentFailure
	pidfd     int32 // where the kernel puts it, in the parent
}

// agentFailure says which step of the child failed.
type agentFailure struct {
	Step, Errno int32
}

// Steps of agentChild that can fail.
const (
	stepUser = 1 + iota
	stepNet
	stepCaps
	stepFiles
	stepExec
)

// forkAgent starts the child and returns its process identifier.
//
//go:noinline
//go:norace
func forkAgent(s *agentSpec) (int, syscall.Errno) {
	fork.Before()
	pid, errno := fork.Clone(unix.CLONE_PIDFD, uintptr(unsafe.Pointer(&s.pidfd)))
	if errno != 0 || pid != 0 {
		fork.After()
		runtime.KeepAlive(s)
		return int(pid), errno
	}
	fork.InChild()
	agentChild(s)
	return 0, 0
}

// agentChild joins the namespaces and becomes the agent. Only a process with a
// single thread may join a user namespace, which a Go program is nowhere but
// here. It never returns.
//
//go:nosplit
//go:norace
func agentChild(s *agentSpec) {
	// A session of its own: the terminal's signals are meant for the command.
	fork.Call(unix.SYS_SETSID, 0, 0, 0, 0, 0)
	if s.user >= 0 {
		failOn(s, stepUser, fork.Call(unix.SYS_SETNS, uintptr(s.user), unix.CLONE_NEWUSER, 0, 0, 0))
	}
	failOn(s, stepNet, fork.Call(unix.SYS_SETNS, uintptr(s.net), unix.CLONE_NEWNET, 0, 0, 0))
	if s.bare {
		emptyRoot(s)
	}
	agentIdentity(s)
	failOn(s, stepFiles, fork.Call(unix.SYS_DUP3, uintptr(s.null), 0, 0, 0, 0))
	failOn(s, stepFiles, fork.Call(unix.SYS_DUP3, uintptr(s.null), 1, 0, 0, 0))
	failOn(s, stepFiles, fork.Call(unix.SYS_DUP3, uintptr(s.stderr), 2, 0, 0, 0))
	failOn(s, stepFiles, fork.Call(unix.SYS_DUP3, uintptr(s.channel), 3, 0, 0, 0))
	first, argv := uintptr(AgentTun), uintptr(unsafe.Pointer(&s.argv[0]))
	if s.tun >= 0 {
		failOn(s, stepFiles, fork.Call(unix.SYS_DUP3, uintptr(s.tun), AgentTun, 0, 0, 0))
		first, argv = AgentTun+1, uintptr(unsafe.Pointer(&s.argvTun[0]))
	}
	fork.Call(unix.SYS_CLOSE_RANGE, first, fork.AllFDs, fork.CloseRangeCloexec, 0, 0)
	fork.Call(unix.SYS_CHDIR, uintptr(unsafe.Pointer(&rootDir[0])), 0, 0, 0, 0)
	// After the changes of identity, which clear it.
	fork.Call(unix.SYS_PRCTL, unix.PR_SET_PDEATHSIG, uintptr(unix.SIGKILL), 0, 0, 0)
	failOn(s, stepExec, fork.Call(unix.SYS_EXECVEAT, uintptr(s.exe), uintptr(unsafe.Pointer(&noPath[0])),
		argv, uintptr(unsafe.Pointer(&s.envv[0])), unix.AT_EMPTY_PATH))
}

// agentIdentity leaves the process with agentCaps only, in a form that survives
// execve whatever user identifier it has in the namespace: our own need not be
// mapped to 0 there, or at all, and then only ambient capabilities are kept. The
// bounding set is emptied altogether: nothing that is given up comes back.
//
//go:nosplit
//go:norace
func agentIdentity(s *agentSpec) {
	if s.setIDs {
		fork.Call(unix.SYS_PRCTL, unix.PR_SET_KEEPCAPS, 1, 0, 0, 0)
		fork.Call(unix.SYS_SETGROUPS, 0, 0, 0, 0, 0)
		gid, uid := uintptr(s.gid), uintptr(s.uid)
		gerr := fork.Call(unix.SYS_SETRESGID, gid, gid, gid, 0, 0)
		uerr := fork.Call(unix.SYS_SETRESUID, uid, uid, uid, 0, 0)
		if s.mustSet {
			failOn(s, stepCaps, gerr)
			failOn(s, stepCaps, uerr)
		}
	}
	header, data := uintptr(unsafe.Pointer(&s.capHeader)), uintptr(unsafe.Pointer(&s.capData))
	failOn(s, stepCaps, fork.Call(unix.SYS_CAPGET, header, data, 0, 0, 0))
	// Never more than there is: without CAP_NET_BIND_SERVICE the tap still works.
	have := s.capData[0].Permitted & agentCaps
	// The inheritable set cannot grow beyond the bounding set, so it comes first.
	s.capData[0].Effective, s.capData[0].Inheritable = s.capData[0].Permitted, have
	s.capData[1].Effective, s.capData[1].Inheritable = s.capData[1].Permitted, 0
	failOn(s, stepCaps, fork.Call(unix.SYS_CAPSET, header, data, 0, 0, 0))
	for c := uintptr(0); c < 64; c++ {
		if fork.Call(unix.SYS_PRCTL, unix.PR_CAPBSET_DROP, c, 0, 0, 0) == syscall.EINVAL {
			break
		}
	}
	s.capData[0] = unix.CapUserData{Effective: have, Permitted: have, Inheritable: have}
	s.capData[1] = unix.CapUserData{}
	failOn(s, stepCaps, fork.Call(unix.SYS_CAPSET, header, data, 0, 0, 0))
	for c := uintptr(0); c < 32; c++ {
		if have>>c&1 != 0 {
			fork.Call(unix.SYS_PRCTL, unix.PR_CAP_AMBIENT, unix.PR_CAP_AMBIENT_RAISE, c, 0, 0)
		}
	}
}

// failOn ends the child with a report if a step failed.
//
//go:nosplit
//go:norace
func failOn(s *agentSpec, step int32, errno syscall.Errno) {
	if errno == 0 {
		return
	}
	s.failure.Step, s.failure.Errno = step, int32(errno)
	fork.Call(unix.SYS_WRITE, uintptr(s.status), uintptr(unsafe.Pointer(&s.failure)), 8, 0, 0)
	fork.Exit(1)
}

var rootDir = cstring("/")
