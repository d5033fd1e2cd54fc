// SPDX-License-Identifier: Apache-2.0

// Package wait has a goroutine wait for several descriptors, as poll(2) does, and leaves the
// waiting to the runtime's poller. A goroutine that sleeps in a system call of its own has the
// runtime's monitor look for its processor, some times before it sleeps itself, and
// woken again by the next call: that costs more than to answer a request.
package wait

import (
	"fmt"
	"os"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
)

// most is how many descriptors are reported at a time.
const most = 4

// Set is the descriptors that are waited for. One goroutine uses it.
type Set struct {
	fd     int
	file   *os.File // whose descriptor it is: the runtime's poller watches the epoll
	conn   syscall.RawConn
	look   func(uintptr) bool // made once
	events [most]unix.EpollEvent
	n      int
}

// Open makes an empty set.
func (s *Set) Open() error {
	fd, err := unix.EpollCreate1(unix.EPOLL_CLOEXEC)
	if err != nil {
		return fmt.Errorf("epoll_create1: %w", err)
	}
	if err := unix.SetNonblock(fd, true); err != nil { // else the runtime takes it for a file
		unix.Close(fd)
		return fmt.Errorf("O_NONBLOCK: %w", err)
	}
	s.fd, s.file, s.look = fd, os.NewFile(uintptr(fd), "epoll"), s.poll
	if s.conn, err = s.file.SyscallConn(); err != nil {
		s.file.Close()
	}
	return err
}

// Close ends it. Descriptors stay open.
func (s *Set) Close() { _ = s.file.Close() }

// Add has a descriptor waited for until something can be read from it, or it is at its end.
func (s *Set) Add(fd int) error {
	e := unix.EpollEvent{Events: unix.EPOLLIN, Fd: int32(fd)}
	return os.NewSyscallError("epoll_ctl", unix.EpollCtl(s.fd, unix.EPOLL_CTL_ADD, fd, &e))
}

// Remove ends that, before the descriptor is closed.
func (s *Set) Remove(fd int) { _ = unix.EpollCtl(s.fd, unix.EPOLL_CTL_DEL, fd, nil) }

// Wait returns when one of them is ready.
func (s *Set) Wait() error { return s.conn.Read(s.look) }

// Ready tells whether a descriptor was ready when Wait returned.
func (s *Set) Ready(fd int) bool {
	for i := range s.n {
		if s.events[i].Fd == int32(fd) {
			return true
		}
	}
	return false
}

// poll looks without waiting.
func (s *Set) poll(uintptr) bool {
	n, _, e := syscall.RawSyscall6(unix.SYS_EPOLL_PWAIT, uintptr(s.fd), uintptr(unsafe.Pointer(&s.events)), most, 0, 0, 0)
	if s.n = 0; e == 0 {
		s.n = int(n)
	}
	return s.n > 0
}
