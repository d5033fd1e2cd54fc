// SPDX-License-Identifier: Apache-2.0

package policy

import (
	"fmt"
	"unsafe"

	"golang.org/x/sys/unix"
)

// SetName sets what ps and top show for the calling thread, at most 15 bytes.
// After an exec from a descriptor some kernels show the descriptor's number.
func SetName(name string) {
	var b [16]byte
	copy(b[:15], name)
	_ = unix.Prctl(unix.PR_SET_NAME, uintptr(unsafe.Pointer(&b[0])), 0, 0, 0)
}

// MaxThreads bounds the threads of a worker. The Go runtime makes five or six.
const MaxThreads = 32

// one turns the outcome of a single step into a Layer.
func one(name, detail string, err error) Layer {
	if err != nil {
		return Layer{name, Missing, err.Error()}
	}
	return Layer{name, InForce, detail}
}

// NoNewPrivs keeps exec from granting anything. Threads made later inherit it;
// those made earlier get it with the seccomp filter.
func NoNewPrivs() Layer {
	return one("no_new_privs", "", unix.Prctl(unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0))
}

// NonDumpable keeps out debuggers of the same user and core dumps, also where
// core_pattern is a pipe, for which the limit on core files does not count.
// From then on /proc/PID belongs to root.
func NonDumpable() Layer {
	return one("non-dumpable", "", unix.Prctl(unix.PR_SET_DUMPABLE, 0, 0, 0, 0))
}

// DenyWriteExecute refuses memory that is or becomes executable after having
// been writable, for the life of the process. Linux 6.3 and later.
func DenyWriteExecute() Layer {
	err := unix.Prctl(unix.PR_SET_MDWE, unix.PR_MDWE_REFUSE_EXEC_GAIN, 0, 0, 0)
	if err == unix.EINVAL {
		// seccomp forbids PROT_EXEC to mmap, and mprotect altogether.
		return Layer{"memory-deny-write-execute", Partial, "kernel before 6.3: by seccomp only"}
	}
	return one("memory-deny-write-execute", "", err)
}

// Limits sets the resource limits of a process that makes no processes: no
// core files, no message queues, no locked memory. With files above zero, that is
// how many descriptors it may hold; otherwise their number stays as it was given.
// With threads, their number is bounded too; this is
// sound only in a user namespace of one's own, on Linux 5.14 and later, since
// otherwise everything that the user runs counts. Files may become no larger than
// fileSize bytes, unless that is negative. A limit that is tighter already stays.
func Limits(threads bool, fileSize int64, files int) Layer {
	l := Layer{Name: "limits", State: InForce, Detail: "core, msgqueue, memlock 0"}
	zero := []int{unix.RLIMIT_CORE, unix.RLIMIT_MSGQUEUE, unix.RLIMIT_MEMLOCK}
	for _, what := range zero {
		if _, err := lower(what, 0); err != nil {
			return Layer{l.Name, Missing, fmt.Sprintf("limit %d: %v", what, err)}
		}
	}
	if fileSize >= 0 {
		n, err := lower(unix.RLIMIT_FSIZE, uint64(fileSize))
		if err != nil {
			return Layer{l.Name, Missing, fmt.Sprintf("fsize: %v", err)}
		}
		l.Detail += fmt.Sprintf(", fsize %d", n)
	}
	if threads && atLeast(5, 14) {
		n, err := lower(unix.RLIMIT_NPROC, MaxThreads)
		if err != nil {
			return Layer{l.Name, Missing, fmt.Sprintf("nproc: %v", err)}
		}
		l.Detail += fmt.Sprintf(", nproc %d", n)
	}
	if files > 0 {
		n, err := lower(unix.RLIMIT_NOFILE, uint64(files))
		if err != nil {
			return Layer{l.Name, Missing, fmt.Sprintf("nofile: %v", err)}
		}
		l.Detail += fmt.Sprintf(", nofile %d", n)
	}
	return l
}

// What a process can write to, in bytes. A worker's pools and tables reserve two
// gigabytes, and its runtime may take one more before it collects. Limiting the address
// space would not do: the runtime reserves more of that than it uses.
const (
	MaxMemory      = 4 << 30   // a worker
	MaxNamesMemory = 512 << 20 // names: tables of bounded size, and what the runtime maps for any heap
)

// LimitMemory keeps a process from using up its host's memory, once it is captured.
func LimitMemory(bytes uint64) Layer {
	n, err := lower(unix.RLIMIT_DATA, bytes)
	return one("memory limit", fmt.Sprintf("%d MiB", n>>20), err)
}

// lower brings a limit down to n, both the one in force and the one up to which
// it may be raised again, and returns what is in force then. Neither is raised:
// without privileges the kernel refuses that.
func lower(what int, n uint64) (uint64, error) {
	var r unix.Rlimit
	if err := unix.Prlimit(0, what, nil, &r); err != nil { // a replaced worker may call no other
		return 0, err
	}
	r.Cur, r.Max = min(r.Cur, n), min(r.Max, n)
	return r.Cur, unix.Setrlimit(what, &r)
}

// atLeast says whether the running kernel is major.minor or newer.
func atLeast(major, minor int) bool {
	var u unix.Utsname
	if unix.Uname(&u) != nil {
		return false
	}
	have := [2]int{}
	part := 0
	for _, c := range u.Release {
		if c >= '0' && c <= '9' {
			have[part] = have[part]*10 + int(c-'0')
			continue
		}
		if c != '.' || part == 1 {
			break
		}
		part++
	}
	return have[0] > major || have[0] == major && have[1] >= minor
}
