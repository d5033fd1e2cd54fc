// SPDX-License-Identifier: Apache-2.0

package wait

import (
	"os"
	"runtime"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// pipes are n pipes, the ends to read from first.
func pipes(t *testing.T, n int) (from, to []int) {
	t.Helper()
	for range n {
		var p [2]int
		if err := unix.Pipe2(p[:], unix.O_CLOEXEC); err != nil {
			t.Fatal(err)
		}
		from, to = append(from, p[0]), append(to, p[1])
	}
	t.Cleanup(func() {
		for _, fd := range append(from, to...) {
			if fd >= 0 {
				unix.Close(fd)
			}
		}
	})
	return from, to
}

// waiting is a goroutine that waits, and how it ended.
func waiting(s *Set) chan error {
	ended := make(chan error, 1)
	go func() { ended <- s.Wait() }()
	return ended
}

func returns(t *testing.T, ended chan error) {
	t.Helper()
	select {
	case err := <-ended:
		if err != nil {
			t.Fatal(err)
		}
	case <-time.After(10 * time.Second):
		t.Fatal("it waits on")
	}
}

// TestWait: what becomes ready while somebody waits, and what was before, ends the waiting,
// as often as it is not read; the end of a channel does; what was taken off does not.
func TestWait(t *testing.T) {
	from, to := pipes(t, 3)
	var s Set
	if err := s.Open(); err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	for _, fd := range from {
		if err := s.Add(fd); err != nil {
			t.Fatal(err)
		}
	}
	for round := range 200 {
		i := round % 2
		ended := waiting(&s)
		if round%3 == 0 {
			time.Sleep(time.Millisecond)
		}
		if round%7 == 0 {
			runtime.GC()
		}
		if _, err := unix.Write(to[i], []byte{1}); err != nil {
			t.Fatal(err)
		}
		returns(t, ended)
		returns(t, waiting(&s)) // nobody has read it
		if !s.Ready(from[i]) || s.Ready(from[1-i]) || s.Ready(from[2]) {
			t.Fatalf("round %d: ready %v, the other %v", round, s.Ready(from[i]), s.Ready(from[1-i]))
		}
		if _, err := unix.Read(from[i], make([]byte, 1)); err != nil {
			t.Fatal(err)
		}
	}
	ended := waiting(&s)
	select {
	case err := <-ended:
		t.Fatalf("nothing is ready, and it returns: %v", err)
	case <-time.After(50 * time.Millisecond):
	}
	unix.Close(to[2])
	to[2] = -1
	returns(t, ended)
	if !s.Ready(from[2]) {
		t.Error("an end is not told of")
	}
	s.Remove(from[2])
	ended = waiting(&s)
	if _, err := unix.Write(to[0], []byte{1}); err != nil {
		t.Fatal(err)
	}
	returns(t, ended)
	if !s.Ready(from[0]) || s.Ready(from[2]) {
		t.Error("what was taken off is told of")
	}
}

// TestNested: an epoll in the set is ready when something in it is.
func TestNested(t *testing.T) {
	from, to := pipes(t, 1)
	ep, err := unix.EpollCreate1(unix.EPOLL_CLOEXEC)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(ep)
	var s Set
	if err := s.Open(); err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	if err := s.Add(ep); err != nil {
		t.Fatal(err)
	}
	ended := waiting(&s)
	e := unix.EpollEvent{Events: unix.EPOLLIN | unix.EPOLLET&0xffffffff}
	if err := unix.EpollCtl(ep, unix.EPOLL_CTL_ADD, from[0], &e); err != nil {
		t.Fatal(err)
	}
	if _, err := unix.Write(to[0], []byte{1}); err != nil {
		t.Fatal(err)
	}
	returns(t, ended)
	if !s.Ready(ep) {
		t.Error("it is not")
	}
}

// TestClose: nothing is left, and descriptors that were waited for stay open.
func TestClose(t *testing.T) {
	count := func() int {
		all, err := os.ReadDir("/proc/self/fd")
		if err != nil {
			t.Fatal(err)
		}
		return len(all)
	}
	from, to := pipes(t, 1)
	var first Set // the runtime's poller is made with the first
	if err := first.Open(); err != nil {
		t.Fatal(err)
	}
	defer first.Close()
	before := count()
	for range 10 {
		var s Set
		if err := s.Open(); err != nil {
			t.Fatal(err)
		}
		if err := s.Add(from[0]); err != nil {
			t.Fatal(err)
		}
		s.Close()
	}
	if n := count(); n != before {
		t.Errorf("%d descriptors, %d before", n, before)
	}
	if _, err := unix.Write(to[0], []byte{1}); err != nil {
		t.Error(err)
	}
}
