// SPDX-License-Identifier: Apache-2.0

package policy

import (
	"encoding/binary"
	"errors"
	"unsafe"

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
// is left, which broker, worker and agent all do. Where it cannot be told, without
// /proc, it returns nil.
func CheckExecutable() error {
	fd, err := unix.Open("/proc/self/auxv", unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil
	}
	defer unix.Close(fd)
	var b [1024]byte // some 20 pairs of words
	n, err := unix.Read(fd, b[:])
	if err != nil {
		return nil
	}
	return checkVector(b[:n])
}

// checkVector looks at pairs of words, type and value.
func checkVector(v []byte) error {
	const word = int(unsafe.Sizeof(uintptr(0)))
	for ; len(v) >= 2*word; v = v[2*word:] {
		if nativeWord(v) == atBase && nativeWord(v[word:]) != 0 {
			return ErrNotStatic
		}
	}
	return nil
}

func nativeWord(b []byte) uint64 {
	if unsafe.Sizeof(uintptr(0)) == 4 {
		return uint64(binary.NativeEndian.Uint32(b))
	}
	return binary.NativeEndian.Uint64(b)
}
