// SPDX-License-Identifier: Apache-2.0

package lane

import (
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
)

// poller is the lane's epoll(7) instance.
type poller struct {
	fd     int32
	events [256]unix.EpollEvent
	change unix.EpollEvent
	short  unix.Timespec
}

// rawWait is how long a wait may last, in milliseconds, that the Go scheduler
// is not told of. Shorter waits come back without its bookkeeping; longer ones
// must be known to it, or its monitor would look at this thread a hundred
// times a second for nothing.
const rawWait = 10

// wait fills events and returns their number. timeout is in milliseconds; -1:
// until something happens. soon says that events are likely within rawWait;
// if they are not, the monitor is woken for a wait that it need not know of.
func (p *poller) wait(timeout int, soon bool) int {
	first := 0
	if soon {
		first = rawWait
	}
	if timeout >= 0 && timeout < first {
		first = timeout
	}
	n, _, e := syscall.RawSyscall6(unix.SYS_EPOLL_PWAIT, uintptr(p.fd),
		uintptr(unsafe.Pointer(&p.events)), uintptr(len(p.events)), uintptr(first), 0, 0)
	if e == 0 && n > 0 {
		return int(n)
	}
	if first == timeout {
		return 0
	}
	if timeout > 0 {
		timeout -= first
	}
	n, _, e = syscall.Syscall6(unix.SYS_EPOLL_PWAIT, uintptr(p.fd),
		uintptr(unsafe.Pointer(&p.events)), uintptr(len(p.events)), uintptr(timeout), 0, 0)
	if e != 0 {
		return 0
	}
	return int(n)
}

// waitShortly is wait for less than a millisecond, in nanoseconds.
func (p *poller) waitShortly(timeout int64) int {
	p.short.Nsec = timeout
	n, _, e := syscall.RawSyscall6(unix.SYS_EPOLL_PWAIT2, uintptr(p.fd),
		uintptr(unsafe.Pointer(&p.events)), uintptr(len(p.events)), uintptr(unsafe.Pointer(&p.short)), 0, 0)
	switch e {
	case 0:
		return int(n)
	case syscall.ENOSYS: // before Linux 5.11
		return p.wait(rawWait, true)
	}
	return 0
}

func (p *poller) control(op int, fd int32, events uint32, token uint64) syscall.Errno {
	p.change.Events = events
	*(*uint64)(unsafe.Pointer(&p.change.Fd)) = token
	_, e := raw6(unix.SYS_EPOLL_CTL, uintptr(p.fd), uintptr(op), uintptr(fd), uintptr(unsafe.Pointer(&p.change)), 0, 0)
	return e
}

// at returns event i of the last wait.
func (p *poller) at(i int) (events uint32, token uint64) {
	e := &p.events[i]
	return e.Events, *(*uint64)(unsafe.Pointer(&e.Fd))
}
