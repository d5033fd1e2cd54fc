// SPDX-License-Identifier: Apache-2.0

package fork

import (
	"runtime"
	"syscall"
	_ "unsafe" // for go:linkname

	"golang.org/x/sys/unix"
)

// The runtime's own preparation for fork(2), as package syscall uses it:
// beforeFork blocks all signals and makes any growth of the stack in the child
// a fault; afterForkInChild resets the signal handlers and the signal mask.

//go:linkname beforeFork syscall.runtime_BeforeFork
func beforeFork()

//go:linkname afterFork syscall.runtime_AfterFork
func afterFork()

//go:linkname afterForkInChild syscall.runtime_AfterForkInChild
func afterForkInChild()

// start makes the child, in which the list is run, and returns its process
// identifier.
//
//go:noinline
//go:norace
func start(l *List, flags, pidfd uintptr) (int, syscall.Errno) {
	syscall.ForkLock.Lock() // no other child in between
	beforeFork()
	pid, errno := clone(flags, pidfd)
	if errno != 0 || pid != 0 {
		afterFork()
		syscall.ForkLock.Unlock()
		runtime.KeepAlive(l)
		return int(pid), errno
	}
	afterForkInChild()
	run(l)
	return 0, 0
}

// clone is clone(2) with a copied address space and stack; pidfd is where
// CLONE_PIDFD puts its descriptor. In the child it returns zero.
//
//go:nosplit
//go:norace
func clone(flags, pidfd uintptr) (pid uintptr, errno syscall.Errno) {
	if isS390x {
		pid, _, errno = syscall.RawSyscall6(unix.SYS_CLONE, 0, flags|uintptr(unix.SIGCHLD), pidfd, 0, 0, 0)
	} else {
		pid, _, errno = syscall.RawSyscall6(unix.SYS_CLONE, flags|uintptr(unix.SIGCHLD), 0, pidfd, 0, 0, 0)
	}
	return pid, errno
}

//go:nosplit
//go:norace
func exit(status uintptr) {
	for {
		syscall.RawSyscall(unix.SYS_EXIT_GROUP, status, 0, 0)
	}
}
