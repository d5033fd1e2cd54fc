// SPDX-License-Identifier: Apache-2.0

package netns

import (
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
	childStatus = 6 // takes reports
	childUser   = 7 // namespaces to join
	childNet    = 8
	childFirst  = 9 // what is from here on is the broker's
)

// agentSpec is what the agent's process is made of. All descriptors are above 9, so
// that none is in the way of another.
type agentSpec struct {
	user, net int    // namespaces to join; user may be -1
	channel   int    // becomes 3
	null      int    // becomes 0 and 1
	stderr    int    // becomes 2
	status    int    // close-on-exec: takes reports
	exe       int    // our own executable
	exePath   string // where exe is found, empty: nowhere
	bare      bool   // without files

	setIDs   bool // take uid and gid: before joining
	inside   bool // after joining, as numbers of the namespace, if it has them
	uid, gid int

	argv, env []string
}

// What the agent's steps are for, in Failure's words.
const (
	phaseUser  = "join the user namespace"
	phaseNet   = "join the network namespace"
	phaseCaps  = "set the agent's identity and capabilities"
	phaseFiles = "arrange the agent's descriptors"
	phaseExec  = "execute the agent"
)

// Slots of the agent's list.
const (
	slotArgs  fork.Slot = iota // arguments for execve(2)
	slotTun                    // AgentTun, where it was opened
	slotNoTun                  // why it could not be
	slotTree                   // a mount that is attached nowhere
)

// agentSteps joins the namespaces and becomes the agent. Only a process with a
// single thread may join a user namespace, which a Go program is nowhere but
// there.
//
// Inside, user 0 of the namespace may look into every process whose memory
// belongs to it. Until execve this one's is a copy of the broker's but for the heap, which
// belongs to the broker's user namespace: there it is enough not to be dumpable.
// With execve it becomes the guest's, unless the program is installed so that
// our user may not read it. So by then nothing of the broker's is left: no
// files, no descriptors, no memory.
func agentSteps(s *agentSpec) (*fork.List, error) {
	argv, err := fork.Strings(s.argv...)
	if err != nil {
		return nil, err
	}
	envv, err := fork.Strings(s.env...)
	if err != nil {
		return nil, err
	}
	l := fork.New(s.status, 1)
	l.WithoutHeap()
	hide(l)
	// A session of its own: the terminal's signals are meant for the command.
	l.Try(unix.SYS_SETSID)
	agentDescriptors(l, s)
	l.Set(slotArgs, fork.Vector(argv))
	if s.setIDs && !s.inside {
		// Whoever may change to another user needs no user namespace for the
		// rest, and nothing of it is in the new user's reach.
		agentNetwork(l, s)
		agentUser(l, s)
		agentJoin(l, s)
	} else {
		agentJoin(l, s)
		agentNetwork(l, s)
		agentUser(l, s)
	}
	agentCapabilities(l)
	l.Phase(phaseExec)
	l.Try(unix.SYS_CHDIR, "/")
	// After the changes of identity, which clear it.
	l.Try(unix.SYS_PRCTL, unix.PR_SET_PDEATHSIG, int(unix.SIGKILL))
	l.Must(unix.SYS_EXECVEAT, childExe, "", slotArgs, fork.Vector(envv), unix.AT_EMPTY_PATH)
	return l, nil
}

// hide makes the process not dumpable. A change of identity may undo it, where
// fs.suid_dumpable says so.
func hide(l *fork.List) { l.Try(unix.SYS_PRCTL, unix.PR_SET_DUMPABLE, 0) }

// agentDescriptors leaves the process with what it needs.
func agentDescriptors(l *fork.List, s *agentSpec) {
	l.Phase(phaseFiles)
	l.Must(unix.SYS_DUP3, s.null, 0, 0)
	l.Must(unix.SYS_DUP3, s.null, 1, 0)
	l.Must(unix.SYS_DUP3, s.stderr, 2, 0)
	l.Must(unix.SYS_DUP3, s.channel, AgentChannel, 0)
	l.Must(unix.SYS_DUP3, s.exe, childExe, unix.O_CLOEXEC)
	l.Must(unix.SYS_DUP3, s.status, childStatus, unix.O_CLOEXEC)
	l.ReportTo(childStatus)
	if s.user >= 0 {
		l.Must(unix.SYS_DUP3, s.user, childUser, unix.O_CLOEXEC)
	} else {
		l.Try(unix.SYS_CLOSE, childUser)
	}
	l.Must(unix.SYS_DUP3, s.net, childNet, unix.O_CLOEXEC)
	l.Try(unix.SYS_CLOSE, AgentTun)
	l.Must(unix.SYS_CLOSE_RANGE, childFirst, fork.AllFDs, 0)
}

// agentJoin joins the user namespace, if there is one to join.
func agentJoin(l *fork.List, s *agentSpec) {
	if s.user >= 0 {
		l.Phase(phaseUser)
		l.Must(unix.SYS_SETNS, childUser, unix.CLONE_NEWUSER)
		hide(l)
	}
}

// agentNetwork joins the network namespace and takes from it what has to be
// found by name.
func agentNetwork(l *fork.List, s *agentSpec) {
	l.Phase(phaseNet)
	l.Must(unix.SYS_SETNS, childNet, unix.CLONE_NEWNET)
	if s.bare {
		emptyRoot(l, s)
	}
}

// agentUser takes another identity and keeps its capabilities. The namespace that it
// is inside of need not have that identity.
func agentUser(l *fork.List, s *agentSpec) {
	if !s.setIDs {
		return
	}
	l.Phase(phaseCaps)
	l.Try(unix.SYS_PRCTL, unix.PR_SET_KEEPCAPS, 1)
	l.Try(unix.SYS_SETGROUPS, 0, nil)
	take := l.Must
	if s.inside {
		take = l.Try
	}
	take(unix.SYS_SETRESGID, s.gid, s.gid, s.gid)
	take(unix.SYS_SETRESUID, s.uid, s.uid, s.uid)
	hide(l)
	if !s.inside {
		l.RaiseCapabilities()
	}
}

// agentCapabilities leaves the process with agentCaps only, in a form that
// survives execve. Our user need not be mapped to 0 in the namespace, or at all;
// then only ambient capabilities are kept. The bounding set is emptied
// altogether: nothing that is given up comes back. Without CAP_NET_BIND_SERVICE
// the tap still works.
func agentCapabilities(l *fork.List) {
	l.Phase(phaseCaps)
	l.PassCapabilities(agentCaps)
	for c := range 64 { // as many as the kernel has: it ignores the others
		l.Try(unix.SYS_PRCTL, unix.PR_CAPBSET_DROP, c)
	}
	l.OnlyCapabilities()
	for c := range 32 {
		if agentCaps>>c&1 != 0 {
			l.Try(unix.SYS_PRCTL, unix.PR_CAP_AMBIENT, unix.PR_CAP_AMBIENT_RAISE, c)
		}
	}
}
