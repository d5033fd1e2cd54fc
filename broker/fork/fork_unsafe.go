// SPDX-License-Identifier: Apache-2.0

// Package fork is fork(2) for a program that has several threads: a raw
// clone(2), and raw system calls for the child, which has only the thread that
// made it and must not come back to the runtime. It is for children that have
// to join namespaces, which the kernel allows to single-threaded processes only
// and package syscall does not offer.
package fork

import (
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

// Raw values that golang.org/x/sys does not name for all architectures.
const (
	CloseRangeCloexec = 1 << 2              // CLOSE_RANGE_CLOEXEC, include/uapi/linux/close_range.h
	AllFDs            = uintptr(^uint32(0)) // the last descriptor, for close_range(2)
	AtFDCWD           = ^uintptr(99)        // AT_FDCWD, -100
)

// Before is called before Clone, and After behind it in the parent. No other
// child is made in between. In the child InChild takes the place of After.
//
//go:norace
func Before() {
	syscall.ForkLock.Lock()
	beforeFork()
}

// After ends in the parent what Before began.
//
//go:nosplit
//go:norace
func After() {
	afterFork()
	syscall.ForkLock.Unlock()
}

// InChild is the first that the child does.
//
//go:nosplit
//go:norace
func InChild() { afterForkInChild() }

// Clone is clone(2) with a copied address space and stack; pidfd is where
// CLONE_PIDFD puts its descriptor. In the child it returns zero, and nothing but
// InChild, Call and Exit may follow there: no other thread of the runtime exists
// in it.
//
//go:nosplit
//go:norace
func Clone(flags, pidfd uintptr) (pid uintptr, errno syscall.Errno) {
	if isS390x {
		pid, _, errno = syscall.RawSyscall6(unix.SYS_CLONE, 0, flags|uintptr(unix.SIGCHLD), pidfd, 0, 0, 0)
	} else {
		pid, _, errno = syscall.RawSyscall6(unix.SYS_CLONE, flags|uintptr(unix.SIGCHLD), 0, pidfd, 0, 0, 0)
	}
	return pid, errno
}

// Call is a system call of which only the error matters.
//
//go:nosplit
//go:norace
func Call(nr, a, b, c, d, e uintptr) syscall.Errno {
	_, _, errno := syscall.RawSyscall6(nr, a, b, c, d, e, 0)
	return errno
}

// Exit ends the child.
//
//go:nosplit
//go:norace
func Exit(status uintptr) {
	for {
		syscall.RawSyscall(unix.SYS_EXIT_GROUP, status, 0, 0)
	}
}
