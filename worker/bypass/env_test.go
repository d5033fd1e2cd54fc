// SPDX-License-Identifier: Apache-2.0

package bypass

import (
	"net/netip"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"aldente/ipc"
	"aldente/worker/flow"
	"aldente/worker/kernel"
	"aldente/worker/packet"
	"aldente/worker/store"
)

// lane is a small one: it makes real system calls, and has a broker that opens
// what open says.
type lane struct {
	kernel.Sockets
	poll   kernel.Poller
	tb     testing.TB
	start  time.Time
	wheel  *store.Wheel
	guest  flow.Guest
	t      *Translator
	opens  []ipc.Open
	open   func(o *ipc.Open) (fd int, errno syscall.Errno)
	noPipe bool
	pipes  int

	reports int // events so far
}

func newLane(tb testing.TB) *lane {
	tb.Helper()
	l := &lane{tb: tb, start: time.Now().Add(-time.Second)}
	must(tb, l.poll.Open())
	l.guest.Seen4 = packet.AddrFrom4([4]byte{127, 0, 0, 1})
	l.guest.Seen6 = packet.Addr{15: 1}
	l.wheel = store.NewWheel(64, l.Now())
	l.t = New(l, &l.guest, l.wheel, 0, store.NewPool(make([]byte, 64*store.ChunkSize)), 4096, 64)
	l.t.Return = func(id uint32, d []flow.Datagram) {
		l.t.Datagrams(id, ipc.ListenerMayBypass, 53, d)
	}
	tb.Cleanup(func() {
		l.t.Close()
		kernel.Close(l.poll.FD())
	})
	return l
}

// step waits for events, for at most a millisecond, and has the translator
// handle them.
func (l *lane) step() {
	timeout := 1
	if l.t.Pending() {
		timeout = 0
	}
	n := l.poll.Wait(timeout, true)
	l.reports += n
	for i := range n {
		events, token := l.poll.At(i)
		l.t.Ready(token, events)
	}
	if l.t.MarkTimeout() > 0 {
		l.t.ExpireMarks()
	}
	if l.t.Pending() {
		l.t.Poll()
	}
	l.t.Sweep()
	l.answer()
}

// answer plays the broker.
func (l *lane) answer() {
	for len(l.opens) > 0 {
		o := l.opens[0]
		l.opens = append(l.opens[:0], l.opens[1:]...)
		fd, errno := l.open(&o)
		a := ipc.Opened{Token: o.Token, Errno: uint16(errno)}
		if fd >= 0 {
			if sa, err := unix.Getpeername(fd); err == nil {
				peer, port := address(sa)
				a.Addr, a.PeerPort = peer, port
			}
		}
		l.t.Opened(o.Token, int32(fd), &a)
	}
}

// until steps until the condition holds.
func (l *lane) until(what string, done func() bool) {
	l.tb.Helper()
	for deadline := time.Now().Add(time.Minute); !done(); {
		if time.Now().After(deadline) {
			l.tb.Fatalf("%s: not after a minute", what)
		}
		l.step()
	}
}

func (l *lane) Now() int64 { return int64(time.Since(l.start)) }

func (l *lane) Open(r *ipc.Open) bool {
	l.opens = append(l.opens, *r)
	return true
}

func (l *lane) Watch(fd int32, token uint64, events uint32) syscall.Errno {
	return l.poll.Watch(fd, token, events)
}

func (l *lane) Rewatch(fd int32, token uint64, events uint32) syscall.Errno {
	return l.poll.Rewatch(fd, token, events)
}

func (l *lane) Close(fd int32) { kernel.Close(fd) }

func (l *lane) Abort(fd int32) {
	l.ResetOnClose(fd)
	l.Close(fd)
}

func (l *lane) Pipe() (r, w int32, size int, err syscall.Errno) {
	if l.noPipe {
		return -1, -1, 0, syscall.EMFILE
	}
	l.pipes++
	return l.Sockets.Pipe()
}

