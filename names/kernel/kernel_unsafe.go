// SPDX-License-Identifier: Apache-2.0

// Package kernel makes the system calls of names: on sockets that the broker has
// passed, on the epoll. It decides nothing, and no call of it blocks but Wait.
package kernel

import (
	"fmt"
	"syscall"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Poller is an epoll(7) instance that reports for as long as something is true:
// level-triggered.
type Poller struct {
	fd     int
	events [64]unix.EpollEvent
}

// Event is what is true of a descriptor.
type Event struct {
	Token    uint64 // as Add was told
	Readable bool   // or at its end, or broken: a read tells
	Writable bool   // if that was asked for
}

// Open makes the instance.
func (p *Poller) Open() error {
	fd, err := unix.EpollCreate1(unix.EPOLL_CLOEXEC)
	if err != nil {
		return fmt.Errorf("epoll_create1: %w", err)
	}
	p.fd = fd
	return nil
}

// FD is the instance's own descriptor.
func (p *Poller) FD() int { return p.fd }

// Add has a descriptor reported under token. Errors are reported whatever is asked for.
func (p *Poller) Add(fd int, token uint64, read, write bool) error {
	return p.control(unix.EPOLL_CTL_ADD, fd, token, read, write)
}

// Change changes what Add has said.
func (p *Poller) Change(fd int, token uint64, read, write bool) error {
	return p.control(unix.EPOLL_CTL_MOD, fd, token, read, write)
}

func (p *Poller) control(op, fd int, token uint64, read, write bool) error {
	e := unix.EpollEvent{}
	if read {
		e.Events |= unix.EPOLLIN | unix.EPOLLRDHUP
	}
	if write {
		e.Events |= unix.EPOLLOUT
	}
	*(*uint64)(unsafe.Pointer(&e.Fd)) = token
	return unix.EpollCtl(p.fd, op, fd, &e)
}

// Remove ends the reports of a descriptor.
func (p *Poller) Remove(fd int) { _ = unix.EpollCtl(p.fd, unix.EPOLL_CTL_DEL, fd, nil) }

// Close closes a descriptor, and ends its reports: somebody else may have the open file
// as well.
func (p *Poller) Close(fd int) {
	p.Remove(fd)
	unix.Close(fd)
}

// rawWait is how long a wait may last, in milliseconds, that the Go scheduler is not told
// of: it comes back without its bookkeeping, for which other threads would wake up. Its
// monitor would look at a longer one a hundred times a second.
const rawWait = 10

// Wait waits until something is true, or for so long; negative: for ever. It returns how
// many events there are, a few at a time. soon says that there will be some soon.
func (p *Poller) Wait(timeout time.Duration, soon bool) int {
	ms := -1
	if timeout >= 0 {
		ms = int(min((timeout+time.Millisecond-1)/time.Millisecond, time.Hour/time.Millisecond))
	}
	if soon {
		first := rawWait
		if ms >= 0 && ms <= rawWait {
			first = ms
		}
		// epoll_wait(2) is another call, where there is one.
		n, _, e := syscall.RawSyscall6(unix.SYS_EPOLL_PWAIT, uintptr(p.fd),
			uintptr(unsafe.Pointer(&p.events)), uintptr(len(p.events)), uintptr(first), 0, 0)
		if e == 0 && n > 0 {
			return int(n)
		}
		if first == ms {
			return 0
		}
		if ms > 0 {
			ms -= first
		}
	}
	n, _, e := syscall.Syscall6(unix.SYS_EPOLL_PWAIT, uintptr(p.fd),
		uintptr(unsafe.Pointer(&p.events)), uintptr(len(p.events)), uintptr(ms), 0, 0)
	if e != 0 {
		return 0
	}
	return int(n)
}

// At returns event i of the last wait.
func (p *Poller) At(i int) Event {
	e := &p.events[i]
	return Event{
		Token:    *(*uint64)(unsafe.Pointer(&e.Fd)),
		Readable: e.Events&^uint32(unix.EPOLLOUT) != 0,
		Writable: e.Events&unix.EPOLLOUT != 0,
	}
}

// Read is read(2).
func Read(fd int, b []byte) (int, error) { return transfer(unix.SYS_READ, fd, b) }

// Write is write(2).
func Write(fd int, b []byte) (int, error) { return transfer(unix.SYS_WRITE, fd, b) }

// transfer makes a call that does not wait, and that the Go scheduler need not know of.
func transfer(call uintptr, fd int, b []byte) (int, error) {
	for {
		n, _, e := syscall.RawSyscall(call, uintptr(fd), uintptr(unsafe.Pointer(unsafe.SliceData(b))), uintptr(len(b)))
		switch e {
		case 0:
			return int(n), nil
		case unix.EINTR:
		default:
			return 0, e
		}
	}
}

// Busy tells whether a call would have had to wait.
func Busy(err error) bool { return err == unix.EAGAIN }

// Close closes a descriptor that no Poller knows.
func Close(fd int) { unix.Close(fd) }

// Nonblocking has calls on a descriptor not wait. The filters forbid it.
func Nonblocking(fd int) error { return unix.SetNonblock(fd, true) }
