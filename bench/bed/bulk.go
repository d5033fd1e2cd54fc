// SPDX-License-Identifier: Apache-2.0

package bed

import (
	"fmt"
	"net"
	"os"
	"runtime"
	"sync"
	"sync/atomic"

	"golang.org/x/sys/unix"
)

// chunk is what one write of a bulk sender carries, and one read takes at most.
const chunk = 256 << 10

// Bulk moves data over TCP connections, as fast as it goes. Both ends of each
// are threads with blocking sockets, as in most programs: Go's own way to wait
// looks for other work first, on processors that the translator needs.
type Bulk struct {
	Received atomic.Int64 // bytes, by all receivers

	files []*os.File
	ends  sync.WaitGroup
}

// Flow starts to move data between the ends of a connection, and takes both over.
func (b *Bulk) Flow(from, to net.Conn) error {
	var files [2]*os.File
	for i, c := range []net.Conn{from, to} {
		f, err := c.(*net.TCPConn).File()
		c.Close()
		if err == nil {
			err = unix.SetNonblock(int(f.Fd()), false)
		}
		if err != nil {
			return fmt.Errorf("a flow's socket: %w", err)
		}
		files[i] = f
		b.files = append(b.files, f)
	}
	b.ends.Go(func() { pour(int(files[0].Fd())) })
	b.ends.Go(func() { drain(int(files[1].Fd()), &b.Received) })
	return nil
}

// Stop ends all flows.
func (b *Bulk) Stop() {
	for _, f := range b.files {
		_ = unix.Shutdown(int(f.Fd()), unix.SHUT_RDWR)
	}
	b.ends.Wait()
	for _, f := range b.files {
		f.Close()
	}
}

func pour(fd int) {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread() // with the thread would go the processes that it started
	b := make([]byte, chunk)
	for {
		if _, err := unix.Write(fd, b); err != nil && err != unix.EINTR {
			return
		}
	}
}

func drain(fd int, count *atomic.Int64) {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	b := make([]byte, chunk)
	for {
		n, err := unix.Read(fd, b)
		count.Add(int64(max(n, 0)))
		if n == 0 || err != nil && err != unix.EINTR {
			return
		}
	}
}
