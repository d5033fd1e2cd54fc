// SPDX-License-Identifier: Apache-2.0

package bed

import (
	"fmt"
	"net"
	"runtime"
	"runtime/debug"
	"sync"
	"sync/atomic"
	"unsafe"

	"golang.org/x/sys/unix"
)

// chunk is what one write of a bulk sender carries, and one read takes at most.
const chunk = 256 << 10

// Bulk moves data over TCP connections, as fast as it goes. Both ends of each
// are threads with blocking sockets, as in most programs. The Go runtime is kept
// out of their way: before it waits it looks for other work, and it takes a
// waiting thread's place away and gives it back. That cost a tenth of the
// processor time that the translator needs.
type Bulk struct {
	Received atomic.Int64 // bytes, by all receivers

	fds       []int // sender, receiver, sender, ...
	ends      sync.WaitGroup
	procs, gc int
}

// Flow adds the two ends of a connection, and takes both over.
func (b *Bulk) Flow(from, to net.Conn) error {
	var failed error
	for _, c := range []net.Conn{from, to} {
		fd, err := blocking(c.(*net.TCPConn))
		c.Close()
		if err != nil {
			failed = fmt.Errorf("a flow's socket: %w", err)
			continue
		}
		b.fds = append(b.fds, fd)
	}
	return failed
}

// blocking returns a connection's socket in a descriptor that waits. The method
// File would add that to the runtime's poller, which wakes up for each segment.
func blocking(c *net.TCPConn) (fd int, err error) {
	raw, err := c.SyscallConn()
	if err != nil {
		return -1, err
	}
	if e := raw.Control(func(s uintptr) { fd, err = unix.FcntlInt(s, unix.F_DUPFD_CLOEXEC, 0) }); e != nil {
		return -1, e
	}
	if err != nil {
		return -1, err
	}
	return fd, unix.SetNonblock(fd, false)
}

// Start has all flows move data. Until Stop the runtime must not want to stop
// the world: a thread in a system call that it does not know of would not let
// it, if its flow does not move.
func (b *Bulk) Start() {
	runtime.GC()
	b.gc = debug.SetGCPercent(-1)
	b.procs = runtime.GOMAXPROCS(0)
	runtime.GOMAXPROCS(b.procs + len(b.fds))
	for i, fd := range b.fds {
		if i%2 == 0 {
			b.ends.Go(func() { pour(fd) })
		} else {
			b.ends.Go(func() { drain(fd, &b.Received) })
		}
	}
}

// Stop ends all flows.
func (b *Bulk) Stop() {
	for _, fd := range b.fds {
		_ = unix.Shutdown(fd, unix.SHUT_RDWR)
	}
	b.ends.Wait()
	for _, fd := range b.fds {
		unix.Close(fd)
	}
	if b.procs > 0 {
		runtime.GOMAXPROCS(b.procs)
		debug.SetGCPercent(b.gc)
	}
}

func pour(fd int) {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread() // with the thread would go the processes that it started
	b := make([]byte, chunk)
	for {
		if _, err := call(unix.SYS_WRITE, fd, b); err != 0 && err != unix.EINTR {
			return
		}
	}
}

func drain(fd int, count *atomic.Int64) {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	b := make([]byte, chunk)
	for {
		n, err := call(unix.SYS_READ, fd, b)
		count.Add(int64(n))
		if n == 0 && err != unix.EINTR {
			return
		}
	}
}

// call is read(2) or write(2), of which the runtime learns nothing. n is zero
// where it fails.
func call(trap uintptr, fd int, b []byte) (n int, err unix.Errno) {
	r, _, e := unix.RawSyscall(trap, uintptr(fd), uintptr(unsafe.Pointer(unsafe.SliceData(b))), uintptr(len(b)))
	if e != 0 {
		return 0, e
	}
	return int(r), 0
}
