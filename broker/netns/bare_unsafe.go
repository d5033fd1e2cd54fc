// SPDX-License-Identifier: Apache-2.0

package netns

import (
	"syscall"
	"unsafe"

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

var (
	tunPath = cstring("/dev/net/tun")
	noPath  = cstring("")
	noneDev = cstring("none")
	tmpOpts = cstring("nr_inodes=1,mode=0555")
	here    = cstring(".")
)

// Directories that nearly every system has. The new root is mounted over the
// first one for as long as it takes to move there.
var mountPoints = [...][]byte{cstring("/tmp"), cstring("/proc"), cstring("/dev"), cstring("/usr")}

// emptyRoot opens the clone device and leaves the process without files. Where the
// system does not permit that all stays as it is, and the agent tells.
//
//go:nosplit
//go:norace
func emptyRoot(s *agentSpec) {
	fd, _, errno := syscall.RawSyscall6(unix.SYS_OPENAT, fork.AtFDCWD, uintptr(unsafe.Pointer(&tunPath[0])),
		unix.O_RDWR|unix.O_NONBLOCK|unix.O_CLOEXEC, 0, 0, 0)
	if moveToEmpty(s) != 0 {
		if errno == 0 {
			fork.Call(unix.SYS_CLOSE, fd, 0, 0, 0, 0)
		}
		return
	}
	s.tun = int32(errno)
	if errno == 0 && fd != AgentTun {
		// The lowest that is free: only a standard stream could be lower.
		failOn(s, stepFiles, syscall.EBADF)
	}
	fork.Call(unix.SYS_FCNTL, AgentTun, unix.F_SETFD, 0, 0, 0)
}

// readOnlyExe puts our program by a mount of its own, which is read-only, in the
// place of childExe. Who looks into the agent may open its program, and keep it open
// until nothing runs it any more: with the caller's mount, and the caller's files
// being the guest's to write, it would then be the guest's program that the caller
// starts next. Where it cannot be done, on kernels before 5.12 or if the file has
// another path by now, childExe stays.
//
//go:nosplit
//go:norace
func readOnlyExe(s *agentSpec) {
	if len(s.exePath) == 0 {
		return
	}
	fd, _, errno := syscall.RawSyscall6(unix.SYS_OPEN_TREE, fork.AtFDCWD, uintptr(unsafe.Pointer(&s.exePath[0])),
		unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC, 0, 0, 0)
	if errno != 0 {
		return
	}
	errno = fork.Call(unix.SYS_MOUNT_SETATTR, fd, uintptr(unsafe.Pointer(&noPath[0])), unix.AT_EMPTY_PATH,
		uintptr(unsafe.Pointer(&s.mountAttr)), unsafe.Sizeof(s.mountAttr))
	if errno == 0 && fork.Call(unix.SYS_FSTAT, childExe, uintptr(unsafe.Pointer(&s.stats[0])), 0, 0, 0) == 0 &&
		fork.Call(unix.SYS_FSTAT, fd, uintptr(unsafe.Pointer(&s.stats[1])), 0, 0, 0) == 0 &&
		s.stats[0].Dev == s.stats[1].Dev && s.stats[0].Ino == s.stats[1].Ino {
		fork.Call(unix.SYS_DUP3, fd, childExe, unix.O_CLOEXEC, 0, 0)
	}
	fork.Call(unix.SYS_CLOSE, fd, 0, 0, 0, 0)
}

// moveToEmpty is policy.EmptyRoot for a child of fork, in a new mount namespace.
// Until the last step the files are there.
//
//go:nosplit
//go:norace
func moveToEmpty(s *agentSpec) syscall.Errno {
	if errno := fork.Call(unix.SYS_UNSHARE, unix.CLONE_NEWNS, 0, 0, 0, 0); errno != 0 {
		return errno
	}
	if errno := fork.Call(unix.SYS_MOUNT, 0, uintptr(unsafe.Pointer(&rootDir[0])), 0, unix.MS_REC|unix.MS_PRIVATE, 0); errno != 0 {
		return errno
	}
	readOnlyExe(s)
	var errno syscall.Errno
	for i := range mountPoints {
		dir := uintptr(unsafe.Pointer(&mountPoints[i][0]))
		errno = fork.Call(unix.SYS_MOUNT, uintptr(unsafe.Pointer(&noneDev[0])), dir, uintptr(unsafe.Pointer(&tmpfsName[0])),
			unix.MS_RDONLY|unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC, uintptr(unsafe.Pointer(&tmpOpts[0])))
		if errno == 0 {
			errno = fork.Call(unix.SYS_CHDIR, dir, 0, 0, 0, 0)
			break
		}
	}
	if errno != 0 {
		return errno
	}
	dot := uintptr(unsafe.Pointer(&here[0]))
	if errno := fork.Call(unix.SYS_PIVOT_ROOT, dot, dot, 0, 0, 0); errno != 0 {
		return errno
	}
	return fork.Call(unix.SYS_UMOUNT2, dot, unix.MNT_DETACH, 0, 0, 0)
}
