// SPDX-License-Identifier: Apache-2.0

package vhostuser

import (
	"os"
	"runtime"
	"slices"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// lingering is a socket that is closed only when its peer has taken all, as its
// owner has wanted it, or is gone. It is not closed by the test; gone ends the wait.
func lingering(t *testing.T) (fd int, gone func()) {
	t.Helper()
	check := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	l, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	check(err)
	defer unix.Close(l)
	check(unix.Bind(l, &unix.SockaddrInet4{Addr: [4]byte{127, 0, 0, 1}}))
	check(unix.Listen(l, 1))
	at, err := unix.Getsockname(l)
	check(err)
	fd, err = unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	check(err)
	check(unix.Connect(fd, at))
	peer, _, err := unix.Accept4(l, unix.SOCK_CLOEXEC)
	check(err)
	check(unix.SetsockoptLinger(peer, unix.SOL_SOCKET, unix.SO_LINGER, &unix.Linger{Onoff: 1}))
	check(unix.SetsockoptLinger(fd, unix.SOL_SOCKET, unix.SO_LINGER, &unix.Linger{Onoff: 1, Linger: 3600}))
	for err == nil {
		_, err = unix.SendmsgN(fd, make([]byte, 64<<10), nil, nil, unix.MSG_DONTWAIT)
	}
	return fd, func() { unix.Close(peer) }
}

// settled waits until no more than n threads close descriptors.
func settled(tb testing.TB, n int) {
	tb.Helper()
	for range 3000 {
		if closers() <= n {
			return
		}
		time.Sleep(10 * time.Millisecond)
	}
	tb.Fatalf("%d threads close descriptors", closers())
}

func closers() int {
	closing.Lock()
	defer closing.Unlock()
	return closing.closers
}

// TestSlowDescriptor: to close what a front end passes may take as long as it likes.
// Nobody waits for that.
func TestSlowDescriptor(t *testing.T) {
	f := connect(t, config())
	fd, gone := lingering(t)
	t.Cleanup(gone)
	f.write(setVringKick, flagVersion, longs(0), fd)
	unix.Close(fd)
	within(t, func() { f.over("no eventfd") })
	if closers() != 1 {
		t.Errorf("%d threads close descriptors", closers())
	}
	gone()
	settled(t, 0)
}

// TestSlowDescriptors: threads that wait are few, and all is closed in the end.
func TestSlowDescriptors(t *testing.T) {
	before := openFiles(t)
	var all []func()
	for range 3 * maxClosers {
		fd, gone := lingering(t)
		all = append(all, gone)
		within(t, func() { discard(fd) })
	}
	if closers() != maxClosers {
		t.Errorf("%d threads close descriptors", closers())
	}
	for _, gone := range all {
		gone()
	}
	settled(t, 0)
	if after := openFiles(t); after != before {
		t.Errorf("%d descriptors are open, %d were before", after, before)
	}
}

// TestIsEvent: what is an eventfd, and what is not.
func TestIsEvent(t *testing.T) {
	fds := newPalette(t)
	for i, fd := range fds {
		if got := isEvent(fd); got != (i == 0) {
			t.Errorf("descriptor %d of the palette: %v", i, got)
		}
		if got, want := isMemory(fd), i >= 1 && i <= 3; got != want {
			t.Errorf("descriptor %d of the palette is memory: %v", i, got)
		}
	}
	path, err := unix.Open(os.DevNull, unix.O_PATH|unix.O_CLOEXEC, 0)
	path = owned(t, path, err)
	if isEvent(path) || isEvent(-1) {
		t.Error("what cannot be read is an event")
	}
	full := event(t)
	if _, err := unix.Write(full, longs(3)); err != nil || !isEvent(full) {
		t.Error("an event that is not zero is none", err)
	}
	var b [8]byte
	if _, err := unix.Read(full, b[:]); err != nil || u64(b[:]) != 3 {
		t.Errorf("%d, %v: something was taken", u64(b[:]), err)
	}
}

// TestGarbage: what a front end makes us allocate without end is collected.
func TestGarbage(t *testing.T) {
	f := running(t)
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	call, err := event(t), error(nil)
	message := slices.Concat(words(setVringCall, flagVersion, 8), longs(1))
	for n := 0; n < 2*maxGarbage/messageCost && err == nil; n++ {
		f.raw(message, call)
		_, err = f.s.Receive()
		f.dev.said = f.dev.said[:0]
	}
	runtime.ReadMemStats(&after)
	if err != nil || after.NumForcedGC < before.NumForcedGC+2 {
		t.Errorf("%v, collected %d times", err, after.NumForcedGC-before.NumForcedGC)
	}
	// The device of this test allocates more than the session.
	if grown := (after.TotalAlloc - before.TotalAlloc) / (2 * maxGarbage / messageCost); grown > 4*messageCost {
		t.Errorf("%d bytes for each message", grown)
	}
}
