// SPDX-License-Identifier: Apache-2.0

package policy

import (
	"errors"

	"golang.org/x/sys/unix"
)

// ErrNotStatic tells how to build what can be started in an empty file system.
var ErrNotStatic = errors.New("this build cannot work: the program needs a loader (cgo, or -buildmode=pie)," +
	" which is not there in the empty file system that it runs in; build it with CGO_ENABLED=0 and without -buildmode=pie, as make does")

// atBase is AT_BASE of the auxiliary vector, getauxval(3): where the program's
// interpreter was loaded, zero without one.
const atBase = 7

// CheckExecutable returns ErrNotStatic if the running program was started by an
// interpreter (ld.so): such a program cannot be executed once more where no file
// is left, which broker, worker and agent all do. The runtime has kept what the kernel
// told it at the start: /proc/self/auxv is root's where the user may not read the
// program. Where it cannot be told, it returns nil.
func CheckExecutable() error {
	v, err := unix.Auxv()
	if err != nil {
		return nil
	}
	return checkVector(v)
}

// checkVector looks at pairs of type and value.
func checkVector(v [][2]uintptr) error {
	for _, pair := range v {
		if pair[0] == atBase && pair[1] != 0 {
			return ErrNotStatic
		}
	}
	return nil
}

// ExecHint says, for the error of executing a program by its descriptor, what to do about
// it; nothing where that is not known.
func ExecHint(err error) string {
	switch {
	case errors.Is(err, unix.ENOENT):
		// It resolves /dev/fd/N, which is not in an empty file system, whether it has a policy or none.
		return " (a program that needs a loader finds none in an empty file system: build it as make does; TOMOYO does this, too, in kernels of before October 2024: a newer kernel, or one whose command line has an lsm= without tomoyo, does not)"
	case errors.Is(err, unix.ENOEXEC):
		return " (it is no program for this machine)"
	case errors.Is(err, unix.EACCES):
		return " (a security module forbids it: the kernel's log says which rule is missing)"
	}
	return ""
}
