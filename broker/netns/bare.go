// SPDX-License-Identifier: Apache-2.0

package netns

import (
	"encoding/binary"
	"slices"
	"syscall"

	"golang.org/x/sys/unix"

	"aldente/broker/fork"
)

// A process of the guest's user namespace that has CAP_SYS_PTRACE there may look
// into the agent, where it shares a PID namespace with it or sees its /proc: into
// /proc/PID/root too. The files that it would find are the caller's, so the agent
// has none. What it needs it is given: its program and the clone device of taps,
// which makes them in the network namespace that it was opened in.

// AgentTun is the descriptor of the clone device.
const AgentTun = 4

// AgentHasTun is the first argument of an agent that has an empty file system. The
// second is the number of the error that opening the clone device ended with, of
// three digits: 000 where AgentTun is it.
const AgentHasTun = "tun"

// emptyRoot opens the clone device and leaves the process without files. Where the
// system does not permit that all stays as it is, and the agent tells.
func emptyRoot(l *fork.List, s *agentSpec) {
	refused, done := l.Label(), l.Label()
	l.Try(unix.SYS_OPENAT, fork.AtFDCWD, "/dev/net/tun", unix.O_RDWR|unix.O_NONBLOCK|unix.O_CLOEXEC, 0).
		Into(slotTun).ErrorInto(slotNoTun)
	moveToEmpty(l, s, refused)
	// Nearly always it is the lowest that is free, and there already.
	l.Try(unix.SYS_DUP3, slotTun, AgentTun, unix.O_CLOEXEC)
	l.Try(unix.SYS_FCNTL, AgentTun, unix.F_SETFD, 0)
	tells := new([4]byte) // the last argument, with its NUL
	number := (*[3]byte)(tells[:3])
	l.Digits(slotNoTun, number)
	argv, _ := fork.Strings(append(slices.Clone(s.argv), AgentHasTun)...) // which hold no NUL
	l.Set(slotArgs, fork.Vector(append(argv[:len(argv)-1], &tells[0], nil)))
	l.Jump(done)
	l.At(refused)
	l.Try(unix.SYS_CLOSE, slotTun)
	l.At(done)
}

// readOnlyExe puts our program by a mount of its own, which is read-only, in the
// place of childExe. Who looks into the agent may open its program, and keep it
// open until nothing runs it any more. By the caller's mount, a guest that may
// write the caller's files could then write to it: the caller would start the
// guest's program next. Where it cannot be done, on kernels before 5.12 or if
// the file has another path by now, childExe stays.
func readOnlyExe(l *fork.List, s *agentSpec) {
	if s.exePath == "" {
		return
	}
	attr := &unix.MountAttr{Attr_set: unix.MOUNT_ATTR_RDONLY | unix.MOUNT_ATTR_NOSUID | unix.MOUNT_ATTR_NODEV}
	was, is := new(syscall.Stat_t), new(syscall.Stat_t)
	none, end := l.Label(), l.Label()
	l.Try(unix.SYS_OPEN_TREE, fork.AtFDCWD, s.exePath, unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC).Into(slotTree).Else(none)
	l.Try(unix.SYS_MOUNT_SETATTR, slotTree, "", unix.AT_EMPTY_PATH, fork.Pointer(attr), binary.Size(attr)).Else(end)
	l.Try(unix.SYS_FSTAT, childExe, fork.Pointer(was)).Else(end)
	l.Try(unix.SYS_FSTAT, slotTree, fork.Pointer(is)).Else(end)
	l.Same(&was.Dev, &is.Dev).Else(end)
	l.Same(&was.Ino, &is.Ino).Else(end)
	l.Try(unix.SYS_DUP3, slotTree, childExe, unix.O_CLOEXEC)
	l.At(end)
	l.Try(unix.SYS_CLOSE, slotTree)
	l.At(none)
}

// moveToEmpty is policy.EmptyRoot for a child of fork, in a new mount namespace.
// Until the last step the files are there.
func moveToEmpty(l *fork.List, s *agentSpec, refused fork.Label) {
	l.Try(unix.SYS_UNSHARE, unix.CLONE_NEWNS).Else(refused)
	l.PrivateMounts().Else(refused)
	readOnlyExe(l, s)
	l.EmptyRoot(refused)
}
