// SPDX-License-Identifier: Apache-2.0

package netns

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
	closeRangeCloexec = 1 << 2 // CLOSE_RANGE_CLOEXEC, include/uapi/linux/close_range.h
	allFDs            = uintptr(^uint32(0))
	atFDCWD           = ^uintptr(99) // AT_FDCWD, -100
)

// clone is clone(2) with a copied address space and stack. In the child it
// returns zero, and nothing but raw system calls may follow there: no other
// thread of the runtime exists in it.
//
//go:nosplit
//go:norace
func clone(flags uintptr) (pid uintptr, errno syscall.Errno) {
	if isS390x {
		pid, _, errno = syscall.RawSyscall6(unix.SYS_CLONE, 0, flags|uintptr(unix.SIGCHLD), 0, 0, 0, 0)
	} else {
		pid, _, errno = syscall.RawSyscall6(unix.SYS_CLONE, flags|uintptr(unix.SIGCHLD), 0, 0, 0, 0, 0)
	}
	return pid, errno
}

// call is a system call of which only the error matters.
//
//go:nosplit
//go:norace
func call(nr, a, b, c, d, e uintptr) syscall.Errno {
	_, _, errno := syscall.RawSyscall6(nr, a, b, c, d, e, 0)
	return errno
}

// exit ends the child.
//
//go:nosplit
//go:norace
func exit(status uintptr) {
	for {
		syscall.RawSyscall(unix.SYS_EXIT_GROUP, status, 0, 0)
	}
}
