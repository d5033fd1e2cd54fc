// SPDX-License-Identifier: Apache-2.0

//go:build captive

package captive

import "golang.org/x/sys/unix"

var processes = attempts{
	"kill-parent":       call(unix.SYS_KILL, 0, uintptr(unix.SIGTERM)),
	"kill-all":          call(unix.SYS_KILL, mask, uintptr(unix.SIGTERM)),
	"tgkill-other":      call(unix.SYS_TGKILL, 2, 2, uintptr(unix.SIGTERM)),
	"tgkill-init":       call(unix.SYS_TGKILL, 1, 1, uintptr(unix.SIGTERM)),
	"tkill":             call(unix.SYS_TKILL, 1, uintptr(unix.SIGTERM)),
	"pidfd_open":        call(unix.SYS_PIDFD_OPEN, 1, 0),
	"pidfd_getfd":       call(unix.SYS_PIDFD_GETFD, 3, 0, 0),
	"ptrace":            call(unix.SYS_PTRACE, unix.PTRACE_SEIZE, 1, 0, 0),
	"ptrace-traceme":    call(unix.SYS_PTRACE, unix.PTRACE_TRACEME, 0, 0, 0),
	"process_vm_readv":  call(unix.SYS_PROCESS_VM_READV, 1, 0, 0, 0, 0, 0),
	"kcmp":              call(unix.SYS_KCMP, 1, 1, 0, 0, 0),
	"clone-process":     call(unix.SYS_CLONE, uintptr(unix.SIGCHLD), 0, 0, 0, 0),
	"clone-newuser":     call(unix.SYS_CLONE, uintptr(unix.SIGCHLD)|unix.CLONE_NEWUSER, 0, 0, 0, 0),
	"clone3":            call(unix.SYS_CLONE3, addr(&[11]uint64{}), 88),
	"unshare-user":      call(unix.SYS_UNSHARE, unix.CLONE_NEWUSER),
	"unshare-net":       call(unix.SYS_UNSHARE, unix.CLONE_NEWNET),
	"setns":             call(unix.SYS_SETNS, 3, 0),
	"kill-self":         func(Held) error { return raw(unix.SYS_KILL, uintptr(unix.Getpid()), 0) },
	"pidfd-signal-term": call(unix.SYS_PIDFD_SEND_SIGNAL, 3, uintptr(unix.SIGTERM), 0, 0),
	"process_vm_writev": call(unix.SYS_PROCESS_VM_WRITEV, 1, 0, 0, 0, 0, 0),
	"clone-thread-user": call(unix.SYS_CLONE, uintptr(unix.SIGCHLD)|unix.CLONE_FILES|unix.CLONE_NEWUSER, 0, 0, 0, 0),
	"clone-worker": call(unix.SYS_CLONE, uintptr(unix.SIGCHLD)|unix.CLONE_PARENT|unix.CLONE_PIDFD|unix.CLONE_NEWNET, 0,
		addr(&[1]int32{}), 0, 0),
	"setns-net":          call(unix.SYS_SETNS, 3, unix.CLONE_NEWNET),
	"setns-pid":          call(unix.SYS_SETNS, 3, unix.CLONE_NEWPID),
	"setns-ipc":          call(unix.SYS_SETNS, 3, unix.CLONE_NEWIPC),
	"setns-uts":          call(unix.SYS_SETNS, 3, unix.CLONE_NEWUTS),
	"setns-cgroup":       call(unix.SYS_SETNS, 3, unix.CLONE_NEWCGROUP),
	"setns-user":         withHeld(func(h Held) []uintptr { return []uintptr{unix.SYS_SETNS, uintptr(h.User), unix.CLONE_NEWUSER} }),
	"setns-mnt":          withHeld(func(h Held) []uintptr { return []uintptr{unix.SYS_SETNS, uintptr(h.Mount), unix.CLONE_NEWNS} }),
	"setpriority":        call(unix.SYS_SETPRIORITY, 0, 0, mask),
	"sched_setscheduler": call(unix.SYS_SCHED_SETSCHEDULER, 0, 1, addr(&[1]int32{1})),
	"sched_setaffinity":  call(unix.SYS_SCHED_SETAFFINITY, 1, 8, addr(&[1]uint64{1})),
	"rt_sigqueueinfo":    call(unix.SYS_RT_SIGQUEUEINFO, 1, uintptr(unix.SIGTERM), addr(&[128]byte{})),
	"prlimit-other":      call(unix.SYS_PRLIMIT64, 1, unix.RLIMIT_CORE, 0, addr(&[2]uint64{})),
	"membarrier":         call(unix.SYS_MEMBARRIER, 0, 0, 0),
	"get_robust_list":    call(unix.SYS_GET_ROBUST_LIST, 1, addr(&[1]uint64{}), addr(&[1]uint64{})),
	"setresgid":          call(unix.SYS_SETRESGID, 1, 1, 1), // nobody of ours is that
	"setgroups":          call(unix.SYS_SETGROUPS, 0, 0),
}
