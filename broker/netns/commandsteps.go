// SPDX-License-Identifier: Apache-2.0

package netns

import (
	"golang.org/x/sys/unix"

	"aldente/broker/fork"
	"aldente/broker/netns/nofile"
)

// commandSpec is what the command's process is made of.
type commandSpec struct {
	flags    uintptr  // CLONE_NEW*
	sync     int      // the parent's go-aheads: one byte when the maps are written, one to execute
	parent   [2]int   // the parent's ends of both, to be closed
	status   int      // close-on-exec: takes reports
	dropIDs  bool     // become 0:0 inside, for a caller who is not what 0 maps to
	mount    bool     // own /proc
	noTrace  bool     // no capability to trace: what it would see is ours
	hostname []byte   // empty: keep
	resolv   []byte   // resolv.conf, empty: the host's
	paths    []string // candidates for execve
	args     []string
	env      []string

	hide *hiding // nil: the file system is the caller's

	limit nofile.Limit
}

// What the command's steps are for, in Ready's and Wait's words: what the command can
// do without, and what it is not to run without.
const (
	phaseIdentity = "take the command's identity"
	phaseHide     = "hide the host's sockets from the command"
	phaseProc     = "mount /proc in the namespace"
	phaseHostname = "set the host name in the namespace"
	phasePing     = "allow ping sockets in the namespace"
	phaseTrace    = "keep the command from tracing"
	phaseCommand  = "execute the command"
)

// slotFile is a file that a step has opened.
const slotFile fork.Slot = 0

// commandSteps are those of the process that becomes the command.
func commandSteps(s *commandSpec) (*fork.List, error) {
	l := fork.New(s.status, statusCannotExec)
	l.WithoutHeap()
	dieWithParent(l)
	l.Try(unix.SYS_CLOSE, s.parent[0])
	l.Try(unix.SYS_CLOSE, s.parent[1])
	l.Await(s.sync)
	if s.dropIDs {
		l.Phase(phaseIdentity)
		l.Try(unix.SYS_SETGROUPS, 0, nil)
		l.Must(unix.SYS_SETRESGID, 0, 0, 0)
		l.Must(unix.SYS_SETRESUID, 0, 0, 0)
		dieWithParent(l) // a change of identity cleared it
	}
	if s.hide != nil {
		s.hide.steps(l)
	}
	if len(s.resolv) > 0 {
		mountResolv(l, s.resolv)
	}
	if s.mount {
		l.Phase(phaseProc)
		l.Note(unix.SYS_MOUNT, "proc", "/proc", "proc", unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC, nil)
	}
	if len(s.hostname) > 0 {
		l.Phase(phaseHostname)
		l.Note(unix.SYS_SETHOSTNAME, s.hostname, len(s.hostname))
	}
	allowPing(l)
	l.Tell(slotFile, nil)
	l.Await(s.sync)

	l.Try(unix.SYS_CLOSE_RANGE, 3, fork.AllFDs, fork.CloseRangeCloexec)
	if s.noTrace {
		l.Phase(phaseTrace)
		l.Must(unix.SYS_PRCTL, unix.PR_CAPBSET_DROP, unix.CAP_SYS_PTRACE)
	}
	if s.limit.Max != 0 {
		l.Try(unix.SYS_PRLIMIT64, 0, unix.RLIMIT_NOFILE, fork.Pointer(&s.limit), nil)
	}
	l.Phase(phaseCommand)
	return l, l.Exec("/bin/sh", s.paths, s.args, s.env, statusNotFound)
}

// dieWithParent: if the broker dies its guest's network is gone for good.
func dieWithParent(l *fork.List) { l.Try(unix.SYS_PRCTL, unix.PR_SET_PDEATHSIG, int(unix.SIGKILL)) }

// allowPing lets group 0 of the namespace use ping sockets.
func allowPing(l *fork.List) {
	const value = "0 0\n"
	l.Phase(phasePing)
	none := l.Label()
	l.Note(unix.SYS_OPENAT, fork.AtFDCWD, "/proc/sys/net/ipv4/ping_group_range", unix.O_WRONLY|unix.O_CLOEXEC, 0).Into(slotFile).Else(none)
	l.Note(unix.SYS_WRITE, slotFile, value, len(value))
	l.Try(unix.SYS_CLOSE, slotFile)
	l.At(none)
}
