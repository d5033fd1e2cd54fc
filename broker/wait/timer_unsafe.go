// SPDX-License-Identifier: Apache-2.0

package wait

import (
	"fmt"
	"syscall"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Timer is a descriptor that can be read from as time passes, timerfd_create(2), for a Set.
// With a timer of the runtime's, its monitor wakes up for each of its ends, besides who
// waits for them.
type Timer struct {
	fd int
	on bool
}

// Open makes a timer that is stopped.
func (t *Timer) Open() error {
	fd, err := unix.TimerfdCreate(unix.CLOCK_MONOTONIC, unix.TFD_CLOEXEC|unix.TFD_NONBLOCK)
	if err != nil {
		return fmt.Errorf("timerfd_create: %w", err)
	}
	t.fd = fd
	return nil
}

// FD is its descriptor.
func (t *Timer) FD() int { return t.fd }

// Start has it end after each period, from now on; one that runs already goes on.
func (t *Timer) Start(period time.Duration) error {
	if t.on {
		return nil
	}
	err := t.set(period)
	t.on = err == nil
	return err
}

// Stop has it end no more, and be read no more.
func (t *Timer) Stop() error {
	if !t.on {
		return nil
	}
	t.on = false
	return t.set(0)
}

func (t *Timer) set(period time.Duration) error {
	p := unix.NsecToTimespec(period.Nanoseconds())
	err := unix.TimerfdSettime(t.fd, 0, &unix.ItimerSpec{Interval: p, Value: p}, nil)
	if err != nil {
		return fmt.Errorf("timerfd_settime: %w", err)
	}
	return nil
}

// Take takes note of the ends so far: it is ready again after the next. It tells whether
// there were any.
func (t *Timer) Take() bool {
	var n uint64
	_, _, e := syscall.RawSyscall(unix.SYS_READ, uintptr(t.fd), uintptr(unsafe.Pointer(&n)), unsafe.Sizeof(n))
	return e == 0 && n > 0
}

// Close ends it.
func (t *Timer) Close() error { return unix.Close(t.fd) }
