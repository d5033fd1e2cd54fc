// SPDX-License-Identifier: Apache-2.0

// Package nofile remembers the limit on open files that this process was
// started with.
//
// Package syscall raises the soft limit to the hard one while it initialises,
// and gives the old one back only to programs that it starts itself. A command
// started by our own clone(2) must get it back as well: programs that use
// select(2), or that close every possible descriptor, suffer from a million.
//
// To be initialised earlier than syscall this package must not import it, not
// even indirectly; packages that are ready are initialised in the order of their
// import paths (go.dev/ref/spec, "Program initialization").
package nofile

import (
	"runtime"
	"unsafe"
)

// Limit is struct rlimit64, include/uapi/linux/resource.h.
type Limit struct {
	Cur, Max uint64 // soft and hard
}

// Original is the limit at start; zero if it could not be read.
var Original Limit

const rlimitNofile = 7 // asm-generic/resource.h; the same on all of the below

// prlimit64 holds the number of the system call, which only package syscall
// would know otherwise.
var prlimit64 = map[string]uintptr{
	"amd64": 302, "arm64": 261, "riscv64": 261, "loong64": 261,
	"ppc64le": 325, "ppc64": 325, "s390x": 334, "arm": 369, "386": 340,
}

//go:linkname rawSyscall6 syscall.RawSyscall6
func rawSyscall6(trap, a1, a2, a3, a4, a5, a6 uintptr) (r1, r2, errno uintptr)

func init() {
	nr, ok := prlimit64[runtime.GOARCH]
	if !ok {
		return
	}
	var l Limit
	if _, _, errno := rawSyscall6(nr, 0, rlimitNofile, 0, uintptr(unsafe.Pointer(&l)), 0, 0); errno == 0 {
		Original = l
	}
}
