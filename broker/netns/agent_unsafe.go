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

// Descriptors of the child from its first steps on. Those below 5 it keeps.
const (
	childExe    = 5 // our own executable
	childStatus = 6 // takes an agentFailure
	childUser   = 7 // namespaces to join
	childNet    = 8
	childFirst  = 9 // what is from here on is the broker's
)

// agentSpec is everything the agent's process needs between clone and execve,
// laid out before the clone. All descriptors are above 9, so that none is in the
// way of another.
type agentSpec struct {
	user, net int    // namespaces to join; user may be -1
	channel   int    // becomes 3
	null      int    // becomes 0 and 1
	stderr    int    // becomes 2
	status    int    // close-on-exec: agentFailure
	exe       int    // our own executable
	tun       int32  // errno of opening AgentTun, -1: not tried, and the file system is what it was
	bare      bool   // without files
	exePath   []byte // where exe is found, empty: nowhere
	mountAttr unix.MountAttr
	stats     [2]syscall.Stat_t

	setIDs   bool // take uid and gid: before joining
	inside   bool // after joining, as numbers of the namespace, if it has them
	uid, gid int

	argv    []*byte
	argvTun []*byte  // with tun
	tunText *[3]byte // the last argument of argvTun
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
// Inside, user 0 of the namespace may look into every process whose memory belongs
// to it. Until execve this one's is a copy of the broker's, which belongs to the
// broker's user namespace: there it is enough not to be dumpable. With execve it
// becomes the guest's, unless the program is installed so that our user may not read
// it; so by then nothing of the broker's is left, neither files nor descriptors nor
// memory.
//
//go:nosplit
//go:norace
func agentChild(s *agentSpec) {
	hide()
	// A session of its own: the terminal's signals are meant for the command.
	fork.Call(unix.SYS_SETSID, 0, 0, 0, 0, 0)
	agentDescriptors(s)
	if s.setIDs && !s.inside {
		// Whoever may change to another user needs no user namespace for the
		// rest, and nothing of it is in the new user's reach.
		agentNetwork(s)
		agentUser(s)
		agentJoin(s)
	} else {
		agentJoin(s)
		agentNetwork(s)
		agentUser(s)
	}
	agentCapabilities(s)
	argv := uintptr(unsafe.Pointer(&s.argv[0]))
	if s.tun >= 0 {
		e := s.tun
		s.tunText[0], s.tunText[1], s.tunText[2] = byte('0'+e/100%10), byte('0'+e/10%10), byte('0'+e%10)
		argv = uintptr(unsafe.Pointer(&s.argvTun[0]))
	}
	fork.Call(unix.SYS_CHDIR, uintptr(unsafe.Pointer(&rootDir[0])), 0, 0, 0, 0)
	// After the changes of identity, which clear it.
	fork.Call(unix.SYS_PRCTL, unix.PR_SET_PDEATHSIG, uintptr(unix.SIGKILL), 0, 0, 0)
	failOn(s, stepExec, fork.Call(unix.SYS_EXECVEAT, childExe, uintptr(unsafe.Pointer(&noPath[0])),
		argv, uintptr(unsafe.Pointer(&s.envv[0])), unix.AT_EMPTY_PATH))
}

// hide makes the process not dumpable. A change of identity may undo it, where
// fs.suid_dumpable says so.
//
//go:nosplit
//go:norace
func hide() { fork.Call(unix.SYS_PRCTL, unix.PR_SET_DUMPABLE, 0, 0, 0, 0) }

// agentDescriptors leaves the process with what it needs.
//
//go:nosplit
//go:norace
func agentDescriptors(s *agentSpec) {
	moveTo(s, s.null, 0, 0)
	moveTo(s, s.null, 1, 0)
	moveTo(s, s.stderr, 2, 0)
	moveTo(s, s.channel, AgentChannel, 0)
	moveTo(s, s.exe, childExe, unix.O_CLOEXEC)
	moveTo(s, s.status, childStatus, unix.O_CLOEXEC)
	if s.user >= 0 {
		moveTo(s, s.user, childUser, unix.O_CLOEXEC)
	} else {
		fork.Call(unix.SYS_CLOSE, childUser, 0, 0, 0, 0)
	}
	moveTo(s, s.net, childNet, unix.O_CLOEXEC)
	fork.Call(unix.SYS_CLOSE, AgentTun, 0, 0, 0, 0)
	s.status = childStatus
	failOn(s, stepFiles, fork.Call(unix.SYS_CLOSE_RANGE, childFirst, fork.AllFDs, 0, 0, 0))
}

//go:nosplit
//go:norace
func moveTo(s *agentSpec, from, to int, flags uintptr) {
	failOn(s, stepFiles, fork.Call(unix.SYS_DUP3, uintptr(from), uintptr(to), flags, 0, 0))
}

// agentJoin joins the user namespace, if there is one to join.
//
//go:nosplit
//go:norace
func agentJoin(s *agentSpec) {
	if s.user >= 0 {
		failOn(s, stepUser, fork.Call(unix.SYS_SETNS, childUser, unix.CLONE_NEWUSER, 0, 0, 0))
		hide()
	}
}

// agentNetwork joins the network namespace and takes from it what has to be
// found by name.
//
//go:nosplit
//go:norace
func agentNetwork(s *agentSpec) {
	failOn(s, stepNet, fork.Call(unix.SYS_SETNS, childNet, unix.CLONE_NEWNET, 0, 0, 0))
	if s.bare {
		emptyRoot(s)
	}
}

// agentUser takes another identity and keeps its capabilities.
//
//go:nosplit
//go:norace
func agentUser(s *agentSpec) {
	if !s.setIDs {
		return
	}
	fork.Call(unix.SYS_PRCTL, unix.PR_SET_KEEPCAPS, 1, 0, 0, 0)
	fork.Call(unix.SYS_SETGROUPS, 0, 0, 0, 0, 0)
	gid, uid := uintptr(s.gid), uintptr(s.uid)
	gerr := fork.Call(unix.SYS_SETRESGID, gid, gid, gid, 0, 0)
	uerr := fork.Call(unix.SYS_SETRESUID, uid, uid, uid, 0, 0)
	hide()
	if s.inside {
		return // the namespace need not have them
	}
	failOn(s, stepCaps, gerr)
	failOn(s, stepCaps, uerr)
	header, data := uintptr(unsafe.Pointer(&s.capHeader)), uintptr(unsafe.Pointer(&s.capData))
	failOn(s, stepCaps, fork.Call(unix.SYS_CAPGET, header, data, 0, 0, 0))
	s.capData[0].Effective, s.capData[1].Effective = s.capData[0].Permitted, s.capData[1].Permitted
	failOn(s, stepCaps, fork.Call(unix.SYS_CAPSET, header, data, 0, 0, 0))
}

// agentCapabilities leaves the process with agentCaps only, in a form that survives
// execve whatever user identifier it has in the namespace: our own need not be
// mapped to 0 there, or at all, and then only ambient capabilities are kept. The
// bounding set is emptied altogether: nothing that is given up comes back.
//
//go:nosplit
//go:norace
func agentCapabilities(s *agentSpec) {
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
