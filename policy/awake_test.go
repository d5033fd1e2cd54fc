// SPDX-License-Identifier: Apache-2.0

package policy

import (
	"runtime"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// TestAwake stops the world for system calls on all threads while a goroutine
// goes in and out of a blocking one. Without Awake one in 15,000 such calls or
// so takes a minute.
func TestAwake(t *testing.T) {
	if testing.Short() {
		t.Skip("takes seconds")
	}
	if _, _, errno := syscall.AllThreadsSyscall(unix.SYS_GETPPID, 0, 0, 0); errno != 0 {
		t.Skip("a cgo build")
	}
	defer runtime.GOMAXPROCS(runtime.GOMAXPROCS(2))
	var p [2]int
	if err := unix.Pipe2(p[:], unix.O_CLOEXEC); err != nil {
		t.Fatal(err)
	}
	var stop atomic.Bool
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		fds := []unix.PollFd{{Fd: int32(p[0]), Events: unix.POLLIN}}
		for !stop.Load() {
			unix.Poll(fds, -1) // EINTR by each call on all threads
		}
	}()
	defer func() {
		stop.Store(true)
		unix.Close(p[1])
		<-ended
		unix.Close(p[0])
	}()

	// A bare call to Awake is all that keeps the monitor awake: no deadline
	// may be pending here.
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	done := Awake()
	defer done()
	for i := range 30000 {
		begin := time.Now()
		syscall.AllThreadsSyscall(unix.SYS_GETPPID, 0, 0, 0)
		if d := time.Since(begin); d > 20*time.Second {
			t.Fatalf("call %d took %v", i, d)
		}
	}
}
