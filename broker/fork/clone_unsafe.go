// SPDX-License-Identifier: Apache-2.0

package fork

import (
	"runtime"
	"syscall"
	"unsafe" // for go:linkname, too

	"golang.org/x/sys/unix"
)

// The runtime's own preparation for fork(2), as package syscall uses it:
// beforeFork blocks all signals and makes any growth of the stack a fault. What the
// runtime would do in the child it does in memory that the child need not have: resetSignals
// takes its place.

//go:linkname beforeFork syscall.runtime_BeforeFork
func beforeFork()

//go:linkname afterFork syscall.runtime_AfterFork
func afterFork()

// start makes the child, in which the list is run, and returns its process
// identifier.
//
//go:noinline
//go:norace
func start(l *List, flags, pidfd uintptr) (int, syscall.Errno) {
	syscall.ForkLock.Lock() // no other child in between
	heap := l.withhold()
	maskOf(l)
	beforeFork()
	keepStack(&heap) // which does not move any more
	pid, errno := clone(flags, pidfd)
	if errno != 0 || pid != 0 {
		afterFork()
		giveBack(&heap)
		syscall.ForkLock.Unlock()
		runtime.KeepAlive(l)
		return int(pid), errno
	}
	resetSignals(l)
	run(l)
	return 0, 0
}

// clone is clone(2) with a copied address space, but for what is withheld, and stack; pidfd is where
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

// maskOf notes which signals are blocked.
//
//go:nosplit
//go:norace
func maskOf(l *List) {
	syscall.RawSyscall6(unix.SYS_RT_SIGPROCMASK, unix.SIG_BLOCK, 0, uintptr(unsafe.Pointer(&l.mask)), unsafe.Sizeof(l.mask), 0, 0)
}

// resetSignals has no handler of the parent's run in the child, and then blocks no more
// signals than the parent does. What is ignored stays so.
//
//go:nosplit
//go:norace
func resetSignals(l *List) {
	const lastSignal = 64
	for sig := uintptr(1); sig <= lastSignal; sig++ {
		action := uintptr(unsafe.Pointer(&l.action))
		syscall.RawSyscall6(unix.SYS_RT_SIGACTION, sig, 0, action, unsafe.Sizeof(l.mask), 0, 0)
		if l.action[0] > sigIgn { // neither that nor SIG_DFL
			syscall.RawSyscall6(unix.SYS_RT_SIGACTION, sig, uintptr(unsafe.Pointer(&l.standard)), 0, unsafe.Sizeof(l.mask), 0, 0)
		}
	}
	syscall.RawSyscall6(unix.SYS_RT_SIGPROCMASK, unix.SIG_SETMASK, uintptr(unsafe.Pointer(&l.mask)), 0, unsafe.Sizeof(l.mask), 0, 0)
}

//go:nosplit
//go:norace
func exit(status uintptr) {
	for {
		syscall.RawSyscall(unix.SYS_EXIT_GROUP, status, 0, 0)
	}
}
