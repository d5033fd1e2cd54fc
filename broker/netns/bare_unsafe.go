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

// AgentTun is the descriptor of the clone device, if AgentHasTun was the
// agent's first argument. The agent has an empty file system then.
const AgentTun = 4

// AgentHasTun is the first argument of an agent that got AgentTun.
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

// emptyRoot opens the clone device and leaves the process without files. If the
// device cannot be opened all stays as it is: the agent will try again, and say
// what is wrong.
//
//go:nosplit
//go:norace
func emptyRoot(s *agentSpec) {
	low, _, errno := syscall.RawSyscall6(unix.SYS_OPENAT, fork.AtFDCWD, uintptr(unsafe.Pointer(&tunPath[0])),
		unix.O_RDWR|unix.O_NONBLOCK|unix.O_CLOEXEC, 0, 0, 0)
	if errno != 0 {
		return
	}
	// Above those that it is going to be among.
	fd, _, errno := syscall.RawSyscall(unix.SYS_FCNTL, low, unix.F_DUPFD_CLOEXEC, firstSpare)
	fork.Call(unix.SYS_CLOSE, low, 0, 0, 0, 0)
	if errno != 0 {
		return
	}
	if moveToEmpty() != 0 {
		fork.Call(unix.SYS_CLOSE, fd, 0, 0, 0, 0)
		return
	}
	s.tun = int32(fd)
}

// moveToEmpty is policy.EmptyRoot for a child of fork, in a new mount namespace.
// Until the last step the files are there.
//
//go:nosplit
//go:norace
func moveToEmpty() syscall.Errno {
	if errno := fork.Call(unix.SYS_UNSHARE, unix.CLONE_NEWNS, 0, 0, 0, 0); errno != 0 {
		return errno
	}
	if errno := fork.Call(unix.SYS_MOUNT, 0, uintptr(unsafe.Pointer(&rootDir[0])), 0, unix.MS_REC|unix.MS_PRIVATE, 0); errno != 0 {
		return errno
	}
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
