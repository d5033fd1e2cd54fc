// SPDX-License-Identifier: Apache-2.0

package netns

import (
	"runtime"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"

	"aldente/broker/fork"
	"aldente/broker/netns/nofile"
)

// commandSpec is everything the command's process needs between clone and
// execve, laid out before the clone.
type commandSpec struct {
	flags    uintptr  // CLONE_NEW*
	sync     int      // the parent's go-aheads: one byte when the maps are written, one to execute
	parent   [2]int   // the parent's ends of both, to be closed
	status   int      // close-on-exec: setupStatus, then the error number of execve
	dropIDs  bool     // become 0:0 inside, for a caller who is not what 0 maps to
	mount    bool     // own /proc
	noTrace  bool     // no capability to trace: what it would see is ours
	hostname []byte   // empty: keep
	resolv   []byte   // resolv.conf, empty: the host's
	paths    [][]byte // candidates for execve, NUL-terminated
	argv     []*byte  // NULL-terminated
	scripts  [][]*byte
	envv     []*byte

	hide *hiding // nil: the file system is the caller's

	limit  nofile.Limit
	report setupStatus // what the child writes to status
	result int32
	buf    [1]byte
}

// setupStatus holds the error numbers of the steps that a command can do
// without, and of Hide, without which it is not to run.
type setupStatus struct {
	Mount, Hostname, PingRange, Resolv, Hide int32
}

const setupStatusSize = int(unsafe.Sizeof(setupStatus{}))

// Strings for the child.
var (
	procName  = cstring("proc")
	procPath  = cstring("/proc")
	pingRange = cstring("/proc/sys/net/ipv4/ping_group_range")
	pingValue = []byte("0 0\n")
)

// forkCommand starts the child and returns its process identifier.
//
//go:noinline
//go:norace
func forkCommand(s *commandSpec) (int, syscall.Errno) {
	fork.Before()
	pid, errno := fork.Clone(s.flags, 0)
	if errno != 0 || pid != 0 {
		fork.After()
		runtime.KeepAlive(s)
		return int(pid), errno
	}
	fork.InChild()
	commandChild(s)
	return 0, 0
}

// commandChild is the process that becomes the command. It never returns.
//
//go:nosplit
//go:norace
func commandChild(s *commandSpec) {
	// If the broker dies its guest's network is gone for good.
	fork.Call(unix.SYS_PRCTL, unix.PR_SET_PDEATHSIG, uintptr(unix.SIGKILL), 0, 0, 0)
	fork.Call(unix.SYS_CLOSE, uintptr(s.parent[0]), 0, 0, 0, 0)
	fork.Call(unix.SYS_CLOSE, uintptr(s.parent[1]), 0, 0, 0, 0)
	awaitByte(s)
	if s.dropIDs {
		fork.Call(unix.SYS_SETGROUPS, 0, 0, 0, 0, 0)
		if fork.Call(unix.SYS_SETRESGID, 0, 0, 0, 0, 0) != 0 || fork.Call(unix.SYS_SETRESUID, 0, 0, 0, 0, 0) != 0 {
			fork.Exit(statusCannotExec)
		}
		// A change of identity cleared it.
		fork.Call(unix.SYS_PRCTL, unix.PR_SET_PDEATHSIG, uintptr(unix.SIGKILL), 0, 0, 0)
	}
	if s.hide != nil {
		s.report.Hide = int32(hideSockets(s.hide))
	}
	if len(s.resolv) > 0 {
		s.report.Resolv = int32(mountResolv(s))
	}
	if s.mount {
		s.report.Mount = int32(fork.Call(unix.SYS_MOUNT, uintptr(unsafe.Pointer(&procName[0])), uintptr(unsafe.Pointer(&procPath[0])), uintptr(unsafe.Pointer(&procName[0])),
			unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC, 0))
	}
	if len(s.hostname) > 0 {
		s.report.Hostname = int32(fork.Call(unix.SYS_SETHOSTNAME, uintptr(unsafe.Pointer(&s.hostname[0])), uintptr(len(s.hostname)), 0, 0, 0))
	}
	s.report.PingRange = int32(writePingRange())
	fork.Call(unix.SYS_WRITE, uintptr(s.status), uintptr(unsafe.Pointer(&s.report)), uintptr(setupStatusSize), 0, 0)
	awaitByte(s)

	fork.Call(unix.SYS_CLOSE_RANGE, 3, fork.AllFDs, fork.CloseRangeCloexec, 0, 0)
	if s.noTrace && fork.Call(unix.SYS_PRCTL, unix.PR_CAPBSET_DROP, unix.CAP_SYS_PTRACE, 0, 0, 0) != 0 {
		fork.Exit(statusCannotExec)
	}
	if s.limit.Max != 0 {
		fork.Call(unix.SYS_PRLIMIT64, 0, unix.RLIMIT_NOFILE, uintptr(unsafe.Pointer(&s.limit)), 0, 0)
	}
	s.result = int32(execute(s))
	fork.Call(unix.SYS_WRITE, uintptr(s.status), uintptr(unsafe.Pointer(&s.result)), 4, 0, 0)
	if s.result == int32(syscall.ENOENT) {
		fork.Exit(statusNotFound)
	}
	fork.Exit(statusCannotExec)
}

// awaitByte waits for the parent, and ends with it.
//
//go:nosplit
//go:norace
func awaitByte(s *commandSpec) {
	for {
		n, _, errno := syscall.RawSyscall(unix.SYS_READ, uintptr(s.sync), uintptr(unsafe.Pointer(&s.buf)), 1)
		if errno == syscall.EINTR {
			continue
		}
		if errno != 0 || n != 1 {
			fork.Exit(0)
		}
		return
	}
}

// writePingRange lets group 0 of the namespace use ping sockets.
//
//go:nosplit
//go:norace
func writePingRange() syscall.Errno {
	fd, _, errno := syscall.RawSyscall6(unix.SYS_OPENAT, fork.AtFDCWD, uintptr(unsafe.Pointer(&pingRange[0])), unix.O_WRONLY|unix.O_CLOEXEC, 0, 0, 0)
	if errno != 0 {
		return errno
	}
	errno = fork.Call(unix.SYS_WRITE, fd, uintptr(unsafe.Pointer(&pingValue[0])), uintptr(len(pingValue)), 0, 0)
	fork.Call(unix.SYS_CLOSE, fd, 0, 0, 0, 0)
	return errno
}

// execute tries the candidates as execvp(3) does and returns the error that
// tells most. A file without a header that the kernel knows is a shell script.
//
//go:nosplit
//go:norace
func execute(s *commandSpec) syscall.Errno {
	worst := syscall.ENOENT
	for i := range s.paths {
		errno := fork.Call(unix.SYS_EXECVE, uintptr(unsafe.Pointer(&s.paths[i][0])), uintptr(unsafe.Pointer(&s.argv[0])), uintptr(unsafe.Pointer(&s.envv[0])), 0, 0)
		if errno == syscall.ENOEXEC {
			fork.Call(unix.SYS_EXECVE, uintptr(unsafe.Pointer(s.scripts[i][0])), uintptr(unsafe.Pointer(&s.scripts[i][0])), uintptr(unsafe.Pointer(&s.envv[0])), 0, 0)
		}
		switch errno {
		case syscall.ENOENT, syscall.ENOTDIR:
		case syscall.EACCES:
			worst = errno
		default:
			return errno
		}
	}
	return worst
}

// cstring returns s with the final NUL that system calls want.
func cstring(s string) []byte { return append([]byte(s), 0) }