func address(sa unix.Sockaddr) (packet.Addr, uint16) {
	switch a := sa.(type) {
	case *unix.SockaddrInet4:
		return packet.AddrFrom4(a.Addr), uint16(a.Port)
	case *unix.SockaddrInet6:
		return packet.Addr(a.Addr), uint16(a.Port)
	}
	return packet.Addr{}, 0
}

// listenTCP returns a listening socket on the loopback address.
func listenTCP(tb testing.TB, addr string) (fd int, at unix.Sockaddr) {
	tb.Helper()
	fd = newSocket(tb, addr, unix.SOCK_STREAM)
	must(tb, unix.Listen(fd, 64))
	at, err := unix.Getsockname(fd)
	must(tb, err)
	return fd, at
}

// newSocket returns a blocking socket bound to a loopback address.
func newSocket(tb testing.TB, addr string, typ int) int {
	tb.Helper()
	a := netip.MustParseAddr(addr)
	domain := unix.AF_INET6
	var sa unix.Sockaddr = &unix.SockaddrInet6{Addr: a.As16()}
	if a.Is4() {
		domain, sa = unix.AF_INET, &unix.SockaddrInet4{Addr: a.As4()}
	}
	fd, err := unix.Socket(domain, typ|unix.SOCK_CLOEXEC, 0)
	must(tb, err)
	must(tb, unix.Bind(fd, sa))
	if typ == unix.SOCK_STREAM {
		must(tb, unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_OOBINLINE, 1)) // the broker's part
	}
	return fd
}

func must(tb testing.TB, err error) {
	tb.Helper()
	if err != nil {
		tb.Fatal(err)
	}
}

// timeouts make a blocking socket fail rather than hang.
func timeouts(fd int) {
	tv := unix.Timeval{Sec: 20}
	_ = unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &tv)
	_ = unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_SNDTIMEO, &tv)
}

// connection is a flow under test: two peers and the bypass between them.
type connection struct {
	client, server int
}

// connect makes a flow: a client's connection is accepted and given to the
// translator, whose far end is connected to a server.
func (l *lane) connect(addr string) connection { return l.connectBy(addr, ipc.ListenerMayBypass) }

// connectBy is connect by a listener with these flags.
func (l *lane) connectBy(addr string, flags uint8) connection {
	l.tb.Helper()
	front, frontAt := listenTCP(l.tb, addr)
	back, backAt := listenTCP(l.tb, addr)
	defer unix.Close(front)
	defer unix.Close(back)
	l.open = func(*ipc.Open) (int, syscall.Errno) { return l.dial(addr, backAt) }
	c := newSocket(l.tb, addr, unix.SOCK_STREAM)
	must(l.tb, unix.Connect(c, frontAt))
	l.accept(front, flags)
	opened := l.t.Stats.Opened
	l.until("open", func() bool { return l.t.Stats.Opened > opened })
	s, _, err := unix.Accept4(back, unix.SOCK_CLOEXEC)
	must(l.tb, err)
	for _, fd := range []int{c, s} {
		timeouts(fd)
		_ = unix.SetsockoptInt(fd, unix.IPPROTO_TCP, unix.TCP_NODELAY, 1)
	}
	return connection{c, s}
}

func (l *lane) accept(listener int, flags uint8) {
	l.tb.Helper()
	fd, sa, err := unix.Accept4(listener, unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK)
	must(l.tb, err)
	peer, port := address(sa)
	l.t.Accepted(7, flags, int32(fd), peer, port)
	l.answer()
	l.t.Sweep()
}

// dial connects without waiting, as the broker does.
func (l *lane) dial(addr string, to unix.Sockaddr) (int, syscall.Errno) {
	fd := newSocket(l.tb, addr, unix.SOCK_STREAM)
	must(l.tb, unix.SetNonblock(fd, true))
	must(l.tb, unix.SetsockoptInt(fd, unix.IPPROTO_TCP, unix.TCP_NODELAY, 1))
	if err := unix.Connect(fd, to); err != nil && err != unix.EINPROGRESS {
		unix.Close(fd)
		return -1, err.(syscall.Errno)
	}
	return fd, 0
}

func (c connection) close() {
	unix.Close(c.client)
	unix.Close(c.server)
}
