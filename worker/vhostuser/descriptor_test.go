// SPDX-License-Identifier: Apache-2.0

package vhostuser

import (
	"os"
	"path/filepath"
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
func (r *Remains) settled(tb testing.TB, n int) {
	tb.Helper()
	for range 3000 {
		if r.threads() <= n {
			return
		}
		time.Sleep(10 * time.Millisecond)
	}
	tb.Fatalf("%d threads close descriptors", r.threads())
}

func (r *Remains) threads() int {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.closers
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
	if n := f.s.config.Remains.threads(); n != 1 {
		t.Errorf("%d threads close descriptors", n)
	}
	gone()
	f.s.config.Remains.settled(t, 0)
}

// TestSlowDescriptors: threads that wait are few, and all is closed in the end.
func TestSlowDescriptors(t *testing.T) {
	before := openFiles(t)
	var r Remains
	var all []func()
	for range 3 * maxClosers {
		fd, gone := lingering(t)
		all = append(all, gone)
		within(t, func() { r.discard(fd) })
	}
	if n := r.threads(); n != maxClosers {
		t.Errorf("%d threads close descriptors", n)
	}
	for _, gone := range all {
		gone()
	}
	r.settled(t, 0)
	if after := openFiles(t); after != before {
		t.Errorf("%d descriptors are open, %d were before", after, before)
	}
}

// TestManySlowDescriptors: what waits to be closed is bounded, for this session and those
// that follow; once that is closed, the next may speak.
func TestManySlowDescriptors(t *testing.T) {
	r := new(Remains)
	c := config()
	c.Remains = r
	var all []func()
	for range maxClosers {
		fd, gone := lingering(t)
		all = append(all, gone)
		r.discard(fd)
	}
	for r.threads() < maxClosers {
		time.Sleep(time.Millisecond)
	}
	for waiting := func() int { r.mu.Lock(); defer r.mu.Unlock(); return len(r.waiting) }; waiting() > 0; {
		time.Sleep(time.Millisecond) // all threads have something
	}
	null, err := unix.Open("/dev/null", unix.O_RDWR|unix.O_CLOEXEC, 0)
	null = owned(t, null, err)
	for !r.full() {
		fd, err := unix.FcntlInt(uintptr(null), unix.F_DUPFD_CLOEXEC, 0)
		if err != nil {
			t.Fatal(err)
		}
		r.discard(fd)
	}
	f := begin(t, c)
	f.write(getFeatures, flagVersion, nil)
	f.over("cannot be closed yet")
	f.end()
	for _, gone := range all {
		gone()
	}
	r.settled(t, 0)
	f = begin(t, c)
	if got := u64(f.ask(getFeatures, nil)); got != Features {
		t.Errorf("features %#x", got)
	}
	f.end()
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
	timer, err := unix.TimerfdCreate(unix.CLOCK_MONOTONIC, unix.TFD_CLOEXEC)
	timer = owned(t, timer, err)
	alone, err := unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	alone = owned(t, alone, err)
	direct, err := unix.Open(filepath.Join(t.TempDir(), "direct"), unix.O_RDWR|unix.O_CREAT|unix.O_CLOEXEC|unix.O_DIRECT, 0o600)
	if err != nil {
		direct = -1 // not with every file system
	} else {
		owned(t, direct, nil)
	}
	for what, fd := range map[string]int{"timer": timer, "socket that is not connected": alone, "file without page cache": direct} {
		if isEvent(fd) {
			t.Errorf("a %s is an event", what)
		}
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
