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
}

// rawWait is how long a wait may last, in milliseconds, that the Go scheduler
// is not told of. Shorter waits come back without its bookkeeping; longer ones
// must be known to it, or its monitor would look at this thread a hundred
// times a second for nothing.
const rawWait = 1

// wait fills events and returns their number. timeout is in milliseconds; -1:
// until something happens.
func (p *poller) wait(timeout int) int {
	first := timeout
	if first < 0 || first > rawWait {
		first = rawWait
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
