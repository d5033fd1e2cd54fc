// SPDX-License-Identifier: Apache-2.0

package calls

import "golang.org/x/sys/unix"

const runtime = "Go runtime"

// Values of arguments for which x/sys has no name.
const (
	futexWaitPrivate = 0 | 128 // FUTEX_WAIT | FUTEX_PRIVATE_FLAG, include/uapi/linux/futex.h
	futexWakePrivate = 1 | 128 // FUTEX_WAKE | FUTEX_PRIVATE_FLAG

	// What the runtime passes to clone for a new thread (runtime/os_linux.go).
	// On amd64 its assembly adds CLONE_SETTLS, elsewhere it does not.
	threadFlags = unix.CLONE_VM | unix.CLONE_FS | unix.CLONE_FILES |
		unix.CLONE_SIGHAND | unix.CLONE_SYSVSEM | unix.CLONE_THREAD

	// What the runtime sends its own threads to have each make a call, SIGRTMIN
	// + 1 as the kernel counts (runtime/os_linux.go).
	sigPerThreadSyscall = 33

	readWrite = unix.PROT_READ | unix.PROT_WRITE
	anonymous = unix.MAP_PRIVATE | unix.MAP_ANONYMOUS
)

// goRunning is what any Go program needs while it runs, without opening
// anything: scheduler, collector, signals, exit. It was derived by running
// collections, new threads, stack growth and panics under the filter.
func goRunning() []Rule {
	return join(
		each(runtime, "sleeping and waking threads", "futex", 1, futexWaitPrivate, futexWakePrivate),
		plain(runtime, "scheduler", "nanosleep", "sched_yield", "restart_syscall"),
		plain(runtime, "clocks where the vDSO cannot answer", "clock_gettime"),
		plain(runtime, "network poller", "epoll_pwait"),
		plain(runtime, "signal handling", "rt_sigprocmask", "rt_sigreturn", "sigaltstack"),
		plain(runtime, "identity of a thread", "getpid", "gettid"),
		plain(runtime, "end of a thread and of the process", "exit", "exit_group"),
		plain(runtime, "random numbers", "getrandom"),
		[]Rule{
			{Call: "clone", Args: []Arg{except(0, unix.CLONE_SETTLS, threadFlags)},
				Why: "new threads, never processes or namespaces", User: runtime},
			{Call: "tgkill", Args: []Arg{is(0, Self)},
				Why: "signals to its own threads only", User: runtime},
			{Call: "mmap", Args: []Arg{within(2, readWrite), except(3, unix.MAP_FIXED, anonymous)},
				Why: "heap and stacks: anonymous, private, never executable", User: runtime},
		},
		plain(runtime, "heap", "munmap"),
		each(runtime, "heap pages that are returned, and which may be huge", "madvise", 2,
			unix.MADV_DONTNEED, unix.MADV_HUGEPAGE, unix.MADV_NOHUGEPAGE),
	)
}

// goStarting is what the runtime needs besides goRunning before it has settled.
func goStarting() []Rule {
	return join(
		plain(runtime, "network poller, once", "epoll_create1", "eventfd2"),
		[]Rule{
			{Call: "mmap", Args: []Arg{is(2, readWrite), is(3, unix.MAP_DROPPABLE|unix.MAP_ANONYMOUS)},
				Why: "state of the vDSO's getrandom", User: runtime},
		},
	)
}

// narrowing is what a worker does between its two lists.
func narrowing() []Rule {
	return []Rule{
		{Call: "mmap", Args: []Arg{is(2, readWrite), is(3, mapNoReserve|anonymous)},
			Why: "buffers and pools mapped once", User: kernel},
		{Call: "seccomp", Args: []Arg{is(0, unix.SECCOMP_SET_MODE_FILTER), is(1, unix.SECCOMP_FILTER_FLAG_TSYNC)},
			Why: "loading the narrower list", User: "policy"},
	}
}
