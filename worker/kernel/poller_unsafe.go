// SPDX-License-Identifier: Apache-2.0

package kernel

import (
	"fmt"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"

	"aldente/worker/flow"
)

// Poller is an epoll(7) instance.
type Poller struct {
	fd     int32
	events [256]unix.EpollEvent
	change unix.EpollEvent
	short  unix.Timespec
}

// Open makes the instance.
func (p *Poller) Open() error {
	fd, err := unix.EpollCreate1(unix.EPOLL_CLOEXEC)
	if err != nil {
		return fmt.Errorf("epoll_create1: %w", err)
	}
	p.fd = int32(fd)
	return nil
}

// FD is the instance's own descriptor.
func (p *Poller) FD() int32 { return p.fd }

// RawWait is how long a wait may last, in milliseconds, that the Go scheduler
// is not told of. Shorter waits come back without its bookkeeping; longer ones
// must be known to it, or its monitor would look at this thread a hundred
// times a second for nothing.
const RawWait = 10

// Wait fills events and returns their number. timeout is in milliseconds; -1:
// until something happens. soon says that events are likely within RawWait.
// Where they are not, a wait that long is not told to the scheduler's monitor,
// which then looks after this thread for nothing.
func (p *Poller) Wait(timeout int, soon bool) int {
	first := 0
	if soon {
		first = RawWait
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

// WaitShortly is Wait for less than a millisecond, in nanoseconds.
func (p *Poller) WaitShortly(timeout int64) int {
	p.short.Nsec = timeout
	n, _, e := syscall.RawSyscall6(unix.SYS_EPOLL_PWAIT2, uintptr(p.fd),
		uintptr(unsafe.Pointer(&p.events)), uintptr(len(p.events)), uintptr(unsafe.Pointer(&p.short)), 0, 0)
	switch e {
	case 0:
		return int(n)
	case syscall.ENOSYS: // before Linux 5.11
		return p.Wait(RawWait, true)
	}
	return 0
}

// Watch has a flow's socket reported under token, edge-triggered, for what events
// says of flow.Readable and flow.Writable, and for its peer's end and errors.
func (p *Poller) Watch(fd int32, token uint64, events uint32) syscall.Errno {
	return p.control(unix.EPOLL_CTL_ADD, fd, watched(events), token)
}

// Rewatch changes what is reported of a watched socket. What it is ready for now is
// reported again.
func (p *Poller) Rewatch(fd int32, token uint64, events uint32) syscall.Errno {
	return p.control(unix.EPOLL_CTL_MOD, fd, watched(events), token)
}

// watched is what epoll is told. The kernel's notice of new data says EPOLLPRI
// whether any are urgent or not: who does not want data is not to be woken by it.
func watched(events uint32) uint32 {
	if events&flow.Readable != 0 {
		events |= flow.Urgent
	}
	return events | unix.EPOLLRDHUP | unix.EPOLLET&0xffffffff
}

// Add has a descriptor reported under token for as long as events, and nothing
// else, are true of it: level-triggered.
func (p *Poller) Add(fd int32, token uint64, events uint32) syscall.Errno {
	return p.control(unix.EPOLL_CTL_ADD, fd, events, token)
}

// Change changes what Add has said.
func (p *Poller) Change(fd int32, token uint64, events uint32) syscall.Errno {
	return p.control(unix.EPOLL_CTL_MOD, fd, events, token)
}

// Remove ends the reports of a descriptor that stays open.
func (p *Poller) Remove(fd int32) { p.control(unix.EPOLL_CTL_DEL, fd, 0, 0) }

func (p *Poller) control(op int, fd int32, events uint32, token uint64) syscall.Errno {
	p.change.Events = events
	*(*uint64)(unsafe.Pointer(&p.change.Fd)) = token
	_, e := raw6(unix.SYS_EPOLL_CTL, uintptr(p.fd), uintptr(op), uintptr(fd), uintptr(unsafe.Pointer(&p.change)), 0, 0)
	return e
}

// At returns event i of the last wait.
func (p *Poller) At(i int) (events uint32, token uint64) {
	e := &p.events[i]
	return e.Events, *(*uint64)(unsafe.Pointer(&e.Fd))
}
