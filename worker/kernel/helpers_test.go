// SPDX-License-Identifier: Apache-2.0

package kernel

import (
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// loopback returns a socket on a loopback address, and where it is.
func loopback(t testing.TB, v4 bool, typ int) (fd int, at unix.Sockaddr) {
	t.Helper()
	domain := unix.AF_INET6
	at = &unix.SockaddrInet6{Addr: [16]byte{15: 1}}
	if v4 {
		domain, at = unix.AF_INET, &unix.SockaddrInet4{Addr: [4]byte{127, 0, 0, 1}}
	}
	fd, err := unix.Socket(domain, typ|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		t.Skip(err) // no IPv6
	}
	t.Cleanup(func() { unix.Close(fd) })
	if err := unix.Bind(fd, at); err != nil {
		t.Skipf("no loopback interface: %v", err)
	}
	at, err = unix.Getsockname(fd)
	must(t, err)
	return fd, at
}

// connected returns both ends of a TCP connection; the first is for us, the second
// the host's. Whoever asks closes them.
func connected(t testing.TB) (fd, host int) {
	t.Helper()
	l, at := loopback(t, true, unix.SOCK_STREAM)
	inline(t, l)
	must(t, unix.Listen(l, 1))
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	must(t, err)
	inline(t, fd)
	if err := unix.Connect(fd, at); err != nil && err != unix.EINPROGRESS {
		t.Fatal(err)
	}
	ready(t, l, unix.POLLIN)
	host, _, err = unix.Accept4(l, unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK)
	must(t, err)
	for _, s := range []int{fd, host} {
		must(t, unix.SetsockoptInt(s, unix.IPPROTO_TCP, unix.TCP_NODELAY, 1))
	}
	ready(t, fd, unix.POLLOUT)
	return fd, host
}

// inline has a socket keep urgent data in the stream: the broker's part.
func inline(t testing.TB, fd int) {
	t.Helper()
	must(t, unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_OOBINLINE, 1))
}

// ready waits for an event of a socket.
func ready(t testing.TB, fd int, events int16) {
	t.Helper()
	p := []unix.PollFd{{Fd: int32(fd), Events: events}}
	for end := time.Now().Add(5 * time.Second); ; {
		if n, _ := unix.Poll(p, 100); n == 1 {
			return
		}
		if time.Now().After(end) {
			t.Fatalf("no event of %#x", events)
		}
	}
}
